"""How long a client waits before it connects again: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Callable

# Seconds that the first wait lasts at most, and any other; and one that the server asks for.
_FIRST, _CEILING = 0.5, 30.0
_LONGEST = 3600.0


class FullJitter:
    """
    Waits that are random from nothing up to a bound that doubles: however many lost the same server, they do
    not come back all at once. The bound is half a second at first, and half a minute at last.

    Args:
        random: gives a number from 0 up to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._bound = _FIRST

    def next(self, told: float | None = None) -> float:
        """
        Seconds to wait before the next attempt. `told`: the `retry_after` of the server, which is obeyed, but
        for an hour at most.
        """
        wait = self._random() * self._bound
        self._bound = min(2 * self._bound, _CEILING)
        # One that always says "now" is not to be asked without a pause.
        return max(wait, min(told or 0.0, _LONGEST))

    def reset(self) -> None:
        """An attempt went well."""
        self._bound = _FIRST
