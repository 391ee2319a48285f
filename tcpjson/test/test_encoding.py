"""What is sent: stamped, with the id of its request, and valid for any parser."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.encoding import QUOTE, RAW_OFFSETS, encode, encode_message
from tcpjson.core.errors import BadJSON
from tcpjson.core.messages import (
    Answer,
    BroadcastSent,
    Custom,
    EchoResponse,
    Error,
    Message,
    Pong,
    Relayed,
    Response,
    TextEcho,
    Welcome,
)
from tcpjson.handlers import Recipients
from tcpjson.test import oracle
from tcpjson.test.hypo import given

NOW = "2024-01-01T12:00:00.000Z"

DEEP = b"[" * 64 + b"]" * 64


class Moved(Message, tag="moved"):
    """A user's own message."""

    where: Any


class Noted(Message, tag="noted"):
    """A user's own message that brings its time along."""

    timestamp: str


class Stamped(Message, tag="stamped"):
    """A user's own message that may bring its time along."""

    timestamp: str | UnsetType = UNSET


class Frozen(Message, tag="frozen", frozen=True):  # type: ignore[misc]  # structs may, dataclasses may not
    """A user's own message that does not change."""


class Untyped(Message, tag=False):
    """A user's message without a type."""


class Listed(Message, tag="listed", array_like=True):
    """A user's message that is written as an array."""

    where: int


def carriers(value: Raw) -> list[tuple[str, Answer]]:
    """The answers that carry a client's value, and in which field."""
    return [
        ("ping_timestamp", Pong(value, NOW, "127.0.0.1:5000")),
        ("content", EchoResponse(value)),
        ("content", Relayed(value, "127.0.0.1:5000")),
        ("original_message", Response(value)),
        ("original_text", TextEcho(value)),
    ]


def fields(payload: bytes) -> dict[str, Any]:
    """The fields of a payload, none of which may stand there twice."""
    names = [name for name, _ in oracle.parse(payload)]
    assert len(names) == len(set(names)), names
    decoded: dict[str, Any] = json.loads(payload)
    return decoded


CARRIERS = {type(answer) for _, answer in carriers(Raw(b"0"))}


class AnswerTests(SynchronousTestCase):
    """The server's own messages."""

    def test_the_timestamp_is_put_in(self) -> None:
        payload = encode_message(BroadcastSent(3), NOW)
        self.assertEqual(fields(payload), {"type": "broadcast_sent", "recipients": 3, "timestamp": NOW})

    def test_the_id_of_the_request_is_put_in(self) -> None:
        for request_id in ("a", "", "é" * 128, 0, -(2**63), 2**63 - 1):
            payload = encode_message(BroadcastSent(3), NOW, request_id)
            self.assertEqual(fields(payload)["id"], request_id)

    def test_no_id_of_an_earlier_request_stays(self) -> None:
        """An answer may be sent again and again."""
        answer = BroadcastSent(3)
        encode_message(answer, NOW, "a")
        for request_id in (UNSET, None):
            self.assertNotIn(b'"id"', encode_message(answer, NOW, request_id))

    def test_a_time_of_an_earlier_turn_does_not_stay(self) -> None:
        answer = BroadcastSent(3)
        encode_message(answer, "2024-01-01T11:59:59.999Z")
        self.assertEqual(oracle.field(encode_message(answer, NOW), "timestamp"), NOW)

    def test_an_error_without_retry_after(self) -> None:
        payload = encode_message(Error(code="forbidden", message="no", fatal=False), NOW, 7)
        self.assertEqual(
            fields(payload),
            {
                "type": "error",
                "code": "forbidden",
                "message": "no",
                "fatal": False,
                "timestamp": NOW,
                "id": 7,
            },
        )

    def test_an_error_with_retry_after(self) -> None:
        payload = encode_message(Error(code="going_away", message="", fatal=False, retry_after=1.5), NOW)
        self.assertEqual(fields(payload)["retry_after"], 1.5)


