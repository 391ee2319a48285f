"""When the requests of an open loop are due, whatever the server does."""

from __future__ import annotations


class Schedule:
    """
    Requests at even distances.

    Args:
        rate: how many a second.
        seconds: how long; at least one request is due.
        phase: from 0 to 1: which part of the distance passes before the first.
    """

    def __init__(self, rate: float, seconds: float, phase: float = 0.0) -> None:
        self._rate = rate
        self._phase = phase
        #: How many there are.
        self.total = max(1, int(rate * seconds))

    def due(self, index: int) -> float:
        """When this one is due: seconds from the start."""
        return (index + self._phase) / self._rate

    def due_by(self, elapsed: float) -> int:
        """How many are due when so many seconds have passed."""
        return max(0, min(self.total, int(elapsed * self._rate - self._phase + 1)))
