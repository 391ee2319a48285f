"""From a text to an endpoint, and from an endpoint to a connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import ConnectingCancelledError, ConnectionLost, NotConnectingError
from twisted.internet.interfaces import (
    IConnector,
    IHostnameResolver,
    IHostResolution,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tcpjson.client.awaitable import Client
from tcpjson.client.endpoints import EndpointConnector, client_endpoint
from tcpjson.test.hypo import given
from tcpjson.test.test_client_protocol import ADDRESS, Line
from tcpjson.test.wires import authority

# Of which texts are made that look like descriptions.
PARTS = [
    *["tcp", "tls", "ssl", "unix", "haproxy", "tcp6", "localhost", "::1", "127.0.0.1"],
    *["[", "]", ":", ":", ":", ":", "=", "\\", "80", "99999", ""],
]


class TextTests(SynchronousTestCase):
    """`client_endpoint`."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def ca(self) -> str:
        path = Path(self.mktemp())
        authority().cert_pem.write_to_path(str(path))
        return str(path)

    def place(self, where: str, ca: str | None = None) -> tuple[str, int]:
        """Where it leads to, in the end."""
        connecting = client_endpoint(self.reactor, where, ca).connect(ClientFactory.forProtocol(Protocol))
        connecting.addErrback(lambda failure: None)
        self.reactor.advance(0.3)
        host, port, *_ = self.reactor.tcpClients[-1]
        connecting.cancel()
        return host, port

    def test_hosts_and_ports(self) -> None:
        for where, host, port in (
            ("127.0.0.1", "127.0.0.1", 9999),
            ("127.0.0.1:80", "127.0.0.1", 80),
            (" 127.0.0.1:80\n", "127.0.0.1", 80),
            ("[::1]", "::1", 9999),
            ("[::1]:65535", "::1", 65535),
            ("tcp:127.0.0.1:80", "127.0.0.1", 80),
        ):
            self.assertEqual(self.place(where), (host, port))
            self.assertEqual(len(self.reactor.tcpClients), 1)
            self.reactor.tcpClients.clear()

    def test_what_kind(self) -> None:
        """An address is not looked up."""
        for where, kind in (
            ("localhost", HostnameEndpoint),
            ("tcp", HostnameEndpoint),
            ("unix", HostnameEndpoint),
            ("example.org:80", HostnameEndpoint),
            ("127.0.0.1:80", TCP4ClientEndpoint),
            ("[::1]:80", TCP6ClientEndpoint),
            ("tcp:localhost:80", TCP4ClientEndpoint),
            ("unix:/p.sock", UNIXClientEndpoint),
            ("unix:123", UNIXClientEndpoint),
        ):
            self.assertIsInstance(client_endpoint(self.reactor, where), kind, where)

    def test_with_an_authority(self) -> None:
        """TLS, which only the layers above know of."""
        for where in ("127.0.0.1:80", "[::1]", "localhost"):
            endpoint = client_endpoint(self.reactor, where, self.ca())
            self.assertNotIsInstance(endpoint, (TCP4ClientEndpoint, TCP6ClientEndpoint, HostnameEndpoint))
        self.assertEqual(self.place("127.0.0.1:80", self.ca()), ("127.0.0.1", 80))

    def test_an_endpoint(self) -> None:
        endpoint = UNIXClientEndpoint(self.reactor, "/p.sock")
        self.assertIs(client_endpoint(self.reactor, endpoint), endpoint)
        with self.assertRaisesRegex(ValueError, "of use with a host and port only"):
            client_endpoint(self.reactor, endpoint, self.ca())

    def test_what_is_no_endpoint(self) -> None:
        where: Any = 9999
        self.assertIn("where must", str(self.assertRaises(TypeError, client_endpoint, self.reactor, where)))

    def test_what_will_not_do(self) -> None:
        """In one line that says why."""
        for where, why in (
            ("", "no server is named"),
            (" ", "no server is named"),
            ("localhost:0", "there is no such port"),
            ("localhost:65536", "there is no such port"),
            ("localhost:" + "9" * 5000, "there is no such port"),
            ("localhost:x", "neither HOST:PORT nor a client endpoint"),
            ("::1", r"write \[::1\]"),
            ("tcp:9999", "no host in it; tcp:localhost:9999 has one"),
            ("tls:9999", "no host in it"),
            ("tls:h", "neither HOST:PORT nor a client endpoint"),
            ("a=b:c=d", r": \S"),
            ("tls:h:1:trustRoots=/nonexistent", r": \S"),
            ("tls:h:1:certificate=/gone:privateKey=/gone", r"/gone: No such file or directory$"),
            ("unix:/p:x=1", "x"),
            ("ssl:localhost:80", "take tls:HOST:PORT"),
            ("SSL:localhost:80", "take tls:HOST:PORT"),
            (r"s\sl:localhost:80", "take tls:HOST:PORT"),
            ("ssl:localhost:80:hostname=localhost", "take tls:HOST:PORT"),
        ):
            with self.assertRaisesRegex(ValueError, why) as caught:
                client_endpoint(self.reactor, where)
            self.assertEqual(len(str(caught.exception).splitlines()), 1)
            self.assertIn(where[:20].strip(), str(caught.exception))
            self.assertLess(len(str(caught.exception)), 250)

    def test_authorities_that_will_not_do(self) -> None:
        empty, broken = Path(self.mktemp()), Path(self.mktemp())
        empty.write_text("")
        broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        for where, ca, why in (
            ("localhost", "/nonexistent", "/nonexistent: No such file or directory"),
            ("localhost", "/", "Is a directory"),
            ("localhost", str(empty), "no certificate in it"),
            ("localhost", str(broken), "a broken certificate"),
            ("tls:localhost:80", self.ca(), "see trustRoots="),
            ("\u2028..:80", self.ca(), "no name of a host"),
        ):
            with self.assertRaisesRegex(ValueError, why):
                client_endpoint(self.reactor, where, ca)

    @given(
        st.one_of(
            st.text(max_size=12),
            st.lists(
                st.sampled_from(PARTS),
                max_size=7,
            ).map("".join),
        ),
        st.booleans(),
        examples=300,
    )
    def test_any_text(self, where: str, tls: bool) -> None:
        """It leads somewhere, or is refused in so many words."""
        try:
            endpoint = client_endpoint(self.reactor, where, self.ca() if tls else None)
        except ValueError as error:
            self.assertEqual(len(str(error).splitlines()), 1)
        else:
            self.assertTrue(IStreamClientEndpoint.providedBy(endpoint))


