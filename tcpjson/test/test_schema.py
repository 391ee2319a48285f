"""The schema of all messages: what is in it, what fits it, and what it says of handlers."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import io
import json
import os
import sys
import tempfile
import typing
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar

import msgspec
from hypothesis import find
from hypothesis import strategies as st
from jsonschema import Draft7Validator, Draft202012Validator  # type: ignore[import-untyped]  # it has no types
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Forbidden, ProtocolError, Router
from tcpjson.core import messages
from tcpjson.core.codec import Codec
from tcpjson.core.errors import CODES, BadMessage
from tcpjson.core.framing import FrameReader, FrameTooLong
from tcpjson.core.messages import (
    Answer,
    Auth,
    Broadcast,
    Custom,
    Echo,
    GetStats,
    HeartbeatPong,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    ServerStats,
    Text,
)
from tcpjson.schema import asyncapi, builtin, json_schema
from tcpjson.schema.program import main
from tcpjson.test.hypo import given
from tcpjson.test.test_vectors import MAX_LENGTH, VECTORS, pair, send, started
from tcpjson.testing import MemoryServer
from tcpjson.vectors import strict_json

Json = dict[str, Any]

TAGGED = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type)
    and issubclass(kind, Message)
    and kind.__struct_config__.tag
    and kind not in (Message, Answer)
]


class Place(Struct):
    """Where something is."""

    x: Annotated[int, Meta(ge=0, le=9, description="From the left.")]
    y: int = 0


class Move(Message, tag="move"):
    """Moves a piece."""

    to: Place
    by: Annotated[str, Meta(min_length=1)] = "hand"


class Inner(Struct):
    content: Raw = Raw(b"1")


class client(Struct):
    x: int


class Pair(NamedTuple):
    a: int
    b: str


class Moved(Message, tag="move_ok"):
    to: Place
    at: float = 0.0
    why: str | UnsetType = UNSET


def routed(*handlers: Callable[..., Any]) -> Router:
    """A router with handlers."""
    router = Router()
    for handler in handlers:
        router.handler(handler)
    return router


def handling(kind: type[Message], answer: Any = None) -> Callable[..., Any]:
    """A handler of a class that says that it returns something."""

    def handle(session: Any, message: Any) -> Any:
        raise NotImplementedError

    handle.__annotations__.update({"message": kind, "return": answer})
    return handle


def returning(annotation: Any) -> Router:
    """A router with a handler of `Move` that says that it returns something."""
    return routed(handling(Move, annotation))


def validator(document: Json, name: str) -> Any:
    """What validates against a definition of a JSON Schema."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": document["$defs"]})


def async_validator(document: Json, name: str) -> Any:
    """What validates against a payload of an AsyncAPI document."""
    payload = document["components"]["messages"][name]["payload"]
    return Draft7Validator({"allOf": [payload], "components": document["components"]})


BUILT_IN = json_schema()
CLIENT = validator(BUILT_IN, "client")
SERVER = validator(BUILT_IN, "server")


def pointed(document: Json) -> Iterator[str]:
    """All references in a document."""
    parts: list[Any] = [document]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            parts += part.values()
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
        elif isinstance(part, list):
            parts += part


def found(document: Json, reference: str) -> Any:
    """What a reference leads to. Raises `KeyError`."""
    part: Any = document
    for name in reference.removeprefix("#/").split("/"):
        part = part[name]
    return part


class JSONSchemaTests(SynchronousTestCase):
    """The document itself."""

    def test_it_is_a_schema(self) -> None:
        self.assertEqual(BUILT_IN["$schema"], Draft202012Validator.META_SCHEMA["$id"])
        for document in (BUILT_IN, json_schema([routed(moves)])):
            Draft202012Validator.check_schema(document)
            for reference in pointed(document):
                found(document, reference)

    def test_every_message_is_there(self) -> None:
        groups = {
            name: {
                reference["$ref"].removeprefix("#/$defs/") for reference in BUILT_IN["$defs"][name]["anyOf"]
            }
            for name in ("client", "server")
        }
        answers = {kind for kind in TAGGED if issubclass(kind, Answer)}
        self.assertEqual(
            groups,
            {
                "client": {f"client.{kind.__struct_config__.tag}" for kind in TAGGED if kind not in answers}
                | {"client.any_other"},
                "server": {f"server.{kind.__struct_config__.tag}" for kind in answers},
            },
        )
        self.assertEqual(set(BUILT_IN["$defs"]) - {"client", "server"}, groups["client"] | groups["server"])

    def test_all_is_described(self) -> None:
        for name, schema in BUILT_IN["$defs"].items():
            self.assertTrue(schema["description"], name)
            for field, part in schema.get("properties", {}).items():
                if field != "type":
                    self.assertTrue(part.get("description"), f"{name}: {field}")

    def test_the_type_is_the_title(self) -> None:
        for name, schema in BUILT_IN["$defs"].items():
            if "type" in schema.get("properties", {}) and "enum" in schema["properties"]["type"]:
                self.assertEqual(schema["properties"]["type"]["enum"], [schema["title"]], name)

    def test_only_fields_that_exist_are_described(self) -> None:
        """All but those of which the protocol says that nobody looks at them."""
        loose = {
            (row.kind, name)
            for row in (*builtin.CLIENT, *builtin.SERVER, builtin.error())
            for name in row.notes
            if name not in row.kind.__struct_fields__
        }
        self.assertEqual(loose, {(Ping, "client_info"), (HeartbeatPong, "ping_timestamp")})

    def test_the_same_each_time(self) -> None:
        self.assertEqual(json.dumps(json_schema()), json.dumps(BUILT_IN))

    def test_defaults(self) -> None:
        definitions = BUILT_IN["$defs"]
        self.assertEqual(definitions["client.echo"]["properties"]["content"]["default"], "")
        self.assertEqual(definitions["client.hello"]["properties"]["compression"]["default"], [])
        self.assertNotIn("default", definitions["client.auth"]["properties"]["data"])

    def test_codes_of_the_application(self) -> None:
        """Known at the time when the schema is made; others remain possible."""

        class Taken(ProtocolError):
            code = "taken"
            text = "somebody was here"

        try:
            schema = json_schema()["$defs"]["server.error"]["properties"]["code"]
        finally:
            del CODES["taken"]
        self.assertEqual(schema["anyOf"], [{"enum": [*CODES, "taken"]}, {"type": "string"}])


