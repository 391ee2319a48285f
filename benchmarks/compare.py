"""CPU time of the server a message: tcpjson beside its peers, under the same checked load.

In each round every server is started afresh, and each work is done against one server after the other, so
that noise hits all alike. The load generator (``loadgen.c``) varies contents and ids and checks every answer;
a wrong or missing one ends the comparison with status 1. What is counted is the CPU time of the server's
process, user and system, between two moments at which nothing is in flight. The figure of a server is the
median over the rounds; the ratio is the median of the ratios within each round.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.servers import (
    KINDS,
    TCPJSON,
    UVLOOP,
    BenchmarkError,
    Kind,
    Server,
    build_loadgen,
    end_on_sigterm,
    raise_file_limit,
    started,
    stop,
    usable,
)

GENERATOR_LIMIT = 0.95  # a generator busier than this share of the time was what held the run up


@dataclass(frozen=True)
class Work:
    """One scenario: what the generator does, what is counted, and the ratio to be met."""

    name: str
    title: str
    arguments: tuple[str, ...]
    unit: str
    target: float


def echo(name: str, title: str, clients: int, window: int, payload: str, target: float) -> Work:
    shape = ("--clients", str(clients), "--window", str(window), "--payload", payload)
    return Work(name, title, ("echo", *shape), "messages", target)


def broadcast(name: str, title: str, receivers: int, window: int, target: float) -> Work:
    shape = ("--clients", str(receivers), "--window", str(window))
    return Work(name, title, ("broadcast", *shape), "deliveries", target)


WORKS = {
    work.name: work
    for work in (
        echo("echo100", "echo 100 B, 10 x 50", 10, 50, "text100", 0.60),
        echo("echo10k", "echo 10 kB, 10 x 10", 10, 10, "text10k", 0.70),
        echo("object", "echo object and id, 10 x 50", 10, 50, "object", 0.90),
        echo("round", "round trips, 100 x 1", 100, 1, "text100", 1.40),
        broadcast("cast1", "broadcast to 200, 1 at a time", 200, 1, 1.15),
        broadcast("cast20", "broadcast to 200, 20 in flight", 200, 20, 0.13),
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
    options: tuple[str, ...]


def measure(settings: Settings, number: int, work: Work, server: Server) -> Run:
    """Run the generator against a server and read the server's CPU time around the measured phase."""
    command = [
        str(settings.loadgen),
        *work.arguments,
        f"--port={server.port}",
        f"--seconds={settings.seconds}",
        f"--warmup={settings.warmup}",
    ]
    generator = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert generator.stdin and generator.stdout and generator.stderr
    try:
        if settings.generator_core is not None:
            os.sched_setaffinity(generator.pid, {settings.generator_core})
        # The generator ends by itself when nothing comes any more, so these lines do come.
        if generator.stdout.readline() != "READY\n":
            raise _failed(work, server, generator)
        before = server.cpu_ns()
        generator.stdin.write("go\n")
        generator.stdin.flush()
        line = generator.stdout.readline()
        spent = server.cpu_ns() - before
        if not line:
            raise _failed(work, server, generator)
        result = json.loads(line)
        generator.stdin.close()
        generator.wait()
    finally:
        stop(generator)
        generator.stdout.close()
        generator.stderr.close()
    count = result[work.unit]
    return Run(
        round=number,
        work=work.name,
        server=server.kind.name,
        count=count,
        seconds=result["seconds"],
        server_us=spent / 1e3 / count,
        server_share=spent / 1e9 / result["seconds"],
        generator_us=result["cpu_seconds"] * 1e6 / count,
        generator_share=result["cpu_seconds"] / result["seconds"],
    )


def _failed(work: Work, server: Server, generator: subprocess.Popen[str]) -> BenchmarkError:
    assert generator.stderr
    said = generator.stderr.read().strip() or f"the generator ended with status {generator.wait()}"
    return BenchmarkError(f"{server.kind.label}, {work.title}: {said}")


def measure_all(settings: Settings, kinds: Sequence[Kind], works: Sequence[Work]) -> list[Run]:
    """All rounds: each server afresh in each round, the servers by turns in each work."""
    runs = []
    for number in range(1, settings.rounds + 1):
        print(f"round {number} of {settings.rounds}", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(
                    started(kind, settings.server_core, settings.options if kind is TCPJSON else ())
                )
                for kind in kinds
            ]
            for work in works:
                # To and fro, so that none always comes after the same one.
                turns = servers if number % 2 else servers[::-1]
                runs.extend(measure(settings, number, work, server) for server in turns)
    return runs


def ratios(runs: Sequence[Run], work: str) -> list[float]:
    """The ratio of tcpjson to the expert's peer in each round."""
    ours, peers = (
        {run.round: run.server_us for run in runs if (run.work, run.server) == (work, kind.name)}
        for kind in (TCPJSON, UVLOOP)
    )
    return [ours[number] / peers[number] for number in sorted(ours.keys() & peers.keys())]


def table(runs: Sequence[Run], kinds: Sequence[Kind], works: Sequence[Work]) -> str:
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
        found = ratios(runs, work.name)
        if found:
            ratio = statistics.median(found)
            spread = f"({min(found):.2f}-{max(found):.2f})"
            verdict = "met" if ratio <= work.target else "NOT MET"
            line += f"{ratio:>8.2f}{spread:>14}{work.target:>8.2f}  {verdict}"
        else:
            line += f"{'-':>8}{'':14}{work.target:>8.2f}"
        lines.append(line)
    return "\n".join(lines + notes)


def report(settings: Settings, runs: Sequence[Run], works: Sequence[Work]) -> dict[str, object]:
    """Everything that was measured, for ``--json``."""
    summary = {}
    for work in works:
        found = ratios(runs, work.name)
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
            "target": work.target,
            "met": statistics.median(found) <= work.target if found else None,
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS), help="only these works")
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=list(KINDS), help="only these servers")
    parser.add_argument("--runs", type=int, metavar="N", help="rounds (default 15; with --quick 3)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of each run (default 0.5; with --quick 0.25)"
    )
    parser.add_argument("--quick", action="store_true", help="a first look, in less than a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="WORD",
        help="one more word for tcpjson's command, as --option=--strict",
    )
    options = parser.parse_args(arguments)
    if options.runs is not None and options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.seconds is not None and not 0.01 <= options.seconds <= 600:
        parser.error("--seconds must be between 0.01 and 600")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    kinds = usable(options.servers)
    works = [WORKS[name] for name in options.work]
    cores = sorted(os.sched_getaffinity(0))
    if not kinds:
        print("no server is left to measure", file=sys.stderr)
        return 1
    if len(cores) < 2:
        print("only one core: server and generator share it, and the figures are worth little")
    with tempfile.TemporaryDirectory(prefix="tcpjson-bench-") as folder:
        try:
            settings = Settings(
                rounds=options.runs or (3 if options.quick else 15),
                seconds=options.seconds or (0.25 if options.quick else 0.5),
                warmup=0.1,
                loadgen=build_loadgen(Path(folder)),
                server_core=cores[-1] if len(cores) > 1 else None,
                generator_core=cores[0] if len(cores) > 1 else None,
                options=tuple(options.option),
            )
            runs = measure_all(settings, kinds, works)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    print(table(runs, kinds, works))
    if options.json:
        options.json.write_text(json.dumps(report(settings, runs, works), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
