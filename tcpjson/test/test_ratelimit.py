"""A peer never gets more than its rate and its burst, and never waits longer than it must."""

from __future__ import annotations

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.framing import PREFIX_LENGTH
from tcpjson.core.limits import Limits
from tcpjson.core.ratelimit import Meter, TokenBucket
from tcpjson.test.hypo import given

# What sums of floats may be off, in tokens.
SLACK = 1e-5

starts = st.floats(0, 1e5)
pauses = st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 100))
# The longest payload.
LONGEST = 300

frames = st.lists(st.integers(0, LONGEST).map(bytes), max_size=12)
# A pause, what is asked for then, how much of what was granted is not handled after all.
steps = st.lists(st.tuples(pauses, frames, st.integers(0, 12)), min_size=1, max_size=20)
rates = st.one_of(st.sampled_from([0.3, 1.0, 3.0, 7.0, 10.0]), st.floats(0.1, 1000))
bursts = st.one_of(st.none(), st.sampled_from([1.0, 1.5, 10.0]), st.floats(1, 200))
byte_rates = st.floats(0.5, 1e6)
byte_bursts = st.one_of(st.none(), st.floats(1, 5000))


def size_of(payloads: list[bytes]) -> int:
    """Bytes on the wire."""
    return sum(PREFIX_LENGTH + len(payload) for payload in payloads)


class BucketTests(SynchronousTestCase):
    """`TokenBucket`."""

    def test_it_begins_full(self) -> None:
        self.assertEqual(TokenBucket(2, 5, 100.0).level(100.0), 5)

    def test_it_fills_up_to_its_burst(self) -> None:
        bucket = TokenBucket(2, 5, 100.0)
        bucket.take(5)
        self.assertEqual([bucket.level(now) for now in (100.0, 101.0, 101.5, 102.5, 1000.0)], [0, 2, 3, 5, 5])

    def test_what_is_missing_comes_in_first(self) -> None:
        bucket = TokenBucket(2, 5, 0.0)
        bucket.take(11)
        self.assertEqual([bucket.level(now) for now in (0.0, 1.0, 3.0, 4.0)], [-6, -4, 0, 2])

    def test_the_wait_for_one(self) -> None:
        bucket = TokenBucket(2, 5, 0.0)
        bucket.take(6)
        self.assertEqual(bucket.wait(), 1.0)
        bucket.level(0.5)
        self.assertEqual(bucket.wait(), 0.5)
        bucket.level(10.0)
        self.assertEqual(bucket.wait(), 0.0)

    def test_the_wait_for_many(self) -> None:
        """A tenth of a second's, as far as the burst holds them."""
        for burst, wait in ((500, 0.1), (100, 0.1), (20, 0.02), (1, 0.001)):
            bucket = TokenBucket(1000, burst, 0.0)
            bucket.take(burst)
            self.assertAlmostEqual(bucket.wait(), wait)


