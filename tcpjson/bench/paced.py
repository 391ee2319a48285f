"""The open loop: requests that are due at given times, whether or not earlier ones were answered."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from tcpjson.bench.client import Client
from tcpjson.bench.closed import BUFFER, DRAIN, Stalled, stalled
from tcpjson.bench.jobs import Job, Report
from tcpjson.bench.latency import encoded
from tcpjson.bench.links import Link
from tcpjson.bench.polling import OUT, nap, poller
from tcpjson.bench.pool import Pool
from tcpjson.bench.replies import Checker
from tcpjson.bench.schedule import Schedule

#: Requests that a client has unanswered, at most. Others that are due wait, and their time runs.
MOST = 256
# Seconds before a request is due in which the time is looked at again and again: sleep is not as fine.
_SPIN = 0.00012
_MICRO = 1_000_000
_WARM = 0.2


class OpenLoop:
    """
    Clients that ask in turn, at times that the schedule sets; a latency counts from when its request was due.

    Args:
        job: the work; it has a rate.
        links: the connections.
    """

    def __init__(self, job: Job, links: Sequence[Link]) -> None:
        self._job = job
        self._polled: Any = poller()
        self._pool = Pool(job.size, MOST, job.seed)
        checker = Checker(self._pool, MOST)
        step = max(1, self._pool.count // len(links))
        self._clients = [
            Client(link, checker, number * step, self._polled) for number, link in enumerate(links)
        ]
        self._by_fd = {client.fd: client for client in self._clients}
        self._dues: dict[int, deque[float]] = {client.fd: deque() for client in self._clients}
        self._data = bytearray(max(BUFFER, 4 * self._pool.length))
        self._bytes = 0

    def warm(self) -> None:
        """
        Ask for a moment, so that both sides are what they will be; raises as `run`.

        Raises:
            Stalled: not all was answered.
        """
        *_, unanswered = self._work(min(_WARM, self._job.seconds), Counter())
        if unanswered:
            raise Stalled(stalled(unanswered, self._clients))

    def run(self) -> Report:
        """
        Do the work.

        Raises:
            OSError, ValueError: a connection is lost, or what came are no replies.
        """
        self._bytes = 0
        counts: Counter[int] = Counter()
        cpu = time.process_time()
        messages, seconds, unanswered = self._work(self._job.seconds, counts)
        cpu = time.process_time() - cpu
        return Report(
            messages=messages,
            seconds=seconds,
            bytes=self._bytes + messages * self._pool.length,
            checked=messages,
            wrong=sum(client.replies.wrong for client in self._clients),
            first_wrong=next((each.replies.first_wrong for each in self._clients if each.replies.wrong), ""),
            cpu_seconds=cpu,
            unanswered=unanswered,
            histogram=encoded(counts),
        )

    def _work(self, seconds: float, counts: Counter[int]) -> tuple[int, float, int]:
        """Work so long; returns how many were answered, the seconds that it took, and how many were not."""
        assert self._job.rate is not None
        schedule = Schedule(self._job.rate, seconds, self._job.phase)
        clock, polled = time.perf_counter, self._polled
        clients = self._clients
        turn = asked = answered = 0
        begin = clock()
        end = seconds + DRAIN
        while answered < schedule.total:
            elapsed = clock() - begin
            if elapsed > end:
                break
            due = schedule.due_by(elapsed)
            full = 0
            while asked < due and full < len(clients):
                client = clients[turn]
                turn = (turn + 1) % len(clients)
                if client.replies.outstanding < MOST:
                    client.ask(1)
                    self._dues[client.fd].append(schedule.due(asked))
                    asked += 1
                    full = 0
                else:
                    full += 1
            wait = min(schedule.due(asked) - elapsed, 0.1) if due < schedule.total else 0.1
            if full:
                wait = 0.1
            if wait > _SPIN:
                nap(polled, wait - _SPIN)
            answered += self._take(begin, counts)
        missing = schedule.total - answered
        if missing:
            self._count_missing(schedule, asked, clock() - begin, counts)
        return answered, max(clock() - begin, seconds), missing

    def _take(self, begin: float, counts: Counter[int]) -> int:
        """Take what came, and count how long it took."""
        answered = 0
        for fd, ready in self._polled.poll(0):
            client = self._by_fd[fd]
            if ready & OUT:
                client.flush()
            if ready != OUT:
                count, size = client.receive(self._data)
                now = time.perf_counter() - begin
                self._bytes += size
                answered += count
                dues = self._dues[fd]
                for _ in range(count):
                    counts[int((now - dues.popleft()) * _MICRO)] += 1
        return answered

    def _count_missing(self, schedule: Schedule, asked: int, now: float, counts: Counter[int]) -> None:
        """What was not answered took as long as it was waited for, at least."""
        for dues in self._dues.values():
            for due in dues:
                counts[int((now - due) * _MICRO)] += 1
            dues.clear()
        for index in range(asked, schedule.total):
            counts[int((now - schedule.due(index)) * _MICRO)] += 1
