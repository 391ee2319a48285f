"""What a strict JSON parser takes, by the standard library: independent of what the server parses with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st


class Number(str):
    """A number by its digits, as it stood in the text. It equals no string."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and str(self) == str(other)

    __hash__ = str.__hash__


class Pairs(list[tuple[str, Any]]):
    """An object with all of its names, those that stand twice too. It equals no array."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pairs) and list(self) == list(other)

    __hash__ = None


def _constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=_constant, object_pairs_hook=Pairs
).decode


def parse(text: bytes) -> Any:
    """
    The value of a JSON text: `Number`, `Pairs`, list, str, bool or None.

    Raises:
        ValueError: it is no JSON text (RFC 8259) in UTF-8, or has a lone surrogate.
    """
    try:
        value = _decode(text.decode())
    except RecursionError:
        raise ValueError("nested deeper than the standard library reads") from None
    for part in parts(value):
        if isinstance(part, str):
            part.encode()
    return value


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        parse(text.encode())
    except ValueError:
        return False
    return True


def parts(value: Any) -> Iterator[Any]:
    """A value, and all values and names in it."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, Pairs):
            for name, inner in part:
                waiting += (name, inner)
        elif isinstance(part, list):
            waiting += part


def levels(value: Any) -> int:
    """How deep a value nests: 0 for a scalar, 1 for an empty array."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, list)]:
        depth += 1
        level = [
            inner for part in level for inner in ([v for _, v in part] if isinstance(part, Pairs) else part)
        ]
    return depth


def fits(number: Number) -> bool:
    """Whether a number is within the bounds of docs/protocol.rst, section 1."""
    if set(number) & set(".eE"):
        return abs(float(number)) != float("inf")
    return len(number.lstrip("-")) <= 20 and -(2**63) <= int(number) < 2**64


def relayable(text: bytes, depth: int = 64) -> bool:
    """Whether a JSON text may go to any client (docs/protocol.rst, section 1)."""
    try:
        value = parse(text)
    except ValueError:
        return False
    return levels(value) <= depth and all(fits(part) for part in parts(value) if isinstance(part, Number))


def field(payload: bytes, name: str) -> Any:
    """The value of a field of the object that a payload holds."""
    [value] = [value for key, value in parse(payload) if key == name]
    return value


# JSON texts as they can be written, not as a serializer would.

_EDGES = [
    "9223372036854775807",
    "9223372036854775808",
    "9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "1" * 309,
    "9" * 330,
]
_EXPONENTS = ["0", "5", "007", "307", "308", "309", "999", "0" * 25, "9" * 25]
_CHARACTERS = [
    *(r"\"", r"\\", r"\/", r"\b", r"\n", r"\u0000", r"\u005c", r"\u0022", r"\ud83d\ude00"),
    *"[]{}:,eE.-+0é😀\x7f ",
    "12345678901234567890",
    "-99999999999999999999999",
    "1e999",
]
_FAULTS = [*'[]{},:"\\-+.eE01x\0\n\x1f', "", " ", "NaN", "Infinity", r"\ud800", r"\udc00", r"\u12"]


def _digits(draw: st.DrawFn) -> str:
    length = draw(st.sampled_from([1, 2, 3, 17, 18, 19, 20, 21, 25, 0]))
    if length:
        return str(draw(st.integers(0, 10**length - 1)))
    edge: str = draw(st.sampled_from(_EDGES))
    return edge


@st.composite
def numbers(draw: st.DrawFn) -> str:
    """Numbers of every form, short and long, within bounds and outside."""
    sign, point, exponent = draw(
        st.sampled_from(
            [(sign, point, e) for sign in ("", "-") for point in (0, 1) for e in ("", "e", "E-", "e+")]
        )
    )
    text = sign + _digits(draw)
    if point:
        text += "." + "0" * draw(st.integers(0, 3)) + _digits(draw)
    if exponent:
        text += exponent + draw(st.sampled_from(_EXPONENTS))
    return text


@st.composite
def strings(draw: st.DrawFn) -> str:
    """Strings that look like other JSON where one does not look closely."""
    return '"' + "".join(draw(st.lists(st.sampled_from(_CHARACTERS), max_size=6))) + '"'


@st.composite
def texts(draw: st.DrawFn, budget: int = 6) -> str:
    """JSON texts that are valid, though perhaps not fit to be relayed; `budget` bounds their size."""
    kind = draw(st.sampled_from(["number", "string", "word", "array", "object", "deep"]))
    if kind == "number" or budget <= 0:
        return draw(numbers())
    if kind == "string":
        return draw(strings())
    if kind == "word":
        return draw(st.sampled_from(["true", "false", "null"]))
    space = draw(st.sampled_from(["", " ", "\n", "\t\r "]))
    if kind == "deep":
        brackets = draw(st.sampled_from(["[", "{", "[{"]))
        depth = draw(st.integers(61, 66))
        opening = (brackets * depth)[:depth]
        return (
            opening.replace("{", '{"a":' + space)
            + draw(texts(budget=budget - 4))
            + opening[::-1].translate(str.maketrans("[{", "]}"))
        )
    count = draw(st.integers(0, 3))
    items = [draw(texts(budget=budget - 2)) for _ in range(count)]
    if kind == "array":
        return "[" + space + f"{space},".join(items) + space + "]"
    # Names that stand twice have no defined meaning, so the names differ.
    members = [f'{draw(strings())[:-1]}{number}"{space}:{item}{space}' for number, item in enumerate(items)]
    return "{" + space + ",".join(members) + "}"


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """JSON texts with a fault, or what is still none."""
    text: str = draw(texts())
    fault: str = draw(st.sampled_from(_FAULTS))
    position = draw(st.integers(0, 200)) % (len(text) + 1)
    return text[:position] + fault + text[position + draw(st.integers(0, 2)) :]