class CarriedValueTests(SynchronousTestCase):
    """A client's value in an answer."""

    def test_the_place_of_the_value_is_known(self) -> None:
        """The offsets lead to the first byte of the value; where none is carried, to a quote."""
        for _, answer in carriers(Raw(b"0")):
            self.assertEqual(encode(answer)[RAW_OFFSETS[type(answer)] :][:1], b"0", answer)
        for kind, offset in RAW_OFFSETS.items():
            self.assertTrue(kind in CARRIERS or offset == 1, kind)
        self.assertEqual(encode(BroadcastSent(1))[RAW_OFFSETS[BroadcastSent]], QUOTE)

    def test_every_answer_with_a_raw_field_is_checked(self) -> None:
        """A class that is added must not be forgotten."""
        waiting: list[type] = [Answer]
        while waiting:
            kind = waiting.pop()
            waiting += kind.__subclasses__()
            if "Raw" in str(getattr(kind, "__annotations__", {})) and kind.__module__.startswith(
                "tcpjson.core"
            ):
                self.assertIn(kind, CARRIERS)

    @given(oracle.texts(), st.sampled_from([UNSET, "a", 7]), examples=200)
    def test_any_value(self, text: str, request_id: Any) -> None:
        """It comes back to the last digit, or is refused if some parser would refuse it."""
        data = text.encode()
        for name, answer in carriers(Raw(data)):
            if oracle.relayable(data):
                payload = encode_message(answer, NOW, request_id)
                self.assertEqual(oracle.field(payload, name), oracle.parse(data))
                self.assertTrue(oracle.relayable(payload, 65))
            else:
                self.assertRaises(BadJSON, encode_message, answer, NOW, request_id)
                # A string is never refused, so the server need not look at one.
                self.assertFalse(data.startswith(b'"'))

    def test_white_space_before_a_value(self) -> None:
        """It hides nothing from the check."""
        self.assertRaises(BadJSON, encode_message, TextEcho(Raw(b" \n1e999")), NOW)
        self.assertEqual(oracle.field(encode_message(TextEcho(Raw(b' "a"\n')), NOW), "original_text"), "a")

    def test_64_levels(self) -> None:
        """The object of the answer is not counted."""
        for _, answer in carriers(Raw(DEEP)):
            self.assertIn(DEEP, encode_message(answer, NOW))
        for _, answer in carriers(Raw(b"[" + DEEP + b"]")):
            self.assertRaises(BadJSON, encode_message, answer, NOW)

    @given(st.text())
    def test_any_plain_text(self, text: str) -> None:
        payload = encode_message(TextEcho(text), NOW)
        self.assertEqual(oracle.field(payload, "original_text"), text)


