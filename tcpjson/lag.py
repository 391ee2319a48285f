"""By how much the reactor is late: what a client waits for while the server is busy with another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

# Seconds between two looks.
_INTERVAL = 0.25


class LagMeter:
    """
    Has itself called again and again, and tells by how many seconds each call came late.

    Args:
        clock: the reactor; its `seconds` must be steady.
        observe: is told.
    """

    def __init__(self, clock: IReactorTime, observe: Callable[[float], object]) -> None:
        self._clock = clock
        self._observe = observe
        self._due = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to look."""
        self._due = self._clock.seconds() + _INTERVAL
        self._call = self._clock.callLater(_INTERVAL, self._look)

    def stop(self) -> None:
        """Leave no delayed call behind."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self) -> None:
        self._observe(max(0.0, self._clock.seconds() - self._due))
        self.start()
