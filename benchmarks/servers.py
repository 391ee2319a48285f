"""Starting and ending the servers that are measured, and building the load generator."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / "tcpjson" / "bench" / "peers"
LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
START_SECONDS = 30.0
STOP_SECONDS = 12.0  # more than the server's own period of grace
CPUCLOCK_SCHED = 2


class BenchmarkError(Exception):
    """A benchmark cannot go on; the text says why."""


@dataclass(frozen=True)
class Kind:
    """A server that can be started: its names, its command, what must be importable, and its folder."""

    name: str
    label: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    root: Path = ROOT

    def with_words(self, words: Sequence[str]) -> Kind:
        """The same server with more words in its command."""
        return replace(self, command=(*self.command, *words))

    def missing(self) -> list[str]:
        return [module for module in self.needs if importlib.util.find_spec(module) is None]


@dataclass(frozen=True)
class Server:
    """A running server."""

    kind: Kind
    pid: int
    port: int

    def cpu_ns(self) -> int:
        """CPU time of the process in nanoseconds, all its threads, without its children."""
        # The clock that clock_getcpuclockid(3) would give for this process; Python has no call for it.
        return time.clock_gettime_ns((~self.pid << 3) | CPUCLOCK_SCHED)

    def resident_bytes(self) -> int:
        """Rss of the process. Not Pss: that falls when another process maps the same libraries."""
        with open(f"/proc/{self.pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
        raise BenchmarkError("no Rss in smaps_rollup")


def tcpjson(port: str = "tcp:0:interface=127.0.0.1") -> Kind:
    """Our server on an endpoint of loopback."""
    twistd = ("-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile=")
    return Kind("tcpjson", "tcpjson", (*twistd, "tcpjson", "--port", port), ("twisted", "msgspec", "tcpjson"))


@dataclass(frozen=True)
class Certificate:
    """What a server over TLS and its clients need: the server's endpoint, and the file of the authority."""

    port: str
    authority: str


def make_certificate(folder: Path) -> Certificate:
    """Make an authority and a certificate of it for 127.0.0.1, in files of a folder."""
    try:
        import trustme
    except ImportError:
        raise BenchmarkError("TLS needs a certificate: install trustme") from None
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = {name: str(folder / f"{name}.pem") for name in ("authority", "key", "certificate")}
    authority.cert_pem.write_to_path(files["authority"])
    issued.private_key_pem.write_to_path(files["key"])
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    key, certificate = (
        files[name].replace("\\", "\\\\").replace(":", "\\:") for name in ("key", "certificate")
    )
    port = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    return Certificate(port, files["authority"])


TCPJSON = tcpjson()


def _peer(name: str, label: str, program: str, *needs: str) -> Kind:
    # By its path: so nothing of tcpjson is in the process.
    return Kind(name, label, ("-P", str(PEERS / f"{program}.py"), "0"), needs)


UVLOOP = _peer("uvloop", "uvloop+orjson", "uvloop_orjson", "uvloop", "orjson")
STREAMS = _peer("streams", "streams+json", "asyncio_streams")
TWISTED = _peer("twisted", "twisted+json", "twisted_json", "twisted")
KINDS = {kind.name: kind for kind in (TCPJSON, UVLOOP, STREAMS, TWISTED)}


def usable(names: Sequence[str]) -> list[Kind]:
    """Return the servers of these names that can be imported; say of each other one what is missing."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    found = []
    for name in names:
        missing = KINDS[name].missing()
        if missing:
            print(f"{KINDS[name].label} is left out: install {' '.join(missing)}", flush=True)
        else:
            found.append(KINDS[name])
    return found


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that everything started is ended."""

    def leave(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def raise_file_limit() -> int:
    """Set the soft limit of open files to the hard one, for the servers too; return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, by force if it must be."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cores() -> tuple[int | None, int | None]:
    """A core for the server and another one for the load; None, twice, where there is one core only."""
    usable_cores = sorted(os.sched_getaffinity(0))
    if len(usable_cores) < 2:
        print("only one core: server and load share it, and the figures are worth little")
        return None, None
    return usable_cores[-1], usable_cores[0]


def environment(root: Path) -> dict[str, str]:
    """What a process needs that imports from a folder before all others."""
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


@contextlib.contextmanager
def started(kind: Kind, core: int | None = None) -> Iterator[Server]:
    """Start a server on a free port of loopback, on one core if given, and end it afterwards."""
    # The log goes to a file: nobody need read it while the server runs.
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [sys.executable, *kind.command],
            cwd=kind.root,
            env=environment(kind.root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            if core is not None:
                os.sched_setaffinity(process.pid, {core})
            port = _port_of(kind, process, log.fileno())
            yield Server(kind, process.pid, port)
            if process.poll() is not None:
                raise BenchmarkError(f"{kind.label} ended by itself, with status {process.returncode}")
        finally:
            stop(process)


def _port_of(kind: Kind, process: subprocess.Popen[str], log: int) -> int:
    """Wait until the log says where the server listens."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        said = os.pread(log, 1 << 20, 0).decode(errors="replace")
        match = LISTENING.search(said)
        if match:
            return int(match[1])
        if ended or time.monotonic() > deadline:
            raise BenchmarkError(f"{kind.label} did not come to listen; it said:\n{said[-4000:]}")
        time.sleep(0.01)


def build_loadgen(folder: Path) -> Path:
    """Compile the load generator into a folder (``CC`` and ``CFLAGS`` are heeded) and return its path."""
    program = folder / "loadgen"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = shlex.split(os.environ.get("CFLAGS", "-O2"))
    try:
        subprocess.run(
            [*compiler, "-std=gnu11", *flags, "-o", str(program), str(HERE / "loadgen.c")], check=True
        )
    except FileNotFoundError:
        raise BenchmarkError(f"no C compiler: {compiler[0]} is not there") from None
    except subprocess.CalledProcessError:
        raise BenchmarkError("the load generator does not compile") from None
    return program
