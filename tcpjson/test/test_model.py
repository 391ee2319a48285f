"""Some clients and a server, whatever the clients do: a stateful model of sections 1 to 3, 5, 6, 8 to 10."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Limits, Message, Router
from tcpjson.auth import MAX_FAILURES
from tcpjson.core.backoff import DELAYS
from tcpjson.core.framing import frame
from tcpjson.core.heartbeat import ANSWER_TIME
from tcpjson.core.limits import PRE_AUTH_MAX_LENGTH
from tcpjson.test import hypo  # noqa: F401  # it has Hypothesis keep its files out of the checkout
from tcpjson.test.test_vectors import Tokens
from tcpjson.testing import MemoryServer, Peer
from tcpjson.vectors import strict_json

WRITE_TIMEOUT = 10.0
FRAME_TIMEOUT = 30.0
MAX_LENGTH = 60_000
HEARTBEAT = 25.0
AUTH_TIMEOUT = 60.0
USER, TOKEN = "alice", "sesame"


class Later(Message, tag="later"):
    """A request whose answer takes until the test completes it."""

    n: int


class Expected:
    """One request on its way: what its answer must be."""

    def __init__(self, kind: str, value: object = None) -> None:
        #: The type of the answer, or the code of the error.
        self.kind = kind
        self.value = value
        #: Completes the request, where it takes a while; the number of the `Later`.
        self.later: int | None = None
        self.relays = False

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
        #: It has announced too long a frame.
        self.doomed = False
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

    @property
    def open(self) -> bool:
        return not (self.gone or self.peer.closed or self.error)

    def handled(self) -> list[tuple[Expected, object]]:
        """The requests that the server has handled."""
        count = self.peer.connection.messages_in
        return [(expected, request_id) for _, expected, request_id in self.requests[:count]]

    def expect(self, kind: str, value: object) -> Expected:
        """What a frame leads to that follows on all that was written; its place is taken."""
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

    def broadcasts(self) -> list[Any]:
        """What it broadcast, as far as the server has handled it."""
        return [expected.value for expected, _ in self.handled() if expected.relays]


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
        return json.dumps({"type": "hello", "heartbeat": value}).encode(), "hello", value, False, None
    if kind == "auth":
        value = draw(st.sampled_from([TOKEN, TOKEN, "wrong"]))
        return auth(value), "auth", value, False, None
    return b"", "later_done", None, False, 0


class Model(RuleBasedStateMachine):
    """
    Every request is answered once and in order, every broadcast reaches every other client once and in
    the order of its sender, nothing that leaves is invalid, and nobody is cut without a reason.
    """

    #: Whether the server asks for authentication.
    asks = False

    clients: Bundle[Client] = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[int, Deferred[Any]] = {}
        self.numbers = iter(range(1, 1_000_000))
        router = Router()

        def later(session: Any, message: Later) -> Deferred[Any]:
            self.waiting[message.n] = Deferred()
            return self.waiting[message.n]

        router.add(Later, later)
        self.server = MemoryServer(
            limits=Limits(
                max_length=MAX_LENGTH,
                write_timeout=WRITE_TIMEOUT,
                frame_timeout=FRAME_TIMEOUT,
                handler_timeout=1e9,
                max_handlers=4,
                heartbeat=HEARTBEAT,
                auth_timeout=AUTH_TIMEOUT,
            ),
            routers=[router],
            checkers=[Tokens({USER: TOKEN})] if self.asks else [],
        )
        self.all: list[Client] = []
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
    def join(self) -> Client:
        return self.come()

    def come(self) -> Client:
        """A new client, who has read its welcome."""
        client = Client(self.server.connect(), self.now)
        [welcome] = client.peer.receive()
        assert (welcome["type"], welcome["auth"]) == ("welcome", ["token"] if self.asks else [])
        client.name = welcome["client_id"]
        client.served = not self.asks
        if client.served:
            self.begins(client)
        self.all.append(client)
        return client

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

    @rule(client=clients, size=st.integers(1, 100))
    def send_more(self, client: Client, size: int) -> None:
        """Some of the bytes that are still on their way."""
        self.deliver(client, size)

    @rule(client=clients)
    def send_too_much(self, client: Client) -> None:
        """A frame longer than it may be, behind all that was sent before."""
        if client.open and not client.doomed:
            self.deliver(client, len(client.pipe))
            client.doomed = True
            client.sent_at = self.now
            client.peer.send_bytes((MAX_LENGTH + 1).to_bytes(4, "big") + b"and more")

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
        for client in self.all:
            if client.stopped_at is not None and self.now - client.stopped_at >= WRITE_TIMEOUT:
                client.was_stuck = True

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        """Complete one of the slow requests."""
        if self.waiting:
            self.finish(data.draw(st.sampled_from(sorted(self.waiting))))

    @rule(client=consumes(clients), rudely=st.booleans())
    def leave(self, client: Client, rudely: bool) -> None:
        if not client.gone:
            client.gone = True
            self.receive(client)
            (client.peer.reset if rudely else client.peer.close)()

    # How it happens.

    def write(self, client: Client, drawn: list[tuple[Any, Any]]) -> None:
        for (payload, kind, value, relays, later), wanted in drawn:
            # Too long a frame before authentication is `send_too_much`.
            if client.doomed or client.failures == MAX_FAILURES:
                return
            if not client.served and len(payload) > PRE_AUTH_MAX_LENGTH:
                continue
            request_id = None
            expected = client.expect(kind, value)
            expected.relays = relays and client.served
            if later is not None:
                expected.later = expected.value = next(self.numbers)
                payload = b'{"type":"later","n":%d}' % expected.later
            if wanted and payload.endswith(b"}") and kind not in ("bad_json", "bad_message"):
                request_id = next(self.numbers)
                payload = payload[:-1] + b',"id":%d}' % request_id
                if expected.kind == "response":
                    expected.value = {**value, "id": request_id}
            data = frame(payload)
            client.pipe += data
            client.written += len(data)
            client.requests.append((client.written, expected, request_id))

    def deliver(self, client: Client, size: int) -> None:
        size = max(0, size)
        piece, client.pipe = client.pipe[:size], client.pipe[size:]
        if piece and client.open and not client.doomed:
            client.delivered += len(piece)
            client.sent_at = self.now
            whole = sum(end <= client.delivered for end, *_ in client.requests)
            if whole + 1 > client.begun:
                client.begun = whole + 1
                client.begun_at = self.now
            client.peer.send_bytes(piece)

    def finish(self, number: int) -> None:
        self.waiting.pop(number).callback({"type": "later_done", "n": number})
        self.server.settle()

    def read_on(self, client: Client) -> None:
        if client.stopped_at is not None and not client.gone:
            client.stopped_at = None
            client.peer.start_reading()

    def receive(self, client: Client) -> None:
        """Take what came, and sort it."""
        for payload in client.peer.receive_payloads():
            message: Any = strict_json(payload)
            assert client.error is None, f"{message} after the fatal error"
            if message["type"] == "broadcast" and "from_client" in message:
                assert message.get("from_user") == (USER if self.asks else None)
                client.relays.setdefault(message["from_client"], []).append(message["content"])
            elif message["type"] == "error" and message["fatal"]:
                client.error = message["code"]
            elif message["type"] == "ping":
                assert client.beats and self.now - client.sent_at >= HEARTBEAT, "a ping that nobody needs"
            elif "id" in message:
                assert message["id"] not in client.named, f"{message} once more"
                client.named[message["id"]] = message
            else:
                client.answers.append(message)

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
            assert len(client.answers) == len(ordered), f"{ordered[position:]} are missing"
            assert client.named.keys() == named.keys(), f"{named.keys() - client.named.keys()} are missing"

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
            came = client.relays.get(sender.name, [])
            assert came == due[: len(came)], f"{came} came, {due} was sent"
            if complete:
                assert came == due, f"{due[len(came) :]} is missing"

    def check_end(self, client: Client) -> None:
        """Nobody is cut without a reason."""
        ends = [0, *(end for end, *_ in client.requests)]
        begun = client.delivered not in ends
        if client.error is None:
            return
        reasons = {
            "too_large": client.doomed,
            "slow_consumer": client.was_stuck,
            "auth_failed": client.failures == MAX_FAILURES,
            "auth_timeout": not client.joined and self.now - client.came_at >= AUTH_TIMEOUT,
            "heartbeat_timeout": client.beats and self.now - client.sent_at >= HEARTBEAT + ANSWER_TIME,
            "frame_timeout": begun and self.now - client.begun_at >= FRAME_TIMEOUT - 0.01,
        }
        assert reasons.get(client.error), f"{client.error} without a reason"

    @invariant()
    def all_is_well(self) -> None:
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

    def teardown(self) -> None:
        """All read on, send the rest and get their answers."""
        try:
            for client in self.all:
                self.read_on(client)
                self.deliver(client, len(client.pipe))
            self.server.settle()
            while self.waiting or self.checking():
                for number in sorted(self.waiting):
                    self.finish(number)
                self.server.advance(DELAYS[-1] if self.checking() else 0)
            for client in self.all:
                if client.gone:
                    continue
                self.receive(client)
                note(f"{client.name} {client.error}")
                self.check_end(client)
                complete = client.error is None
                assert complete == client.open
                self.check_answers(client, complete)
                self.check_relays(client, complete)
                if client.error is None and (client.doomed or client.failures == MAX_FAILURES):
                    raise AssertionError("what ends a connection was passed over")
            self.check_counts()
        finally:
            for client in self.all:
                if not client.gone:
                    client.peer.close()
            self.server.stop()

    def checking(self) -> bool:
        """Whether the answer to a login is still to come."""
        return any(client.peer.connection._checking is not None for client in self.all)

    def check_counts(self) -> None:
        """The factory's figures are those of its clients."""
        factory = self.server.factory
        served = {client.peer.connection for client in self.all if client.open and client.joined}
        assert served == factory.clients
        assert factory.stats.messages_in == sum(client.peer.connection.messages_in for client in self.all)
        assert factory.stats.messages_out == sum(client.peer.connection.messages_out for client in self.all)
        assert factory.stats.broadcasts == sum(len(client.broadcasts()) for client in self.all)
        assert factory.turn is None


class AskingModel(Model):
    """The same, of a server that asks for authentication."""

    asks = True


class ModelTests(SynchronousTestCase):
    def _assert_holds(self, model: type[Model]) -> None:
        run = settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_machine(model, settings=run)
        except Exception as error:
            # Trial leaves the notes out, and they tell what the clients did.
            notes = getattr(error, "__notes__", ())
            raise AssertionError("\n".join([f"{type(error).__name__}: {error}", *notes])) from None

    def test_whatever_clients_do(self) -> None:
        self._assert_holds(Model)

    def test_whatever_they_do_where_authentication_is_asked_for(self) -> None:
        self._assert_holds(AskingModel)
