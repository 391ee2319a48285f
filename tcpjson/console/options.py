"""What the command line says."""

from __future__ import annotations

import argparse
import math

from tcpjson import logins


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("must be a number of seconds greater than 0")
    return seconds


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tcpjson.console",
        description="Talks to a tcpjson server: commands begin with a slash (/help shows them); other text"
        " goes to the server as it is. Without a terminal it reads commands from the standard input, and"
        " prints an answer a line.",
        epilog="Status: 0; 1 when something failed; 2 for a wrong command line; 130 when interrupted"
        " (on a terminal 0: Ctrl-C is one of the ways to leave).",
    )
    made.add_argument(
        "where",
        metavar="WHERE",
        nargs="?",
        default="localhost",
        help="HOST, HOST:PORT, or a client endpoint such as tls:HOST:PORT or unix:PATH"
        " [default: localhost:9999]",
    )
    logins.add_options(made)
    made.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=10.0, help="for each answer [default: 10]"
    )
    made.add_argument("--trace", metavar="FILE", help="write each frame to a file, as a line of JSON")
    made.add_argument(
        "--json", action="store_true", help="print a JSON object a line; on a terminal, show messages as JSON"
    )
    made.add_argument(
        "--listen",
        action="store_true",
        help="without a terminal: print what others send, too, and go on when the input has ended",
    )
    return made


def read(arguments: list[str] | None) -> argparse.Namespace:
    """
    Read the command line.

    Raises:
        SystemExit: with 2, it is wrong; with 0, help was asked for.
    """
    return logins.read(parser(), arguments)
