"""Hypothesis tells trial what it found."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.test.hypo import given


class GivenTests(SynchronousTestCase):
    """The wrapper of `hypothesis.given`."""

    def test_a_failure_shows_its_example(self) -> None:
        class Wrong(SynchronousTestCase):
            @given(st.integers())
            def test_small(self, number: int) -> None:
                self.assertLess(number, 1000)

        error = self.assertRaises(AssertionError, Wrong("test_small").test_small)
        self.assertIn("number=1000", str(error))

    def test_examples_are_many(self) -> None:
        seen = set()

        class Right(SynchronousTestCase):
            @given(st.integers(), examples=30)
            def test_any(self, number: int) -> None:
                seen.add(number)

        Right("test_any").test_any()
        self.assertGreater(len(seen), 10)
