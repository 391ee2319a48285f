"""The connection storm: connect, take the greeting, ask for one answer, close; again and again."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tcpjson.bench.closed import DRAIN, TICK, Stalled
from tcpjson.bench.jobs import Job, Report
from tcpjson.bench.links import Link
from tcpjson.bench.polling import IN, poller
from tcpjson.bench.wire import frame, take

_READ = 65536
_LATER = (BlockingIOError, ssl.SSLWantReadError)


class Storm:
    """
    So many connections at a time, each as short as it can be.

    Args:
        job: the work; its clients are those that connect at the same time.
        make: makes the connection of this number, which is not ready yet.
    """

    def __init__(self, job: Job, make: Callable[[int], Link]) -> None:
        self._job = job
        self._make = make
        self._polled = poller()
        #: By descriptor: the number, the connection, and what came of the answer; None: not asked yet.
        self._open: dict[int, tuple[int, Link, bytes | None]] = {}
        self._begun = 0
        self._bytes = 0
        self._wrong = 0
        self._first_wrong = ""
        self._note = ""

    def warm(self) -> None:
        """There is nothing to get warm."""

    def run(self) -> Report:
        """
        Do the work.

        Raises:
            OSError, ValueError: a connection does not come about, or what came is no greeting.
            Stalled: one of them gets no answer.
        """
        cpu = time.process_time()
        begin = time.perf_counter()
        end = begin + self._job.seconds
        done = 0
        try:
            while True:
                now = time.perf_counter()
                while now < end and len(self._open) < self._job.clients and self._begin():
                    pass
                if not self._open:
                    break
                if now > end + DRAIN:
                    raise Stalled(f"{len(self._open)} connections got no answer")
                for fd, _ in self._polled.poll(TICK):
                    done += self._step(fd)
        finally:
            for _, link, _ in self._open.values():
                link.close()
        return Report(
            messages=done,
            seconds=time.perf_counter() - begin,
            bytes=self._bytes,
            checked=done,
            wrong=self._wrong,
            first_wrong=self._first_wrong,
            cpu_seconds=time.process_time() - cpu,
            note=self._note,
        )

    def _begin(self) -> bool:
        """Begin one more, if there may be one."""
        if self._begun >= self._job.most:
            self._note = self._note or f"ended after {self._begun} connections, the most that are made"
            return False
        try:
            link = self._make(self._begun)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE) or not self._begun:
                raise
            self._note = f"ended after {self._begun} connections: this machine had no port left"
            self._job = msgspec.structs.replace(self._job, most=self._begun)
            return False
        self._open[link.fd] = self._begun, link, None
        self._polled.register(link.fd, link.wants)
        self._begun += 1
        return True

    def _step(self, fd: int) -> int:
        """Go on with a connection; returns 1 when it is done."""
        number, link, came = self._open[fd]
        if came is None:
            if link.step():
                ping = frame(b'{"type":"ping","timestamp":"%d.%d"}' % (self._job.seed, number))
                # So little always has room.
                link.sock.send(ping)
                self._bytes += len(ping)
                self._open[fd] = number, link, link.came
                self._polled.modify(fd, IN)
            else:
                self._polled.modify(fd, link.wants)
            return 0
        try:
            data = link.sock.recv(_READ)
        except _LATER:
            return 0
        if not data:
            raise ConnectionError("the server closed a connection instead of answering")
        came += data
        self._bytes += len(data)
        self._open[fd] = number, link, came
        found = take(came, 0)
        if found is None:
            return 0
        if not _is_pong(found[0], f"{self._job.seed}.{number}"):
            self._wrong += 1
            self._first_wrong = self._first_wrong or found[0][:120].decode("ascii", "backslashreplace")
        del self._open[fd]
        self._polled.unregister(fd)
        link.close()
        return 1


def _is_pong(payload: bytes, stamp: str) -> bool:
    try:
        message: Any = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return (
        isinstance(message, dict) and message.get("type") == "pong" and message.get("ping_timestamp") == stamp
    )
