"""The fan-out: one client sends, and all others get it."""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from tcpjson.bench.closed import DRAIN, SILENCE, TICK, Stalled
from tcpjson.bench.jobs import Job, Report
from tcpjson.bench.links import Link
from tcpjson.bench.polling import IN, OUT, poller
from tcpjson.bench.pool import amount, contents

# Enough for a whole record of TLS: of one that was read in part, nothing tells any more.
_READ = 65536
_WARM = 0.2
# Pieces of a stream that are remembered.
_SEEN = 1000
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Receiver:
    """One that gets what is sent: how far it is, and what of its stream is not whole yet."""

    __slots__ = ("fd", "left", "next", "receive")

    def __init__(self, link: Link) -> None:
        self.fd = link.fd
        self.receive = link.sock.recv
        self.left = link.came
        #: The number of the message that must come next.
        self.next = 0


class FanOut:
    """
    A sender, and receivers that must get all that it sends, in order.

    Messages go out in bundles, two of which are on their way: a bundle follows when all receivers have the
    one before the last. What one receiver got, and was compared message by message, the others are compared
    with as a whole.

    Args:
        job: the work; its clients are the receivers.
        links: the connections; the first is the sender's.
        driver: the functions of `tcpjson.bench.driver`, for the server's protocol.
    """

    def __init__(self, job: Job, links: Sequence[Link], driver: ModuleType | Any) -> None:
        self._job = job
        self._driver = driver
        self._sock = links[0].sock
        self._sender_fd = links[0].fd
        self._acknowledgements = links[0].came
        self._polled = poller()
        self._receivers = {link.fd: Receiver(link) for link in links[1:]}
        for link in links:
            self._polled.register(link.fd, IN)
        self._contents = contents(amount(job.size, job.in_flight), job.size, job.seed)
        self._bundle = max(1, job.in_flight // 2)
        self._frames = [driver.publish(content) for content in self._contents]
        self._unsent = b""
        self._seen: dict[Any, tuple[bytes, int, bytes]] = {}
        #: Messages sent so far, and how many receivers have each bundle of them still to come.
        self._sent = 0
        self._behind: deque[int] = deque()
        self._acknowledged = 0
        self._bytes = 0
        self._wrong = 0
        self._first_wrong = ""

    def warm(self) -> None:
        """Work for a moment, so that both sides are what they will be; raises as `run`."""
        self._work(min(_WARM, self._job.seconds))

    def run(self) -> Report:
        """
        Do the work.

        Raises:
            OSError, ValueError: a connection is lost, or what came are no messages.
            Stalled: nothing comes any more.
        """
        self._bytes = 0
        cpu = time.process_time()
        messages, seconds = self._work(self._job.seconds)
        cpu = time.process_time() - cpu
        return Report(
            messages=messages,
            seconds=seconds,
            bytes=self._bytes,
            checked=messages,
            wrong=self._wrong,
            first_wrong=self._first_wrong,
            cpu_seconds=cpu,
        )

    def _work(self, seconds: float) -> tuple[int, float]:
        """Send so long; returns how many messages were delivered, and the seconds until the last of them."""
        delivered = 0
        begin = last = time.perf_counter()
        end = begin + seconds
        self._send_bundle()
        self._send_bundle()
        while self._behind or self._acknowledged < self._owed:
            events = self._polled.poll(TICK)
            now = time.perf_counter()
            for fd, ready in events:
                last = now
                if fd == self._sender_fd:
                    self._serve_sender(ready)
                else:
                    delivered += self._receive(self._receivers[fd])
            while self._behind and not self._behind[0]:
                self._behind.popleft()
                if now < end:
                    self._send_bundle()
            if now - last > SILENCE or now - end > DRAIN:
                raise Stalled(
                    f"of {len(self._receivers)} receivers {max(self._behind, default=0)} lack messages"
                )
        return delivered, time.perf_counter() - begin

    @property
    def _owed(self) -> int:
        return self._sent if self._driver.ACKNOWLEDGES else 0

    def _send_bundle(self) -> None:
        frames = [self._frames[(self._sent + more) % len(self._contents)] for more in range(self._bundle)]
        self._sent += self._bundle
        self._behind.append(len(self._receivers))
        data = b"".join(frames)
        self._bytes += len(data)
        self._unsent += data
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except _WANTS:
            sent = 0
        self._unsent = self._unsent[sent:]
        self._polled.modify(self._sender_fd, IN | OUT if self._unsent else IN)

    def _serve_sender(self, ready: int) -> None:
        if self._unsent:
            self._flush()
        if ready == OUT:
            return
        data = self._read(self._sock.recv)
        self._bytes += len(data)
        data = self._acknowledgements + data
        at = 0
        # What a server says that acknowledges nothing is of no interest.
        while self._driver.ACKNOWLEDGES and (found := self._driver.acknowledged(data, at)) is not None:
            recipients, at = found
            if recipients is not None:
                self._acknowledged += 1
                if recipients < len(self._receivers):
                    self._note(f"handed to {recipients} of {len(self._receivers)} receivers")
        self._acknowledgements = data[at:] if self._driver.ACKNOWLEDGES else b""

    def _read(self, receive: Callable[[int], bytes]) -> bytes:
        """One read. Raises `OSError`."""
        try:
            data = receive(_READ)
        except _WANTS:
            return b""
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def _receive(self, receiver: Receiver) -> int:
        """Take what came for one of them; returns how many messages it was."""
        data = self._read(receiver.receive)
        first, left = receiver.next, receiver.left
        key = (first, left) if left else first
        seen = self._seen.get(key)
        if seen is not None and seen[0] == data:
            _, count, receiver.left = seen
        else:
            wrong = self._wrong
            count, receiver.left = self._check(left + data, first)
            if wrong == self._wrong:
                if len(self._seen) >= _SEEN:
                    self._seen.clear()
                self._seen[key] = data, count, receiver.left
        self._bytes += len(data)
        receiver.next = first + count
        base, behind = self._sent - len(self._behind) * self._bundle, self._behind
        for number in range(first // self._bundle, receiver.next // self._bundle):
            behind[number - base // self._bundle] -= 1
        return count

    def _check(self, data: bytes, first: int) -> tuple[int, bytes]:
        """
        Compare messages with those of these numbers; returns how many they are, and what of the last is
        there.
        """
        count = at = 0
        while (found := self._driver.delivered(data, at)) is not None:
            content, at = found
            if content is None:
                continue
            if first + count >= self._sent:
                raise ValueError("a message came that nobody sent")
            if content != self._contents[(first + count) % len(self._contents)]:
                self._note(content[:120].decode("ascii", "backslashreplace"))
            count += 1
        return count, data[at:]

    def _note(self, what: str) -> None:
        self._wrong += 1
        self._first_wrong = self._first_wrong or what
