"""CPU time of the server for a connection that is refused, beside one that is accepted.

Two servers, started afresh in each round: one with no limit but that of its files, and one with
``--max-connections 1`` whose one place is taken, which answers with the error ``server_full``. Clients
connect, read the whole answer, and close: one at a time, and many at once. Each answer is checked, a refused
connection also for the end that must follow the error; a wrong one ends the benchmark with status 1. What is
counted is the CPU time of the server's process, user and system, from idle to idle.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.clients import Access, Client
from benchmarks.servers import (
    TCPJSON,
    BenchmarkError,
    Server,
    cores,
    end_on_sigterm,
    raise_file_limit,
    started,
    usable,
)

TARGET = 1.0
AT_ONCE = (1, 50)
SLICES = 10  # of a round, even: each server is measured as often first as last
IDLE_SECONDS = 0.03  # so long without any CPU time is idle
IDLE_TIMEOUT = 30.0

Check = Callable[[Client], object]


def is_accepted(client: Client) -> None:
    client.expect("welcome")


def is_refused(client: Client) -> None:
    client.expect("error", code="server_full", fatal=True)
    client.expect_end()


@dataclass
class Side:
    """One server, what its clients must get, and the microseconds of CPU a connection, one for each round."""

    label: str
    words: tuple[str, ...]
    check: Check
    found: list[float]


def wait_idle(server: Server) -> None:
    """Wait until the server spends no CPU time any more: it has seen all ends."""
    deadline = time.monotonic() + IDLE_TIMEOUT
    before = server.cpu_ns()
    while True:
        time.sleep(IDLE_SECONDS)
        now = server.cpu_ns()
        if now == before:
            return
        if time.monotonic() > deadline:
            raise BenchmarkError("the server does not become idle")
        before = now


def come_and_go(server: Server, check: Check, count: int, at_once: int, source: str) -> None:
    """Open so many connections, so many at a time; each reads its answer and closes."""
    done = 0
    while done < count:
        with contextlib.ExitStack() as stack:
            batch = min(at_once, count - done)
            clients = [stack.enter_context(Client(server.port, source)) for _ in range(batch)]
            for client in clients:
                check(client)
        done += batch


def spend(server: Server, check: Check, count: int, at_once: int, source: str) -> int:
    """The nanoseconds of CPU that the server spends on so many connections."""
    wait_idle(server)
    before = server.cpu_ns()
    come_and_go(server, check, count, at_once, source)
    wait_idle(server)
    return server.cpu_ns() - before


def run_round(sides: Sequence[Side], count: int, at_once: int, source: str, core: int | None) -> None:
    """Start the servers, take the one place of the second, and measure both in slices to and fro."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(started(TCPJSON.with_words(side.words), core)) for side in sides]
        for server in servers:
            stack.enter_context(Access(server.port).enter(source))
        pairs = list(zip(sides, servers, strict=True))
        for side, server in pairs:
            come_and_go(server, side.check, count // SLICES, at_once, source)
        spent = dict.fromkeys([side.label for side in sides], 0)
        for turn in range(SLICES):
            for side, server in pairs[:: -1 if turn % 2 else 1]:
                spent[side.label] += spend(server, side.check, count // SLICES, at_once, source)
        for side in sides:
            side.found.append(spent[side.label] / 1e3 / count)


def measure(options: argparse.Namespace, at_once: int, core: int | None) -> str:
    """All rounds with so many connections at once; returns a row of the table."""
    accepted = Side("accepted", tuple(options.option), is_accepted, [])
    refused = Side("refused", (*options.option, "--max-connections=1"), is_refused, [])
    for number in range(1, options.runs + 1):
        print(f"round {number} of {options.runs}, {at_once} at a time", file=sys.stderr, flush=True)
        try:
            # An address for each round: the ports of one would run out.
            run_round((accepted, refused), options.connections, at_once, f"127.0.0.{number}", core)
        except OSError as error:
            raise BenchmarkError(f"round {number}: {error}") from None
    ratios = [r / a for r, a in zip(refused.found, accepted.found, strict=True)]
    ratio = statistics.median(ratios)
    spread = f"({min(ratios):.2f}-{max(ratios):.2f})"
    return (
        f"{f'{at_once} at a time':20}{statistics.median(accepted.found):12.1f}"
        f"{statistics.median(refused.found):12.1f}{ratio:8.2f}{spread:>14}{TARGET:8.2f}"
        f"  {'met' if ratio <= TARGET else 'NOT MET'}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.refusals", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument(
        "--connections", type=int, default=2000, metavar="N", help="of each kind in each round"
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="rounds")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="WORD",
        help="one more word for both servers' commands, as --option=--strict",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.runs <= 250:
        parser.error("--runs must be between 1 and 250")
    if not SLICES <= options.connections <= 10_000 or options.connections % SLICES:
        parser.error(f"--connections must be a multiple of {SLICES}, at most 10000")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    if not usable([TCPJSON.name]):
        return 1
    server_core, client_core = cores()
    if client_core is not None:
        os.sched_setaffinity(0, {client_core})
    try:
        rows = [measure(options, at_once, server_core) for at_once in AT_ONCE]
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    head = f"{'CPU us a connection':20}{'accepted':>12}{'refused':>12}"
    print(head + f"{'ratio':>8}{'(least-most)':>14}{'target':>8}")
    print("\n".join(rows))
    print(
        "from connecting to the end, medians of the rounds; the ratio is that of a refused connection to an\n"
        "accepted one, the median of the rounds, least and most in brackets"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
