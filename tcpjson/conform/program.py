"""The program: what it is told, and what it prints."""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from tcpjson.conform import report
from tcpjson.conform.checks import Check
from tcpjson.conform.options import read
from tcpjson.conform.pace import Patience
from tcpjson.conform.played import vector_tokens
from tcpjson.conform.runner import Runner, all_checks
from tcpjson.conform.scene import Scene
from tcpjson.conform.target import Target
from tcpjson.conform.verdicts import Failed, Result, Skip, Transcript
from tcpjson.core.handshake import Credentials
from tcpjson.core.text import printable
from tcpjson.credentials import Token
from tcpjson.logins import credentials


def chosen(options: argparse.Namespace) -> list[Check]:
    """
    The checks that the options name.

    Raises:
        ValueError: there is none of a name.
    """
    checks = all_checks()
    unknown = set(options.only or ()) - {check.name for check in checks}
    if unknown:
        raise ValueError(f"--only {min(unknown)}: there is no such check; --list shows them")
    return [
        check
        for check in checks
        if (not options.section or check.section in options.section)
        and (not options.only or check.name in options.only)
        and (options.level != "classic" or check.level == "classic")
    ]


def about(scene: Scene, level: str) -> dict[str, Any]:
    """What is known of the server."""
    return {
        "where": scene.target.where,
        "server": scene.facts.server,
        "level": level,
        "strict": scene.strict,
        "tls": scene.target.tls,
    }


def _who(options: argparse.Namespace, target: Target) -> Credentials | None:
    found = credentials(options)
    if found is None and options.vector_tokens:
        found = Token(next(iter(vector_tokens())), allow_plain=options.allow_plain_auth)
    return found


def _listing(checks: list[Check]) -> None:
    for line in report.listing(checks):
        print(line)
    print()
    print("Some need a server that knows these tokens (--vector-tokens):")
    for token, name in vector_tokens().items():
        print(f"{name}  {token}")


def run(options: argparse.Namespace) -> int:
    """
    Do what the options say; returns the exit status.

    Raises:
        ValueError: one of them is wrong, or the server cannot be reached.
    """
    checks = chosen(options)
    if options.list:
        _listing(checks)
        return 0
    target = Target(options.where, options.ca, options.certificate)
    scene = Scene(
        target,
        Patience(options.timeout),
        Transcript(),
        credentials=_who(options, target),
        slow=options.slow,
        vector_tokens=options.vector_tokens,
        word=f"conform-{secrets.token_hex(4)}",
    )
    _reach(scene)

    text = report.Text(options.verbose)

    def tell(result: Result) -> None:
        lines = [] if options.json else text.lines(result)
        if lines:
            print("\n".join(lines), flush=True)

    def note(text: str) -> None:
        print(f"tcpjson.conform: {text}", file=sys.stderr, flush=True)

    runner = Runner(scene, options.level, tell, note)
    results = runner.run(checks)
    what = about(scene, runner.level)
    if options.json:
        print(json.dumps(report.document(results, what), indent=1))
        return report.status(results)
    server = printable(scene.facts.server, 60) or "a classic server"
    strict = ", strict" if scene.strict else ""
    print(f"{target.where} is {server}; level {runner.level}{strict}")
    print("\n".join(text.end(results)))
    return report.status(results)


def _reach(scene: Scene) -> None:
    """See that the server takes a connection. Raises `ValueError`."""
    scene.patience.begin()
    try:
        scene.dial()
    except (Failed, Skip) as error:
        raise ValueError(f"{scene.target.where}: {error}") from None
    finally:
        scene.clear()


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the program; returns its exit status.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    options = read(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Much of what is printed is the server's.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run(options)
    except ValueError as error:
        print(f"tcpjson.conform: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is left in the buffer has to go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
