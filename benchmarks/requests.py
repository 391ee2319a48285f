"""CPU time of the client a request: ``tcpjson.client.Client`` beside clients written by hand.

A request is an echo of 100 bytes with a timeout, whose reply is matched by ``id`` and compared. The server is
a ``twistd`` of its own on another core. In each round all clients are started afresh, and each works in short
slices after the other, to and fro, so that noise hits all alike. The figure of a client is the median over
the rounds; the ratio is the median of the ratios within each round, ours to the other.
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.runs import SLICES
from benchmarks.servers import (
    STOP_SECONDS,
    TCPJSON,
    BenchmarkError,
    Kind,
    cores,
    end_on_sigterm,
    environment,
    started,
    stop,
    usable,
)

#: Microseconds of CPU a pipelined request may cost our client.
TARGET = 8.0
#: A server busier than this share of the time was what held the run up.
SERVER_LIMIT = 0.95


def _kind(name: str, label: str, *needs: str) -> Kind:
    return Kind(name, label, ("-m", f"benchmarks.requesters.{name}"), needs)


OURS = _kind("tcpjson_client", "tcpjson", "twisted", "msgspec", "tcpjson")
CLIENTS = {
    kind.name: kind
    for kind in (
        OURS,
        _kind("streams_json", "streams+json"),
        _kind("uvloop_orjson", "uvloop+orjson", "uvloop", "orjson"),
    )
}


@dataclass(frozen=True)
class Work:
    """So many requests in flight, and the microseconds that one may take."""

    title: str
    window: int
    target: float | None


@dataclass(frozen=True)
class Run:
    """What a client did in one round."""

    round: int
    work: str
    client: str
    requests: int
    seconds: float
    client_us: float
    client_share: float
    server_share: float


class Client:
    """A running client; a context manager that ends it."""

    def __init__(self, kind: Kind, port: int, core: int | None) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [sys.executable, *kind.command, str(port)],
            cwd=kind.root,
            env=environment(kind.root),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    def __enter__(self) -> Client:
        if self._line() != "ready\n":
            raise BenchmarkError(f"{self.kind.label} does not begin")
        return self

    def __exit__(self, *exc: object) -> None:
        for stream in (self._input, self._output):
            # What a client that has died no longer takes is lost.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        # The end of its input ends it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        stop(self._process)

    @property
    def _input(self) -> IO[str]:
        assert self._process.stdin
        return self._process.stdin

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout
        return self._process.stdout

    def _line(self) -> str:
        line = self._output.readline()
        if not line:
            # What it had to say is on standard error, which it shares with us.
            raise BenchmarkError(f"{self.kind.label} ended with status {self._process.wait()}")
        return line

    def work(self, window: int, seconds: float) -> dict[str, float]:
        """Have it send requests for so many seconds; returns what it counted."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(f"{window} {seconds}\n")
            self._input.flush()
        figures: dict[str, float] = json.loads(self._line())
        return figures


def measure(number: int, kinds: Sequence[Kind], works: Sequence[Work], seconds: float) -> list[Run]:
    """One round."""
    runs = []
    server_core, client_core = cores()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(started(TCPJSON, server_core))
        clients = []
        for kind in kinds:
            client = Client(kind, server.port, client_core)
            stack.push(client)
            clients.append(client.__enter__())
        for work in works:
            totals: dict[str, list[dict[str, float]]] = {kind.name: [] for kind in kinds}
            for turn in range(-1, SLICES):
                for client in clients[:: -1 if turn % 2 else 1]:
                    before = server.cpu_ns()
                    figures = client.work(work.window, seconds / SLICES)
                    figures["server_seconds"] = (server.cpu_ns() - before) / 1e9
                    # The first one warms up.
                    if turn >= 0:
                        totals[client.kind.name].append(figures)
            for name, parts in totals.items():
                total = {key: sum(part[key] for part in parts) for key in parts[0]}
                runs.append(
                    Run(
                        round=number,
                        work=work.title,
                        client=name,
                        requests=int(total["requests"]),
                        seconds=total["seconds"],
                        client_us=total["cpu_seconds"] * 1e6 / total["requests"],
                        client_share=total["cpu_seconds"] / total["seconds"],
                        server_share=total["server_seconds"] / total["seconds"],
                    )
                )
    return runs


def times(runs: Sequence[Run], work: Work, kind: Kind) -> list[float]:
    """Microseconds of CPU a request, for each round."""
    return [run.client_us for run in runs if (run.work, run.client) == (work.title, kind.name)]


def table(runs: Sequence[Run], kinds: Sequence[Kind], works: Sequence[Work]) -> str:
    """The figures as lines of text."""
    lines = [
        f"{'CPU us a request':22}{'client':15}{'median':>8}{'(least-most)':>16}  ours to it (least-most)"
    ]
    for work in works:
        for kind in kinds:
            found = times(runs, work, kind)
            line = f"{work.title:22}{kind.label:15}{statistics.median(found):8.2f}"
            line += f"{f'({min(found):.2f}-{max(found):.2f})':>16}"
            if kind is OURS:
                if work.target is not None:
                    met = "met" if statistics.median(found) <= work.target else "NOT MET"
                    line += f"  target {work.target:g}: {met}"
            elif OURS in kinds:
                ratios = [ours / other for ours, other in zip(times(runs, work, OURS), found, strict=True)]
                line += f"  {statistics.median(ratios):10.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(line)
            busy = statistics.median(
                run.server_share for run in runs if (run.work, run.client) == (work.title, kind.name)
            )
            if busy >= SERVER_LIMIT:
                lines.append(f"  the server was the limit: {busy:.0%} busy")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.requests", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="only these")
    parser.add_argument("--window", type=int, default=64, metavar="N", help="requests in flight (default 64)")
    parser.add_argument("--runs", type=int, metavar="N", help="rounds (default 9; with --quick 3)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of each client in a round (default 1; with --quick 0.25)"
    )
    parser.add_argument("--quick", action="store_true", help="a first look, in less than half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    if options.runs is None:
        options.runs = 3 if options.quick else 9
    if options.seconds is None:
        options.seconds = 0.25 if options.quick else 1.0
    if not 1 <= options.runs <= 1000:
        parser.error("--runs must be between 1 and 1000")
    # A client stands still while the others work, and must not be silent for too long.
    if not 0.01 <= options.seconds <= 30:
        parser.error("--seconds must be between 0.01 and 30")
    if not 2 <= options.window <= 10_000:
        parser.error("--window must be between 2 and 10000")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    if not usable([TCPJSON.name]):
        return 1
    kinds = []
    for kind in (CLIENTS[name] for name in options.clients):
        if missing := kind.missing():
            print(f"{kind.label} is left out: install {' '.join(missing)}", flush=True)
        else:
            kinds.append(kind)
    works = [Work(f"{options.window} in flight", options.window, TARGET), Work("one at a time", 1, None)]
    runs = []
    try:
        for number in range(1, options.runs + 1):
            print(f"round {number} of {options.runs}", file=sys.stderr, flush=True)
            runs += measure(number, kinds, works, options.seconds)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(table(runs, kinds, works))
    if options.json:
        found = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rounds": options.runs,
            "seconds": options.seconds,
            "runs": [asdict(run) for run in runs],
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
