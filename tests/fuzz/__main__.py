"""
Fuzzing: mutated frames to real servers over TCP and TLS, then many more through the core. What each frame
leads to is compared with a second reading of docs/protocol.rst; nothing may grow, and nothing may fail.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from tests.fuzz.core import run_core
from tests.fuzz.result import Result, report
from tests.fuzz.sockets import ARENAS, Arena, run_arena


def _whole(least: int, most: int = 10**12) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text.replace(",", ""))
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return number

    parse.__name__ = "whole number"
    return parse


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < 10**6:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=" ".join((__doc__ or "").split())
    )
    parser.add_argument(
        "--frames", type=_whole(0), default=1_000_000, help="frames through sockets [default: 1,000,000]"
    )
    parser.add_argument(
        "--core", type=_whole(0), default=10_000_000, help="frames through the core [default: 10,000,000]"
    )
    parser.add_argument("--seed", help="decides all that is sent [default: any]")
    parser.add_argument(
        "--tls",
        type=_whole(0, 100),
        default=25,
        metavar="PERCENT",
        help="of the frames through sockets, those over TLS [default: 25]",
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=30.0, help="end after this time at the latest [default: 30]"
    )
    parser.add_argument(
        "--jobs", type=_whole(1, 64), default=os.cpu_count() or 1, help="processes [default: one a processor]"
    )
    return parser.parse_args(arguments)


def shares(tls: int) -> list[tuple[Arena, float]]:
    """The arenas, each with its part of the frames, when so many percent are to go over TLS."""
    whole = {kind: sum(arena.share for arena in ARENAS if arena.tls is kind) for kind in (False, True)}
    parts = {False: (100 - tls) / 100, True: tls / 100}
    return [
        (arena, parts[arena.tls] * arena.share / whole[arena.tls]) for arena in ARENAS if parts[arena.tls]
    ]


def _gather(futures: list[Future[Any]], names: Sequence[str]) -> list[Result]:
    """The results by their names, those of all processes together."""
    found = {name: Result(name) for name in names}
    for future in futures:
        came = future.result()
        for result in came if isinstance(came, list) else [came]:
            found[result.name].add(result)
            told = f"{result.name}: {result.frames:,} frames, {len(result.findings)} findings"
            print(told, file=sys.stderr, flush=True)
    return list(found.values())


def run(options: argparse.Namespace, seed: str) -> list[Result]:
    """Do it all."""
    jobs = options.jobs
    seconds = options.minutes * 60
    results: list[Result] = []
    # A fresh interpreter each: a server's output is read by a thread, with which one does not fork.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        if options.frames:
            part = seconds / 2 if options.core else seconds
            futures: list[Future[Any]] = [
                pool.submit(
                    run_arena, arena, seed, job, max(1, round(options.frames * share / jobs)), part * share
                )
                for arena, share in shares(options.tls)
                for job in range(jobs)
            ]
            results += _gather(futures, [arena.name for arena, _ in shares(options.tls)])
        if options.core:
            part = seconds / 2 if options.frames else seconds
            futures = [
                pool.submit(run_core, f"{seed}:{job}", max(1, options.core // jobs), part)
                for job in range(jobs)
            ]
            results += _gather(futures, ["core", "server in memory"])
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the status is 0 when nothing was found."""
    options = parse(arguments)
    seed = options.seed or str(secrets.randbelow(10**9))
    print(f"seed {seed}", flush=True)
    try:
        results = run(options, seed)
    except KeyboardInterrupt:
        return 130
    print(report(results))
    return 1 if any(result.findings for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
