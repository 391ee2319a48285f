"""One timer for many deadlines."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

Key = TypeVar("Key", bound=Hashable)

# Seconds between two walks over the deadlines at the least: what a walk costs is bounded, and so is how
# late a deadline is noticed.
_GRANULARITY = 0.1


class Deadlines(Generic[Key]):
    """
    Calls back for every key whose deadline has passed, at most 0.1 seconds late.

    Setting and clearing cost a dictionary access. There is one delayed call at the most; it stays when
    deadlines are cleared, and is not made again when it finds none.

    Args:
        clock: tells the time in seconds and calls later.
        expired: called with a key whose deadline has passed; the key is no longer set then.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[Key], object]) -> None:
        self._clock = clock
        self._expired = expired
        self._deadlines: dict[Key, float] = {}
        self._call: IDelayedCall | None = None
        self._due = 0.0

    def __contains__(self, key: Key) -> bool:
        return key in self._deadlines

    def set(self, key: Key, when: float) -> None:
        """Have `expired` called for `key` at `when`, in seconds of the clock, and not before."""
        self._deadlines[key] = when
        if self._call is None or when < self._due:
            self._schedule(when)

    def clear(self, key: Key) -> float | None:
        """Forget the deadline of `key`; returns it, None when there was none."""
        return self._deadlines.pop(key, None)

    def stop(self) -> None:
        """Forget all, and leave no delayed call behind."""
        self._deadlines.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _schedule(self, when: float) -> None:
        if self._call is not None:
            self._call.cancel()
        self._due = when
        self._call = self._clock.callLater(max(when - self._clock.seconds(), 0.0), self._check)

    def _check(self) -> None:
        self._call = None
        now = self._clock.seconds()
        expired = [key for key, when in self._deadlines.items() if when <= now]
        try:
            for key in expired:
                # An earlier one may have cleared or moved a later one.
                if self._deadlines.get(key, now + 1) <= now:
                    del self._deadlines[key]
                    self._expired(key)
        finally:
            if self._deadlines:
                self._schedule(max(min(self._deadlines.values()), now + _GRANULARITY))
