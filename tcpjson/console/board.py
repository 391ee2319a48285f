"""Lines on their way to a terminal: as many as somebody can read, whatever the server sends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from tcpjson.console.rendering import Line

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

# Of what others send, so many lines are shown in one interval, which is in seconds.
MOST = 10
INTERVAL = 0.25


class Board:
    """
    Gathers lines and has them written together.

    Args:
        clock: the reactor.
        write: writes lines; while the Deferred that it returned waits, it is not called again.
    """

    def __init__(
        self, clock: IReactorTime, write: Callable[[list[Line]], Deferred[None] | None] | None = None
    ) -> None:
        self._clock = clock
        self.write = write
        self._lines: list[Line] = []
        self._heard = 0
        self._left_out = 0
        # Runs while the last lines were written less than an interval ago.
        self._call: IDelayedCall | None = None
        self._writing = False

    def say(self, lines: Iterable[Line]) -> None:
        """Show lines, all of them: answers to what was typed, notices."""
        self._lines += lines
        if self._call is None:
            self._call = self._clock.callLater(0, self._due)

    def hear(self, line: Callable[[], Line]) -> None:
        """Show a line about what others did, which is made only if there is room for it."""
        if self._heard < MOST:
            self._heard += 1
            self.say([line()])
        else:
            self._left_out += 1

    def _due(self) -> None:
        self._call = None
        if self._lines and not self._writing:
            self.flush()
            self._call = self._clock.callLater(INTERVAL, self._due)

    def flush(self) -> None:
        """Write what there is, now."""
        lines, self._lines = self._lines, []
        if self._left_out:
            count = "1 more message" if self._left_out == 1 else f"{self._left_out:,} more messages"
            lines.append(Line("notice", f"… {count} came, too many to show"))
        self._heard = self._left_out = 0
        if not lines or self.write is None:
            return
        written = self.write(lines)
        if written is not None:
            self._writing = True
            written.addBoth(self._written)

    def _written(self, result: object) -> None:
        self._writing = False
        if self._lines and self._call is None:
            self._call = self._clock.callLater(0, self._due)

    def stop(self) -> None:
        """Write what there is, and nothing after that."""
        self.flush()
        self.write = None
        if self._call is not None:
            self._call.cancel()
            self._call = None
