"""The processes of the generator, as the program sees them."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tcpjson.bench.closed import DRAIN
from tcpjson.bench.jobs import Failed, Job, Ready, Report, Word
from tcpjson.bench.servers import environment, stop
from tcpjson.bench.worker import CONNECT, EACH

_COMMAND = (sys.executable, "-m", "tcpjson.bench.worker")
# Seconds that starting, warming up and reporting may take, whatever the machine does meanwhile.
_SPARE = 30.0
_TICK = 0.1
_READ = 65536
#: Bytes of one line of a process.
_LONGEST = 1024 * 1024


class GeneratorFailed(Exception):
    """The work could not be done; the text says why."""


class Workers:
    """
    One process for each job; a context manager that ends them.

    Args:
        jobs: what each does.
        tick: is called again and again while they work, with the seconds since they began.
        command: starts a process.
    """

    def __init__(
        self, jobs: Sequence[Job], tick: Callable[[float], object], command: Sequence[str] = _COMMAND
    ) -> None:
        self._jobs = jobs
        self._tick = tick
        self._command = command
        self._processes: list[subprocess.Popen[bytes]] = []
        self._buffers: dict[int, bytes] = {}

    def __enter__(self) -> Workers:
        try:
            for job in self._jobs:
                process = subprocess.Popen(
                    self._command,
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    # Ctrl-C is for the program, which then ends them.
                    start_new_session=True,
                )
                self._processes.append(process)
                self._tell(process, msgspec.json.encode(job))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            stop(process)
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()

    def ready(self) -> list[Ready]:
        """
        Wait until all connections stand.

        Raises:
            GeneratorFailed: they do not come about.
        """
        clients = max(job.clients for job in self._jobs)
        return self._words(Ready, CONNECT + clients * EACH + _SPARE, lambda seconds: None)

    def run(self) -> list[Report]:
        """
        Let all begin, and wait for their reports.

        Raises:
            GeneratorFailed: one of them could not do its work.
        """
        for process in self._processes:
            self._tell(process, b"go")
        return self._words(Report, max(job.seconds for job in self._jobs) + DRAIN + _SPARE, self._tick)

    def _tell(self, process: subprocess.Popen[bytes], line: bytes) -> None:
        assert process.stdin is not None
        # Of one that has died, the next word tells.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line + b"\n")
            process.stdin.flush()

    def _words(self, kind: type[Any], seconds: float, tick: Callable[[float], object]) -> list[Any]:
        """The next word of each process."""
        found: dict[int, Any] = {}
        begin = time.monotonic()
        waiting = {
            process.stdout.fileno(): number
            for number, process in enumerate(self._processes)
            if process.stdout
        }
        while waiting:
            passed = time.monotonic() - begin
            if passed > seconds:
                raise GeneratorFailed("a process of the generator does not answer")
            tick(passed)
            for fd in select.select(list(waiting), [], [], _TICK)[0]:
                data = os.read(fd, _READ)
                line = self._buffers.get(fd, b"") + data
                if b"\n" in line:
                    line, _, self._buffers[fd] = line.partition(b"\n")
                    found[waiting.pop(fd)] = _word(line, kind)
                elif not data or len(line) > _LONGEST:
                    raise GeneratorFailed("a process of the generator has ended")
                else:
                    self._buffers[fd] = line
        return [found[number] for number in range(len(self._processes))]


def _word(line: bytes, kind: type[Any]) -> Any:
    try:
        word: Any = msgspec.json.decode(line, type=Word)
    except msgspec.DecodeError:
        raise GeneratorFailed("a process of the generator speaks nonsense") from None
    if isinstance(word, Failed):
        raise GeneratorFailed(word.why)
    if not isinstance(word, kind):
        raise GeneratorFailed("a process of the generator speaks out of turn")
    return word
