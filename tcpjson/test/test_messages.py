"""The messages by their names, tags and defaults, as docs/protocol.rst has them."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core import messages
from tcpjson.core.messages import Message, RequestId

REQUESTS = {"ping", "echo", "broadcast", "get_stats", "auth"}

# What the server sends, and the fields that sections 3, 4 and 9 name.
ANSWERS: dict[type[messages.Answer], tuple[str, set[str]]] = {
    messages.Welcome: (
        "welcome",
        {
            "client_id",
            "message",
            "timestamp",
            "protocol",
            "server",
            "max_length",
            "heartbeat",
            "compression",
            "features",
            "auth",
            "limits",
        },
    ),
    messages.Pong: ("pong", {"ping_timestamp", "pong_timestamp", "client_id"}),
    messages.EchoResponse: ("echo_response", {"content", "timestamp", "echoed_by"}),
    messages.BroadcastSent: ("broadcast_sent", {"recipients", "timestamp"}),
    messages.Relayed: ("broadcast", {"from_client", "content", "timestamp"}),
    messages.ServerStats: (
        "server_stats",
        {
            "connected_clients",
            "uptime_seconds",
            "total_messages",
            "server_start_time",
            "current_time",
            "details",
        },
    ),
    messages.Response: ("response", {"original_message", "timestamp", "from_server"}),
    messages.TextEcho: ("echo", {"original_text", "timestamp", "from_server"}),
    messages.Error: ("error", {"code", "message", "fatal", "timestamp", "id", "retry_after"}),
}


class MessageTests(SynchronousTestCase):
    """The classes of the protocol."""

    def test_requests_have_the_tags_of_section_3(self) -> None:
        requests = (messages.Ping, messages.Echo, messages.Broadcast, messages.GetStats, messages.Auth)
        self.assertEqual({kind.__struct_config__.tag for kind in requests}, REQUESTS)
        self.assertEqual({kind.__struct_config__.tag_field for kind in requests}, {"type"})

    def test_what_is_no_message_has_no_tag(self) -> None:
        """No payload can pretend to be one."""
        for kind in (messages.Custom, messages.Text, messages.Refused):
            self.assertIsNone(kind.__struct_config__.tag)

    def test_answers_have_the_fields_of_the_protocol(self) -> None:
        for kind, (tag, fields) in ANSWERS.items():
            self.assertEqual(kind.__struct_config__.tag, tag)
            self.assertEqual(fields - set(kind.__struct_fields__), set(), tag)

    def test_constant_fields(self) -> None:
        self.assertEqual(messages.EchoResponse(Raw(b"1")).echoed_by, "TCP Server")
        self.assertIs(messages.Response(Raw(b"1")).from_server, True)
        self.assertIs(messages.TextEcho("a").from_server, True)

    def test_a_request_has_no_id_unless_it_says_one(self) -> None:
        self.assertIs(messages.Ping().id, UNSET)

    def test_a_users_message(self) -> None:
        class Move(Message, tag="move"):
            x: int

        decoded = msgspec.json.decode(b'{"type":"move","x":1,"id":"a","more":[]}', type=Move)
        self.assertEqual((decoded.x, decoded.id), (1, "a"))

    def test_ids(self) -> None:
        """A string of at most 128 characters, or a signed 64-bit integer (section 2)."""
        for good in ("", "x" * 128, "é" * 128, 0, 2**63 - 1, -(2**63)):
            self.assertEqual(msgspec.convert(good, RequestId), good)
        bad: object
        for bad in ("x" * 129, 2**63, -(2**63) - 1, 1.5, None, True, []):
            self.assertRaises(msgspec.ValidationError, msgspec.convert, bad, RequestId)
