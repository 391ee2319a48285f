"""Resident memory of an idle connection: as it comes, logged in, over TLS.

Some connections are opened and closed first, so that modules loaded late and the allocator's first arenas
do not count, and as many are then opened again and held: what the first ones left free would otherwise be
found again and make the next ones look cheaper. Then the base is read, and the connections are opened in
steps, with readings after each. A server that left much behind when the first connections closed still
looks cheap in the first step, so the later steps are looked at by themselves too, and the worse of the two
figures counts. At the end each connection must answer an echo. What the kernel keeps for a socket is in no
figure.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.clients import Access, Client, Login, Scram, Token
from benchmarks.servers import (
    KINDS,
    ROOT,
    TCPJSON,
    BenchmarkError,
    Certificate,
    Kind,
    Server,
    end_on_sigterm,
    environment,
    make_certificate,
    raise_file_limit,
    started,
    tcpjson,
    usable,
)

TARGET = 3000
TARGET_LOGGED_IN = 3500
TARGET_TLS = 34_000
WARM = 500
ANSWER_SECONDS = 300.0
SETTLE_SECONDS = 0.5
READINGS = 5
FILES_IN_RESERVE = 64
PORTS_AN_ADDRESS = 20_000  # well below the range of ephemeral ports


def open_all(access: Access, count: int, source: str, held: contextlib.ExitStack) -> list[Client]:
    clients: list[Client] = []
    for _ in range(count):
        try:
            clients.append(held.enter_context(access.enter(source)))
        except OSError as error:
            raise BenchmarkError(f"after {len(clients)} connections: {error}") from None
    return clients


def check_all(clients: Sequence[Client]) -> None:
    """See that each connection still answers."""
    for number, client in enumerate(clients):
        try:
            client.send([{"type": "echo", "content": number}])
            client.expect("echo_response", content=number)
        except OSError as error:
            raise BenchmarkError(f"connection {number} no longer answers: {error}") from None


def hold(access: Access, count: int, source: str, pipe: Connection) -> None:
    """A child's work: open its connections, hold them, and check them, each when the parent says so."""
    raise_file_limit()
    with contextlib.ExitStack() as held:
        try:
            clients = open_all(access, count, source, held)
            pipe.send(None)
            with contextlib.suppress(EOFError):
                pipe.recv()
                check_all(clients)
                pipe.send(None)
                pipe.recv()
        except BenchmarkError as error:
            pipe.send(str(error))


@dataclass
class Holder:
    """A child process and the pipe to it."""

    process: BaseProcess
    pipe: Connection


class Crowd:
    """Idle connections, held by child processes; a context manager that closes them."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.opened = 0
        self.holders: list[Holder] = []

    def __enter__(self) -> Crowd:
        return self

    def add(self, count: int) -> None:
        """Open so many connections from one more process, and wait until each is welcome and logged in."""
        # Not forked: a child must not inherit the ends of its siblings' pipes.
        context = multiprocessing.get_context("spawn")
        source = f"127.0.0.{1 + self.opened // PORTS_AN_ADDRESS}"
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(self.access, count, source, theirs), daemon=True)
        process.start()
        theirs.close()
        self.holders.append(Holder(process, ours))
        self._wait(self.holders[-1])
        self.opened += count

    def check(self) -> None:
        """See that all connections still answer."""
        for holder in self.holders:
            holder.pipe.send(None)
            self._wait(holder)

    @staticmethod
    def _wait(holder: Holder) -> None:
        """Wait until a child has done what it was asked."""
        try:
            said = holder.pipe.recv() if holder.pipe.poll(ANSWER_SECONDS) else "it took too long"
        except EOFError:
            said = "it ended"
        if said is not None:
            raise BenchmarkError(f"a client process: {said}")

    def __exit__(self, *exc: object) -> None:
        for holder in self.holders:
            holder.pipe.close()
        for holder in self.holders:
            holder.process.join(30)
            if holder.process.is_alive():
                holder.process.kill()
                holder.process.join()


def settled(server: Server) -> int:
    """The median of several readings, some time apart."""
    readings = []
    for _ in range(READINGS):
        time.sleep(SETTLE_SECONDS)
        readings.append(server.resident_bytes())
    return int(statistics.median(readings))


def measure(server: Server, access: Access, connections: int, steps: int) -> list[tuple[int, int]]:
    """Return the resident bytes at each number of connections, beginning with 0 (above the base)."""
    with Crowd(access) as crowd:
        crowd.add(WARM)
    time.sleep(SETTLE_SECONDS)
    with Crowd(access) as crowd:
        crowd.add(WARM)
        readings = [(0, settled(server))]
        for step in range(1, steps + 1):
            count = connections * step // steps
            crowd.add(count - readings[-1][0])
            readings.append((count, settled(server)))
        crowd.check()
    return readings


def each(first: tuple[int, int], last: tuple[int, int]) -> float:
    """Bytes a connection between two readings."""
    return (last[1] - first[1]) / (last[0] - first[0])


def passwd(*words: str, said: str = "") -> str:
    """Run `python -m tcpjson.passwd` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tcpjson.passwd", *words],
        cwd=ROOT,
        env=environment(ROOT),
        input=said,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchmarkError(f"tcpjson.passwd: {done.stderr.strip()}")
    return done.stdout.strip()