class FitTests(SynchronousTestCase):
    """What fits the built-in schema."""

    def _assert_fits(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            errors = [error.message for error in SERVER.iter_errors(strict_json(payload))]
            self.assertEqual(errors, [], payload)

    def test_all_that_the_server_sends(self) -> None:
        """To all vectors."""
        types = set()
        for vector in VECTORS:
            server = started(vector)
            second, sender = pair(server, vector)
            send(server, sender, vector.pieces(MAX_LENGTH))
            payloads = sender.receive_payloads() + second.receive_payloads()
            server.stop()
            self._assert_fits(payloads)
            types |= {json.loads(payload)["type"] for payload in payloads}
        self.assertEqual(
            types,
            {
                "auth_result",
                "broadcast",
                "broadcast_sent",
                "echo",
                "echo_response",
                "error",
                "hello_response",
                "pong",
                "response",
                "server_stats",
            },
        )

    def test_what_comes_by_itself(self) -> None:
        server = MemoryServer()
        peer = server.connect()
        peer.send({"type": "hello", "heartbeat": True})
        server.advance(40)
        payloads = peer.receive_payloads()
        self._assert_fits(payloads)
        types = [json.loads(payload)["type"] for payload in payloads]
        self.assertEqual(types, ["welcome", "hello_response", "ping", "error"])

    def test_what_no_server_may_send(self) -> None:
        time = "2024-01-01T12:00:00.000Z"
        pong: Json = {
            "type": "pong",
            "ping_timestamp": None,
            "pong_timestamp": time,
            "client_id": "x",
            "timestamp": time,
        }
        error = {"type": "error", "code": "x", "message": "", "fatal": False, "timestamp": time}
        sent = {"type": "broadcast_sent", "recipients": 0, "timestamp": time}
        for good in (
            pong,
            error,
            sent,
            {**pong, "id": "x"},
            {**pong, "more": 1},
            {**error, "retry_after": 0.5},
        ):
            self.assertTrue(SERVER.is_valid(good), good)
        for bad in (
            {**pong, "timestamp": "2024-01-01T12:00:00Z"},
            {**pong, "pong_timestamp": 1},
            {**pong, "id": "x" * 129},
            {**pong, "id": 2**63},
            {**pong, "id": 1.5},
            {**pong, "type": "pongs"},
            {**pong, "type": None},
            {**error, "code": 5},
            {**error, "fatal": 0},
            {**error, "retry_after": -1},
            {**sent, "recipients": -1},
            {**sent, "recipients": True},
            *({name: value for name, value in pong.items() if name != left_out} for left_out in pong),
            *({name: value for name, value in error.items() if name != left_out} for left_out in error),
            {},
            [],
            "pong",
        ):
            self.assertFalse(SERVER.is_valid(bad), bad)

    def test_requests_of_the_vectors(self) -> None:
        """Each object fits exactly where the server does not say `bad_message`; to JSON Schema 1.0 is 1."""
        counts = {True: 0, False: 0}
        for vector in VECTORS:
            reader = FrameReader()
            for piece in vector.pieces(MAX_LENGTH):
                reader.feed(piece)
            with contextlib.suppress(FrameTooLong):
                for payload in reader.take(1000, MAX_LENGTH):
                    with contextlib.suppress(ValueError):
                        value = strict_json(payload)
                        if isinstance(value, dict) and not isinstance(value.get("id"), float):
                            fits = accepted(REQUESTS, payload)
                            self.assertEqual(CLIENT.is_valid(value), fits, payload)
                            counts[fits] += 1
        self.assertGreater(min(counts.values()), 5, counts)

    @given(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from([*(kind.__struct_config__.tag for kind in TAGGED), "x", None, 1]),
                "id": st.one_of(
                    st.none(), st.text(max_size=3), st.sampled_from(["x" * 128, "x" * 129]), st.integers()
                ),
                "timestamp": st.none() | st.integers() | st.text(max_size=2),
                **{
                    name: st.one_of(
                        st.none(), st.booleans(), st.text(max_size=2), st.lists(st.text(max_size=1))
                    )
                    for name in (
                        "client",
                        "heartbeat",
                        "compression",
                        "mechanism",
                        "data",
                        "content",
                        "client_info",
                    )
                },
            },
        ),
        examples=400,
    )
    def test_requests(self, message: Json) -> None:
        fits = accepted(REQUESTS, msgspec.json.encode(message)) if in_range(message) else None
        if fits is not None:
            self.assertEqual(CLIENT.is_valid(message), fits)


