"""Whether a server is well enough to be asked: a circuit breaker, numbers in and numbers out."""

from __future__ import annotations

from enum import Enum

import msgspec

from tcpjson.core.errors import (
    ClientError,
    Disconnected,
    GoingAway,
    HandlerTimeout,
    Internal,
    ProtocolError,
    RateLimited,
    RequestTimeout,
    ServerFull,
    SlowConsumer,
    TooLarge,
    TooManyConnections,
)

#: Failures in a row that open a circuit.
FAILURES = 5
#: Seconds after which a call counts as a failure.
SLOW = 5.0
#: Seconds for which a circuit stays open.
RESET = 10.0

#: The codes of errors (docs/protocol.rst, section 9) that tell how the server is, and not what was wrong with
#: the request.
UNWELL = frozenset(
    error.code
    for error in (
        Internal,
        HandlerTimeout,
        GoingAway,
        SlowConsumer,
        ServerFull,
        TooManyConnections,
        RateLimited,
    )
)


def unwell(error: BaseException) -> bool | None:
    """
    What an error says of the server: True, that it is unwell; False, that it is well, for it answered; None,
    nothing.
    """
    if isinstance(error, Disconnected | RequestTimeout):
        return True
    # What is too long is refused before it is sent.
    if isinstance(error, ProtocolError) and not isinstance(error, TooLarge):
        return error.code in UNWELL
    return None


class CircuitOpen(ClientError):
    """
    The server was found unwell, and is not asked. Nothing was sent.

    Args:
        retry_after: seconds after which it may be asked again; more than 0.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the server is unwell and is not asked for {retry_after:.3g} seconds")
        self.retry_after = retry_after


class State(Enum):
    """What a circuit is at."""

    #: The server is asked.
    CLOSED = "closed"
    #: It is not asked.
    OPEN = "open"
    #: It is asked once: this trial decides.
    HALF_OPEN = "half_open"


class Event(Enum):
    """What moves a circuit on."""

    #: So many calls in a row failed, or the trial did.
    TRIPPED = "tripped"
    #: It was open for `reset` seconds.
    RESTED = "rested"
    #: The trial went well.
    HEALED = "healed"


#: The whole table. What is not here must not happen.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.RESTED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.HEALED): State.CLOSED,
    (State.HALF_OPEN, Event.TRIPPED): State.OPEN,
}


class Figures(msgspec.Struct, frozen=True):
    """What there is to say of a circuit."""

    state: State
    #: When it came to that state, in seconds of its clock.
    since: float
    #: How often it opened.
    opened: int
    #: Calls that were let through; of these, those that failed, and of these, those that were slow.
    calls: int
    failures: int
    slow: int
    #: Calls that were not let through.
    rejected: int


class Call:
    """A call that was let through, to be given to `Breaker.ended`."""

    __slots__ = ("started", "turn")

    def __init__(self, started: float, turn: int) -> None:
        self.started = started
        self.turn = turn


class Breaker:
    """
    A circuit that opens by failures in a row, and after a while lets one call through to find out more.

    Failures in a row need no window of time or of calls, and no least number of them; and a kind of request
    that always fails does not keep the others from a server that answers these. A call fails, too, as soon as
    it has lasted `slow` seconds: one that never ends counts in time, and is not kept.

    What began before the last change of the state does not decide on the next one. Times are in seconds and
    never go back. One thread at a time may use it.

    Args:
        failures: how many in a row open the circuit, 1 or more.
        slow: seconds after which a call has failed, more than 0 and finite.
        reset: seconds for which the circuit stays open, more than 0 and finite.
        now: the time.

    Raises:
        ValueError: one of them is out of its bounds.
    """

    def __init__(
        self, *, failures: int = FAILURES, slow: float = SLOW, reset: float = RESET, now: float
    ) -> None:
        if failures < 1:
            raise ValueError("failures must be 1 or more")
        for name, seconds in (("slow", slow), ("reset", reset)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be more than 0 and finite")
        self._limit = failures
        self._slow_after = slow
        self._reset = reset
        self._state = State.CLOSED
        self._since = now
        # Counts the changes of the state.
        self._turn = 0
        self._in_a_row = 0
        self._trial: Call | None = None
        # Those under way that have not failed yet, the oldest first.
        self._running: dict[Call, None] = {}
        self._opened = self._calls = self._failures = self._slow = self._rejected = 0

    def wait(self, now: float) -> float:
        """
        Seconds until a call may be let through; 0: one would be now. While a trial is under way, until it is
        decided at the latest.
        """
        self._look(now)
        if self._state is State.OPEN:
            return self._since + self._reset - now
        return 0.0 if self._trial is None else self._trial.started + self._slow_after - now

    def begin(self, now: float) -> Call:
        """
        A call begins.

        Raises:
            CircuitOpen: it must not.
        """
        wait = self.wait(now)
        if wait:
            self._rejected += 1
            raise CircuitOpen(wait)
        call = Call(now, self._turn)
        self._running[call] = None
        self._calls += 1
        if self._state is State.HALF_OPEN:
            self._trial = call
        return call

    def ended(self, call: Call, failed: bool | None, now: float) -> None:
        """
        A call has ended.

        Args:
            call: what `begin` returned.
            failed: whether it did; None when it says nothing of the server, as when it was cancelled.
            now: the time.
        """
        self._look(now)
        if call not in self._running:
            # It was too slow, and has been counted.
            return
        del self._running[call]
        if failed:
            self._fail(call, now)
        elif call.turn == self._turn:
            self._trial = None
            if failed is not None:
                self._in_a_row = 0
                if self._state is State.HALF_OPEN:
                    self._step(Event.HEALED, now)

    def figures(self, now: float) -> Figures:
        """What it is at, and what has been."""
        self._look(now)
        return Figures(
            self._state, self._since, self._opened, self._calls, self._failures, self._slow, self._rejected
        )

    def _look(self, now: float) -> None:
        """Do what was due since the last look."""
        while self._running:
            call = next(iter(self._running))
            due = call.started + self._slow_after
            if due > now:
                break
            del self._running[call]
            self._slow += 1
            self._fail(call, due)
        # A trial that was slow may have opened it again, and long ago.
        if self._state is State.OPEN and self._since + self._reset <= now:
            self._step(Event.RESTED, self._since + self._reset)

    def _fail(self, call: Call, now: float) -> None:
        self._failures += 1
        if call.turn == self._turn:
            # A trial goes on with the row that opened the circuit.
            self._in_a_row += 1
            if self._in_a_row >= self._limit:
                self._step(Event.TRIPPED, now)

    def _step(self, event: Event, now: float) -> None:
        self._state = TRANSITIONS[self._state, event]
        self._opened += self._state is State.OPEN
        self._since = now
        self._turn += 1
        self._trial = None
