"""What is shown: messages in words or as JSON, with nothing in it that a terminal would obey."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from tcpjson.core.errors import (
    AuthenticationFailed,
    Disconnected,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
)

Json = dict[str, Any]

#: Characters of a line on a terminal.
MAX_LINE = 2000
# Rows of a table.
_MAX_ROWS = 60
# Characters of the columns of a table, and of a line of the second.
_MAX_NAME = 40
_MAX_ROW = 400
_WRAP = 66

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Line(NamedTuple):
    """A line that is to be shown: nothing in it is escaped yet."""

    #: `answer`, `heard`, `notice` or `error`.
    style: str
    text: str
    #: What it begins with.
    label: str = ""

    def shown(self, limit: int | None = None) -> tuple[str, str]:
        """The label, with its colon, and the text, as they may be printed. `limit`: characters of each."""
        label = escape(_cut(self.label, limit))
        return f"{label}: " if label else "", escape(_cut(self.text, limit))

    def plain(self, limit: int | None = None) -> str:
        """All of it, as it may be printed."""
        return "".join(self.shown(limit))


def _harmless(character: str) -> bool:
    # Spaces are not printable by Python's measure, but the plain one.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if _harmless(character):
        return character
    code = ord(character)
    if known := _ESCAPES.get(character):
        return known
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: str) -> str:
    """Write what is no plain character (controls, changes of direction, ends of lines) by its code."""
    return text if text.isprintable() else re.sub(r"[^ -~]", _escaped, text)


def _json_escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if _harmless(character) else json.dumps(character)[1:-1].replace("\x7f", "\\u007f")


def escape_json(text: str) -> str:
    """The same of a JSON text without line ends, which stays one and says the same."""
    return text if text.isprintable() else re.sub(r"[^ -~]", _json_escaped, text)


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def as_json(value: object) -> str:
    """A value as JSON text, in one line."""
    try:
        return escape_json(msgspec.json.encode(value).decode())
    except RecursionError:
        return '"(nested too deep to be shown)"'


def as_text(value: object) -> str:
    """A value as people write it: a text as it is."""
    return value if isinstance(value, str) and value else as_json(value)


# Messages in words. A stranger's server may leave out fields, or send others.


def _number(count: object, one: str, more: str) -> str:
    return f"1 {one}" if count == 1 else f"{as_text(count)} {more}"


def _broadcast(message: Json) -> tuple[str, str]:
    origin = as_text(message.get("from_client", "somebody"))
    if "from_user" in message:
        origin = f"{as_text(message['from_user'])} ({origin})"
    return f"broadcast from {origin}", as_text(message.get("content"))


def _error(message: Json) -> tuple[str, str]:
    parts = [as_text(message[name]) for name in ("code", "message") if name in message]
    text = ": ".join(parts) or "the server gives no reason"
    if "retry_after" in message:
        text += f" (try again in {as_text(message['retry_after'])} s)"
    return "error", text


def _stats(message: Json) -> tuple[str, str]:
    parts: list[str] = []
    for name, value in _fields(message):
        if isinstance(value, dict):
            parts.append(_number(len(value), "figure", "figures") + f" in {name}")
        else:
            parts.append(f"{name}={as_text(value)}")
    return "stats", ", ".join(parts)


def _fields(message: Json) -> list[tuple[str, Any]]:
    """All of a message but what every one has."""
    return [item for item in message.items() if item[0] not in ("type", "id", "timestamp")]


_WORDS: dict[tuple[str, str], Callable[[Json], tuple[str, str]]] = {
    ("echo", "original_text"): lambda message: ("echo", as_text(message["original_text"])),
    ("echo_response", "content"): lambda message: ("echo", as_text(message["content"])),
    ("broadcast_sent", "recipients"): lambda message: (
        "broadcast",
        _number(message["recipients"], "recipient", "recipients"),
    ),
    ("response", "original_message"): lambda message: ("response", as_text(message["original_message"])),
    ("broadcast", "content"): _broadcast,
    ("error", "type"): _error,
    ("server_stats", "type"): _stats,
    ("welcome", "message"): lambda message: ("welcome", as_text(message["message"])),
}
_BY_TYPE = {kind: (field, words) for (kind, field), words in _WORDS.items()}


def in_words(message: Json) -> tuple[str, str]:
    """A message as people read it: what it is, and what it says."""
    kind = message.get("type")
    field, words = _BY_TYPE.get(kind, ("", None)) if isinstance(kind, str) else ("", None)
    if words is not None and field in message:
        return words(message)
    rest = dict(_fields(message))
    return as_text(kind) if kind else "message", as_json(rest) if rest else ""


def milliseconds(seconds: float) -> str:
    """A short time, to three digits."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:#.3g} ms".replace(". ", " ")


# Tables.


def _row_name(name: str) -> str:
    return name.replace("_", " ")


def _folded(value: object) -> str:
    """A value in one row: an object's fields beside each other."""
    if not isinstance(value, dict):
        return f"{value:,}" if type(value) is int else as_text(value)
    parts = [
        # The names are those of types, codes and reasons, not of figures.
        f"{name} {as_text(inner) if isinstance(inner, dict) else _folded(inner)}"
        for name, inner in value.items()
    ]
    return ", ".join(parts) or "none"


def _rows(fields: Iterable[tuple[str, Any]], indent: str = "") -> Iterable[tuple[str, str]]:
    for name, value in fields:
        if isinstance(value, dict) and value and not indent:
            yield _row_name(name), ""
            yield from _rows(value.items(), "  ")
        elif name.endswith("uptime_seconds") and isinstance(value, (int, float)):
            yield f"{indent}uptime", duration(value)
        else:
            yield indent + _row_name(name), _folded(value)


def duration(seconds: float) -> str:
    """A time in days, hours, minutes and seconds."""
    left = int(seconds) if abs(seconds) < 1e12 else 0
    parts: list[str] = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def table(rows: Iterable[tuple[str, str]], style: str = "answer") -> list[Line]:
    """Rows of two columns."""
    rows = list(rows)
    shown = [(escape(_cut(name, _MAX_NAME)), _cut(value, _MAX_ROW)) for name, value in rows[:_MAX_ROWS]]
    width = max((len(name) for name, _ in shown), default=0)
    lines = []
    for name, value in shown:
        for part in textwrap.wrap(escape(value), _WRAP) or [""]:
            lines.append(Line(style, f"{name:<{width}}  {part}".rstrip()))
            name = ""
    if len(rows) > _MAX_ROWS:
        lines.append(Line(style, f"… and {len(rows) - _MAX_ROWS} more"))
    return lines


def stats_table(message: Json) -> list[Line]:
    """The statistics of a server, one figure a row; what has parts of its own stands folded in one."""
    return [Line("answer", "", "stats"), *table(_rows(_fields(message)))]


# Errors.

_CODES: tuple[tuple[type[Exception], str], ...] = (
    (RequestTimeout, "no_answer"),
    (Disconnected, "disconnected"),
    (QueueFull, "queue_full"),
    (AuthenticationFailed, "authentication_failed"),
    (ProtocolMismatch, "protocol_mismatch"),
    (ValueError, "bad_command"),
    (TypeError, "bad_command"),
)


def code_of(error: BaseException) -> str:
    """A word for programs: the code of the protocol, or one of our own."""
    if isinstance(error, ProtocolError):
        return str(error.code)
    return next((code for kind, code in _CODES if isinstance(error, kind)), "failed")


def reason_of(error: BaseException | None) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ProtocolError):
        text = f"{error.code}: {text}" if text != error.code else text
        if error.retry_after is not None:
            text += f" (try again in {error.retry_after:g} s)"
    return text
