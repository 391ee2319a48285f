"""One connection: who it is, what it may send, how long it may be silent, and why it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import ssl
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from scramp import ScramClient  # type: ignore[import-untyped]  # it has no types
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse as MemoryChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionLost
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import Interface, implementer

from tcpjson import Limits, Router
from tcpjson.auth import Authenticator, VerifierChecker
from tcpjson.connection import Connection
from tcpjson.core.compression import deflate
from tcpjson.core.errors import CODES, Forbidden
from tcpjson.core.framing import COMPRESSED, FrameReader, frame
from tcpjson.core.messages import Ping
from tcpjson.core.stats import ClosedConnection
from tcpjson.protocol import Hold
from tcpjson.proxied import ProxiedEndpoint
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given
from tcpjson.test.test_server import Case as ServerCase
from tcpjson.test.test_server import Do, Tokens, cast, contents, do, echo
from tcpjson.test.wires import (
    Loop,
    TLSWire,
    Wire,
    attach,
    authority,
    connect,
    socket_pair,
    tls_factory,
)
from tcpjson.testing import MemoryServer, Peer
from tcpjson.verifiers import Verifier

PASSWORD = "correct horse battery staple"
PING = {"type": "ping"}
PONG = {"type": "pong"}
HELLO = {"type": "hello", "heartbeat": True}


def auth(password: str = PASSWORD, **fields: object) -> dict[str, object]:
    return {"type": "auth", "mechanism": "plain", "username": "ann", "password": password, **fields}


def raw(*messages: object) -> bytes:
    """The frames of messages."""
    return b"".join(frame(json.dumps(message).encode()) for message in messages)


@implementer(ICredentialsChecker)
class SlowChecker:
    """Decides when the test does."""

    credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (IUsernamePassword,)

    def __init__(self) -> None:
        self.asked: list[Deferred[bytes | tuple[()]]] = []
        self.cancelled = 0

    def requestAvatarId(self, credentials: object) -> Deferred[bytes | tuple[()]]:
        self.asked.append(Deferred(self._cancel))
        return self.asked[-1]

    def _cancel(self, deferred: object) -> None:
        self.cancelled += 1

    def accept(self) -> None:
        self.asked.pop().callback(b"ann")

    def refuse(self) -> None:
        self.asked.pop().errback(UnauthorizedLogin())


def checker() -> MemoryChecker:
    """One who knows ann."""
    return MemoryChecker(ann=PASSWORD.encode())


class Case(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[LogEvent] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            self.events.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def lines(self, start: str = "") -> list[str]:
        """The lines of the server's log that begin so."""
        lines = [
            formatEvent(event)
            for event in self.events
            if event.get("log_namespace", "").startswith("tcpjson.")
        ]
        return [line for line in lines if line.startswith(start)]

    def ask(self, peer: Peer, *messages: object) -> list[Any]:
        peer.send(*messages)
        return peer.receive()

    def codes(self, messages: list[Any]) -> list[str]:
        return [message["code"] if message["type"] == "error" else message["type"] for message in messages]

    def assertEnd(self, server: MemoryServer, peer: Peer, code: str) -> Any:
        """It has just got a fatal error, which all that tells of its end names; returns the error."""
        *_, error = peer.receive()
        self.assertEqual((error["type"], error["code"], error["fatal"]), ("error", code, True))
        self.assertTrue(peer.closed)
        peer.close()
        self.assertEqual(server.factory.stats.disconnects, {code: 1})
        self.assertEqual([closed.code for closed in server.factory.stats.closed], [code])
        self.assertEqual(server.factory.stats.errors[code], 1)
        self.assertIn(f" reason={code} ", self.lines("disconnected ")[-1])
        return error


class SocketCase(Case):
    """Connections over sockets."""

    def setUp(self) -> None:
        super().setUp()
        self.loop = Loop()
        self.addCleanup(self.loop.close)

    def factory(self, *, checkers: Any = (), allow_plain: bool = False, **options: Any) -> Any:
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        authenticator = None
        if checkers:
            authenticator = Authenticator(
                checkers,
                self.loop,
                lambda key, function, *args: function(*args),
                allow_plain=allow_plain,
            )
        return TCPJSONServerFactory(
            self.loop,
            routers=[router],
            authenticator=authenticator,
            shuffle=lambda connections: None,
            **options,
        )

    def wire(self, factory: Any, **options: Any) -> Wire:
        """A new connection."""
        wire = connect(self.loop, factory, **options)
        self.addCleanup(wire.socket.close)
        return wire

    def silent(self, factory: Any, kind: type[Wire] = Wire) -> Any:
        """A new connection to a factory that may wait for something to come first."""
        ours, theirs = socket_pair()
        attach(self.loop, factory.buildProtocol(UNIXAddress(None)), ours)
        self.addCleanup(theirs.close)
        return kind(self.loop, theirs)

    def messages(self, wire: Wire) -> list[Any]:
        return [json.loads(payload) for payload in wire.payloads()]

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 8)):
            self.loop.advance(0.125)
            self.loop.settle()


def proxied(factory: Any) -> Any:
    """The factory that an endpoint behind a proxy listens with."""
    kept: list[Any] = []

    class Keeper:
        def listen(self, factory: Any) -> Any:
            kept.append(factory)

    endpoint: Any = Keeper()
    ProxiedEndpoint(endpoint).listen(factory)
    return kept[0]


def header(host: str = "192.0.2.1", port: int = 4711) -> bytes:
    family = "TCP6" if ":" in host else "TCP4"
    other = "::1" if ":" in host else "127.0.0.1"
    return f"PROXY {family} {host} {other} {port} 9999\r\n".encode()


class WelcomeTests(Case):
    """What `welcome` says of all this (section 4)."""

    def welcome(self, **options: Any) -> Any:
        [welcome] = self.server(**options).connect().receive()
        return welcome

    def test_authentication(self) -> None:
        welcome = self.welcome(checkers=[checker()], limits=Limits(auth_timeout=7))
        self.assertEqual(welcome["auth"], ["plain"])
        self.assertEqual(
            (welcome["limits"]["auth_timeout"], welcome["limits"]["pre_auth_max_length"]), (7, 4096)
        )
        self.assertEqual(welcome["max_length"], 1048576)

    def test_no_authentication(self) -> None:
        welcome = self.welcome()
        self.assertEqual(welcome["auth"], [])
        self.assertNotIn("auth_timeout", welcome["limits"])
        self.assertNotIn("pre_auth_max_length", welcome["limits"])

    def test_a_short_max_length(self) -> None:
        welcome = self.welcome(checkers=[checker()], limits=Limits(max_length=1000))
        self.assertEqual((welcome["max_length"], welcome["limits"]["pre_auth_max_length"]), (1000, 1000))

    def test_limits_in_force(self) -> None:
        limits = Limits(messages_per_second=10, bytes_per_second=2000, idle_timeout=60)
        told = self.welcome(limits=limits)["limits"]
        self.assertEqual(
            (told["messages_per_second"], told["bytes_per_second"], told["idle_timeout"]), (10, 2000, 60)
        )

    def test_rates_that_are_only_observed(self) -> None:
        limits = Limits(messages_per_second=10, bytes_per_second=2000, rate_policy="observe")
        self.assertEqual(
            {"max_queue", "frame_timeout", "write_timeout"}, set(self.welcome(limits=limits)["limits"])
        )

    def test_heartbeat(self) -> None:
        self.assertEqual(self.welcome(limits=Limits(heartbeat=12.5))["heartbeat"], 12.5)
        self.assertIsNone(self.welcome(limits=Limits(heartbeat=None))["heartbeat"])


class GuestTests(Case):
    """Before it has authenticated (section 6)."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = self.server(checkers=[checker()], limits=Limits(max_connections=3))
        self.guest = self.peer(self.memory)

    def test_what_is_served(self) -> None:
        self.assertEqual(
            self.codes(self.ask(self.guest, PING, HELLO, {"type": "ping", "id": 3}, auth())),
            ["pong", "hello_response", "pong", "auth_result"],
        )

    def test_what_is_not(self) -> None:
        called: list[Any] = []
        self.act = lambda session, message: called.append(message)
        kinds = ("echo", "broadcast", "get_stats", "do", "move", "pong", "auth_result")
        answers = self.ask(self.guest, *({"type": kind, "id": kind, "n": 1} for kind in kinds), {"id": 8}, {})
        self.assertEqual(self.codes(answers), ["unauthenticated"] * 9)
        self.assertEqual([answer.get("id") for answer in answers], [*kinds, 8, None])
        self.assertEqual({answer["fatal"] for answer in answers}, {False})
        self.assertEqual(called, [])

    def test_text_is_not_sent_back(self) -> None:
        self.guest.send_payload(b"hello", b"1", b"[1]")
        self.assertEqual(self.codes(self.guest.receive()), ["unauthenticated"] * 3)

    def test_what_is_wrong(self) -> None:
        self.guest.send_payload(b"", b"{", b'{"type":1}', b'{"type":"ping","id":[]}', b'{"type":"auth"}')
        self.assertEqual(
            self.codes(self.guest.receive()),
            ["bad_frame", "bad_json", "bad_message", "bad_message", "bad_message"],
        )

    def test_the_longest_frame(self) -> None:
        self.guest.send_payload(b'{"type":"ping","x":"%b"}' % (b"x" * 4074))
        self.assertEqual(self.codes(self.guest.receive()), ["pong"])

    def test_a_frame_longer_than_any_may_be(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(max_length=1000, max_queue=1000))
        guest = server.connect()
        self.assertEqual(guest.receive()[0]["limits"]["pre_auth_max_length"], 1000)
        guest.send_bytes((1001).to_bytes(4, "big"))
        self.assertEqual(self.codes(guest.receive()), ["too_large"])

    def test_too_long_a_frame(self) -> None:
        self.guest.send_bytes((4097).to_bytes(4, "big"))
        error = self.assertEnd(self.memory, self.guest, "too_large")
        self.assertIn("4096", error["message"])

    def test_it_is_no_client(self) -> None:
        other = self.peer(self.memory)
        other.send(auth())
        other.receive()
        sent, stats = self.ask(other, cast("hello"), {"type": "get_stats"})
        self.assertEqual((sent["recipients"], stats["connected_clients"]), (0, 1))
        self.assertEqual(self.guest.receive(), [])
        self.assertEqual(self.memory.factory.clients, {other.connection})
        self.guest.send(auth())
        self.assertEqual(self.memory.factory.clients, {other.connection, self.guest.connection})
        self.guest.receive()
        self.assertEqual(self.ask(other, cast("again"))[0]["recipients"], 1)
        self.assertEqual(contents(self.guest.receive()), ["again"])

    def test_it_takes_room(self) -> None:
        self.peer(self.memory)
        self.peer(self.memory)
        self.assertEqual(self.codes(self.memory.connect().receive()), ["server_full"])

    def test_strict(self) -> None:
        peer = self.peer(self.server(checkers=[checker()], strict=True))
        peer.send_payload(b'{"type":"move","id":1}', b"hello")
        self.assertEqual(self.codes(peer.receive()), ["unauthenticated"] * 2)

    def test_it_closes(self) -> None:
        self.guest.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"client_closed": 1})
        [closed] = self.memory.factory.stats.closed
        self.assertIsNone(closed.user)


class AuthTests(Case):
    """`auth` and what comes of it."""

    def test_success(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        [result] = self.ask(peer, auth(id="mine"))
        self.assertEqual(
            result,
            {
                "type": "auth_result",
                "id": "mine",
                "status": "authenticated",
                "user": "ann",
                "timestamp": "2024-01-01T12:00:00.000Z",
            },
        )
        self.assertEqual(self.lines("connected"), ["connected 127.0.0.1:50000 user='ann' clients=1"])
        self.assertEqual(self.codes(self.ask(peer, echo(1))), ["echo_response"])
        self.assertEqual(server.factory.stats.failed_logins, 0)
        # It is as fast as any other from now on.
        self.assertEqual(peer.connection.batch, Connection.batch)

    def test_failure(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        [result] = self.ask(peer, auth("wrong", id=7))
        self.assertEqual(
            result,
            {
                "type": "auth_result",
                "id": 7,
                "status": "authentication_failed",
                "timestamp": "2024-01-01T12:00:00.000Z",
            },
        )
        self.assertEqual(self.lines("login"), ["login failed 127.0.0.1:50000 mechanism=plain"])
        self.assertEqual((server.factory.stats.failed_logins, server.factory.clients), (1, set()))
        self.assertEqual(self.codes(self.ask(peer, echo(1))), ["unauthenticated"])
        peer.send(auth())
        server.advance(1)
        self.assertEqual(peer.receive()[0]["status"], "authenticated")

    def test_the_third_failure(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        peer.send(*(auth("wrong", id=n) for n in range(4)), PING)
        server.advance(4)
        messages = peer.receive()
        self.assertEqual(self.codes(messages), ["auth_result"] * 3 + ["auth_failed"])
        self.assertEqual([message.get("id") for message in messages], [0, 1, 2, None])
        self.assertTrue(messages[3]["fatal"])
        self.assertTrue(peer.closed)
        self.assertNotIn(peer.connection, server.factory.auth_deadlines)
        peer.close()
        self.assertEqual(server.factory.stats.disconnects, {"auth_failed": 1})
        self.assertEqual(server.factory.stats.failed_logins, 3)

    def test_what_is_no_attempt(self) -> None:
        """Wrong fields are no failed login."""
        peer = self.peer(self.server(checkers=[checker()]))
        wrong = [
            {"type": "auth"},
            {"type": "auth", "mechanism": "token", "token": "x"},
            {"type": "auth", "mechanism": "plain", "username": "ann"},
            {"type": "auth", "mechanism": "plain", "username": 1, "password": "x"},
        ]
        self.assertEqual(self.codes(self.ask(peer, *wrong, auth())), ["bad_message"] * 4 + ["auth_result"])

    def test_frames_behind_it_wait(self) -> None:
        """Unparsed: the limit of a guest does not hold for those that follow."""
        slow = SlowChecker()
        peer = self.peer(self.server(checkers=[slow]))
        self.act = lambda session, message: {"type": "done", "n": message.n, "user": session.user}
        long = "x" * 100_000
        peer.send(PING, auth(), do(1), echo(long), HELLO)
        self.assertEqual(self.codes(peer.receive()), ["pong"])
        self.assertEqual(peer.transport.producerState, "paused")
        peer.send(PING)
        self.assertEqual(peer.receive(), [])
        slow.accept()
        result, done, echoed, late, pong = peer.receive()
        self.assertEqual(
            self.codes([result, done, echoed, late, pong]),
            ["auth_result", "done", "echo_response", "bad_message", "pong"],
        )
        self.assertEqual((done["user"], echoed["content"]), ("ann", long))
        self.assertEqual(peer.transport.producerState, "producing")

    def test_frames_behind_one_that_fails(self) -> None:
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth(), echo("x"), PING, echo("x" * 5000))
        slow.refuse()
        self.assertEqual(self.codes(peer.receive()), ["auth_result", "unauthenticated", "pong", "too_large"])

    def test_a_long_frame_directly_behind_it(self) -> None:
        """In one read, with a check that takes no time."""
        peer = self.peer(self.server(checkers=[checker()]))
        self.assertEqual(
            self.codes(self.ask(peer, auth(), echo("x" * 5000), *[PING] * 300)),
            ["auth_result", "echo_response"] + ["pong"] * 300,
        )

    def test_a_long_frame_that_is_not_whole(self) -> None:
        peer = self.peer(self.server(checkers=[checker()]))
        data = raw(auth(), echo("x" * 5000))
        for byte in data[:-4000]:
            peer.send_bytes(bytes([byte]))
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        peer.send_bytes(data[-4000:])
        self.assertEqual(self.codes(peer.receive()), ["echo_response"])

    def test_the_limit_afterwards(self) -> None:
        peer = self.peer(self.server(checkers=[checker()], limits=Limits(max_length=10_000)))
        self.ask(peer, auth())
        peer.send_bytes((10_001).to_bytes(4, "big"))
        self.assertEqual(self.codes(peer.receive()), ["too_large"])

    def test_once(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        _, error, pong = self.ask(peer, auth(), auth("wrong", id=3), PING)
        self.assertEqual((error["code"], error["id"], pong["type"]), ("bad_message", 3, "pong"))
        self.assertIn("already", error["message"])
        self.assertEqual(server.factory.stats.failed_logins, 0)

    def test_where_none_is_asked_for(self) -> None:
        for strict in (False, True):
            peer = self.peer(self.server(strict=strict))
            [error] = self.ask(peer, auth(id=3))
            self.assertEqual((error["code"], error["id"], error["fatal"]), ("bad_message", 3, False))
            self.assertNotIn("already", error["message"])

    def test_nothing_of_it_is_told(self) -> None:
        """Whatever becomes of it, no answer and no line of the log has a secret."""

        @implementer(ICredentialsChecker)
        class Broken:
            credentialInterfaces: ClassVar[tuple[type[Interface], ...]] = (IUsernamePassword,)

            def requestAvatarId(self, credentials: Any) -> Any:
                raise RuntimeError(f"no such password: {credentials.password!r}")

        secret = "hunter2"
        messages: list[object] = [
            auth(secret),
            auth(secret, id=[secret]),
            auth(secret, username=3),
            auth(secret, mechanism=secret),
            auth(secret, mechanism={}),
            auth(secret, mechanism="token"),
            {"type": "auth", "mechanism": "scram-sha-256", "data": secret},
            {"type": "auth", "token": secret},
        ]
        payloads: list[bytes] = []
        for checkers in ([], [checker()], [Broken()], [MemoryChecker(ann=secret.encode())]):
            for strict in (False, True):
                for message in messages:
                    server = self.server(checkers=checkers, strict=strict)
                    peer = self.peer(server)
                    peer.send(message, message)
                    peer.send_payload(json.dumps(message).encode()[:-1])
                    server.advance(6)
                    payloads += peer.receive_payloads()
                    peer.close()
        self.assertTrue(self.lines("a checker failed"))
        self.assertGreater(len(payloads), 100)
        self.assertNotIn(secret.encode(), b"".join(payloads))
        for event in self.events:
            self.assertNotIn(secret, formatEvent(event))
            self.assertNotIn(secret, repr(event))

    def test_the_check_fails(self) -> None:
        """An error of the checker's is a failed login."""
        slow = SlowChecker()
        peer = self.peer(self.server(checkers=[slow]))
        peer.send(auth())
        slow.asked.pop().errback(ZeroDivisionError())
        self.assertEqual(peer.receive()[0]["status"], "authentication_failed")

    def test_a_checker_that_cannot_be_cancelled(self) -> None:
        """What it raises is logged, and the connection is gone all the same."""

        class Stubborn(SlowChecker):
            def _cancel(self, deferred: object) -> None:
                raise ZeroDivisionError

        server = self.server(checkers=[Stubborn()], limits=Limits(max_connections=1))
        peer = self.peer(server)
        peer.send(auth())
        peer.close()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((server.factory.connections, server.factory.admission.admitted), (set(), 0))

    def test_its_input_ends_in_the_midst_of_it(self) -> None:
        """On a transport that says so though nobody reads: it is answered first."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth())
        peer.connection.readConnectionLost()
        self.assertFalse(peer.closed)
        slow.accept()
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.assertTrue(peer.closed)

    def test_lost_in_the_midst_of_it(self) -> None:
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        for leave in (Peer.close, Peer.reset, lambda peer: peer.connection.close()):
            peer = self.peer(server)
            peer.send(auth(), do())
            slow.cancelled = 0
            leave(peer)
            server.settle()
            self.assertEqual(slow.cancelled, 1)
            self.assertEqual(server.factory.clients, set())
        server.advance(30)
        self.assertEqual(server.factory.stats.failed_logins, 0)
        self.assertEqual(server.factory.stats.messages_by_type(), {"auth": 3})
        self.assertEqual(self.lines("connected"), [])

    def test_lost_while_the_answer_waits(self) -> None:
        """Of the back-off no timer is left."""
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        peer.send(auth("wrong"), auth("wrong"))
        self.assertEqual(len(peer.receive()), 1)
        before = len(server.clock.getDelayedCalls())
        peer.close()
        self.assertEqual(len(server.clock.getDelayedCalls()), before - 1)

    def test_the_back_off(self) -> None:
        """The first failure of an address delays nothing; the others do, on other connections too."""
        server = self.server(checkers=[checker()])
        peers = [self.peer(server) for _ in range(6)]
        waited = []
        for peer in peers:
            peer.send(auth("wrong"))
            start = server.clock.seconds()
            while not (messages := peer.receive()):
                server.advance(0.125)
            self.assertEqual(self.codes(messages), ["auth_result"])
            waited.append(server.clock.seconds() - start)
        self.assertEqual(waited, [0, 0.25, 0.5, 1, 2, 2])

    def test_who_it_is(self) -> None:
        """Handlers know it, and those that get its broadcasts."""
        server = self.server(checkers=[checker()])
        one, two = self.peer(server), self.peer(server)
        for peer in (one, two):
            self.ask(peer, auth())
        self.act = lambda session, message: {"type": "you", "user": session.user}
        self.assertEqual(self.ask(one, do())[0]["user"], "ann")
        one.send(cast("hello"))
        [relayed] = two.receive()
        self.assertEqual((relayed["from_user"], relayed["from_client"]), ("ann", "127.0.0.1:50000"))

    def test_who_nobody_asked(self) -> None:
        server = self.server()
        one, two = self.peer(server), self.peer(server)
        one.send(cast("hello"))
        [relayed] = two.receive()
        self.assertNotIn("from_user", relayed)
        self.assertIsNone(one.connection.user)

    def test_a_name_in_the_log(self) -> None:
        """It stays one line, and a short one, whatever a name holds."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth())
        slow.asked.pop().callback("eve\n\u2028disconnected".encode() + b"x" * 500)
        peer.close()
        for line in self.lines():
            self.assertLess(len(line), 300)
            self.assertTrue(line.isprintable() and line.isascii(), line)
        self.assertIn(r"user='eve\n\u2028disconnected", self.lines("connected")[0])

    def test_scram(self) -> None:
        """By way of a challenge, which takes no time off."""
        path = Path(self.mktemp())
        verifier = Verifier.make(PASSWORD, 4096, lambda size: bytes(size))
        path.write_text(f"ann:{verifier.format()}\n")
        path.chmod(0o600)
        server = self.server(checkers=[VerifierChecker(str(path))])
        peer = self.peer(server)
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        first = {"type": "auth", "mechanism": "scram-sha-256", "data": client.get_client_first()}
        challenge, pong = self.ask(peer, {**first, "id": 1}, PING)
        self.assertEqual((challenge["type"], challenge["id"]), ("auth_challenge", 1))
        self.assertEqual(pong["type"], "pong")
        client.set_server_first(challenge["data"])
        final = {"type": "auth", "mechanism": "scram-sha-256", "data": client.get_client_final()}
        [result] = self.ask(peer, {**final, "id": 2})
        self.assertEqual((result["status"], result["user"], result["id"]), ("authenticated", "ann", 2))
        client.set_server_final(result["data"])

    def test_the_mechanism_of_a_failure(self) -> None:
        """The log names it, where the message that failed did not."""
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make(PASSWORD, 4096, bytes).format()}\n")
        path.chmod(0o600)
        peer = self.peer(self.server(checkers=[VerifierChecker(str(path))]))
        peer.send({"type": "auth", "mechanism": "scram-sha-256", "data": "n,,n=ann,r=nonce"})
        peer.send({"type": "auth", "data": "c=biws,r=nonce,p=bm8="})
        self.assertEqual(self.codes(peer.receive()), ["auth_challenge", "auth_result"])
        self.assertEqual(self.lines("login"), ["login failed 127.0.0.1:50000 mechanism=scram-sha-256"])

    def test_a_challenge_stops_no_clock(self) -> None:
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make(PASSWORD, 4096, bytes).format()}\n")
        path.chmod(0o600)
        server = self.server(checkers=[VerifierChecker(str(path))])
        peer = self.peer(server)
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        peer.send({"type": "auth", "mechanism": "scram-sha-256", "data": client.get_client_first()})
        server.advance(5.2)
        self.assertEqual(self.codes(peer.receive()), ["auth_challenge", "auth_timeout"])

    def test_no_secret_is_kept(self) -> None:
        """From a connection there is no way to what it sent to prove who it is."""
        for slow in (SlowChecker(), None):
            for good in (True, False):
                server = self.server(checkers=[slow or checker()])
                peer = self.peer(server)
                secret = PASSWORD if good else "another password, a wrong one"
                peer.send_bytes(raw(auth(secret)))
                if slow is not None:
                    (slow.accept if good else slow.refuse)()
                self.assertEqual(peer.receive()[0].get("user"), "ann" if good else None)
                if good:
                    self.assertIsNone(peer.connection._login)
                held = [text for text in reachable(peer.connection) if secret in text]
                self.assertEqual(held, [])