def in_range(message: Json) -> bool:
    """Whether all its integers are such as msgspec writes."""
    return all(not isinstance(value, int) or -(2**63) <= value < 2**64 for value in message.values())


def accepted(codec: Codec, payload: bytes) -> bool:
    """Whether a server takes a payload of one object."""
    [message] = codec.decode([payload])
    return not (isinstance(message, Refused) and isinstance(message.error, BadMessage))


REQUESTS = Codec([Hello, Auth, Ping, Echo, Broadcast, GetStats, HeartbeatPong])


def moves(session: Any, message: Move) -> Moved | Forbidden:
    """Moves a piece, if it may."""
    return Forbidden()


class HandlerTests(SynchronousTestCase):
    """The messages of an application."""

    def test_added(self) -> None:
        document = json_schema([routed(moves)])
        schema = document["$defs"]["client.move"]
        self.assertEqual((schema["title"], schema["description"]), ("move", "Moves a piece."))
        self.assertEqual(document["$defs"]["Place"]["properties"]["x"]["maximum"], 9)
        client, server = validator(document, "client"), validator(document, "server")
        for good in (
            {"type": "move", "to": {"x": 1}},
            {"type": "move", "to": {"x": 9, "y": -1, "z": 1}, "by": "foot", "id": 5, "timestamp": {}},
        ):
            self.assertTrue(client.is_valid(good), good)
        for bad in (
            {"type": "move"},
            {"type": "move", "to": {"x": 10}},
            {"type": "move", "to": {"x": 1}, "by": ""},
            {"type": "move", "to": {"x": 1}, "id": 0.5},
        ):
            self.assertFalse(client.is_valid(bad), bad)
        moved: Json = {
            "type": "move_ok",
            "to": {"x": 1, "y": 0},
            "at": 1.5,
            "timestamp": "2024-01-01T12:00:00.000Z",
        }
        for good in (moved, {**moved, "why": "so"}, {**moved, "id": 1}, {"type": "moved", "x": 1}):
            self.assertTrue(server.is_valid(good), good)
        for bad in (
            {**moved, "why": 1},
            {**moved, "timestamp": 1},
            {"type": "error"},
            {"x": 1},
            *({name: value for name, value in moved.items() if name != left_out} for left_out in moved),
        ):
            self.assertFalse(server.is_valid(bad), bad)

    def test_what_a_server_sends_fits(self) -> None:
        """Of the classes that handlers return: what is stamped, and what is left out."""

        class Bare(Message, tag="bare", forbid_unknown_fields=True):
            pass

        class Lean(Message, tag="lean", omit_defaults=True):
            a: int = 0
            b: tuple[int, ...] = ()

        class Timed(Message, tag="timed"):
            timestamp: int
            ts: str = msgspec.field(default="", name="t s")

        class Ask(Message, tag="ask"):
            n: int

        answers: list[Message] = [Bare(), Lean(), Lean(a=1, b=(2,)), Timed(timestamp=5)]

        def ask(session: Any, message: Any) -> Any:
            return answers[message.n]

        ask.__annotations__.update({"message": Ask, "return": Bare | Lean | Timed})
        router = routed(ask)
        document = json_schema([router])
        peer = MemoryServer(routers=[router]).connect()
        peer.receive()
        for number, answer in enumerate(answers):
            peer.send({"type": "ask", "n": number}, {"type": "ask", "n": number, "id": "x"})
            for message in peer.receive():
                schema = validator(document, f"server.{answer.__struct_config__.tag}")
                self.assertEqual([error.message for error in schema.iter_errors(message)], [], message)
        self.assertFalse(validator(document, "server.bare").is_valid({**peer_message("bare"), "more": 1}))
        self.assertTrue(validator(document, "server.lean").is_valid(peer_message("lean")))

    def test_what_is_forbidden(self) -> None:
        class Strict(Message, tag="strict", forbid_unknown_fields=True):
            content: Raw = Raw(b"[1.50]")

        document = json_schema([routed(handling(Strict))])
        client = validator(document, "client")
        self.assertTrue(client.is_valid({"type": "strict", "content": {}, "id": 1}))
        for name in ("timestamp", "more"):
            message = {"type": "strict", name: 1}
            self.assertFalse(client.is_valid(message))
            self.assertFalse(accepted(Codec([Strict]), json.dumps(message).encode()))
        content = document["$defs"]["client.strict"]["properties"]["content"]
        self.assertEqual(content, {"default": [1.5]})

    def test_its_own_fields_are_its_own(self) -> None:
        """Their descriptions, and what they take."""

        class Own(Message, tag="own"):
            timestamp: Annotated[int, Meta(description="Ticks.")]
            content: str = ""

        schema = json_schema([routed(handling(Own))])["$defs"]["client.own"]
        self.assertEqual(schema["properties"]["timestamp"], {"description": "Ticks.", "type": "integer"})
        self.assertEqual(schema["properties"]["content"], {"type": "string", "default": ""})
        self.assertNotIn("description", schema)

    def test_taken_over(self) -> None:
        class Shout(Message, tag="broadcast"):
            content: str

        class Heard(Message, tag="heard"):
            pass

        routers = [routed(handling(Shout, Heard)), routed(handling(Echo, Heard), handling(Ping))]
        definitions = json_schema(routers)["$defs"]
        self.assertEqual(definitions["client.broadcast"]["properties"]["content"], {"type": "string"})
        self.assertIn("client.echo", definitions)
        self.assertIn("server.heard", definitions)
        for gone in (
            "server.broadcast_sent",
            "server.broadcast",
            "server.echo_response",
            "client.broadcast_2",
        ):
            self.assertNotIn(gone, definitions)
        # Before an authentication it is the protocol's.
        self.assertIn("server.pong", definitions)
        self.assertNotIn("server.broadcast", json_schema([routed(handling(Broadcast))])["$defs"])

    def test_other_objects_and_text_taken_over(self) -> None:
        document = asyncapi([routed(handling(Custom, Moved), handling(Text))])
        self.assertEqual(replies(document, "client.any_other"), ["server.move_ok", "server.error"])
        self.assertEqual(replies(document, "client.plain_text"), ["server.error"])
        for gone in ("server.response", "server.echo"):
            self.assertNotIn(gone, document["components"]["messages"])

    def test_one_type_twice(self) -> None:
        """What is not the same in all places has a name of its own; so have types that are written alike."""

        class OtherPong(Message, tag="pong"):
            x: int

        class A(Message, tag="a/b"):
            pass

        class B(Message, tag="a b"):
            y: int

        router = routed(handling(OtherPong, A), handling(A, OtherPong), handling(B))
        definitions = json_schema([router])["$defs"]
        for name in ("client.pong", "server.pong"):
            self.assertNotIn("x", definitions[name]["properties"])
            self.assertIn("x", definitions[f"{name}_2"]["properties"])
        self.assertEqual(definitions["client.a_b"]["title"], "a/b")
        self.assertEqual(definitions["client.a_b_2"]["title"], "a b")
        self.assertEqual(replies(asyncapi([router]), "client.a_b"), ["server.pong_2", "server.error"])

    def test_no_tag(self) -> None:
        """The type is the name of the class then."""

        class Named(Message):
            x: int

        self.assertEqual(
            set(json_schema([routed(handling(Named))])["$defs"]) - set(BUILT_IN["$defs"]),
            {"client.Named", "server.any_other"},
        )

    def _assert_refused(self, pattern: str, *routers: Router) -> None:
        for make in (json_schema, asyncapi):
            with self.assertRaisesRegex((ValueError, TypeError), pattern):
                make(routers)

    def test_the_rules_of_a_server(self) -> None:
        class MyHello(Message, tag="hello"):
            pass

        class Strange(Message, tag="strange"):
            c: complex

        for kind, pattern in (
            (MyHello, "hello belongs to the protocol"),
            (Strange, r"Strange\.c: .*complex"),
        ):
            router = Router()
            router.add(kind, moves)
            self._assert_refused(pattern, router)
        self._assert_refused("move has a handler already", routed(moves), routed(moves))

    def test_what_cannot_be_described(self) -> None:
        class BadDefault(Message, tag="x"):
            fine: int = 0
            inner: Inner | None = None

        class BadRaw(Message, tag="x"):
            content: Raw = Raw(b"{")

        class Opaque(Message, tag="x"):
            c: complex

        class Lost(Message, tag="x"):
            c: Annotated[int, "mine"]

        Lost.__annotations__["c"] = "Nowhere"

        class NotANumber(Message, tag="x"):
            c: float = float("nan")

        class Grouped(Message, tag="x"):
            c: client

        requests: list[tuple[type[Message], str]] = [
            (BadDefault, r"^BadDefault\.inner: no schema of it: .*Raw"),
            (BadRaw, r"^BadRaw\.content: no schema of it: "),
            (NotANumber, r"^NotANumber\.c: no schema of it: "),
        ]
        for kind, pattern in requests:
            router = Router()
            router.add(kind, moves)
            self._assert_refused(pattern, router)
        answers: list[tuple[type[Message], str]] = [
            (Opaque, r"^Opaque\.c: no schema of it: no JSON value is a complex$"),
            (Lost, "^Lost: name 'Nowhere' is not defined"),
        ]
        for kind, pattern in answers:
            self._assert_refused(pattern, returning(kind))
        with self.assertRaisesRegex(ValueError, "must not be called client"):
            json_schema([returning(Grouped)])

    def test_a_class_with_the_name_of_a_message(self) -> None:
        for name in ("server.welcome", "client.odd"):
            namesake = msgspec.defstruct(name, [("y", int)])
            kind: Any = msgspec.defstruct("Odd", [("x", namesake)], bases=(Message,), tag="odd")
            pattern = f"^a class of a field must not be called {name}, as a message is$"
            self._assert_refused(pattern, routed(handling(kind)))

    def test_decimals(self) -> None:
        """They come as texts or as numbers."""

        class Price(Message, tag="price"):
            euros: Decimal

        router = routed(handling(Price))
        client = validator(json_schema([router]), "client")
        for value, fits in (
            ("1.50", True),
            (1.5, True),
            (2, True),
            (None, False),
            ([], False),
            (True, False),
        ):
            message: Json = {"type": "price", "euros": value}
            self.assertEqual(client.is_valid(message), fits, value)
            self.assertEqual(accepted(Codec([Price]), json.dumps(message).encode()), fits, value)

    def test_any_value(self) -> None:
        class Free(Message, tag="free"):
            a: object
            b: Any
            c: Raw
            d: list[object]

        definition = validator(json_schema([returning(Free)]), "server.free")
        values: list[Any] = [None, 1, "x", {"y": []}]
        for value in values:
            message = {**peer_message("free"), "a": value, "b": value, "c": value, "d": [value]}
            self.assertTrue(definition.is_valid(message))
            self.assertFalse(definition.is_valid({**message, "d": value}))


