"""The wire contract as data: which bytes get which answers, for runners in any language.

Each ``*.json`` here is ``{"title": ..., "vectors": [...]}``. A vector has ``name`` (unique over all files),
``section`` (of docs/protocol.rst), ``level`` ("classic": sections 1 to 3, with what 9 says of their errors;
"full": the rest too), ``why``, ``send`` and ``expect``; it may have ``options`` (how to start the server, see
below), ``others`` (default ``[]``) and ``then`` (default "open"). To play one: connect a second client, then
the sender, to a server without other clients, and read both ``welcome``. Write the pieces of ``send`` one
after another, each on its own, whatever comes back. The sender must get exactly the frames of ``expect``, the
second client exactly those of ``others``, in this order; a ping of the second client shows that nothing more
came to it. Then "open" means that a ping of the sender gets its pong, and nothing comes before it; "closed",
that the server ends the connection without another frame (a write that fails because the server already
closed is no fault).

Of ``options`` there are ``{"strict": true}``, strict mode, and ``{"tokens": {NAME: TOKEN, ...}}``: the server
asks for authentication, takes these tokens by the mechanism "token", in the clear too, each for the user of
its name, and offers no other mechanism. Without ``tokens`` it asks for none. With them, the second client
authenticates by any of the tokens, and reads its ``auth_result``, before the sender connects; the sender
authenticates where ``send`` does, and only there. After failed logins an ``auth_result`` may come 2 s late;
the vectors with such logins stand last. Every server has heartbeats and compression: ``heartbeat`` in
``welcome`` is not null, and ``compression`` has "zlib".

Where ``section`` is 7, the first of several pieces leads to a ``hello_response``: the others are written
when that has come. Behind one whose ``compression`` is "zlib", and nowhere else, a length from the server
may have bit 31; the payload is then what ``expect`` speaks of when it is inflated, as strictly as section 7
says. Whether a server compresses is not asked. The second client says no hello.

A piece is a hex string: the bytes of the wire, lengths included. Or an object: ``{"hex": H, "times": N}``, H
repeated N times; ``{"hex": H, "fill": K}``, the one byte H repeated ``max_length`` - K times;
``{"oversize": N}``, the four bytes (big-endian) of the number ``max_length`` + N. ``max_length`` is the one
in ``welcome``; at 131,072 or more it lets every frame of fixed length pass that section 6 does.

A matcher describes one payload, which must be a JSON object valid under section 1. All of its parts, each of
which may be left out, must hold; fields that it does not name are free. ``fields``: names and the values they
must equal (numbers by value, so 1 equals 1.0; true is no number; the order of an object's names is free).
``numbers``: names and the lists of all number lexemes inside those fields, in order, to the last digit; only
the case of the E and a plus after it are free. (No other text is compared: white space and escapes are the
server's to choose.) ``forms``: names and kinds: "timestamp" (2024-01-01T12:00:00.000Z), "string", "nonempty"
(string), "integer" (no fraction or exponent), "count" (an integer not below 0), "address" (a ``client_id``),
"object", "boolean". ``contains``: names and texts that must be part of those string fields. ``absent``: names
that must not be there. ``without``: ASCII texts that must stand nowhere in the payload.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from importlib import resources
from typing import Literal

import msgspec

__all__ = ["Form", "Matcher", "Options", "Piece", "Vector", "load", "strict_json"]

Form = Literal["timestamp", "string", "nonempty", "integer", "count", "address", "object", "boolean"]

# An answer wraps a value of 64 levels in one object; one level more is left to features.
_MAX_DEPTH = 66
_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(-?[0-9][0-9.eE+-]*)|([\[{])|([\]}])', re.DOTALL)
# In valid JSON a backslash begins an escape, so escapes can be read from left to right over the whole text.
_ESCAPES = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_ADDRESS = re.compile(r"(?:\[[^][]+\]|[^][:]+):[0-9]+")


def strict_json(payload: bytes) -> object:
    """Parse what a server sent as strictly as section 1 asks of it.

    Refused besides broken JSON: what is not UTF-8, a byte order mark, NaN and Infinity, lone surrogates,
    integers outside -2^63 .. 2^64-1, numbers outside the range of a double, nesting deeper than 66 levels.
    Names that stand twice are let pass; the last one counts.

    Raises:
        ValueError: the payload is refused; the text says why.
    """
    text = payload.decode("utf-8")
    depth = 0
    for token in _TOKENS.finditer(text):
        if token[2]:
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
        elif token[3]:
            depth -= 1
    value: object = json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_constant)
    for escape in _ESCAPES.finditer(text):
        if escape[1]:
            raise ValueError(f"lone surrogate \\{escape[1]}")
    return value


def _integer(lexeme: str) -> int:
    if len(lexeme) > 20 or not -(2**63) <= (number := int(lexeme)) < 2**64:
        raise ValueError(f"integer out of range: {lexeme[:30]}")
    return number


def _float(lexeme: str) -> float:
    if math.isinf(number := float(lexeme)):
        raise ValueError(f"number out of range: {lexeme[:30]}")
    return number


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


class Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes of one write that are too many to spell out, or depend on the server's ``max_length`` (bytes)."""

    hex: str = ""
    times: int = 1
    fill: int | None = None
    oversize: int | None = None

    def encode(self, max_length: int) -> bytes:
        """The bytes of this piece for a server that takes payloads of up to ``max_length`` bytes."""
        if self.oversize is not None:
            return (max_length + self.oversize).to_bytes(4, "big")
        return bytes.fromhex(self.hex) * (self.times if self.fill is None else max_length - self.fill)


