"""The faults: a table of what is done, what must come of it, and what it may cost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from twisted.trial.unittest import SkipTest

from tests.faults.arena import MEBIBYTE, Arena, Stage

#: The combinations: whether over TLS, and whether before the authentication.
COMBINATIONS = ((False, True), (False, False), (True, True), (True, False))


# How many times as long all may take in the short form, which is played on machines that do much else.
_PATIENCE = 3
# What stands for the others where each takes long.
_DIAGONAL = ((False, True), (True, False))


def names_of(tls: bool, before: bool) -> tuple[str, str]:
    """How a combination is called."""
    return "tls" if tls else "tcp", "before" if before else "after"


@dataclass(frozen=True)
class Fault:
    """
    One thing that peers do wrong.

    Args:
        name: in a few words.
        hazard: what it could do, in plain words.
        section: of docs/protocol.rst, or "design" for a hazard of the design.
        run: plays it.
        expected: what comes of it, as `Stage.came` says it; by the names of combinations where it depends
            on these.
        seconds: within how many the connection is closed, from the moment that the fault is complete; None
            where it goes on.
        growth: by how many MiB the server's memory may grow meanwhile.
        wait: how many seconds a witness may wait for any message.
        options: of the server.
        never: why it cannot be, by the names of combinations: "tcp", "before", "tls after".
        alone: it needs a server of its own.
        make: makes the arena from the options; one made otherwise than usual is for this fault alone.
        long: it is left out of the short form.
        slow: in the short form it is played in two combinations only.
        ends: the server is told to shut down in the course of it.
    """

    name: str
    hazard: str
    section: str
    run: Callable[[Stage], None]
    expected: str | Mapping[str, str]
    seconds: float | None
    growth: float
    wait: float
    options: tuple[str, ...]
    never: Mapping[str, str]
    alone: bool
    long: bool
    slow: bool
    ends: bool
    make: Callable[..., Arena]

    def never_because(self, tls: bool, before: bool) -> str:
        """Why there is no such combination; empty when there is one."""
        return _by_names(self.never, tls, before)

    def combinations(self, short: bool = False) -> list[tuple[bool, bool]]:
        """Those that there are; `short`: those of the short form."""
        found = [each for each in COMBINATIONS if not self.never_because(*each)]
        if short and self.slow:
            found = [each for each in found if each in _DIAGONAL] or found[:1]
        return found

    def expects(self, tls: bool, before: bool) -> str:
        """What must come of it."""
        if isinstance(self.expected, str):
            return self.expected
        return _by_names(self.expected, tls, before)


def _by_names(values: Mapping[str, str], tls: bool, before: bool) -> str:
    transport, state = names_of(tls, before)
    for key in (f"{transport} {state}", transport, state):
        if key in values:
            return values[key]
    return ""


#: All of them, in the order in which they are played.
FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    section: str,
    expected: str | Mapping[str, str],
    seconds: float | None = None,
    growth: float = 3.0,
    wait: float = 1.0,
    options: Sequence[str] = (),
    never: Mapping[str, str] | None = None,
    alone: bool = False,
    long: bool = False,
    slow: bool = False,
    ends: bool = False,
    make: Callable[..., Arena] = Arena,
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Enter a function into the table, as of `Fault`; its docstring is the hazard."""

    def enter(run: Callable[[Stage], None]) -> Callable[[Stage], None]:
        assert name not in FAULTS, name
        hazard = " ".join((run.__doc__ or "").split())
        FAULTS[name] = Fault(
            name=name,
            hazard=hazard,
            section=section,
            run=run,
            expected=expected,
            seconds=seconds,
            growth=growth,
            wait=wait,
            options=tuple(options),
            never=never or {},
            alone=alone or ends or make is not Arena,
            long=long,
            slow=slow,
            ends=ends,
            make=make,
        )
        return run

    return enter


@dataclass
class Row:
    """What was found of one fault in one combination."""

    fault: Fault
    tls: bool
    before: bool
    expected: str
    came: str = ""
    #: Seconds from the fault to the end of the connection.
    seconds: float | None = None
    #: MiB by which the server grew at most; None where it has ended, and nothing can be read of it.
    growth: float | None = None
    lost: int = 0
    #: What was measured beside.
    note: str = ""
    worst: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "ok", or what falls short; and what was measured beside."""
        return "; ".join(filter(None, ["; ".join(self.problems) or "ok", self.note]))


class Play:
    """
    Plays faults, each group with the same options on one arena.

    Args:
        short: the form for each commit.
    """

    def __init__(self, short: bool = False) -> None:
        self.short = short
        self._arena: Arena | None = None

    def close(self) -> None:
        """End the arena."""
        if self._arena is not None:
            self._arena.stop()
            self._arena = None

    def _arena_for(self, fault: Fault) -> Arena:
        arena = self._arena
        if arena is None or arena.options != fault.options or fault.alone:
            self.close()
            arena = self._arena = fault.make(*fault.options)
            # What a first time costs, in memory and time, is nobody's fault.
            for tls, before in COMBINATIONS:
                with Stage(arena, tls, before) as stage:
                    stage.goes_on(stage.peer())
        return arena

    def play(self, fault: Fault, tls: bool, before: bool) -> Row:
        """
        Play a fault in one combination.

        Raises:
            SkipTest: it cannot be played on this system.
        """
        row = Row(fault, tls, before, fault.expects(tls, before))
        arena = self._arena_for(fault)
        server = arena.server
        log = len(server.log)
        arena.witnesses.begin()
        server.reset_peak()
        resident = server.resident()
        with Stage(arena, tls, before, self.short) as stage:
            try:
                fault.run(stage)
            except SkipTest:
                self.close()
                raise
            # Whatever goes wrong is what is to be told.
            except Exception as error:
                row.problems.append(f"{type(error).__name__}: {error}"[:500])
        row.came = stage.came
        row.note = stage.note
        if stage.completed is not None and stage.ended is not None:
            row.seconds = stage.ended - stage.completed
        if row.came != row.expected:
            row.problems.append(f"{row.expected!r} was expected")
        if not fault.ends:
            self._witnessed(row, arena)
            row.growth = max(0.0, (server.peak() - resident) / MEBIBYTE)
        if fault.ends:
            if (status := server.wait()) not in (0, -signal.SIGTERM):
                row.problems.append(f"the server ended with {status}")
        elif server.process.poll() is not None:
            row.problems.append(f"the server ended with {server.process.returncode}")
        elif not row.problems:
            with _told(row):
                arena.agree()
        if any("Traceback" in line for line in server.log[log:]):
            row.problems.append("a traceback in the log")
        patience = _PATIENCE if self.short else 1
        if fault.seconds is not None and (row.seconds is None or row.seconds > fault.seconds * patience):
            row.problems.append(f"not closed within {fault.seconds * patience:g} s")
        if row.growth is not None and row.growth > fault.growth:
            row.problems.append(f"grew by more than {fault.growth:g} MiB")
        if row.worst > fault.wait * patience:
            row.problems.append(f"a witness waited longer than {fault.wait * patience:g} s")
        if row.problems or fault.alone:
            # What it left behind must not be laid to the next one.
            self.close()
        return row

    def _witnessed(self, row: Row, arena: Arena) -> None:
        with _told(row):
            report = arena.witnesses.end()
            row.lost, row.worst = report.lost + report.disordered, report.worst
            assert not report.problem, f"witnesses: {report.problem}"


@contextlib.contextmanager
def _told(row: Row) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        row.problems.append(str(error))
