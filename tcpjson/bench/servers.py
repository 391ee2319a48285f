"""A server of our own: `twistd tcpjson` on loopback, in a process that ends when we do."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

import tcpjson
from tcpjson.bench.certificate import Certificate
from tcpjson.core.text import printable

_LISTENING = re.compile(r"listening on 127\.0\.0\.1:([0-9]+)")
#: Seconds until it listens, and until it has ended.
START, STOP = 30.0, 12.0
# Seconds that its end may be behind what its clients see of it.
_DYING = 0.3
# Seconds that its end may be behind what its clients see of it.
_DYING = 0.3
_LONGEST_LOG = 1024 * 1024
# Standard input ends when whoever holds its other end is gone, however that came.
_PROGRAM = """
import os, signal, threading
def end():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end, daemon=True).start()
from twisted.scripts.twistd import run
run()
"""


class ServerFailed(Exception):
    """The server did not come to listen, or ended by itself; the text says it in a line."""


class Started(msgspec.Struct, frozen=True):
    """A server that runs."""

    #: On 127.0.0.1.
    port: int
    pid: int


def environment() -> dict[str, str]:
    """What a process needs that imports the same tcpjson as we."""
    root = str(Path(tcpjson.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, by force if it must be."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def own_server(certificate: Certificate | None = None) -> Iterator[Started]:
    """
    Run a server on a free port.

    Args:
        certificate: it speaks TLS with this one.

    Raises:
        ServerFailed: it does not come to listen.
    """
    port = "tcp:0:interface=127.0.0.1" if certificate is None else certificate.port
    # The log goes to a file: nobody need read it while the server runs.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, "--nodaemon", "--pidfile=", "tcpjson", "--port", port],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us, who then end it.
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin:
            try:
                yield Started(_port_of(process, log.fileno()), process.pid)
            except Exception:
                # What the clients say of it is that it is gone.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_DYING)
                    raise ServerFailed(
                        f"the server ended by itself; it said: {_last(log.fileno())}"
                    ) from None
                raise
            finally:
                stop(process)


def _port_of(process: subprocess.Popen[bytes], log: int) -> int:
    """Wait until the log says where the server listens."""
    deadline = time.monotonic() + START
    while True:
        ended = process.poll() is not None
        if match := _LISTENING.search(os.pread(log, _LONGEST_LOG, 0).decode(errors="replace")):
            return int(match[1])
        if ended or time.monotonic() > deadline:
            raise ServerFailed("the server does not come to listen")
        time.sleep(0.01)


def _last(log: int) -> str:
    """The last line of a log."""
    size = os.fstat(log).st_size
    lines = os.pread(log, _LONGEST_LOG, max(size - _LONGEST_LOG, 0)).decode(errors="replace").split("\n")
    return printable(next((line for line in reversed(lines) if line.strip()), "nothing"), 200)