def reachable(connection: Connection) -> Iterator[str]:
    """All texts to which a connection leads, but by way of its factory."""
    passed = (
        types.ModuleType,
        type,
        types.FunctionType,
        types.FrameType,
        TCPJSONServerFactory,
        Authenticator,
    )
    seen: set[int] = set()
    todo: list[object] = [connection]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, passed):
            continue
        seen.add(id(found))
        if isinstance(found, (bytes, bytearray)):
            yield found.decode("latin-1")
        elif isinstance(found, str):
            yield found
        else:
            todo += gc.get_referents(found)


class AuthTimeoutTests(Case):
    """`auth_timeout` (section 6)."""

    def test_nothing_comes(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        server.advance(4.875)
        self.assertFalse(peer.closed)
        server.advance(0.25)
        self.assertEnd(server, peer, "auth_timeout")

    def test_the_connection_is_lost_during_a_check(self) -> None:
        """No deadline stays for it."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth())
        peer.close()
        self.assertEqual(slow.cancelled, 1)
        self.assertNotIn(peer.connection, server.factory.auth_deadlines)

    def test_what_is_no_proof(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(auth_timeout=2))
        peer = self.peer(server)
        for _ in range(9):
            peer.send(PING, HELLO, echo("x"), {"type": "auth"})
            server.advance(0.25)
        self.assertEnd(server, peer, "auth_timeout")

    def test_authenticated_in_time(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        server.advance(4.875)
        self.ask(peer, auth())
        server.advance(60)
        self.assertFalse(peer.closed)

    def test_it_stands_still_during_a_check(self) -> None:
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        server.advance(3)
        peer.send(auth())
        server.advance(29)
        self.assertFalse(peer.closed)
        slow.refuse()
        server.advance(1.875)
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.assertFalse(peer.closed)
        server.advance(0.25)
        self.assertEnd(server, peer, "auth_timeout")

    def test_a_check_that_does_not_end(self) -> None:
        """It counts as no failure, and the client's time goes on."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        server.advance(3)
        peer.send({**auth(), "id": 7}, PING)
        # The back-off, of 2 s at the most, is none of the checker's time.
        server.advance(31.875)
        self.assertEqual(peer.receive(), [])
        server.advance(0.25)
        [error, pong] = peer.receive()
        self.assertEqual((error["code"], error["id"], error["fatal"]), ("timeout", 7, False))
        self.assertEqual(pong["type"], "pong")
        self.assertEqual(server.factory.stats.failed_logins, 0)
        server.advance(1.75)
        self.assertFalse(peer.closed)
        server.advance(0.25)
        self.assertEnd(server, peer, "auth_timeout")

    def test_it_stands_still_during_the_back_off(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(auth_timeout=0.5))
        for _ in range(6):
            before = self.peer(server)
            before.send(auth("wrong"))
            server.advance(3)
        server.factory.stats.disconnects.clear()
        server.factory.stats.closed.clear()
        server.factory.stats.errors.clear()
        peer = self.peer(server)
        server.advance(0.25)
        peer.send(auth("wrong"))
        server.advance(1.875)
        self.assertEqual((peer.receive(), peer.closed), ([], False))
        server.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        server.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["auth_timeout"])

    def test_its_own_rate_is_no_excuse(self) -> None:
        """Else anybody could stay for ever, by sending more than the rate and no proof."""
        server = self.server(checkers=[checker()], limits=Limits(messages_per_second=8))
        peer = self.peer(server)
        for _ in range(39):
            peer.send(PING, PING)
            server.advance(0.125)
        self.assertTrue(peer.connection.paused)
        self.assertFalse(peer.closed)
        server.advance(0.25)
        self.assertEnd(server, peer, "auth_timeout")

    def test_nor_are_answers_that_it_does_not_take(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        peer.stop_reading()
        peer.send(*[PING] * 2000)
        self.assertTrue(peer.connection.paused)
        server.advance(5.25)
        peer.start_reading()
        self.assertEnd(server, peer, "auth_timeout")

    def test_no_authentication_no_deadline(self) -> None:
        server = self.server()
        peer = self.peer(server)
        server.advance(100)
        self.assertFalse(peer.closed)


class AuthSocketTests(SocketCase):
    """Where the transport decides what may be asked for, and what comes first."""

    def test_in_the_clear(self) -> None:
        """A mechanism that needs a confidential line is not offered on another."""
        factory = proxied(self.factory(checkers=[checker()]))
        wire = self.silent(factory)
        wire.send(header())
        welcome, error = self.messages(wire)
        self.assertEqual((welcome["type"], welcome["auth"], error["code"]), ("welcome", [], "auth_failed"))
        self.assertTrue(wire.ended)

    def test_in_the_clear_without_a_proxy(self) -> None:
        connection = self.factory(checkers=[checker()]).buildProtocol(None)
        transport = StringTransport()
        connection.makeConnection(transport)
        self.assertIn(b'"auth":[]', transport.value())
        self.assertIn(b'"code":"auth_failed"', transport.value())

    def test_in_the_clear_by_demand(self) -> None:
        wire = self.silent(proxied(self.factory(checkers=[checker()], allow_plain=True)))
        wire.send(header() + raw(auth()))
        welcome, result = self.messages(wire)
        self.assertEqual((welcome["auth"], result["status"]), (["plain"], "authenticated"))

    def test_on_a_unix_socket(self) -> None:
        factory = self.factory(checkers=[checker()])
        wire = self.wire(factory)
        wire.send(raw(auth("wrong"), auth("wrong"), auth()))
        # Where there is no address, nothing is delayed.
        welcome, *results = self.messages(wire)
        self.assertEqual(welcome["auth"], ["plain"])
        self.assertEqual(
            [result["status"][:15] for result in results], ["authentication_"] * 2 + ["authenticated"]
        )

    def test_over_tls(self) -> None:
        factory = self.factory(checkers=[checker()])
        encrypted = tls_factory(factory, self.loop)
        for outer, first in ((encrypted, b""), (proxied(encrypted), header())):
            wire = self.silent(outer, TLSWire)
            wire.socket.send(first)
            wire.shake_hands()
            [welcome] = self.messages(wire)
            self.assertEqual(welcome["auth"], ["plain"])
            wire.send(raw(auth(), echo("x" * 5000)))
            self.assertEqual(self.codes(self.messages(wire)), ["auth_result", "echo_response"])

    def test_tls_within_the_same_time(self) -> None:
        factory = self.factory(checkers=[checker()])
        wire = self.silent(tls_factory(factory, self.loop), TLSWire)
        self.advance(3)
        wire.shake_hands()
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.advance(1.875)
        self.assertEqual(self.messages(wire), [])
        self.advance(0.25)
        self.assertEqual(self.codes(self.messages(wire)), ["auth_timeout"])

    def test_the_header_within_the_same_time(self) -> None:
        factory = self.factory(checkers=[checker()], allow_plain=True)
        wire = self.silent(proxied(factory))
        self.advance(3)
        wire.send(header())
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.advance(2.25)
        self.assertEqual(self.codes(self.messages(wire)), ["auth_timeout"])

    def test_what_never_comes(self) -> None:
        """No handshake, or no header, whether or not there is authentication after it."""
        for checkers in ([checker()], []):
            for wrap in (lambda inner: tls_factory(inner, self.loop), proxied):
                factory = self.factory(checkers=checkers, limits=Limits(auth_timeout=2, frame_timeout=100))
                wire = self.silent(wrap(factory))
                self.advance(1.875)
                self.assertEqual(factory.stats.disconnects, {})
                self.advance(0.25)
                wire.take_all()
                self.assertTrue(wire.ended)
                self.assertEqual(wire.raw, b"")
                self.assertEqual(factory.stats.disconnects, {"handshake_failed": 1})
                self.assertEqual([closed.code for closed in factory.stats.closed], ["handshake_failed"])

    def test_why_it_never_came(self) -> None:
        """The log says so, and of whom, as far as that is known."""
        factory = self.factory()
        encrypted = tls_factory(factory, self.loop)
        for outer, kind, data, end, who, why in (
            (encrypted, TLSWire, b"", False, "unix:1", " why=not_done_in_time"),
            (encrypted, TLSWire, b"GET / HTTP/1.1\r\n\r\n", False, "unix:2", " why=http_request"),
            (encrypted, TLSWire, b"", True, "unix:3", ""),
            (proxied(factory), Wire, b"", False, "unix:4", " why=not_done_in_time"),
            (proxied(factory), Wire, b"PROXY nothing\r\n", False, "unix:5", " why=no_proxy_header"),
            (proxied(encrypted), TLSWire, header(), True, "192.0.2.1:4711", ""),
            (proxied(encrypted), TLSWire, header(), False, "192.0.2.1:4711", " why=not_done_in_time"),
        ):
            wire = self.silent(outer, kind)
            Wire.send(wire, data)
            if end:
                wire.close()
            else:
                self.advance(6)
            line = self.lines("disconnected ")[-1]
            self.assertIn(f"disconnected {who} reason=handshake_failed{why} seconds=", line)
            closed = factory.stats.closed[-1]
            self.assertEqual((closed.client_id, closed.detail), (who, why.removeprefix(" why=")))

    def test_after_the_handshake_without_authentication(self) -> None:
        factory = self.factory()
        wire = self.silent(tls_factory(factory, self.loop), TLSWire)
        wire.shake_hands()
        self.advance(20)
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.assertEqual(len(factory.clients), 1)

    def test_a_client_certificate(self) -> None:
        """It says who the client is: no authentication is needed."""
        factory = self.factory(checkers=[checker()])
        wire = self.silent(mutual_tls_factory(factory, self.loop), TLSWire)
        with_certificate(wire)
        wire.shake_hands()
        [welcome] = self.messages(wire)
        self.assertEqual(welcome["auth"], [])
        [connection] = factory.clients
        self.assertEqual(connection.user, "bob")
        self.assertEqual(factory.stats.logins, {("certificate", "authenticated"): 1})
        self.act = lambda session, message: {"type": "you", "user": session.user}
        wire.send(raw(do(), auth()))
        you, error = self.messages(wire)
        self.assertEqual((you["user"], error["code"]), ("bob", "bad_message"))
        self.assertIn("already", error["message"])
        self.advance(10)
        self.assertEqual(self.messages(wire), [])

    def test_a_half_closed_guest(self) -> None:
        factory = self.factory(checkers=[checker()])
        wire = self.wire(factory)
        wire.socket.send(raw(PING, auth(), echo(1)))
        wire.end()
        self.assertEqual(self.codes(self.messages(wire)), ["welcome", "pong", "auth_result", "echo_response"])
        self.assertTrue(wire.ended)

    def test_half_closed_in_the_midst_of_a_check(self) -> None:
        slow = SlowChecker()
        factory = self.factory(checkers=[slow])
        wire = self.wire(factory)
        wire.socket.send(raw(auth(), echo(1)))
        wire.end()
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.assertFalse(wire.ended)
        slow.accept()
        self.assertEqual(self.codes(self.messages(wire)), ["auth_result", "echo_response"])
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})


def mutual_tls_factory(factory: Any, loop: Loop) -> Any:
    """The factory with TLS around its protocols, for clients with a certificate."""
    pem = authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    with warnings.catch_warnings():
        # Twisted calls what pyOpenSSL means to remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        ours = Certificate.loadPEM(authority().cert_pem.bytes())
        return TLSMemoryBIOFactory(PrivateCertificate.loadPEM(pem).options(ours), False, factory, loop)


def with_certificate(wire: TLSWire) -> None:
    """Have a peer show a certificate in its handshake."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    authority().issue_cert("bob@example.com", common_name="bob").configure_cert(context)
    wire.tls = context.wrap_bio(wire._incoming, wire._outgoing, server_hostname="localhost")


class HelloTests(Case):
    """`hello` (section 5)."""

    def test_all_fields(self) -> None:
        peer = self.peer(self.server())
        hello = {**HELLO, "id": 9, "client": "mine/1", "compression": ["br", "zlib"], "features": ["rooms"]}
        [response] = self.ask(peer, hello)
        self.assertEqual(
            response,
            {
                "type": "hello_response",
                "id": 9,
                "heartbeat": True,
                "compression": "zlib",
                "features": [],
                "timestamp": "2024-01-01T12:00:00.000Z",
            },
        )

    def test_heartbeat_is_agreed_by_both(self) -> None:
        for server, client, agreed in ((25, True, True), (25, False, False), (None, True, False)):
            peer = self.peer(self.server(limits=Limits(heartbeat=server)))
            [response] = self.ask(peer, {"type": "hello", "heartbeat": client})
            self.assertIs(response["heartbeat"], agreed)
        peer = self.peer(self.server())
        self.assertIs(self.ask(peer, {"type": "hello"})[0]["heartbeat"], False)

    def test_once_and_first(self) -> None:
        befores: list[Any] = [
            HELLO,
            {"type": "hello"},
            echo(1),
            cast(1),
            {"type": "get_stats"},
            do(),
            {"type": "move"},
            PONG,
            {},
            [],
        ]
        for before in befores:
            for apart in (False, True):
                peer = self.peer(self.server())
                if apart:
                    peer.send(before)
                    peer.receive()
                    peer.send({**HELLO, "id": 1})
                else:
                    peer.send(before, {**HELLO, "id": 1})
                *_, error = peer.receive()
                self.assertEqual(
                    (error.get("code"), error["id"], error["fatal"]), ("bad_message", 1, False), before
                )
                self.assertIn("hello comes once", error["message"])
                self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])

    def test_what_may_come_before(self) -> None:
        for apart in (False, True):
            peer = self.peer(self.server())
            before = [PING, auth(), {"type": "hello", "heartbeat": 1}, PING]
            if apart:
                for message in before:
                    peer.send(message)
                peer.send(HELLO)
            else:
                peer.send(*before, HELLO)
            answers = self.codes(peer.receive())
            self.assertEqual(answers, ["pong", "bad_message", "bad_message", "pong", "hello_response"])

    def test_around_the_authentication(self) -> None:
        for messages in (
            [HELLO, auth(), HELLO],
            [auth(), HELLO, HELLO],
            [PING, HELLO, PING, auth(), PING, HELLO],
            [auth(), PING, auth(), HELLO, PING, HELLO],
        ):
            peer = self.peer(self.server(checkers=[checker()]))
            peer.send(*messages)
            answers = self.codes(peer.receive())
            self.assertEqual(answers.count("hello_response"), 1)
            self.assertEqual(answers[-1], "bad_message")

    def test_late_after_the_authentication(self) -> None:
        peer = self.peer(self.server(checkers=[checker()]))
        self.assertEqual(
            self.codes(self.ask(peer, auth(), echo(1), HELLO)),
            ["auth_result", "echo_response", "bad_message"],
        )

    def test_a_second_before_the_authentication(self) -> None:
        peer = self.peer(self.server(checkers=[checker()]))
        self.assertEqual(
            self.codes(self.ask(peer, HELLO, HELLO, auth())), ["hello_response", "bad_message", "auth_result"]
        )

    def test_application_types_after_it(self) -> None:
        self.act = lambda session, message: {"type": "done"}
        for hello in (HELLO, {"type": "hello"}):
            peer = self.peer(self.server())
            self.assertEqual(
                self.codes(self.ask(peer, hello, do(), do())), ["hello_response", "done", "done"]
            )
            self.assertEqual(self.codes(self.ask(peer, do(), {"type": "x"})), ["done", "response"])


class CompressionTests(Case):
    """What `hello` agrees on about compression (sections 5 and 7)."""

    ZLIB: ClassVar[dict[str, object]] = {"type": "hello", "compression": ["zlib"]}

    def packed(self, *messages: object) -> bytes:
        """Messages in compressed frames."""
        return b"".join(frame(deflate(json.dumps(message).encode()), True) for message in messages)

    def agreed(self, server: MemoryServer, *before: object) -> Peer:
        """A client that compresses, and said something before."""
        peer = self.peer(server)
        *_, response = self.ask(peer, *before, self.ZLIB)
        self.assertEqual((response["type"], response["compression"]), ("hello_response", "zlib"))
        return peer

    def test_the_clients_choice(self) -> None:
        for names, chosen in (
            (["zlib"], "zlib"),
            (["br", "zlib", "zlib"], "zlib"),
            (["br"], None),
            (["ZLIB", "deflate", ""], None),
            ([], None),
        ):
            peer = self.peer(self.server())
            [response] = self.ask(peer, {"type": "hello", "compression": names})
            self.assertEqual(response["compression"], chosen)
            peer.send_bytes(self.packed(PING))
            self.assertEqual(self.codes(peer.receive()), ["pong" if chosen else "too_large"])

    def test_a_client_that_says_nothing_of_it(self) -> None:
        peer = self.peer(self.server())
        self.assertIsNone(self.ask(peer, HELLO)[0]["compression"])
        self.assertFalse(peer.connection.compresses)

    def test_a_server_that_does_not(self) -> None:
        server = self.server(compress_over=None)
        peer = server.connect()
        self.assertEqual(peer.receive()[0]["compression"], [])
        self.assertIsNone(self.ask(peer, self.ZLIB)[0]["compression"])
        self.assertEqual(self.codes(self.ask(peer, echo("x" * 5000))), ["echo_response"])
        peer.send_bytes(self.packed(PING))
        self.assertEqual(self.codes(peer.receive()), ["too_large"])

    def test_without_hello(self) -> None:
        """Bit 31 is part of the length, which is refused before anything else of the frame has come."""
        peer = self.peer(self.server())
        peer.send_bytes(self.packed(PING)[:4])
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"]), ("too_large", True))
        self.assertIn(str(2**31 + len(self.packed(PING)) - 4), error["message"])

    def test_after_a_refused_hello(self) -> None:
        peer = self.peer(self.server())
        self.ask(peer, {"type": "hello", "compression": "zlib"})
        self.assertFalse(peer.connection.compresses)
        self.assertEqual(self.ask(peer, self.ZLIB)[0]["compression"], "zlib")

    def test_a_late_hello(self) -> None:
        peer = self.peer(self.server())
        self.assertEqual(self.codes(self.ask(peer, echo(1), self.ZLIB)), ["echo_response", "bad_message"])
        peer.send_bytes(self.packed(PING))
        self.assertEqual(self.codes(peer.receive()), ["too_large"])

    def test_a_second_hello_changes_nothing(self) -> None:
        peer = self.agreed(self.server())
        self.assertEqual(self.codes(self.ask(peer, {"type": "hello"})), ["bad_message"])
        peer.send_bytes(self.packed(PING))
        self.assertEqual(self.codes(peer.receive()), ["pong"])

    def test_the_response_itself_is_not_compressed(self) -> None:
        """Nor what is before it in the same read, however small is what may be."""
        server = self.server(compress_over=1)
        peer = self.peer(server)
        hello = {**self.ZLIB, "id": "i" * 128}
        peer.send({"type": "ping", "timestamp": "x" * 500}, hello, {"type": "ping", "timestamp": "y" * 500})
        data = peer.transport.value()
        self.assertEqual(self.codes(peer.receive()), ["pong", "hello_response", "pong"])
        lengths = []
        while data:
            length = int.from_bytes(data[:4], "big")
            lengths.append(length >> 31)
            data = data[4 + (length & ~COMPRESSED) :]
        self.assertEqual(lengths, [0, 0, 1])

    def test_the_id_comes_back(self) -> None:
        [response] = self.ask(self.peer(self.server()), {**self.ZLIB, "id": 7})
        self.assertEqual(response["id"], 7)

    def test_compressed_frames_behind_it_in_the_same_read(self) -> None:
        """The client was to wait. One that does not may be lucky."""
        peer = self.peer(self.server())
        peer.send_bytes(raw(self.ZLIB) + self.packed(PING, echo(1)))
        self.assertEqual(self.codes(peer.receive()), ["hello_response", "pong", "echo_response"])

    def test_while_an_answer_is_to_come(self) -> None:
        """The response waits behind it, and nothing that may be compressed must come before."""
        router = Router()
        waiting: list[Deferred[Any]] = []

        def slow(session: Any, message: Ping) -> Any:
            waiting.append(Deferred())
            return waiting[-1]

        router.add(Ping, slow)
        for request_id in (None, 5):
            server = MemoryServer(routers=[router], compress_over=1)
            self.addCleanup(server.stop)
            peer, other = self.peer(server), self.peer(server)
            peer.send({"type": "ping", "id": request_id}, {**self.ZLIB, "id": request_id})
            other.send({"type": "broadcast", "content": "x" * 2000})
            waiting.pop().callback({"type": "slow", "content": "y" * 2000})
            data = peer.transport.value()
            peer.send_bytes(self.packed(PING))
            [response, *_] = [message for message in peer.receive() if message["type"] == "hello_response"]
            self.assertIsNone(response["compression"])
            self.assertGreater(len(data), 4000)
            self.assertTrue(peer.closed)

    def test_before_the_authentication(self) -> None:
        """A payload may have 4,096 bytes, inflated too; what was agreed on holds after it."""
        server = self.server(checkers=[checker()], compress_over=1)
        peer = self.agreed(server)
        for size, codes in ((4096, ["pong"]), (4097, ["too_large"])):
            ping = json.dumps({"type": "ping", "timestamp": ""}).encode()
            payload = ping.replace(b'""', b'"%s"' % (b"x" * (size - len(ping))))
            self.assertEqual(len(payload), size)
            peer.send_bytes(frame(deflate(payload), True))
            self.assertEqual(self.codes(peer.receive()), codes)
        self.assertTrue(peer.closed)

        peer = self.agreed(server)
        peer.send_bytes(self.packed(auth(), echo("x" * 10_000)))
        self.assertEqual(self.codes(peer.receive()), ["auth_result", "echo_response"])
        peer.send_bytes(self.packed(echo("x" * 1_000_000)))
        self.assertEqual(len(peer.receive()[0]["content"]), 1_000_000)

    def test_a_bomb_before_the_authentication(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.agreed(server)
        peer.send_bytes(frame(deflate(b"x" * 500_000), True))
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"]), ("too_large", True))
        self.assertIn("4096 bytes, when inflated", error["message"])

    def test_behind_a_proof_that_is_checked(self) -> None:
        """It waits as it came: not inflated, and for the limit that holds then."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.agreed(server)
        peer.send_bytes(self.packed(auth(), echo("x" * 100_000)))
        self.assertEqual(peer.receive(), [])
        self.assertLess(len(peer.connection._reader._data), 2000)
        slow.accept()
        server.settle()
        self.assertEqual(self.codes(peer.receive()), ["auth_result", "echo_response"])

    def test_after_the_authentication(self) -> None:
        peer = self.agreed(self.server(checkers=[checker()]), auth())
        peer.send_bytes(self.packed(echo("x" * 10_000)))
        self.assertEqual(self.codes(peer.receive()), ["echo_response"])

    def test_heartbeats(self) -> None:
        server = self.server()
        peer = self.peer(server)
        response, *_ = self.ask(peer, {**HELLO, **self.ZLIB})
        self.assertEqual((response["heartbeat"], response["compression"]), (True, "zlib"))
        server.advance(25)
        self.assertEqual(self.codes(peer.receive()), ["ping"])
        peer.send_bytes(self.packed(PONG))
        server.advance(20)
        self.assertEqual((peer.receive(), peer.closed), ([], False))


