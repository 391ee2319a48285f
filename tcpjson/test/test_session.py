"""The table of a connection's life: every step of it, and no other."""

from __future__ import annotations

from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.session import TRANSITIONS, Event, State, advance

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