@implementer(IHostnameResolver)
class SlowResolver:
    """Finds an address when the test says so."""

    def __init__(self) -> None:
        self.receiver: Any = None

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, *rest: Any, **options: Any) -> Any:
        @implementer(IHostResolution)
        class Resolution:
            name = hostName

            def cancel(self) -> None:
                pass

        self.receiver = resolutionReceiver
        resolution = Resolution()
        self.receiver.resolutionBegan(resolution)
        return resolution

    def find(self) -> None:
        self.receiver.addressResolved(ADDRESS)
        self.receiver.resolutionComplete()


class LookUpTests(SynchronousTestCase):
    """A name is looked up when the client is closed."""

    def test_closed_meanwhile(self) -> None:
        reactor = MemoryReactorClock()
        resolver = SlowResolver()
        reactor.installNameResolver(resolver)
        client = Client(reactor, "example.org")
        client.start()
        client.close()
        resolver.find()
        reactor.advance(1)
        self.assertEqual(reactor.tcpClients, [])
        self.assertEqual(reactor.getDelayedCalls(), [])
        self.assertFalse(client.running)


class Kept(Protocol):
    """A protocol that says when it is lost."""

    lost: Any = None

    def connectionLost(self, reason: Any = None) -> None:
        if self.lost is not None:
            self.lost(reason)


