"""The handlers of the classic messages (docs/protocol.rst, section 3), through the server."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tcpjson import classic
from tcpjson.core.codec import Codec
from tcpjson.core.messages import Message
from tcpjson.testing import MemoryServer, Peer

NOW = "2024-01-01T12:00:00.000Z"


class Case(SynchronousTestCase):
    strict = False

    def setUp(self) -> None:
        self.server = MemoryServer(strict=self.strict)
        self.addCleanup(self.server.stop)
        self.peer = self.connect()

    def connect(self) -> Peer:
        peer = self.server.connect()
        peer.receive()
        return peer

    def ask(self, *messages: object) -> list[Any]:
        self.peer.send(*messages)
        return self.peer.receive()

    def ask_raw(self, *payloads: bytes) -> list[Any]:
        self.peer.send_payload(*payloads)
        return self.peer.receive()


class PingTests(Case):
    def test_all_fields(self) -> None:
        self.server.advance(1.25)
        self.assertEqual(
            self.ask({"type": "ping", "timestamp": NOW, "client_info": {"name": "me"}}),
            [
                {
                    "type": "pong",
                    "ping_timestamp": NOW,
                    "pong_timestamp": "2024-01-01T12:00:01.250Z",
                    "client_id": "127.0.0.1:50000",
                    "timestamp": "2024-01-01T12:00:01.250Z",
                }
            ],
        )

    def test_without_timestamp(self) -> None:
        [pong] = self.ask({"type": "ping"})
        self.assertIsNone(pong["ping_timestamp"])

    def test_any_timestamp(self) -> None:
        for value in (None, True, 17, -0.5, [1, {"a": []}], {"at": "noon"}, "", "\U0001f600"):
            [pong] = self.ask({"type": "ping", "timestamp": value, "client_info": value})
            self.assertEqual(pong["ping_timestamp"], value)

    def test_id(self) -> None:
        self.assertEqual(
            [pong["id"] for pong in self.ask(*({"type": "ping", "id": i} for i in ("a", 0)))], ["a", 0]
        )


class EchoTests(Case):
    def test_all_fields(self) -> None:
        self.assertEqual(
            self.ask({"type": "echo", "content": "hello", "timestamp": 1, "unknown": [1]}),
            [{"type": "echo_response", "content": "hello", "timestamp": NOW, "echoed_by": "TCP Server"}],
        )

    def test_without_content(self) -> None:
        self.assertEqual(self.ask({"type": "echo"})[0]["content"], "")

    def test_the_same_value_to_the_last_digit(self) -> None:
        for text in (
            b"0.1000",
            b"1e2",
            b"9007199254740993",
            b"3.14159265358979323846",
            b'{"b":1,"a":[ null ]}',
            b"-0",
        ):
            self.peer.send_payload(b'{"type":"echo","content":' + text + b"}")
            [payload] = self.peer.receive_payloads()
            self.assertIn(b'"content":' + text, payload)


class BroadcastTests(Case):
    def test_all_fields(self) -> None:
        other = self.connect()
        [sent] = self.ask({"type": "broadcast", "content": [1, "x"], "timestamp": None, "id": 9})
        self.assertEqual(sent, {"type": "broadcast_sent", "recipients": 1, "timestamp": NOW, "id": 9})
        self.assertEqual(
            other.receive(),
            [{"type": "broadcast", "content": [1, "x"], "from_client": "127.0.0.1:50000", "timestamp": NOW}],
        )

    def test_without_content(self) -> None:
        other = self.connect()
        self.ask({"type": "broadcast"})
        self.assertEqual(other.receive()[0]["content"], "")


class StatsTests(Case):
    def test_all_fields(self) -> None:
        self.server.advance(61.9)
        [stats] = self.ask({"type": "get_stats"})
        self.assertEqual(
            stats.keys(),
            {
                *("type", "connected_clients", "uptime_seconds", "total_messages", "server_start_time"),
                *("current_time", "details", "timestamp"),
            },
        )
        self.assertEqual((stats["connected_clients"], stats["uptime_seconds"]), (1, 61))
        self.assertIs(type(stats["uptime_seconds"]), int)
        self.assertEqual(stats["server_start_time"], NOW)
        self.assertEqual(stats["current_time"], "2024-01-01T12:01:01.900Z")


class OtherTests(Case):
    def test_another_type(self) -> None:
        for message in (
            {"type": "move", "x": 1.5},
            {"x": None},
            {},
            {"type": "welcome"},
            {"type": "broadcast_sent"},
        ):
            [response] = self.ask({**message, "id": 4} if message else {"id": 4})
            original = {**message, "id": 4}
            self.assertEqual(
                response,
                {
                    "type": "response",
                    "original_message": original,
                    "timestamp": NOW,
                    "from_server": True,
                    "id": 4,
                },
            )

    def test_text(self) -> None:
        [echo] = self.ask_raw(b"hello, \xc3\xa9")
        self.assertEqual(
            echo, {"type": "echo", "original_text": "hello, \xe9", "timestamp": NOW, "from_server": True}
        )

    def test_values(self) -> None:
        texts = (b"42", b'"text"', b"[1,2]", b"null", b"true", b"1.50")
        self.assertEqual(
            [answer["original_text"] for answer in self.ask_raw(*texts)], [json.loads(text) for text in texts]
        )

    def test_auth_where_none_is_asked_for(self) -> None:
        """Its fields are never sent back."""
        request = {"type": "auth", "mechanism": "plain", "username": "me", "password": "hunter2", "id": 1}
        self.peer.send(request)
        [payload] = self.peer.receive_payloads()
        error = json.loads(payload)
        self.assertEqual((error["code"], error["id"], error["fatal"]), ("bad_message", 1, False))
        self.assertNotIn(b"hunter2", payload)
        self.assertNotIn(b"me", payload.replace(b"message", b"").replace(b"timestamp", b""))

    def test_wrong_fields(self) -> None:
        for message, where in (
            ({"type": "ping", "id": 1.5}, "$.id"),
            ({"type": "ping", "id": "x" * 129}, "$.id"),
            ({"type": "echo", "id": 2**63}, "$.id"),
            ({"type": 5}, "$.type"),
        ):
            [error] = self.ask(message)
            self.assertEqual((error["type"], error["code"], error["fatal"]), ("error", "bad_message", False))
            self.assertIn(where, error["message"])
            self.assertNotIn("id", error)


class StrictTests(Case):
    strict = True

    def test_another_type(self) -> None:
        errors = self.ask({"type": "move", "id": 1}, {"x": 1}, {})
        self.assertEqual([error["code"] for error in errors], ["unknown_type"] * 3)
        self.assertEqual(errors[0]["id"], 1)
        self.assertIn("move", errors[0]["message"])

    def test_text(self) -> None:
        errors = self.ask_raw(b"hello", b"42", b"[1]", b"null")
        self.assertEqual([error["code"] for error in errors], ["bad_json", *["bad_message"] * 3])

    def test_known_types(self) -> None:
        answers = self.ask({"type": "ping"}, {"type": "echo"}, {"type": "broadcast"}, {"type": "get_stats"})
        self.assertEqual(
            [answer["type"] for answer in answers],
            ["pong", "echo_response", "broadcast_sent", "server_stats"],
        )


class TableTests(SynchronousTestCase):
    """The table of handlers."""

    def test_every_message_has_a_handler(self) -> None:
        """Whatever a payload is, what it is decoded to has a handler."""
        handlers = classic.router.handlers
        codec = Codec([kind for kind in handlers if kind.__struct_config__.tag])
        payloads = [b'{"type":"%b"}' % str(kind.__struct_config__.tag).encode() for kind in handlers]
        messages: list[Message] = codec.decode([*payloads, b"text", b"1", b"{", b"{}", b"", b"\xff"])
        self.assertLessEqual({type(message) for message in messages}, set(handlers))
        # And the other way round: there is none too many.
        self.assertEqual({type(message) for message in messages}, set(handlers))
