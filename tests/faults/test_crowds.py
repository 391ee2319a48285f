"""What the faults of crowds are measured with: the swarm, and the clock that can be moved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.faults.arena import Arena, Stage
from tests.faults.crowds import Swarm, shifted
from tests.identities import new_path, write


class SwarmTests(SynchronousTestCase):
    """`Swarm`."""

    def stage(self, *options: str, tls: bool = False) -> Stage:
        """A stage with two witnesses."""
        arena = Arena(*options, witnesses=2)
        self.addCleanup(arena.stop)
        stage = Stage(arena, tls, before=False)
        self.addCleanup(stage.__exit__)
        return stage

    def test_it_tells_who_was_refused(self) -> None:
        stage = self.stage("--max-connections", "5")
        with Swarm(stage, "ping", 5) as swarm:
            self.assertEqual(swarm.ready()["ended"], {"server_full": 2})
            self.assertEqual(stage.arena.witnesses.stats()["connected_clients"], 5)
            self.assertEqual(swarm.leave(), Counter(stayed=3, server_full=2))

    def test_it_tells_who_was_cut(self) -> None:
        """Nobody is taken for one that stayed when the server is gone; nor is one that cannot come back."""
        for tls in (False, True):
            stage = self.stage(tls=tls)
            with Swarm(stage, "ping", 5) as swarm, Swarm(stage, "come_back", 5, pause=60) as others:
                for each in (swarm, others):
                    self.assertEqual(each.ready()["ended"], {})
                stage.server.stop()
                outcomes = swarm.leave()
                self.assertEqual(sum(outcomes.values()), 5)
                self.assertEqual(others.counts()["back"], 0)
            self.assertNotIn("stayed", outcomes)

    def test_wrong_logins(self) -> None:
        with Swarm(self.stage(), "guess", 3, login=False, user="x", mechanisms=["plain"]) as swarm:
            # Only tokens are taken here.
            self.assertEqual(swarm.ready()["ended"], {})
            counts = swarm.counts()["counts"]
        self.assertGreaterEqual(counts["error"], 3)
        self.assertNotIn("authenticated", counts)


class ClockTests(SynchronousTestCase):
    """The time of day of a process."""

    def test_only_the_time_of_day(self) -> None:
        code = (
            "import datetime, time; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
        )

        def clocks(seconds: int) -> list[float]:
            file = write(new_path(".clock"), seconds.to_bytes(8, sys.byteorder, signed=True))
            if not (variables := shifted(file)):
                raise SkipTest("there is no C compiler")
            found = subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                check=True,
                timeout=60,
            )
            return [*map(float, found.stdout.split())]

        right, forward, back = map(clocks, (0, 7200, -7200))
        for moved, seconds in ((forward, 7200), (back, -7200)):
            for index, expected in enumerate((seconds, seconds, 0)):
                self.assertLess(abs(moved[index] - right[index] - expected), 60)
