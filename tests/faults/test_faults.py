"""The fault battery in its short form: a test for each fault and combination."""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable, Iterable

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.errors import (
    CLIENT_CLOSED,
    CLOSED_BY_HANDLER,
    CODES,
    CONNECTION_LOST,
    HANDSHAKE_FAILED,
)
from tests.faults.catalogue import FAULTS, Fault, Play, names_of
from tests.faults.registered import OUT_OF_REACH, in_groups

# One arena at a time: that of the test before, where it has the same options.
_play = Play(short=True)
atexit.register(_play.close)


def _test(fault: Fault, tls: bool, before: bool) -> Callable[[SynchronousTestCase], None]:
    def test(case: SynchronousTestCase) -> None:
        row = _play.play(fault, tls, before)
        case.assertEqual(row.problems, [], fault.hazard)

    test.__doc__ = fault.hazard
    return test


def _cases(faults: Iterable[Fault]) -> dict[str, type[SynchronousTestCase]]:
    """A test case for each group that shares a server, so that its tests are run together."""
    cases: dict[str, type[SynchronousTestCase]] = {}
    groups: dict[object, list[Fault]] = {}
    for fault in faults:
        groups.setdefault(fault.name if fault.alone else fault.options, []).append(fault)
    for number, group in enumerate(groups.values(), 1):
        tests = {
            "_".join(("test", re.sub(r"\W+", "_", fault.name), *names_of(*combination))): _test(
                fault, *combination
            )
            for fault in group
            for combination in fault.combinations(short=True)
        }
        name = f"Fault{number:02}Tests"
        cases[name] = type(name, (SynchronousTestCase,), {**tests, "__module__": __name__})
    return cases


class CatalogueTests(SynchronousTestCase):
    """What stands in the catalogue."""

    def test_codes(self) -> None:
        """Each code of section 9 is what some fault leads to, or cannot be."""
        ends = (CLIENT_CLOSED, CONNECTION_LOST, HANDSHAKE_FAILED, CLOSED_BY_HANDLER)
        expected = {
            code
            for fault in FAULTS.values()
            for combination in fault.combinations()
            for code in fault.expects(*combination).split(", ")
        }
        found = {code for code in (*CODES, *ends) if code in expected}
        self.assertEqual(found | set(OUT_OF_REACH), {*CODES, *ends})
        self.assertEqual(found & set(OUT_OF_REACH), set())

    def test_hazards(self) -> None:
        """Each fault says what it could do, and what must come of it wherever it is played."""
        for fault in FAULTS.values():
            self.assertNotEqual(fault.hazard, "", fault.name)
            self.assertNotEqual(fault.combinations(), [], fault.name)
            for combination in fault.combinations():
                self.assertNotEqual(fault.expects(*combination), "", fault.name)


globals().update(_cases(fault for fault in in_groups(FAULTS.values()) if not fault.long))