class PongTests(Case):
    """`pong` belongs to the protocol where the client said `heartbeat` (sections 5 and 8)."""

    def agreed(self, **options: Any) -> Peer:
        peer = self.peer(self.server(**options))
        self.ask(peer, HELLO)
        return peer

    def test_no_reply(self) -> None:
        for strict in (False, True):
            peer = self.agreed(strict=strict)
            pong = {"type": "pong", "ping_timestamp": "2024-01-01T12:00:00.000Z", "id": 3}
            self.assertEqual(self.codes(self.ask(peer, pong, PING, PONG)), ["pong"])

    def test_in_the_same_read(self) -> None:
        peer = self.peer(self.server())
        answers = self.ask(peer, PING, HELLO, PONG, PING, PONG)
        self.assertEqual(self.codes(answers), ["pong", "hello_response", "pong"])

    def test_after_the_authentication(self) -> None:
        for messages in ([HELLO, auth()], [auth(), HELLO]):
            peer = self.peer(self.server(checkers=[checker()]))
            self.ask(peer, *messages)
            self.assertEqual(self.ask(peer, PONG), [])
            peer = self.peer(self.server(checkers=[checker()]))
            self.assertEqual(len(self.ask(peer, *messages, PONG)), 2)

    def test_a_type_of_the_users_own(self) -> None:
        for before in ([], [{"type": "hello"}], [echo(1)]):
            peer = self.peer(self.server())
            self.ask(peer, *before)
            [response] = self.ask(peer, {"type": "pong", "x": 1})
            self.assertEqual(response["original_message"], {"type": "pong", "x": 1})

    def test_without_heartbeats(self) -> None:
        """The client said it, and the server did not agree."""
        peer = self.agreed(limits=Limits(heartbeat=None))
        self.assertEqual(self.codes(self.ask(peer, PONG)), ["response"])

    def test_strict(self) -> None:
        peer = self.peer(self.server(strict=True))
        self.ask(peer, {"type": "hello"})
        self.assertEqual(self.codes(self.ask(peer, PONG)), ["unknown_type"])
        self.assertEqual(self.codes(self.ask(self.agreed(strict=True), {"type": "x"})), ["unknown_type"])


class HeartbeatTests(Case):
    """Pings of those who asked for them (section 8)."""

    def agreed(self, **options: Any) -> Peer:
        self.memory = self.server(**options)
        peer = self.peer(self.memory)
        self.assertTrue(self.ask(peer, HELLO)[0]["heartbeat"])
        return peer

    def test_a_ping_after_silence(self) -> None:
        peer = self.agreed()
        self.memory.advance(24.875)
        self.assertEqual(peer.receive(), [])
        self.memory.advance(0.25)
        self.assertEqual(peer.receive(), [{"type": "ping", "timestamp": "2024-01-01T12:00:25.000Z"}])

    def test_one_ping_and_then_the_end(self) -> None:
        peer = self.agreed()
        self.memory.advance(34.875)
        self.assertEqual(self.codes(peer.receive()), ["ping"])
        self.assertFalse(peer.closed)
        self.memory.advance(0.25)
        self.assertEnd(self.memory, peer, "heartbeat_timeout")

    def test_an_answer(self) -> None:
        peer = self.agreed()
        for _ in range(5):
            self.memory.advance(30)
            self.assertEqual(self.codes(peer.receive()), ["ping"])
            peer.send(PONG)
        self.assertEqual(peer.receive(), [])
        self.assertFalse(peer.closed)

    def test_any_bytes(self) -> None:
        """Even those of a frame that is not whole."""
        peer = self.agreed(limits=Limits(frame_timeout=1000))
        peer.send_bytes(b"\0\0\1\0")
        for _ in range(10):
            self.memory.advance(20)
            peer.send_bytes(b"x")
        self.assertEqual(peer.receive(), [])
        self.memory.advance(34)
        self.assertEqual(self.codes(peer.receive()), ["ping"])
        peer.send_bytes(b"x")
        self.memory.advance(20)
        self.assertFalse(peer.closed)

    def test_the_interval(self) -> None:
        peer = self.agreed(limits=Limits(heartbeat=3))
        self.memory.advance(2.875)
        self.assertEqual(peer.receive(), [])
        self.memory.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["ping"])

    def test_those_that_did_not_ask(self) -> None:
        server = self.server(limits=Limits(heartbeat=3))
        peers = [self.peer(server) for _ in range(3)]
        self.ask(peers[1], {"type": "hello"})
        self.ask(peers[2], {"type": "hello", "heartbeat": False}, PING)
        server.advance(1000)
        for peer in peers:
            self.assertEqual((peer.receive(), peer.closed), ([], False))

    def test_not_before_the_authentication(self) -> None:
        server = self.server(limits=Limits(heartbeat=3, auth_timeout=50), checkers=[checker()])
        peer = self.peer(server)
        self.ask(peer, HELLO)
        server.advance(20)
        self.assertEqual(peer.receive(), [])
        self.ask(peer, auth())
        server.advance(2.875)
        self.assertEqual(peer.receive(), [])
        server.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["ping"])

    def test_not_while_it_is_we_who_do_not_read(self) -> None:
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        peer = self.agreed(limits=Limits(max_handlers=1, handler_timeout=1000))
        peer.send(do())
        self.memory.advance(100)
        self.assertEqual(peer.receive(), [])
        slow.pop().callback({"type": "done"})
        self.memory.advance(18)
        self.assertEqual(self.codes(peer.receive()), ["done"])
        self.memory.advance(8)
        self.assertEqual(self.codes(peer.receive()), ["ping"])
        # Once more, now that an answer is awaited: the answer lies unread.
        peer.connection.pauseProducing()
        peer.send(PONG)
        self.memory.advance(100)
        self.assertEqual((peer.receive(), peer.closed), ([], False))
        peer.connection.resumeProducing()
        self.memory.advance(18)
        self.assertEqual((peer.receive(), peer.closed), ([], False))

    def test_a_handler_does_not_answer_for_it(self) -> None:
        """While it is read, it may be asked, whatever we are at."""
        self.act = lambda session, message: Deferred()
        peer = self.agreed(limits=Limits(handler_timeout=1000))
        peer.send(do())
        self.memory.advance(42)
        self.assertEqual(self.codes(peer.receive()), ["ping", "heartbeat_timeout"])

    def test_it_leaves_no_timer(self) -> None:
        server = MemoryServer(limits=Limits(heartbeat=3, idle_timeout=4))
        peers = [self.peer(server) for _ in range(3)]
        for peer in peers:
            peer.send(HELLO)
        server.advance(3.5)
        for peer in peers:
            peer.close()
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_a_full_queue(self) -> None:
        """Where the ping finds no room, that is the end, and the only one."""
        peer = self.agreed(limits=Limits(max_queue=10, write_timeout=1000))
        peer.stop_reading()
        peer.connection.send({"type": "news"})
        self.memory.advance(60)
        peer.start_reading()
        self.assertEnd(self.memory, peer, "slow_consumer")

    def test_one_that_takes_a_little(self) -> None:
        """A ping that waits behind much else, of which the peer takes some now and then."""
        peer = self.agreed(limits=Limits(heartbeat=5))
        outbox, write = peer.connection._outbox, peer.transport.write

        def sip(data: bytes) -> None:
            write(data)
            outbox.pauseProducing()

        peer.transport.write = sip  # type: ignore[method-assign]  # a peer that takes one piece at a time
        peer.stop_reading()
        peer.connection.send({"type": "news", "text": "x" * 1_000_000})
        for _ in range(15):
            self.memory.advance(3)
            outbox.resumeProducing()
        self.assertGreater(outbox.waiting, 0)
        self.assertFalse(peer.closed)
        # And one that takes nothing more.
        self.memory.advance(15)
        self.assertEqual(self.memory.factory.stats.errors, {"heartbeat_timeout": 1})

    def test_silence_after_an_end(self) -> None:
        """A connection that ends is asked nothing more."""
        peer = self.agreed(limits=Limits(heartbeat=1, idle_timeout=2))
        peer.send_bytes(b"\xff\xff\xff\xff")
        self.memory.advance(1.5)
        self.assertEnd(self.memory, peer, "too_large")


class HeartbeatSocketTests(SocketCase):
    def test_a_ping_behind_much_else(self) -> None:
        """A peer that takes what stands before the ping will come to it."""
        factory = self.factory(limits=Limits(heartbeat=5, write_timeout=1000))
        wire = self.wire(factory, send_buffer=4096)
        wire.send(raw(HELLO))
        self.messages(wire)
        [connection] = factory.clients
        connection.send({"type": "news", "text": "x" * 200_000})
        for _ in range(100):
            self.advance(0.5)
            wire.take(1000)
        self.assertEqual(factory.stats.disconnects, {})
        messages = self.messages(wire)
        self.assertEqual(self.codes(messages), ["news", "ping"])
        wire.send(raw(PONG))
        self.advance(4)
        self.assertEqual(self.messages(wire), [])

    def test_one_that_takes_nothing(self) -> None:
        factory = self.factory(limits=Limits(heartbeat=5, write_timeout=1000))
        wire = self.wire(factory, send_buffer=4096)
        wire.send(raw(HELLO))
        self.messages(wire)
        [connection] = factory.clients
        connection.send({"type": "news", "text": "x" * 200_000})
        self.advance(21)
        self.assertEqual(factory.stats.disconnects, {"heartbeat_timeout": 1})

    def test_a_half_closed_client(self) -> None:
        """It cannot answer a ping, and waits for its answers only."""
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        factory = self.factory(limits=Limits(heartbeat=2, handler_timeout=100))
        wire = self.wire(factory)
        wire.socket.send(raw(HELLO, do()))
        wire.end()
        self.advance(30)
        slow.callback({"type": "done"})
        self.assertEqual(self.codes(self.messages(wire))[-1], "done")
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})


class IdleTests(Case):
    """`idle_timeout` (sections 1 and 9)."""

    def idle(self, **limits: Any) -> Peer:
        self.memory = self.server(limits=Limits(**{"idle_timeout": 20.0, **limits}))
        return self.peer(self.memory)

    def test_silence(self) -> None:
        peer = self.idle()
        self.memory.advance(19.875)
        self.assertFalse(peer.closed)
        self.memory.advance(5.25)
        self.assertEnd(self.memory, peer, "idle_timeout")

    def test_off(self) -> None:
        server = self.server()
        peer = self.peer(server)
        server.advance(10_000)
        self.assertFalse(peer.closed)

    def test_a_byte_is_life(self) -> None:
        peer = self.idle(frame_timeout=1000)
        peer.send_bytes(b"\0\0\1\0")
        for _ in range(10):
            self.memory.advance(19)
            peer.send_bytes(b"x")
        self.assertFalse(peer.closed)
        self.memory.advance(25.25)
        self.assertEnd(self.memory, peer, "idle_timeout")

    def test_what_it_takes_is_life(self) -> None:
        peer = self.idle()
        for _ in range(5):
            self.memory.advance(19)
            peer.connection.send({"type": "news"})
        self.assertFalse(peer.closed)
        self.assertEqual(len(peer.receive()), 5)

    def test_what_it_does_not_take_is_none(self) -> None:
        peer = self.idle(write_timeout=1000)
        peer.stop_reading()
        for _ in range(5):
            self.memory.advance(6)
            peer.connection.send({"type": "news"})
        self.assertEqual(self.memory.factory.stats.errors, {"idle_timeout": 1})

    def test_not_while_a_handler_runs(self) -> None:
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        peer = self.idle(handler_timeout=1000)
        peer.send(do())
        self.memory.advance(200)
        self.assertFalse(peer.closed)
        slow.callback({"type": "done"})
        self.memory.advance(19.875)
        self.assertFalse(peer.closed)
        self.memory.advance(5.25)
        self.assertEnd(self.memory, peer, "idle_timeout")

    def test_after_a_handler_that_says_nothing(self) -> None:
        """The time that it took does not count afterwards either."""
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        peer = self.idle(handler_timeout=1000)
        peer.send(do())
        self.memory.advance(200)
        slow.callback(None)
        self.memory.advance(14.875)
        self.assertFalse(peer.closed)
        self.memory.advance(10.25)
        self.assertEnd(self.memory, peer, "idle_timeout")

    def test_not_while_it_is_we_who_do_not_read(self) -> None:
        peer = self.idle()
        # It has been looked at, and has been silent since.
        self.memory.advance(6)
        peer.connection.pauseProducing()
        self.memory.advance(200)
        self.assertFalse(peer.closed)
        peer.connection.resumeProducing()
        self.memory.advance(14.875)
        self.assertFalse(peer.closed)
        self.memory.advance(10.25)
        self.assertEnd(self.memory, peer, "idle_timeout")

    def test_with_heartbeats(self) -> None:
        """One who answers pings is not idle."""
        peer = self.idle(heartbeat=5)
        peer.send(HELLO)
        for _ in range(20):
            self.memory.advance(6)
            peer.send(PONG)
        self.assertFalse(peer.closed)
        # The more often of the two looks.
        peer = self.idle(idle_timeout=1000, heartbeat=5)
        peer.send(HELLO)
        self.memory.advance(7)
        self.assertEqual(self.codes(peer.receive()), ["hello_response", "ping"])
        # With a heartbeat so slow that it comes too late, the other of the two counts.
        peer = self.idle(heartbeat=100)
        peer.send(HELLO)
        self.memory.advance(25.25)
        self.assertEqual(self.codes(peer.receive()), ["hello_response", "idle_timeout"])

    def test_from_the_authentication_on(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(idle_timeout=2, auth_timeout=10))
        peer = self.peer(server)
        server.advance(9)
        self.ask(peer, auth())
        server.advance(1.875)
        self.assertFalse(peer.closed)
        server.advance(1)
        self.assertEqual(self.codes(peer.receive()), ["idle_timeout"])

    def test_over_a_socket(self) -> None:
        """What waits in the system, and is taken from there, is life too."""
        loop = Loop()
        self.addCleanup(loop.close)
        factory = TCPJSONServerFactory(loop, limits=Limits(idle_timeout=4, write_timeout=1000))
        wire = connect(loop, factory)
        self.addCleanup(wire.socket.close)
        wire.payloads()
        [connection] = factory.clients
        for _ in range(30):
            connection.send({"type": "news", "text": "x" * 950})
        for _ in range(20):
            loop.advance(1)
            loop.settle()
            wire.take(1000)
        self.assertEqual(factory.stats.disconnects, {})
        for _ in range(6):
            loop.advance(1)
            loop.settle()
        wire.take_all()
        self.assertTrue(wire.ended)