def peer_message(kind: str) -> Json:
    """A message as a server stamps it."""
    return {"type": kind, "timestamp": "2024-01-01T12:00:00.000Z"}


def replies(document: Json, name: str) -> list[str]:
    """The names of what a message is answered with."""
    return [
        reference["$ref"].removeprefix("#/channels/connection/messages/")
        for reference in document["operations"][name]["reply"]["messages"]
    ]


Kind = TypeVar("Kind")


class Alias(Generic[Kind]):
    """What a `type` statement makes."""

    __value__ = Moved | None


class AnswerTests(SynchronousTestCase):
    """What handlers return, by their annotations."""

    def _replies(self, router: Router) -> list[str]:
        names = replies(asyncapi([router]), "client.move")
        self.assertEqual(names.pop(), "server.error")
        return names

    def test_annotations(self) -> None:
        for annotation, expected in (
            (Moved, ["server.move_ok"]),
            ("Moved", ["server.move_ok"]),
            (Moved | None, ["server.move_ok"]),
            (Optional[Moved], ["server.move_ok"]),  # noqa: UP045  # as others write it
            (Moved | Pong | Forbidden, ["server.move_ok", "server.pong"]),
            (Awaitable[Moved], ["server.move_ok"]),
            (Awaitable["Moved"], ["server.move_ok"]),
            (Deferred[Moved | None], ["server.move_ok"]),
            (Coroutine[Pong, Any, Moved], ["server.move_ok"]),
            (Generator[Deferred[Pong], Any, Moved], ["server.move_ok"]),
            (Annotated[Moved, "mine"], ["server.move_ok"]),
            (Alias, ["server.move_ok"]),
            (ServerStats, ["server.server_stats"]),
            (None, []),
            ("None", []),
            (ProtocolError, []),
            (Moved | dict[str, Any], ["server.move_ok", "server.any_other"]),
            (dict[str, Moved], ["server.any_other"]),
            (Message, ["server.any_other"]),
            (Any, ["server.any_other"]),
            (Awaitable, ["server.any_other"]),
            (typing.Awaitable, ["server.any_other"]),
            (Moved | Awaitable[Moved], ["server.move_ok"]),
            (5, ["server.any_other"]),
        ):
            self.assertEqual(self._replies(returning(annotation)), expected, annotation)

    def test_kinds_of_functions(self) -> None:
        async def coroutine(session: Any, message: Move) -> Moved:
            raise NotImplementedError

        @inlineCallbacks
        def generator(session: Any, message: Move) -> Generator[Deferred[Any], Any, Moved]:
            yield Deferred()
            raise NotImplementedError

        class Game:
            def method(self, session: Any, message: Move) -> Moved:
                raise NotImplementedError

        def more(extra: object, session: Any, message: Move) -> Moved:
            raise NotImplementedError

        def silent(session, message):  # type: ignore[no-untyped-def]  # as many are
            raise NotImplementedError

        told: list[Callable[..., Any]] = [coroutine, generator, Game().method, functools.partial(more, 1)]
        untold: list[Callable[..., Any]] = [silent, min]
        for handler in told:
            router = Router()
            router.add(Move, handler)
            self.assertEqual(self._replies(router), ["server.move_ok"], handler)
        for handler in untold:
            router = Router()
            router.add(Move, handler)
            self.assertEqual(self._replies(router), ["server.any_other"], handler)

    def test_what_no_answer_can_be(self) -> None:
        class Rows(Message, tag="rows", array_like=True):
            x: int

        class Numbered(Message, tag=7):
            x: int

        for kind in (Rows, Numbered):
            self.assertEqual(self._replies(returning(kind)), ["server.any_other"])

    def test_not_to_be_found(self) -> None:
        for annotation in ("Nowhere", "Deferred['Nowhere']", "1 +"):
            with self.assertRaisesRegex(TypeError, r"handle: what it returns: "):
                asyncapi([returning(annotation)])


