"""CPU time of the server a message: tcpjson that is watched beside tcpjson that is not.

The one that is watched has `--metrics` and `--log-format json`; a reader of the page's events is connected,
and `/metrics` and `/connections` are asked for once a second, which is more than anybody does. How it is
measured is said in ``benchmarks/runs.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.runs import Comparison, add_arguments, check_arguments, compare
from benchmarks.servers import TCPJSON, BenchmarkError, end_on_sigterm, raise_file_limit, usable

TARGET = 1.05
WORKS = ("echo100", "echo10k", "object", "round", "cast20")
TIMEOUT = 2.0


def ask(path: str, resource: str) -> Iterator[bytes]:
    """What a server answers on a Unix socket, piece by piece."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(TIMEOUT)
        peer.connect(path)
        peer.sendall(f"GET {resource} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        while data := peer.recv(65536):
            yield data


class Watcher:
    """Reads what the server shows, for as long as it lasts; a context manager."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._events, self._scrapes)]
        #: Events read, and answers to what was asked.
        self.events = 0
        self.answers = 0

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _events(self) -> None:
        # Between two rounds there is no server.
        while not self._over.wait(0.1):
            with contextlib.suppress(OSError):
                for data in ask(self._path, "/events"):
                    self.events += data.count(b"data:")
                    if self._over.is_set():
                        return

    def _scrapes(self) -> None:
        while not self._over.wait(1.0):
            for resource in ("/metrics", "/connections"):
                with contextlib.suppress(OSError):
                    self.answers += b"".join(ask(self._path, resource)).startswith(b"HTTP/1.1 200 ")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeing", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    add_arguments(parser, WORKS, 15, 1.0)
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    raise_file_limit()
    if not usable([TCPJSON.name]):
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="tcpjson-bench-") as folder:
            path = str(Path(folder, "metrics"))
            words = ("--metrics", f"unix:{path}", "--log-format", "json")
            watched = replace(TCPJSON.with_words(words), name="watched", label="watched")
            alone = replace(TCPJSON, name="alone", label="alone")
            with Watcher(path) as watcher:
                compare(Comparison(watched, alone, dict.fromkeys(WORKS, TARGET)), [alone, watched], options)
            print(f"read meanwhile: {watcher.events} events, {watcher.answers} answers")
            if not (watcher.events and watcher.answers):
                raise BenchmarkError("nothing was to be seen")
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