class RateTests(Case):
    """Rates (sections 9 and 10)."""

    def limited(self, **limits: Any) -> Peer:
        self.memory = self.server(limits=Limits(**limits))
        return self.peer(self.memory)

    def test_at_the_rate(self) -> None:
        """A second's worth at once, then one after the other; nothing is lost, and all is in order."""
        peer = self.limited(messages_per_second=8)
        peer.send(*map(echo, range(20)))
        self.assertEqual(contents(peer.receive()), list(range(8)))
        self.assertEqual(peer.transport.producerState, "paused")
        for number in range(8, 20):
            self.assertEqual(peer.receive(), [])
            self.memory.advance(0.125)
            self.assertEqual(contents(peer.receive()), [number])
        self.assertEqual(peer.transport.producerState, "producing")
        self.assertFalse(peer.closed)
        self.assertEqual(self.memory.factory.stats.errors, {})

    def test_what_comes_meanwhile(self) -> None:
        peer = self.limited(messages_per_second=8)
        peer.send(*map(echo, range(10)))
        peer.send(*map(echo, range(10, 16)))
        self.memory.advance(0.5)
        self.assertEqual(contents(peer.receive()), list(range(12)))
        self.memory.advance(10)
        self.assertEqual(contents(peer.receive()), list(range(12, 16)))

    def test_within_the_rate(self) -> None:
        peer = self.limited(messages_per_second=8, bytes_per_second=1000)
        for number in range(100):
            peer.send(echo(number))
            self.assertEqual(contents(peer.receive()), [number])
            self.memory.advance(0.125)
        self.assertEqual(self.memory.factory.stats.over_rate, 0)
        self.assertEqual(self.lines("127."), [])

    def test_burst(self) -> None:
        peer = self.limited(messages_per_second=8, message_burst=20)
        peer.send(*map(echo, range(30)))
        self.assertEqual(len(peer.receive()), 20)
        self.memory.advance(1)
        self.assertEqual(len(peer.receive()), 8)
        # What was left over is saved up, to no more than the burst.
        self.memory.advance(1000)
        peer.receive()
        peer.send(*map(echo, range(30)))
        self.assertEqual(len(peer.receive()), 20)

    def test_bytes(self) -> None:
        """Frames count with their lengths."""
        peer = self.limited(bytes_per_second=800)
        payload = b'{"type":"echo","content":"%b"}' % (b"x" * (96 - 28))
        self.assertEqual(len(payload), 96)
        peer.send_payload(*[payload] * 20)
        self.assertEqual(len(peer.receive()), 8)
        for _ in range(12):
            self.memory.advance(0.125)
            self.assertEqual(len(peer.receive()), 1)

    def test_byte_burst(self) -> None:
        peer = self.limited(bytes_per_second=800, byte_burst=1600)
        peer.send_payload(*[b'{"type":"echo","content":"%b"}' % (b"x" * (96 - 28))] * 20)
        self.assertEqual(len(peer.receive()), 16)

    def test_a_frame_longer_than_the_burst(self) -> None:
        """It passes, and the next waits until its bytes have come in."""
        peer = self.limited(bytes_per_second=1000)
        peer.send_payload(json.dumps(echo("x" * 9960)).encode(), b'{"type":"ping"}')
        self.assertEqual(self.codes(peer.receive()), ["echo_response"])
        self.memory.advance(8.875)
        self.assertEqual(peer.receive(), [])
        self.memory.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["pong"])

    def test_both(self) -> None:
        peer = self.limited(messages_per_second=100, bytes_per_second=95)
        peer.send(*[PING] * 20)
        self.assertEqual(len(peer.receive()), 5)
        peer = self.limited(messages_per_second=3, bytes_per_second=9500)
        peer.send(*[PING] * 20)
        self.assertEqual(len(peer.receive()), 3)

    def test_deadlines_stand_still(self) -> None:
        """Of a frame that has begun, while it is we who do not read."""
        peer = self.limited(messages_per_second=0.01, message_burst=1, frame_timeout=5)
        peer.send_bytes(raw(echo(0), echo(1)) + b"\0\0\0\1")
        self.memory.advance(99)
        self.assertEqual((contents(peer.receive()), peer.closed), ([0], False))
        self.memory.advance(1.5)
        self.assertEqual(contents(peer.receive()), [1])
        self.memory.advance(4.25)
        self.assertFalse(peer.closed)
        self.memory.advance(0.5)
        self.assertEqual(self.codes(peer.receive()), ["frame_timeout"])

    def test_one_line_of_the_log(self) -> None:
        """A connection, however often it is over its rate."""
        peer = self.limited(messages_per_second=8)
        for _ in range(5):
            peer.send(*[PING] * 30)
            self.memory.advance(60)
        self.assertEqual(self.lines("127."), ["127.0.0.1:50000 sends more than the rate"])
        self.assertGreater(self.memory.factory.stats.over_rate, 5)
        other = self.peer(self.memory)
        other.send(*[PING] * 30)
        self.assertEqual(len(self.lines("127.")), 2)

    def test_each_has_its_own(self) -> None:
        peer = self.limited(messages_per_second=8)
        other = self.peer(self.memory)
        peer.send(*[PING] * 9)
        other.send(*[PING] * 8)
        self.assertEqual((len(peer.receive()), len(other.receive())), (8, 8))

    def test_close(self) -> None:
        peer = self.limited(messages_per_second=4, rate_policy="close")
        peer.send(*map(echo, range(6)))
        *answers, error = peer.receive()
        self.assertEqual(contents(answers), [0, 1, 2, 3])
        self.assertEqual((error["code"], error["fatal"], error["retry_after"]), ("rate_limited", True, 0.25))
        peer.send(echo(7))
        self.assertEqual(peer.receive(), [])
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"rate_limited": 1})

    def test_close_within_the_rate(self) -> None:
        peer = self.limited(messages_per_second=4, rate_policy="close")
        peer.send(*map(echo, range(4)))
        self.memory.advance(1)
        peer.send(*map(echo, range(4)))
        self.assertEqual((len(peer.receive()), peer.closed), (8, False))

    def test_close_while_answers_wait(self) -> None:
        """All that was granted is answered before the error."""
        peer = self.limited(messages_per_second=10, rate_policy="close")
        peer.stop_reading()
        peer.send(*(echo([n, "x" * 30_000]) for n in range(15)))
        self.assertFalse(peer.closed)
        peer.start_reading()
        *answers, error = peer.receive()
        self.assertEqual([content[0] for content in contents(answers)], list(range(10)))
        self.assertEqual((error["code"], error["retry_after"]), ("rate_limited", 0.1))

    def test_close_with_slow_handlers(self) -> None:
        """Those that have been answered get their answers, before the error."""
        slow: Deferred[Any] = Deferred(lambda _: None)
        self.act = lambda session, message: slow if message.n else {"type": "done"}
        peer = self.limited(messages_per_second=4, rate_policy="close")
        peer.send(do(1), echo(1), do(0), *[PING] * 6)
        self.assertEqual(self.codes(peer.receive()), ["echo_response", "done", "pong", "rate_limited"])

    def test_observe(self) -> None:
        peer = self.limited(messages_per_second=4, bytes_per_second=10, rate_policy="observe")
        peer.send(*map(echo, range(600)))
        self.assertEqual(contents(peer.receive()), list(range(600)))
        self.assertGreater(self.memory.factory.stats.over_rate, 0)
        self.assertEqual(len(self.lines("127.")), 1)
        self.assertFalse(peer.closed)

    def test_observe_and_hold(self) -> None:
        """What holds it otherwise holds it, and its rate holds it no longer."""
        peer = self.limited(messages_per_second=4, rate_policy="observe")
        self.act = lambda session, message: peer.connection.pauseProducing()
        peer.send(PING, PING, PING, do(), *[PING] * 10)
        self.assertEqual(len(peer.receive()), 3)
        peer.connection.resumeProducing()
        self.assertEqual(len(peer.receive()), 10)

    def test_lost_in_the_midst_of_its_turn(self) -> None:
        peer = self.limited(messages_per_second=4)
        other = self.peer(self.memory)
        self.act = lambda session, message: peer.close()
        timers = len(self.memory.clock.getDelayedCalls())
        peer.send(cast(1), do(), cast(2), PING, PING, PING)
        self.assertEqual(contents(other.receive()), [1])
        self.assertEqual(self.memory.factory.stats.disconnects, {"client_closed": 1})
        self.assertEqual(len(self.memory.clock.getDelayedCalls()), timers)

    def test_the_connection_is_lost_meanwhile(self) -> None:
        """One that sends and goes has sent all the same."""
        peer = self.limited(messages_per_second=4)
        other = self.peer(self.memory)
        peer.send(*[cast(n) for n in range(20)])
        self.assertEqual(len(other.receive()), 4)
        timers = len(self.memory.clock.getDelayedCalls())
        peer.close()
        self.assertEqual(contents(other.receive()), list(range(4, 20)))
        self.assertEqual(self.memory.factory.stats.messages_by_type(), {"broadcast": 20})
        self.assertEqual(len(self.memory.clock.getDelayedCalls()), timers - 1)

    def test_while_answers_wait(self) -> None:
        """What was granted, and put back as its answers wait, is charged once."""
        peer = self.limited(messages_per_second=8, message_burst=20)
        peer.stop_reading()
        peer.send(*(echo([n, "x" * 30_000]) for n in range(30)))
        self.memory.advance(5)
        self.assertEqual(peer.receive(), [])
        before = self.memory.factory.stats.messages_in
        self.assertEqual(before, 3)
        peer.start_reading()
        # What these took has come in meanwhile.
        handled = self.memory.factory.stats.messages_in
        self.assertEqual(handled, before + 20)
        start = self.memory.clock.seconds()
        while self.memory.factory.stats.messages_in < 30:
            self.memory.advance(0.125)
        self.assertAlmostEqual(self.memory.clock.seconds() - start, (30 - handled) / 8)
        self.assertEqual([content[0] for content in contents(peer.receive())], list(range(30)))

    def test_put_back_and_not_charged(self) -> None:
        """Those that a hold put back take nothing of what the others may have."""
        peer = self.limited(messages_per_second=0.001, message_burst=10)
        self.one_at_a_time(peer, raw(*map(do, range(15))))

    def test_put_back_bytes(self) -> None:
        peer = self.limited(bytes_per_second=0.001, byte_burst=240)
        self.one_at_a_time(peer, frame(b'{"type":"do","n":10}') * 15)

    def one_at_a_time(self, peer: Peer, data: bytes) -> None:
        """Requests of which ten are granted, each of which has the others wait."""
        self.act = lambda session, message: peer.connection.pauseProducing()
        peer.connection.pauseProducing()
        peer.send_bytes(data)
        for count in (*range(1, 11), 10, 10):
            peer.connection.resumeProducing()
            self.memory.settle()
            self.assertEqual(peer.connection.messages_in, count)

    def test_slow_handlers(self) -> None:
        """Both bounds hold, whichever ends first."""
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        peer = self.limited(messages_per_second=1, message_burst=2, max_handlers=2, handler_timeout=1000)
        peer.send(*map(do, range(5)))
        self.assertEqual(len(slow), 2)
        self.memory.advance(20)
        self.assertEqual(len(slow), 2)
        for deferred in slow[:2]:
            deferred.callback({"type": "done"})
        self.memory.settle()
        self.assertEqual(len(slow), 4)
        for deferred in slow[2:4]:
            deferred.callback({"type": "done"})
        self.memory.settle()
        self.assertEqual(len(slow), 4 if self.memory.factory.stats.over_rate else 5)
        self.memory.advance(1)
        self.assertEqual(len(slow), 5)

    def test_closed_by_a_handler(self) -> None:
        """In the turn in which it is found over its rate; no timer is left."""
        self.act = lambda session, message: session.close()
        server = MemoryServer(limits=Limits(messages_per_second=2), routers=[self.router()])
        peer = self.peer(server)
        peer.send(PING, do(), PING, PING)
        self.assertEqual(self.codes(peer.receive()), ["pong"])
        self.assertTrue(peer.closed)
        peer.close()
        self.assertEqual(server.factory.stats.disconnects, {"closed_by_handler": 1})
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_a_fatal_error_of_a_handler(self) -> None:
        """In the turn in which it is found over its rate: that is the end, and nothing is waited for."""
        peer = self.limited(messages_per_second=2)

        def act(session: Any, message: Do) -> Any:
            raise Fatal

        self.act = act
        timers = len(self.memory.clock.getDelayedCalls())
        peer.send(PING, do(), PING, PING)
        self.assertEqual(self.codes(peer.receive()), ["pong", "forbidden"])
        # The one that is to abort it.
        self.assertEqual(len(self.memory.clock.getDelayedCalls()), timers + 1)

    def router(self) -> Router:
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        return router

    def test_no_timer_is_left(self) -> None:
        for leave in (
            Peer.close,
            lambda peer: peer.connection.close(),
            lambda peer: peer.connection.fail(Fatal()),
        ):
            server = MemoryServer(limits=Limits(messages_per_second=2))
            peer = self.peer(server)
            peer.send(*[PING] * 5)
            leave(peer)
            if leave is not Peer.close:
                peer.close()
            server.stop()
            self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_of_guests(self) -> None:
        """Also before the authentication, and on with what is left of it."""
        server = self.server(checkers=[checker()], limits=Limits(messages_per_second=4))
        peer = self.peer(server)
        peer.send(PING, PING, auth(), PING, PING)
        self.assertEqual(self.codes(peer.receive()), ["pong", "pong", "auth_result", "pong"])
        server.advance(0.25)
        self.assertEqual(self.codes(peer.receive()), ["pong"])

    @given(
        st.floats(0.5, 200),
        st.one_of(st.none(), st.integers(1, 50)),
        st.one_of(st.none(), st.integers(50, 5000)),
        st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=60),
        st.data(),
    )
    def test_whatever_comes(
        self,
        rate: float,
        burst: int | None,
        size: int | None,
        requests: list[tuple[int, int]],
        data: st.DataObject,
    ) -> None:
        """At any time no more than the rate allows has been handled, and in the end all, in time."""
        limits = Limits(messages_per_second=rate, message_burst=burst, bytes_per_second=size)
        server = MemoryServer(limits=limits)
        peer = self.peer(server)
        answers: list[Any] = []
        most = burst or max(1, rate)
        frames = [raw(echo([index, "x" * length])) for index, (length, _) in enumerate(requests)]
        for (_, pause), request in zip(requests, frames, strict=True):
            cut = data.draw(st.integers(0, len(request)))
            peer.send_bytes(request[:cut])
            server.advance(pause / 16)
            peer.send_bytes(request[cut:])
            answers += peer.receive()
            now = server.clock.seconds()
            self.assertLessEqual(len(answers), most + rate * now + 1e-6)
            if size is not None:
                longest = max(map(len, frames))
                self.assertLessEqual(
                    sum(map(len, frames[: len(answers)])), size + size * now + longest + 1e-6
                )
        # Whatever waits needs no longer than all of it would.
        need = len(frames) / rate + (sum(map(len, frames)) / size if size else 0)
        server.advance(need + 0.125)
        answers += peer.receive()
        self.assertEqual([answer["content"][0] for answer in answers], list(range(len(frames))))
        peer.close()
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])


class Fatal(Forbidden):
    """What an application may end a connection with."""

    code = "forbidden"
    fatal = True


class RateSocketTests(SocketCase):
    def test_half_closed(self) -> None:
        """It gets all its answers, at the rate."""
        factory = self.factory(limits=Limits(messages_per_second=8))
        wire = self.wire(factory)
        wire.socket.send(raw(*map(echo, range(40))))
        wire.end()
        self.assertEqual(len(self.messages(wire)), 9)
        self.advance(2)
        self.assertFalse(wire.ended)
        self.assertEqual(len(self.messages(wire)), 16)
        self.advance(2)
        self.assertEqual(contents(self.messages(wire)), list(range(24, 40)))
        self.assertTrue(wire.ended)
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})

    def test_half_closed_and_broken_off(self) -> None:
        """What is not a whole frame is waited for no longer than the rest."""
        factory = self.factory(limits=Limits(messages_per_second=8))
        wire = self.wire(factory)
        wire.socket.send(raw(*map(echo, range(12))) + b"\0\0")
        wire.end()
        self.advance(1)
        self.assertEqual(len(self.messages(wire)), 13)
        self.assertTrue(wire.ended)

    def test_the_peer_goes(self) -> None:
        """What it sent is handled, as far as it was read."""
        factory = self.factory(limits=Limits(messages_per_second=8))
        other = self.wire(factory)
        wire = self.wire(factory)
        self.messages(other)
        wire.send(raw(*map(cast, range(40))))
        self.messages(wire)
        wire.close()
        self.advance(6)
        self.assertEqual(contents(self.messages(other)), list(range(40)))
        self.assertEqual(factory.stats.disconnects, {"client_closed": 1})

    def test_over_tls(self) -> None:
        factory = self.factory(limits=Limits(messages_per_second=8))
        wire = self.wire(factory, tls=True)
        wire.send(raw(*map(echo, range(40))))
        self.assertEqual(len(self.messages(wire)), 9)
        self.advance(4)
        self.assertEqual(contents(self.messages(wire)), list(range(8, 40)))

    def test_what_is_read_is_bounded(self) -> None:
        """What is over the rate stays with its sender."""
        factory = self.factory(limits=Limits(bytes_per_second=1000))
        wire = self.wire(factory)
        self.messages(wire)
        sent = 0
        data = raw(echo("x" * 1000)) * 20
        while sent < 5_000_000:
            try:
                sent += wire.socket.send(data)
            except BlockingIOError:
                break
            self.loop.settle()
        self.assertLess(sent, 1_000_000)
        self.assertLess(factory.stats.bytes_in, 200_000)


def from_address(server: MemoryServer, host: str) -> Peer:
    """A new client, from an address."""
    kind = IPv6Address if ":" in host else IPv4Address
    return Peer(server, kind("TCP", host, 1))  # type: ignore[arg-type]  # an address all the same


class TurnedAwayTests(Case):
    """For want of room (section 9)."""

    def test_server_full(self) -> None:
        server = self.server(limits=Limits(max_connections=2))
        peers = [self.peer(server) for _ in range(2)]
        refused = server.connect()
        [error] = refused.receive()
        self.assertEqual((error["code"], error["fatal"]), ("server_full", True))
        self.assertTrue(refused.closed)
        refused.send(PING)
        self.assertEqual(refused.receive(), [])
        refused.close()
        for peer in peers:
            self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])
        self.assertEqual(server.factory.stats.disconnects, {"server_full": 1})
        self.assertEqual(server.factory.stats.errors, {"server_full": 1})
        # It is no connection that was, and no client.
        self.assertEqual(list(server.factory.stats.closed), [])
        self.assertEqual(len(self.lines("connected")), 2)
        self.assertEqual(self.lines("disconnected"), [])

    def test_one_that_stays(self) -> None:
        """It is aborted, as after any fatal error."""
        server = self.server(limits=Limits(max_connections=1))
        self.peer(server)
        refused = server.connect()
        server.advance(2)
        self.assertTrue(refused.aborted)

    def test_room_again(self) -> None:
        server = self.server(limits=Limits(max_connections=2))
        for leave in (Peer.close, Peer.reset, lambda peer: (peer.connection.close(), peer.close())):
            peers = [self.peer(server) for _ in range(2)]
            self.assertEqual(self.codes(server.connect().receive()), ["server_full"])
            leave(peers[0])
            again = self.peer(server)
            self.assertEqual(self.codes(server.connect().receive()), ["server_full"])
            again.close()
            peers[1].close()

    def test_the_refused_take_no_room(self) -> None:
        """Those from one address do not use up what others may have, while they are still there."""
        server = self.server(limits=Limits(max_connections=5, max_connections_per_ip=2))
        many = [from_address(server, "192.0.2.1") for _ in range(40)]
        self.assertEqual([self.codes(peer.receive()) for peer in many[:3]][2], ["too_many_connections"])
        others = [from_address(server, f"192.0.2.{n}") for n in range(2, 6)]
        self.assertEqual(
            [self.codes(peer.receive())[0] for peer in others], ["welcome"] * 3 + ["server_full"]
        )
        for peer in (*many, *others):
            peer.close()
        self.assertEqual(server.factory.admission.admitted, 0)

    def test_too_many_connections(self) -> None:
        server = self.server(limits=Limits(max_connections_per_ip=2))
        first, *_ = (from_address(server, "192.0.2.1") for _ in range(2))
        refused = from_address(server, "192.0.2.1")
        [error] = refused.receive()
        self.assertEqual(
            (error["code"], error["fatal"], refused.closed), ("too_many_connections", True, True)
        )
        refused.close()
        self.assertEqual(self.codes(from_address(server, "192.0.2.2").receive()), ["welcome"])
        first.close()
        self.assertEqual(self.codes(from_address(server, "192.0.2.1").receive()), ["welcome"])
        self.assertEqual(self.codes(from_address(server, "192.0.2.1").receive()), ["too_many_connections"])
        self.assertEqual(server.factory.stats.disconnects, {"too_many_connections": 1, "client_closed": 1})

    def test_one_network(self) -> None:
        """Who has an IPv6 address has milliards of them: the first half of it counts."""
        server = self.server(limits=Limits(max_connections_per_ip=1))
        outcomes = [
            self.codes(from_address(server, host).receive())
            for host in ("2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1", "::ffff:192.0.2.1", "192.0.2.1")
        ]
        refused = ["too_many_connections"]
        self.assertEqual(outcomes, [["welcome"], refused, ["welcome"], ["welcome"], refused])

    def test_unix_sockets_have_no_address(self) -> None:
        server = self.server(limits=Limits(max_connections_per_ip=1))
        for _ in range(3):
            connection = server.factory.buildProtocol(None)
            connection.makeConnection(StringTransport(peerAddress=UNIXAddress(None)))
        self.assertEqual(len(server.factory.clients), 3)

    def test_guests_count(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(max_connections_per_ip=1))
        self.peer(server)
        self.assertEqual(self.codes(server.connect().receive()), ["too_many_connections"])

    def test_nothing_is_expected_of_them(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(max_connections=1, messages_per_second=1))
        self.peer(server)
        refused = server.connect()
        self.assertNotIn(refused.connection, server.factory.auth_deadlines)
        self.assertIsNone(refused.connection._meter)

    def test_nothing_is_said_of_none(self) -> None:
        server = self.server()
        self.peer(server).close()
        server.stop()
        self.assertEqual(self.lines("refused"), [])

    def test_one_line_a_minute(self) -> None:
        """For all of them."""
        server = self.server(limits=Limits(max_connections=1))
        self.peer(server)
        for _ in range(100):
            server.connect().close()
        self.assertEqual(self.lines("refused"), ["refused 127.0.0.1:50001: server_full"])
        server.advance(59)
        server.connect().close()
        self.assertEqual(len(self.lines("refused")), 1)
        server.advance(1.125)
        [line] = self.lines("refused")[1:]
        self.assertEqual(line, "refused 127.0.0.1:50101: server_full (and 99 more in 60 s)")
        server.connect().close()
        self.assertEqual(len(self.lines("refused")), 2)
        server.advance(60)
        self.assertEqual(len(self.lines("refused")), 3)
        # And none where there is nothing to tell.
        server.advance(100)
        self.assertEqual(len(self.lines("refused")), 3)
        server.connect().close()
        self.assertEqual(len(self.lines("refused")), 4)
        self.assertEqual(server.factory.stats.refused, {"server_full": 103})

    def test_each_reason_has_its_line(self) -> None:
        server = self.server(limits=Limits(max_connections=2, max_connections_per_ip=1))
        from_address(server, "192.0.2.1")
        from_address(server, "192.0.2.1").close()
        from_address(server, "192.0.2.1").close()
        from_address(server, "192.0.2.2")
        from_address(server, "192.0.2.3").close()
        self.assertEqual(
            self.lines("refused"),
            ["refused 192.0.2.1:1: too_many_connections", "refused 192.0.2.3:1: server_full"],
        )
        server.advance(61)
        self.assertEqual(self.lines("refused")[2:], ["refused 192.0.2.1:1: too_many_connections"])
        self.assertEqual(server.factory.stats.refused, {"too_many_connections": 2, "server_full": 1})

    def test_nothing_stays_unsaid(self) -> None:
        server = self.server(limits=Limits(max_connections=1))
        first = self.peer(server)
        for _ in range(3):
            server.connect().close()
        first.close()
        server.stop()
        self.assertEqual(len(self.lines("refused")), 2)
        self.assertEqual(
            self.lines("refused")[-1], "refused 127.0.0.1:50003: server_full (and 1 more in 0 s)"
        )

    def test_no_timer_is_left(self) -> None:
        for seconds in (0, 5):
            server = MemoryServer(limits=Limits(max_connections=1))
            peer = self.peer(server)
            refused = [server.connect() for _ in range(2)]
            refused.pop().close()
            peer.close()
            server.stop()
            server.advance(seconds)
            refused.pop().close()
            self.assertEqual(server.clock.getDelayedCalls(), [])


