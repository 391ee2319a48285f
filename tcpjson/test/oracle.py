"""What a strict JSON parser takes, by the standard library: independent of what the server parses with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st


class Number(str):
    """A number by its digits, as it stood in the text."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object with all of its names, those that stand twice too."""


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

_digits = st.one_of(
    st.text("0123456789", min_size=1, max_size=4),
    st.text("0189", min_size=17, max_size=24),
    st.sampled_from(["9223372036854775807", "9223372036854775808", "9223372036854775809"]),
    st.sampled_from(["18446744073709551615", "18446744073709551616", "1" * 309, "9" * 330]),
)
_fractions = _digits.map(lambda digits: f".{digits}")
_exponents = st.builds(
    "{}{}{}".format,
    st.sampled_from("eE"),
    st.sampled_from(["", "+", "-"]),
    st.one_of(st.sampled_from(["0", "5", "007", "307", "308", "309", "999"]), _digits),
)


def _number(sign: str, whole: str, fraction: str, exponent: str) -> str:
    return sign + (whole.lstrip("0") or "0") + fraction + exponent


numbers = st.builds(
    _number,
    st.sampled_from(["", "-"]),
    _digits,
    st.one_of(st.just(""), _fractions),
    st.one_of(st.just(""), _exponents),
)

_characters = st.one_of(
    st.sampled_from([r"\"", r"\\", r"\/", r"\b", r"\n", r"\u0000", r"\u005c", r"\u0022", r"\ud83d\ude00"]),
    st.sampled_from(["[", "]", "{", "}", ":", ",", "e", "E", ".", "-", "+", "é", "😀", "\x7f", " "]),
    _digits,
    numbers,
)
strings = st.lists(_characters, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')

_spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r "])
scalars = st.one_of(numbers, strings, st.sampled_from(["true", "false", "null"]))


def _array(space: str, items: list[str]) -> str:
    return "[" + space + f"{space},".join(items) + space + "]"


def _object(space: str, items: list[tuple[str, str]]) -> str:
    members = [f"{name}{space}:{space}{value}" for name, value in items]
    return "{" + space + f",{space}".join(members) + "}"


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds(_array, _spaces, st.lists(inner, max_size=3)),
        # Names that stand twice have no defined meaning, so the names differ.
        st.builds(
            _object,
            _spaces,
            st.lists(st.tuples(strings, inner), max_size=3, unique_by=lambda item: json.loads(item[0])),
        ),
    )


def _nested(text: str, opening: list[str]) -> str:
    closing = "".join("]" if bracket == "[" else "}" for bracket in reversed(opening))
    return "".join("[" if bracket == "[" else '{"a":' for bracket in opening) + text + closing


_values = st.recursive(scalars, _containers, max_leaves=8)
#: JSON texts that are valid, though perhaps not fit to be relayed.
texts = st.one_of(
    _values,
    st.builds(_nested, _values, st.lists(st.sampled_from("[{"), min_size=60, max_size=68)),
)


def _damaged(text: str, position: int, count: int, inserted: str) -> str:
    position %= len(text) + 1
    return text[:position] + inserted + text[position + count :]


#: JSON texts with a fault, or what is still none.
damaged = st.builds(
    _damaged,
    texts,
    st.integers(0, 200),
    st.integers(0, 2),
    st.sampled_from(
        [*'[]{},:"\\-+.eE01x\0\n\x1f', "", " ", "NaN", "Infinity", r"\ud800", r"\udc00", r"\u12"]
    ),
)
