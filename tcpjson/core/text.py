"""What strangers write, fit for people to read."""

from __future__ import annotations

#: Characters of a stranger's text that are shown.
LONGEST = 500


def printable(text: str, longest: int = LONGEST) -> str:
    """The text, cut, in one line that any log or terminal takes: what cannot be printed is escaped."""
    text = text[:longest]
    return text if text.isprintable() else repr(text)[1:-1]


def named(value: object) -> str:
    """A stranger's value that should have been a name or a number; it may be nested as deep as can be."""
    if isinstance(value, str):
        return printable(value, 64)
    return str(value) if isinstance(value, int) and abs(value) < 2**64 else type(value).__name__