class AsyncAPITests(SynchronousTestCase):
    """The AsyncAPI document, beyond what its own schema says; `tests.test_schema` has that."""

    def test_references(self) -> None:
        for routers in ([], [routed(moves)]):
            document = asyncapi(routers)
            for reference in pointed(document):
                found(document, reference)
            self.assertEqual(
                set(document["channels"]["connection"]["messages"]), set(document["components"]["messages"])
            )

    def test_the_schemas_are_those_of_the_json_schema(self) -> None:
        names = set(json_schema([routed(moves)])["$defs"]) - {"client", "server"}
        self.assertEqual(set(asyncapi([routed(moves)])["components"]["schemas"]), names)

    def test_schemas(self) -> None:
        for name, schema in asyncapi([routed(moves)])["components"]["schemas"].items():
            Draft7Validator.check_schema(schema)
            self.assertNotIn("$defs", json.dumps(schema), name)

    def test_operations(self) -> None:
        operations = asyncapi()["operations"]
        self.assertEqual(
            {name: replies(asyncapi(), name) for name in operations if "reply" in operations[name]},
            {
                "client.hello": ["server.hello_response", "server.error"],
                "client.auth": ["server.auth_challenge", "server.auth_result", "server.error"],
                "client.ping": ["server.pong", "server.error"],
                "client.echo": ["server.echo_response", "server.error"],
                "client.broadcast": ["server.broadcast_sent", "server.error"],
                "client.get_stats": ["server.server_stats", "server.error"],
                "client.any_other": ["server.response", "server.error"],
                "client.plain_text": ["server.echo", "server.error"],
                "server.ping": ["client.pong"],
            },
        )
        self.assertEqual(
            [name for name, operation in operations.items() if operation["action"] == "send"],
            ["server.welcome", "server.ping", "server.broadcast", "server.error"],
        )
        for name, operation in operations.items():
            self.assertEqual(operation["action"], "receive" if name.startswith("client.") else "send")
            self.assertEqual(operation["messages"], [{"$ref": f"#/channels/connection/messages/{name}"}])

    def test_all_is_sent_or_received(self) -> None:
        document = asyncapi([routed(moves)])
        used = set(pointed(document["operations"])) - {"#/channels/connection"}
        prefix = "#/channels/connection/messages/"
        self.assertEqual(used, {f"{prefix}{name}" for name in document["channels"]["connection"]["messages"]})

    def test_a_handler_says_what_it_does(self) -> None:
        document = asyncapi([routed(moves)])
        self.assertEqual(document["operations"]["client.move"]["description"], "Moves a piece, if it may.")
        self.assertEqual(document["components"]["messages"]["client.move"]["description"], "Moves a piece.")
        self.assertNotIn("description", document["components"]["messages"]["server.move_ok"])

    def test_what_is_called_may_be_no_function(self) -> None:
        """What its class says is nothing about the message."""
        router = Router()
        router.add(Move, functools.partial(moves))
        self.assertNotIn("description", asyncapi([router])["operations"]["client.move"])

    def test_each_is_its_callers_own(self) -> None:
        asyncapi()["servers"]["tcp"].clear()
        asyncapi()["components"]["securitySchemes"]["plain"].clear()
        self.assertTrue(asyncapi()["servers"]["tcp"])
        self.assertTrue(asyncapi()["components"]["securitySchemes"]["plain"])

    def test_text_is_no_json(self) -> None:
        messages = asyncapi()["components"]["messages"]
        self.assertEqual(messages["client.plain_text"]["contentType"], "text/plain")
        self.assertNotIn("correlationId", messages["client.plain_text"])
        self.assertIn("correlationId", messages["client.echo"])

    def test_tuples_and_neighbours_of_references(self) -> None:
        """Which draft 7 reads otherwise."""

        class Old(Message, tag="old"):
            pair: tuple[int, str]
            named: Pair
            place: Annotated[Place, Meta(extra_json_schema={"minProperties": 2})]

            pairs: list[tuple[int, str]] | None

        document = asyncapi([returning(Old)])
        good = {
            **peer_message("old"),
            "pair": [1, "x"],
            "pairs": [[1, "x"]],
            "named": [1, "x"],
            "place": {"x": 1, "y": 2},
        }
        schema = async_validator(document, "server.old")
        self.assertTrue(schema.is_valid(good))
        for name, value in (
            ("pair", [1, 2]),
            ("pair", [1]),
            ("pair", [1, "x", 1]),
            ("pairs", [[1, 2]]),
            ("pairs", [[1, "x", 1]]),
            ("named", ["x", 1]),
            ("place", {"x": 1}),
            ("place", {"x": "1", "y": 2}),
        ):
            self.assertFalse(schema.is_valid({**good, name: value}), (name, value))


