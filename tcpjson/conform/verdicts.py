"""What comes of a check, and what was said on the way to it."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Literal

import msgspec

# Bytes of a piece that are kept, and pieces.
_HEAD = 512
_PIECES = 24


class Failed(Exception):
    """
    The server did not do what the contract says; the text says in one line what was due and what came.

    Args:
        text: that line.
        hung: nothing came, or nothing was taken, for as long as was waited.
    """

    def __init__(self, text: str, hung: bool = False) -> None:
        super().__init__(text)
        self.hung = hung


class Ended(Failed):
    """
    The server ended the connection where something else was due.

    Args:
        text: as of `Failed`.
        reset: by force, and not in order.
    """

    def __init__(self, text: str, reset: bool) -> None:
        super().__init__(text)
        self.reset = reset


class Skip(Exception):
    """The check cannot be made; the text says why."""


class Verdict(StrEnum):
    """What comes of a check."""

    PASSED = "passed"
    FAILED = "failed"
    #: What the contract only recommends is not so.
    WARNED = "warned"
    SKIPPED = "skipped"


class Piece(msgspec.Struct, frozen=True):
    """Bytes that went over the wire: the first of them, and how many they were."""

    #: Which of the check's connections.
    who: str
    way: Literal["sent", "came", "note"]
    head: bytes
    size: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one check."""

    section: str
    name: str
    level: str
    must: bool
    rules: tuple[str, ...] = ()
    why: str
    verdict: Verdict
    #: What was due and what came, or why it was skipped; empty where it passed.
    reason: str = ""
    pieces: list[Piece] = []
    seconds: float = 0.0


class Transcript:
    """The last of what went over the wire since it was cleared."""

    def __init__(self) -> None:
        self._secrets: set[bytes] = set()
        self._pieces: deque[Piece] = deque(maxlen=_PIECES)
        # Pieces that came before those which are kept.
        self._dropped = 0

    def hide(self, secret: str) -> None:
        """Write stars over this, wherever it stands."""
        self._secrets.add(secret.encode())

    def clear(self) -> None:
        """A new check begins."""
        self._pieces.clear()
        self._dropped = 0

    def mark(self) -> int:
        """Where it is now, for `fold`."""
        return self._dropped + len(self._pieces)

    def fold(self, mark: int, who: str, text: str) -> None:
        """What was added since a mark went well, and a few words are enough for it."""
        while self._pieces and self.mark() > mark:
            self._pieces.pop()
        if text:
            self.note(who, text)

    def add(self, who: str, way: Literal["sent", "came"], data: bytes | bytearray | memoryview) -> None:
        """Bytes were sent, or came."""
        # What stands in part behind the cut must not be seen either.
        head = bytes(data[: _HEAD + max(map(len, self._secrets), default=0)])
        for secret in self._secrets:
            head = head.replace(secret, b"*" * len(secret))
        self._append(Piece(who, way, head[:_HEAD], len(data)))

    def note(self, who: str, text: str) -> None:
        """Something else happened."""
        self._append(Piece(who, "note", text.encode(), 0))

    def _append(self, piece: Piece) -> None:
        self._dropped += len(self._pieces) == _PIECES
        self._pieces.append(piece)

    @property
    def pieces(self) -> list[Piece]:
        """All of it that is kept, in order."""
        return list(self._pieces)