class Factory(ClientFactory):
    """Writes down what it is told."""

    protocol = Kept
    noisy = False

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def startFactory(self) -> None:
        self.events.append(("start",))

    def stopFactory(self) -> None:
        self.events.append(("stop",))

    def startedConnecting(self, connector: IConnector) -> None:
        self.events.append(("connecting", connector))

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self.events.append(("failed", connector, type(reason.value)))

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        self.events.append(("lost", connector, type(reason.value)))

    def names(self) -> list[str]:
        return [event[0] for event in self.events]


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Gives what it is made with."""

    def __init__(self, *attempts: Deferred[Any]) -> None:
        self.attempts = list(attempts)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        return self.attempts.pop(0)

    def __repr__(self) -> str:
        return "<somewhere>"


class ConnectorTests(SynchronousTestCase):
    """`EndpointConnector`."""

    def make(self, *attempts: Deferred[Any]) -> EndpointConnector:
        self.factory = Factory()
        return EndpointConnector(Endpoint(*attempts), self.factory)

    def connected(self) -> Kept:
        """A protocol with a connection."""
        protocol = Kept()
        self.line = Line(MemoryReactorClock(), protocol)
        return protocol

    def test_it_is_one(self) -> None:
        connector = self.make()
        verifyObject(IConnector, connector)
        self.assertEqual(connector.state, "disconnected")
        self.assertEqual(connector.getDestination().hostname, b"<somewhere>")  # type: ignore[attr-defined]  # of IAddress
        self.assertEqual(self.factory.events, [])

    def test_the_whole_way(self) -> None:
        """As a connector of the reactor's own does it."""
        attempt: Deferred[Any] = Deferred()
        again: Deferred[Any] = Deferred()
        connector = self.make(attempt, again)
        connector.connect()
        self.assertEqual(connector.state, "connecting")
        attempt.callback(self.connected())
        self.assertEqual(connector.state, "connected")
        self.assertEqual(self.factory.events, [("start",), ("connecting", connector)])
        self.line.lose(ConnectionLost())
        self.assertEqual(connector.state, "disconnected")
        self.assertEqual(self.factory.events[2:], [("lost", connector, ConnectionLost), ("stop",)])
        connector.connect()
        self.assertEqual(connector.state, "connecting")
        again.errback(ZeroDivisionError())
        self.assertEqual(connector.state, "disconnected")
        self.assertEqual(
            self.factory.events[4:],
            [("start",), ("connecting", connector), ("failed", connector, ZeroDivisionError), ("stop",)],
        )

    def test_an_endpoint_that_is_ready_at_once(self) -> None:
        for result, state in (
            (succeed(self.connected()), "connected"),
            (fail(ZeroDivisionError()), "disconnected"),
        ):
            connector = self.make(result)
            connector.connect()
            self.assertEqual(connector.state, state)

    def test_not_twice_at_once(self) -> None:
        attempt: Deferred[Any] = Deferred()
        connector = self.make(attempt)
        connector.connect()
        with self.assertRaisesRegex(RuntimeError, "it is connecting already"):
            connector.connect()
        attempt.callback(self.connected())
        with self.assertRaisesRegex(RuntimeError, "it is connected already"):
            connector.connect()

    def test_from_within_a_callback(self) -> None:
        """A factory may connect again as soon as it is told of the failure, or of the loss."""
        first: Deferred[Any] = Deferred()
        second: Deferred[Any] = Deferred()
        third: Deferred[Any] = Deferred()
        connector = self.make(first, second, third)
        self.patch(self.factory, "clientConnectionFailed", lambda connector, reason: connector.connect())
        self.patch(self.factory, "clientConnectionLost", lambda connector, reason: connector.connect())
        connector.connect()
        first.errback(ZeroDivisionError())
        self.assertEqual(connector.state, "connecting")
        second.callback(self.connected())
        self.line.lose()
        self.assertEqual(connector.state, "connecting")
        # As many starts as stops, but for the one that is under way.
        self.assertEqual(self.factory.numPorts, 1)

    def test_to_give_up(self) -> None:
        cancelled: list[object] = []

        def cancel(deferred: Deferred[Any]) -> None:
            cancelled.append(deferred)
            deferred.errback(ConnectingCancelledError(ADDRESS))

        for give_up in (EndpointConnector.stopConnecting, EndpointConnector.disconnect):
            attempt: Deferred[Any] = Deferred(cancel)
            connector = self.make(attempt)
            connector.connect()
            give_up(connector)
            self.assertEqual(connector.state, "disconnected")
            self.assertEqual(self.factory.names(), ["start", "connecting", "failed", "stop"])
        self.assertEqual(len(cancelled), 2)

    def test_nothing_to_give_up(self) -> None:
        connector = self.make(succeed(self.connected()))
        with self.assertRaises(NotConnectingError):
            connector.stopConnecting()
        connector.disconnect()
        self.assertFalse(self.line.disconnecting)
        connector.connect()
        with self.assertRaises(NotConnectingError):
            connector.stopConnecting()

    def test_to_disconnect(self) -> None:
        connector = self.make(succeed(self.connected()))
        connector.connect()
        connector.disconnect()
        self.assertTrue(self.line.disconnecting)