class MeterTests(SynchronousTestCase):
    """`Meter`, one example at a time."""

    def grants(self, limits: Limits, *asked: tuple[float, list[bytes]]) -> list[int]:
        """What is granted at each time, on a clock that starts at 0."""
        meter = Meter(limits, 0.0)
        return [meter.grant(payloads, now) for now, payloads in asked]

    def test_without_rates(self) -> None:
        meter = Meter(Limits(), 0.0)
        self.assertEqual(meter.grant([b"x" * 1000] * 1000, 0.0), 1000)
        meter.refund([b"x"])
        self.assertEqual(meter.wait(), 0.0)

    def test_messages(self) -> None:
        limits = Limits(messages_per_second=2, message_burst=3)
        five = [b"x" * 10_000] * 5
        self.assertEqual(
            self.grants(limits, (0, five), (0, five), (0.4, five), (0.5, five), (1.5, five), (99, five)),
            [3, 0, 0, 1, 2, 3],
        )

    def test_a_second_of_messages_at_once(self) -> None:
        """Unless another burst is named; one message always passes."""
        ten = [b""] * 10
        self.assertEqual(self.grants(Limits(messages_per_second=4), (0, ten), (9, ten)), [4, 4])
        self.assertEqual(
            self.grants(Limits(messages_per_second=0.5), (0, ten), (1, ten), (2, ten)), [1, 0, 1]
        )

    def test_bytes(self) -> None:
        """The length in front of a payload counts; a frame passes while there is one byte."""
        limits = Limits(bytes_per_second=10, byte_burst=25)
        ten = [b"123456"] * 5
        # 25, 15, 5: three pass, and the debt is 5.
        self.assertEqual(
            self.grants(limits, (0, ten), (0.5, ten), (0.625, ten), (1.5, ten), (99, ten)), [3, 0, 1, 0, 3]
        )

    def test_a_second_of_bytes_at_once(self) -> None:
        five = [b"x"] * 10
        self.assertEqual(self.grants(Limits(bytes_per_second=15), (0, five), (9, five)), [3, 3])
        # And of one byte at the least: a wait until there is one comes to an end with one.
        meter = Meter(Limits(bytes_per_second=0.5), 0.0)
        self.assertEqual(meter.grant(five, 0.0), 1)
        self.assertEqual(meter.wait(), 10.0)

    def test_a_frame_longer_than_the_burst(self) -> None:
        """It passes, and its bytes have to come in before the next."""
        meter = Meter(Limits(bytes_per_second=10, byte_burst=10), 0.0)
        self.assertEqual(meter.grant([bytes(1006), b""], 0.0), 1)
        self.assertEqual(meter.wait(), 100.1)
        self.assertEqual(meter.grant([b""], 99.9), 0)
        self.assertEqual(meter.grant([b""], 100.2), 1)

    def test_messages_are_not_charged_when_bytes_are_missing(self) -> None:
        limits = Limits(messages_per_second=1, message_burst=5, bytes_per_second=10, byte_burst=10)
        meter = Meter(limits, 0.0)
        self.assertEqual(meter.grant([bytes(16)] * 5, 0.0), 1)
        # One message was charged: four are left, and 10 bytes are missing.
        self.assertEqual(meter.grant([b""] * 9, 1.0), 0)
        self.assertEqual(meter.grant([b""] * 9, 1.5), 2)
        self.assertEqual(meter.wait(), 0.4)

    def test_bytes_are_not_charged_when_messages_are_missing(self) -> None:
        limits = Limits(messages_per_second=1, bytes_per_second=100)
        meter = Meter(limits, 0.0)
        self.assertEqual(meter.grant([bytes(46)] * 5, 0.0), 1)
        self.assertEqual(meter.grant([bytes(46)] * 5, 0.75), 0)
        self.assertEqual(meter.wait(), 0.25)
        self.assertEqual(meter.grant([bytes(46)] * 5, 1.0), 1)

    def test_nothing_is_asked_for(self) -> None:
        limits = Limits(messages_per_second=1, bytes_per_second=1)
        self.assertEqual(self.grants(limits, (0, [b"xxx"]), (0, []), (0.5, [])), [1, 0, 0])

    def test_a_refund(self) -> None:
        """The same is granted again at once, and no more than that."""
        limits = Limits(messages_per_second=1, message_burst=4, bytes_per_second=10, byte_burst=40)
        for size, granted in ((0, 4), (16, 2)):
            meter = Meter(limits, 0.0)
            asked = [bytes(size)] * 9
            self.assertEqual(meter.grant(asked, 0.0), granted)
            meter.refund(asked[1:granted])
            self.assertEqual(meter.grant(asked, 0.0), granted - 1)
            self.assertEqual(meter.grant(asked, 0.0), 0)

    def test_a_refund_is_not_kept_beyond_the_burst(self) -> None:
        limits = Limits(messages_per_second=1, message_burst=4, bytes_per_second=10, byte_burst=40)
        meter = Meter(limits, 0.0)
        meter.grant([b""] * 4, 0.0)
        meter.refund([b""] * 4)
        self.assertEqual(meter.grant([b""] * 9, 100.0), 4)


