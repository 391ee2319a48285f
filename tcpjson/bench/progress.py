"""How far it is: a bar on a terminal, else a line for each scenario."""

from __future__ import annotations

from typing import TextIO

_WIDTH = 24


class Progress:
    """
    Tells how far the measurements are.

    Args:
        file: where it is written.
        total: seconds that all will take, about.
        bar: whether it is a terminal, on which a line can be written again.
    """

    def __init__(self, file: TextIO, total: float, bar: bool) -> None:
        self._file = file
        self._total = total
        self._bar = bar
        self._passed = 0.0
        self._seconds = 0.0
        self._what = ""

    def begin(self, what: str, seconds: float) -> None:
        """A measurement begins, and will take so many seconds, about."""
        self._passed += self._seconds
        self._what, self._seconds = what, seconds
        if self._bar:
            self.tick(0.0)
        else:
            print(f"tcpjson.bench: {what}", file=self._file, flush=True)

    def tick(self, seconds: float) -> None:
        """So many seconds of it have passed."""
        if not self._bar:
            return
        share = min((self._passed + min(seconds, self._seconds)) / self._total, 1.0) if self._total else 1.0
        full = int(share * _WIDTH)
        # To the end of the line, whatever stood there.
        print(
            f"\r[{'#' * full}{'.' * (_WIDTH - full)}] {share:4.0%} {self._what}\x1b[K",
            end="",
            file=self._file,
            flush=True,
        )

    def end(self) -> None:
        """All is done: nothing of the bar is left."""
        if self._bar:
            print("\r\x1b[K", end="", file=self._file, flush=True)
