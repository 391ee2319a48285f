"""When a client connects again, and when it gives up."""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError, NotConnectingError
from twisted.internet.interfaces import IConnector
from twisted.internet.protocol import ReconnectingClientFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tcpjson.client.factory import TCPJSONClientFactory
from tcpjson.client.protocol import ClientProtocol
from tcpjson.core.errors import (
    AuthenticationFailed,
    Disconnected,
    GoingAway,
    ProtocolMismatch,
    ServerFull,
)
from tcpjson.test.hypo import given
from tcpjson.test.test_client_protocol import ADDRESS, Listener, options_of

REFUSED = Failure(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
LOST = Failure(ConnectionLost())


class Owner:
    """Writes down what it is told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.events: list[tuple[Any, ...]] = []
        #: Why the last connection ended.
        self.error: Exception | None = None

    def build(self) -> ClientProtocol:
        return ClientProtocol(self._clock, Listener(), options_of())

    def begun(self) -> None:
        self.events.append(("begun",))

    def ended(self) -> Exception | None:
        return self.error

    def waits(self, error: Exception, seconds: float) -> None:
        self.events.append(("waits", error, seconds))

    def stopped(self, error: Exception) -> None:
        self.events.append(("stopped", error))


@implementer(IConnector)
class Connector:
    """Counts how often it is told to connect."""

    def __init__(self) -> None:
        self.connects = 0

    def connect(self) -> None:
        self.connects += 1

    def stopConnecting(self) -> None:
        raise NotConnectingError

    def disconnect(self) -> None:
        pass

    def getDestination(self) -> Any:
        return ADDRESS


class FactoryTests(SynchronousTestCase):
    """`TCPJSONClientFactory`."""

    def setUp(self) -> None:
        self.make()

    def make(self, retries: int | None = None) -> None:
        self.clock = Clock()
        self.owner = Owner(self.clock)
        self.factory = TCPJSONClientFactory(self.clock, self.owner, lambda: 1.0, retries)
        self.connector = Connector()
        self.factory.startedConnecting(self.connector)

    def last(self) -> tuple[Any, ...]:
        return self.owner.events[-1]

    def test_it_is_one_of_twisted(self) -> None:
        self.assertIsInstance(self.factory, ReconnectingClientFactory)
        self.assertEqual(self.owner.events, [("begun",)])
        self.assertIs(self.factory.connector, self.connector)

    def test_protocols(self) -> None:
        protocol = self.factory.buildProtocol(ADDRESS)
        self.assertIs(protocol.factory, self.factory)
        self.assertIsNot(self.factory.buildProtocol(None), protocol)

    def test_a_failure(self) -> None:
        """It is told before the time is over, and connects when it is."""
        self.factory.clientConnectionFailed(self.connector, REFUSED)
        name, error, seconds = self.last()
        self.assertEqual((name, seconds), ("waits", 0.5))
        self.assertIsInstance(error, Disconnected)
        self.assertEqual(str(error), "Connection refused")
        self.assertIs(error.__cause__, REFUSED.value)
        self.clock.advance(0.49)
        self.assertEqual(self.connector.connects, 0)
        self.clock.advance(0.01)
        self.assertEqual(self.connector.connects, 1)

    def test_the_time_grows(self) -> None:
        """Up to half a minute; a connection that served lets it begin anew."""
        seconds = []
        for _ in range(8):
            self.factory.clientConnectionFailed(self.connector, REFUSED)
            seconds.append(self.last()[2])
            self.clock.advance(30)
        self.assertEqual(seconds, [0.5, 1, 2, 4, 8, 16, 30, 30])
        self.assertEqual(self.connector.connects, 8)
        self.factory.resetDelay()
        self.factory.clientConnectionLost(self.connector, LOST)
        self.assertEqual(self.last()[2], 0.5)

    def test_a_loss(self) -> None:
        """With the reason that the connection knew, or else the transport's."""
        self.owner.error = Disconnected("the server went silent")
        self.factory.clientConnectionLost(self.connector, LOST)
        self.assertIs(self.last()[1], self.owner.error)
        self.owner.error = None
        self.factory.clientConnectionLost(self.connector, Failure(ConnectionDone()))
        self.assertEqual(str(self.last()[1]), "Connection was closed cleanly.")

    def test_as_the_server_says(self) -> None:
        for told, seconds in ((7.0, 7.0), (0.0, 1.0), (None, 2.0), (1e308, 3600.0)):
            self.owner.error = ServerFull(retry_after=told)
            self.factory.clientConnectionLost(self.connector, LOST)
            self.assertEqual(self.last(), ("waits", self.owner.error, seconds))
            self.clock.advance(seconds - 0.1)
            connects = self.connector.connects
            self.clock.advance(0.1)
            self.assertEqual(self.connector.connects, connects + 1)

    def test_what_no_retry_heals(self) -> None:
        for error in (AuthenticationFailed("no"), ProtocolMismatch("no")):
            self.make()
            self.owner.error = error
            self.factory.clientConnectionLost(self.connector, LOST)
            self.assertEqual(self.last(), ("stopped", error))
            self.assertEqual(self.clock.getDelayedCalls(), [])
            # What comes then is no news.
            self.factory.clientConnectionFailed(self.connector, REFUSED)
            self.assertEqual(len(self.owner.events), 2)

    def test_retries(self) -> None:
        for retries in (0, 1, 3):
            self.make(retries)
            for _ in range(retries):
                self.factory.clientConnectionFailed(self.connector, REFUSED)
                self.assertEqual(self.last()[0], "waits")
                self.clock.advance(30)
            self.factory.clientConnectionFailed(self.connector, REFUSED)
            self.assertEqual(self.last()[0], "stopped")
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertEqual(self.connector.connects, retries)

    def test_stopped(self) -> None:
        """Whatever fails or is lost then."""
        self.factory.clientConnectionFailed(self.connector, REFUSED)
        self.factory.stopTrying()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        told = len(self.owner.events)
        self.factory.clientConnectionFailed(self.connector, REFUSED)
        self.factory.clientConnectionLost(self.connector, LOST)
        self.assertEqual(len(self.owner.events), told)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped_by_the_owner(self) -> None:
        """In the call that tells it of the wait."""
        self.patch(self.owner, "waits", lambda error, seconds: self.factory.stopTrying())
        self.factory.clientConnectionFailed(self.connector, REFUSED)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(
        st.lists(
            st.one_of(
                st.just("failed"),
                st.just("served"),
                st.none() | st.floats(0, 1e308),
            ),
            max_size=30,
        )
    )
    def test_any_course(self, steps: list[Any]) -> None:
        """A number is a loss, with the server's word; there is never more than one attempt to come."""
        self.make()
        for step in steps:
            if step == "served":
                self.factory.resetDelay()
                continue
            if step == "failed":
                self.factory.clientConnectionFailed(self.connector, REFUSED)
            else:
                self.owner.error = GoingAway(retry_after=step)
                self.factory.clientConnectionLost(self.connector, LOST)
            (call,) = self.clock.getDelayedCalls()
            seconds = self.last()[2]
            self.assertEqual(call.getTime(), self.clock.seconds() + seconds)
            self.assertLessEqual(seconds, 3600)
            if isinstance(step, float):
                self.assertGreaterEqual(seconds, min(step, 3600))
            self.clock.advance(seconds)
            self.assertEqual(self.clock.getDelayedCalls(), [])
