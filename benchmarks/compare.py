"""CPU time of the server a message: tcpjson beside its peers, under the same checked load.

How it is measured is said in ``benchmarks/runs.py``. The ratio is that of tcpjson to the expert's peer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.runs import WORKS, Comparison, add_arguments, check_arguments, compare
from benchmarks.servers import (
    KINDS,
    TCPJSON,
    UVLOOP,
    BenchmarkError,
    end_on_sigterm,
    raise_file_limit,
    usable,
)

TARGETS = {"echo100": 0.60, "echo10k": 0.70, "object": 0.90, "round": 1.40, "cast1": 1.15, "cast20": 0.13}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    add_arguments(parser, list(WORKS), 15, 0.5)
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=list(KINDS), help="only these servers")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="WORD",
        help="one more word for tcpjson's command, as --option=--strict",
    )
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    kinds = [kind.with_words(options.option) if kind is TCPJSON else kind for kind in usable(options.servers)]
    if not kinds:
        print("no server is left to measure", file=sys.stderr)
        return 1
    try:
        compare(Comparison(TCPJSON, UVLOOP, TARGETS), kinds, options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
