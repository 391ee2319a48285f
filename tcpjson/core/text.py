"""What strangers write, fit for people to read."""

from __future__ import annotations

#: Characters of a stranger's text that are shown.
LONGEST = 500


def printable(text: str, longest: int = LONGEST) -> str:
    """The text, cut, in one line that any log or terminal takes: what cannot be printed is escaped."""
    text = text[:longest]
    return text if text.isprintable() else repr(text)[1:-1]
