"""The table of a connection's life: every step of it, and no other."""

from __future__ import annotations

from itertools import product

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import connection, exchange
from tcpjson.core.limits import Limits
from tcpjson.core.session import TRANSITIONS, Event, State, advance
from tcpjson.proxied import ProxiedProtocol
from tcpjson.testing import MemoryServer, Peer

# Written once more, by hand: from a state, by an event, to a state.
STEPS = """
    open            identified      ready
    open            challenged      authenticating
    open            ended           draining
    open            lost            closed
    authenticating  authenticated   ready
    authenticating  ended           draining
    authenticating  lost            closed
    ready           ended           draining
    ready           lost            closed
    draining        lost            closed
"""


def steps() -> dict[tuple[State, Event], State]:
    """The steps that there are to be."""
    rows = [line.split() for line in STEPS.split("\n") if line.strip()]
    return {(State(state), Event(event)): State(after) for state, event, after in rows}


class SessionTests(SynchronousTestCase):
    """`advance`."""

    def test_each_step(self) -> None:
        for (state, event), after in steps().items():
            self.assertIs(advance(state, event), after)

    def test_no_other_step(self) -> None:
        """It is an error that names both."""
        others = set(product(State, Event)) - set(steps())
        self.assertEqual(len(others), len(State) * len(Event) - 10)
        for state, event in others:
            error = self.assertRaises(RuntimeError, advance, state, event)
            self.assertIn(state.value, str(error))
            self.assertIn(event.value, str(error))

    def test_nothing_follows_the_end(self) -> None:
        self.assertEqual([state for state, _ in TRANSITIONS if state is State.CLOSED], [])

    def test_a_lost_connection_is_closed_from_anywhere(self) -> None:
        for state in set(State) - {State.CLOSED}:
            self.assertIs(advance(state, Event.LOST), State.CLOSED)

    def test_every_state_can_be_reached(self) -> None:
        reached, before = {State.OPEN}, set[State]()
        while reached != before:
            before = set(reached)
            reached |= {after for (state, _), after in TRANSITIONS.items() if state in before}
        self.assertEqual(reached, set(State))


class UseTests(SynchronousTestCase):
    """The steps that the connections of a server take."""

    def setUp(self) -> None:
        self.taken: set[tuple[State, Event]] = set()
        for module in (connection, exchange):
            self.patch(module, "advance", self.take)

    def take(self, state: State, event: Event) -> State:
        """`advance`, with a note of the step."""
        self.taken.add((state, event))
        return advance(state, event)

    def guest(self) -> Peer:
        """A client that is to authenticate."""
        checker = InMemoryUsernamePasswordDatabaseDontUse(ann=b"secret")
        return MemoryServer(checkers=[checker]).connect()

    def test_every_step_is_taken(self) -> None:
        """What no connection ever does need not be in the table."""
        # A client that goes, and one that is closed.
        MemoryServer().connect().close()
        peer = MemoryServer().connect()
        peer.send_bytes(b"\xff\xff\xff\xff")
        peer.close()
        # Gone before its PROXY header, and refused.
        factory = WrappingFactory(MemoryServer().factory)
        factory.protocol = ProxiedProtocol
        proxied = factory.buildProtocol(None)
        proxied.makeConnection(StringTransport())
        proxied.connectionLost(connectionDone)
        server = MemoryServer(limits=Limits(max_connections=1))
        server.connect()
        server.connect()
        # Gone, closed and served where one must authenticate.
        self.guest().close()
        self.guest().send_bytes(b"\xff\xff\xff\xff")
        peer = self.guest()
        peer.send({"type": "auth", "mechanism": "plain", "username": "ann", "password": "secret"})
        self.assertEqual([reply["type"] for reply in peer.receive()], ["welcome", "auth_result"])
        self.assertEqual(self.taken, set(TRANSITIONS))