class TurnedAwaySocketTests(SocketCase):
    def memory(self, factory: Any, host: str = "192.0.2.1") -> tuple[Any, StringTransport]:
        """A connection behind a balancer, in memory, and what it was told."""
        protocol = proxied(factory).buildProtocol(None)
        transport = StringTransport(peerAddress=IPv4Address("TCP", "10.0.0.1", 1))
        protocol.makeConnection(transport)
        if host:
            protocol.dataReceived(header(host))
        return protocol, transport

    def told(self, transport: StringTransport) -> list[str]:
        reader = FrameReader()
        if data := transport.value():
            reader.feed(data)
        return self.codes([json.loads(payload) for payload in reader.take(100, 1 << 20)])

    def test_behind_a_balancer(self) -> None:
        """The address of the header counts, and the balancer's own does not."""
        factory = self.factory(limits=Limits(max_connections_per_ip=2))
        silent = [self.memory(factory, "") for _ in range(5)]
        self.assertEqual([self.told(transport) for _, transport in silent], [[]] * 5)
        connections = [self.memory(factory, host) for host in ("192.0.2.1",) * 3 + ("192.0.2.2",)]
        self.assertEqual(
            [self.told(transport) for _, transport in connections],
            [["welcome"], ["welcome"], ["too_many_connections"], ["welcome"]],
        )
        self.assertTrue(connections[2][1].disconnecting)
        connections[2][0].connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.told(self.memory(factory)[1]), ["too_many_connections"])
        connections[0][0].connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.told(self.memory(factory)[1]), ["welcome"])

    def test_full_before_the_header(self) -> None:
        factory = self.factory(limits=Limits(max_connections=1))
        self.memory(factory, "")
        protocol, transport = self.memory(factory, "")
        self.assertEqual(self.told(transport), ["server_full"])
        # What comes then changes nothing.
        protocol.dataReceived(header())
        self.assertEqual(self.told(transport), ["server_full"])
        protocol.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(factory.stats.disconnects, {"server_full": 1})

    def test_over_sockets(self) -> None:
        factory = self.factory(limits=Limits(max_connections=1))
        wire = self.wire(factory)
        refused = self.wire(factory)
        self.assertEqual(self.codes(self.messages(refused)), ["server_full"])
        self.assertTrue(refused.ended)
        # Nobody hurries it to close; what it sends is discarded.
        refused.send(raw(PING) * 1000)
        self.assertEqual(len(factory.connections), 2)
        refused.close()
        self.assertEqual(len(factory.connections), 1)
        wire.send(raw(PING))
        self.assertEqual(self.codes(self.messages(wire)), ["welcome", "pong"])

    def test_many_that_stay(self) -> None:
        """A few may take their time; of more, none keeps a descriptor."""
        factory = self.factory(limits=Limits(max_connections=1))
        self.wire(factory)
        refused = [self.wire(factory) for _ in range(100)]
        self.loop.settle()
        self.assertEqual(len(factory.connections), 33)
        for wire in refused:
            self.assertEqual(self.codes(self.messages(wire)), ["server_full"])
        self.assertEqual(factory.stats.disconnects, {"server_full": 68})

    def test_over_tls(self) -> None:
        """There is no handshake, which costs more than all else."""
        factory = self.factory(limits=Limits(max_connections=1))
        encrypted = tls_factory(factory, self.loop)
        for outer in (encrypted, proxied(encrypted)):
            self.silent(outer)
            refused = self.silent(outer)
            refused.take_all()
            self.assertEqual((refused.ended, refused.raw), (True, b""))
        self.assertEqual(factory.stats.disconnects, {"server_full": 3})
        self.assertEqual(len(factory.connections), 1)

    def test_over_tls_from_one_address(self) -> None:
        """Behind a balancer the address is known after the handshake, and the client can be told."""
        factory = self.factory(limits=Limits(max_connections_per_ip=1))
        outer = proxied(tls_factory(factory, self.loop))
        told = []
        for _ in range(2):
            wire = self.silent(outer, TLSWire)
            wire.socket.send(header())
            wire.shake_hands()
            told.append(self.codes(self.messages(wire)))
        self.assertEqual(told, [["welcome"], ["too_many_connections"]])

    def test_tls_with_an_address(self) -> None:
        factory = self.factory(limits=Limits(max_connections_per_ip=1))
        port = self.loop.listenTCP(0, tls_factory(factory, self.loop), interface="127.0.0.1")
        wires = []
        for number in range(2):
            wire = TLSWire(self.loop, socket.create_connection(("127.0.0.1", port.getHost().port)))
            self.addCleanup(wire.socket.close)
            wires.append(wire)
            for _ in range(1000):
                if factory.stats.connections > number:
                    break
                self.loop.turn(0.01)
        for _ in range(1000):
            self.loop.turn(0.01)
            try:
                wires[1].take(1 << 20)
            except ConnectionResetError:
                # The handshake that had begun was not even read.
                break
        self.assertEqual(wires[1].raw, b"")
        self.assertEqual(factory.stats.disconnects, {"too_many_connections": 1})


HOSTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:1::1")
NETWORKS = {host: "2001:db8::" if host in ("2001:db8::1", "2001:db8::2") else host for host in HOSTS}


class Room(RuleBasedStateMachine):
    """Whoever comes and goes, in whatever order: the counts are those of what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryServer(limits=Limits(max_connections=4, max_connections_per_ip=2, auth_timeout=3))
        #: Those that were taken, with their hosts; those behind a balancer whose header is to come; the rest.
        self.served: list[tuple[Any, str]] = []
        self.waiting: list[tuple[Any, StringTransport]] = []
        self.refused: list[Any] = []
        self.codes: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return len(self.served) + len(self.waiting)

    def refusal(self, host: str) -> str:
        """What one from there is to be told."""
        same = [other for _, other in self.served if NETWORKS[other] == NETWORKS[host]]
        return "too_many_connections" if len(same) >= 2 else "welcome"

    def told(self, transport: StringTransport) -> str:
        data = transport.value()
        transport.clear()
        message: Any = json.loads(data[4:])
        return str(message.get("code", message["type"]))

    def open(self, protocol: Any, host: str) -> StringTransport:
        kind = IPv6Address if ":" in host else IPv4Address
        transport = StringTransport(peerAddress=kind("TCP", host, 1))
        protocol.makeConnection(transport)
        return transport

    @rule(host=st.sampled_from(HOSTS))
    def come(self, host: str) -> None:
        expected = "server_full" if self.taken >= 4 else self.refusal(host)
        protocol = self.server.factory.buildProtocol(None)
        assert self.told(self.open(protocol, host)) == expected
        if expected == "welcome":
            self.served.append((protocol, host))
        else:
            self.refused.append(protocol)
            self.codes[expected] += 1

    @rule()
    def come_through_a_balancer(self) -> None:
        protocol = proxied(self.server.factory).buildProtocol(None)
        full = self.taken >= 4
        transport = self.open(protocol, "10.0.0.1")
        if full:
            assert self.told(transport) == "server_full"
            self.refused.append(protocol)
            self.codes["server_full"] += 1
        else:
            assert transport.value() == b""
            self.waiting.append((protocol, transport))

    @precondition(lambda self: self.waiting)
    @rule(host=st.sampled_from(HOSTS), data=st.data())
    def say_who(self, host: str, data: st.DataObject) -> None:
        protocol, transport = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        expected = self.refusal(host)
        protocol.dataReceived(header(host))
        assert self.told(transport) == expected
        if expected == "welcome":
            self.served.append((protocol, host))
        else:
            self.refused.append(protocol)
            self.codes[expected] += 1

    @precondition(lambda self: self.served or self.waiting or self.refused)
    @rule(data=st.data(), first_end=st.booleans())
    def go(self, data: st.DataObject, first_end: bool) -> None:
        place = data.draw(st.integers(0, self.taken + len(self.refused) - 1))
        groups: tuple[list[Any], ...] = (self.served, self.waiting, self.refused)
        gone = [each for group in groups for each in group][place]
        for group in groups:
            if gone in group:
                group.remove(gone)
        protocol: Any = gone[0] if isinstance(gone, tuple) else gone
        if first_end:
            # Ended by us, and then gone.
            connection: Any = getattr(protocol, "wrappedProtocol", protocol)
            connection.fail(CODES["frame_timeout"]())
        protocol.connectionLost(Failure(ConnectionLost()))

    @invariant()
    def all_is_counted(self) -> None:
        factory = self.server.factory
        assert factory.admission.admitted == self.taken
        assert len(factory.clients) == len(self.served)
        assert len(factory.connections) == self.taken + len(self.refused)

    def teardown(self) -> None:
        while self.served or self.waiting or self.refused:
            for gone in [*self.served, *self.waiting, *((each, None) for each in self.refused)]:
                gone[0].connectionLost(Failure(ConnectionLost()))
            self.served, self.waiting, self.refused = [], [], []
        self.all_is_counted()
        factory = self.server.factory
        for code in ("server_full", "too_many_connections"):
            assert factory.stats.disconnects[code] == self.codes[code]
        assert not factory.admission._by_network
        self.server.stop()
        assert self.server.clock.getDelayedCalls() == []


class RoomTests(SynchronousTestCase):
    def test_whoever_comes_and_goes(self) -> None:
        run = settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_machine(Room, settings=run)
        except Exception as error:
            # Trial leaves the notes out, and they tell what happened.
            notes = getattr(error, "__notes__", ())
            raise AssertionError("\n".join([f"{type(error).__name__}: {error}", *notes])) from None


class ReasonTests(Case):
    """Every end has one code, and the same everywhere (section 9)."""

    def ends(self) -> dict[str, Callable[[MemoryServer, Peer], None]]:
        """How to come to each of the fatal errors."""

        def stuck(server: MemoryServer, peer: Peer) -> None:
            peer.stop_reading()
            peer.connection.send({"type": "news"})
            server.advance(13)
            peer.start_reading()

        return {
            "too_large": lambda server, peer: peer.send_bytes(b"\xff\xff\xff\xff"),
            "frame_timeout": lambda server, peer: (peer.send_bytes(b"\0"), server.advance(31))[0],
            "slow_consumer": stuck,
            "rate_limited": lambda server, peer: peer.send(*[PING] * 2000),
            "idle_timeout": lambda server, peer: server.advance(150),
            "heartbeat_timeout": lambda server, peer: (peer.send(HELLO), server.advance(60))[0],
        }

    def test_fatal_errors(self) -> None:
        limits = Limits(messages_per_second=1000, rate_policy="close", idle_timeout=100)
        for code, act in self.ends().items():
            server = self.server(limits=limits)
            peer = self.peer(server)
            act(server, peer)
            self.assertEnd(server, peer, code)

    def test_of_guests(self) -> None:
        for code, act in {
            "auth_timeout": lambda server, peer: server.advance(6),
            "auth_failed": lambda server, peer: (peer.send(*[auth("x")] * 3), server.advance(6))[0],
            "too_large": lambda server, peer: peer.send_bytes(b"\0\0\x10\1"),
        }.items():
            server = self.server(checkers=[checker()])
            peer = self.peer(server)
            act(server, peer)
            self.assertEnd(server, peer, code)

    def test_other_ends(self) -> None:
        self.act = lambda session, message: session.close()
        for code, act in {
            "client_closed": Peer.close,
            "connection_lost": Peer.reset,
            "closed_by_handler": lambda peer: (peer.send(do()), peer.close())[0],
        }.items():
            server = self.server()
            peer = self.peer(server)
            act(peer)
            self.assertEqual(server.factory.stats.disconnects, {code: 1})
            self.assertEqual([closed.code for closed in server.factory.stats.closed], [code])
            self.assertIn(f" reason={code} ", self.lines("disconnected ")[-1])

    def test_the_first_counts(self) -> None:
        """What happens at the end of a connection does not change why it ended."""
        server = self.server(checkers=[checker()], limits=Limits(auth_timeout=1))
        peer = self.peer(server)
        server.advance(2)
        peer.connection.fail(CODES["slow_consumer"]())
        peer.connection.close()
        server.factory.abort()
        self.assertEnd(server, peer, "auth_timeout")

    def test_no_deadline_is_left(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(idle_timeout=10))
        peer, guest = self.peer(server), self.peer(server)
        self.ask(peer, auth(), HELLO)
        peer.stop_reading()
        peer.send_bytes(raw(PING) + b"\0")
        connections = {peer.connection, guest.connection}
        held = [
            len([each for each in connections if each in deadlines])
            for deadlines in server.factory.connection_deadlines
        ]
        self.assertTrue(all(held), held)
        peer.close()
        guest.close()
        for deadlines in server.factory.connection_deadlines:
            for connection in connections:
                self.assertNotIn(connection, deadlines)

    def test_what_is_kept(self) -> None:
        server = self.server(checkers=[checker()])
        one, two = self.peer(server), self.peer(server)
        one.send(auth())
        server.advance(2.5)
        sent = [len(peer.transport.value()) + 4 for peer in (one, two)]
        welcome = [peer.connection.bytes_out - len(peer.transport.value()) for peer in (one, two)]
        one.close()
        server.advance(1)
        two.reset()
        size = len(raw(auth()))
        self.assertEqual(
            list(server.factory.stats.closed),
            [
                ClosedConnection(
                    *("127.0.0.1:50000", "ann", "client_closed", 2.5, size, welcome[0] + sent[0] - 4),
                    *(1, 2, "", "2024-01-01T12:00:02.500Z"),
                ),
                ClosedConnection(
                    *("127.0.0.1:50001", None, "connection_lost", 3.5, 0, welcome[1]),
                    *(0, 1, "", "2024-01-01T12:00:03.500Z"),
                ),
            ],
        )
        self.assertEqual((server.factory.stats.durations.count, server.factory.stats.durations.sum), (2, 6))
        self.assertIn("disconnected 127.0.0.1:50000 user='ann' reason=client_closed ", self.lines("dis")[0])
        self.assertIn("disconnected 127.0.0.1:50001 reason=connection_lost ", self.lines("dis")[1])

    def test_the_last_thousand(self) -> None:
        server = self.server()
        for _ in range(1003):
            self.peer(server).close()
        closed = server.factory.stats.closed
        self.assertEqual(len(closed), 1000)
        self.assertEqual([closed[0].client_id, closed[-1].client_id], ["127.0.0.1:50003", "127.0.0.1:51002"])


class FactsTests(Case):
    """What the statistics, and a connection itself, say of it."""

    def test_logins(self) -> None:
        """By mechanism and outcome; what a client calls a mechanism and is none is not among them."""
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make(PASSWORD, 4096, bytes).format()}\n")
        path.chmod(0o600)
        server = self.server(checkers=[VerifierChecker(str(path)), Tokens({"bob": "sesame"})])
        first = {"type": "auth", "mechanism": "scram-sha-256", "data": "n,,n=ann,r=nonce"}
        for messages in (
            [auth("wrong"), auth()],
            [auth("wrong", mechanism="guesses")],
            [auth(mechanism="")],
            [{"type": "auth", "mechanism": "token", "token": "sesame"}],
            [{"type": "auth", "mechanism": "token", "token": "guess"}],
            [first, {"type": "auth", "data": "c=biws,r=nonce,p=bm8="}],
        ):
            peer = self.peer(server)
            for message in messages:
                peer.send(message)
                server.advance(0.5)
            peer.close()
        expected = {
            ("plain", "authentication_failed"): 1,
            ("plain", "authenticated"): 1,
            ("token", "authenticated"): 1,
            ("token", "authentication_failed"): 1,
            ("scram-sha-256", "authentication_failed"): 1,
        }
        self.assertEqual(server.factory.stats.logins, expected)
        self.assertEqual(server.factory.stats.failed_logins, 3)

    def test_scram_that_succeeds(self) -> None:
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make(PASSWORD, 4096, bytes).format()}\n")
        path.chmod(0o600)
        server = self.server(checkers=[VerifierChecker(str(path))])
        peer = self.peer(server)
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        [challenge] = self.ask(
            peer, {"type": "auth", "mechanism": "scram-sha-256", "data": client.get_client_first()}
        )
        # The challenge is no outcome.
        self.assertEqual(server.factory.stats.logins, {})
        client.set_server_first(challenge["data"])
        peer.send({"type": "auth", "data": client.get_client_final()})
        self.assertEqual(server.factory.stats.logins, {("scram-sha-256", "authenticated"): 1})

    def test_logins_that_come_to_nothing(self) -> None:
        """Cancelled, or of one who is gone."""
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer, gone = self.peer(server), self.peer(server)
        peer.send(auth())
        gone.send(auth())
        gone.close()
        server.advance(60)
        self.assertEqual(self.codes(peer.receive())[0], "timeout")
        self.assertEqual(server.factory.stats.logins, {})

    def test_how_long_they_stood(self) -> None:
        """All but those that were refused at once."""
        server = self.server(limits=Limits(max_connections=2))
        one, two = self.peer(server), self.peer(server)
        refused = server.connect()
        server.advance(0.5)
        refused.close()
        one.close()
        server.advance(70)
        self.assertEqual(server.factory.stats.durations.count, 1)
        two.reset()
        durations = server.factory.stats.durations
        self.assertEqual((durations.count, durations.sum), (2, 71.0))
        self.assertEqual([durations.bounds[n] for n, count in enumerate(durations.counts) if count], [1, 600])
        self.assertEqual(len(server.factory.stats.closed), 2)

    def test_detail_and_counts_of_one_that_closed(self) -> None:
        server = self.server()
        self.act = lambda session, message: {"type": "done"}
        peer = self.peer(server)
        peer.send(do(), do(), PING, cast("x"))
        peer.close()
        [closed] = server.factory.stats.closed
        self.assertEqual((closed.messages_in, closed.messages_out, closed.detail), (4, 5, ""))
        self.assertEqual((closed.bytes_in, closed.bytes_out), (peer.connection.bytes_in, closed.bytes_out))
        self.assertIn(" messages_in=4 messages_out=5 bytes_in=", self.lines("disconnected ")[-1])

    def test_handlers_that_are_awaited(self) -> None:
        """From the message to its answer, by type."""
        waiting: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            if message.n == 1:
                return succeed(None)
            if message.n == 2:
                return {"type": "done"}
            waiting.append(Deferred())
            return waiting[-1]

        self.act = act
        server = self.server(limits=Limits(handler_timeout=30))
        peer = self.peer(server)
        stats = server.factory.stats
        peer.send(do(2), PING)
        self.assertEqual(stats.awaited, {})
        peer.send(do(), do(id=1), do(1))
        # One that is done when it returns took no time.
        self.assertEqual((stats.awaited["do"].count, stats.awaited["do"].sum), (1, 0))
        server.advance(0.5)
        waiting[1].callback({"type": "done"})
        self.assertEqual((stats.awaited["do"].count, stats.awaited["do"].sum), (2, 0.5))
        server.advance(1)
        waiting[0].errback(Forbidden())
        self.assertEqual((stats.awaited["do"].count, stats.awaited["do"].sum), (3, 2.0))
        peer.send(do())
        server.advance(31)
        self.assertEqual(self.codes(peer.receive())[-1], "timeout")
        self.assertEqual((stats.awaited["do"].count, stats.awaited["do"].sum), (4, 32.0))
        # Of those that are given up nobody knows how long they would have taken.
        peer.send(do())
        server.advance(1)
        peer.close()
        self.assertEqual(stats.awaited["do"].count, 4)
        self.assertEqual(stats.awaited.keys(), {"do"})

    def test_how_long_one_read_took(self) -> None:
        server = self.server()
        clock = server.clock

        def act(session: Any, message: Do) -> Any:
            clock.rightNow += message.n / 8

        self.act = act
        peer = self.peer(server)
        handling = server.factory.stats.handling
        self.assertEqual(handling.count, 0)
        peer.send(PING, PING, PING)
        self.assertEqual((handling.count, handling.sum), (1, 0))
        peer.send(do(1), PING, do(1))
        self.assertEqual((handling.count, handling.sum), (2, 0.25))
        self.assertEqual(self.lines("nobody else"), [])
        for _ in range(2000):
            peer.send(PING)
        self.assertLess(len(handling.pending), 1000)
        self.assertEqual(handling.count, 2002)

    def test_one_that_holds_up_the_others(self) -> None:
        """A warning, once a minute, that says who it was and what."""
        server = self.server()
        clock = server.clock

        def act(session: Any, message: Do) -> Any:
            clock.rightNow += message.n / 8

        self.act = act
        peer = self.peer(server)
        peer.send(PING, do(4))
        self.assertEqual(self.lines("nobody else"), [])
        peer.send(PING, do(4), do(2))
        text = (
            "nobody else was served for {} seconds: {} messages of 127.0.0.1:50000 were handled,"
            " the last a Do"
        )
        line = text.format(0.8, 3)
        self.assertEqual(self.lines("nobody else"), [line])
        [event] = [event for event in self.events if event.get("event") == "held_up"]
        self.assertEqual((event["client"], event["seconds"], event["count"]), ("127.0.0.1:50000", 0.75, 3))
        peer.send(do(16))
        peer.send(do(8))
        self.assertEqual(self.lines("nobody else"), [line])
        server.advance(61)
        _, last = self.lines("nobody else")
        self.assertTrue(last.startswith(f"{text.format(1.0, 1)} (and 1 more in "), last)

    def test_since_when_something_waits(self) -> None:
        server = self.server()
        peer = self.peer(server)
        connection = peer.connection
        server.advance(1)
        self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])
        self.assertIsNone(connection.waits_since)
        peer.stop_reading()
        self.assertIsNone(connection.waits_since)
        peer.send(echo("x"))
        self.assertEqual(connection.waits_since, 1)
        server.advance(2)
        peer.send(echo("y"))
        self.assertEqual(connection.waits_since, 1)
        peer.start_reading()
        self.assertIsNone(connection.waits_since)
        server.advance(1)
        peer.stop_reading()
        connection.send({"type": "n"})
        self.assertEqual(connection.waits_since, 4)

    def test_nothing_waits_behind_a_turn(self) -> None:
        """What another's handler sends is kept for the end of its turn, and that is no wait."""
        server = self.server()
        one, other = self.peer(server), self.peer(server)
        self.act = lambda session, message: other.connection.send({"type": "n"})
        one.send(do())
        server.advance(5)
        self.assertEqual(self.codes(other.receive()), ["n"])
        self.assertEqual((other.connection.waiting, other.connection.waits_since), (0, None))

    def test_what_holds_it(self) -> None:
        """In words, for people."""
        waiting: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            if message.n == 1:
                seen.append(session.held)
                session.close()
                seen.append(session.held)
                return None
            waiting.append(Deferred())
            return waiting[-1]

        seen: list[tuple[str, ...]] = []
        self.act = act
        server = self.server(limits=Limits(max_handlers=2, messages_per_second=8))
        peer = self.peer(server)
        connection = peer.connection
        self.assertEqual((connection.held, connection.unfinished), ((), 0))
        peer.send(do())
        self.assertEqual((connection.held, connection.unfinished), ((), 1))
        peer.send(do())
        self.assertEqual((connection.held, connection.unfinished), (("handlers",), 2))
        connection.pauseProducing()
        self.assertEqual(connection.held, ("paused", "handlers"))
        connection.resumeProducing()
        waiting.pop().callback(None)
        server.settle()
        self.assertEqual((connection.held, connection.unfinished), ((), 1))
        waiting.pop().callback(None)
        self.assertEqual(connection.unfinished, 0)
        peer.send(*[PING] * 9)
        self.assertEqual(connection.held, ("rate",))
        server.advance(10)
        self.assertEqual(connection.held, ())
        peer.stop_reading()
        peer.send(echo("x" * 40_000), echo("x" * 40_000))
        self.assertEqual(connection.held, ("answers",))
        peer.start_reading()
        peer.send(do(1))
        self.assertEqual(seen, [(), ("closing",)])
        self.assertEqual(connection.held, ("ending",))
        slow = SlowChecker()
        asking = self.server(checkers=[slow])
        peer = self.peer(asking)
        peer.send(auth())
        self.assertEqual(peer.connection.held, ("auth",))
        slow.accept()
        self.assertEqual(peer.connection.held, ())

    def test_what_it_is_at(self) -> None:
        server = self.server(checkers=[checker()])
        connection = server.factory.buildProtocol(None)
        self.assertEqual(connection.status.value, "open")
        peer = self.peer(server)
        self.assertEqual(peer.connection.status.value, "authenticating")
        peer.send(auth())
        self.assertEqual(peer.connection.status.value, "ready")
        peer.send_bytes(b"\xff\xff\xff\xff")
        self.assertEqual(peer.connection.status.value, "draining")
        peer.close()
        self.assertEqual(peer.connection.status.value, "closed")

    def test_the_messages_are_logged(self) -> None:
        """Those of each read, with how many of them were handled; all that is sent, once."""
        seen = Noted()
        server = self.server(limits=Limits(messages_per_second=100, message_burst=2))
        one, other = self.peer(server), self.peer(server)
        logs: Any = seen
        server.factory.message_log = logs
        self.act = lambda session, message: other.connection.send({"type": "n"})
        one.send(PING, do(), PING)
        server.advance(1)
        one.send(cast("x"))
        server.factory.broadcast({"type": "news"})
        one.send_bytes(b"\xff\xff\xff\xff")
        types = [
            (what, who, [json.loads(payload)["type"] for payload in payloads], *more)
            for what, who, payloads, *more in seen.calls
        ]
        first, second = one.connection.client_id, other.connection.client_id
        self.assertEqual(
            [call for call in types if call[0] == "received"],
            [
                ("received", first, ["ping", "do"], ["Ping", "Do"], 2),
                ("received", first, ["ping"], ["Ping"], 1),
                ("received", first, ["broadcast"], ["Broadcast"], 1),
            ],
        )
        sent = {
            who: [kind for _, whom, kinds, *_ in sent if whom == who for kind in kinds]
            for who in (first, second)
            for sent in [[call for call in types if call[0] == "sent"]]
        }
        self.assertEqual(sent[first], ["pong", "pong", "broadcast_sent", "news", "error"])
        self.assertEqual(sent[second], ["n", "broadcast", "news"])


