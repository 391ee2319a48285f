"""Echoes a second, and CPU time an echo, of ``tcpjson.TCPClient`` beside a plain client of sockets and JSON.

The plain client is what people write by hand: a thread that reads, ``json``, a callback. Both send echoes of
100 bytes to a ``twistd`` of its own on another core, and compare each answer: some hundred in flight, or one
at a time. The clients work in short slices one after the other, to and fro, so that noise hits both alike;
what is counted is the CPU time of this process, all its threads, so nothing else runs in it meanwhile. The
figure is the median over the slices. A wrong or missing answer ends the run with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.servers import TCPJSON, BenchmarkError, Server, cores, end_on_sigterm, started, usable
from tcpjson import TCPClient

Message = dict[str, Any]

HOST = "127.0.0.1"
CONTENT = 100
#: Echoes that are sent before some answers are waited for; twice as many are in flight at most.
CHUNK = 250
#: Echoes a second that the client must come to, with many in flight.
TARGET = 30_000
#: A server busier than this share of the time was what held the run up.
SERVER_LIMIT = 0.95
#: Seconds that an answer may take.
PATIENCE = 10.0


class Client(Protocol):
    """What is measured."""

    def set_message_callback(self, callback: Callable[[Message], object]) -> None: ...

    def connect(self) -> bool: ...

    def echo(self, content: str) -> bool: ...

    def disconnect(self) -> None: ...


class PlainClient:
    """Sixty lines of sockets, ``json`` and a thread, less what is not needed here."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), PATIENCE)
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", 65536)
        self._callback: Callable[[Message], object] = id
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def set_message_callback(self, callback: Callable[[Message], object]) -> None:
        self._callback = callback

    def connect(self) -> bool:
        self._thread.start()
        return True

    def _receive(self) -> None:
        while prefix := self._file.read(4):
            payload = self._file.read(struct.unpack(">I", prefix)[0])
            self._callback(json.loads(payload.decode("utf-8")))

    def echo(self, content: str) -> bool:
        payload = json.dumps({"type": "echo", "content": content}).encode("utf-8")
        self._socket.sendall(struct.pack(">I", len(payload)) + payload)
        return True

    def disconnect(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        self._thread.join(PATIENCE)
        self._file.close()
        self._socket.close()


@dataclass(frozen=True)
class Slice:
    """What a client did in one slice."""

    rate: float
    cpu_us: float
    server_share: float


class Load:
    """A connected client that sends echoes, whose contents count, and compares the answers."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent = 0
        self._answered = 0
        self._step = 1
        self._room = threading.Semaphore(0)
        self._wrong: list[str] = []
        client.set_message_callback(self._check)
        if not client.connect():
            raise BenchmarkError("the client does not connect")

    @staticmethod
    def _content(number: int) -> str:
        return f"{number:010d}".ljust(CONTENT, "x")

    def _check(self, message: Message) -> None:
        if message.get("type") != "echo_response":
            return
        if message.get("content") != self._content(self._answered):
            self._wrong.append(f"answer {self._answered} is {str(message)[:100]}")
        self._answered += 1
        if self._answered % self._step == 0:
            self._room.release()

    def _send(self) -> None:
        for _ in range(self._step):
            if not self._client.echo(self._content(self._sent)):
                raise BenchmarkError("an echo was not sent")
            self._sent += 1

    def _wait(self) -> None:
        if not self._room.acquire(timeout=PATIENCE):
            raise BenchmarkError(f"{self._sent - self._answered} answers are missing")
        if self._wrong:
            raise BenchmarkError(self._wrong[0])

    def measure(self, server: Server, step: int, seconds: float) -> Slice:
        """Send echoes for so long, twice `step` in flight at most, or one where that is 1."""
        self._step = step
        # Nothing is in flight: counts of steps of another length are over.
        self._sent = self._answered = 0
        ahead = step > 1
        server_cpu, cpu, began = server.cpu_ns(), time.process_time_ns(), time.perf_counter()
        if ahead:
            self._send()
        while time.perf_counter() - began < seconds:
            self._send()
            self._wait()
        if ahead:
            self._wait()
        elapsed = time.perf_counter() - began
        spent, server_spent = time.process_time_ns() - cpu, server.cpu_ns() - server_cpu
        return Slice(self._sent / elapsed, spent / 1e3 / self._sent, server_spent / 1e9 / elapsed)

    def close(self) -> None:
        self._client.disconnect()


def measure_all(server: Server, works: dict[str, int], slices: int, seconds: float) -> list[list[str]]:
    """The rows of the table."""
    loads = {"tcpjson": Load(TCPClient(HOST, server.port)), "sockets+json": Load(PlainClient(server.port))}
    rows = []
    try:
        for title, step in works.items():
            found: dict[str, list[Slice]] = {name: [] for name in loads}
            for load in loads.values():
                load.measure(server, step, seconds / 4)
            for turn in range(slices):
                for name in list(loads)[:: -1 if turn % 2 else 1]:
                    found[name].append(loads[name].measure(server, step, seconds))
            for name, done in found.items():
                rate, cpu, share = (
                    statistics.median(getattr(each, field) for each in done)
                    for field in ("rate", "cpu_us", "server_share")
                )
                limited = "*" if share >= SERVER_LIMIT else ""
                rows.append([title, name, f"{rate:.0f}{limited}", f"{cpu:.2f}", f"{share:.0%}"])
                if step > 1 and name == "tcpjson":
                    rows[-1].append("met" if rate >= TARGET else "NOT MET")
    finally:
        for load in loads.values():
            load.close()
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    head = f"{'':26}{'client':>14}{'echoes/s':>12}{'CPU us/echo':>13}{'server busy':>13}{f'{TARGET}/s':>10}"
    lines = [head]
    for title, name, rate, cpu, share, *verdict in rows:
        lines.append(f"{title:26}{name:>14}{rate:>12}{cpu:>13}{share:>13}{''.join(verdict):>10}")
    if any(row[2].endswith("*") for row in rows):
        lines.append("* the server was the limit")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=10, metavar="N", help="of each work (default 10)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of a slice (default 0.5)")
    options = parser.parse_args(arguments)
    if options.slices < 1:
        parser.error("--slices must be at least 1")
    if not 0.01 <= options.seconds <= 60:
        parser.error("--seconds must be between 0.01 and 60")
    end_on_sigterm()
    if not usable([TCPJSON.name]):
        return 1
    server_core, client_core = cores()
    works = {f"echo {CONTENT} B, {2 * CHUNK} in flight": CHUNK, f"echo {CONTENT} B, one at a time": 1}
    try:
        with started(TCPJSON, server_core) as server:
            if client_core is not None:
                os.sched_setaffinity(0, {client_core})
            rows = measure_all(server, works, options.slices, options.seconds)
    except (BenchmarkError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
