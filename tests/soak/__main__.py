"""`python -m tests.soak`: how a server is after hours of clients that come and go in all ways."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.soak.guests import Plan
from tests.soak.run import Bounds, ends_table, soak, verdict

# Lines that explain one line of the verdict.
_EXPLAINED = 12

#: What a run of minutes may leave behind; docs/reliability.rst says why it is so much.
BOUNDS = Bounds(heap=128, blocks=1500, resident=6144, slope=256)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number greater than 0 and less than 1000000")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition(": ")[2])
    parser.add_argument("--minutes", type=_positive, default=5, metavar="N", help="of load [default: 5]")
    parser.add_argument(
        "--warm", type=_positive, default=1.5, metavar="N", help="minutes before [default: 1.5]"
    )
    parser.add_argument(
        "--rate", type=_positive, default=20, metavar="N", help="visits a second [default: 20]"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the dice [default: any]")
    options = parser.parse_args(arguments)
    if not Path("/proc/self/status").exists():
        print("needs /proc", file=sys.stderr)
        return 2
    seed = random.randrange(10**6) if options.seed is None else options.seed
    plan = Plan(60 * options.minutes, 60 * options.warm, rate=options.rate, seed=seed)
    say = partial(print, flush=True)
    say(f"{options.warm:g} minutes to warm up, {options.minutes:g} of load; --seed {seed}")
    say(f"twistd tcpjson {' '.join(plan.options)}")
    # The server must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        outcome = soak(plan, say)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say()
    for line in ends_table(outcome):
        say(line)
    kept = [sample.inside["kept"] >> 10 for sample in (outcome.before, outcome.after)]
    say(f"\nfree, and kept by the C library: {kept[0]} KiB before, {kept[1]} KiB after")
    say(f"the most memory that was ever resident: {outcome.after.peak / 1024:.1f} MiB")
    fits = True
    for check in verdict(outcome, BOUNDS):
        fits &= check.fits
        say(f"{'ok  ' if check.fits else 'NOT '} {check.text}")
        for line in check.more[:_EXPLAINED] if not check.fits else ():
            say(f"       {line}")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