class Noted:
    """A log of messages that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def received(self, connection: Any, payloads: list[bytes], messages: list[Any], handled: int) -> None:
        kinds = [type(message).__name__ for message in messages]
        self.calls.append(("received", connection.client_id, list(payloads), kinds, handled))

    def sent(self, connection: Any, payloads: list[bytes]) -> None:
        self.calls.append(("sent", connection.client_id, list(payloads)))


class LoggedTests(Case):
    """What the log has beside its lines, and how often it is told."""

    def named(self, name: str) -> list[LogEvent]:
        """The log events of a name."""
        return [event for event in self.events if event.get("event") == name]

    def test_fields(self) -> None:
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        peer.send(auth())
        server.advance(1.5)
        peer.reset()
        [connected], [disconnected] = self.named("connected"), self.named("disconnected")
        for event in (connected, disconnected):
            self.assertEqual((event["client"], event["user"]), ("127.0.0.1:50000", "ann"))
        self.assertEqual(connected["clients"], 1)
        fields = ("code", "detail", "seconds", "messages_in", "messages_out")
        self.assertEqual([disconnected[name] for name in fields], ["connection_lost", "", 1.5, 1, 2])
        self.assertEqual(disconnected["bytes_in"], peer.connection.bytes_in)
        self.assertEqual(disconnected["bytes_out"], peer.connection.bytes_out)

    def test_refused(self) -> None:
        server = self.server(limits=Limits(max_connections=1))
        self.peer(server)
        server.connect()
        [event] = self.named("refused")
        self.assertEqual((event["client"], event["code"]), ("127.0.0.1:50001", "server_full"))

    def test_logins_that_fail(self) -> None:
        """In one line a minute, whoever tries."""
        server = self.server(checkers=[checker()])
        for _ in range(4):
            peer = self.peer(server)
            peer.send(auth("wrong"))
            # It is kept waiting, as its address was before.
            server.advance(4)
            peer.close()
        self.assertEqual(self.lines("login failed"), ["login failed 127.0.0.1:50000 mechanism=plain"])
        server.advance(61)
        last = "login failed 127.0.0.1:50003 mechanism=plain (and 2 more in 60 s)"
        self.assertEqual(self.lines("login failed")[1:], [last])
        self.assertEqual(self.named("login_failed")[0]["mechanism"], "plain")

    def test_those_that_are_slow(self) -> None:
        """An operator hears of them, once a minute; of no other end."""
        server = self.server(checkers=[checker()], limits=Limits(write_timeout=4))
        for number in range(3):
            peer = self.peer(server)
            peer.send(auth())
            if number:
                peer.stop_reading()
                peer.send(echo("x"))
                server.advance(6)
            peer.close()
        text = "127.0.0.1:50001 user='ann' was closed: it did not read what was sent to it"
        self.assertEqual(self.lines("127.0.0.1"), [text])
        [event] = self.named("slow_consumer")
        self.assertEqual(
            (event["client"], event["user"], event["code"]), ("127.0.0.1:50001", "ann", "slow_consumer")
        )
        server.advance(60)
        self.assertEqual(self.lines("127.0.0.1")[1:], [text.replace("50001", "50002")])

    def test_handlers_that_fail(self) -> None:
        """Each kind of message has its line, and a traceback; how often it was is told later."""

        def act(session: Any, message: Do) -> Any:
            raise KeyError

        self.act = act
        router = Router()

        def ping(session: Any, message: Ping) -> Any:
            raise KeyError

        router.add(Ping, ping)
        router.add(Do, act)
        server = MemoryServer(routers=[router], checkers=[checker()])
        self.addCleanup(server.stop)
        peer = self.peer(server)
        peer.send(auth())
        for _ in range(3):
            peer.send(do(), PING)
        first = ["handler of Do failed for 127.0.0.1:50000", "handler of Ping failed for 127.0.0.1:50000"]
        self.assertEqual(self.lines("handler of"), first)
        event, _ = self.named("handler_failed")
        self.assertEqual((event["client"], event["user"], event["kind"]), ("127.0.0.1:50000", "ann", "Do"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)
        server.advance(61)
        self.assertEqual(self.lines("handler of")[2:], [f"{line} (and 1 more in 60 s)" for line in first])
        self.assertIn("KeyError", self.named("handler_failed")[-1]["log_traceback"])

    def test_nothing_stays_unsaid(self) -> None:
        """When the last client is gone and nothing listens, all is told at once."""

        def act(session: Any, message: Do) -> Any:
            raise KeyError

        self.act = act
        server = self.server()
        peer = self.peer(server)
        peer.send(do(), do(), do())
        server.stop()
        self.assertEqual(len(self.lines("handler of")), 1)
        peer.close()
        self.assertEqual(
            self.lines("handler of")[1:], ["handler of Do failed for 127.0.0.1:50000 (and 1 more in 0 s)"]
        )
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assertEqual(server.clock.getDelayedCalls(), [])
        server.factory.doStart()

    def test_over_the_rate(self) -> None:
        server = self.server(checkers=[checker()], limits=Limits(messages_per_second=1, message_burst=2))
        peer = self.peer(server)
        peer.send(auth())
        peer.send(PING, PING, PING)
        [event] = self.named("over_rate")
        self.assertEqual((event["client"], event["user"]), ("127.0.0.1:50000", "ann"))


class DrainTests(Case):
    """The server goes away (section 11)."""

    def start(self, **options: Any) -> MemoryServer:
        self.memory = self.server(**options)
        return self.memory

    def drain(self) -> None:
        """What the service does when nothing listens any more."""
        self.fired: list[None] = []
        self.memory.factory.drain().addCallback(self.fired.append)
        self.memory.settle()

    def end(self) -> None:
        """All is over, and nothing is left."""
        self.assertEqual(self.fired, [None])
        self.assertEqual(self.memory.factory.connections, set())
        self.memory.stop()
        self.memory.clock.advance(0)
        self.assertEqual(self.memory.clock.getDelayedCalls(), [])
        # The cleanup stops it once more.
        self.memory.factory.doStart()

    def test_what_came_too_late_when_its_client_leaves(self) -> None:
        """It is served no more than if the client had stayed."""
        server = self.server()
        leaving, other = self.peer(server), self.peer(server)
        leaving.stop_reading()
        # The third waits until the answers to the others are read.
        leaving.send(*[echo("x" * 40_000)] * 3)
        server.factory.drain()
        server.settle()
        leaving.send({"type": "broadcast", "content": "too late"})
        leaving.close()
        self.assertEqual(self.codes(other.receive()), ["going_away"])

    def test_one_at_rest(self) -> None:
        peer = self.peer(self.start())
        self.assertFalse(self.memory.factory.draining)
        self.drain()
        self.assertTrue(self.memory.factory.draining)
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"], error["retry_after"]), ("going_away", False, 1))
        self.assertNotIn("id", error)
        self.memory.advance(0.875)
        self.assertFalse(peer.closed)
        self.memory.advance(0.125)
        self.assertEqual((peer.closed, peer.aborted, peer.receive()), (True, False, []))
        self.assertEqual(self.fired, [])
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"going_away": 1})
        self.assertEqual([closed.code for closed in self.memory.factory.stats.closed], ["going_away"])
        self.assertIn(" reason=going_away ", self.lines("disconnected ")[0])
        self.end()

    def test_nobody_there(self) -> None:
        self.start()
        self.drain()
        self.end()

    def test_deadlines_go_on(self) -> None:
        """When nothing listens any more, for those that are still there."""
        peer = self.peer(self.start(limits=Limits(frame_timeout=3)))
        other = self.peer(self.memory)
        peer.send_bytes(b"\0")
        self.memory.factory.doStop()
        other.close()
        self.memory.advance(3.25)
        self.assertEqual(self.codes(peer.receive()), ["frame_timeout"])
        peer.close()
        self.assertEqual(self.memory.clock.getDelayedCalls(), [])
        self.memory.factory.doStart()

    def test_one_that_goes_by_itself(self) -> None:
        peer = self.peer(self.start())
        self.drain()
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"client_closed": 1})
        self.end()

    def test_when_to_come_again(self) -> None:
        """Spread over the clients: 500 a second, within 2 to 30 seconds."""
        for count, last in ((1, 1), (2, 2), (4, 2.5), (2000, 5)):
            self.start()
            peers = [self.peer(self.memory) for _ in range(count)]
            self.drain()
            times = sorted(error["retry_after"] for peer in peers for error in peer.receive())
            self.assertEqual(len(times), count)
            self.assertEqual((times[0], times[-1]), (1, last))
            self.assertLessEqual(max(Counter(times).values()), max(51, count // 20))

    def test_no_longer_than_half_a_minute(self) -> None:
        factory = self.start().factory
        told: list[float] = []

        class Client:
            def go_away(self, retry_after: float) -> None:
                told.append(retry_after)

            def abort(self, reason: str) -> None:
                """It has gone."""

        clients: Any = {Client() for _ in range(30_000)}
        factory.connections |= clients
        self.drain()
        self.assertEqual((min(told), max(told)), (1, 31))
        factory.connections -= clients

    def test_not_in_the_order_of_their_coming(self) -> None:
        """Those that came first would else be always first."""
        factory = TCPJSONServerFactory(self.start().clock, shuffle=list.reverse)
        connections = []
        for _ in range(2):
            connection = factory.buildProtocol(None)
            connection.makeConnection(StringTransport())
            connections.append(connection)
        order = list(factory.connections)
        factory.drain()
        told = {connection: connection.going_away.retry_after for connection in connections}
        self.assertEqual([told[connection] for connection in order], [2, 1])
        factory.abort()

    def test_requests_before_and_after(self) -> None:
        peer = self.peer(self.start())
        peer.send(echo(1))
        self.drain()
        peer.send(
            echo(2, id="two"), PING, {"type": "hello", "id": 3}, auth(id=4), {"id": 5}, do(), "text", cast(1)
        )
        answers = peer.receive()
        self.assertEqual(self.codes(answers), ["echo_response", *["going_away"] * 9])
        self.assertEqual(
            [answer.get("id") for answer in answers[2:]], ["two", None, 3, 4, 5, None, None, None]
        )
        self.assertEqual({answer["retry_after"] for answer in answers[1:]}, {1})
        self.assertFalse(peer.closed)

    def test_what_is_wrong_after_it(self) -> None:
        peer = self.peer(self.start())
        self.drain()
        peer.send_payload(b"{", b"", b'{"type":1,"id":7}')
        self.assertEqual(self.codes(peer.receive()), ["going_away"] * 4)

    def test_broadcasts_arrive(self) -> None:
        """Of requests that were complete before."""
        self.start(limits=Limits(messages_per_second=1))
        one, two = self.peer(self.memory), self.peer(self.memory)
        one.send(cast(1), cast(2))
        self.drain()
        self.assertEqual(self.codes(one.receive()), ["broadcast_sent", "broadcast_sent", "going_away"])
        self.assertEqual(contents(two.receive()), [1, 2])

    def test_those_that_the_rate_holds(self) -> None:
        """They are answered before: there is no later."""
        self.start(limits=Limits(messages_per_second=2))
        peer = self.peer(self.memory)
        peer.send(*map(echo, range(2000)))
        peer.send_bytes(raw(echo("late", id="late"))[:10])
        self.assertEqual(len(peer.receive()), 2)
        self.drain()
        *answers, error = peer.receive()
        self.assertEqual(contents(answers), list(range(2, 2000)))
        self.assertEqual(error["code"], "going_away")
        # The rest of a frame that had begun: too late.
        peer.send_bytes(raw(echo("late", id="late"))[10:])
        [error] = peer.receive()
        self.assertEqual((error["code"], error["id"]), ("going_away", "late"))
        self.memory.advance(1)
        self.assertTrue(peer.closed)
        peer.close()
        self.end()

    def test_those_whose_turn_is_to_come(self) -> None:
        peer = self.peer(self.start())
        peer.connection.dataReceived(raw(*map(echo, range(2000))))
        self.assertLess(len(peer.receive()), 1000)
        self.drain()
        self.assertEqual(self.codes(peer.receive()).count("going_away"), 1)
        self.assertEqual(peer.connection.messages_in, 2000)

    def test_those_held_by_answers(self) -> None:
        peer = self.peer(self.start())
        peer.stop_reading()
        peer.send(*(echo([n, "x" * 30_000]) for n in range(20)))
        self.drain()
        self.memory.advance(3)
        self.assertFalse(peer.closed)
        peer.start_reading()
        *answers, error = peer.receive()
        self.assertEqual([content[0] for content in contents(answers)], list(range(20)))
        self.assertEqual(error["code"], "going_away")
        self.assertTrue(peer.closed)
        self.assertFalse(peer.aborted)
        peer.close()
        self.end()

    def test_held_in_one_turn_and_small(self) -> None:
        """The answers fit: nothing waits, and yet it closes at once when all is said."""
        peer = self.peer(self.start())
        peer.connection.pauseProducing()
        peer.send(echo(1))
        self.drain()
        self.memory.advance(3)
        self.assertEqual((peer.receive(), peer.closed), ([], False))
        peer.connection.resumeProducing()
        self.assertEqual(self.codes(peer.receive()), ["echo_response", "going_away"])
        self.assertTrue(peer.closed)
        peer.close()
        self.end()

    def test_slow_handlers(self) -> None:
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        self.start(limits=Limits(max_handlers=2))
        one, two = self.peer(self.memory), self.peer(self.memory)
        one.send(do(0, id=0), PING)
        two.send(do(1), do(2, id=2), do(3), PING)
        self.drain()
        self.assertEqual(self.codes(one.receive()), ["pong", "going_away"])
        # Its frames wait behind its handlers, and are to be answered before.
        self.assertEqual(self.codes(two.receive()), [])
        self.memory.advance(2)
        self.assertFalse(one.closed or two.closed)
        self.assertEqual(len(slow), 3)
        slow[0].callback({"type": "done"})
        self.assertEqual(self.codes(one.receive()), ["done"])
        self.assertTrue(one.closed)
        for deferred in slow[1:]:
            deferred.callback({"type": "done"})
        self.memory.settle()
        self.assertEqual(len(slow), 4)
        self.assertFalse(two.closed)
        slow[3].callback({"type": "done"})
        self.memory.settle()
        self.assertEqual(self.codes(two.receive()), ["done", "done", "going_away", "done", "pong"])
        self.assertTrue(two.closed)
        one.close()
        two.close()
        self.end()

    def test_slow_handlers_before_the_first_second(self) -> None:
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        peer = self.peer(self.start())
        peer.send(do())
        self.drain()
        slow.callback({"type": "done"})
        self.assertEqual(self.codes(peer.receive()), ["going_away", "done"])
        self.assertFalse(peer.closed)
        self.memory.advance(1)
        self.assertTrue(peer.closed)

    def test_a_handler_that_comes_to_no_end(self) -> None:
        cancelled: list[Any] = []
        self.act = lambda session, message: Deferred(cancelled.append)
        peer = self.peer(self.start())
        peer.send(do())
        self.drain()
        self.memory.advance(9.875)
        self.assertFalse(peer.closed)
        self.memory.advance(0.125)
        self.assertTrue(peer.aborted)
        peer.close()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.memory.factory.stats.disconnects, {"going_away": 1})
        self.end()

    def test_one_that_is_stuck(self) -> None:
        self.start(limits=Limits(grace=5))
        peer = self.peer(self.memory)
        peer.stop_reading()
        peer.send(*(echo("x" * 30_000) for _ in range(20)))
        self.drain()
        self.memory.advance(4.875)
        self.assertFalse(peer.closed)
        self.memory.advance(0.125)
        self.assertTrue(peer.aborted)
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"going_away": 1})
        self.end()

    def test_one_that_does_not_close(self) -> None:
        """After its answers it has no more than after any other end."""
        peer = self.peer(self.start())
        self.drain()
        self.memory.advance(2.875)
        self.assertFalse(peer.aborted)
        self.memory.advance(0.25)
        self.assertTrue(peer.aborted)

    def test_a_short_grace(self) -> None:
        self.start(limits=Limits(grace=0.5))
        peer = self.peer(self.memory)
        self.drain()
        self.memory.advance(0.125)
        self.assertFalse(peer.closed)
        # There is still time to end in order.
        self.memory.advance(0.25)
        self.assertTrue(peer.closed)
        self.assertFalse(peer.aborted)
        self.memory.advance(0.125)
        self.assertTrue(peer.aborted)
        peer.close()
        self.end()

    def test_heartbeats(self) -> None:
        """A `pong` is still no request; pings are still answered by those that are there."""
        self.start(limits=Limits(heartbeat=1))
        peer = self.peer(self.memory)
        self.ask(peer, HELLO)
        self.act = lambda session, message: Deferred()
        peer.send(do())
        self.drain()
        peer.send(PONG, {"type": "ping", "id": 1})
        self.assertEqual(self.codes(peer.receive()), ["going_away", "going_away"])
        self.memory.advance(2)
        self.assertEqual(self.codes(peer.receive()), ["ping"])
        other = self.peer(self.server())
        self.assertEqual(self.codes(self.ask(other, PONG)), ["response"])

    def test_hello_in_time(self) -> None:
        """As one of the requests that were complete."""
        self.start(limits=Limits(messages_per_second=1))
        peer = self.peer(self.memory)
        peer.send(PING, HELLO)
        self.drain()
        peer.send(PONG, PING)
        self.assertEqual(self.codes(peer.receive()), ["pong", "hello_response", "going_away", "going_away"])

    def test_guests(self) -> None:
        self.start(checkers=[checker()])
        peer = self.peer(self.memory)
        self.drain()
        peer.send(PING, auth(id=3), echo(1))
        self.assertEqual(self.codes(peer.receive()), ["going_away"] * 4)
        self.assertIsNone(peer.connection.user)
        self.memory.advance(1)
        self.assertTrue(peer.closed)
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"going_away": 1})
        self.end()

    def test_a_login_that_is_checked(self) -> None:
        """It is answered, and nothing after it is served."""
        for seconds in (0, 0.5, 4):
            for hello in ([], [HELLO]):
                slow = SlowChecker()
                self.start(checkers=[slow])
                peer = self.peer(self.memory)
                self.ask(peer, *hello)
                peer.send(auth())
                self.drain()
                late = [1] if seconds < 1 else []
                peer.send(*(echo(1, id=number) for number in late))
                self.assertEqual(peer.receive(), [])
                self.memory.advance(seconds)
                self.assertFalse(peer.closed)
                slow.accept()
                self.memory.settle()
                result, away, *others = peer.receive()
                self.assertEqual(self.codes([result, away]), ["auth_result", "going_away"])
                self.assertEqual(
                    [(error["code"], error["id"]) for error in others], [("going_away", 1)] * len(late)
                )
                peer.send(PONG)
                self.assertEqual(self.codes(peer.receive()), [] if hello or not late else ["going_away"])
                self.memory.advance(1)
                self.assertTrue(peer.closed)
                peer.close()
                self.end()

    def test_frames_behind_a_login(self) -> None:
        """They were complete in time, too."""
        for seconds in (0, 4):
            slow = SlowChecker()
            self.start(checkers=[slow])
            peer = self.peer(self.memory)
            peer.send(auth(), echo(1), echo("x" * 5000))
            self.drain()
            self.memory.advance(seconds)
            slow.accept()
            self.memory.settle()
            self.assertEqual(
                self.codes(peer.receive()), ["auth_result", "echo_response", "echo_response", "going_away"]
            )
            self.memory.advance(1)
            self.assertTrue(peer.closed)
            peer.close()
            self.end()

    def test_a_login_that_fails(self) -> None:
        slow = SlowChecker()
        self.start(checkers=[slow])
        peer = self.peer(self.memory)
        peer.send(auth(), PING)
        self.drain()
        slow.refuse()
        self.memory.settle()
        self.assertEqual(self.codes(peer.receive()), ["auth_result", "pong", "going_away"])
        self.memory.advance(1)
        self.assertTrue(peer.closed)

    def test_a_check_that_comes_to_no_end(self) -> None:
        slow = SlowChecker()
        self.start(checkers=[slow])
        peer = self.peer(self.memory)
        peer.send(auth(), PING)
        self.drain()
        self.memory.advance(10)
        self.assertTrue(peer.aborted)
        peer.close()
        self.assertEqual(slow.cancelled, 1)
        self.end()

    def test_one_that_ends(self) -> None:
        """It has its error, and hears nothing more."""
        peer = self.peer(self.start())
        peer.send_bytes(b"\xff\xff\xff\xff")
        self.drain()
        self.memory.advance(1)
        self.assertEqual(self.codes(peer.receive()), ["too_large"])
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"too_large": 1})
        self.end()

    def test_one_that_ends_during_it(self) -> None:
        peer = self.peer(self.start())
        self.drain()
        peer.send_bytes(b"\xff\xff\xff\xff")
        self.assertEqual(self.codes(peer.receive()), ["going_away", "too_large"])
        self.memory.advance(1.5)
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"too_large": 1})
        self.end()

    def test_one_that_comes_during_it(self) -> None:
        first = self.peer(self.start())
        self.drain()
        peer = self.memory.connect()
        [error] = peer.receive()
        self.assertEqual((error["code"], error["retry_after"] > 0, peer.closed), ("going_away", True, True))
        first.close()
        self.assertEqual(self.fired, [])
        peer.close()
        self.assertEqual(self.lines("refused"), ["refused 127.0.0.1:50001: going_away"])
        self.assertEqual(self.memory.factory.stats.refused, {"going_away": 1})
        self.end()
        late = self.memory.connect()
        self.assertEqual(self.codes(late.receive()), ["going_away"])
        late.close()
        self.assertEqual(self.fired, [None])

    def test_those_that_come_and_stay(self) -> None:
        self.start(limits=Limits(grace=1))
        self.drain()
        peer = self.memory.connect()
        self.memory.advance(2)
        self.assertTrue(peer.aborted)

    def test_complete_frames_that_are_wrong(self) -> None:
        """One of the requests ends the connection, as it would have without the shutdown."""
        self.start(limits=Limits(messages_per_second=1, max_length=100))
        peer = self.peer(self.memory)
        peer.send(PING, PING)
        peer.send_payload(b"x" * 101, b'{"type":"ping"}')
        self.drain()
        self.assertEqual(self.codes(peer.receive()), ["pong", "pong", "too_large"])
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"too_large": 1})
        self.end()

    def test_a_handler_that_closes(self) -> None:
        self.act = lambda session, message: session.close()
        self.start(limits=Limits(messages_per_second=1))
        peer = self.peer(self.memory)
        peer.send(PING, do(), PING)
        self.drain()
        self.assertEqual(self.codes(peer.receive()), ["pong"])
        peer.close()
        self.assertEqual(self.memory.factory.stats.disconnects, {"closed_by_handler": 1})
        self.end()

    def test_a_fatal_error_in_the_last_request(self) -> None:
        """Nothing follows it, `going_away` neither."""

        def act(session: Any, message: Do) -> Any:
            raise Fatal

        self.act = act
        for reads in (True, False):
            self.start(limits=Limits(messages_per_second=1))
            peer = self.peer(self.memory)
            peer.send(PING, PING, do())
            if not reads:
                peer.stop_reading()
            self.drain()
            peer.start_reading()
            self.assertEqual(self.codes(peer.receive()), ["pong", "pong", "forbidden"])
            self.assertEqual(self.memory.factory.stats.errors, {"forbidden": 1})
            peer.close()
            self.end()

    def test_the_third_failure_during_it(self) -> None:
        slow = SlowChecker()
        self.start(checkers=[slow])
        peer = self.peer(self.memory)
        for _ in range(2):
            peer.send(auth())
            slow.refuse()
            self.memory.advance(1)
        peer.receive()
        peer.send(auth())
        self.drain()
        peer.stop_reading()
        slow.refuse()
        self.memory.advance(0.5)
        peer.start_reading()
        self.assertEqual(self.codes(peer.receive()), ["auth_result", "auth_failed"])
        self.assertEqual(self.memory.factory.stats.errors, {"auth_failed": 1})

    def test_lost_with_requests_left(self) -> None:
        """One that sends and goes has sent all the same."""
        self.start(limits=Limits(messages_per_second=1))
        one, peer = self.peer(self.memory), self.peer(self.memory)
        peer.stop_reading()
        peer.send(*(echo("x" * 30_000) for _ in range(10)), cast(1))
        self.drain()
        self.memory.advance(2)
        peer.close()
        one.close()
        self.assertEqual(peer.connection.messages_in, 11)
        self.end()

    @given(
        st.one_of(st.none(), st.floats(0.5, 5)),
        st.lists(st.sampled_from(["echo", "large", "slow", "nothing", "wrong"]), max_size=40),
        st.lists(st.sampled_from(["echo", "large", "slow", "wrong"]), max_size=10),
        st.integers(0, 30),
        st.integers(1, 4),
        st.booleans(),
    )
    def test_whatever_was_asked(
        self, rate: float | None, before: list[str], after: list[str], cut: int, handlers: int, reads: bool
    ) -> None:
        """What was complete has its own answer; what was not is told; and nothing is left in the end."""
        slow: list[Deferred[Any]] = []

        def act(session: Any, message: Do) -> Any:
            if message.n:
                return None
            slow.append(Deferred())
            return slow[-1]

        self.act = act
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))
        server = self.memory = MemoryServer(
            limits=Limits(messages_per_second=rate, max_handlers=handlers), routers=[router]
        )
        peer = self.peer(server)
        requests = {
            "echo": echo("x"),
            "large": echo("x" * 40_000),
            "slow": do(0),
            "nothing": do(1),
            "wrong": {"type": "echo", "id": 2**63},
        }
        answered = {"echo": "echo_response", "large": "echo_response", "slow": "done"}
        frames = [
            raw(requests[kind] if kind == "wrong" else {**requests[kind], "id": n})
            for n, kind in enumerate(before + after)
        ]
        data = b"".join(frames)
        complete = sum(map(len, frames[: len(before)]))
        # A part of the first that is too late may be there, too.
        begun = complete + (min(cut, len(frames[len(before)]) - 1) if after else 0)
        if not reads:
            peer.stop_reading()
        peer.send_bytes(data[:begun])
        self.drain()
        peer.send_bytes(data[begun:])
        peer.start_reading()
        while slow:
            slow.pop().callback({"type": "done"})
            server.settle()
        messages = peer.receive()
        codes = {
            message["id"]: code
            for message, code in zip(messages, self.codes(messages), strict=True)
            if "id" in message
        }
        for n, kind in enumerate(before + after):
            late = None if kind == "wrong" else "going_away"
            self.assertEqual(codes.pop(n, None), answered.get(kind) if n < len(before) else late)
        self.assertEqual(codes, {})
        nameless = [
            code for message, code in zip(messages, self.codes(messages), strict=True) if "id" not in message
        ]
        self.assertEqual(
            nameless, ["bad_message"] * before.count("wrong") + ["going_away"] * (1 + after.count("wrong"))
        )
        self.assertFalse(peer.closed)
        server.advance(1)
        self.assertTrue(peer.closed)
        peer.close()
        self.end()
        server.stop()


class DrainSocketTests(SocketCase):
    """Over sockets, where what was sent has not arrived yet."""

    def drain(self, factory: Any) -> None:
        self.fired: list[None] = []
        factory.drain().addCallback(self.fired.append)
        self.loop.settle()

    def test_all_arrives(self) -> None:
        factory = self.factory()
        wires = [self.wire(factory, tls=tls) for tls in (False, True)]
        for wire in wires:
            wire.send(raw(echo("x" * 50_000)))
        self.drain(factory)
        self.advance(1)
        for wire in wires:
            self.assertEqual(self.codes(self.messages(wire)), ["welcome", "echo_response", "going_away"])
            wire.close()
        self.advance(3)
        self.assertEqual(self.fired, [None])
        self.assertEqual(factory.stats.disconnects["going_away"], 2)

    def test_one_that_reads_slowly(self) -> None:
        """It has the whole of the grace period for what was sent, also for what only the system still has."""
        for tls in (False, True):
            factory = self.factory(limits=Limits(write_timeout=1000))
            wire = self.wire(factory, tls=tls)
            wire.send(raw(echo("x" * 60_000)))
            self.drain(factory)
            self.advance(8)
            self.assertEqual(len(factory.connections), 1)
            self.assertEqual(self.codes(self.messages(wire)), ["welcome", "echo_response", "going_away"])
            if isinstance(wire, TLSWire):
                wire.say_goodbye()
            wire.close()
            self.assertEqual(self.fired, [None])
            self.assertEqual(factory.stats.disconnects, {"going_away": 1})

    def test_one_that_fails_and_reads_slowly(self) -> None:
        """Only who does as it is asked has the whole of the grace period."""
        factory = self.factory(limits=Limits(write_timeout=1000))
        wire = self.wire(factory)
        wire.send(raw(echo("x" * 60_000)))
        self.drain(factory)
        wire.send(b"\xff\xff\xff\xff")
        self.advance(1.875)
        self.assertEqual(len(factory.connections), 1)
        self.advance(0.25)
        self.assertEqual(factory.stats.disconnects, {"too_large": 1})

    def test_one_that_reads_nothing(self) -> None:
        factory = self.factory(limits=Limits(grace=4))
        wire = self.wire(factory, send_buffer=4096)
        wire.send(raw(echo("x" * 600_000)))
        self.drain(factory)
        self.advance(3.875)
        self.assertEqual(self.fired, [])
        self.advance(0.25)
        self.assertEqual(self.fired, [None])
        self.assertEqual(factory.stats.disconnects, {"going_away": 1})

    def test_half_closed(self) -> None:
        slow: Deferred[Any] = Deferred()
        self.act = lambda session, message: slow
        factory = self.factory(limits=Limits(messages_per_second=2))
        wire = self.wire(factory)
        wire.socket.send(raw(do(), *map(echo, range(6))))
        wire.end()
        self.drain(factory)
        self.advance(2)
        slow.callback({"type": "done"})
        messages = self.messages(wire)
        self.assertEqual(contents(messages), list(range(6)))
        self.assertIn("done", self.codes(messages))
        self.assertTrue(wire.ended)
        self.advance(3)
        self.assertEqual(self.fired, [None])

    def test_in_the_handshake(self) -> None:
        """Who cannot be told in time is sent away without a word."""
        factory = self.factory()
        wires = [self.silent(tls_factory(factory, self.loop)), self.silent(proxied(factory))]
        self.drain(factory)
        self.advance(0.875)
        for wire in wires:
            wire.take_all()
            self.assertEqual((wire.ended, wire.raw), (False, b""))
        self.advance(0.125)
        for wire in wires:
            wire.take_all()
            self.assertEqual((wire.ended, wire.raw), (True, b""))
        self.assertEqual(self.fired, [None])
        self.assertEqual(factory.stats.disconnects, {"going_away": 2})
        self.assertEqual([closed.code for closed in factory.stats.closed], ["going_away"] * 2)

    def test_a_handshake_that_is_done_in_time(self) -> None:
        """It is told when to come again."""
        for checkers in ((), [checker()]):
            factory = self.factory(checkers=checkers)
            wire = self.silent(tls_factory(factory, self.loop), TLSWire)
            self.drain(factory)
            wire.shake_hands()
            [message] = self.messages(wire)
            self.assertEqual((message["code"], message["retry_after"]), ("going_away", 1))
            wire.close()
            self.assertEqual(factory.stats.disconnects, {"going_away": 1})

    def test_a_handshake_during_it(self) -> None:
        factory = self.factory()
        first = self.wire(factory)
        self.drain(factory)
        wire = self.silent(tls_factory(factory, self.loop))
        wire.take_all()
        self.assertEqual((wire.ended, wire.raw), (True, b""))
        self.advance(1)
        first.close()
        self.advance(3)
        self.assertEqual(self.fired, [None])

    def test_refused_and_still_there(self) -> None:
        factory = self.factory(limits=Limits(max_connections=1))
        wire, refused = self.wire(factory), self.wire(factory)
        self.drain(factory)
        self.advance(1)
        wire.close()
        self.assertEqual(self.fired, [])
        self.advance(2)
        self.assertEqual(self.fired, [None])
        self.assertEqual(self.codes(self.messages(refused)), ["server_full"])
        self.assertEqual(factory.stats.disconnects, {"going_away": 1, "server_full": 1})

    def test_under_load(self) -> None:
        """Of each request there is one answer: its own, or that it came too late."""
        factory = self.factory(limits=Limits(messages_per_second=40))
        wires = [self.wire(factory, tls=bool(number % 2)) for number in range(6)]
        for wire in wires:
            wire.send(raw(*(echo(n, id=n) for n in range(100))))
        self.drain(factory)
        for wire in wires:
            wire.send(raw(*(echo(n, id=n) for n in range(100, 150))))
        self.advance(1)
        for wire in wires:
            messages = self.messages(wire)
            answers = [message for message in messages if "id" in message]
            self.assertEqual([message["id"] for message in answers], list(range(150)))
            kinds = self.codes(answers)
            self.assertEqual(kinds, sorted(kinds))
            self.assertEqual(kinds.count("echo_response"), 100)
            wire.close()
        self.advance(3)
        self.assertEqual(self.fired, [None])


class IntroductionCase(Case):
    """`on_connect` and `on_disconnect`, as a client meets them."""

    def setUp(self) -> None:
        super().setUp()
        #: What the hooks saw, in order.
        self.seen: list[Any] = []
        #: What `on_connect` does, and what an unfinished one waits for.
        self.meet: Callable[[Any], Any] = lambda session: None
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0

    def router(self) -> Router:
        router = Router()
        router.add(Do, lambda session, message: self.act(session, message))

        @router.on_connect
        def meet(session: Any) -> Any:
            self.seen.append(("connect", session.client_id))
            return self.meet(session)

        @router.on_disconnect
        def leave(session: Any) -> None:
            self.seen.append(("disconnect", session.client_id, session.reason))

        return router

    def server(self, **options: Any) -> MemoryServer:
        server = MemoryServer(routers=[self.router()], **options)
        self.addCleanup(server.stop)
        return server

    def wait(self, session: Any) -> Deferred[Any]:
        """An `on_connect` that is done when the test has it done."""

        def cancel(deferred: object) -> None:
            self.cancelled += 1

        self.waiting.append(Deferred(cancel))
        return self.waiting[-1]

    def go_on(self) -> None:
        """The oldest that is unfinished is done."""
        self.waiting.pop(0).callback("whatever")

    def ends(self, peer: Peer) -> list[str]:
        """The reasons of which `on_disconnect` was told for a client."""
        return [code for what, *rest in self.seen if what == "disconnect" for _, code in [rest]]


class IntroductionTests(IntroductionCase):
    """A client is told of before it is served, once, and when it is gone, once."""

    def test_once_each(self) -> None:
        server = self.server()
        peer = self.peer(server)
        client_id = peer.connection.client_id
        self.assertEqual(self.seen, [("connect", client_id)])
        self.assertEqual(self.codes(self.ask(peer, PING, do(), PING)), ["pong", "pong"])
        peer.close()
        self.assertEqual(self.seen, [("connect", client_id), ("disconnect", client_id, "client_closed")])
        self.assertEqual(server.factory.stats.disconnects, {"client_closed": 1})

    def test_all_kinds_of_functions(self) -> None:
        """What they return is waited for, if that can be; what comes of it is nobody's."""

        async def coroutine(session: Any) -> str:
            return "nobody's"

        for meet in (lambda session: 7, coroutine, lambda session: succeed(7)):
            self.meet = meet
            peer = self.peer(self.server())
            self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])

    def test_it_is_served_by_then(self) -> None:
        """It is one of the clients, and may be sent to; `welcome` is the first that it gets."""
        server = self.server()
        other = self.peer(server)
        heard: list[int] = []

        def meet(session: Any) -> None:
            self.assertIn(session, session.server.sessions)
            self.assertEqual((session.reason, session.user, session.state), ("", None, None))
            session.send({"type": "you"})
            heard.append(session.broadcast({"type": "somebody"}))
            heard.append(session.server.broadcast({"type": "all"}))
            heard.append(session.server.broadcast({"type": "some"}, to=[session]))

        self.meet = meet
        peer = server.connect()
        self.assertEqual(self.codes(peer.receive()), ["welcome", "you", "all", "some"])
        self.assertEqual(self.codes(other.receive()), ["somebody", "all"])
        self.assertEqual(heard, [1, 2, 1])

    def test_what_comes_meanwhile_waits(self) -> None:
        """In order, over reads; what others send to it does not."""
        self.meet = self.wait
        server = self.server()
        peer = self.peer(server)
        data = raw(*map(echo, range(20)))
        for start in range(0, len(data), 97):
            peer.send_bytes(data[start : start + 97])
        self.assertEqual(peer.receive(), [])
        self.assertEqual(server.factory.broadcast({"type": "news"}), 1)
        self.assertEqual(self.codes(peer.receive()), ["news"])
        self.assertEqual(peer.transport.producerState, "paused")
        self.go_on()
        server.settle()
        self.assertEqual(contents(peer.receive()), list(range(20)))
        self.assertEqual(peer.transport.producerState, "producing")
        self.assertEqual(contents(self.ask(peer, echo("behind"))), ["behind"])

    def test_a_coroutine_in_steps(self) -> None:
        async def meet(session: Any) -> None:
            session.state = await self.wait(session)
            session.send({"type": "first"})
            await self.wait(session)
            session.send({"type": "second"})

        self.meet = meet
        server = self.server()
        peer = self.peer(server)
        peer.send(PING)
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["first"])
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["second", "pong"])
        self.assertEqual(peer.connection.state, "whatever")

    def test_hello_that_waited(self) -> None:
        """It comes first all the same, and what stands behind it may be compressed."""
        self.meet = self.wait
        server = self.server()
        peer = self.peer(server)
        hello = {"type": "hello", "compression": ["zlib"], "heartbeat": True}
        peer.send(hello)
        long = {"type": "echo", "content": "x" * 5000}
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["hello_response"])
        data = deflate(json.dumps(long).encode())
        peer.send_bytes((len(data) | COMPRESSED).to_bytes(4, "big") + data)
        self.assertEqual(contents(peer.receive()), ["x" * 5000])

    def test_too_long_a_frame_meanwhile(self) -> None:
        """It is seen when its turn has come, behind those that came before it."""
        self.meet = self.wait
        server = self.server(limits=Limits(max_length=1000))
        peer = self.peer(server)
        peer.send_bytes(raw(PING) + (1001).to_bytes(4, "big"))
        self.assertEqual(peer.receive(), [])
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["pong", "too_large"])
        peer.close()
        self.assertEqual(self.ends(peer), ["too_large"])

    def test_no_other_deadline_runs_meanwhile(self) -> None:
        """Nor does it leave one behind."""
        self.meet = self.wait
        limits = Limits(frame_timeout=1, idle_timeout=2, auth_timeout=1, handler_timeout=30)
        server = self.server(limits=limits)
        peer = self.peer(server)
        peer.send_bytes(raw(PING) + b"\0\0")
        server.advance(29)
        self.assertEqual(peer.receive(), [])
        self.assertFalse(peer.closed)
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["pong"])
        server.advance(0.5)
        peer.send_bytes(b"\0\2{}")
        self.assertEqual(self.codes(peer.receive()), ["response"])
        for _ in range(40):
            server.advance(1)
            self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])

    def test_heartbeats_begin_behind_it(self) -> None:
        self.meet = self.wait
        server = self.server(limits=Limits(heartbeat=5, handler_timeout=100), checkers=[checker()])
        peer = self.peer(server)
        peer.send(HELLO, auth())
        self.assertEqual(self.codes(peer.receive()), ["hello_response", "auth_result"])
        server.advance(60)
        self.assertEqual(peer.receive(), [])
        self.go_on()
        server.advance(6)
        self.assertEqual(self.codes(peer.receive()), ["ping"])

    def test_each_its_own(self) -> None:
        """One that is slow to be let in holds up nobody else."""
        self.meet = self.wait
        server = self.server()
        first = self.peer(server)
        first.send(PING)
        self.meet = lambda session: None
        self.assertEqual(self.codes(self.ask(self.peer(server), PING)), ["pong"])
        self.assertEqual(first.receive(), [])

    def test_let_in_by_another(self) -> None:
        """In the midst of the other's turn, and what waited is answered in order."""
        self.meet = self.wait
        server = self.server()
        first, second = self.peer(server), self.peer(server)
        second.send(echo(1), cast("from the second"), echo(2))
        self.go_on()

        def act(session: Any, message: Do) -> Any:
            session.broadcast({"type": "before"})
            self.go_on()
            session.broadcast({"type": "behind"})
            return {"type": "done"}

        self.act = act
        self.assertEqual(self.codes(self.ask(first, do())), ["broadcast", "done"])
        self.assertEqual(
            self.codes(second.receive()),
            ["before", "echo_response", "broadcast_sent", "echo_response", "behind"],
        )

    def test_only_the_one_or_the_other(self) -> None:
        for moment in ("on_connect", "on_disconnect"):
            router = Router()
            getattr(router, moment)(lambda session, moment=moment: self.seen.append(moment))
            server = MemoryServer(routers=[router])
            peer = self.peer(server)
            self.assertEqual(self.codes(self.ask(peer, PING)), ["pong"])
            peer.close()
            self.assertEqual(self.seen, [moment])
            self.seen.clear()

    def test_those_who_never_were_clients(self) -> None:
        """No room, no handshake, no login: nobody hears of them."""
        server = self.server(limits=Limits(max_connections=1), checkers=[checker()])
        guest, refused = server.connect(), server.connect()
        self.assertEqual(self.codes(refused.receive()), ["server_full"])
        refused.close()
        self.assertEqual(self.codes(self.ask(guest, PING, do())), ["welcome", "pong", "unauthenticated"])
        guest.send(auth("wrong"))
        server.advance(3)
        guest.close()
        guest = self.peer(server)
        server.advance(6)
        self.assertEqual(self.codes(guest.receive()), ["auth_timeout"])
        guest.close()
        self.assertEqual(self.seen, [])

    def test_it_leaves_no_timer(self) -> None:
        self.meet = self.wait
        server = self.server()
        peers = [self.peer(server) for _ in range(3)]
        self.go_on()
        for peer in peers:
            peer.close()
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])
        self.assertEqual(self.cancelled, 2)


