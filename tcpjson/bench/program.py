"""The program: what it is told, what it does in which order, and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from tcpjson._version import __version__
from tcpjson.bench import latency, table
from tcpjson.bench.certificate import Certificate, make_certificate
from tcpjson.bench.comparing import ROUNDS
from tcpjson.bench.contenders import Contender, ours, peers, running
from tcpjson.bench.machine import machine, processors
from tcpjson.bench.measuring import Measuring
from tcpjson.bench.options import chosen, read
from tcpjson.bench.peers import PeerError, absent
from tcpjson.bench.progress import Progress
from tcpjson.bench.results import Run, Skipped
from tcpjson.bench.scenarios import SCENARIOS, Step
from tcpjson.bench.servers import ServerFailed
from tcpjson.bench.target import Target, Unfit, addresses, reach
from tcpjson.bench.workers import GeneratorFailed

_FAILURES = (GeneratorFailed, ServerFailed, PeerError)


def _complain(text: str) -> None:
    print(f"tcpjson.bench: {text}", file=sys.stderr, flush=True)


def _listing() -> None:
    rows = [
        [name, "" if scenario.default else "(only when named)", scenario.about]
        for name, scenario in SCENARIOS.items()
    ]
    print("\n".join(table.columns(rows, (0, 1, 2))))


def check_output(path: str | None) -> None:
    """
    See that a file can be written before a minute's work is done for it.

    Raises:
        Unfit: it cannot.
    """
    if path is None or path == "-":
        return
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise Unfit(f"{path}: it cannot be written")


def steps(options: argparse.Namespace) -> list[list[Step]]:
    """Those of each scenario that is meant."""
    return [SCENARIOS[name].steps(options.clients, options.rate) for name in chosen(options.scenario)]


def _target(options: argparse.Namespace) -> Target:
    """The server that runs. Raises `Unfit`."""
    target = reach(addresses(options.where, options.tls, options.ca), options.where)
    rates = [
        f"{rate:,.0f} {unit}"
        for rate, unit in ((target.messages_per_second, "messages"), (target.bytes_per_second, "bytes"))
        if rate is not None
    ]
    if rates:
        _complain(f"the server takes {' and '.join(rates)} a second from a client: that will limit the run")
    return target


def run(options: argparse.Namespace) -> int:
    """
    Do what the options say; returns the exit status.

    Raises:
        Unfit: the server cannot be measured.
    """
    if options.list:
        _listing()
        return 0
    for path in (options.json, options.html):
        check_output(path)
    plan = steps(options)
    if any(step.rate is not None for each in plan for step in each) and not latency.available():
        raise Unfit(latency.MISSING)
    found = Run(
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        where=options.where or "",
        machine=machine(),
        command=["python", "-m", "tcpjson.bench", *options.words],
    )
    with contextlib.ExitStack() as stack:
        contenders = _contenders(options, found, stack)
        count = options.processes or max(processors() - 1, 1)
        total = options.duration * len(plan) * len(contenders)
        progress = Progress(sys.stderr, total, sys.stderr.isatty())
        measuring = Measuring(
            found,
            contenders,
            seconds=options.duration,
            rounds=ROUNDS if options.peers else 1,
            processes=count,
            progress=progress,
        )
        why = ""
        try:
            for each in plan:
                measuring.scenario(each)
        except _FAILURES as error:
            why = str(error)
        except Unfit as error:
            # Before anything was measured, there is nothing to be shown.
            if not found.results:
                raise
            why = str(error)
        except KeyboardInterrupt:
            why = "interrupted"
        finally:
            progress.end()
    status = 130 if why == "interrupted" else 1 if why or any(each.wrong for each in found.results) else 0
    return _tell(options, found, why) or status


def _contenders(options: argparse.Namespace, found: Run, stack: contextlib.ExitStack) -> list[Contender]:
    """Who is measured. Raises `Unfit`."""
    if options.where is not None:
        target = _target(options)
        found.server = target.server
        return [running(target)]

    @functools.cache
    def certificate() -> Certificate:
        return make_certificate(
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcpjson-bench-")))
        )

    made = [ours(certificate, options.tls)]
    if options.peers:
        made += peers()
        found.skipped += [Skipped("all", label, f"it lacks: {why}") for label, why in absent().items()]
    return made


def _tell(options: argparse.Namespace, found: Run, why: str) -> int:
    """Write and print what was found; returns 1 where that fails."""
    if why:
        _complain(why)
    if not found.results and not found.skipped:
        return 0
    try:
        if options.json not in (None, "-"):
            Path(options.json).write_bytes(_json(found))
        if options.html is not None:
            from tcpjson.bench.html import page

            Path(options.html).write_text(page(found), encoding="utf-8")
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}")
        return 1
    if options.json == "-":
        print(_json(found).decode(), end="")
    else:
        print("\n".join(table.lines(found)))
    return 0


def _json(found: Run) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that everything that was started is ended."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the program; returns its exit status.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = read(words)
    options.words = words
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Some of what is printed is the server's.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with ending():
            return run(options)
    except Unfit as error:
        _complain(str(error))
        return 2
    except _FAILURES as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is left in the buffer has to go somewhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
