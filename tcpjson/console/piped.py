"""Commands from a pipe or a file: an answer a line, in the order of the commands."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tcpjson.client import Client
from tcpjson.console.commands import COMMANDS, Command, CommandError, parse
from tcpjson.console.link import REPLIES, Answer, Link, Listener, Make
from tcpjson.console.rendering import Line, as_json, code_of, escape, in_words, milliseconds, reason_of
from tcpjson.core.errors import Disconnected, ProtocolError, RequestTimeout, error_of
from tcpjson.deadlines import Deadlines

Json = dict[str, Any]

#: Commands that wait for their answers, and bytes of them, at the most.
WINDOW = 256
WINDOW_BYTES = 1024 * 1024
#: Bytes of what others send that wait for a reader of our output who is slow.
MAX_UNREAD = 8 * 1024 * 1024


class _Slot:
    """A command, until its answer is printed."""

    def __init__(self, number: int, size: int, command: Command | None = None) -> None:
        self.number = number
        self.size = size
        self.command = command
        self.done = False
        self.message: Json | None = None
        self.seconds: float | None = None
        self.error: BaseException | None = None
        # Of a text: when it was sent, what its fence carries, and the id that its sender gave it.
        self.sent = 0.0
        self.fence = ""
        self.own_id: str | int | None = None

    @property
    def name(self) -> str | None:
        return None if self.command is None else self.command.name


class Piped(Listener):
    """
    Does what lines say, several at a time, and prints the answers in their order.

    A text, or what `/raw` sends, has no `id` that its answer could carry. Behind each goes a fence: a ping
    without an `id`, whose pong repeats a mark. Requests without `id` are answered in order (section 2 of
    docs/protocol.rst), so that what came without an `id` before the pong, and after that of the fence before,
    is the answer; nothing, where the server gave none. What `/raw` sends with an `id` of its own is answered
    by what carries that. A classic server is asked one thing at a time.

    Args:
        clock: the reactor.
        make: as of `Link`; the clients do not try again.
        where: the server.
        write: prints a line, without its end.
        complain: prints one on standard error.
        timeout: seconds that an answer may take.
        as_json: print objects for programs.
        listen: print what others send, and go on when the input has ended.
        limit: characters of a line; None: no limit.
        room: called when there is room for more lines, be it that there was before.
    """

    def __init__(
        self,
        clock: IReactorTime,
        make: Make,
        where: str,
        *,
        write: Callable[[str], object],
        complain: Callable[[str], object],
        timeout: float,
        as_json: bool = False,
        listen: bool = False,
        limit: int | None = None,
        room: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._link = Link(clock, make, self, where)
        self._write = write
        self._complain = complain
        self._timeout = timeout
        self._as_json = as_json
        self._listen = listen
        self._limit = limit
        self.room = room
        self._raw = False
        self._lines = 0
        self._backlog: deque[tuple[_Slot, Command]] = deque()
        self._slots: deque[_Slot] = deque()
        self._bytes = 0
        # Texts whose fences have not come, the oldest first, and those that wait for an id of their own.
        self._fenced: deque[_Slot] = deque()
        self._identified: list[_Slot] = []
        self._deadlines = Deadlines[_Slot](clock, self._expired)
        self._fences = 0
        self._going = False
        self._input_ended = False
        self._held = False
        self._unread = 0
        self._left_out = 0
        self._failed = False
        self._opening = False
        self._lost: Exception | None = None
        self._finished = False
        #: The exit status.
        self.done: Deferred[int] = Deferred()

    def start(self) -> Deferred[bool]:
        """
        Connect. False: that could not be; all is over.

        Raises:
            ValueError: there is no such place.
        """
        opening = self._link.open(timeout=self._timeout)
        self._opening = True
        return opening.addCallbacks(self._opened, self._not_opened)

    def _opened(self, welcome: Json) -> bool:
        self._opening = False
        return True

    def _not_opened(self, failure: Failure) -> bool:
        self._tell(f"cannot connect to {self._link.where}: {reason_of(failure.value)}")
        self._finish(1)
        return False

    # The input.

    @property
    def full(self) -> bool:
        """Whether to give no more lines until `room` was called."""
        return bool(self._backlog) or self._held or self._opening

    def line(self, text: str | None) -> None:
        """Take a line; None: it was too long."""
        self._lines += 1
        if self._input_ended:
            return
        slot = _Slot(self._lines, len(text or ""))
        try:
            if text is None:
                raise CommandError("the line is too long")
            command = parse(text)
        except CommandError as error:
            # In its turn.
            slot.error = error
            command = Command("")
        if command is None:
            return
        if command.name == "exit":
            self.end()
            return
        slot.command = command if command.name else None
        if command.name == "raw":
            slot.own_id = _id_in(command.argument)
        self._backlog.append((slot, command))
        self._go_on()

    def end(self) -> None:
        """There are no more lines."""
        self._input_ended = True
        self._go_on()

    def hold(self) -> None:
        """The output is not read."""
        self._held = True
        self._unread = 0

    def release(self) -> None:
        """It is read again."""
        self._held = False
        if self._left_out:
            self._tell(f"{self._left_out:,} messages of others were left out: nobody read the output")
            self._left_out = 0
        self._go_on()

    def stop(self, status: int) -> None:
        """End, and wait for nothing."""
        self._finish(status)

    def _go_on(self) -> None:
        """Begin what can be begun; print what is done; see whether that is all."""
        if self._going:
            return
        self._going = True
        try:
            while self._print() or self._begin():
                pass
        finally:
            self._going = False
        if self._finished or self._opening:
            return
        if self._lost is not None:
            self._finish_lost(self._lost)
        elif self._input_ended and not self._slots and not self._backlog and not self._listen:
            self._finish(int(self._failed))
        elif not self.full:
            self.room()

    def _begin(self) -> bool:
        """Begin the next command; False if there is none, or no room."""
        client = self._link.client
        # Without a connection, word that there will be none is on its way.
        if client is None or not client.connected or self._lost is not None:
            return False
        if not self._backlog or self._held or self._opening:
            return False
        slot, command = self._backlog[0]
        if self._slots:
            if len(self._slots) >= WINDOW or self._bytes + slot.size > WINDOW_BYTES:
                return False
            if command.name == "connect" or client.server is None or client.server.classic:
                return False
            # Which of two would an answer be to?
            if slot.own_id is not None and any(other.own_id == slot.own_id for other in self._identified):
                return False
        self._backlog.popleft()
        self._slots.append(slot)
        self._bytes += slot.size
        if slot.error is not None:
            slot.done = True
        elif command.message is not None:
            self._link.ask(command.message).addCallbacks(
                self._answered, self._not_answered, callbackArgs=(slot,), errbackArgs=(slot,)
            )
        elif command.name in ("text", "raw"):
            self._send(client, slot, command.sent)
        elif command.name == "connect":
            self._connect(slot, command.argument)
        else:
            # /json and /help take effect where they are printed.
            slot.done = True
        return True

    # Answers.

    def _answered(self, answer: Answer, slot: _Slot) -> None:
        slot.message, slot.seconds = answer
        self._settle(slot)

    def _not_answered(self, failure: Failure, slot: _Slot) -> None:
        self._settle(slot, failure.value)

    def _settle(self, slot: _Slot, error: BaseException | None = None) -> None:
        slot.done = True
        slot.error = error
        self._go_on()

    def _connect(self, slot: _Slot, where: str) -> None:
        self._opening = True
        begun = self._clock.seconds()

        def opened(welcome: Json) -> None:
            self._opening = False
            self._answered(Answer(welcome, self._clock.seconds() - begun), slot)

        def not_opened(failure: Failure) -> None:
            self._opening = False
            assert isinstance(failure.value, Exception)
            self._lost = failure.value
            self._not_answered(failure, slot)

        try:
            opening = self._link.open(where, self._timeout)
        except ValueError as error:
            self._opening = False
            self._lost = error
            self._settle(slot, error)
        else:
            opening.addCallbacks(opened, not_opened)

    def _send(self, client: Client, slot: _Slot, payload: str | bytes) -> None:
        self._fences += 1
        slot.sent = self._clock.seconds()
        slot.fence = f"tcpjson.console {self._fences}"
        try:
            client.send(payload)
            client.send({"type": "ping", "timestamp": slot.fence})
        except Exception as error:
            # Whatever it refuses to send.
            self._settle(slot, error)
            return
        self._fenced.append(slot)
        if slot.own_id is not None:
            self._identified.append(slot)
        self._deadlines.set(slot, slot.sent + self._timeout)

    def _text_settled(self, slot: _Slot, error: BaseException | None = None) -> None:
        self._deadlines.clear(slot)
        if slot in self._identified:
            self._identified.remove(slot)
        slot.seconds = self._clock.seconds() - slot.sent
        if slot.message is not None:
            error = error_of(slot.message) if slot.message.get("type") == "error" else None
        self._settle(slot, error)

    def _expired(self, slot: _Slot) -> None:
        self._text_settled(slot, RequestTimeout("no reply in time"))

    def heard(self, message: Json) -> None:
        slot = self._slot_of(message)
        if slot is not None:
            slot.message = message
            self._text_settled(slot)
        elif not (self._fenced and self._at_fence(self._fenced[0], message)):
            self._other(message)

    def _slot_of(self, message: Json) -> _Slot | None:
        """What was sent with the id that a message carries."""
        request_id = message.get("id")
        return next((slot for slot in self._identified if slot.own_id == request_id), None)

    def _at_fence(self, slot: _Slot, message: Json) -> bool:
        """Whether a message is the answer to a text, as far as can be known by now, or its fence."""
        kind = message.get("type")
        if message.get("id") is not None or kind == "broadcast":
            return False
        if kind == "pong" and message.get("ping_timestamp", slot.fence) == slot.fence:
            self._fenced.popleft()
            # With an id of its own it may be overtaken.
            if not slot.done and (slot.message is not None or slot.own_id is None):
                self._text_settled(slot)
            return True
        known = slot.message
        if known is None:
            slot.message = message
        elif kind in REPLIES and known.get("type") not in REPLIES:
            # What came first was no answer, then.
            slot.message = message
            self._other(known)
        else:
            return False
        return True

    # What else comes.

    def failed(self, error: Exception) -> None:
        self._lost = error
        lost = error if isinstance(error, Disconnected) else Disconnected(reason_of(error))
        waiting = [slot for slot in self._slots if not slot.done]
        self._fenced.clear()
        self._going = True
        for slot in waiting:
            self._text_settled(slot, lost)
        self._going = False
        self._go_on()

    def _other(self, message: Json) -> None:
        if not self._listen:
            return
        if self._held and self._unread > MAX_UNREAD:
            self._left_out += 1
            return
        line = self._object(None, message) if self._as_json else self._words(message)
        self._unread += len(line)
        self._write(line)

    # The output.

    def _print(self) -> bool:
        """Print the answer to the oldest command, if it is there."""
        if not self._slots or not self._slots[0].done or self._finished:
            return False
        slot = self._slots.popleft()
        self._bytes -= slot.size
        if slot.error is not None:
            self._failed = True
            name = f"/{slot.name}: " if slot.name in COMMANDS else ""
            self._tell(f"line {slot.number}: {name}{reason_of(slot.error)}")
            line = self._object(slot, None)
        else:
            line = self._object(slot, slot.message) if self._as_json else self._answer(slot)
        if self._as_json or slot.error is None:
            self._write(line)
        return True

    def _answer(self, slot: _Slot) -> str:
        command, message = slot.command, slot.message
        assert command is not None
        if command.name == "json":
            self._raw = command.argument == "on"
            return f"json: {command.argument}"
        if command.name == "help":
            return "commands: " + " ".join(f"/{name}" for name in COMMANDS)
        if message is None:
            return f"{command.name}: no answer"
        timed = command.name == "ping" and message.get("type") == "pong"
        if timed and slot.seconds is not None and not self._raw:
            return f"pong: {milliseconds(slot.seconds)}"
        return self._words(message)

    def _words(self, message: Json) -> str:
        if self._raw:
            return Line("", as_json(message)).plain(self._limit)
        label, text = in_words(message)
        return Line("", text, label).plain(self._limit)

    def _object(self, slot: _Slot | None, message: Json | None) -> str:
        """A line for programs (docs/console.rst)."""
        error = None if slot is None else slot.error
        shown: Json = {
            "line": None if slot is None else slot.number,
            "command": None if slot is None else slot.name,
            "ok": error is None,
            "seconds": None if slot is None or slot.seconds is None else round(slot.seconds, 6),
            "message": message,
            "error": None,
        }
        if error is not None:
            retry_after = error.retry_after if isinstance(error, ProtocolError) else None
            shown["error"] = {
                "code": code_of(error),
                "message": " ".join(str(error).split()),
                "retry_after": retry_after,
            }
        return as_json(shown)

    def _tell(self, text: str) -> None:
        self._complain(escape(text))

    # The end.

    def _finish_lost(self, error: Exception) -> None:
        """The connection is gone, before all was done."""
        if self._backlog or not self._input_ended:
            self._tell(f"the rest of the input was not sent: {reason_of(error)}")
        elif self._listen:
            self._tell(reason_of(error))
        self._finish(1)

    def _finish(self, status: int) -> None:
        if self._finished:
            return
        self._finished = True
        self._deadlines.stop()
        self._backlog.clear()
        closed = self._link.close()
        closed.addBoth(lambda result: self.done.callback(status))


def _id_in(payload: str) -> str | int | None:
    """The id that a payload of somebody's own carries, if the client does not take it for one of its own."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    request_id = message.get("id") if isinstance(message, dict) else None
    if isinstance(request_id, str) or (type(request_id) is int and request_id >= 0):
        return request_id
    return None
