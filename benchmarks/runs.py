"""What the side-by-side runs share: the works, the rounds, and the table of the figures.

In each round every server is started afresh, and each work is done in short slices against one server after
the other, to and fro, so that noise hits all alike. The load generator (``loadgen.c``) varies contents and
ids and checks every answer; a wrong or missing one ends the comparison with status 1. What is counted is the
CPU time of the server's process, user and system, between moments at which nothing is in flight. The figure
of a server is the median over the rounds; the ratio is the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.servers import BenchmarkError, Kind, Server, build_loadgen, cores, started, stop

GENERATOR_LIMIT = 0.95  # a generator busier than this share of the time was what held the run up
SLICES = 10  # of a run, even: each server is measured as often first as last


@dataclass(frozen=True)
class Work:
    """One scenario: what the generator does, and what is counted."""

    name: str
    title: str
    arguments: tuple[str, ...]
    unit: str


def echo(name: str, title: str, clients: int, window: int, payload: str) -> Work:
    shape = ("--clients", str(clients), "--window", str(window), "--payload", payload)
    return Work(name, title, ("echo", *shape), "messages")


def broadcast(name: str, title: str, receivers: int, window: int) -> Work:
    shape = ("--clients", str(receivers), "--window", str(window))
    return Work(name, title, ("broadcast", *shape), "deliveries")


WORKS = {
    work.name: work
    for work in (
        echo("echo100", "echo 100 B, 10 x 50", 10, 50, "text100"),
        echo("echo10k", "echo 10 kB, 10 x 10", 10, 10, "text10k"),
        echo("object", "echo object and id, 10 x 50", 10, 50, "object"),
        echo("round", "round trips, 100 x 1", 100, 1, "text100"),
        broadcast("cast1", "broadcast to 200, 1 at a time", 200, 1),
        broadcast("cast20", "broadcast to 200, 20 in flight", 200, 20),
    )
}


@dataclass(frozen=True)
class Run:
    """What one run of one work against one server gave; CPU times in microseconds a message or delivery."""

    round: int
    work: str
    server: str
    count: int
    seconds: float
    server_us: float
    server_share: float
    generator_us: float
    generator_share: float


@dataclass(frozen=True)
class Settings:
    """How long and how often to measure, with what, and on which cores (None: wherever)."""

    rounds: int
    seconds: float
    warmup: float
    loadgen: Path
    server_core: int | None
    generator_core: int | None


@dataclass(frozen=True)
class Comparison:
    """Whose figures are divided by whose, and the ratio to be met in each work that has one."""

    ours: Kind
    theirs: Kind
    targets: Mapping[str, float]


class Load:
    """One work done against one server, slice by slice; a context manager that ends the generator."""

    def __init__(self, settings: Settings, work: Work, server: Server) -> None:
        self._work = work
        self._server = server
        self._spent_ns = 0
        self._done: list[dict[str, float]] = []
        self._generator = subprocess.Popen(
            [
                str(settings.loadgen),
                *work.arguments,
                f"--port={server.port}",
                f"--seconds={settings.seconds / SLICES}",
                f"--warmup={settings.warmup}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if settings.generator_core is not None:
            os.sched_setaffinity(self._generator.pid, {settings.generator_core})

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc: object) -> None:
        stop(self._generator)
        for stream in (self._generator.stdin, self._generator.stdout, self._generator.stderr):
            assert stream
            # What a generator that has died no longer takes is lost.
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _line(self) -> str:
        """The next line of the generator, which ends by itself when nothing comes any more."""
        assert self._generator.stdout and self._generator.stderr
        line = self._generator.stdout.readline()
        if not line:
            said = self._generator.stderr.read().strip()
            said = said or f"the generator ended with status {self._generator.wait()}"
            raise BenchmarkError(f"{self._server.kind.label}, {self._work.title}: {said}")
        return line

    def warm(self) -> None:
        """Wait until the connections are open and the warm-up is over."""
        self._line()

    def measure(self) -> None:
        """Run one slice, with the server's CPU time read around it."""
        assert self._generator.stdin
        before = self._server.cpu_ns()
        with contextlib.suppress(BrokenPipeError):
            self._generator.stdin.write("go\n")
            self._generator.stdin.flush()
        line = self._line()
        self._spent_ns += self._server.cpu_ns() - before
        self._done.append(json.loads(line))

    def result(self, number: int) -> Run:
        """All slices together, as a run of this round."""
        count, seconds, busy = (
            sum(done[field] for done in self._done) for field in (self._work.unit, "seconds", "cpu_seconds")
        )
        return Run(
            round=number,
            work=self._work.name,
            server=self._server.kind.name,
            count=int(count),
            seconds=seconds,
            server_us=self._spent_ns / 1e3 / count,
            server_share=self._spent_ns / 1e9 / seconds,
            generator_us=busy * 1e6 / count,
            generator_share=busy / seconds,
        )


def measure(settings: Settings, number: int, work: Work, servers: Sequence[Server]) -> list[Run]:
    """One work against all servers, in slices to and fro: what disturbs for longer than one disturbs all."""
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(Load(settings, work, server)) for server in servers]
        for load in loads:
            load.warm()
        for turn in range(SLICES):
            for load in loads[:: -1 if turn % 2 else 1]:
                load.measure()
        return [load.result(number) for load in loads]