class Colour(enum.Enum):
    """A colour."""

    RED = "red"
    BLUE = "blue"


class Left(Struct, tag="left"):
    n: Annotated[int, Meta(ge=0)]


class Right(Struct, tag="right", forbid_unknown_fields=True):
    s: str = ""


# Types of fields, and values near to what they take. Left out are those whose texts msgspec reads and JSON
# Schema does not (times, decimals, base64, numbers as keys), and sets, which must not repeat a value in the
# schema alone.
INTEGERS = st.integers(-3, 3)
TEXTS = st.text("ab", max_size=4)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, st.sampled_from([0.5, -1.5]), TEXTS)
FIELDS: tuple[tuple[Any, st.SearchStrategy[Any]], ...] = (
    (int, INTEGERS),
    (Annotated[int, Meta(ge=-1, lt=2)], INTEGERS),
    (Annotated[int, Meta(gt=-1, le=2, multiple_of=2)], INTEGERS),
    (float, st.sampled_from([0.5, 2, -1])),
    (Annotated[float, Meta(gt=0.5)], st.sampled_from([0.5, 0.75, 2])),
    (bool, st.booleans()),
    (str, TEXTS),
    (Annotated[str, Meta(min_length=1, max_length=2)], TEXTS),
    (Annotated[str, Meta(pattern="^a+b?$")], TEXTS),
    (Literal["a", "b"] | None, st.sampled_from(["a", "b", "c", None])),
    (Literal[1, 2], st.sampled_from([0, 1, 2])),
    (Colour, st.sampled_from(["red", "green"])),
    (int | str | None, SCALARS),
    (list[int], st.lists(INTEGERS, max_size=3)),
    (Annotated[list[str | None], Meta(min_length=1, max_length=2)], st.lists(TEXTS | st.none(), max_size=3)),
    (tuple[int, str], st.tuples(INTEGERS, TEXTS).map(list)),
    (tuple[int, ...], st.lists(INTEGERS, max_size=2)),
    (dict[str, int], st.dictionaries(TEXTS, INTEGERS, max_size=2)),
    (
        Annotated[dict[Annotated[str, Meta(max_length=1)], bool], Meta(max_length=1)],
        st.dictionaries(TEXTS, st.booleans(), max_size=2),
    ),
    (Place, st.fixed_dictionaries({"x": st.integers(-1, 10)}, optional={"y": SCALARS, "z": SCALARS})),
    (
        Left | Right | None,
        st.fixed_dictionaries(
            {"type": st.sampled_from(["left", "right", "up"])},
            optional={"n": st.integers(-1, 1), "s": TEXTS, "more": INTEGERS},
        ),
    ),
    (Any, SCALARS),
    (Raw, SCALARS),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[type[Message], list[Json]]:
    """A class of messages, and messages that are of it, or nearly."""
    fields: list[Any] = []
    near: dict[str, st.SearchStrategy[Any]] = {}
    for annotation, values in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3)):
        name = f"f{len(fields)}"
        optional = draw(st.booleans())
        fields.append((name, annotation, msgspec.field(default=UNSET)) if optional else (name, annotation))
        near[name] = values | values | values | SCALARS
    kind: Any = msgspec.defstruct(
        "Case",
        fields,
        bases=(Message,),
        tag="case",
        kw_only=True,
        forbid_unknown_fields=draw(st.booleans()),
    )
    whole = st.fixed_dictionaries({"type": st.just("case"), **near}, optional={"more": INTEGERS})
    partial = st.fixed_dictionaries({"type": st.just("case")}, optional=near)
    return kind, draw(st.lists(whole | whole | partial, min_size=1, max_size=6))