class IntroductionAfterLoginTests(IntroductionCase):
    """Where somebody must log in, the login is the beginning."""

    def test_behind_the_login(self) -> None:
        def meet(session: Any) -> None:
            self.seen.append(session.user)
            session.send({"type": "you"})
            session.server.broadcast({"type": "all"})

        self.meet = meet
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        self.assertEqual(self.codes(self.ask(peer, PING, HELLO)), ["pong", "hello_response"])
        self.assertEqual(self.seen, [])
        answers = self.ask(peer, auth(id=1), echo("behind"))
        self.assertEqual(self.codes(answers), ["auth_result", "you", "all", "echo_response"])
        self.assertEqual(self.seen, [("connect", peer.connection.client_id), "ann"])

    def test_behind_a_login_that_takes_time(self) -> None:
        """The frames behind it wait for both."""
        self.meet = self.wait
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth(), echo(1), echo(2))
        self.assertEqual(self.seen, [])
        slow.accept()
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.assertEqual([what for what, _ in self.seen], ["connect"])
        server.advance(20)
        self.assertEqual(peer.receive(), [])
        self.go_on()
        self.assertEqual(contents(peer.receive()), [1, 2])
        # The time in which it was to log in is over, and forgotten.
        server.advance(100)
        self.assertFalse(peer.closed)

    def test_a_login_that_fails_first(self) -> None:
        self.meet = self.wait
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        self.assertEqual(self.ask(peer, auth("wrong"))[0]["status"], "authentication_failed")
        self.assertEqual(self.seen, [])
        peer.send(auth(), PING)
        server.advance(2)
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["pong"])

    def test_by_scram(self) -> None:
        path = Path(self.mktemp())
        path.write_text(f"ann:{Verifier.make(PASSWORD, 4096, lambda size: bytes(size)).format()}\n")
        path.chmod(0o600)
        server = self.server(checkers=[VerifierChecker(str(path))])
        peer = self.peer(server)
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        step = {"type": "auth", "mechanism": "scram-sha-256"}
        [challenge] = self.ask(peer, {**step, "data": client.get_client_first()})
        self.assertEqual(self.seen, [])
        client.set_server_first(challenge["data"])
        self.meet = lambda session: session.send({"type": "you", "user": session.user})
        result, you = self.ask(peer, {**step, "data": client.get_client_final()})
        self.assertEqual((result["type"], you["user"]), ("auth_result", "ann"))

    def test_refused_behind_the_login(self) -> None:
        def meet(session: Any) -> None:
            raise Forbidden("no room for ann")

        self.meet = meet
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        result, error = self.ask(peer, auth(), PING)
        self.assertEqual((result["status"], error["code"]), ("authenticated", "forbidden"))
        self.assertTrue(peer.closed)

    def test_a_long_frame_behind_it(self) -> None:
        """What a guest may not send, a client may, also before it is let in."""
        self.meet = self.wait
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        peer.send(auth())
        peer.send(echo("x" * 5000))
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.go_on()
        self.assertEqual(contents(peer.receive()), ["x" * 5000])


