"""The program: which console it is to be, its reactor, its signals, and its status."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.stdio import StandardIO

from tcpjson.client import Client
from tcpjson.console.history import History, history_path
from tcpjson.console.link import maker
from tcpjson.console.options import read
from tcpjson.console.piped import Piped
from tcpjson.console.plain import Plain
from tcpjson.console.rendering import MAX_LINE, Line, escape
from tcpjson.console.stdio import LineIO, write_all
from tcpjson.core.limits import LARGEST_FRAME
from tcpjson.logins import credentials
from tcpjson.trace import Trace

_MISSING = "for editing, history and completion: pip install 'tcpjson[console]'"
# A payload of any length, and what goes with it.
_MAX_QUEUE = 2 * LARGEST_FRAME


def _tell(text: str) -> None:
    """A line on standard error."""
    write_all(2, f"tcpjson.console: {escape(text)}\n".encode(errors="backslashreplace"))


def _maker(
    reactor: Any, options: Namespace, who: Any, tell: Callable[[str], object], **fixed: Any
) -> Callable[..., Client]:
    """What makes clients, each of its place; `tell` is given lines about them."""
    make = partial(Client, reactor, timeout=options.timeout, max_queue=_MAX_QUEUE, **fixed)
    return maker(make, options.where, options.ca, who, tell)


def _on_interrupt(reactor: Any, function: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, lambda *_: reactor.callFromThread(function))


def _run(reactor: Any, begin: Callable[[], Deferred[int]], stop: Callable[[int], object]) -> int:
    """
    Run the reactor until what was begun has a status, or a signal ends it.

    Args:
        reactor: the reactor.
        begin: called when it runs.
        stop: called with a status at SIGTERM and SIGHUP; what was begun then has it soon.
    """
    ended: list[int] = []

    def begun() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: reactor.callFromThread(stop, 128 + number))
        try:
            begin().addCallbacks(end, failed)
        except ValueError as error:
            end_at_place(error)

    def failed(failure: Any) -> None:
        if failure.check(ValueError):
            end_at_place(failure.value)
        else:
            failure.printTraceback()
            end(1)

    def end_at_place(error: ValueError) -> None:
        # There is no such place: the command line is wrong.
        _tell(str(error))
        end(2)

    def end(status: int) -> None:
        ended.append(status)
        reactor.stop()

    # Not when it starts: the loop of asyncio does not run by then.
    reactor.callLater(0, begun)
    reactor.run()
    return ended[0] if ended else 1


def _piped(options: Namespace, trace: Trace | None, who: Any) -> int:
    from twisted.internet import reactor

    clock: Any = reactor
    # Nobody scrolls through the rest on a terminal.
    limit = MAX_LINE if os.isatty(1) else None
    lines: list[LineIO] = []
    piped = Piped(
        clock,
        _maker(clock, options, who, _tell, retries=0, trace=trace),
        options.where,
        write=lambda line: lines[0].write(line),
        complain=_tell,
        timeout=options.timeout,
        as_json=options.json,
        listen=options.listen,
        limit=limit,
        room=lambda: lines[0].room(),
    )
    lines.append(LineIO(piped))

    def connected(is_connected: bool) -> None:
        if is_connected:
            StandardIO(lines[0], reactor=clock)
            # Nobody reads what we print: as `head` leaves when it has enough.
            lines[0].broken.addCallback(lambda result: piped.stop(1))

    def done(status: int) -> Deferred[int]:
        return lines[0].close().addCallback(lambda result: status)

    def begin() -> Deferred[int]:
        _on_interrupt(clock, lambda: piped.stop(128 + signal.SIGINT))
        piped.start().addCallback(connected)
        return piped.done.addCallback(done)

    return _run(clock, begin, piped.stop)


def _plain(options: Namespace, trace: Trace | None, who: Any, notices: list[Line]) -> int:
    from twisted.internet import reactor

    clock: Any = reactor
    make = _maker(clock, options, who, lambda text: plain.tell(text), trace=trace)
    plain = Plain(clock, make, options.where, notices, options.json)

    def begin() -> Deferred[int]:
        _on_interrupt(clock, plain.interrupt)
        StandardIO(plain.io, reactor=clock)
        plain.start()
        return plain.done.addCallback(lambda status: plain.io.close().addCallback(lambda result: status))

    return _run(clock, begin, plain.stop)


def _terminal(options: Namespace, trace: Trace | None, who: Any, environment: Mapping[str, str]) -> int:
    import asyncio

    from twisted.internet import asyncioreactor

    from tcpjson.console.terminal import Terminal

    asyncioreactor.install(asyncio.new_event_loop())
    from twisted.internet import reactor

    clock: Any = reactor
    statuses = [0]

    def begin() -> Deferred[int]:
        terminal = Terminal(
            clock,
            _maker(clock, options, who, lambda text: terminal.tell(text), trace=trace),
            options.where,
            History(history_path(environment)),
            as_json=options.json,
            colour=not environment.get("NO_COLOR"),
        )
        terminals.append(terminal)
        _on_interrupt(clock, terminal.interrupt)
        running = Deferred.fromFuture(asyncio.ensure_future(terminal.run()))
        return running.addCallback(lambda result: statuses[-1])

    def stop(status: int) -> None:
        statuses.append(status)
        terminals[0].stop()

    terminals: list[Terminal] = []
    return _run(clock, begin, stop)


def choose(environment: Mapping[str, str], is_terminal: bool) -> str:
    """Which console it is to be."""
    if not is_terminal:
        return "piped"
    if environment.get("TERM", "dumb") == "dumb":
        return "plain"
    return "missing" if importlib.util.find_spec("prompt_toolkit") is None else "terminal"


def main(arguments: list[str] | None = None) -> int:
    """
    Run the program; returns its exit status.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    options = read(arguments)
    try:
        is_terminal = os.isatty(0) and os.isatty(1)
        os.fstat(0), os.fstat(1)
    except OSError as error:
        _tell(f"the standard input and output: {error.strerror}")
        return 1
    blocking = [(descriptor, os.get_blocking(descriptor)) for descriptor in (0, 1)]
    try:
        who = credentials(options)
        trace = None if options.trace is None else Trace.open(options.trace)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        _tell(f"{options.trace}: {error.strerror}")
        return 1
    except ValueError as error:
        _tell(str(error))
        return 1
    try:
        kind = choose(os.environ, is_terminal)
        if kind == "piped":
            return _piped(options, trace, who)
        if kind == "terminal":
            return _terminal(options, trace, who, os.environ)
        notices = [Line("notice", _MISSING)] if kind == "missing" else []
        return _plain(options, trace, who, notices)
    finally:
        # They may be those of a terminal that others go on using.
        for descriptor, was in blocking:
            os.set_blocking(descriptor, was)
        if trace is not None:
            trace.close()