def measure_all(settings: Settings, kinds: Sequence[Kind], works: Sequence[Work]) -> list[Run]:
    """All rounds: each server afresh in each round."""
    runs = []
    for number in range(1, settings.rounds + 1):
        print(f"round {number} of {settings.rounds}", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(started(kind, settings.server_core)) for kind in kinds]
            for work in works:
                runs.extend(measure(settings, number, work, servers))
    return runs


def ratios(comparison: Comparison, runs: Sequence[Run], work: str) -> list[float]:
    """The ratio of our server to the other in each round."""
    ours, theirs = (
        {run.round: run.server_us for run in runs if (run.work, run.server) == (work, kind.name)}
        for kind in (comparison.ours, comparison.theirs)
    )
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]


def verdict(comparison: Comparison, found: Sequence[float], work: str) -> str:
    """The end of a row: the ratio, its spread, the target, and whether it was met."""
    target = comparison.targets.get(work)
    wanted = "-" if target is None else f"{target:.2f}"
    if not found:
        return f"{'-':>8}{'':14}{wanted:>8}"
    ratio = statistics.median(found)
    spread = f"({min(found):.2f}-{max(found):.2f})"
    met = "" if target is None else "  met" if ratio <= target else "  NOT MET"
    return f"{ratio:>8.2f}{spread:>14}{wanted:>8}{met}"


def table(comparison: Comparison, runs: Sequence[Run], kinds: Sequence[Kind], works: Sequence[Work]) -> str:
    """The figures as lines of text."""
    head = f"{'CPU us a message or delivery':31}" + "".join(f"{kind.label:>15}" for kind in kinds)
    lines = [head + f"{'ratio':>8}{'(least-most)':>14}{'target':>8}"]
    notes = []
    for work in works:
        line = f"{work.title:31}"
        for kind in kinds:
            mine = [run for run in runs if (run.work, run.server) == (work.name, kind.name)]
            busy = statistics.median(run.generator_share for run in mine)
            limited = busy >= GENERATOR_LIMIT
            line += f"{statistics.median(run.server_us for run in mine):>14.2f}{'*' if limited else ' '}"
            if limited:
                server_busy = statistics.median(run.server_share for run in mine)
                notes.append(
                    f"* the generator was the limit: {work.title}, {kind.label}"
                    f" (generator {busy:.0%} busy, server {server_busy:.0%})"
                )
        lines.append(line + verdict(comparison, ratios(comparison, runs, work.name), work.name))
    return "\n".join(lines + notes)


def report(
    comparison: Comparison, settings: Settings, runs: Sequence[Run], works: Sequence[Work]
) -> dict[str, object]:
    """Everything that was measured, for ``--json``."""
    summary = {}
    for work in works:
        found = ratios(comparison, runs, work.name)
        target = comparison.targets.get(work.name)
        medians = {
            name: statistics.median(
                run.server_us for run in runs if (run.work, run.server) == (work.name, name)
            )
            for name in dict.fromkeys(run.server for run in runs)
        }
        summary[work.name] = {
            "title": work.title,
            "unit": work.unit,
            "server_us": medians,
            "ratio": statistics.median(found) if found else None,
            "target": target,
            "met": statistics.median(found) <= target if found and target is not None else None,
        }
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "pinned": settings.server_core is not None,
        "summary": summary,
        "runs": [asdict(run) for run in runs],
    }


def add_arguments(parser: argparse.ArgumentParser, works: Sequence[str], rounds: int, seconds: float) -> None:
    """Add what all side-by-side runs take: the works, the rounds and their length, with their defaults."""
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(works), help="only these works")
    parser.add_argument("--runs", type=int, metavar="N", help=f"rounds (default {rounds}; with --quick 3)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"of each run (default {seconds}; with --quick 0.25)"
    )
    parser.add_argument("--quick", action="store_true", help="a first look, in less than a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.set_defaults(rounds_by_default=rounds, seconds_by_default=seconds)


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what `add_arguments` lets through and no run can do; fill in what was left out."""
    if options.runs is None:
        options.runs = 3 if options.quick else options.rounds_by_default
    if options.seconds is None:
        options.seconds = 0.25 if options.quick else options.seconds_by_default
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if not 0.01 <= options.seconds <= 600:
        parser.error("--seconds must be between 0.01 and 600")


def compare(comparison: Comparison, kinds: Sequence[Kind], options: argparse.Namespace) -> None:
    """
    Measure these servers and print the table.

    Raises:
        BenchmarkError: a server did not start or did not last, or an answer was wrong.
    """
    works = [WORKS[name] for name in options.work]
    server_core, generator_core = cores()
    with tempfile.TemporaryDirectory(prefix="tcpjson-bench-") as folder:
        settings = Settings(
            rounds=options.runs,
            seconds=options.seconds,
            warmup=0.1,
            loadgen=build_loadgen(Path(folder)),
            server_core=server_core,
            generator_core=generator_core,
        )
        runs = measure_all(settings, kinds, works)
    print(table(comparison, runs, kinds, works))
    if options.json:
        options.json.write_text(json.dumps(report(comparison, settings, runs, works), indent=1) + "\n")
