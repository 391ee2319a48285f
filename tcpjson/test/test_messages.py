"""The messages by their names, tags and defaults, as docs/protocol.rst has them."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core import messages
from tcpjson.core.messages import Message, RequestId

REQUESTS: dict[type[Message], str] = {
    messages.Ping: "ping",
    messages.Echo: "echo",
    messages.Broadcast: "broadcast",
    messages.GetStats: "get_stats",
    messages.Hello: "hello",
    messages.Auth: "auth",
    messages.HeartbeatPong: "pong",
}

# What the server sends, and the fields that sections 3 to 6, 8 and 9 name.
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
    messages.HelloResponse: ("hello_response", {"compression", "heartbeat", "features"}),
    messages.AuthChallenge: ("auth_challenge", {"data"}),
    messages.AuthResult: ("auth_result", {"status", "user", "data"}),
    messages.HeartbeatPing: ("ping", {"timestamp"}),
    messages.Pong: ("pong", {"ping_timestamp", "pong_timestamp", "client_id"}),
    messages.EchoResponse: ("echo_response", {"content", "timestamp", "echoed_by"}),
    messages.BroadcastSent: ("broadcast_sent", {"recipients", "timestamp"}),
    messages.Relayed: ("broadcast", {"from_client", "from_user", "content", "timestamp"}),
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

    def test_requests_have_the_tags_of_the_protocol(self) -> None:
        self.assertEqual({kind: kind.__struct_config__.tag for kind in REQUESTS}, REQUESTS)
        self.assertEqual({kind.__struct_config__.tag_field for kind in REQUESTS}, {"type"})

    def test_what_is_no_message_has_no_tag(self) -> None:
        """No payload can pretend to be one."""
        for kind in (messages.Custom, messages.Text, messages.Refused):
            self.assertIsNone(kind.__struct_config__.tag)

    def test_answers_have_the_fields_of_the_protocol(self) -> None:
        for kind, (tag, fields) in ANSWERS.items():
            self.assertEqual(kind.__struct_config__.tag, tag)
            self.assertEqual(fields - set(kind.__struct_fields__), set(), tag)

    def test_no_class_is_forgotten(self) -> None:
        """Every message with a type is in one of the tables."""
        kinds = {
            kind
            for kind in vars(messages).values()
            if isinstance(kind, type) and issubclass(kind, Message) and kind.__module__ == messages.__name__
        }
        inner = {Message, messages.Answer, messages.Custom, messages.Text, messages.Refused}
        self.assertEqual(kinds - inner, {*REQUESTS, *ANSWERS})

    def test_constant_fields(self) -> None:
        self.assertEqual(messages.EchoResponse(Raw(b"1")).echoed_by, "TCP Server")
        self.assertIs(messages.Response(Raw(b"1")).from_server, True)
        self.assertIs(messages.TextEcho("a").from_server, True)

    def test_welcome_without_extras(self) -> None:
        """The fields of what is not there: none of a list, null of a time."""
        welcome = messages.Welcome(client_id="c", message="m", server="s/1", max_length=1, limits={})
        self.assertEqual(
            msgspec.to_builtins(welcome),
            {
                "type": "welcome",
                "client_id": "c",
                "message": "m",
                "server": "s/1",
                "max_length": 1,
                "limits": {},
                "protocol": 1,
                "heartbeat": None,
                "compression": (),
                "features": (),
                "auth": (),
            },
        )

    def test_fields_that_are_left_out(self) -> None:
        """What is not known is not said, rather than null."""
        failed = messages.AuthResult(status="authentication_failed")
        self.assertEqual(
            msgspec.to_builtins(failed), {"type": "auth_result", "status": "authentication_failed"}
        )
        relayed = messages.Relayed(content=Raw(b"1"), from_client="c")
        self.assertNotIn(b"from_user", msgspec.json.encode(relayed))
        error = messages.Error(code="internal", message="m", fatal=False)
        self.assertNotIn(b"retry_after", msgspec.json.encode(error))

    def test_no_compression_is_said(self) -> None:
        """Section 5: the one chosen, or null."""
        self.assertEqual(
            msgspec.to_builtins(messages.HelloResponse()),
            {"type": "hello_response", "compression": None, "heartbeat": False, "features": ()},
        )

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


class HelloTests(SynchronousTestCase):
    """`hello` and the answer to a ping, as clients may write them."""

    def test_all_of_it(self) -> None:
        text = b'{"type":"hello","client":"a/1","heartbeat":true,"compression":["zlib","x"],"features":["y"]}'
        hello = msgspec.json.decode(text, type=messages.Hello)
        self.assertEqual(
            hello,
            messages.Hello(client="a/1", heartbeat=True, compression=("zlib", "x"), features=("y",)),
        )

    def test_nothing_of_it(self) -> None:
        hello = msgspec.json.decode(b'{"type":"hello"}', type=messages.Hello)
        self.assertEqual((hello.client, hello.heartbeat), ("", False))
        self.assertEqual((hello.compression, hello.features), ((), ()))

    def test_wrong_fields(self) -> None:
        for name, value in (
            ("client", 1),
            ("client", None),
            ("heartbeat", 1),
            ("heartbeat", "true"),
            ("compression", "zlib"),
            ("compression", [1]),
            ("features", {}),
            ("features", [None]),
        ):
            error = self.assertRaises(
                msgspec.ValidationError, msgspec.convert, {"type": "hello", name: value}, messages.Hello
            )
            self.assertIn(f"$.{name}", str(error))

    def test_any_pong(self) -> None:
        for value in (b"null", b"[1]", b'"2024-01-01T12:00:00.000Z"'):
            text = b'{"type":"pong","ping_timestamp":%b}' % value
            self.assertEqual(msgspec.json.decode(text, type=messages.HeartbeatPong), messages.HeartbeatPong())


class AuthTests(SynchronousTestCase):
    """`auth`, which holds secrets."""

    FIELDS = ("mechanism", "username", "password", "token", "data")

    def test_fields(self) -> None:
        given = {name: f"the {name}" for name in self.FIELDS}
        auth = msgspec.convert({"type": "auth", **given}, messages.Auth)
        self.assertEqual({name: getattr(auth, name) for name in self.FIELDS}, given)

    def test_fields_left_out(self) -> None:
        """An empty password is not none."""
        auth = msgspec.convert({"type": "auth", "mechanism": "plain", "password": ""}, messages.Auth)
        self.assertEqual((auth.username, auth.password, auth.token, auth.data), (UNSET, "", UNSET, UNSET))
        self.assertIs(msgspec.convert({"type": "auth"}, messages.Auth).mechanism, UNSET)

    def test_errors_do_not_show_values(self) -> None:
        for name in self.FIELDS:
            message = {"type": "auth", "mechanism": "plain", name: ["s3cret"]}
            error = self.assertRaises(msgspec.ValidationError, msgspec.convert, message, messages.Auth)
            self.assertIn(f"$.{name}", str(error))
            self.assertNotIn("s3cret", str(error))

    def test_it_is_not_printed(self) -> None:
        """Not by itself, not within something else, and not by a failure that prints what it holds."""
        auth = messages.Auth(
            mechanism="plain", username="s3cret", password="s3cret", token="s3cret", data="s3cret"
        )
        for text in (repr(auth), str(auth), f"{auth}", f"{[auth]}", f"{auth!r}"):
            self.assertNotIn("s3cret", text)
