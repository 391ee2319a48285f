"""What a client sends."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET, Raw
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.messages import Message, Ping
from tcpjson.core.requests import (
    encode_message,
    encode_request,
    encode_unasked,
    text_payload,
    with_id,
    with_timestamp,
)
from tcpjson.test.hypo import given
from tcpjson.testing import MemoryServer

NOW = "2024-01-01T12:00:00.000Z"


class Move(Message, tag="move"):
    x: int


class Row(Message, tag="row", array_like=True):
    x: int


class Untagged(Message, tag=False):
    x: int


class Numbered(Message, tag=7):
    x: int


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = st.dictionaries(st.text(max_size=8), values, max_size=4).map(
    lambda fields: {**{key: value for key, value in fields.items() if key != "id"}, "type": "x"}
)


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


class TextTests(SynchronousTestCase):
    """`text_payload`."""

    def test_as_it_is(self) -> None:
        """Where it could not be taken for anything else."""
        for text in ("hello", "l'été", "two\nlines", "a {b}", "NaN", "1 2", "tru", "'x'"):
            self.assertEqual(text_payload(text), text.encode())

    def test_what_could_be_taken_for_json(self) -> None:
        """It goes as a text of JSON, which a server takes for the text that it is."""
        for text, payload in (
            ("", b'""'),
            ("7", b'"7"'),
            ("null", b'"null"'),
            ("{broken", b'"{broken"'),
            (" {broken", b'" {broken"'),
            ("\n[", b'"\\n["'),
            ('{"type":"ping"}', b'"{\\"type\\":\\"ping\\"}"'),
            ("\ufeffx", '"\ufeffx"'.encode()),
        ):
            self.assertEqual(text_payload(text), payload)

    def test_what_is_no_text(self) -> None:
        with self.assertRaises(ValueError):
            text_payload("\ud800")

    @given(
        st.one_of(
            st.text(),
            st.text(st.sampled_from('{}[]" \t\n\r:,0123456789.eE-+truefalsn\\u\ufeff'), max_size=8),
            st.sampled_from(
                ["", "5", "1e400", "null", '"x"', "{}", " []", "\ufeff", '"\\ud800"', "-0", "9" * 30]
            ),
        )
    )
    def test_any_text(self, text: str) -> None:
        """A server sends back that it has heard this text."""
        server = MemoryServer()
        peer = server.connect()
        peer.receive()
        peer.send_payload(text_payload(text))
        ((echo),) = peer.receive()
        self.assertEqual((echo["type"], echo["original_text"]), ("echo", text))


class EncodeTests(SynchronousTestCase):
    """`encode_message` and `encode_request`."""

    def test_what_a_message_is(self) -> None:
        for encode in (encode_message, encode_request):
            self.assertEqual(encode({"type": "a", "b": [1]}), ("a", b'{"type":"a","b":[1]}'))
            self.assertEqual(encode(Move(x=1)), ("move", b'{"type":"move","x":1}'))

    def test_what_none_is(self) -> None:
        broken: list[tuple[Any, type[Exception]]] = [
            (5, TypeError),
            (None, TypeError),
            (b"{}", TypeError),
            ([], TypeError),
            ("text", TypeError),
            ({}, TypeError),
            ({"type": 5}, TypeError),
            ({"type": None}, TypeError),
            (Untagged(x=1), TypeError),
            (Numbered(x=1), TypeError),
            ({"type": "a", "b": object()}, TypeError),
            ({"type": "a", "b": {(1, 2): 3}}, TypeError),
            ({"type": "a", "b": "\ud800"}, ValueError),
            ({"type": "\ud800"}, ValueError),
            ({"type": "a", "b": nested(100_000)}, ValueError),
        ]
        for message, error in broken:
            for encode in (encode_message, encode_request):
                with self.assertRaises(error):
                    encode(message)

    def test_what_is_no_object(self) -> None:
        """An id could not be put into it."""
        with self.assertRaises(TypeError):
            encode_message(Row(x=1))
        with self.assertRaises(TypeError):
            encode_message(Row(x=1, id=5))

    def test_other_mappings(self) -> None:
        for message in (MappingProxyType({"type": "a", "b": None}), UserDict({"type": "a", "b": None})):
            for encode in (encode_message, encode_request, encode_unasked):
                self.assertEqual(encode(message), ("a", b'{"type":"a","b":null}'))

    def test_numbers_that_are_none(self) -> None:
        """Null is not written for them unasked."""
        for number in (float("nan"), float("inf"), -float("inf")):
            for message in ({"type": "a", "b": [number]}, {"type": "a", "b": None, "c": {"d": number}}):
                with self.assertRaises(ValueError):
                    encode_message(message)
        encode_message({"type": "a", "b": "NaN", "c": None, "d": 1.5})

    def test_an_id_of_what_is_just_sent(self) -> None:
        """Those below 0 are the client's own."""
        for own in (0, 5, 2**63, "x", "-3", None):
            encode_unasked({"type": "a", "id": own})
        for own in (-1, -3):
            with self.assertRaises(ValueError):
                encode_unasked({"type": "a", "id": own})
            with self.assertRaises(ValueError):
                encode_unasked(Move(x=1, id=own))

    def test_an_id_of_its_own(self) -> None:
        """The client chooses those of requests; messages that are just sent may have one."""
        ids: list[Any] = [5, "x", None]
        for own in ids:
            for message in ({"type": "a", "id": own}, Move(x=1, id=own)):
                with self.assertRaises(ValueError):
                    encode_request(message)
                self.assertEqual(json.loads(encode_message(message)[1])["id"], own)
        encode_request(Ping(id=UNSET))

    @given(messages, st.integers(-(2**63), -1))
    def test_any_message_with_an_id(self, message: dict[str, Any], key: int) -> None:
        kind, payload = encode_request(message)
        self.assertEqual(kind, "x")
        self.assertEqual(json.loads(payload), message)
        self.assertEqual(json.loads(with_id(payload, key)), {**message, "id": key})

    @given(messages)
    def test_any_message_with_a_timestamp(self, message: dict[str, Any]) -> None:
        del message["type"]
        message = {"type": "x", **{key: value for key, value in message.items() if key != "timestamp"}}
        payload = with_timestamp(encode_message(message)[1], NOW)
        self.assertEqual(json.loads(payload), {**message, "timestamp": NOW})

    def test_a_value_that_is_json_already(self) -> None:
        encoders: list[Callable[[dict[str, Any]], tuple[str, bytes]]] = [encode_message, encode_request]
        for encode in encoders:
            self.assertEqual(encode({"type": "a", "b": Raw(b"[1]")})[1], b'{"type":"a","b":[1]}')
