"""One process of the generator: `python -m tcpjson.bench.worker`, which reads its job as a line of JSON."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import sys
import threading
import time
from typing import Any, BinaryIO

import msgspec

from tcpjson.bench.closed import ClosedLoop, Stalled
from tcpjson.bench.fanout import FanOut
from tcpjson.bench.jobs import Failed, Job, Ready, Report, Word
from tcpjson.bench.links import Link, Unreachable, connect, context
from tcpjson.bench.paced import OpenLoop
from tcpjson.bench.processes import waited_seconds
from tcpjson.bench.storm import Storm

#: Seconds that all connections may take, and each of them besides.
CONNECT, EACH = 10.0, 0.01
# Files beside the connections.
_FILES = 50


class Held:
    """Connections that only stand."""

    def __init__(self, count: int) -> None:
        self._count = count

    def warm(self) -> None:
        """Nothing is to be done."""

    def run(self) -> Report:
        """What stood until now."""
        return Report(messages=self._count, seconds=0.0, bytes=0, checked=self._count)


def work(job: Job) -> tuple[ClosedLoop | OpenLoop | FanOut | Storm | Held, list[Link]]:
    """
    What does a job, and its connections.

    Raises:
        Unreachable: they do not come about.
    """
    driver: Any = importlib.import_module(job.driver)
    tls = context(job.address)
    fanout = job.kind == "fanout"

    def make(number: int) -> Link:
        sender = fanout and number == 0
        hello = driver.hello_sender() if sender else driver.hello_receiver()
        return Link(job.address, tls, hello, lambda data: driver.ready(data, sender))

    if job.kind == "storm":
        return Storm(job, make), []
    count = job.clients + fanout
    links = connect(make, count, time.monotonic() + CONNECT + count * EACH)
    made: dict[str, Any] = {
        "echo": lambda: ClosedLoop(job, links),
        "paced": lambda: OpenLoop(job, links),
        "fanout": lambda: FanOut(job, links, driver),
        "hold": lambda: Held(count),
    }
    return made[job.kind](), links


def allow_files(count: int) -> None:
    """
    See that so many connections may be open.

    Raises:
        Unreachable: the system forbids it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Unreachable(f"{count} connections need {wanted} open files, and the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(commands: BinaryIO, words: BinaryIO) -> int:
    """
    Read a job, connect, say so, work when told to, and report; returns the exit status.

    Args:
        commands: two lines, the job and the word to begin.
        words: gets the lines of `Word`.
    """

    def say(word: Word) -> None:
        words.write(msgspec.json.encode(word) + b"\n")
        words.flush()

    job = msgspec.json.decode(commands.readline(), type=Job)
    links: list[Link] = []
    try:
        allow_files(job.clients)
        begin = time.perf_counter()
        doing, links = work(job)
        seconds = time.perf_counter() - begin
        doing.warm()
        # Nothing here makes cycles; a collection would only be taken for a slow server.
        gc.freeze()
        gc.disable()
        say(Ready(seconds))
        if not commands.readline():
            return 1
        waited = waited_seconds("self") or 0.0
        report = doing.run()
        waited = (waited_seconds("self") or 0.0) - waited
        say(msgspec.structs.replace(report, waited_seconds=max(waited, 0.0)))
    except (Unreachable, Stalled, ValueError) as error:
        say(Failed(str(error)))
        return 1
    except OSError as error:
        say(Failed(error.strerror or str(error)))
        return 1
    finally:
        gc.enable()
        for link in links:
            link.close()
    return 0


def end_with(commands: BinaryIO) -> None:
    """Wait until nobody can tell this process anything any more, and end it: whoever began it is gone."""
    commands.read()
    os._exit(1)


class _Commands:
    """Standard input; once the work has begun it is watched."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines = 0

    def readline(self) -> bytes:
        """The next line."""
        line = self._file.readline()
        self._lines += 1
        if self._lines == 2:
            threading.Thread(target=end_with, args=(self._file,), daemon=True).start()
        return line


def main() -> int:
    """Run; returns the exit status."""
    commands: Any = _Commands(sys.stdin.buffer)
    try:
        return serve(commands, sys.stdout.buffer)
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    # Without the end of the interpreter, which would wait for the thread's hold on standard input.
    status = main()
    sys.stdout.flush()
    os._exit(status)
