"""How long an address that failed waits."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.backoff import CAPACITY, MEMORY, BackOff
from tcpjson.test.hypo import given


class BackOffTests(SynchronousTestCase):
    """`BackOff`."""

    def setUp(self) -> None:
        self.back_off = BackOff()

    def test_the_delays(self) -> None:
        delays = []
        for now in range(8):
            delays.append(self.back_off.delay("a", now))
            self.back_off.failed("a", now)
        self.assertEqual(delays, [0, 0.25, 0.5, 1, 2, 2, 2, 2])

    def test_each_address_by_itself(self) -> None:
        self.back_off.failed("a", 0)
        self.assertEqual(self.back_off.delay("b", 0), 0)

    def test_forgotten_after_its_last_failure(self) -> None:
        self.back_off.failed("a", 0)
        self.back_off.failed("a", 10)
        self.assertEqual(self.back_off.delay("a", 10 + MEMORY - 0.1), 0.5)
        self.assertEqual(self.back_off.delay("a", 10 + MEMORY), 0)
        self.back_off.failed("a", 10 + MEMORY)
        self.assertEqual(self.back_off.delay("a", 10 + MEMORY), 0.25)

    def test_nothing_is_kept_of_the_forgotten(self) -> None:
        for address in range(10):
            self.back_off.failed(address, address)
        self.back_off.failed("a", 5 + MEMORY)
        self.assertEqual(len(self.back_off), 5)

    def test_bounded(self) -> None:
        self.back_off.failed("first", 0)
        self.back_off.failed("second", 0)
        self.back_off.failed("first", 0)
        for address in range(CAPACITY - 1):
            self.back_off.failed(address, 1)
        self.assertEqual(len(self.back_off), CAPACITY)
        self.assertEqual(self.back_off.delay("second", 1), 0, "it failed longest ago")
        self.assertEqual(self.back_off.delay("first", 1), 0.5)

    def test_a_unix_socket_waits_never(self) -> None:
        for now in range(5):
            self.back_off.failed(None, now)
        self.assertEqual((self.back_off.delay(None, 5), len(self.back_off)), (0, 0))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 70))))
    def test_as_a_count(self, failures: list[tuple[str, float]]) -> None:
        back_off = BackOff()
        counts: dict[str, tuple[int, float]] = {}
        now = 0.0
        for address, later in failures:
            now += later
            count, last = counts.get(address, (0, now))
            if now - last >= MEMORY:
                count = 0
            self.assertEqual(back_off.delay(address, now), [0, 0.25, 0.5, 1, 2][min(count, 4)])
            back_off.failed(address, now)
            counts[address] = count + 1, now