def make_login(mechanism: str, folder: Path) -> tuple[Login, list[str]]:
    """Make a user or a token; returns how to log in, and the words of the server's command."""
    file = str(folder / mechanism)
    words = [f"--auth={mechanism}:{file}"]
    if mechanism == "token":
        return Token(passwd("--token", file, "meter")), words
    password = secrets.token_urlsafe()
    passwd("--password-stdin", file, "meter", said=f"{password}\n")
    return Scram("meter", password), words


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Kind, str | None, Login | None]:
    """Make what the options ask for: the server, the authority to trust, and the login."""
    kind, authority, login = KINDS[options.server], None, None
    if options.tls:
        certificate: Certificate = make_certificate(folder)
        kind, authority = tcpjson(certificate.port), certificate.authority
    if options.auth:
        login, words = make_login(options.auth, folder)
        kind = kind.with_words(words)
        if options.auth == "token" and not options.tls:
            kind = kind.with_words(["--allow-plain-auth"])
    return kind.with_words(options.option), authority, login


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--server", choices=KINDS, default=TCPJSON.name)
    parser.add_argument("--tls", action="store_true", help="over TLS (tcpjson only)")
    parser.add_argument("--auth", choices=("scram", "token"), help="log in on each connection (tcpjson only)")
    parser.add_argument(
        "--connections", type=int, metavar="N", help="beyond the first (default 9000; with --tls 4500)"
    )
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
    if options.connections is None:
        options.connections = 4500 if options.tls else 9000
    if options.steps < 1 or options.connections < options.steps:
        parser.error("--steps must be at least 1, and --connections no less")
    if (options.tls or options.auth) and options.server != TCPJSON.name:
        parser.error(f"--tls and --auth are for {TCPJSON.name}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    end_on_sigterm()
    files = raise_file_limit()
    needed = options.connections + WARM + FILES_IN_RESERVE
    if files < needed:
        print(f"the server may open {files} files and needs {needed}: ulimit -Hn", file=sys.stderr)
        return 1
    if not usable([options.server]):
        return 1
    with tempfile.TemporaryDirectory(prefix="tcpjson-bench-") as folder:
        try:
            kind, authority, login = prepare(options, Path(folder))
            with started(kind) as server:
                access = Access(server.port, authority, login)
                readings = measure(server, access, options.connections, options.steps)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    what = f"{kind.label}{' over TLS' if options.tls else ''}{', ' + options.auth if options.auth else ''}"
    for count, resident in readings:
        print(f"{what}: {count:6} connections  {resident / 2**20:7.1f} MiB")
    whole = each(readings[0], readings[-1])
    later = each(readings[1], readings[-1]) if options.steps > 1 else whole
    target = TARGET_TLS if options.tls else TARGET_LOGGED_IN if options.auth else TARGET
    verdict = "met" if max(whole, later) <= target else "NOT MET"
    print(
        f"resident bytes of the server a connection: {whole:.0f}; after the first step: {later:.0f};"
        f" target {target}: {verdict}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
