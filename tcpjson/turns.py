"""Whose frames are handled in this turn of the reactor, and whose in the next ones."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

# Seconds of a turn of the reactor after which no further one goes on in it: however many send much at once,
# what others send is read soon.
_SHARE = 0.001
#: Bytes of a read from which on it may have to wait: what is shorter is soon done.
LONG = 4096
# Bytes of such reads that are handled at once in one turn of the reactor.
_AT_ONCE = 64 * 1024


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
        self._claimed = 0

    def claim(self, size: int) -> bool:
        """
        Whether a read of `size` bytes, `LONG` or more, may be handled at once: it is the first in this turn
        of the reactor, or those before it were not that long. If not, `add`.
        """
        first = not self._claimed
        self._claimed += size
        self._schedule()
        return first or self._claimed <= _AT_ONCE

    def add(self, waiting: Waiting) -> None:
        """Have it go on when those before it did."""
        self._queue.append(waiting)
        self._schedule()

    def _schedule(self) -> None:
        if self._call is None:
            self._call = self._clock.callLater(0, self._run)

    def _run(self) -> None:
        self._claimed = 0
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
