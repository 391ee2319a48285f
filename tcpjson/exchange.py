"""A client's requests through their handlers, and what is sent to it, in order, until the end."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Iterable
from math import isfinite
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from tcpjson.core import errors
from tcpjson.core.encoding import QUOTE, RAW_OFFSETS, check_raw, encode, encode_message
from tcpjson.core.errors import (
    FrameTimeout,
    GoingAway,
    HandlerTimeout,
    Internal,
    ProtocolError,
    RateLimited,
    SlowConsumer,
    TooLarge,
)
from tcpjson.core.framing import frame, join_frames, length_hint
from tcpjson.core.histogram import BATCH
from tcpjson.core.limits import CLOSE_TIMEOUT, HIGH_WATER
from tcpjson.core.messages import Error, Message, ServerStats
from tcpjson.core.ordering import AnswerOrder, Slot
from tcpjson.core.ratelimit import Meter
from tcpjson.core.session import Event, State, advance
from tcpjson.coroutines import forget_cancelled, start
from tcpjson.handlers import Recipients, Server, Session
from tcpjson.protocol import Hold, TCPJSONProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from tcpjson.dialects import Dialect
    from tcpjson.server import TCPJSONServerFactory

log = Logger()

# Answers waiting below which a peer's requests are handled again.
_LOW_WATER = HIGH_WATER // 2
# Seconds that the messages of one read may hold up all other clients without a word in the log.
_HELD_UP = 0.5
# Looks at a peer that takes nothing, in one write_timeout.
_LOOKS = 4

_receive = TCPJSONProtocol.dataReceived
# Arithmetic of IntFlag is slow; on the hot path a hold is a plain number.
_CLOSING = int(Hold.CLOSING)
_ENDING = int(Hold.ENDING)
_AWAITED_AGAIN = "a handler's answer is something to await once more"
# What `id` is in a request without one.
_NO_ID = (UNSET, None)


async def _as_coroutine(answer: Awaitable[Any]) -> Any:
    return await answer


class Turn:
    """What the frames of one connection lead to, until it is sent."""

    __slots__ = ("answers", "burst", "burst_size", "connection", "dirty", "gathered", "timestamp")

    connection: Exchange
    timestamp: str

    def __init__(self) -> None:
        #: Payloads for the connection itself.
        self.answers: list[bytes] = []
        #: Bytes of those that were not returned by a handler at once.
        self.gathered = 0
        #: Payloads for all others.
        self.burst: list[bytes] = []
        self.burst_size = 0
        #: Connections to which something was sent, and that were not flushed.
        self.dirty: dict[Exchange, None] = {}


class Exchange(TCPJSONProtocol):
    """
    One client's requests, and what is sent to it: a `tcpjson.handlers.Session`.

    `tcpjson.connection.Connection` says who the client is.
    """

    factory: TCPJSONServerFactory
    dialect: Dialect
    client_id = ""
    user: str | None = None
    state: Any = None
    opened = 0.0
    bytes_in = 0
    messages_in = 0
    messages_out = 0
    #: Whether what is sent to it may be compressed (section 7).
    compresses = False
    #: The code of section 9 that says why the connection ends.
    reason = ""

    # In the class until they are needed: a connection that is idle is small.
    _state = State.OPEN
    _running: dict[Slot, tuple[Deferred[Any], Message]] | None = None
    # Bytes of the messages that these handle, and the latest, whose message is to be counted.
    _running_bytes = 0
    _latest: Slot | None = None
    # Handlers that nobody waits for any more, to be cancelled.
    _abandoned: list[Deferred[Any]] | None = None
    _abandon_call: IDelayedCall | None = None
    # What is to be decided before anything else is handled: who the client is.
    _checking: Deferred[Any] | None = None
    _waits_since = 0.0
    _progress: tuple[int, int, int] | None = None
    _progress_since = 0.0
    # Whether a rate, or a shutdown, bounds how many frames are handled.
    _limited = False
    _meter: Meter | None = None
    _over_rate = False
    _throttle_call: IDelayedCall | None = None
    # When the server shuts down: whether `going_away` is still to be said, and how many requests are to be
    # handled before; whether it closes when all is sent.
    _departing = False
    _due = 0
    _retry_after = 0.0
    _leaving = False

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock)
        self._order: AnswerOrder | None = None
        self._frame_since: float | None = None

    @property
    def bytes_out(self) -> int:
        """Bytes that left for the client."""
        return self._outbox.taken

    @property
    def waits_since(self) -> float | None:
        """Since when, in seconds, something has always waited for the client; None: nothing waits."""
        return self._waits_since if self._outbox.waiting else None

    @property
    def status(self) -> State:
        """What the connection is at."""
        return self._state

    @property
    def held(self) -> tuple[str, ...]:
        """Why its messages are not handled now, each in a word; empty when they are."""
        return tuple(str(hold.name).lower() for hold in Hold(self._holds))

    @property
    def unfinished(self) -> int:
        """How many handlers of its messages are unfinished."""
        return len(self._running or ())

    # Receiving.

    def dataReceived(self, data: bytes) -> None:
        size = len(data)
        self.bytes_in += size
        self.factory.stats.bytes_in += size
        _receive(self, data)

    def stringReceived(self, string: bytes) -> None:
        """Handle one payload."""
        self.framesReceived([string])

    def framesReceived(self, payloads: list[bytes]) -> int:
        factory = self.factory
        outer = factory.turn
        if outer is None:
            turn = factory.usual_turn
        else:
            # In the midst of another connection's turn: a handler there made this one go on.
            factory.commit(outer)
            outer.connection._send_gathered(outer)
            turn = Turn()
        factory.turn = turn
        turn.connection = self
        turn.timestamp = factory.timestamps.now()
        limited = self._limited
        granted = payloads
        charged = 0
        if limited:
            granted, charged = self._grant(payloads)
        try:
            handled = self._handle(granted, turn)
        finally:
            factory.turn = outer
            if turn.burst or turn.dirty:
                factory.commit(turn)
            if answers := turn.answers:
                self._send_now(answers)
                answers.clear()
                turn.gathered = 0
        if self._outbox.answers or self._order is not None:
            self._limit_answers()
        if limited:
            self._limit(payloads, charged, handled)
        if self._holds & _CLOSING:
            self._finish(errors.CLOSED_BY_HANDLER)
        return handled

    def _handle(self, payloads: list[bytes], turn: Turn) -> int:
        """Handle payloads in order until something holds the rest; returns how many were handled."""
        factory = self.factory
        started = self._clock.seconds()
        dialect = self.dialect
        handlers = dialect.handlers
        stats = factory.stats
        received = stats.received
        answers = turn.answers
        timestamp = turn.timestamp
        order = self._order
        # Bytes of the answers, and how many there may be before the socket is tried.
        written = 0
        room = HIGH_WATER - self._outbox.answers
        messages = dialect.codec.decode(payloads)
        stats.messages_in += len(messages)
        # Messages mostly come as more of the same: what is known of their kind is looked up when it changes,
        # and counted then. These are where the run of a kind began.
        kind = offset = None
        handler: Any = None
        answer_kind: Any = None
        counts = sent = [0, 0]
        handled = begun = answered = written_before = 0
        for message in messages:
            if type(message) is not kind:
                if kind is not None:
                    counts[0] += handled - begun - 1
                    counts[1] += sum(map(len, payloads[begun:handled]))
                kind = type(message)
                handler = handlers[kind]
                counts = received[kind]
                # The first at once: statistics that it asks for know of it.
                counts[0] += 1
                begun = handled
            handled += 1
            try:
                answer = handler(self, message)
                if type(answer) is not answer_kind:
                    if offset is not None:
                        sent[0] += handled - 1 - answered
                        sent[1] += written - written_before
                    answer_kind = type(answer)
                    offset = RAW_OFFSETS.get(answer_kind)
                    if offset is not None:
                        sent = stats.sent[answer_kind]
                        answered = handled - 1
                        written_before = written
                if offset is not None:
                    # `encode_message`, for the answers that are sent most.
                    answer.timestamp = timestamp
                    request_id = message.id
                    if request_id is UNSET or request_id is None:
                        payload = encode(answer)
                    else:
                        answer.id = request_id
                        payload = encode(answer)
                        # The handler may return it again, to a request without.
                        answer.id = UNSET
                    if payload[offset] != QUOTE:
                        check_raw(answer)
                else:
                    payload = self._answer(answer, message)
                    order = self._order
                    if (latest := self._latest) is not None:
                        self._latest = None
                        self._weigh(latest, len(payloads[handled - 1]))
            # An asyncio.CancelledError, say, is no Exception.
            except BaseException as error:
                if offset is not None:
                    sent[0] += handled - 1 - answered
                    sent[1] += written - written_before
                    answer_kind = offset = None
                payload = self._refusal(error, message)
            written += len(payload)
            if order is not None and message.id in _NO_ID and payload and order.queue(payload):
                room += len(payload)
                self._limit_answers()
            elif payload:
                answers.append(payload)
                if written > room:
                    self._send_gathered(turn)
                    self._limit_answers()
                    room = written + HIGH_WATER - self._outbox.answers
            if self._holds:
                break
        if kind is not None:
            counts[0] += handled - begun - 1
            counts[1] += sum(map(len, payloads[begun:handled]))
            if offset is not None:
                sent[0] += handled - answered
                sent[1] += written - written_before
        self.messages_in += handled
        if handled < len(messages):
            # What is left will be counted when it is handled.
            stats.messages_in -= len(messages) - handled
        seconds = self._clock.seconds() - started
        pending = stats.handling.pending
        pending.append(seconds)
        if len(pending) >= BATCH:
            stats.handling.settle()
        if factory.message_log is not None:
            factory.message_log.received(self, payloads, messages, handled)
        if seconds > _HELD_UP:
            factory.held_up(self, kind, handled, seconds)
        return handled

    def hold(self, reason: Hold) -> None:
        super().hold(reason)
        if not self._working:
            # No deadline runs on while it is we who do not read.
            self.turnEnded(0)

    def turnEnded(self, handled: int) -> None:
        """Watch over a frame that has begun; not while it is we who do not read (section 1)."""
        reader = self._reader
        if self._holds or not reader.begun:
            if self._frame_since is not None:
                self._frame_since = None
                self.factory.frame_deadlines.clear(self)
            return
        if handled or self._frame_since is None:
            self._frame_since = self._clock.seconds()
        factory = self.factory
        factory.frame_deadlines.set(
            self, self._frame_since + factory.limits.frame_allowance(reader.announced)
        )

    def lengthLimitExceeded(self, length: int) -> None:
        text = f"a frame of {length} bytes is longer than max_length, {self.MAX_LENGTH} bytes"
        if hint := length_hint(length):
            text += f"; {hint}: a message begins with its length in 4 bytes, big-endian"
        self.fail(TooLarge(text))

    def turnOver(self) -> None:
        self.factory.turns.add(self)

    def go_on(self) -> None:
        """Its next turn has come."""
        before = self.messages_in
        self.release_now(Hold.TURN)
        if self._outbox.lost and self._holds & Hold.TURN and self.messages_in == before:
            # What comes next is compressed, and nobody waits for its answer.
            self.transport.abortConnection()

    def may_inflate(self) -> bool:
        # What little a client sent before it went may be long to do.
        return not self._outbox.lost

    def frameRefused(self, error: ProtocolError) -> None:
        self.fail(error)

    def frame_expired(self) -> None:
        """A frame was not complete in time."""
        self.fail(FrameTimeout())

    # Rates.

    def _grant(self, payloads: list[bytes]) -> tuple[list[bytes], int]:
        """Those of the payloads that may be handled now, and how many the meter charged."""
        if self._departing:
            return payloads[: self._due], 0
        assert self._meter is not None
        charged = self._meter.grant(payloads, self._clock.seconds())
        if charged == len(payloads):
            return payloads, charged
        factory = self.factory
        factory.stats.over_rate += 1
        if not self._over_rate:
            self._over_rate = True
            log.info(
                "{client} sends more than the rate", event="over_rate", client=self.client_id, user=self.user
            )
        return payloads if factory.limits.rate_policy == "observe" else payloads[:charged], charged

    def _limit(self, payloads: list[bytes], charged: int, handled: int) -> None:
        """Of the payloads, `charged` were paid for and `handled` were handled: see to the others."""
        if self._departing:
            self._due -= handled
            self._depart()
        elif self._meter is not None:
            # They will be granted, and charged, once more.
            self._meter.refund(payloads[handled:charged])
            if handled == charged < len(payloads) and not self._holds & _ENDING:
                self._slow_down(self._meter.wait())

    def _slow_down(self, seconds: float) -> None:
        """The client is over its rate, and may go on after some seconds."""
        policy = self.factory.limits.rate_policy
        if policy == "close":
            self.fail(RateLimited(retry_after=round(seconds, 3)))
        elif policy == "throttle":
            self.hold(Hold.RATE)
            self._throttle_call = self._clock.callLater(seconds, self._throttled)

    def _throttled(self) -> None:
        self._throttle_call = None
        if self._outbox.find_loss():
            # It is gone: what it sent before is done as soon as there is a turn, and its place is free.
            self._lift_rate()
            self.hold(Hold.TURN)
            self.turnOver()
        self.release_now(Hold.RATE)

    def _lift_rate(self) -> None:
        """Handle what was received at once; if the server shuts down, still not more than was due."""
        self._limited = self._departing
        self._meter = None
        if self._throttle_call is not None:
            self._throttle_call.cancel()
            self._throttle_call = None

    # Answering.

    def _answer(self, answer: object, message: Message) -> bytes:
        """The payload of what a handler returned; empty when there is none, or none yet."""
        if answer is None:
            return b""
        if isinstance(answer, (Message, dict)):
            payload = encode_message(answer, self.timestamp, message.id)
            self.factory.stats.count_sent(type(answer), 1, len(payload))
            return payload
        if isinstance(answer, ProtocolError):
            return self._refusal(answer, message)
        if isinstance(answer, Coroutine):
            return self._run(answer, message)
        if isinstance(answer, Awaitable):
            self._await(answer, message)
            return b""
        raise TypeError(f"a handler returned a {type(answer).__name__}, not a message, a dict or None")

    def _refusal(
        self, error: BaseException | None, message: Message, failure: Failure | None = None
    ) -> bytes:
        """The error for a message that could not be handled; empty when it ends the connection."""
        if not isinstance(error, ProtocolError):
            kind = type(message).__name__
            self._failed("handler of {kind} failed for {client}", failure, kind)
            error = Internal()
        error.forget_origin()
        if error.fatal:
            self.fail(error)
            return b""
        return self._error_payload(error, message.id)

    def _failed(self, text: str, failure: Failure | None = None, kind: str = "") -> None:
        """Something of the application failed; `failure`: None for what is being handled."""
        self.factory.notices.failure(
            "handler_failed",
            text,
            failure,
            item=f"{text} {kind}",
            client=self.client_id,
            user=self.user,
            kind=kind,
        )

    def _error_payload(self, error: ProtocolError, request_id: Any = UNSET, *, fatal: bool = False) -> bytes:
        retry_after = error.retry_after
        try:
            answer = Error(
                code=error.code,
                message=str(error).encode(errors="replace").decode(),
                fatal=error.fatal or fatal,
                retry_after=UNSET if retry_after is None or not isfinite(retry_after) else retry_after,
            )
            payload = encode_message(answer, self.timestamp, request_id)
            self.factory.stats.errors[error.code] += 1
            self.factory.stats.count_sent(Error, 1, len(payload))
        # An application can make its own of anything.
        except Exception:
            self._failed("cannot tell {client} of {kind}", None, type(error).__name__)
            return self._error_payload(Internal(), request_id, fatal=fatal)
        return payload

    def _run(self, coroutine: Coroutine[Any, Any, Any], message: Message) -> bytes:
        """The payload of what a coroutine comes to; empty when there is none, or none yet."""
        done, answer = start(coroutine)
        if not done:
            self._await(answer, message)
            return b""
        if isinstance(answer, Awaitable):
            raise TypeError(_AWAITED_AGAIN)
        return self._answer(answer, message)

    def _await(self, answer: Awaitable[Any], message: Message) -> None:
        """Have an answer that is to come sent when it is there, in its order."""
        if self._order is None:
            self._order = AnswerOrder()
        if self._running is None:
            self._running = {}
        slot = self._order.reserve(ordered=message.id in _NO_ID)
        deferred = answer if isinstance(answer, Deferred) else Deferred.fromCoroutine(_as_coroutine(answer))
        self._running[slot] = deferred, message
        self._latest = slot
        limits = self.factory.limits
        self.factory.handler_deadlines.set((self, slot), self._clock.seconds() + limits.handler_timeout)
        if len(self._running) >= limits.max_handlers:
            self.hold(Hold.HANDLERS)
        deferred.addBoth(self._answered, slot)

    def _weigh(self, slot: Slot, size: int) -> None:
        """Count the message of a handler, if that is unfinished: what these hold is bounded, too."""
        if slot in (self._running or ()):
            slot.weight = size
            self._running_bytes += size
            if self._running_bytes > self.factory.limits.max_length:
                self.hold(Hold.HANDLERS)

    def _answered(self, result: object, slot: Slot) -> None:
        running = self._running
        if running is None or slot not in running:
            # It took too long, or the client is gone; what it still came to matters to nobody.
            if isinstance(result, Failure) and not forget_cancelled(result):
                self._failed("handler failed for {client}, who is gone", result)
            return
        _, message = running[slot]
        try:
            if isinstance(result, Awaitable):
                raise TypeError(_AWAITED_AGAIN)
            if isinstance(result, Failure):
                # Not raised: an asyncio.CancelledError, say, is no Exception, and is answered all the same.
                payload = self._refusal(result.value, message, result)
            else:
                payload = self._answer(result, message)
        except Exception as error:
            payload = self._refusal(error, message)
        self._settle(slot, payload)

    def handler_expired(self, slot: Slot) -> None:
        """A handler took too long."""
        assert self._running is not None
        deferred, message = self._running[slot]
        self._settle(slot, self._refusal(HandlerTimeout(), message))
        self._cancel(deferred)

    def _settle(self, slot: Slot, payload: bytes) -> None:
        """An unfinished handler is finished."""
        if self._running is None or self._order is None or slot not in self._running:
            return
        _, message = self._running.pop(slot)
        self._running_bytes -= slot.weight
        factory = self.factory
        now = self._clock.seconds()
        # That which has passed is forgotten.
        left = (factory.handler_deadlines.clear((self, slot)) or now) - now
        factory.stats.waited(type(message), factory.limits.handler_timeout - left)
        payloads = self._order.settle(slot, payload)
        if not self._order.unsettled:
            self._order = None
        self._reply(payloads)
        self._make_room()

    def _reply(self, payloads: list[bytes]) -> None:
        """Send answers to this client itself, behind those of its turn if it is in the midst of one."""
        turn = self.factory.turn
        if turn is not None and turn.connection is self:
            self._gather(turn, payloads)
        else:
            self._send_now(payloads)

    def _gather(self, turn: Turn, payloads: list[bytes]) -> None:
        """Have payloads sent to this client itself with the answers of its turn."""
        turn.answers += payloads
        turn.gathered += sum(map(len, payloads))
        if turn.gathered > HIGH_WATER:
            self._send_gathered(turn)
            self._limit_answers()

    def _send_gathered(self, turn: Turn) -> None:
        """Send what a turn has for its own connection."""
        self._send_now(turn.answers)
        turn.answers.clear()
        turn.gathered = 0

    def _send_now(self, payloads: list[bytes]) -> None:
        """Send answers to this client itself."""
        if payloads:
            data = self._frames(payloads)
            count = len(payloads)
            self.messages_out += count
            stats = self.factory.stats
            stats.messages_out += count
            stats.bytes_out += len(data)
            if self.factory.message_log is not None:
                self.factory.message_log.sent(self, payloads)
            self._outbox.write(data, True)

    def _frames(self, payloads: list[bytes]) -> bytes:
        """The frames of payloads, as this client takes them."""
        return self.factory.pack(payloads) if self.compresses else join_frames(payloads)

    def _count_out(self, payload: bytes, size: int) -> None:
        """Count a message whose frame has `size` bytes."""
        self.messages_out += 1
        factory = self.factory
        factory.stats.messages_out += 1
        factory.stats.bytes_out += size
        if factory.message_log is not None:
            factory.message_log.sent(self, [payload])

    def _answers_waiting(self) -> int:
        return self._outbox.answers + (self._order.held if self._order is not None else 0)

    def _limit_answers(self) -> None:
        """Handle no further requests while their answers wait (section 10)."""
        if self._answers_waiting() > HIGH_WATER and not self._holds & _ENDING:
            self.hold(Hold.ANSWERS)

    def _make_room(self) -> None:
        """Handle requests again where there is room, close where there is nothing left to do."""
        holds = self._holds
        running = self._running or ()
        if holds & Hold.ANSWERS and self._answers_waiting() <= _LOW_WATER:
            self.release(Hold.ANSWERS)
        if holds & Hold.HANDLERS:
            limits = self.factory.limits
            if len(running) <= limits.max_handlers // 2 and self._running_bytes <= limits.max_length // 2:
                self.release(Hold.HANDLERS)
        busy = running or self._checking or self._departing or self._outbox.waiting
        if (self._input_ended or self._leaving) and not busy:
            self._finish(GoingAway.code if self._leaving else self._ended_by_client)
        elif running and self._input_ended and self._outbox.closed:
            # Nobody can be told what they come to.
            self.abort(self._ended_by_client)

    def outboxDrained(self) -> None:
        super().outboxDrained()
        if not self._outbox.waiting:
            self.factory.write_deadlines.clear(self)
        self._make_room()

    def outboxWaits(self) -> None:
        self._progress = None
        now = self._waits_since = self._clock.seconds()
        self.factory.write_deadlines.set(self, now + self.factory.limits.write_timeout / _LOOKS)

    def look_at_progress(self) -> None:
        """Something waits for the client: see whether it takes any of it (section 9, `slow_consumer`)."""
        if self._holds & _ENDING or not self._outbox.waiting:
            return
        factory = self.factory
        timeout = factory.limits.write_timeout
        now = self._clock.seconds()
        progress = self._outbox.progress()
        # Every deadline stands still while it is we who do not read (section 1).
        if progress != self._progress or self._holds:
            self._progress = progress
            self._progress_since = now
        elif now - self._progress_since >= timeout:
            self.fail(SlowConsumer(f"nothing was taken for {timeout:g} seconds"))
            return
        factory.write_deadlines.set(self, now + timeout / _LOOKS)

    # What handlers call.

    @property
    def server(self) -> Server:
        return self.factory

    @property
    def waiting(self) -> int:
        return self._outbox.waiting

    @property
    def timestamp(self) -> str:
        factory = self.factory
        return factory.timestamps.now() if factory.turn is None else factory.turn.timestamp

    def server_stats(self) -> ServerStats:
        return self.factory.server_stats()

    def send(self, message: Message | dict[str, Any]) -> None:
        payload = encode_message(message, self.timestamp)
        factory = self.factory
        turn = factory.turn
        if turn is not None and turn.connection is self:
            factory.stats.count_sent(type(message), 1, len(payload))
            self._gather(turn, [payload])
            return
        if turn is not None:
            # It must not overtake a broadcast of the same turn.
            factory.deliver_burst(turn)
        data = self._frames([payload])
        if self.has_room(len(data)):
            factory.stats.count_sent(type(message), 1, len(payload))
            self._count_out(payload, len(data))
            if turn is None:
                self._outbox.write(data)
            else:
                self._outbox.push(data)
                turn.dirty[self] = None

    def broadcast(self, message: Message | dict[str, Any], to: Iterable[Session] | None = None) -> Recipients:
        return self.factory.relay(encode_message(message, self.timestamp), self, to)

    def close(self) -> None:
        turn = self.factory.turn
        if turn is not None and turn.connection is self:
            self.hold(Hold.CLOSING)
            return
        if turn is not None:
            # A broadcast of the same turn was sent before.
            self.factory.commit(turn)
        self._finish(errors.CLOSED_BY_HANDLER)

    def stopProducing(self) -> None:
        self.close()

    def has_room(self, size: int) -> bool:
        """
        Whether `size` bytes more may wait for the client, beside the answers to its own requests; the socket
        is tried before the queue is called full, and the connection ends when it is. What is longer than the
        queue has room when nothing else waits.
        """
        outbox = self._outbox
        limit = self.factory.limits.max_queue
        if (queued := outbox.waiting - outbox.answers) and queued + size > limit:
            outbox.flush()
            if (queued := outbox.waiting - outbox.answers) and queued + size > limit:
                self.fail(SlowConsumer("the queue of messages to it is full"))
                return False
        return not self._holds & _ENDING

    # The end.

    def fail(self, error: ProtocolError) -> None:
        """End the connection with a fatal error (section 9)."""
        if self._holds & _ENDING:
            return
        if isinstance(error, SlowConsumer):
            self._outbox.drop_unbegun()
        self._finish(error.code, self._error_payload(error))

    def _finish(self, reason: str, last: bytes = b"") -> None:
        """Send the answers already made, then the payload `last`, then close."""
        if self._holds & _ENDING:
            return
        factory = self.factory
        self.reason = self.reason or reason
        self._state = advance(self._state, Event.ENDED)
        factory.leave(self)
        turn = factory.turn
        if turn is not None and turn.connection is self:
            factory.commit(turn)
            self._send_gathered(turn)
        if self._order is not None:
            self._send_now(self._order.give_up())
        if last:
            payload = last
            last = frame(payload)
            self._count_out(payload, len(last))
        # What the system still has for a client that reads slowly gets the whole of the grace period.
        patient = self._leaving and self._outbox.acknowledged < self._outbox.sent
        self.end(last, max(CLOSE_TIMEOUT, factory.grace_left()) if patient else CLOSE_TIMEOUT)
        self._abandon_running()

    # The shutdown of the server.

    @property
    def going_away(self) -> GoingAway:
        """The error that says so."""
        return GoingAway(retry_after=self._retry_after)

    def go_away(self, retry_after: float) -> None:
        """Handle the requests that are complete, then say: come again in `retry_after` seconds."""
        if self._holds & _ENDING:
            return
        self._retry_after = retry_after
        if self._state is State.OPEN:
            # It is told when it can be.
            return
        self._due = self._reader.count()
        self._departing = self._limited = True
        self._depart()
        self.release_now(Hold.RATE)

    def _depart(self) -> None:
        """Say that the server goes away, if all that came before is handled."""
        if self._departing and not (self._due or self._checking or self._holds & _ENDING):
            self._departing = self._limited = False
            self.dialect = self.dialect.leaving
            self._reply([self._error_payload(self.going_away)])
            self._make_room()

    def finish_leaving(self) -> None:
        """Close as soon as nothing is left to be answered and sent."""
        if self._state is State.OPEN:
            self.abort(GoingAway.code)
            return
        self._leaving = True
        self._make_room()

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        self.reason = self.reason or reason
        self.transport.abortConnection()

    def _abandon_running(self) -> None:
        """Have what is unfinished cancelled, soon: one of the handlers may be what calls this."""
        abandoned = [] if self._checking is None else [self._checking]
        running, self._running = self._running, None
        for slot, (deferred, _) in (running or {}).items():
            self.factory.handler_deadlines.clear((self, slot))
            abandoned.append(deferred)
        if abandoned:
            self._abandoned = [*(self._abandoned or ()), *abandoned]
            if self._abandon_call is None:
                self._abandon_call = self._clock.callLater(0, self._cancel_abandoned)

    def _cancel_abandoned(self) -> None:
        call, self._abandon_call = self._abandon_call, None
        if call is not None and call.active():
            call.cancel()
        abandoned, self._abandoned = self._abandoned, None
        for deferred in abandoned or ():
            self._cancel(deferred)

    def _cancel(self, deferred: Deferred[Any]) -> None:
        try:
            deferred.cancel()
        # The canceller is the application's: whatever it raises, the others are cancelled too.
        except BaseException:
            self._failed("what is done for {client} cannot be cancelled")

    @property
    def _ended_by_client(self) -> str:
        """The reason when the client's end of file has come."""
        return errors.CONNECTION_LOST if self._outbox.lost else errors.CLIENT_CLOSED

    def inputEnded(self) -> None:
        """The client sends no more; it gets its answers, and no broadcasts."""
        self.factory.frame_deadlines.clear(self)
        self.factory.leave(self)
        self._make_room()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        factory = self.factory
        self._lift_rate()
        super().connectionLost(reason)
        if not self.reason:
            if self._state is State.OPEN:
                self.reason = errors.HANDSHAKE_FAILED
            elif reason.check(ConnectionDone):
                self.reason = self._ended_by_client
            else:
                self.reason = errors.CONNECTION_LOST
        self._state = advance(self._state, Event.LOST)
        factory.leave(self)
        for deadlines in factory.connection_deadlines:
            deadlines.clear(self)
        self._abandon_running()
        self._cancel_abandoned()