class OwnMessageTests(SynchronousTestCase):
    """What an application's handlers make: their messages, and dicts."""

    def test_a_message_is_stamped(self) -> None:
        payload = encode_message(Moved(where=[1, 2]), NOW, 5)
        self.assertEqual(fields(payload), {"type": "moved", "id": 5, "where": [1, 2], "timestamp": NOW})

    def test_a_dict_is_stamped(self) -> None:
        payload = encode_message({"type": "moved", "where": None}, NOW, "a")
        self.assertEqual(fields(payload), {"type": "moved", "id": "a", "where": None, "timestamp": NOW})

    def test_a_time_of_their_own_is_kept(self) -> None:
        own = "1999-12-31T23:59:59.999Z"
        for message in (Noted(timestamp=own), {"type": "noted", "timestamp": own}):
            self.assertEqual(oracle.field(encode_message(message, NOW), "timestamp"), own)

    def test_a_time_that_is_not_set(self) -> None:
        self.assertEqual(oracle.field(encode_message(Stamped(), NOW), "timestamp"), NOW)

    def test_a_request_that_is_sent_on_keeps_its_id(self) -> None:
        """Its reply is to carry it yet; what is sent on does not carry it (section 2)."""
        for request in (Moved(where=1, id="a"), Frozen(id="a")):
            self.assertNotIn(b'"id"', encode_message(request, NOW))
            self.assertEqual(request.id, "a")
        failing = Moved(where=object(), id="a")
        self.assertRaises(TypeError, encode_message, failing, NOW)
        self.assertEqual(failing.id, "a")

    def test_a_frozen_answer(self) -> None:
        answer = Frozen()
        self.assertEqual(fields(encode_message(answer, NOW, 1))["id"], 1)
        self.assertNotIn(b'"id"', encode_message(answer, NOW))

    def test_without_an_id(self) -> None:
        for message in (Moved(where=1), {"type": "moved"}):
            for request_id in (UNSET, None):
                self.assertNotIn(b'"id"', encode_message(message, NOW, request_id))

    def test_the_id_of_the_request_takes_over(self) -> None:
        self.assertEqual(fields(encode_message({"type": "t", "id": 1}, NOW, 2))["id"], 2)
        self.assertEqual(fields(encode_message(Moved(where=0, id=1), NOW, 2))["id"], 2)

    def test_a_dict_of_a_handler_stays_as_it_is(self) -> None:
        answer = {"type": "moved"}
        encode_message(answer, NOW, 5)
        self.assertEqual(answer, {"type": "moved"})

    def test_what_other_parsers_refuse(self) -> None:
        for value in (2**64, -(2**63) - 1, Raw(b"1e999"), Raw(b"[" + DEEP + b"]")):
            self.assertRaises(ValueError, encode_message, Moved(where=value), NOW)
            self.assertRaises(ValueError, encode_message, {"type": "t", "where": value}, NOW)
        for value in (2**64 - 1, -(2**63), Raw(DEEP)):
            self.assertTrue(oracle.relayable(encode_message(Moved(where=value), NOW), 65))
            self.assertTrue(oracle.relayable(encode_message({"type": "t", "where": value}, NOW), 65))

    def test_a_raw_of_the_application(self) -> None:
        for text in (b"garbage", b"", b'"\xff"', b'"\\ud800"', b"[1e999]"):
            with self.assertRaises(ValueError, msg=text):
                encode_message({"type": "t", "value": Raw(text)}, "T")
        error = self.assertRaises(ValueError, encode_message, {"type": "t", "value": Raw(b"garbage")}, "T")
        self.assertIn("cannot be sent", str(error))
        self.assertIn(b'"value":[1.50]', encode_message({"type": "t", "value": Raw(b"[1.50]")}, "T"))

    def test_numbers_of_other_classes(self) -> None:
        """What `broadcast` returns may be put in an answer as it is."""
        self.assertEqual(fields(encode_message({"type": "t", "sent": Recipients(3)}, NOW))["sent"], 3)
        self.assertEqual(fields(encode_message(Moved(where=[Recipients(0)]), NOW))["where"], [0])

    def test_what_is_no_json(self) -> None:
        self.assertRaises(TypeError, encode_message, {"type": "t", "where": object()}, NOW)
        self.assertRaises(ValueError, encode_message, {"type": "t", "where": "\ud800"}, NOW)
        self.assertRaises(TypeError, encode_message, Moved(where=object()), NOW)
        endless: list[object] = []
        endless.append(endless)
        self.assertRaises(RecursionError, encode_message, {"type": "t", "where": endless}, NOW)

    def test_numbers_that_json_has_not(self) -> None:
        """Nobody is sent a null in their place; a null of one's own is a null."""
        for number in (float("nan"), float("inf"), -float("inf")):
            self.assertRaises(ValueError, encode_message, {"type": "t", "where": [number]}, NOW)
            self.assertRaises(ValueError, encode_message, Moved(where={"x": number}), NOW)
        self.assertIsNone(fields(encode_message(Moved(where=None), NOW))["where"])

    def test_a_dict_without_a_type(self) -> None:
        for fields in ({}, {"kind": "t"}, {"type": None}, {"type": 1}):
            self.assertRaises(TypeError, encode_message, fields, NOW)

    def test_what_is_no_object_with_a_type(self) -> None:
        self.assertRaises(TypeError, encode_message, Untyped(), NOW)
        self.assertRaises(TypeError, encode_message, Listed(where=1), NOW, "a")
        self.assertRaises(TypeError, encode_message, Custom(original=Raw(b"{}")), NOW)


class WelcomeTests(SynchronousTestCase):
    """Section 4."""

    def test_its_fields(self) -> None:
        welcome = Welcome(client_id="c", message="m", server="s/1", max_length=5, limits={"max_queue": 1})
        self.assertEqual(
            fields(encode_message(welcome, NOW)),
            {
                "type": "welcome",
                "client_id": "c",
                "message": "m",
                "timestamp": NOW,
                "protocol": 1,
                "server": "s/1",
                "max_length": 5,
                "heartbeat": None,
                "compression": [],
                "features": [],
                "auth": [],
                "limits": {"max_queue": 1},
            },
        )
