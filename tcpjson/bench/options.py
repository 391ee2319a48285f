"""What the command line says."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from tcpjson.bench.scenarios import MOST_CLIENTS, SCENARIOS

#: Bounds of a scenario's length in seconds.
SHORTEST, LONGEST = 0.05, 600.0
_FASTEST = 1_000_000.0
_PROCESSES = 64


def _between(least: float, most: float, what: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be {what} from {least:g} to {most:,.0f}")
        return number

    return read


def _whole(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most:,}")
        return int(text)

    return read


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tcpjson.bench",
        description="Measures how fast a server is, and checks every reply: of one that runs, or of one that"
        " it starts here and ends again. The figures are of the server and the machine together.",
        epilog="Status: 0; 1, a reply was wrong, or the server failed on the way; 2, the command line is"
        " wrong, or the server cannot be measured; 130, interrupted.",
    )
    made.add_argument(
        "where",
        metavar="HOST:PORT",
        nargs="?",
        help="a server that runs; one with a name should be yours, for it gets all the load that there can be"
        " [default: one of our own]",
    )
    made.add_argument(
        "--scenario",
        metavar="NAME",
        action="append",
        choices=("all", *SCENARIOS),
        help="what to measure, or all; repeatable; --list shows them [default: what takes about a minute]",
    )
    made.add_argument("--list", action="store_true", help="print the scenarios, and end")
    made.add_argument(
        "--duration",
        metavar="SECONDS",
        type=_between(SHORTEST, LONGEST, "seconds"),
        default=5.0,
        help="for each scenario [default: 5]",
    )
    made.add_argument(
        "--clients", metavar="N", type=_whole(MOST_CLIENTS), help="in each scenario but scaling"
    )
    made.add_argument(
        "--rate",
        metavar="N",
        type=_between(1, _FASTEST, "requests a second"),
        help="asked in the scenario latency [default: 5000]",
    )
    made.add_argument(
        "--processes",
        metavar="N",
        type=_whole(_PROCESSES),
        help="that generate the load [default: one less than there are processors]",
    )
    made.add_argument("--tls", action="store_true", help="all scenarios over TLS")
    made.add_argument(
        "--ca", metavar="FILE", help="speak TLS, with servers that an authority in it vouches for"
    )
    made.add_argument(
        "--peers", action="store_true", help="the same with what else one could use, in turns, and the ratios"
    )
    made.add_argument("--json", metavar="FILE", help="write all figures there; -: print nothing else")
    made.add_argument("--html", metavar="FILE", help="write a page with charts there")
    return made


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    Raises:
        SystemExit: with 2, it is wrong; with 0, help was asked for.
    """
    reader = parser()
    options = reader.parse_args(arguments)
    if options.peers and options.where is not None:
        reader.error("--peers: beside a server of our own; leave out HOST:PORT")
    if options.ca is not None and options.where is None:
        reader.error("--ca: of which server? Give HOST:PORT, too")
    if options.peers and options.tls:
        reader.error("--peers and --tls: one of them; the others speak no TLS")
    options.tls = options.tls or options.ca is not None
    return options


def chosen(names: Sequence[str] | None) -> list[str]:
    """The scenarios that are meant, each once, in their order."""
    if not names:
        return [name for name, scenario in SCENARIOS.items() if scenario.default]
    return [name for name in SCENARIOS if "all" in names or name in names]
