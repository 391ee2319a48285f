"""What readers that never read cost the server, and what the sizes of socket buffers do to them.

Some clients read nothing after `welcome`; others read all. One sender broadcasts numbered messages, some at
a time, and waits until every reader has them. Printed: the server's peak resident memory above where it
began, how many of the stuck were cut before the end, and how much of the work was done a second. A reader
that loses a message, or gets one out of order, ends the run with status 1.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from benchmarks.clients import Access, Client
from benchmarks.servers import (
    TCPJSON,
    BenchmarkError,
    Server,
    end_on_sigterm,
    raise_file_limit,
    started,
    usable,
)

READERS = 5
AT_ONCE = 10
CONTENT = 4000


def contents(count: int) -> Iterator[str]:
    return (f"{number:08d}{'y' * (CONTENT - 8)}" for number in range(count))


def read_all(client: Client, count: int, lost: list[str]) -> None:
    """Read `count` broadcasts; note the first that is not the one expected."""
    for content in contents(count):
        try:
            message = client.receive()
        except OSError as error:
            lost.append(f"expected {content[:8]}: {error}")
            return
        if message.get("content") != content:
            lost.append(f"expected {content[:8]}, got {str(message)[:120]}")
            return


def run(server: Server, stuck: int, messages: int) -> str:
    """Measure one server; returns a row of the table."""
    access = Access(server.port)
    # Held until the end: a connection that is collected is closed, and no longer stuck.
    idle = [access.enter() for _ in range(stuck)]
    readers = [access.enter() for _ in range(READERS)]
    sender = access.enter()
    before = peak = server.resident_bytes()
    lost: list[str] = []
    threads = [threading.Thread(target=read_all, args=(reader, messages, lost)) for reader in readers]
    for thread in threads:
        thread.start()
    began, cpu = time.monotonic(), server.cpu_ns()
    pending = list(contents(messages))
    for start in range(0, messages, AT_ONCE):
        sender.send(
            [{"type": "broadcast", "content": content} for content in pending[start : start + AT_ONCE]]
        )
        for _ in range(AT_ONCE):
            sender.receive()
        peak = max(peak, server.resident_bytes())
    for thread in threads:
        thread.join()
    seconds, spent = time.monotonic() - began, server.cpu_ns() - cpu
    if lost:
        raise BenchmarkError(f"a reader lost a message: {lost[0]}")
    sender.send([{"type": "get_stats"}])
    clients = sender.receive()["connected_clients"]
    assert isinstance(clients, int)
    cut = stuck + READERS + 1 - clients
    del idle
    return (
        f"{(peak - before) / 2**20:10.1f} MiB   {cut:4d} of {stuck} cut"
        f"   {messages / seconds:8.0f} broadcasts/s   {spent / 1e3 / messages:8.1f} us CPU a broadcast"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stuck", description=__doc__.split("\n")[0])
    parser.add_argument("--stuck", type=int, default=200, metavar="N", help="clients that never read")
    parser.add_argument("--messages", type=int, default=4000, metavar="N", help="broadcasts of 4 kB")
    parser.add_argument(
        "--buffers",
        type=int,
        nargs="*",
        default=[0, 16384, 65536, 262144],
        metavar="BYTES",
        help="sizes of --send-buffer to try; 0 is the system's own",
    )
    options = parser.parse_args(arguments)
    end_on_sigterm()
    raise_file_limit()
    if not usable([TCPJSON.name]):
        return 1
    print(f"{options.stuck} clients that never read, {READERS} that do; server memory above its start:")
    for size in options.buffers:
        words = [f"--send-buffer={size}"] if size else []
        try:
            with started(TCPJSON.with_words(words)) as server:
                row = run(server, options.stuck, options.messages)
            print(f"{words[0] if words else 'system buffers':24} {row}", flush=True)
        except (BenchmarkError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
