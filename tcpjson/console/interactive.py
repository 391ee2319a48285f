"""Commands of somebody who types, and what comes meanwhile; how it is shown is for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from tcpjson.client import Client
from tcpjson.console.board import Board
from tcpjson.console.commands import COMMANDS, Command, CommandError, help_rows, parse
from tcpjson.console.link import REPLIES, Answer, Link, Listener, Make
from tcpjson.console.rendering import (
    Line,
    as_json,
    escape,
    in_words,
    milliseconds,
    reason_of,
    stats_table,
    table,
)
from tcpjson.core.errors import AuthenticationFailed

Json = dict[str, Any]

# Message types that a client may send from the beginning, those that it has no use for, how many are
# remembered for completion, and characters of one.
_TYPES = ("broadcast", "echo", "get_stats", "ping")
_SERVERS = (*REPLIES, "welcome")
_MAX_TYPES = 200
_MAX_TYPE = 64
# Characters of what is told of the connection.
_MAX_STATE = 150


class Interactive(Listener):
    """
    Args:
        clock: the reactor.
        make: as of `Link`; the clients try again, without an end.
        where: the server.
        board: shows lines.
        changed: called when `state` may have changed.
        as_json: show messages as JSON, until that is changed.
        talkative: tell in a line that it reconnects: there is no other place for it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        make: Make,
        where: str,
        board: Board,
        *,
        changed: Callable[[], object] = lambda: None,
        talkative: bool = False,
        as_json: bool = False,
    ) -> None:
        self._clock = clock
        self._link = Link(clock, make, self, where)
        self._board = board
        self.changed = changed
        self._talkative = talkative
        self._raw = as_json
        # Texts that were sent, and not answered yet.
        self._texts = 0
        # The client of which it was told that it cannot connect, or was disconnected; and whether it is still
        # to be told that it reconnects.
        self._told: Client | None = None
        self._to_tell = False
        self._state: Callable[[], str]
        self._style = "waiting"
        #: The message types that may be sent, as far as is known: those that were seen, but for replies.
        self.types = set(_TYPES)
        self._becomes("waiting", lambda: f"connecting to {self._link.where}")

    def start(self) -> None:
        """Connect. Raises `ValueError`: there is no such place."""
        self._open("")

    def _open(self, where: str) -> None:
        before = self._state
        # The listener hears of a failure, too.
        self._link.open(where).addErrback(lambda failure: None)
        if self._state is before:
            self._becomes("waiting", lambda: f"connecting to {self._link.where}")

    # The connection.

    @property
    def state(self) -> tuple[str, str]:
        """`connected`, `waiting` or `stopped`; and how it stands with the connection, in words."""
        return self._style, escape(self._state())

    def _becomes(self, style: str, state: Callable[[], str]) -> None:
        self._style = style
        self._state = lambda: state()[:_MAX_STATE]
        self.changed()

    def connected(self, welcome: Json) -> None:
        client = self._link.client
        client_id = welcome.get("client_id")
        state = f"connected to {self._link.where}"
        if isinstance(client_id, str):
            state += f" as {client_id}"
        if client is not None and client.user is not None:
            state += f" ({client.user})"
        self._becomes("connected", lambda: state)
        self._texts = 0
        self._board.say([Line("notice", state)])

    def disconnected(self, error: Exception) -> None:
        self._told = self._link.client
        self._to_tell = self._talkative
        self._becomes("waiting", lambda: f"disconnected: {reason_of(error)}")
        self._board.say([Line("error", f"disconnected: {reason_of(error)}")])

    def retrying(self, error: Exception, seconds: float) -> None:
        until = self._clock.seconds() + seconds

        def state() -> str:
            left = until - self._clock.seconds()
            when = f"reconnecting in {left + 0.999:.0f} s" if left > 0 else "reconnecting"
            return f"{when}: {reason_of(error)}"

        self._becomes("waiting", state)
        if self._told is not self._link.client:
            self._told = self._link.client
            why = f"cannot connect to {self._link.where}: {reason_of(error)}; trying again"
            self._board.say([Line("error", why)])
        elif self._to_tell:
            self._board.say([Line("notice", state())])
        self._to_tell = False

    def failed(self, error: Exception) -> None:
        hint, more = "/connect tries again", ""
        if isinstance(error, AuthenticationFailed):
            # Who we are was said when the console was started.
            hint = "start the console anew"
            more = f"; {hint} to log in with another password (--user, --token-file)"
        reason = f"not connected: {reason_of(error)}"
        self._becomes("stopped", lambda: f"{reason}; {hint}")
        self._board.say([Line("error", f"{reason}{more}")])

    def heard(self, message: Json) -> None:
        self._see(message)
        if self._texts and message.get("type") in REPLIES:
            self._texts -= 1
            self._board.say([self._shown("heard", message)])
        else:
            self._board.hear(lambda: self._shown("heard", message))

    def _see(self, message: Json) -> None:
        """Remember the types of messages."""
        for each in (message, message.get("original_message")):
            kind = each.get("type") if isinstance(each, dict) else None
            if not isinstance(kind, str) or len(self.types) >= _MAX_TYPES or not 0 < len(kind) <= _MAX_TYPE:
                continue
            if kind.isprintable() and " " not in kind and kind not in _SERVERS:
                self.types.add(kind)

    def _shown(self, style: str, message: Json) -> Line:
        if self._raw:
            return Line(style, as_json(message))
        label, text = in_words(message)
        return Line("error" if message.get("type") == "error" else style, text, label)

    # Commands.

    def read(self, line: str) -> Command | None:
        """The command in a line, if there is one; what is wrong with it is said."""
        try:
            return parse(line)
        except CommandError as error:
            self._board.say([Line("error", str(error))])
            return None

    def do(self, command: Command) -> None:
        """Do any of them but `exit`."""
        if command.message is not None:
            self._see(command.message)
            self._link.ask(command.message).addCallbacks(
                self._answered, self._not_answered, callbackArgs=(command,), errbackArgs=(command,)
            )
        elif command.name in ("text", "raw"):
            self._send(command)
        elif command.name == "connect":
            try:
                self._open(command.argument)
            except ValueError as error:
                self._say_error(command, error)
        elif command.name == "help":
            self._board.say(table(help_rows(), "notice"))
        else:
            self._raw = command.argument == "on"
            how = "as JSON" if self._raw else "in words"
            self._board.say([Line("notice", f"messages are shown {how}")])

    def _send(self, command: Command) -> None:
        assert self._link.client is not None
        try:
            self._link.client.send(command.sent)
        except Exception as error:
            # Whatever it refuses to send.
            self._say_error(command, error)
        else:
            self._texts += 1

    def _answered(self, answer: Answer, command: Command) -> None:
        message, seconds = answer
        self._see(message)
        if self._raw:
            lines = [self._shown("answer", message)]
        elif command.name == "ping" and message.get("type") == "pong":
            lines = [Line("answer", milliseconds(seconds), "pong")]
        elif command.name == "stats":
            lines = stats_table(message)
        else:
            lines = [self._shown("answer", message)]
        self._board.say(lines)

    def _not_answered(self, failure: Failure, command: Command) -> None:
        self._say_error(command, failure.value)

    def _say_error(self, command: Command, error: BaseException | None) -> None:
        label = f"/{command.name}" if command.name in COMMANDS else "error"
        self._board.say([Line("error", reason_of(error), label)])

    def close(self) -> Deferred[None]:
        """Leave the server, and show nothing more."""
        self._board.stop()
        return self._link.close()
