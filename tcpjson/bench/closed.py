"""The closed loop: each client sends a request more for each that is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tcpjson.bench.client import Client
from tcpjson.bench.jobs import Job, Report
from tcpjson.bench.links import Link
from tcpjson.bench.polling import OUT, poller
from tcpjson.bench.pool import Pool
from tcpjson.bench.replies import Checker

#: Bytes of the buffer that all clients read into.
BUFFER = 256 * 1024
#: Seconds without any answer after which the server has stopped.
SILENCE = 10.0
#: Seconds that the last answers may take.
DRAIN = 5.0
#: Seconds after which the time is looked at, though nothing came.
TICK = 0.5
_WARM = 0.2


class Stalled(Exception):
    """The server answers no more; the text says so."""


def stalled(unanswered: int, clients: Sequence[Client]) -> str:
    """The words for a server that leaves requests unanswered; what it said instead may tell why."""
    words = f"the server left {unanswered} requests unanswered"
    wrong = sum(client.replies.wrong for client in clients)
    if not wrong:
        return words
    first = next(client.replies.first_wrong for client in clients if client.replies.wrong)
    return f"{words}, and {wrong} replies were wrong, the first: {first}"


class ClosedLoop:
    """
    Clients that keep the server busy.

    Args:
        job: the work.
        links: the connections.
        clock: the time, in seconds.
    """

    def __init__(
        self, job: Job, links: Sequence[Link], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._job = job
        self._clock = clock
        self._polled = poller()
        self._pool = Pool(job.size, job.in_flight, job.seed)
        checker = Checker(self._pool, job.in_flight)
        step = max(1, self._pool.count // len(links))
        self._clients = [
            Client(link, checker, number * step, self._polled) for number, link in enumerate(links)
        ]
        self._data = bytearray(max(BUFFER, 4 * self._pool.length))
        self._bytes = 0

    def warm(self) -> None:
        """Work for a moment, so that both sides are what they will be; raises as `run`."""
        self._work(min(_WARM, self._job.seconds))

    def run(self) -> Report:
        """
        Do the work.

        Raises:
            OSError, ValueError: a connection is lost, or what came are no replies.
            Stalled: nothing comes any more.
        """
        self._bytes = 0
        cpu = time.process_time()
        messages, seconds, unanswered = self._work(self._job.seconds)
        cpu = time.process_time() - cpu
        return Report(
            messages=messages,
            seconds=seconds,
            bytes=self._bytes + messages * self._pool.length,
            checked=messages,
            unanswered=unanswered,
            # Those of the warming-up count, too.
            wrong=sum(client.replies.wrong for client in self._clients),
            first_wrong=next((each.replies.first_wrong for each in self._clients if each.replies.wrong), ""),
            cpu_seconds=cpu,
        )

    def _work(self, seconds: float) -> tuple[int, float, int]:
        """
        Work so long; returns how many were answered, the seconds until the last of them, and how many were
        not.
        """
        clock, poll, data = self._clock, self._polled.poll, self._data
        clients = {client.fd: client for client in self._clients}
        answered = received = 0
        begin = last = clock()
        end = begin + seconds
        unanswered = len(clients) * self._job.in_flight
        for client in self._clients:
            client.ask(self._job.in_flight - client.replies.outstanding)
        while unanswered and last - end < DRAIN:
            events = poll(TICK)
            now = clock()
            for fd, ready in events:
                client = clients[fd]
                if ready & OUT:
                    client.flush()
                if ready != OUT:
                    count, size = client.receive(data)
                    received += size
                    if count:
                        answered += count
                        if now < end:
                            client.ask(count)
                        else:
                            unanswered -= count
                    last = now
            if now - last > SILENCE:
                raise Stalled(stalled(unanswered, self._clients))
        self._bytes += received
        return answered, last - begin, unanswered
