"""What else one could use, started on loopback: the servers of `python -m tcpjson.bench --peers`.

The programs here are servers of the classic messages, as others would write them by hand. Each takes a port
(0: any free one) and prints ``listening on 127.0.0.1:PORT``. They check nothing of what they read, bound no
queue and know no limits: they do the least work that answers a well-behaved client.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent

#: The scenarios of those that speak our protocol, and of the brokers.
ECHOES = frozenset(("small", "large", "sizes", "latency", "fanout", "storm", "idle", "scaling"))
FAN_OUT = frozenset(("fanout",))

#: Seconds that a server may take until it listens, and until it has ended when asked to.
START_SECONDS = 20.0
STOP_SECONDS = 5.0
# How often a program is started that wants to be told its port: another may take that in between.
_TRIES = 5
# What the programs here say.
_LISTENING = r"listening on 127\.0\.0\.1:(\d+)"
# Where Debian has what is no user's command.
_MORE_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# Bytes of what a server said that are looked at, and that are shown.
_LOG, _SHOWN = 1 << 20, 2000
# Becomes a program that may open as many files as any, and that Linux ends when we are gone, however that
# came (prctl(2), PR_SET_PDEATHSIG).
_UNTIL_WE_END = """
import ctypes, os, resource, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class PeerError(Exception):
    """A server did not come to listen; the text says what it said."""


@dataclass(frozen=True)
class Running:
    """A server that listens on `port` of 127.0.0.1, and its process."""

    port: int
    pid: int


@dataclass(frozen=True)
class Peer:
    """A server that can be started."""

    #: Its name for people.
    label: str
    #: Its program, a path or a name; None: this Python.
    program: str | None
    #: The arguments; ``{port}`` stands for a free port, ``{folder}`` for a temporary one.
    arguments: tuple[str, ...]
    #: What its log says when it listens; a group is the port.
    listening: str
    #: The modules that this Python must have for it.
    modules: tuple[str, ...] = ()
    #: The names of the scenarios that it can take part in.
    scenarios: frozenset[str] = ECHOES
    #: None where it speaks our protocol, else the name of a module with what `tcpjson.bench.driver` has.
    driver: str | None = None

    def missing(self) -> str:
        """What is not at hand that it needs, in words; empty: nothing."""
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        if modules:
            return f"pip install {' '.join(modules)}"
        if self.program is not None and _found(self.program) is None:
            return f"no program {self.program} in PATH"
        return ""

    @contextlib.contextmanager
    def start(self) -> Iterator[Running]:
        """
        Start it in a temporary folder, as a child, which is ended when the context is left.

        Raises:
            PeerError: it cannot be started, or does not listen in time.
        """
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="tcpjson-peer-", ignore_cleanup_errors=True)
            )
            # A file, since nobody need read it while the server runs.
            log = stack.enter_context(open(Path(folder) / "log", "a+b"))
            tries = 0
            while True:
                tries += 1
                port = _free_port() if any("{port}" in word for word in self.arguments) else 0
                process = self._spawn(folder, port, log.fileno())
                stack.callback(_end, process)
                heard, said = _listens(process, re.compile(self.listening), log.fileno())
                if heard is not None:
                    break
                taken = process.poll() is not None and "in use" in said
                if not taken or tries == _TRIES:
                    raise PeerError(f"{self.label} did not come to listen; it said:\n{said[-_SHOWN:]}")
            yield Running(int(heard[1]) if heard.groups() else port, process.pid)

    def _spawn(self, folder: str, port: int, log: int) -> subprocess.Popen[bytes]:
        program = sys.executable if self.program is None else _found(self.program)
        if program is None:
            raise PeerError(f"{self.label} cannot be started: {self.missing()}")
        words = [word.replace("{port}", str(port)).replace("{folder}", folder) for word in self.arguments]
        return subprocess.Popen(
            [sys.executable, "-c", _UNTIL_WE_END, str(os.getpid()), program, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for us, who then end it.
            start_new_session=True,
        )


def usable() -> list[Peer]:
    """Those that are at hand."""
    return [peer for peer in ALL if not peer.missing()]


def absent() -> dict[str, str]:
    """The labels of those that are not at hand, and what each lacks, in words."""
    return {peer.label: lacks for peer in ALL if (lacks := peer.missing())}


def _python(label: str, program: str, *modules: str) -> Peer:
    # By its path, so that nothing of tcpjson is in the process; -P: nor are its neighbours' names.
    return Peer(label, None, ("-P", str(_HERE / f"{program}.py"), "0"), _LISTENING, modules)


#: All that there are, in the order in which they are shown.
ALL = (
    _python("uvloop + orjson", "uvloop_orjson", "uvloop", "orjson"),
    _python("asyncio streams", "asyncio_streams"),
    _python("plain Twisted", "twisted_json", "twisted"),
    Peer("Node", "node", (str(_HERE / "node_server.js"), "0"), _LISTENING),
    Peer(
        "Redis",
        "redis-server",
        # Nothing is kept on disk, and no file of the machine's is read.
        (
            *("--bind", "127.0.0.1", "--port", "{port}", "--dir", "{folder}"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--tcp-backlog", "4096"),
        ),
        r"Ready to accept connections",
        scenarios=FAN_OUT,
        driver="tcpjson.bench.drivers.redis",
    ),
    Peer(
        "NATS",
        "nats-server",
        # -1: any free port.
        ("--addr", "127.0.0.1", "--port", "-1"),
        r"Listening for client connections on 127\.0\.0\.1:(\d+)",
        scenarios=FAN_OUT,
        driver="tcpjson.bench.drivers.nats",
    ),
)


def _found(program: str) -> str | None:
    """The path of a program, also where an ordinary user's PATH does not lead."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_MORE_FOLDERS])
    return shutil.which(program, path=path)


def _free_port() -> int:
    """A port that is free now; it may be taken a moment later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(
    process: subprocess.Popen[bytes], listening: re.Pattern[str], log: int
) -> tuple[re.Match[str] | None, str]:
    """Wait until the log says that it listens, or it ends; returns where it does, and the whole log."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        said = os.pread(log, _LOG, 0).decode(errors="replace")
        heard = listening.search(said)
        if heard is not None or ended or time.monotonic() > deadline:
            return heard, said
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child, by force if it does not go."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
