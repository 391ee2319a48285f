"""Waiting for many sockets: epoll, and poll where there is none."""

from __future__ import annotations

import select
from typing import Any

#: The same numbers for both.
IN, OUT = 1, 4
# Descriptors from this one on are too high for `select`.
_SELECTED = 1024


class Poll:
    """`select.poll` with the methods of `select.epoll` that are used here."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Pairs of a descriptor and what it is ready for, after so many seconds at most."""
        return self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Nothing is left to be done."""


def poller() -> Any:
    """The best that the system has."""
    return select.epoll() if hasattr(select, "epoll") else Poll()


def nap(polled: Any, seconds: float) -> None:
    """Wait until something is ready, or the time is over, more finely than by the milliseconds of `poll`."""
    if isinstance(polled, Poll) or polled.fileno() >= _SELECTED:
        # Nothing finer is at hand: it is left to the caller to look at the time.
        if seconds >= 0.001:
            polled.poll(seconds - 0.001)
    else:
        select.select([polled], [], [], seconds)