class RateTests(SynchronousTestCase):
    """`Meter`, whatever a peer sends."""

    @given(rates, bursts, st.one_of(st.none(), byte_rates), byte_bursts, starts, steps, examples=300)
    def test_no_interval_has_too_much(
        self,
        rate: float,
        burst: float | None,
        byte_rate: float | None,
        byte_burst: float | None,
        start: float,
        steps: list[tuple[float, list[bytes], int]],
    ) -> None:
        """Messages: the burst, and the rate for the time. Bytes: these, and what the last frame owes."""
        limits = Limits(
            messages_per_second=rate,
            message_burst=burst,
            bytes_per_second=byte_rate,
            byte_burst=byte_burst,
        )
        most = max(1.0, rate) if burst is None else burst
        meter = Meter(limits, start)
        now = start
        handled: list[tuple[float, bytes]] = []
        for pause, asked, unhandled in steps:
            now += pause
            granted = meter.grant(asked, now)
            self.assertTrue(0 <= granted <= len(asked))
            done = max(0, granted - unhandled)
            meter.refund(asked[done:granted])
            handled += [(now, payload) for payload in asked[:done]]
            for first, (since, _) in enumerate(handled):
                passed = [payload for _, payload in handled[first:]]
                time = now - since
                self.assertLessEqual(len(passed), most + rate * time + SLACK)
                if byte_rate is not None:
                    store = (byte_burst or max(1.0, byte_rate)) + byte_rate * time
                    self.assertLess(size_of(passed[:-1]), store + SLACK * byte_rate)

    @given(rates, bursts, starts, steps, examples=300)
    def test_messages_wait_no_longer_than_they_must(
        self, rate: float, burst: float | None, start: float, steps: list[tuple[float, list[bytes], int]]
    ) -> None:
        """After just the time that `wait` says one is granted; before that none, where one is waited for."""
        limits = Limits(messages_per_second=rate, message_burst=burst)
        early = Meter(limits, start)
        meter = Meter(limits, start)
        now = start
        for pause, asked, unhandled in steps:
            now += pause
            granted = meter.grant(asked, now)
            self.assertEqual(early.grant(asked, now), granted)
            back = asked[max(0, granted - unhandled) : granted]
            meter.refund(back)
            early.refund(back)
            if granted < len(asked) and not back:
                wait = meter.wait()
                tokens = max(1.0, min(burst or max(1.0, rate), rate / 10))
                self.assertTrue(0 < wait <= tokens / rate + SLACK, wait)
                if tokens == 1:
                    before = max(now, now + wait - 0.001 / rate)
                    self.assertEqual(early.grant([b""], before), 0)
                now += wait
                self.assertEqual(meter.grant([b""], now), 1)
                self.assertEqual(early.grant([b""], now), 1)

    @given(byte_rates, byte_bursts, starts, steps, examples=300)
    def test_bytes_wait_no_longer_than_they_must(
        self, rate: float, burst: float | None, start: float, steps: list[tuple[float, list[bytes], int]]
    ) -> None:
        """As messages; the wait is until what one frame owes, and one byte, are there."""
        limits = Limits(bytes_per_second=rate, byte_burst=burst)
        early = Meter(limits, start)
        meter = Meter(limits, start)
        now = start
        for pause, asked, _ in steps:
            now += pause
            granted = meter.grant(asked, now)
            self.assertEqual(early.grant(asked, now), granted)
            if granted < len(asked):
                wait = meter.wait()
                tokens = max(1.0, min(burst or max(1.0, rate), rate / 10))
                self.assertTrue(0 < wait <= (tokens + PREFIX_LENGTH + LONGEST) / rate + SLACK, wait)
                if tokens == 1:
                    before = max(now, now + wait - 1.01 / rate - 1e-9)
                    self.assertEqual(early.grant([b""], before), 0)
                now += wait
                self.assertEqual(meter.grant([b""], now), 1)
                self.assertEqual(early.grant([b""], now), 1)

    @given(rates, bursts, byte_rates, byte_bursts, starts, frames)
    def test_a_refund_changes_nothing(
        self,
        rate: float,
        burst: float | None,
        byte_rate: float,
        byte_burst: float | None,
        start: float,
        asked: list[bytes],
    ) -> None:
        """One who was granted, and given back, all is where it was."""
        limits = Limits(
            messages_per_second=rate, message_burst=burst, bytes_per_second=byte_rate, byte_burst=byte_burst
        )
        meter = Meter(limits, start)
        granted = meter.grant(asked, start)
        meter.refund(asked[:granted])
        self.assertAlmostEqual(meter.wait(), Meter(limits, start).wait(), 5)
        self.assertEqual(meter.grant(asked, start), granted)