class Matcher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one payload from a server must look like; the package's docstring defines each part."""

    fields: dict[str, object] = {}
    numbers: dict[str, list[str]] = {}
    forms: dict[str, Form] = {}
    contains: dict[str, str] = {}
    absent: list[str] = []
    without: list[str] = []

    def mismatch(self, payload: bytes) -> str | None:
        """None where ``payload`` (without its length) fits, else one line: field, what was due, what came."""
        try:
            message = strict_json(payload)
        except ValueError as error:
            return f"payload: expected strict JSON, got {_cut(repr(payload))} ({error})"
        if not isinstance(message, dict):
            return f"payload: expected an object, got {_show(message)}"
        for name in [*self.fields, *self.forms, *self.contains, *self.numbers]:
            if name not in message:
                return f"{name}: expected {self._due(name)}, but it is missing in {_show(message)}"
            if not self._fits(name, message[name]):
                return f"{name}: expected {self._due(name)}, got {_show(message[name])}"
        return self._wrong_number(payload) or self._unwanted(message, payload)

    def _fits(self, name: str, value: object) -> bool:
        return (
            (name not in self.fields or _same(self.fields[name], value))
            and (name not in self.forms or _FORMS[self.forms[name]](value))
            and (name not in self.contains or (isinstance(value, str) and self.contains[name] in value))
        )

    def _wrong_number(self, payload: bytes) -> str | None:
        raw = msgspec.json.decode(payload, type=dict[str, msgspec.Raw]) if self.numbers else {}
        for name, lexemes in self.numbers.items():
            if _plain(came := _lexemes(raw[name])) != _plain(lexemes):
                due = _cut(", ".join(lexemes))
                return f"{name}: expected the numbers {due}, got {_cut(', '.join(came)) or 'none'}"
        return None

    def _unwanted(self, message: dict[str, object], payload: bytes) -> str | None:
        for name in self.absent:
            if name in message:
                return f"{name}: expected none, got {_show(message[name])}"
        for part in self.without:
            if part.encode("ascii") in payload:
                return f"payload: expected nowhere {part!r}, got {_show(message)}"
        return None

    def _due(self, name: str) -> str:
        if name in self.fields:
            return _show(self.fields[name])
        if name in self.forms:
            return f"the form {self.forms[name]!r}"
        if name in self.contains:
            return f"a string with {self.contains[name]!r} in it"
        return f"the numbers {_cut(', '.join(self.numbers[name]))}"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to start the server; the package's docstring defines each part."""

    strict: bool = False
    #: Tokens by the names of their users; authentication is asked for if there are any.
    tokens: dict[str, str] = {}


class Vector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One case of the contract; the package's docstring says how to play it."""

    name: str
    section: str
    level: Literal["classic", "full"]
    why: str
    send: list[str | Piece]
    expect: list[Matcher]
    others: list[Matcher] = []
    options: Options = Options()
    then: Literal["open", "closed"] = "open"

    def pieces(self, max_length: int) -> list[bytes]:
        """What to write, one write each, to a server whose ``welcome`` said ``max_length`` (bytes)."""
        return [
            bytes.fromhex(piece) if isinstance(piece, str) else piece.encode(max_length)
            for piece in self.send
        ]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    vectors: list[Vector]


def load() -> list[Vector]:
    """All vectors, file by file in the order of their names, as they stand in each file.

    Raises:
        msgspec.ValidationError: a file has not the documented format (the installation is broken).
    """
    files = sorted(resources.files(__name__).iterdir(), key=lambda file: file.name)
    return [
        vector
        for file in files
        if file.name.endswith(".json")
        for vector in msgspec.json.decode(file.read_bytes(), type=_File).vectors
    ]


def _is_timestamp(value: object) -> bool:
    if not isinstance(value, str) or not _TIMESTAMP.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_FORMS: dict[Form, Callable[[object], bool]] = {
    "timestamp": _is_timestamp,
    "string": lambda value: isinstance(value, str),
    "nonempty": lambda value: isinstance(value, str) and value != "",
    "integer": _is_integer,
    "count": lambda value: _is_integer(value) and isinstance(value, int) and value >= 0,
    "address": lambda value: isinstance(value, str) and _ADDRESS.fullmatch(value) is not None,
    "object": lambda value: isinstance(value, dict),
    "boolean": lambda value: isinstance(value, bool),
}


def _same(want: object, came: object) -> bool:
    """Equality of JSON values; Python's own takes True for 1."""
    if isinstance(want, bool) or isinstance(came, bool):
        return want is came
    if isinstance(want, dict) and isinstance(came, dict):
        return want.keys() == came.keys() and all(_same(want[name], came[name]) for name in want)
    if isinstance(want, list) and isinstance(came, list):
        return len(want) == len(came) and all(map(_same, want, came))
    return want == came


def _lexemes(raw: msgspec.Raw) -> list[str]:
    return [token[1] for token in _TOKENS.finditer(bytes(raw).decode("utf-8")) if token[1]]


def _plain(lexemes: list[str]) -> list[str]:
    return [lexeme.lower().replace("+", "") for lexeme in lexemes]


def _show(value: object) -> str:
    return _cut(json.dumps(value))


def _cut(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"
