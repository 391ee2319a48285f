"""The time of day as the protocol writes it (docs/protocol.rst, section 2)."""

from __future__ import annotations

from collections.abc import Callable
from time import gmtime, strftime


def format_timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`; `seconds` since 1970."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(whole))}.{milliseconds:03d}Z"


class Timestamps:
    """
    Writes the current time, at the cost of a look at the clock while the millisecond is the same.

    Args:
        wall: tells the time in seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._second = -1
        self._millisecond = -1
        self._prefix = ""
        self._text = ""

    def now(self) -> str:
        """The current time."""
        millisecond = int(self._wall() * 1000)
        if millisecond != self._millisecond:
            second, fraction = divmod(millisecond, 1000)
            if second != self._second:
                self._prefix = format_timestamp(second)[:-4]
                self._second = second
            self._millisecond = millisecond
            self._text = f"{self._prefix}{fraction:03d}Z"
        return self._text