class AgreementTests(SynchronousTestCase):
    """A message fits the schema exactly if the server takes it."""

    @given(cases(), examples=120)
    def test_both_documents(self, case: tuple[type[Message], list[Json]]) -> None:
        kind, messages = case
        router = routed(handling(kind))
        codec = Codec([kind, Ping])
        schemas = (
            validator(json_schema([router]), "client"),
            async_validator(asyncapi([router]), "client.case"),
        )
        for message in messages:
            fits = accepted(codec, json.dumps(message).encode())
            for schema in schemas:
                errors = [error.message for error in schema.iter_errors(message)]
                self.assertEqual(not errors, fits, (message, errors))

    def test_what_is_tried_differs(self) -> None:
        """Each type of field takes some of what is tried, and refuses some."""
        for annotation, values in FIELDS:
            kind: Any = msgspec.defstruct(
                "Case", [("f", annotation)], bases=(Message,), tag="case", kw_only=True
            )
            codec = Codec([kind, Ping])

            def fits(value: Any, codec: Codec = codec) -> bool:
                return accepted(codec, json.dumps({"type": "case", "f": value}).encode())

            find(values, fits)
            if annotation not in (Any, Raw):
                find(values | SCALARS, lambda value, fits=fits: not fits(value))  # type: ignore[misc]  # bound now

    def test_what_openapi_has(self) -> None:
        """A `discriminator` that is an object is wrong in an AsyncAPI document."""

        class Turned(Message, tag="turned"):
            steps: list[Left | Right] | None
            pairs: tuple[Left | Right, int]

        for make in (json_schema, asyncapi):
            self.assertNotIn("discriminator", json.dumps(make([returning(Turned)])))


