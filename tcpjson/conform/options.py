"""What the command line says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcpjson import logins
from tcpjson.conform.checks import SECTIONS

# Seconds that nobody waits for an answer.
_TOO_LONG = 600.0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _TOO_LONG:
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, up to {_TOO_LONG:g}")
    return seconds


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tcpjson.conform",
        description="Plays the contract of docs/protocol.rst against a server, in whatever language it is"
        " written, and tells what it does otherwise.",
        epilog="Status: 0, nothing failed; 1, something did; 2, the command line is wrong, or the server"
        " cannot be reached. The server should have no other clients meanwhile.",
    )
    made.add_argument(
        "where",
        metavar="WHERE",
        nargs="?",
        default="localhost:9999",
        help="HOST, HOST:PORT, [::1]:9999, tls:HOST:PORT or unix:PATH [default: localhost:9999]",
    )
    made.add_argument(
        "--level",
        choices=("classic", "full"),
        help="sections 1 to 3, or all [default: all, if welcome has the field protocol]",
    )
    made.add_argument(
        "--section",
        action="append",
        choices=tuple(SECTIONS),
        metavar="N",
        help="only this section, 1 to 11; repeatable",
    )
    made.add_argument(
        "--only", action="append", metavar="NAME", help="only the check of this name; repeatable"
    )
    made.add_argument(
        "--slow", action="store_true", help="also wait for long deadlines, and send long messages"
    )
    made.add_argument("--list", action="store_true", help="print what there is to check, and end")
    made.add_argument("--verbose", action="store_true", help="print a line for each check")
    made.add_argument("--json", action="store_true", help="print a JSON object, and nothing else")
    made.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=5.0, help="for each answer [default: 5]"
    )
    logins.add_options(made)
    made.add_argument(
        "--certificate", metavar="FILE", help="show this certificate; its key is in the file, too"
    )
    made.add_argument(
        "--vector-tokens",
        action="store_true",
        help="the server knows the tokens of the vectors, which --list shows",
    )
    return made


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    Raises:
        SystemExit: with 2, it is wrong; with 0, help was asked for.
    """
    reader = parser()
    options = logins.read(reader, arguments)
    if options.json and options.verbose:
        reader.error("--json and --verbose: one of them")
    return options
