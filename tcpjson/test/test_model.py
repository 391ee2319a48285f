"""Some clients and a server, whatever they do: a stateful model of sections 1 to 3 and 5 to 11."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from hypothesis.stateful import run_state_machine_as_test as run_machine
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Forbidden, Limits, Message, Router
from tcpjson.auth import MAX_FAILURES
from tcpjson.core.backoff import DELAYS
from tcpjson.core.compression import deflate
from tcpjson.core.framing import frame
from tcpjson.core.heartbeat import ANSWER_TIME
from tcpjson.core.limits import CLOSE_TIMEOUT, PRE_AUTH_MAX_LENGTH
from tcpjson.test import hypo  # noqa: F401  # it has Hypothesis keep its files out of the checkout
from tcpjson.test.test_vectors import Tokens
from tcpjson.testing import MemoryServer, Peer
from tcpjson.vectors import strict_json

WRITE_TIMEOUT = 10.0
FRAME_TIMEOUT = 30.0
MAX_LENGTH = 60_000
HEARTBEAT = 25.0
AUTH_TIMEOUT = 60.0
HANDLER_TIMEOUT = 17.0
IDLE_TIMEOUT = 60.0
GRACE = 10.0
# Seconds that clients have to hear that the server goes away, and some more.
FAREWELL = 1.2
MAX_CONNECTIONS = 5
COMPRESS_OVER = 2000
USER, TOKEN = "alice", "sesame"


class Later(Message, tag="later"):
    """A request whose answer takes until the test completes it."""

    n: int


class Broken(Exception):
    """What a handler of the model fails with."""


# Payloads by type, and their bytes.
Counts = dict[str, tuple[int, int]]


class Expected:
    """One request on its way: what its answer must be."""

    def __init__(self, kind: str, value: object = None) -> None:
        #: The type of the answer, or the code of the error.
        self.kind = kind
        self.value = value
        #: Completes the request, where it takes a while; the number of the `Later`.
        self.later: int | None = None
        self.relays = False
        #: Whether it is of the type `pong`.
        self.pong = False
        #: What the request was: what `frames` says it leads to, or `forbidden`; and its payload.
        self.source = ("", b"")

    def matches(self, message: dict[str, Any]) -> bool:
        if message["type"] == "error":
            return bool(message["code"] == self.kind and not message["fatal"])
        fields = {
            "pong": "ping_timestamp",
            "echo_response": "content",
            "response": "original_message",
            "echo": "original_text",
            "later_done": "n",
            "hello_response": "heartbeat",
            "auth_result": "status",
        }
        if message["type"] != self.kind:
            return False
        return self.kind not in fields or message[fields[self.kind]] == self.value

    def __repr__(self) -> str:
        return f"<{self.kind} {str(self.value)[:40]}>"


class Client:
    """A client, and what the model knows of it."""

    def __init__(self, peer: Peer, now: float) -> None:
        self.peer = peer
        #: Bytes that it has written, and that were not delivered yet.
        self.pipe = b""
        #: Requests by the order of their frames, with the place in the stream where each ends.
        self.requests: list[tuple[int, Expected, object]] = []
        #: What was known of it before the first of them, and behind each.
        self.states: list[tuple[bool, str, bool, int]] = []
        self.written = 0
        self.delivered = 0
        #: What it received: answers without `id`, those with, and relays by their sender.
        self.answers: list[dict[str, Any]] = []
        self.named: dict[object, dict[str, Any]] = {}
        self.relays: dict[str, list[Any]] = {}
        self.error: str | None = None
        #: How many relays of each sender had been handled when it came.
        self.missed: dict[str, int] = {}
        self.name = ""
        self.stopped_at: float | None = None
        #: How many frames had begun, and when the last of them did.
        self.begun = 0
        self.begun_at = now
        self.was_stuck = False
        self.gone = False
        #: The code of the error that ends it as soon as what it sent is handled; empty when none does.
        self.doomed = ""
        #: It has closed its sending side; the server saw it, after so many relays of each sender.
        self.half = False
        self.ended = False
        self.until: dict[str, int] = {}
        #: How much it had sent when the server might read no more, and only wait for it to read.
        self.prompt: int | None = None
        #: The server goes away; it was told so; a handler was told to close.
        self.leaving = False
        self.farewell = False
        self.sent_off = False
        #: Why the server must say that it ended.
        self.reasons: set[str] = set()
        #: What the server makes of it when it has handled all that was written: whether it is served; whether
        #: it may say `hello` ("may"), has ("said") or comes too late ("late"); whether it answers pings; how
        #: many of its logins failed.
        self.served = True
        self.hello = "may"
        self.beats = False
        self.failures = 0
        #: Whether the server serves it now, when it came, and when it last sent anything.
        self.joined = False
        self.came_at = now
        self.sent_at = now
        #: The longest that it sent nothing, before that.
        self.silent = 0.0

    @property
    def open(self) -> bool:
        return not (self.gone or self.peer.closed or self.error)

    @property
    def compresses(self) -> bool:
        """Whether it knows that it may send compressed frames."""
        return self.peer._reader.inflate is not None

    def handled(self) -> list[tuple[Expected, object]]:
        """The requests that the server has handled."""
        count = self.peer.connection.messages_in
        return [(expected, request_id) for _, expected, request_id in self.requests[:count]]

    def expect(self, kind: str, value: object) -> Expected:
        """What a frame leads to that follows on all that was written; its place is taken."""
        if self.leaving:
            pong = kind == "response" and isinstance(value, dict) and value["type"] == "pong"
            return Expected("nothing" if pong and self.beats and self.served else "going_away")
        if kind == "hello":
            on_time, self.hello = self.hello == "may", "said" if self.hello == "may" else self.hello
            self.beats = self.beats or (on_time and bool(value))
            return Expected("hello_response", value) if on_time else Expected("bad_message")
        if kind == "auth":
            if self.served:
                return Expected("bad_message")
            self.served = value == TOKEN
            self.failures += not self.served
            return Expected("auth_result", "authenticated" if self.served else "authentication_failed")
        refused = kind in ("bad_frame", "bad_json", "bad_message")
        if not self.served:
            known = kind == "pong" or (refused and value is None)
            return Expected(kind, value) if known else Expected("unauthenticated")
        # What has a number out of range is found when it is answered.
        if self.hello == "may" and kind != "pong" and (not refused or value == "out of range"):
            self.hello = "late"
        if kind == "response" and self.beats and isinstance(value, dict) and value["type"] == "pong":
            return Expected("nothing")
        return Expected(kind, value)

    def go_away(self) -> None:
        """The server goes away: what is not complete now is answered otherwise, or is not sent."""
        ends = [end for end, *_ in self.requests]
        whole = sum(end <= self.delivered for end in ends)
        self.leaving = True
        cut = self.delivered
        if whole < len(ends) and self.delivered > (ends[whole - 1] if whole else 0):
            cut = ends[whole]
        # What the frames that are left out would have led to, never was.
        self.served, self.hello, self.beats, self.failures = self.states[whole]
        kept = [self.requests[whole]] if cut > self.delivered else []
        del self.requests[whole:], self.states[whole + 1 :]
        for end, expected, request_id in kept:
            pong = expected.kind == "nothing" or expected.pong
            expected.kind = "nothing" if pong and self.beats and self.served else "going_away"
            expected.relays = False
            self.requests.append((end, expected, request_id))
            self.states.append(self.states[-1])
        self.pipe = self.pipe[: cut - self.delivered]
        self.written = cut

    def count(self, received: Counts) -> None:
        """Add the requests that the server has handled to those of all clients."""
        for number, (expected, _) in enumerate(self.handled()):
            kind, payload = expected.source
            served, _, beats, _ = self.states[number]
            count_payload(received, type_of(kind, payload, served, beats), payload)

    def broadcasts(self) -> list[Any]:
        """What it broadcast, as far as the server has handled it."""
        return [expected.value for expected, _ in self.handled() if expected.relays]


def count_payload(counts: Counts, kind: str, payload: bytes) -> None:
    """Count one payload of a type."""
    count, size = counts.get(kind, (0, 0))
    counts[kind] = count + 1, size + len(payload)


def type_of(kind: str, payload: bytes, served: bool, beats: bool) -> str:
    """The type under which a request is counted."""
    if kind in ("bad_json", "bad_message", "bad_frame", "echo"):
        return "other"
    types = {"ping", "auth", "hello"}
    if served:
        types |= {"broadcast", "echo", "get_stats", "later"}
        if beats:
            types.add("pong")
    name = json.loads(payload)["type"]
    return name if name in types else "other"


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
# What must not be relayed, though it is JSON, or looks like it.
FORBIDDEN = st.sampled_from(
    [
        b"1e999",
        b"-1e400",
        b"18446744073709551616",
        b"-9223372036854775809",
        b"[" * 70 + b"]" * 70,
        b'{"a":1e999}',
    ]
)
BROKEN = st.sampled_from(
    [b"{", b'{"type":"ping"', b"[1,]", b'{"type":"echo","content":"\xff"}', b'{"a":"\\ud800"}', b"\xff\xfe"]
)
IDS = st.one_of(st.none(), st.just("given"))


KINDS = (
    *(
        "ping",
        "echo",
        "broadcast",
        "large",
        "stats",
        "custom",
        "text",
        "broken",
        "forbidden",
        "wrong",
        "empty",
        "hello",
        "auth",
    ),
    "later",
)


def is_farewell(message: dict[str, Any]) -> bool:
    """Whether it is the `going_away` that nobody asked for, or may be."""
    return message["type"] == "error" and message["code"] == "going_away" and "id" not in message


def auth(token: object) -> bytes:
    """The payload of a login."""
    return json.dumps({"type": "auth", "mechanism": "token", "token": token}).encode()


@st.composite
def frames(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> tuple[bytes, str, object, bool, int | None]:
    """A payload: its bytes, what it leads to, with which value, whether it is relayed, the n of a `later`."""
    kind = draw(st.sampled_from(kinds))
    if kind == "ping":
        value = draw(VALUES)
        return json.dumps({"type": "ping", "timestamp": value}).encode(), "pong", value, False, None
    if kind == "echo":
        value = draw(VALUES)
        text = json.dumps({"content": value, "type": "echo"}, ensure_ascii=draw(st.booleans()))
        return text.encode(), "echo_response", value, False, None
    if kind == "broadcast":
        value = draw(VALUES)
        return (
            json.dumps({"type": "broadcast", "content": value}).encode(),
            "broadcast_sent",
            value,
            True,
            None,
        )
    if kind == "large":
        value = draw(st.sampled_from("xyz")) * draw(st.integers(10_000, 50_000))
        relayed = draw(st.booleans())
        name, answer = ("broadcast", "broadcast_sent") if relayed else ("echo", "echo_response")
        return json.dumps({"type": name, "content": value}).encode(), answer, value, relayed, None
    if kind == "stats":
        return b'{"type":"get_stats"}', "server_stats", None, False, None
    if kind == "custom":
        value = {"type": draw(st.sampled_from(["move", "pong", ""])), "x": draw(VALUES)}
        return json.dumps(value).encode(), "response", value, False, None
    if kind == "text":
        value = draw(st.sampled_from(["hello", "  ", "1 2", "\xe9t\xe9"]))
        return str(value).encode(), "echo", value, False, None
    if kind == "broken":
        return draw(BROKEN), "bad_json", None, False, None
    if kind == "forbidden":
        tag = draw(st.sampled_from([b"echo", b"broadcast", b"other"]))
        return b'{"type":"%b","content":%b}' % (tag, draw(FORBIDDEN)), "bad_json", "out of range", False, None
    if kind == "wrong":
        payload = draw(
            st.sampled_from(
                [
                    b'{"type":1}',
                    b'{"type":"ping","id":[]}',
                    b'{"type":"hello","client":1}',
                    b'{"type":"later"}',
                ]
            )
        )
        return payload, "bad_message", "later" if b"later" in payload else None, False, None
    if kind == "empty":
        return b"", "bad_frame", None, False, None
    if kind == "hello":
        value = draw(st.booleans())
        names = draw(st.sampled_from([[], ["zlib"], ["br", "zlib"]]))
        text = json.dumps({"type": "hello", "heartbeat": value, "compression": names})
        return text.encode(), "hello", value, False, None
    if kind == "auth":
        value = draw(st.sampled_from([TOKEN, TOKEN, "wrong"]))
        return auth(value), "auth", value, False, None
    return b"", "later_done", None, False, 0


DAMAGES = st.sampled_from(["long", "cut", "tail", "twice", "noise", "bomb", "nothing"])
# What ends a connection is done to one in so many.
SPARED = st.integers(0, 2)
OUTCOMES = ("answer", "answer", "refuse", "fail", "nothing", "wrong", "close")


class Model(RuleBasedStateMachine):
    """
    Every request is answered once and in order, every broadcast reaches every other client once and in
    the order of its sender, nothing that leaves is invalid, nobody is cut without a reason, which the
    statistics tell, and nothing is left behind.
    """

    #: Whether the server asks for authentication.
    asks = False
    #: Whether it has limits that most servers have not.
    limits = False

    clients: Bundle[Client] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, Deferred[Any]] = {}
        #: Of those that wait, the session, and when they began.
        self.sessions: dict[int, tuple[Any, float]] = {}
        self.drained: list[None] | None = None
        self.drained_at = 0.0
        self.turned_away: Counter[str] = Counter()
        #: Whether all errors that were made have come.
        self.exact = True
        self.errors: Counter[str] = Counter()
        #: All that came to clients.
        self.came: Counts = {}
        self.numbers = iter(range(1, 1_000_000))
        router = Router()

        def later(session: Any, message: Later) -> Deferred[Any]:
            self.waiting[message.n] = Deferred(lambda deferred: self.cancelled(message.n))
            self.sessions[message.n] = session, self.now
            return self.waiting[message.n]

        router.add(Later, later)
        self.server = MemoryServer(
            limits=Limits(
                max_length=MAX_LENGTH,
                write_timeout=WRITE_TIMEOUT,
                frame_timeout=FRAME_TIMEOUT,
                handler_timeout=HANDLER_TIMEOUT,
                max_handlers=4,
                heartbeat=HEARTBEAT,
                auth_timeout=AUTH_TIMEOUT,
                grace=GRACE,
                messages_per_second=10.0 if self.limits else None,
                message_burst=5.0 if self.limits else None,
                idle_timeout=IDLE_TIMEOUT if self.limits else None,
                max_connections=MAX_CONNECTIONS if self.limits else None,
            ),
            routers=[router],
            checkers=[Tokens({USER: TOKEN})] if self.asks else [],
            compress_over=COMPRESS_OVER,
        )
        self.all: list[Client] = []
        #: Whose request each slow one is, and what its answer must be.
        self.slow: dict[int, tuple[Client, Expected]] = {}
        join = self.server.factory.join

        def joined(connection: Any) -> None:
            """A client is served from now on: what was broadcast before passed it by."""
            join(connection)
            for client in self.all:
                if client.peer.connection is connection:
                    self.begins(client)

        self.server.factory.join = joined  # type: ignore[method-assign]  # to be told when

    @property
    def now(self) -> float:
        return self.server.clock.seconds()

    # What may happen.

    @initialize(target=clients)
    def first(self) -> Client:
        return self.come()

    @initialize(target=clients)
    def second(self) -> Client:
        return self.come()

    @rule(target=clients)
    def join(self) -> Any:
        return self.come() if self.refusal is None else multiple()

    @property
    def refusal(self) -> str | None:
        """The code with which one who comes now is turned away."""
        if self.drained is not None:
            return "going_away"
        there = sum(not client.gone for client in self.all)
        return "server_full" if self.limits and there >= MAX_CONNECTIONS else None

    @rule()
    def come_in_vain(self) -> None:
        """One for whom there is no room."""
        if self.refusal is not None:
            peer = self.server.connect()
            [payload] = peer.receive_payloads()
            error: Any = strict_json(payload)
            count_payload(self.came, "error", payload)
            assert (error["type"], error["code"]) == ("error", self.refusal)
            assert peer.closed
            self.turned_away[error["code"]] += 1
            peer.close()

    def come(self) -> Client:
        """A new client, who has read its welcome."""
        client = Client(self.server.connect(), self.now)
        [payload] = client.peer.receive_payloads()
        welcome: Any = strict_json(payload)
        count_payload(self.came, "welcome", payload)
        assert (welcome["type"], welcome["auth"]) == ("welcome", ["token"] if self.asks else [])
        client.name = welcome["client_id"]
        client.served = not self.asks
        client.states.append((client.served, client.hello, client.beats, client.failures))
        if client.served:
            self.begins(client)
        self.all.append(client)
        # As sockets do it: whoever is aborted is gone in the next turn of the reactor, and read no more.
        transport = client.peer.transport
        abort = transport.abortConnection

        def aborted() -> None:
            abort()
            for name in ("pauseProducing", "resumeProducing"):
                setattr(transport, name, lambda: None)
            self.server.clock.callLater(0, self.lose, client)

        transport.abortConnection = aborted  # type: ignore[method-assign]  # to be told when
        return client

    def lose(self, client: Client) -> None:
        """The connection of a client was aborted."""
        if not client.gone:
            self.go(client)

    def begins(self, client: Client) -> None:
        """The server serves a client from now on."""
        client.joined = True
        for other in self.all:
            client.missed[other.name] = len(other.broadcasts())

    @rule(client=clients, token=st.sampled_from([TOKEN, "wrong"]), alone=st.booleans())
    def log_in(self, client: Client, token: str, alone: bool) -> None:
        """A login, or one with a broadcast before and behind it."""
        relay = (b'{"type":"broadcast","content":"b"}', "broadcast_sent", "b", True, None)
        login = (auth(token), "auth", token, False, None)
        self.write(client, [(each, None) for each in ([login] if alone else [relay, login, relay])])
        self.deliver(client, len(client.pipe))

    @rule(
        client=clients, drawn=st.lists(st.tuples(frames(), IDS), min_size=1, max_size=8), cut=st.floats(0, 1)
    )
    def send(self, client: Client, drawn: list[tuple[Any, Any]], cut: float) -> None:
        """Frames, the last of them cut anywhere."""
        self.write(client, drawn)
        self.deliver(client, len(client.pipe) - int(cut * 10))

    @rule(
        client=clients,
        drawn=st.lists(
            st.tuples(frames(("echo", "large", "broadcast", "broken")), IDS), min_size=5, max_size=20
        ),
    )
    def flood(self, client: Client, drawn: list[tuple[Any, Any]]) -> None:
        """Many frames in one read, many times over."""
        self.write(client, drawn * 5)
        self.deliver(client, len(client.pipe))

    @rule(client=clients, name=IDS, spared=SPARED)
    def ask_slowly(self, client: Client, name: str | None, spared: int) -> None:
        """A slow request, and perhaps the end of what a client sends, and what the others say to it then."""
        client = next((other for other in self.all if other.joined and other.open), client)
        self.write(client, [((b"", "later_done", None, False, 0), name)])
        self.deliver(client, len(client.pipe))
        if not spared:
            self.end_sending(client)
            for other in self.all:
                relay = b'{"type":"broadcast","content":"late"}', "broadcast_sent", "late", True, None
                self.write(other, [(relay, None)])
                self.deliver(other, len(other.pipe))

    @rule(client=clients, size=st.integers(1, 100))
    def send_more(self, client: Client, size: int) -> None:
        """Some of the bytes that are still on their way."""
        self.deliver(client, size)

    @rule(client=clients, damage=DAMAGES, spared=SPARED)
    def send_the_last(self, client: Client, damage: str, spared: int) -> None:
        """A frame that ends the connection, behind all that was sent before."""
        if spared:
            return
        if damage == "long":
            self.doom(client, "too_large", (MAX_LENGTH + 1).to_bytes(4, "big") + b"and more")
            return
        # The others are compressed, which they are only for who agreed on it, and knows.
        if client.open and client.hello == "may":
            hello = b'{"type":"hello","compression":["zlib"]}', "hello", False, False, None
            self.write(client, [(hello, None)])
            self.deliver(client, len(client.pipe))
            self.receive(client)
        if client.compresses and not client.pipe:
            good = deflate(b'{"type":"ping"}')
            data = {
                "cut": good[:-1],
                "tail": good + b"x",
                "twice": good * 2,
                "noise": b"noise",
                "bomb": deflate(b" " * (MAX_LENGTH + 1)),
                "nothing": deflate(b""),
            }[damage]
            self.doom(client, "too_large" if damage == "bomb" else "bad_frame", frame(data, compressed=True))

    def doom(self, client: Client, code: str, data: bytes) -> None:
        """Have a client send what ends its connection."""
        if client.open and not (client.doomed or client.half):
            self.deliver(client, len(client.pipe))
            client.doomed = code
            client.sent_at = self.now
            client.peer.send_bytes(data)

    @rule(client=clients, spared=SPARED)
    def close_half(self, client: Client, spared: int) -> None:
        """A client sends no more, in the midst of a frame perhaps; it reads on."""
        if not spared:
            self.end_sending(client)

    def end_sending(self, client: Client) -> None:
        if client.open and not client.half:
            client.half = True
            client.pipe = b""
            self.tell_ends()

    def tell_ends(self) -> bool:
        """Have the server see the ends of what was sent, where it reads; returns whether there are more."""
        for client in self.all:
            if client.half and not client.ended and client.open:
                if client.peer.transport.producerState != "producing":
                    continue
                client.ended = True
                client.until = {other.name: len(other.broadcasts()) for other in self.all}
                client.peer.connection.readConnectionLost()
                self.server.settle()
        return any(client.half and not client.ended and client.open for client in self.all)

    @precondition(lambda self: self.drained is None and len(self.all) > 2)
    @rule(spared=SPARED, busy=st.booleans())
    def drain(self, spared: int, busy: bool) -> None:
        """The server shuts down; perhaps while requests wait for a client to read."""
        if spared:
            return
        client = next((client for client in self.all if client.joined and client.open), None)
        if busy and client is not None:
            self.stop_reading(client)
            large = "x" * 50_000
            echo = (
                json.dumps({"type": "echo", "content": large}).encode(),
                "echo_response",
                large,
                False,
                None,
            )
            self.write(client, [(echo, None)] * 4)
            self.deliver(client, len(client.pipe))
        self.drained = []
        self.drained_at = self.now
        for client in self.all:
            if client.open:
                client.go_away()
        self.server.factory.drain().addCallback(self.drained.append)
        self.server.settle()

    @precondition(lambda self: self.drained is not None)
    @rule(spared=SPARED)
    def abort(self, spared: int) -> None:
        """The shutdown loses its patience."""
        if not spared:
            self.server.factory.abort()
            self.server.settle()

    @rule(client=clients)
    def stop_reading(self, client: Client) -> None:
        if client.open and client.stopped_at is None:
            client.stopped_at = self.now
            client.peer.stop_reading()

    @rule(client=clients)
    def start_reading(self, client: Client) -> None:
        self.read_on(client)

    @rule(seconds=st.sampled_from([0.3, 3, 8, 20, 40]))
    def pass_time(self, seconds: float) -> None:
        self.server.advance(seconds)

    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def complete(self, data: st.DataObject, outcome: str) -> None:
        """Complete one of the slow requests."""
        if self.waiting:
            self.finish(data.draw(st.sampled_from(sorted(self.waiting))), outcome)

    @rule(client=consumes(clients), rudely=st.booleans())
    def leave(self, client: Client, rudely: bool) -> None:
        if not client.gone:
            self.go(client, rudely)

    def go(self, client: Client, rudely: bool = False) -> None:
        """The connection of a client is gone."""
        self.receive(client)
        connection = client.peer.connection
        if connection._outbox.waiting or connection._order is not None or connection._reader.ready:
            self.exact = False
        if client.error is not None:
            client.reasons = {client.error}
        elif client.peer.closed:
            client.reasons = (
                ({"client_closed"} if client.ended else set())
                | ({"going_away"} if client.leaving else set())
                | ({"closed_by_handler"} if client.sent_off else set())
            )
            if client.stopped_at is not None:
                # It did not read why.
                client.reasons |= {code for code, holds in self.causes(client).items() if holds}
            assert client.reasons, "closed without a reason"
        else:
            client.reasons = {"connection_lost" if rudely else "client_closed"}
            if client.leaving:
                # What was held for a client that did not read is let go first, and that may be the last.
                client.reasons.add("going_away")
            # What it sent may not have been handled before.
            for code in [client.doomed, *(["auth_failed"] if client.failures == MAX_FAILURES else [])]:
                if code:
                    client.reasons.add(code)
            if client.sent_off:
                client.reasons.add("closed_by_handler")
        client.gone = True
        (client.peer.reset if rudely else client.peer.close)()
        assert connection.reason in client.reasons, f"{connection.reason}, not {client.reasons}"
        own = [call for call in self.server.clock.calls if getattr(call.func, "__self__", None) is connection]
        assert not own, f"{own} are left"
        slow = [number for number in self.waiting if self.slow[number][0] is client]
        assert not slow, f"{slow} are not cancelled"

    # How it happens.

    def write(self, client: Client, drawn: list[tuple[Any, Any]]) -> None:
        for (payload, kind, value, relays, later), wanted in drawn:
            # Too long a frame before authentication is `send_too_much`.
            if client.doomed or client.half or client.failures == MAX_FAILURES:
                return
            if not client.served and len(payload) > PRE_AUTH_MAX_LENGTH:
                continue
            request_id = None
            expected = client.expect(kind, value)
            expected.relays = relays and client.served and not client.leaving
            expected.pong = kind == "response" and isinstance(value, dict) and value["type"] == "pong"
            if later is not None:
                expected.later = expected.value = next(self.numbers)
                self.slow[expected.later] = client, expected
                payload = b'{"type":"later","n":%d}' % expected.later
            if wanted and payload.endswith(b"}") and kind not in ("bad_json", "bad_message"):
                request_id = next(self.numbers)
                payload = payload[:-1] + b',"id":%d}' % request_id
                if expected.kind == "response":
                    expected.value = {**value, "id": request_id}
            expected.source = "forbidden" if value == "out of range" else kind, payload
            data = frame(payload)
            if client.compresses and payload and len(payload) % 3 == 0:
                data = frame(deflate(payload), compressed=True)
            client.pipe += data
            client.written += len(data)
            client.requests.append((client.written, expected, request_id))
            client.states.append((client.served, client.hello, client.beats, client.failures))

    def deliver(self, client: Client, size: int) -> None:
        size = max(0, size)
        piece, client.pipe = client.pipe[:size], client.pipe[size:]
        if piece and client.open and not (client.doomed or client.half):
            if client.prompt is None and self.drained is not None and self.now >= self.drained_at + FAREWELL:
                client.prompt = client.delivered
            client.delivered += len(piece)
            client.silent = max(client.silent, self.now - client.sent_at)
            client.sent_at = self.now
            whole = sum(end <= client.delivered for end, *_ in client.requests)
            if whole + 1 > client.begun:
                client.begun = whole + 1
                client.begun_at = self.now
            client.peer.send_bytes(piece)

    def finish(self, number: int, outcome: str = "answer") -> None:
        """Complete a slow request."""
        deferred = self.waiting.pop(number)
        session, _ = self.sessions[number]
        client, expected = self.slow[number]
        if outcome == "answer":
            deferred.callback({"type": "later_done", "n": number})
        elif outcome == "refuse":
            expected.kind = "forbidden"
            deferred.callback(Forbidden())
        elif outcome == "nothing":
            expected.kind = "nothing"
            deferred.callback(None)
        elif outcome == "wrong":
            expected.kind = "internal"
            deferred.callback({"no": "type"})
        elif outcome == "fail":
            expected.kind = "internal"
            deferred.errback(Broken())
        else:
            client.sent_off = client.sent_off or client.open
            expected.kind = "nothing"
            session.close()
            # It was cancelled with the others of its connection, had that not been one that has ended.
            if not deferred.called:
                deferred.callback(None)
        self.server.settle()

    def cancelled(self, number: int) -> None:
        """The server gives up a slow request."""
        self.waiting.pop(number, None)
        _, began = self.sessions[number]
        client, expected = self.slow[number]
        if self.now - began >= HANDLER_TIMEOUT - 0.01:
            expected.kind = "timeout"
        else:
            assert client.peer.connection._holds & 128, "cancelled before its time"

    def read_on(self, client: Client) -> None:
        if client.stopped_at is not None and not client.gone:
            self.stuck(client)
            client.stopped_at = None
            client.peer.start_reading()

    def receive(self, client: Client) -> None:
        """Take what came, and sort it."""
        for payload in client.peer.receive_payloads():
            message: Any = strict_json(payload)
            kind = "own" if message["type"] == "later_done" else message["type"]
            count_payload(self.came, kind, payload)
            assert client.error is None, f"{message} after the fatal error"
            if message["type"] == "broadcast" and "from_client" in message:
                assert message.get("from_user") == (USER if self.asks else None)
                client.relays.setdefault(message["from_client"], []).append(message["content"])
            elif message["type"] == "error" and message["fatal"]:
                client.error = message["code"]
                self.errors[message["code"]] += 1
            elif client.leaving and not client.farewell and is_farewell(message):
                assert message["retry_after"] >= 1
                client.farewell = True
                self.errors["going_away"] += 1
            elif message["type"] == "ping":
                assert client.beats and self.silence(client) >= HEARTBEAT - 0.01, "a ping that nobody needs"
            elif "id" in message:
                self.count_error(message)
                assert message["id"] not in client.named, f"{message} once more"
                client.named[message["id"]] = message
            else:
                self.count_error(message)
                client.answers.append(message)

    def count_error(self, message: dict[str, Any]) -> None:
        if message["type"] == "error":
            self.errors[message["code"]] += 1

    # What must be.

    def check_answers(self, client: Client, complete: bool) -> None:
        """Answers are those of the requests that were delivered, in order; all of them if `complete`."""
        delivered = [
            entry for entry in client.requests if entry[0] <= client.delivered and entry[1].kind != "nothing"
        ]
        ordered = [expected for _, expected, request_id in delivered if request_id is None]
        position = 0
        for message in client.answers:
            while position < len(ordered) and not ordered[position].matches(message):
                # Only at the end of a connection an answer may be left out.
                assert not client.open, f"{message} came, {ordered[position]} was due"
                position += 1
            assert position < len(ordered), f"{message} is due to nothing"
            position += 1
        named = {request_id: expected for _, expected, request_id in delivered if request_id is not None}
        for request_id, message in client.named.items():
            assert request_id in named and named[request_id].matches(message), f"{message} is wrong"
        if complete:
            # What came when the server might read no more is answered, or not.
            due = [entry for entry in delivered if client.prompt is None or entry[0] <= client.prompt]
            ordered = [expected for _, expected, request_id in due if request_id is None]
            assert position >= len(ordered), f"{ordered[position:]} are missing"
            names = {request_id for _, _, request_id in due if request_id is not None}
            assert client.named.keys() >= names, f"{names - client.named.keys()} are missing"

    def check_relays(self, client: Client, complete: bool) -> None:
        """Of each sender its broadcasts came, in order, from the one that followed the client's coming."""
        names = {sender.name for sender in self.all} - {client.name}
        assert client.relays.keys() <= (names if client.joined else set())
        if not client.joined:
            return
        for sender in self.all:
            if sender is client:
                continue
            due = sender.broadcasts()[client.missed.get(sender.name, 0) :]
            if client.ended:
                due = due[: max(0, client.until.get(sender.name, 0) - client.missed.get(sender.name, 0))]
            came = client.relays.get(sender.name, [])
            assert came == due[: len(came)], f"{came} came, {due} was sent"
            if complete:
                assert came == due, f"{due[len(came) :]} is missing"

    def silence(self, client: Client) -> float:
        """
        The longest that a client sent nothing, in seconds. One that does not read may have sent more before
        it hears what that led to.
        """
        return max(client.silent, self.now - client.sent_at)

    def stuck(self, client: Client) -> bool:
        """Whether a client has taken nothing for so long that it may be cut for that."""
        if client.stopped_at is not None and self.now - client.stopped_at >= WRITE_TIMEOUT - 0.01:
            client.was_stuck = True
        return client.was_stuck

    def causes(self, client: Client) -> dict[str, bool]:
        """The codes that may end the connection of a client, and whether they may now."""
        ends = [0, *(end for end, *_ in client.requests)]
        begun = client.delivered not in ends
        silent = self.silence(client)
        return {
            "too_large": client.doomed == "too_large",
            "bad_frame": client.doomed == "bad_frame",
            "idle_timeout": self.limits and silent >= IDLE_TIMEOUT - 0.01,
            "slow_consumer": self.stuck(client),
            "auth_failed": client.failures == MAX_FAILURES,
            "auth_timeout": not client.joined and self.now - client.came_at >= AUTH_TIMEOUT - 0.01,
            "heartbeat_timeout": client.beats and silent >= HEARTBEAT + ANSWER_TIME - 0.01,
            "frame_timeout": begun and self.now - client.begun_at >= FRAME_TIMEOUT - 0.01,
        }

    def check_end(self, client: Client) -> None:
        """Nobody is cut without a reason."""
        if client.error is not None:
            assert self.causes(client).get(client.error), f"{client.error} without a reason"

    @invariant()
    def all_is_well(self) -> None:
        self.tell_ends()
        for client in self.all:
            if client.gone:
                continue
            self.receive(client)
            self.check_answers(client, complete=False)
            self.check_relays(client, complete=False)
            self.check_end(client)
            # Section 10: what was above the mark when the last request was handled, and its answer.
            assert client.peer.connection._outbox.answers < 64 * 1024 + 2 * MAX_LENGTH
            if client.open and client.stopped_at is None and not client.peer.connection.paused:
                # It reads, and nothing holds it: it has all that was there for it.
                assert client.peer.connection._outbox.waiting == 0
                if self.drained is not None and self.now >= self.drained_at + FAREWELL:
                    slow = [number for number in self.waiting if self.slow[number][0] is client]
                    assert slow, "it has all of its answers, and is not closed"
            if self.drained is not None and self.now >= self.drained_at + GRACE:
                raise AssertionError("the grace period is over, and it is not aborted")

    def teardown(self) -> None:
        """All read on, send the rest and get their answers; or the shutdown ends it."""
        try:
            if self.drained is not None and len(self.all) % 2:
                for seconds in (FAREWELL, GRACE + 0.2):
                    self.server.advance(max(0.0, self.drained_at + seconds - self.now))
                    self.all_is_well()
            for client in self.all:
                self.read_on(client)
                self.deliver(client, len(client.pipe))
            self.server.settle()
            for _ in range(1000):
                if not (self.tell_ends() or self.waiting or self.checking() or self.held()):
                    break
                for number in sorted(self.waiting):
                    if number in self.waiting:
                        self.finish(number)
                self.server.advance(DELAYS[-1] if self.checking() or self.held() else 0)
            else:
                raise AssertionError("it does not come to an end")
            for client in self.all:
                if client.gone:
                    continue
                self.receive(client)
                note(f"{client.name} {client.error}")
                self.check_end(client)
                ended = client.ended or client.leaving or client.sent_off
                complete = client.error is None and not client.sent_off and not client.peer.aborted
                assert client.open or client.error is not None or ended, "closed without a reason"
                self.check_answers(client, complete)
                self.check_relays(client, complete and not client.peer.closed)
                if complete and client.leaving:
                    assert client.farewell, "not told that the server goes away"
                if complete and client.half:
                    assert client.peer.closed, "it has all of its answers, and is not closed"
                if complete and (client.doomed or client.failures == MAX_FAILURES):
                    raise AssertionError("what ends a connection was passed over")
            self.check_counts()
            self.check_ends()
        finally:
            for client in self.all:
                if not client.gone:
                    client.peer.close()
            self.server.stop()
        self.check_rest()

    def held(self) -> bool:
        """Whether there are complete frames that are not handled yet."""
        return any(client.open and client.peer.connection._reader.ready for client in self.all)

    def check_ends(self) -> None:
        """All go, and the statistics tell how."""
        closed = [client for client in self.all if client.peer.closed and not client.gone]
        if self.drained is not None:
            self.server.advance(max(0.0, self.drained_at + GRACE + CLOSE_TIMEOUT + 0.1 - self.now))
        else:
            # An end is one in two seconds at the latest.
            self.server.advance(CLOSE_TIMEOUT + 0.1)
        for client in self.all:
            if not client.gone:
                assert client.peer.aborted or client not in closed, "closed, and not aborted in time"
                assert client.peer.aborted or self.drained is None, "the shutdown does not close"
                self.go(client)
        factory = self.server.factory
        came = Counter(connection.reason for connection in (client.peer.connection for client in self.all))
        assert factory.stats.disconnects == came + self.turned_away
        assert Counter(closed.code for closed in factory.stats.closed) == came
        assert (self.drained == [None]) == (self.drained is not None), "the shutdown does not end"
        for deadlines in (*factory.connection_deadlines, factory.handler_deadlines):
            assert not deadlines._deadlines
        made = factory.stats.errors - self.turned_away
        assert not self.errors - made, f"{self.errors - made} came and were not counted"
        sent = {kind: each for kind, each in factory.stats.sent_by_type().items() if each != (0, 0)}
        for kind, (count, size) in self.came.items():
            most = sent.get(kind, (0, 0))
            assert count <= most[0] and size <= most[1], f"{count} {kind} came, and {most} were counted"
        if self.exact and "slow_consumer" not in made:
            assert made == self.errors, f"{made} were counted, {self.errors} came"
            assert sent == self.came, f"{sent} were counted, {self.came} came"
            assert factory.stats.messages_out == sum(count for count, _ in sent.values())

    def check_rest(self) -> None:
        """Nothing is left behind."""
        factory = self.server.factory
        assert not factory.clients and not factory.connections
        assert factory.admission.admitted == 0
        assert self.server.clock.getDelayedCalls() == []

    def checking(self) -> bool:
        """Whether the answer to a login is still to come."""
        return any(client.peer.connection._checking is not None for client in self.all)

    def check_counts(self) -> None:
        """The factory's figures are those of its clients."""
        factory = self.server.factory
        served = {
            client.peer.connection
            for client in self.all
            if client.open and client.joined and not client.ended
        }
        assert served == factory.clients
        assert factory.stats.messages_in == sum(client.peer.connection.messages_in for client in self.all)
        sent = sum(client.peer.connection.messages_out for client in self.all)
        assert factory.stats.messages_out == sent + self.turned_away.total()
        assert factory.stats.broadcasts == sum(len(client.broadcasts()) for client in self.all)
        assert factory.turn is None
        received: Counts = {}
        for client in self.all:
            client.count(received)
        counted = factory.stats.received_by_type()
        assert {kind: each for kind, each in counted.items() if each != (0, 0)} == received


class AskingModel(Model):
    """The same, of a server that asks for authentication."""

    asks = True


class LimitedModel(Model):
    """The same, of a server with a rate, a limit of connections, and one of idleness."""

    limits = True


class ModelTests(SynchronousTestCase):
    def _assert_holds(self, model: type[Model]) -> None:
        run = settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_machine(model, settings=run)
        except Exception as error:
            # Trial leaves the notes out, and they tell what the clients did.
            notes = getattr(error, "__notes__", ())
            raise AssertionError("\n".join([f"{type(error).__name__}: {error}", *notes])) from None
        finally:
            # Of handlers that fail, and of those that answer what is no message.
            self.flushLoggedErrors(Broken, TypeError)

    def test_whatever_clients_do(self) -> None:
        self._assert_holds(Model)

    def test_whatever_they_do_where_there_are_limits(self) -> None:
        self._assert_holds(LimitedModel)

    def test_whatever_they_do_where_authentication_is_asked_for(self) -> None:
        self._assert_holds(AskingModel)