class IntroductionEndTests(IntroductionCase):
    """How it can go wrong, and what `on_disconnect` is told."""

    def test_refused(self) -> None:
        """The client is told why, and that it is over."""

        def refuse(session: Any) -> None:
            session.send({"type": "before"})
            raise Forbidden("the game is full", retry_after=30)

        async def refuse_later(session: Any) -> None:
            await self.wait(session)
            refuse(session)

        for meet in (refuse, refuse_later):
            self.seen.clear()
            self.meet = meet
            server = self.server()
            peer = self.peer(server) if meet is refuse_later else server.connect()
            peer.send(PING, do())
            if meet is refuse_later:
                self.go_on()
            *_, before, error = peer.receive()
            self.assertEqual(before["type"], "before")
            self.assertEqual(
                (error["code"], error["message"], error["fatal"], error["retry_after"]),
                ("forbidden", "the game is full", True, 30.0),
            )
            self.assertTrue(peer.closed)
            self.assertEqual(server.factory.clients, set())
            peer.close()
            self.assertEqual(server.factory.stats.disconnects, {"closed_by_handler": 1})
            self.assertEqual(server.factory.stats.errors, {"forbidden": 1})
            self.assertEqual(self.ends(peer), ["closed_by_handler"])
            self.assertEqual([what for what, *_ in self.seen], ["connect", "disconnect"])
            self.assertEqual(server.factory.stats.messages_in, 0)

    def test_an_error_that_is_raised_again_and_again(self) -> None:
        """It does not remember those whom it refused."""
        banned = Forbidden("banned")

        def meet(session: Any) -> None:
            raise banned

        self.meet = meet
        server = self.server()
        for _ in range(3):
            self.assertEqual(self.codes(server.connect().receive()), ["welcome", "forbidden"])
            self.assertIsNone(banned.__traceback__)

    def test_a_fatal_error(self) -> None:
        """It names the reason."""

        def meet(session: Any) -> None:
            raise CODES["too_many_connections"]("two of ann are enough")

        self.meet = meet
        server = self.server()
        peer = server.connect()
        self.assertEnd(server, peer, "too_many_connections")
        self.assertEqual(self.ends(peer), ["too_many_connections"])

    def test_a_fault(self) -> None:
        async def meet(session: Any) -> None:
            await self.wait(session)
            raise KeyError("secret")

        self.meet = meet
        server = self.server()
        peer = self.peer(server)
        peer.send(PING)
        self.go_on()
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"]), ("internal", True))
        self.assertNotIn("secret", json.dumps(error))
        self.assertTrue(peer.closed)
        self.assertEqual(len(self.lines("on_connect failed for 127.0.0.1:")), 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        peer.close()
        self.assertEqual(self.ends(peer), ["closed_by_handler"])

    def test_faults_that_are_no_exceptions(self) -> None:
        for kind in (asyncio.CancelledError, GeneratorExit, SystemExit, CancelledError):

            def meet(session: Any, kind: Any = kind) -> None:
                raise kind

            self.meet = meet
            peer = self.server().connect()
            self.assertEqual(self.codes(peer.receive()), ["welcome", "internal"])
            self.assertTrue(peer.closed)
            self.assertEqual(len(self.flushLoggedErrors(kind)), 1)

    def test_too_slow(self) -> None:
        self.meet = self.wait
        server = self.server(limits=Limits(handler_timeout=5))
        peer = self.peer(server)
        peer.send(PING)
        server.advance(4.9)
        self.assertEqual((peer.receive(), self.cancelled), ([], 0))
        server.advance(0.3)
        [error] = peer.receive()
        self.assertEqual((error["code"], error["fatal"]), ("timeout", True))
        self.assertTrue(peer.closed)
        self.assertEqual(self.cancelled, 1)
        self.assertEqual(self.lines("on_connect"), [])
        peer.close()
        self.assertEqual(self.ends(peer), ["closed_by_handler"])

    def test_too_slow_and_not_to_be_stopped(self) -> None:
        """What it does when it is cancelled, and later, is not for the client any more."""

        async def stubborn(session: Any) -> None:
            for _ in range(2):
                try:
                    await self.wait(session)
                except CancelledError:
                    session.send({"type": "still here"})
            raise KeyError

        async def done(session: Any) -> None:
            with contextlib.suppress(CancelledError):
                await self.wait(session)

        for meet, faults in ((stubborn, 1), (done, 0)):
            self.meet = meet
            server = self.server(limits=Limits(handler_timeout=5))
            peer = self.peer(server)
            peer.send(PING)
            server.advance(5.2)
            self.assertEqual(self.codes(peer.receive()), ["timeout"])
            self.assertTrue(peer.closed)
            server.advance(10)
            self.assertEqual(peer.receive(), [])
            peer.close()
            self.assertEqual(server.factory.stats.disconnects, {"closed_by_handler": 1})
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), faults)

    def test_a_fault_of_one_who_is_gone(self) -> None:
        """It is told to the author, if to nobody else; being cancelled is none."""

        async def meet(session: Any) -> None:
            try:
                await self.wait(session)
            except CancelledError:
                raise KeyError from None

        for meeting, count in ((meet, 1), (self.wait, 0)):
            self.meet = meeting
            server = self.server()
            peer = self.peer(server)
            peer.close()
            self.assertEqual(len(self.lines("on_connect failed for 127.0.0.1:50000, who is gone")), count)
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), count)
            self.events.clear()

    def test_it_leaves_meanwhile(self) -> None:
        """The hook is cancelled before the other is called; what the client sent is not handled."""

        async def meet(session: Any) -> None:
            try:
                await self.wait(session)
            finally:
                self.seen.append("cancelled")

        for leave, code in ((Peer.close, "client_closed"), (Peer.reset, "connection_lost")):
            self.seen.clear()
            self.meet = meet
            server = self.server()
            peer = self.peer(server)
            peer.send(cast("never"), PING)
            leave(peer)
            client_id = peer.connection.client_id
            self.assertEqual(
                self.seen, [("connect", client_id), "cancelled", ("disconnect", client_id, code)]
            )
            self.assertEqual(server.factory.stats.messages_in, 0)
            server.advance(100)
            self.assertEqual(len(self.seen), 3)

    def test_it_is_closed_meanwhile(self) -> None:
        """By the hook itself, before or behind a wait, or by somebody else."""

        def at_once(session: Any) -> None:
            session.send({"type": "bye"})
            session.close()
            session.send({"type": "never"})

        async def and_waits(session: Any) -> None:
            at_once(session)
            await self.wait(session)
            self.seen.append("never")

        async def behind_a_wait(session: Any) -> None:
            await self.wait(session)
            at_once(session)

        def by_another(session: Any) -> Any:
            waiting = self.wait(session)
            server.clock.callLater(0, at_once, session)
            return waiting

        for meet in (at_once, and_waits, behind_a_wait, by_another):
            self.seen.clear()
            self.waiting.clear()
            self.meet = meet
            server = self.server(limits=Limits(handler_timeout=5))
            peer = server.connect()
            if meet is behind_a_wait:
                self.go_on()
            peer.send(PING)
            self.assertEqual(self.codes(peer.receive()), ["welcome", "bye"], meet)
            self.assertTrue(peer.closed)
            peer.close()
            server.advance(10)
            self.assertEqual([what for what, *_ in self.seen], ["connect", "disconnect"])
            self.assertEqual(self.ends(peer), ["closed_by_handler"])
            self.assertEqual(server.factory.stats.disconnects, {"closed_by_handler": 1})
            server.stop()
            self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_closed_and_lost_at_once(self) -> None:
        """The hook is cancelled before the other is called, and no timer stays."""
        self.meet = self.wait
        server = self.server()
        peer = self.peer(server)
        peer.connection.close()
        peer.connection.connectionLost(Failure(ConnectionLost()))
        self.assertEqual((self.cancelled, self.ends(peer)), (1, ["closed_by_handler"]))
        server.stop()
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_closed_by_the_hook_in_the_turn_of_the_login(self) -> None:
        self.meet = lambda session: session.close()
        server = self.server(checkers=[checker()])
        peer = self.peer(server)
        self.assertEqual(self.codes(self.ask(peer, auth(), PING)), ["auth_result"])
        self.assertTrue(peer.closed)

    def test_a_full_queue_meanwhile(self) -> None:
        self.meet = self.wait
        server = self.server(limits=Limits(max_queue=10_000))
        peer = self.peer(server)
        peer.stop_reading()
        for _ in range(20):
            server.factory.broadcast({"type": "news", "text": "x" * 1000})
        peer.start_reading()
        self.assertEqual(self.codes(peer.receive())[-1], "slow_consumer")
        self.assertTrue(peer.closed)
        self.assertEqual(self.cancelled, 1)
        peer.close()
        self.assertEqual(self.ends(peer), ["slow_consumer"])

    def test_the_server_goes_away_meanwhile(self) -> None:
        """It is told behind what it had sent by then."""
        self.meet = self.wait
        server = self.server()
        peer = self.peer(server)
        peer.send(echo(1), echo(2))
        server.stop()
        drained: list[None] = []
        server.factory.drain().addCallback(drained.append)
        peer.send(echo(3, id=3))
        server.advance(0.5)
        self.assertEqual(peer.receive(), [])
        self.go_on()
        server.settle()
        self.assertEqual(
            self.codes(peer.receive()), ["echo_response", "echo_response", "going_away", "going_away"]
        )
        server.advance(1)
        self.assertTrue(peer.closed)
        peer.close()
        self.assertEqual((drained, self.ends(peer)), ([None], ["going_away"]))

    def test_the_server_goes_away_and_it_is_refused(self) -> None:
        async def meet(session: Any) -> None:
            await self.wait(session)
            raise Forbidden

        self.meet = meet
        server = self.server()
        peer = self.peer(server)
        server.stop()
        server.factory.drain()
        server.advance(2)
        self.assertFalse(peer.closed)
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["forbidden"])
        self.assertTrue(peer.closed)

    def test_the_grace_period_is_over_meanwhile(self) -> None:
        self.meet = self.wait
        server = self.server(limits=Limits(grace=5))
        peer = self.peer(server)
        server.stop()
        server.factory.drain()
        server.advance(5.1)
        self.assertTrue(peer.aborted)
        peer.reset()
        self.assertEqual((self.ends(peer), self.cancelled), (["going_away"], 1))

    def test_a_login_while_the_server_goes_away(self) -> None:
        self.meet = self.wait
        slow = SlowChecker()
        server = self.server(checkers=[slow])
        peer = self.peer(server)
        peer.send(auth())
        server.stop()
        server.factory.drain()
        slow.accept()
        self.assertEqual(self.codes(peer.receive()), ["auth_result"])
        self.go_on()
        self.assertEqual(self.codes(peer.receive()), ["going_away"])
        server.advance(1)
        peer.close()
        self.assertEqual(self.ends(peer), ["going_away"])

    def test_no_handler_runs_behind_the_end(self) -> None:
        """They are cancelled before, and what it sent in its last moment was handled."""
        server = self.server()
        peer = self.peer(server)

        async def act(session: Any, message: Do) -> None:
            try:
                await Deferred()
            finally:
                self.seen.append(message.n)

        self.act = act
        peer.send(do(1), do(2))
        self.act = lambda session, message: self.seen.append(message.n)
        peer.connection.pauseProducing()
        peer.connection.dataReceived(raw(*(do(n) for n in range(3, 700))))
        peer.connection.release_now(Hold.PAUSED)
        peer.close()
        *others, (last, _, code) = self.seen[1:]
        self.assertEqual((last, code), ("disconnect", "client_closed"))
        self.assertEqual(sorted(others), list(range(1, 700)))

    def test_what_can_still_be_done_then(self) -> None:
        """The others can be told; with itself nothing can be done any more."""
        told: list[Any] = []

        def leave(session: Any) -> None:
            self.assertNotIn(session, session.server.sessions)
            session.send({"type": "never"})
            session.close()
            told.append(session.broadcast({"type": "left", "who": session.client_id}))
            told.append(session.server.broadcast({"type": "never"}, to=[session]))

        router = Router()
        router.on_disconnect(leave)
        server = MemoryServer(routers=[router])
        self.addCleanup(server.stop)
        other, peer = self.peer(server), self.peer(server)
        peer.close()
        self.assertEqual(told, [1, 0])
        self.assertEqual([message["who"] for message in other.receive()], [peer.connection.client_id])
        self.assertEqual(peer.receive(), [])

    def test_reasons(self) -> None:
        """One for each way in which a client that was served can end."""
        act: dict[int, Callable[[Any], Any]] = {1: lambda session: session.close()}
        self.act = lambda session, message: act[message.n](session)
        limits = Limits(heartbeat=5, idle_timeout=50, frame_timeout=3, max_length=1000)
        for code in (
            "client_closed",
            "connection_lost",
            "closed_by_handler",
            "too_large",
            "frame_timeout",
            "idle_timeout",
            "heartbeat_timeout",
            "going_away",
        ):
            self.seen.clear()
            server = self.server(limits=limits)
            peer = self.peer(server)
            if code == "closed_by_handler":
                peer.send(do(1))
            elif code == "too_large":
                peer.send_bytes(b"\0\0\x10\0")
            elif code == "frame_timeout":
                peer.send_bytes(b"\0")
                server.advance(5)
            elif code == "idle_timeout":
                server.advance(63)
            elif code == "heartbeat_timeout":
                peer.send(HELLO)
                server.advance(16)
            elif code == "going_away":
                server.factory.drain()
                server.advance(2)
            self.assertEqual(self.ends(peer), [])
            if code == "connection_lost":
                peer.reset()
            else:
                peer.close()
            self.assertEqual(self.ends(peer), [code])
            self.assertEqual(server.factory.stats.disconnects, {code: 1})


class IntroductionSocketTests(SocketCase):
    """Over TLS, behind a proxy, and with a half-closed client."""

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[Any] = []
        self.waiting: Deferred[Any] = Deferred()
        self.hooks = Router()

        @self.hooks.on_connect
        def meet(session: Any) -> Any:
            self.seen.append((session.client_id, session.user))
            return self.waiting

        @self.hooks.on_disconnect
        def leave(session: Any) -> None:
            self.seen.append(session.reason)

    def factory(self, *, checkers: Any = (), allow_plain: bool = False, **options: Any) -> Any:
        factory = super().factory(checkers=checkers, allow_plain=allow_plain, **options)
        return TCPJSONServerFactory(
            self.loop, routers=[self.hooks], authenticator=factory.authenticator, **options
        )

    def waits(self, wire: Wire, *before: str) -> None:
        """It has got these, and what it sends waits until it is let in."""
        self.assertEqual(self.codes(self.messages(wire)), list(before))
        wire.send(raw(echo(1)))
        wire.send(raw(echo(2), echo(3)))
        self.assertEqual(self.messages(wire), [])
        self.waiting.callback(None)
        self.loop.settle()
        self.assertEqual(contents(self.messages(wire)), [1, 2, 3])
        wire.send(raw(PING))
        self.assertEqual(self.codes(self.messages(wire)), ["pong"])

    def test_in_the_clear(self) -> None:
        wire = self.wire(self.factory())
        self.waits(wire, "welcome")
        wire.close()
        self.assertEqual(self.seen[1:], ["client_closed"])

    def test_behind_the_handshake(self) -> None:
        """What came with the end of the handshake waits, too."""
        factory = self.factory()
        wire = self.silent(tls_factory(factory, self.loop), TLSWire)
        self.assertEqual(self.seen, [])
        wire.shake_hands()
        self.assertEqual(len(self.seen), 1)
        self.waits(wire, "welcome")
        wire.close()
        self.assertEqual(self.seen[1:], ["connection_lost"])

    def test_no_handshake(self) -> None:
        factory = self.factory()
        self.silent(tls_factory(factory, self.loop), TLSWire).close()
        self.silent(proxied(factory)).close()
        self.loop.settle()
        self.assertEqual(factory.stats.disconnects, {"handshake_failed": 2})
        self.assertEqual(self.seen, [])

    def test_behind_the_header(self) -> None:
        """With requests in the same read."""
        factory = self.factory()
        wire = self.silent(proxied(factory))
        wire.send(header() + raw(echo(0)))
        self.assertEqual(self.seen, [("192.0.2.1:4711", None)])
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.waiting.callback(None)
        self.loop.settle()
        self.assertEqual(contents(self.messages(wire)), [0])
        wire.close()
        self.assertEqual(self.seen[1:], ["client_closed"])

    def test_behind_a_login(self) -> None:
        factory = self.factory(checkers=[checker()])
        wire = self.wire(factory, tls=True)
        wire.send(raw(auth()))
        self.assertEqual([user for _, user in self.seen], ["ann"])
        self.waits(wire, "welcome", "auth_result")

    def test_behind_a_client_certificate(self) -> None:
        factory = self.factory(checkers=[checker()])
        wire = self.silent(mutual_tls_factory(factory, self.loop), TLSWire)
        with_certificate(wire)
        wire.shake_hands()
        self.assertEqual([user for _, user in self.seen], ["bob"])
        self.waits(wire, "welcome")

    def test_half_closed_meanwhile(self) -> None:
        """It gets the answers to what it sent before."""
        factory = self.factory()
        wire = self.wire(factory)
        wire.send(raw(echo(1), echo(2)))
        # Who reads nothing sees no end: that is seen when the hook is done.
        wire.end()
        self.assertEqual(self.codes(self.messages(wire)), ["welcome"])
        self.waiting.callback(None)
        self.loop.settle()
        self.assertEqual(contents(self.messages(wire)), [1, 2])
        self.assertTrue(wire.ended)
        wire.close()
        self.assertEqual(self.seen[1:], ["client_closed"])

    def test_gone_meanwhile(self) -> None:
        """It is noticed when something is sent to it; and when the hook takes too long."""
        factory = self.factory()
        for tls in (False, True):
            self.waiting = Deferred()
            self.wire(factory, tls=tls).close()
        self.assertEqual(factory.broadcast({"type": "news"}), 2)
        factory.broadcast({"type": "news"})
        self.advance(33)
        self.assertEqual(len(self.seen), 4)
        self.assertEqual(factory.connections, set())

    def test_an_error_arrives(self) -> None:
        """Though much is unread that the client sent meanwhile."""
        for tls in (False, True):
            self.waiting = Deferred()
            factory = self.factory()
            wire = self.wire(factory, tls=tls)
            wire.send(raw(*(echo(n) for n in range(1000))))
            self.waiting.errback(Failure(Forbidden("full")))
            self.loop.settle()
            welcome, error = self.messages(wire)
            self.assertEqual((welcome["type"], error["code"], error["fatal"]), ("welcome", "forbidden", True))
            # Over TLS our side ends behind the peer's close_notify.
            self.assertEqual(wire.ended, not tls)
