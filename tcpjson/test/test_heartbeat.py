"""Who is silent is asked, who stays silent is given up, and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.heartbeat import ANSWER_TIME, Heartbeat, Silence, Verdict
from tcpjson.test.hypo import given

# What sums of floats may be off, in seconds.
SLACK = 1e-4

intervals = st.one_of(st.sampled_from([0.1, 2.5, 7.7, 25.0]), st.floats(0.1, 1000))
starts = st.one_of(st.just(0.0), st.floats(0, 1e5))
# Times in units of the interval.
gaps = st.lists(st.one_of(st.floats(0, 1), st.floats(0, 4)), max_size=12)


# Bytes of a ping.
PING = 60


def nothing(now: float) -> int:
    """Of a peer that is sent nothing but pings, or that took all."""
    return 0


def never(now: float) -> bool:
    """Of a peer that we always read."""
    return False


class Watch:
    """
    A peer that is looked at just when it is time to.

    Args:
        signs: when bytes come from the peer.
        sent: how many bytes it was sent at each time, pings aside.
        waits: how many of all that it was sent it did not take yet.
        held: whether it is we who do not read.
    """

    def __init__(
        self,
        interval: float,
        start: float,
        signs: Sequence[float] = (),
        sent: Callable[[float], int] = nothing,
        waits: Callable[[float], int] = nothing,
        held: Callable[[float], bool] = never,
    ) -> None:
        self.now = start
        self.signs = sorted(signs)
        self.sent = sent
        self.waits = waits
        self.held = held
        self.heartbeat = Heartbeat(interval, start, 0)
        self.pings: list[float] = []
        self.looks: list[float] = []
        self.dead: float | None = None

    def received(self) -> int:
        """Bytes that came up to now: each sign is one."""
        return sum(sign <= self.now for sign in self.signs)

    def last_sign(self, start: float) -> float:
        """When the last bytes came."""
        return max([start, *(sign for sign in self.signs if sign <= self.now)])

    def look(self) -> Verdict:
        """Go to the next look, and look."""
        after = self.heartbeat.next_look(self.now)
        assert after > self.now, "a look at the same time again"
        assert len(self.looks) < 20_000, "it goes on for ever"
        self.now = after
        self.looks.append(after)
        sent = self.sent(after) + PING * len(self.pings)
        taken = sent - self.waits(after)
        verdict = self.heartbeat.look(after, self.received(), sent, taken, self.held(after))
        if verdict is Verdict.PING:
            self.pings.append(after)
        elif verdict is Verdict.DEAD:
            self.dead = after
        return verdict

    def run(self, until: float) -> None:
        """Look until the peer is dead, or for some time."""
        while self.dead is None and self.now < until:
            self.look()


class SilenceTests(SynchronousTestCase):
    """`Silence`."""

    def test_it_begins_at_once(self) -> None:
        silence = Silence(100.0, "a")
        self.assertEqual((silence.seconds(100.0, "a"), silence.seconds(103.5, "a")), (0, 3.5))

    def test_a_sign(self) -> None:
        """It counts as given when it is noticed; its mark is the one to compare with."""
        silence = Silence(100.0, "a")
        self.assertEqual([silence.seconds(now, "b") for now in (103.0, 105.0)], [0, 2])
        self.assertEqual(silence.mark, "b")
        self.assertEqual(silence.seconds(106.0, "a"), 0)

    def test_a_restart(self) -> None:
        silence = Silence(100.0)
        silence.restart(102.0)
        self.assertEqual(silence.seconds(103.0, None), 1)

    def test_looks(self) -> None:
        """Four in the time that a silence may last, the last just at its end."""
        silence = Silence(100.0)
        self.assertEqual(silence.next_look(100.0, 8.0), 102.0)
        self.assertEqual(silence.next_look(107.5, 8.0), 108.0)

    @given(starts, intervals, st.floats(0.8, 1))
    def test_the_last_look_is_not_too_early(self, start: float, limit: float, part: float) -> None:
        silence = Silence(start)
        look = silence.next_look(start + part * limit, limit)
        self.assertTrue(limit <= silence.seconds(look, None) <= limit + SLACK)


class ExampleTests(SynchronousTestCase):
    """`Heartbeat`, one peer at a time."""

    def test_a_silent_peer(self) -> None:
        watch = Watch(20.0, 100.0)
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([120.0], 130.0))
        self.assertEqual(watch.looks, [105.0, 110.0, 115.0, 120.0, 122.5, 125.0, 127.5, 130.0])

    def test_an_answer(self) -> None:
        """Any bytes are one; the next silence leads to a ping of its own."""
        watch = Watch(20.0, 0.0, [29.5])
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([20.0, 50.0], 60.0))

    def test_bytes_that_came_before(self) -> None:
        """They are no sign of life."""
        heartbeat = Heartbeat(20.0, 0.0, 500)
        self.assertIs(heartbeat.look(20.0, 500, 0, 0, False), Verdict.PING)
        heartbeat = Heartbeat(20.0, 0.0, 500)
        self.assertIs(heartbeat.look(20.0, 501, 0, 0, False), Verdict.ALIVE)

    def test_a_held_peer(self) -> None:
        """While we do not read, there is no silence of its; not before, either."""
        watch = Watch(20.0, 0.0, held=lambda now: 18 < now < 90)
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([105.0], 115.0))

    def test_held_after_the_ping(self) -> None:
        """The answer may wait unread: it is asked anew."""
        watch = Watch(20.0, 0.0, held=lambda now: 28 < now < 40)
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([20.0, 55.0], 65.0))

    def test_a_ping_behind_much_data(self) -> None:
        """While the peer takes some, the ping may not have reached it."""
        watch = Watch(20.0, 0.0, waits=lambda now: max(0, 60_000 - int(1000 * now)))
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([20.0], 70.0))

    def test_data_that_nobody_takes(self) -> None:
        watch = Watch(20.0, 0.0, waits=lambda now: 1000 + PING * (now > 20))
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([20.0], 30.0))

    def test_data_that_goes_on_behind_the_ping(self) -> None:
        """There is always some on its way; the peer took the ping all the same, and owes an answer."""
        watch = Watch(20.0, 0.0, sent=lambda now: int(1000 * now), waits=lambda now: 100)
        watch.run(1000)
        self.assertEqual((watch.pings, watch.dead), ([20.0], 32.5))

    def test_the_ping_on_its_way(self) -> None:
        """It was not taken yet at one look, and was at the next: an answer is due all the same."""
        watch = Watch(20.0, 0.0, waits=lambda now: PING * (20 < now < 24))
        watch.run(1000)
        # From then on when it was seen to have been taken.
        self.assertEqual((watch.pings, watch.dead), ([20.0], 35.0))


class PeerTests(SynchronousTestCase):
    """`Heartbeat`, whatever a peer does."""

    @given(intervals, starts, gaps, examples=300)
    def test_pings_and_the_end(self, interval: float, start: float, gaps: list[float]) -> None:
        """After a silence of one to one and a quarter intervals a ping; after 10 s more, the end."""
        longest = 1.25 * interval
        watch = Watch(interval, start, list(accumulate([start, *(gap * interval for gap in gaps)]))[1:])
        while watch.dead is None:
            silent_since = watch.last_sign(start)
            asked = bool(watch.pings) and watch.pings[-1] > silent_since
            verdict = watch.look()
            silent = watch.now - watch.last_sign(start)
            if verdict is Verdict.PING:
                self.assertFalse(asked and watch.last_sign(start) == silent_since)
                self.assertTrue(interval - SLACK <= silent <= longest + SLACK, silent)
            elif verdict is Verdict.DEAD:
                waited = watch.now - watch.pings[-1]
                self.assertTrue(ANSWER_TIME - SLACK <= waited <= 1.25 * ANSWER_TIME + SLACK, waited)
                self.assertLessEqual(watch.last_sign(start), watch.pings[-1])
            elif watch.pings and watch.pings[-1] > watch.last_sign(start):
                self.assertLess(watch.now - watch.pings[-1], ANSWER_TIME + SLACK)
            else:
                self.assertLess(silent, longest + SLACK)

    @given(intervals, starts, st.lists(st.floats(0.001, ANSWER_TIME - 0.01), min_size=1, max_size=8))
    def test_who_answers_lives(self, interval: float, start: float, delays: list[float]) -> None:
        """However slow the answers are, if each comes within 10 s; the first that is missing is the end."""
        watch = Watch(interval, start)
        for delay in delays:
            count = len(watch.pings)
            while len(watch.pings) == count:
                self.assertIsNot(watch.look(), Verdict.DEAD)
            watch.signs.append(watch.now + delay)
        while len(watch.pings) == len(delays):
            self.assertIsNot(watch.look(), Verdict.DEAD)
        watch.run(watch.now + 1.25 * ANSWER_TIME)
        self.assertEqual(len(watch.pings), len(delays) + 1)
        self.assertIsNotNone(watch.dead)

    @given(intervals, starts, st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=6))
    def test_held(self, interval: float, start: float, holds: list[tuple[float, float]]) -> None:
        """A silence begins anew with the last look at which the peer was held."""
        spans = []
        end = start
        for before, length in holds:
            begin = end + before * interval
            end = begin + length * interval
            spans.append((begin, end))
        watch = Watch(interval, start, held=lambda now: any(begin <= now < end for begin, end in spans))
        since = start
        while watch.dead is None:
            verdict = watch.look()
            if watch.held(watch.now):
                self.assertIs(verdict, Verdict.ALIVE)
                since = watch.now
            elif verdict is Verdict.PING:
                self.assertAlmostEqual(watch.now - since, interval, delta=SLACK)
            elif verdict is Verdict.DEAD:
                self.assertAlmostEqual(watch.now - since, interval + ANSWER_TIME, delta=SLACK)

    @given(intervals, starts, st.lists(st.booleans(), max_size=20), st.booleans())
    def test_progress(self, interval: float, start: float, takes: list[bool], all_taken: bool) -> None:
        """
        Of a ping behind much data the 10 s begin with the last look that found some of that taken, or the
        ping; what stands behind the ping does not count.
        """
        before, behind = len(takes) + 1, 0
        taken = 0
        watch = Watch(interval, start, sent=lambda now: before + behind)
        watch.waits = lambda now: before + behind + PING * len(watch.pings) - taken
        while not watch.pings:
            watch.look()
        since = watch.now
        for some in takes:
            taken += some
            behind += 1
            watch.look()
            if watch.dead is not None:
                break
            if some:
                since = watch.now
        if all_taken and watch.dead is None:
            taken = before + PING
            watch.look()
            if watch.dead is None:
                since = watch.now
        while watch.dead is None:
            behind += 10
            taken += 5 * all_taken
            watch.look()
        self.assertAlmostEqual(watch.dead - since, ANSWER_TIME, delta=SLACK)
        self.assertEqual(len(watch.pings), 1)
