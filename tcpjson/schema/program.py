"""The program: what it is told, and what it prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from tcpjson.loading import load_router
from tcpjson.schema import asyncapi, json_schema


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tcpjson.schema",
        description="Prints a JSON Schema (draft 2020-12) of all messages of a server: the built-in ones, and"
        " those that handlers add.",
    )
    parser.add_argument("--asyncapi", action="store_true", help="print an AsyncAPI 3.0 document instead")
    parser.add_argument(
        "routers",
        nargs="*",
        metavar="MODULE:NAME",
        help="handlers, as twistd tcpjson --handlers takes them: game.moves:router",
    )
    return parser


def _document(options: argparse.Namespace) -> str:
    routers = []
    for where in options.routers:
        try:
            routers.append(load_router(where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return json.dumps((asyncapi if options.asyncapi else json_schema)(routers), indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the program; returns its exit status, 1 when it failed, which a line on standard error explains.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    options = _parser().parse_args(arguments)
    try:
        print(_document(options), flush=True)
    except (ValueError, TypeError) as error:
        print(f"tcpjson.schema: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        # Python would complain once more when it closes the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that goes, as `head` does, has seen enough.
        if not isinstance(error, BrokenPipeError):
            print(f"tcpjson.schema: {error.strerror}", file=sys.stderr)
        return 1
    return 0
