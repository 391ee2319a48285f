"""Resident memory of an idle connection.

Some connections are opened and closed first, so that modules loaded late and the allocator's first arenas
do not count, and as many are then opened again and held: what the first ones left free would otherwise be
found again and make the next ones look cheaper. Then the base is read, and the connections are opened in
steps, with readings after each. A server that left much behind when the first connections closed still
looks cheap in the first step, so the later steps are looked at by themselves too, and the worse of the two
figures counts. What the kernel keeps for a socket is in neither.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import statistics
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from benchmarks.servers import (
    KINDS,
    TCPJSON,
    BenchmarkError,
    Server,
    end_on_sigterm,
    raise_file_limit,
    started,
    usable,
)

TARGET = 3000
WARM = 500
WELCOME_SECONDS = 30.0
ANSWER_SECONDS = 300.0
SETTLE_SECONDS = 0.5
READINGS = 5
FILES_IN_RESERVE = 64
IP_BIND_ADDRESS_NO_PORT = 24  # from <linux/in.h>; Python has no name for it
PORTS_AN_ADDRESS = 20_000  # well below the range of ephemeral ports


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    return data


def open_one(port: int, source: str) -> socket.socket:
    """Connect and wait for the welcome."""
    connection = socket.socket()
    connection.settimeout(WELCOME_SECONDS)
    # Without this option bind() picks a port before it knows the peer, and hunts long for one that is unused.
    connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    (length,) = struct.unpack(">I", read_exactly(connection, 4))
    payload = read_exactly(connection, length)
    if b'"welcome"' not in payload:
        connection.close()
        raise ConnectionError(f"instead of a welcome: {payload[:200].decode(errors='replace')}")
    return connection


def hold(port: int, count: int, source: str, pipe: Connection) -> None:
    """A child's work: open its connections, say so, and hold them until the parent says or is gone."""
    raise_file_limit()
    with contextlib.ExitStack() as held:
        for number in range(count):
            try:
                held.enter_context(open_one(port, source))
            except OSError as error:
                pipe.send(f"after {number} connections: {error}")
                return
        pipe.send(None)
        with contextlib.suppress(EOFError):
            pipe.recv()


@dataclass
class Holder:
    """A child process and the pipe to it."""

    process: BaseProcess
    pipe: Connection


class Crowd:
    """Idle connections, held by child processes; a context manager that closes them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened = 0
        self.holders: list[Holder] = []

    def __enter__(self) -> Crowd:
        return self

    def add(self, count: int) -> None:
        """Open so many connections from one more process, and wait until each has its welcome."""
        # Not forked: a child must not inherit the ends of its siblings' pipes.
        context = multiprocessing.get_context("spawn")
        source = f"127.0.0.{1 + self.opened // PORTS_AN_ADDRESS}"
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(self.port, count, source, theirs), daemon=True)
        process.start()
        theirs.close()
        self.holders.append(Holder(process, ours))
        try:
            said = ours.recv() if ours.poll(ANSWER_SECONDS) else "it took too long"
        except EOFError:
            said = "it ended"
        if said is not None:
            raise BenchmarkError(f"a client process could not open its connections: {said}")
        self.opened += count

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for holder in self.holders:
            holder.pipe.close()
        for holder in self.holders:
            holder.process.join(30)
            if holder.process.is_alive():
                holder.process.kill()
                holder.process.join()


def resident_bytes(pid: int) -> int:
    """Return Rss. Not Pss: that falls when another process maps the same libraries."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise BenchmarkError("no Rss in smaps_rollup")


def settled(pid: int) -> int:
    """The median of several readings, some time apart."""
    readings = []
    for _ in range(READINGS):
        time.sleep(SETTLE_SECONDS)
        readings.append(resident_bytes(pid))
    return int(statistics.median(readings))


def measure(server: Server, connections: int, steps: int) -> list[tuple[int, int]]:
    """Return the resident bytes at each number of connections, beginning with 0 (above the base)."""
    with Crowd(server.port) as crowd:
        crowd.add(WARM)
    time.sleep(SETTLE_SECONDS)
    with Crowd(server.port) as crowd:
        crowd.add(WARM)
        readings = [(0, settled(server.pid))]
        for step in range(1, steps + 1):
            count = connections * step // steps
            crowd.add(count - readings[-1][0])
            readings.append((count, settled(server.pid)))
    return readings


def each(first: tuple[int, int], last: tuple[int, int]) -> float:
    """Bytes a connection between two readings."""
    return (last[1] - first[1]) / (last[0] - first[0])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--server", choices=KINDS, default=TCPJSON.name)
    parser.add_argument("--connections", type=int, default=9000, metavar="N")
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        metavar="N",
        help="in which they are opened, each by a process of its own",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="WORD",
        help="one more word for the server's command, as --option=--strict",
    )
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.connections < options.steps:
        parser.error("--steps must be at least 1, and --connections no less")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    files = raise_file_limit()
    needed = options.connections + WARM + FILES_IN_RESERVE
    if files < needed:
        print(f"the server may open {files} files and needs {needed}: ulimit -Hn", file=sys.stderr)
        return 1
    kinds = usable([options.server])
    if not kinds:
        return 1
    try:
        with started(kinds[0], options=options.option) as server:
            readings = measure(server, options.connections, options.steps)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for count, resident in readings:
        print(f"{kinds[0].label}: {count:6} connections  {resident / 2**20:7.1f} MiB")
    whole = each(readings[0], readings[-1])
    later = each(readings[1], readings[-1]) if options.steps > 1 else whole
    verdict = "met" if max(whole, later) <= TARGET else "NOT MET"
    print(f"bytes a connection: {whole:.0f}; after the first step: {later:.0f}; target {TARGET}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
