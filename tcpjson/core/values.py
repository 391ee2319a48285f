"""Is a JSON value fit to be relayed? (docs/protocol.rst, section 1: numbers and nesting.)"""

from __future__ import annotations

import re
from itertools import accumulate

import msgspec

from tcpjson.core.errors import BadJSON

#: Levels of arrays and objects in a value that is relayed.
MAX_DEPTH = 64

_SMALLEST = -(2**63)
_LARGEST = 2**64 - 1


def _shape_table() -> bytes:
    table = bytearray(b" " * 256)
    for characters, shape in ((b"0123456789", b"0"), (b"eE", b"e"), (b"[{", b"["), (b"]}", b"]")):
        for character in characters:
            table[character] = shape[0]
    return bytes(table)


# Every byte by its kind: digits, exponents, brackets. One pass in C, after which a search tells whether
# there can be anything to look at more closely.
_SHAPE = _shape_table()
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What a bracket does to the depth, as a signed byte.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
# 2**64 - 1 has 20 digits, -(2**63) has 19.
_LONG = b"0" * 19
_EXPONENT = b"0e"
_NUMBER = re.compile(rb"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")

_decode = msgspec.json.Decoder().decode


def check_value(text: bytes, depth: int = MAX_DEPTH) -> None:
    """
    Check a valid JSON text, in UTF-8, that others are going to parse.

    Raises:
        BadJSON: it nests deeper than `depth` levels, has an integer outside -2^63 to 2^64-1, or a number
            outside the range of a double.
    """
    shape = text.translate(_SHAPE)
    # `find`, not `in`, which is three times as slow on bytes.
    if len(text) > 2 * depth and shape.count(b"[") > depth:
        _check_depth(text, depth)
    # A number overflows a double by its exponent, or by its digits, of which there are many more than 19.
    long = shape.find(_LONG) >= 0
    if long or shape.find(_EXPONENT) >= 0:
        try:
            _decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadJSON(str(error)) from None
        if long:
            _check_integers(text, shape)


def _hide_escapes(text: bytes) -> bytes:
    """The text with every quote left in it the start or the end of a string; no position moves."""
    return text.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")


def _check_depth(text: bytes, depth: int) -> None:
    outside_strings = b"".join(_hide_escapes(text).split(b'"')[::2])
    steps = memoryview(outside_strings.translate(_STEPS, _NO_BRACKETS)).cast("b")
    if max(accumulate(steps), default=0) > depth:
        raise BadJSON(f"nested deeper than {depth} levels")


def _check_integers(text: bytes, shape: bytes) -> None:
    plain = _hide_escapes(text)
    quotes = counted = 0
    start = shape.find(_LONG)
    while start >= 0:
        quotes += plain.count(b'"', counted, start)
        counted = start
        match = _NUMBER.match(text, start)
        assert match is not None  # the shape has a digit here
        end = match.end()
        before = text[start - 1 : start]
        is_integer = match.group(1) is None and match.group(2) is None
        if quotes % 2 == 0 and is_integer and before not in (b".", b"e", b"E", b"+"):
            # An exponent may have a minus of its own; that makes no integer out of range.
            negative = before == b"-"
            if not (negative and text[start - 2 : start - 1] in (b"e", b"E")):
                digits = match.group()
                value = int(digits) if len(digits) <= 20 else _LARGEST + 1
                if not _SMALLEST <= (-value if negative else value) <= _LARGEST:
                    raise BadJSON("an integer is outside -2^63 to 2^64-1")
        start = shape.find(_LONG, end)