class ProgramTests(SynchronousTestCase):
    """`python -m tcpjson.schema`, called in this process."""

    def _program(self, *arguments: str) -> tuple[int, str, str]:
        output, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(told):
            status = main(arguments)
        return status, output.getvalue(), told.getvalue()

    def _module(self, source: str) -> str:
        """Have a module; returns its name."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, prefix="moves_", suffix=".py", delete=False
        ) as file:
            file.write(source)
        path = list(sys.path)
        sys.path.insert(0, str(folder))
        self.addCleanup(sys.path.__setitem__, slice(None), path)
        name = Path(file.name).stem
        self.addCleanup(sys.modules.pop, name, None)
        return name

    def test_built_in(self) -> None:
        status, output, told = self._program()
        self.assertEqual((status, json.loads(output), told), (0, BUILT_IN, ""))
        status, output, told = self._program("--asyncapi")
        self.assertEqual((status, json.loads(output), told), (0, asyncapi(), ""))
        self.assertTrue(output.isascii())

    def test_routers(self) -> None:
        name = self._module(
            "from tcpjson import Message, Router\n"
            "first, second = Router(), Router()\n"
            "class Move(Message, tag='move'): x: int\n"
            "class Rest(Message, tag='rest'): pass\n"
            "@first.handler\ndef move(session, message: Move): pass\n"
            "@second.handler\ndef rest(session, message: Rest): pass\n"
        )
        status, output, told = self._program(f"{name}:first", f"{name}:second")
        self.assertEqual((status, told), (0, ""))
        self.assertLessEqual({"client.move", "client.rest"}, set(json.loads(output)["$defs"]))

    def test_what_is_wrong(self) -> None:
        name = self._module(
            "from tcpjson import Message, Router\n"
            "router = Router()\n"
            "class Move(Message, tag='move'): x: int\n"
            "@router.handler\ndef move(session, message: Move): pass\n"
            "class Lines(type):\n    def __getattr__(cls, name): raise ValueError('two\\nlines')\n"
            "class Odd(metaclass=Lines): pass\n"
            "lines = Router()\n"
            "@lines.handler\ndef odd(session, message: Move) -> 'Odd.x': pass\n"
        )
        for arguments, pattern in (
            ([f"{name}:lines"], r"^tcpjson\.schema: \w+\.odd: what it returns: two lines\n$"),
            (["moves"], r"^tcpjson\.schema: moves: it must be MODULE:NAME.*\n$"),
            (
                ["no_such_module:router"],
                r"^tcpjson\.schema: no_such_module:router: no module no_such_module\n$",
            ),
            ([f"{name}:router", f"{name}:router"], r"^tcpjson\.schema: .*move has a handler already.*\n$"),
        ):
            for more in ([], ["--asyncapi"]):
                status, output, told = self._program(*arguments, *more)
                self.assertEqual((status, output), (1, ""))
                self.assertRegex(told, pattern)

    def test_usage(self) -> None:
        with self.assertRaises(SystemExit) as raised:
            self._program("--no-such-option")
        self.assertEqual(raised.exception.code, 2)

    def test_output_that_fails(self) -> None:
        """A reader that has gone is no fault, a full disk is told; nothing fails when Python ends."""
        for error, expected in (
            (BrokenPipeError(errno.EPIPE, "gone"), ""),
            (OSError(errno.ENOSPC, "No space left on device"), "tcpjson.schema: No space left on device\n"),
        ):
            with tempfile.TemporaryFile("w") as file:
                output, told = Failing(file.fileno(), error), io.StringIO()
                with contextlib.redirect_stdout(output), contextlib.redirect_stderr(told):
                    self.assertEqual(main([]), 1)
                self.assertEqual(told.getvalue(), expected)
                self.assertTrue(os.path.samestat(os.fstat(file.fileno()), os.stat(os.devnull)))


class Failing(io.StringIO):
    """An output that fails when what was written is to leave."""

    def __init__(self, descriptor: int, error: OSError) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._error = error

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        raise self._error
