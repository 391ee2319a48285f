"""The soak test in a short form, and whether its verdict sees what it is there to see."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.soak.figures import Sample, floors, slope
from tests.soak.guests import CLOSED, LOST, Plan
from tests.soak.load import ended_as_done
from tests.soak.run import Bounds, Check, Outcome, soak, verdict

# A heartbeat that is not answered ends after 10 seconds at the least.
SHORT = Plan(
    seconds=9,
    warm=3,
    minute=3,
    every=0.5,
    pause=0.05,
    visitors=8,
    longest=16384,
    auth_timeout=4,
    frame_timeout=3,
    write_timeout=3,
    heartbeat=1,
    idle_timeout=8,
    max_connections=40,
    without=frozenset({"heartbeat"}),
)
# Some 400 connections: a kilobyte of each would be twice as much as the heap may grow by. What is resident
# has not yet come to rest, and a slope of seconds says nothing.
BOUNDS = Bounds(heap=200, blocks=2000, resident=16384, slope=math.inf)


class SoakTests(SynchronousTestCase):
    """A real server, for some seconds."""

    def test_short(self) -> None:
        """After much coming and going, everything is as before."""
        if not Path("/proc/self/status").exists():
            raise SkipTest("needs /proc")
        outcome = soak(SHORT, lambda line: None)
        wrong = [
            line for check in verdict(outcome, BOUNDS) if not check.fits for line in (check.text, *check.more)
        ]
        self.assertEqual(wrong, [], "\n".join(wrong))
        self.assertGreater(max(sample.inside["clients"] for sample in outcome.samples), SHORT.senders)
        counts = outcome.counts
        for what in (
            "delivered",
            "logins",
            "wrong logins",
            "compressed",
            "read anew",
            "refused",
            "slow readers",
        ):
            self.assertGreater(counts[what], 0, what)
        codes = {code for _, code in outcome.ends}
        usual = {"client_closed", "connection_lost", "handshake_failed", "too_large", "auth_failed"}
        self.assertLessEqual(usual | {"auth_timeout", "frame_timeout", "slow_consumer"}, codes)


class SlopeTests(SynchronousTestCase):
    """How steep something grows."""

    def test_a_line(self) -> None:
        """So much a minute, whatever the seconds of the points, and a few far off."""
        points = [(7.0 * n, 100 + 0.5 * 7 * n) for n in range(20)]
        points[3] = (21.0, 10_000.0)
        points[11] = (77.0, 0.0)
        steep = slope(points)
        self.assertAlmostEqual(steep.middle, 30)
        self.assertLessEqual(steep.least, steep.middle)
        self.assertGreaterEqual(steep.most, steep.middle)

    def test_up_and_down(self) -> None:
        """The bounds of what only goes up and down hold 0; those of what grows beneath it do not."""
        level = [(5.0 * n, n * 37 % 101) for n in range(40)]
        self.assertLess(slope(level).least, 0)
        self.assertGreater(slope(level).most, 0)
        growing = [(at, value + 10 * at) for at, value in level]
        self.assertGreater(slope(growing).least, 500)

    def test_two_points(self) -> None:
        steep = slope([(0.0, 5.0), (120.0, 7.0)])
        self.assertEqual((steep.least, steep.middle, steep.most), (1, 1, 1))

    def test_floors(self) -> None:
        """The least of each stretch, when it was."""
        values = [(1, 50), (12, 40), (19, 70), (20, 90), (39, 80), (61, 30)]
        samples = [sample(at=at, resident=value) for at, value in values]
        self.assertEqual(floors(samples, 20), [(12, 40), (39, 80), (61, 30)])


class EndTests(SynchronousTestCase):
    """Whether clients ended as they should."""

    def setUp(self) -> None:
        self.ends = {"a:1": [("reset", LOST), ("close", CLOSED | LOST)], "b:2": [("half close", CLOSED)]}

    def test_as_they_should(self) -> None:
        found = [("a:1", "connection_lost"), ("b:2", "client_closed"), ("a:1", "client_closed")]
        counts, wrong = ended_as_done(self.ends, found)
        self.assertEqual(wrong, [], "\n".join(wrong))
        self.assertEqual(counts["close", "client_closed"], 1)
        self.assertEqual(counts.total(), 3)

    def test_the_same_address(self) -> None:
        """Two clients that have it at a time end in any order."""
        found = [("a:1", "client_closed"), ("a:1", "connection_lost"), ("b:2", "client_closed")]
        counts, wrong = ended_as_done(self.ends, found)
        self.assertEqual(wrong, [])
        self.assertEqual(counts["reset", "connection_lost"], 1)

    def test_resets_that_pass_for_an_end_in_order(self) -> None:
        """One may; of many connections one in 2,000, and no more."""
        for resets, others, taken in ((1, 0, True), (2, 0, False), (2, 3998, True), (3, 3997, False)):
            ends = {f"r:{n}": [("reset", LOST)] for n in range(resets)}
            ends |= {f"c:{n}": [("close", CLOSED)] for n in range(others)}
            _, wrong = ended_as_done(ends, [(client_id, "client_closed") for client_id in ends])
            self.assertEqual(not wrong, taken)
            self.assertIn(len(wrong), (0, resets))

    def test_otherwise(self) -> None:
        """Whoever ends as it should not, is missed, or is not known."""
        self.ends["a:1"][0] = ("too large", frozenset({"too_large"}))
        found = [("a:1", "client_closed"), ("a:1", "client_closed"), ("a:1", "client_closed")]
        _, wrong = ended_as_done(self.ends, found)
        self.assertEqual(
            wrong,
            [
                "a:1 (too large) ended as client_closed, not as too_large",
                "a:1 ended as client_closed, and did nothing that is known",
                "b:2 (half close): the log tells of no end",
            ],
        )


def sample(**changes: Any) -> Sample:
    """A sample of a server at rest."""
    inside: dict[str, Any] = {"heap": 10 << 20, "blocks": 200_000, "made": 5000, "remembered": 1000}
    inside |= {"connections": 0, "clients": 0, "admitted": 0, "deadlines": 0, "failed_logins": 7, "stale": {}}
    inside |= {"kinds": {"tcpjson.connection.Connection": 0}, "calls": {"LoopingCall.__call__": 2}}
    inside |= {"disconnects": {"client_closed": 90, "server_full": 10}} | changes.pop("inside", {})
    rest: dict[str, Any] = {"at": 0.0, "resident": 36_000, "peak": 40_000, "descriptors": 12, "threads": 2}
    return Sample(**rest | changes, inside=inside)


class VerdictTests(SynchronousTestCase):
    """What turns the verdict red."""

    bounds = Bounds(heap=100, blocks=1000, resident=2000, slope=50)

    def outcome(self, **changes: Any) -> Outcome:
        """What a run without faults comes to."""
        usual: dict[str, Any] = {
            "before": sample(inside={"made": 1000}),
            "after": sample(),
            "samples": [sample(at=5.0 * n, resident=38_000 + n % 3) for n in range(60)],
            "stretch": 5,
            "counts": Counter({"delivered": 900, "refused": 10, "wrong logins": 7}),
            "logged": Counter({"client_closed": 90, "server_full": 10}),
        }
        return Outcome(**usual | changes)

    def red(self, **changes: Any) -> list[str]:
        """The beginnings of the lines that say no, with changes to a run without faults."""
        checks: list[Check] = list(verdict(self.outcome(**changes), self.bounds))
        self.assertGreater(len(checks), 12)
        return [check.text.partition(":")[0] for check in checks if not check.fits]

    def after(self, **inside: Any) -> list[str]:
        """What is red when this is what there is after the load."""
        return self.red(after=sample(inside=inside))

    def test_without_faults(self) -> None:
        self.assertEqual(self.red(), [])

    def test_what_clients_saw(self) -> None:
        counts = self.outcome().counts
        self.assertEqual(self.red(counts=counts + Counter(lost=1)), ["broadcasts"])
        self.assertEqual(self.red(counts=counts - Counter(delivered=900)), ["broadcasts"])
        self.assertEqual(self.red(problems=["a visit"]), ["answers"])
        self.assertEqual(self.red(counts=counts + Counter({"wrong logins": 1})), ["logins"])

    def test_ends(self) -> None:
        self.assertEqual(self.red(wrong_ends=["a:1"]), ["ends"])
        self.assertEqual(self.red(logged=Counter(client_closed=100)), ["ends"])
        self.assertEqual(self.red(counts=self.outcome().counts + Counter(refused=1)), ["ends"])
        self.assertEqual(self.red(complaints=["Traceback"]), ["log"])

    def test_what_is_left(self) -> None:
        for name in ("connections", "clients", "admitted", "deadlines"):
            self.assertEqual(self.after(**{name: 1}), ["nobody is there at the end"])
        self.assertEqual(self.after(calls={"LoopingCall.__call__": 2, "late": 1}), ["delayed calls"])
        self.assertEqual(self.after(calls={"LoopingCall.__call__": 1, "late": 1}), ["delayed calls"])
        kinds = {"tcpjson.connection.Connection": 1}
        self.assertEqual(self.after(kinds=kinds), ["objects of the server and of Twisted"])
        # The reactor keeps those that were cancelled.
        self.assertEqual(self.after(kinds={"twisted.internet.base.DelayedCall": 9}), [])
        self.assertEqual(self.red(after=sample(descriptors=13)), ["descriptors"])
        self.assertEqual(self.red(after=sample(descriptors=11)), ["descriptors"])
        self.assertEqual(self.red(after=sample(threads=2 + (os.cpu_count() or 1))), ["threads"])

    def test_under_load(self) -> None:
        """What is to be done for a connection that is gone is seen in whichever look."""
        samples = self.outcome().samples
        samples[20] = sample(at=100, inside={"stale": {"deadline": 1}})
        self.assertEqual(
            self.red(samples=samples), ["in 62 looks, 1 deadlines or calls of connections that are gone"]
        )

    def test_memory(self) -> None:
        """Up to the bounds, and beyond."""
        self.assertEqual(self.after(heap=(10 << 20) + 100 * 1024), [])
        self.assertEqual(self.after(heap=(10 << 20) + 101 * 1024), ["heap in use"])
        self.assertEqual(self.after(heap=None), [])
        self.assertEqual(self.after(blocks=201_000), [])
        self.assertEqual(self.after(blocks=201_001), ["blocks of Python in use"])
        self.assertEqual(self.red(after=sample(resident=38_000)), [])
        self.assertEqual(self.red(after=sample(resident=38_001)), ["resident memory"])

    def test_what_is_remembered_on_purpose(self) -> None:
        before = sample(inside={"made": 1000, "remembered": 500})
        self.assertEqual(self.red(before=before, after=sample(inside={"blocks": 203_900})), [])
        self.assertEqual(
            self.red(before=before, after=sample(inside={"blocks": 204_100})), ["blocks of Python in use"]
        )

    def test_slope(self) -> None:
        """A slope that is surely more than the bound; that of the first half does not count."""
        samples = self.outcome().samples
        late = [dataclasses.replace(each, resident=each.resident + each.at) for each in samples]
        [check] = [check for check in verdict(self.outcome(samples=late), self.bounds) if not check.fits]
        self.assertIn("+60", check.text)
        self.assertTrue(check.text.startswith("slope"))
        less = [dataclasses.replace(each, resident=each.resident + each.at / 2) for each in samples]
        self.assertEqual(self.red(samples=less), [])
        # Steeper than the bound, but it may as well go up and down by chance.
        unsure = [
            dataclasses.replace(each, resident=each.resident + 1.2 * each.at + 4 * (n * 37 % 101))
            for n, each in enumerate(samples)
        ]
        points = [(each.at, each.resident) for each in unsure if each.at >= 150]
        self.assertGreater(slope(points).middle, self.bounds.slope)
        self.assertEqual(self.red(samples=unsure), [])
        early = [dataclasses.replace(each, resident=each.resident + min(each.at, 140)) for each in samples]
        self.assertEqual(self.red(samples=early), [])
        self.assertEqual(self.red(samples=late, stretch=10), [], "of a short run it is told and not judged")
