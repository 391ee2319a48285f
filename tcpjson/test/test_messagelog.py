"""What the log tells of messages, and what it keeps to itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.core.codec import Codec
from tcpjson.core.messages import Auth, Broadcast, Echo, Hello, Ping
from tcpjson.logs import json_line, text_line
from tcpjson.messagelog import MAX_CONTENTS, MessageLog
from tcpjson.redaction import HIDDEN
from tcpjson.test.hypo import given

SECRET = "a pencil of mine"
DECODE = Codec([Hello, Auth, Ping, Echo, Broadcast]).decode


class Factory:
    authenticator: object = None


class Client:
    client_id = "127.0.0.1:5"
    user: str | None = None

    def __init__(self) -> None:
        self.factory = Factory()


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            self.events.append(event)

        self.log = Logger(namespace="test", observer=observe)
        self.client = Client()
        self.messages = MessageLog(self.log, contents=True)

    def asking(self) -> None:
        """Have the server ask who the client is."""
        self.client.factory.authenticator = object()

    def receive(self, *payloads: bytes) -> list[LogEvent]:
        """What is logged of one read."""
        self.events.clear()
        self.messages.received(self.client, payloads, DECODE(payloads), len(payloads))
        return self.events

    def send(self, *payloads: bytes) -> list[LogEvent]:
        """What is logged of what is sent."""
        self.events.clear()
        self.messages.sent(self.client, payloads)
        return self.events

    def contents(self, payload: bytes) -> Any:
        """What is shown of a payload that came, and of the same if it is sent."""
        [received] = self.receive(payload)
        found = received["contents"]
        [sent] = self.send(payload)
        self.assertEqual(sent["contents"], found)
        return found


class EventTests(Case):
    """What is told of a message."""

    def test_received(self) -> None:
        self.client.user = "ann"
        self.messages = MessageLog(self.log)
        [event] = self.receive(b'{"type":"echo","id":7,"content":"hello"}')
        self.assertEqual(event["log_level"], LogLevel.info)
        told = {name: value for name, value in event.items() if not name.startswith("log_")}
        self.assertEqual(
            told,
            {
                "event": "message",
                "direction": "in",
                "client": "127.0.0.1:5",
                "user": "ann",
                "type": "echo",
                "size": 40,
                "id": 7,
            },
        )
        self.assertEqual(formatEvent(event), "message in 127.0.0.1:5 user='ann' type='echo' size=40 id=7")

    def test_sent(self) -> None:
        [event] = self.send(b'{"type":"echo_response","content":1,"id":"x"}')
        self.assertEqual((event["direction"], event["type"], event["id"]), ("out", "echo_response", "x"))
        self.assertEqual(event["contents"], '{"type":"echo_response","content":1,"id":"x"}')
        self.assertEqual(
            formatEvent(event),
            "message out 127.0.0.1:5 type='echo_response' size=45 id='x'"
            """ contents='{"type":"echo_response","content":1,"id":"x"}'""",
        )

    def test_types(self) -> None:
        for payload, kind in (
            (b'{"type":"ping"}', "ping"),
            (b'{"type":"move","x":1}', "move"),
            (b'{"type":"move","id":[1]}', "move"),
            (b'{"type":"ping","id":1.5}', "ping"),
            (b'{"x":1}', None),
            (b'{"type":7}', None),
            (b'{"type":null}', None),
            (b"hello", None),
            (b"[1]", None),
            (b"", None),
            (b'{"type":"ping"', None),
            (b'{"type":"\xff"}', None),
            (b'{"type":"ping","x":' + b"[" * 50_000, None),
            (b'{"type":"' + b"x" * 1000 + b'"}', "x" * 128),
        ):
            for [event] in (list(self.receive(payload)), list(self.send(payload))):
                self.assertEqual((event["type"], event["size"]), (kind, len(payload)))

    def test_ids(self) -> None:
        for written, request_id in (
            (b"7", 7),
            (b'"x"', "x"),
            (b"null", None),
            (b"-9223372036854775808", -(2**63)),
            (b"[1]", None),
            (b'"' + b"x" * 128 + b'"', "x" * 128),
        ):
            for kind in (b"ping", b"move"):
                payload = b'{"type":"%s","id":%s}' % (kind, written)
                for [event] in (list(self.receive(payload)), list(self.send(payload))):
                    self.assertEqual(event.get("id"), request_id)
        [event] = self.send(b'{"type":"x","id":"' + b"x" * 1000 + b'"}')
        self.assertEqual(event["id"], "x" * 128)

    def test_only_what_was_handled(self) -> None:
        payloads = [b'{"type":"ping","id":%d}' % number for number in range(5)]
        self.messages.received(self.client, payloads, DECODE(payloads), 3)
        self.messages.received(self.client, payloads[3:], DECODE(payloads[3:]), 2)
        self.messages.received(self.client, [], [], 0)
        self.assertEqual([event["id"] for event in self.events], [0, 1, 2, 3, 4])

    def test_no_line_is_forged(self) -> None:
        for kind in (
            "x' size=1\n2024 [tcpjson.server#info] listening",
            "\x1b[2J\u2028",
            "\ud800",
            "{a}{size}",
        ):
            payload = json.dumps({"type": kind, "id": kind, "content": kind}).encode()
            for [event] in (list(self.receive(payload)), list(self.send(payload))):
                text = text_line(event)
                self.assertEqual((text.count("\n"), text[:-1].isprintable()), (1, True), text)
                self.assertTrue(json_line(event).isascii())
        [event] = self.receive(json.dumps({"type": "x size=1 id=2"}).encode())
        self.assertIn(" type='x size=1 id=2' size=25 ", text_line(event))

    @given(
        st.lists(st.binary(max_size=40) | st.text().map(lambda text: json.dumps(text).encode()), max_size=5)
    )
    def test_any_payloads(self, payloads: list[bytes]) -> None:
        for events in (list(self.receive(*payloads)), list(self.send(*payloads))):
            self.assertEqual([event["size"] for event in events], list(map(len, payloads)))


class SampleTests(Case):
    """`every`."""

    @given(
        st.integers(1, 7),
        st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9)), max_size=20),
    )
    def test_one_of_so_many(self, every: int, reads: list[tuple[bool, int, int]]) -> None:
        """However they are spread over reads, and directions."""
        self.events.clear()
        messages = MessageLog(self.log, every=every)
        counts = {"in": 0, "out": 0}
        for received, length, handled in reads:
            direction = "in" if received else "out"
            handled = min(handled, length) if received else length
            start = counts[direction]
            payloads = [b'{"type":"ping","id":%d}' % (start + number) for number in range(length)]
            if received:
                messages.received(self.client, payloads, DECODE(payloads), handled)
            else:
                messages.sent(self.client, payloads)
            counts[direction] += handled
        for direction, count in counts.items():
            found = [event["id"] for event in self.events if event["direction"] == direction]
            self.assertEqual(found, list(range(0, count, every)))


class ContentsTests(Case):
    """What is shown of payloads, and what never is."""

    def test_only_if_asked_for(self) -> None:
        self.messages = MessageLog(self.log)
        for [event] in (list(self.receive(b'{"type":"ping"}')), list(self.send(b'{"type":"ping"}'))):
            self.assertNotIn("contents", event)
            self.assertNotIn("contents", formatEvent(event))

    def test_as_they_are(self) -> None:
        for payload in (
            b'{"type":"echo","content":"the author has a tokenizer"}',
            b'{ "type": "move",\n"x": 1.50 }',
            b'{"type":"passenger","passport":1}',
            b"hello",
            b"[1, 2",
            b"",
        ):
            self.assertEqual(self.contents(payload), payload.decode())
        self.assertEqual(self.contents(b"\xff\x00"), "\\xff\x00")

    def test_the_beginning(self) -> None:
        for payload in (b'{"type":"echo","content":"%s"}' % (b"x" * 5000), b"y" * 5000, b"\xff" * 5000):
            shown = self.contents(payload)
            self.assertEqual(shown, payload[:MAX_CONTENTS].decode(errors="backslashreplace")[:MAX_CONTENTS])
            self.assertEqual(len(shown), MAX_CONTENTS)

    def test_secrets(self) -> None:
        for message in (
            {"type": "auth", "mechanism": "plain", "username": "ann", "password": SECRET},
            {"type": "auth", "token": SECRET, "id": -2},
            {"type": "auth", "data": SECRET},
            {"type": "auth", "pencil": SECRET},
            {"pencil": SECRET, "filler": "x" * 5000, "type": "auth"},
            {"type": "auth_challenge", "data": SECRET},
            {"type": "auth_result", "status": "authenticated", "data": SECRET},
            {"type": "error", "message": SECRET, "id": -2},
            {"type": "response", "original_message": {"type": "auth", "data": SECRET}},
            # Meant as one, perhaps.
            {"type": "aut", "password": SECRET},
            {"Type": "AUTH", "PassWord": SECRET},
            {"type": "login", "user": "ann", "pass": SECRET},
            {"type": "login", "access_token": [SECRET]},
            {"type": "response", "original_message": {"type": "aut", "token": SECRET}},
            {"type": "echo", "content": {"password": SECRET}},
            {"client_secret": SECRET},
            {"type": "login", "credentials": SECRET},
            {"type": "login", "pwd": SECRET},
        ):
            for indent in (None, 4):
                payload = json.dumps(message, indent=indent).encode()
                self.assertEqual(self.contents(payload), HIDDEN)
                for event in (*self.receive(payload), *self.send(payload)):
                    self.assertNotIn("pencil", json_line(event) + text_line(event))

    def test_however_it_is_spelt(self) -> None:
        for payload in (
            rb'{"type":"x","p\u0061ssword":"a pencil of mine"}',
            rb'{"type":"x","passwor\u0044":"a pencil of mine"}',
            b'{"type":"x","content":{"%bpassword":"a pencil of mine"}}' % (b"of_a_long_name_" * 9),
            b'{"type":"x","password%b":"a pencil of mine"}' % (b"_of_a_long_name" * 9),
            rb'{"type":"\u0061uth","data":"a pencil of mine"}',
            b'\r\n{"type":"auth","data":"a pencil of mine","x":' + b"[" * 500 + b"]" * 500 + b"}",
        ):
            self.assertEqual(self.contents(payload), HIDDEN)

    def test_broken_ones(self) -> None:
        for payload in (
            b'{"type":"auth","data":"a pencil of mine",}',
            b'{"type":"auth","data":"a pencil of mine"',
            b"{'type':'auth','data':'a pencil of mine'}",
            b'{"type":"auth","\xff":"a pencil of mine"}',
            b'{"type":"auth","data":"a pencil of mine","x":' + b"[" * 50_000,
            rb'{"type":"\u0061uth","data":"a pencil of mine",}',
            b"AUTH ann a pencil of mine",
            b"PASS a pencil of mine",
            b"token=a pencil of mine",
            b'["auth","a pencil of mine"]',
        ):
            [event] = self.receive(payload)
            self.assertEqual(event["contents"], HIDDEN, payload)

    def test_texts_that_are_sent_back(self) -> None:
        for original in ("AUTH ann a pencil", "{'type':'auth','data':'a pencil'}", "password a pencil"):
            [event] = self.send(json.dumps({"original_text": original, "type": "echo"}).encode())
            self.assertEqual(event["contents"], HIDDEN)
        [event] = self.send(b'{"original_text":"hello","type":"echo"}')
        self.assertNotEqual(event["contents"], HIDDEN)

    def test_guests(self) -> None:
        """Of those who are to log in, nothing is shown."""
        payloads = [b'{"type":"ping"}', b"a pencil", b'{"typ":"auht","pencil":', b"{}"]
        self.asking()
        for events in (list(self.receive(*payloads)), list(self.send(*payloads))):
            self.assertEqual([event["contents"] for event in events], [HIDDEN] * 4)
            self.assertEqual([event["size"] for event in events], list(map(len, payloads)))
        self.client.user = "ann"
        for events in (list(self.receive(b"a pencil")), list(self.send(b"a pencil"))):
            self.assertEqual([event["contents"] for event in events], ["a pencil"])

    def test_a_read_in_which_they_log_in(self) -> None:
        """By now they have, but not when they sent what came before."""
        self.asking()
        self.client.user = "ann"
        events = self.receive(b"a pencil", b'{"type":"auth","data":"x"}', b"hello")
        self.assertEqual([event["contents"] for event in events], [HIDDEN] * 3)
        # What was not handled is not looked at yet.
        payloads = [b"hello", b'{"type":"auth","data":"x"}']
        self.events.clear()
        self.messages.received(self.client, payloads, DECODE(payloads), 1)
        self.assertEqual([event["contents"] for event in self.events], ["hello"])

    @given(
        st.dictionaries(st.text(max_size=9), st.just(SECRET) | st.lists(st.just(SECRET)), max_size=4),
        st.booleans(),
        st.booleans(),
    )
    def test_any_auth(self, fields: dict[str, Any], escaped: bool, returned: bool) -> None:
        message: Any = {**fields, "type": "auth"}
        if returned:
            message = {"type": "response", "original_message": message}
        payload = json.dumps(message, ensure_ascii=escaped).encode()
        for event in (*list(self.receive(payload)), *list(self.send(payload))):
            self.assertNotIn(SECRET, repr(event.get("contents")))
