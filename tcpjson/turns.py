"""Whose frames are handled in this turn of the reactor, and whose in the next ones."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

# Seconds of a turn of the reactor after which no further one goes on in it: however many send much at once,
# what others send is read soon.
_SHARE = 0.001


class Waiting(Protocol):
    """Who waits for its next turn."""

    def go_on(self) -> None:
        """It may take it."""


class Turns:
    """
    A queue of those who have more to do than fits in one turn: some go on in each turn, in order.

    Args:
        clock: calls later; the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._call: IDelayedCall | None = None

    def add(self, waiting: Waiting) -> None:
        """Have it go on when those before it did."""
        self._queue.append(waiting)
        if self._call is None:
            self._call = self._clock.callLater(0, self._run)

    def _run(self) -> None:
        queue = self._queue
        # Who has still more to do is to wait for the next turn.
        count = len(queue)
        until = self._clock.seconds() + _SHARE
        try:
            while count:
                count -= 1
                queue.popleft().go_on()
                if self._clock.seconds() >= until:
                    break
        finally:
            self._call = self._clock.callLater(0, self._run) if queue else None

    def stop(self) -> None:
        """Leave no delayed call behind."""
        self._queue.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None
