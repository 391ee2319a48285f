"""Answers without an id leave in order, each once; nothing is lost."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.ordering import PLACE, AnswerOrder, Slot
from tcpjson.test.hypo import given


class OrderTests(SynchronousTestCase):
    """Single steps."""

    def test_nothing_is_to_come(self) -> None:
        """An answer leaves at once: it is not taken."""
        order = AnswerOrder()
        self.assertFalse(order.queue(b"a"))
        self.assertEqual((order.held, order.give_up()), (0, []))

    def test_an_answer_behind_one_to_come(self) -> None:
        order = AnswerOrder()
        slot = order.reserve(ordered=True)
        self.assertTrue(order.queue(b"second"))
        self.assertEqual(order.held, 6 + PLACE)
        self.assertEqual(order.settle(slot, b"first"), [b"first", b"second"])
        self.assertEqual(order.held, 0)
        self.assertFalse(order.queue(b"third"))

    def test_slow_ones_leave_in_order(self) -> None:
        order = AnswerOrder()
        slots = [order.reserve(ordered=True) for _ in range(3)]
        self.assertEqual(order.settle(slots[2], b"2"), [])
        self.assertEqual(order.settle(slots[0], b"0"), [b"0"])
        self.assertEqual(order.held, 1 + PLACE)
        self.assertEqual(order.settle(slots[1], b"1"), [b"1", b"2"])

    def test_one_with_an_id_overtakes(self) -> None:
        order = AnswerOrder()
        slow = order.reserve(ordered=True)
        quick = order.reserve(ordered=False)
        self.assertEqual(order.settle(quick, b"quick"), [b"quick"])
        self.assertEqual(order.settle(slow, b"slow"), [b"slow"])

    def test_one_with_an_id_holds_up_nothing(self) -> None:
        order = AnswerOrder()
        slow = order.reserve(ordered=False)
        self.assertFalse(order.queue(b"a"))
        self.assertEqual(order.unsettled, {slow})
        self.assertEqual(order.settle(slow, b"slow"), [b"slow"])
        self.assertEqual(order.unsettled, set())

    def test_no_answer_makes_way(self) -> None:
        order = AnswerOrder()
        slot = order.reserve(ordered=True)
        order.queue(b"next")
        self.assertEqual(order.settle(slot, b""), [b"next"])
        self.assertEqual(order.settle(order.reserve(ordered=False), b""), [])

    def test_the_end(self) -> None:
        """What is there leaves in order; what is not there yet is not waited for."""
        order = AnswerOrder()
        first, second = order.reserve(ordered=True), order.reserve(ordered=True)
        order.queue(b"third")
        order.settle(second, b"second")
        self.assertEqual(order.give_up(), [b"second", b"third"])
        self.assertEqual((order.held, order.unsettled), (0, set()))
        self.assertFalse(order.queue(b"fourth"))
        self.assertNotIn(first, order.unsettled)


class ModelTests(SynchronousTestCase):
    """Any run of steps, against a list that is searched."""

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("reserve"), st.booleans(), st.just(0)),
            st.tuples(st.just("queue"), st.just(True), st.just(0)),
            st.tuples(st.just("settle"), st.booleans(), st.integers(0, 20)),
        ),
        max_size=40,
    )

    @given(steps, examples=500)
    def test_any_run(self, steps: list[tuple[str, bool, int]]) -> None:
        order = AnswerOrder()
        # All requests without an id by number, what is their answer: None while it is not there.
        answers: list[bytes | None] = []
        left = 0
        open_slots: dict[Slot, int | None] = {}
        for number, (step, flag, pick) in enumerate(steps):
            answer = b"%d;" % number if flag else b""
            leaving: list[bytes] = []
            expected: list[bytes] = []
            if step == "reserve":
                slot = order.reserve(ordered=flag)
                open_slots[slot] = len(answers) if flag else None
                if flag:
                    answers.append(None)
            elif step == "queue":
                waits = left < len(answers)
                self.assertEqual(order.queue(answer), waits)
                if waits:
                    answers.append(answer)
            elif open_slots:
                slot = list(open_slots)[pick % len(open_slots)]
                place = open_slots.pop(slot)
                leaving = order.settle(slot, answer)
                if place is None:
                    expected = [answer]
                else:
                    answers[place] = answer
                    while left < len(answers) and (next_answer := answers[left]) is not None:
                        expected.append(next_answer)
                        left += 1
            self.assertEqual(leaving, [answer for answer in expected if answer])
            self.assertEqual(
                order.held, sum(len(answer) + PLACE for answer in answers[left:] if answer is not None)
            )
            self.assertEqual(order.unsettled, set(open_slots))
        self.assertEqual(order.give_up(), [answer for answer in answers[left:] if answer])
        self.assertEqual((order.held, order.unsettled), (0, set()))
