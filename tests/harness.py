"""A real `twistd tcpjson` in a process of its own, and peers that speak to it over blocking sockets.

Nothing here waits without a bound: `TIMEOUT` is far above what anything takes, and reached only where it
fails.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import trustme
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import tcpjson
from tcpjson.vectors import strict_json

Message = dict[str, Any]

TIMEOUT = 30.0

# What sending says when the server has closed the connection.
CUT = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)

LOOPBACK = "tcp:0:interface=127.0.0.1"

#: The program of a server: what Python is given by `-c`.
TWISTD = "from twisted.scripts.twistd import run; run()"

_LISTENING = re.compile(r"\] listening on (.*)$")
_REFUSED = re.compile(r"\] refused \S+: (\w+)(?: \(and (\d+) more in \d+ s\))?$")


COMPRESSED = 1 << 31


def frame(payload: bytes, compressed: bool = False) -> bytes:
    """The payload behind its length, with a bit if it is compressed."""
    return struct.pack(">I", len(payload) | compressed << 31) + payload


def encode(message: object) -> bytes:
    """The frame of a JSON value."""
    return frame(json.dumps(message).encode())


def inflate(data: bytes) -> bytes:
    """What was compressed, by one stream and nothing else."""
    stream = zlib.decompressobj()
    payload = stream.decompress(data)
    if not stream.eof or stream.unused_data:
        raise AssertionError(f"not one whole stream: {data[:200]!r}")
    return payload


def until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """
    Look again and again until a condition holds.

    Returns:
        What the condition returned at last.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout:g} seconds: {what}")
        time.sleep(0.005)
    return value


def allow_files(count: int) -> None:
    """See that this process may open so many files more; skip the test where the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise SkipTest(f"no more than {hard} files may be open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@functools.cache
def folder() -> Path:
    """A folder for this process, removed at its end; its name is short, as those of Unix sockets must be."""
    path = Path(tempfile.mkdtemp(prefix="tcpjson-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


class Certificates:
    """A certificate authority, and a certificate of it for 127.0.0.1."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        issued = self._authority.issue_cert("127.0.0.1", "localhost")
        self.key = folder() / "key.pem"
        self.certificate = folder() / "certificate.pem"
        issued.private_key_pem.write_to_path(str(self.key))
        issued.cert_chain_pems[0].write_to_path(str(self.certificate))
        #: The endpoint of a server with this certificate.
        self.port = f"ssl:0:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"

    def context(self) -> ssl.SSLContext:
        """What a client needs that trusts the authority, and nobody else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context

    @functools.cached_property
    def client(self) -> ssl.SSLContext:
        """One such context, to be used and not changed."""
        return self.context()


@functools.cache
def certificates() -> Certificates:
    """The certificates of this process."""
    return Certificates()


def command(
    *arguments: str, soft_files: int | None = None, files: int | None = None, program: str = TWISTD
) -> tuple[list[str], dict[str, str]]:
    """
    How to run twistd with arguments: the command and its environment.

    Args:
        arguments: those of twistd.
        soft_files: the soft limit of open files that it shall start with.
        files: the limit of open files, which it cannot raise.
        program: what runs twistd.
    """
    environment = dict(os.environ)
    root = Path(tcpjson.__file__).resolve().parent.parent
    # A bare checkout is on our path, perhaps by a relative name; an installed package needs no help.
    if (root / "setup.cfg").exists():
        others = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([str(root), *others])
    words = [sys.executable, "-c", program, *arguments]
    for option, count in (("-S -n", soft_files), ("-n", files)):
        if count is not None:
            words = ["/bin/sh", "-c", f'ulimit {option} {count} && exec "$@"', "sh", *words]
    return words, environment


class Server:
    """
    A running `twistd -n tcpjson`, listening.

    Args:
        options: those of tcpjson.
        ports: the values of `--port`; none of them leaves it to the default.
        soft_files, files, program: as of `command`.
        cwd: the folder that it runs in; ours when None.

    Raises:
        AssertionError: it ended, or did not listen in time; the message holds what it printed.
    """

    def __init__(
        self,
        *options: str,
        ports: Iterable[str] = (LOOPBACK,),
        soft_files: int | None = None,
        files: int | None = None,
        program: str = TWISTD,
        cwd: Path | None = None,
    ) -> None:
        given = [word for port in ports for word in ("--port", port)]
        arguments = ["-n", "--pidfile=", "tcpjson", *given, *options]
        words, environment = command(*arguments, soft_files=soft_files, files=files, program=program)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self.process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            found = self.wait_for(_LISTENING.pattern, max(1, len(given) // 2))
        except BaseException:
            self.stop()
            raise
        #: Where it listens, in the order of `ports`.
        self.addresses = [match[1] for match in found]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def log(self) -> list[str]:
        """The lines that it printed so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, pattern: str, count: int = 1, since: int = 0) -> list[re.Match[str]]:
        """
        Wait until so many lines of the log, from the line `since` on, match; returns the matches.

        Raises:
            AssertionError: they were not there in time, or the server ended before.
        """
        found: list[re.Match[str]] = []
        looked = since
        deadline = time.monotonic() + TIMEOUT
        with self._changed:
            while True:
                for line in self._lines[looked:]:
                    match = re.search(pattern, line)
                    if match:
                        found.append(match)
                looked = len(self._lines)
                left = deadline - time.monotonic()
                if len(found) >= count:
                    return found
                if self._closed or left <= 0:
                    ended = "the server ended" if self._closed else f"{TIMEOUT:g} seconds are over"
                    text = "\n".join(self._lines[-60:])
                    raise AssertionError(
                        f"{ended}, and {len(found)} of {count} lines matched {pattern!r}:\n{text}"
                    )
                self._changed.wait(left)

    def disconnects(self, client_id: str, since: int = 0) -> dict[str, str]:
        """Wait for the line that tells of a client's end; returns its figures by their names."""
        match = self.wait_for(rf"\] disconnected {re.escape(client_id)} (.*)$", since=since)[0]
        return dict(part.split("=", 1) for part in match[1].split())

    def refusals(self) -> list[Counter[str]]:
        """
        How many connections were refused at once, by their codes, for each line that tells of some: of a code
        the first at once, the others a minute later, or when the server ends.
        """
        found = [match for line in self.log if (match := _REFUSED.search(line))]
        return [Counter({match[1]: 1 + int(match[2] or 0)}) for match in found]

    def reasons(self) -> Counter[str]:
        """
        How many connections have ended, by the codes that the log gives; of those that were refused all are
        there when the server has ended.
        """
        counts = sum(self.refusals(), Counter[str]())
        for line in self.log:
            if match := re.search(r"\] disconnected \S+ (?:user=.* )?reason=(\S+) (why=\S+ )?seconds=", line):
                counts[match[1]] += 1
        return counts

    def tells(self, ends: dict[str, int]) -> bool:
        """Whether the log tells these ends, by their codes; of refused ones it may tell the first alone."""
        told, refused = self.reasons(), sum(self.refusals(), Counter[str]())
        return told.keys() == ends.keys() and all(
            count <= ends[code] if code in refused else count == ends[code] for code, count in told.items()
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first endpoint."""
        return self.tcp_address(0)

    def tcp_address(self, index: int) -> tuple[str, int]:
        """Host and port of an endpoint."""
        host, _, port = self.addresses[index].rpartition(":")
        return host.strip("[]"), int(port)

    def _proc(self, name: str) -> Path:
        """A file or folder of /proc that tells of it; skips the test where there is none."""
        path = Path(f"/proc/{self.process.pid}/{name}")
        if not path.exists():
            raise SkipTest("needs /proc")
        return path

    def _memory(self, name: str) -> int:
        """A figure of /proc/PID/status, in bytes; raises `SkipTest` where the system does not say."""
        text = self._proc("status").read_text(encoding="ascii", errors="replace")
        match = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
        assert match is not None
        return int(match[1]) * 1024

    def rests(self) -> int:
        """How often it has waited for something to do; raises `SkipTest` where the system does not say."""
        text = self._proc("status").read_text(encoding="ascii", errors="replace")
        match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)$", text, re.MULTILINE)
        assert match is not None
        return int(match[1])

    def resident(self) -> int:
        """
        Its resident memory, in bytes.

        Raises:
            SkipTest: the system does not say.
        """
        return self._memory("VmRSS")

    def peak(self) -> int:
        """
        The most memory that was resident since the start, or `reset_peak`, in bytes.

        Raises:
            SkipTest: the system does not say.
        """
        return self._memory("VmHWM")

    def reset_peak(self) -> None:
        """
        Have `peak` count from now on.

        Raises:
            SkipTest: the system does not do it.
        """
        # "Reset the peak resident set size" (proc(5)).
        self._proc("clear_refs").write_text("5", encoding="ascii")

    def cpu(self) -> float:
        """
        The CPU time that it has used, in seconds, to 10 ms.

        Raises:
            SkipTest: the system does not say.
        """
        # The second field is the name, in parentheses; utime and stime are the 14th and the 15th.
        fields = self._proc("stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """
        How many files it has open, sockets among them.

        Raises:
            SkipTest: the system does not say.
        """
        return len(os.listdir(self._proc("fd")))

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait until it has ended and all of its log is there; returns its status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self) -> int:
        """End it, by force where it does not go; returns its status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.wait()


@functools.cache
def shared(*options: str, ports: tuple[str, ...] = (LOOPBACK,), cwd: Path | None = None) -> Server:
    """The server with these options that the test cases of this process share."""
    server = Server(*options, ports=ports, cwd=cwd)
    atexit.register(server.stop)
    return server


class Ended(Exception):
    """The server closed the connection where a frame was due. `reset`: by force, and not in order."""

    def __init__(self, text: str, reset: bool) -> None:
        super().__init__(text)
        self.reset = reset


class Peer:
    """A client of raw frames on a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(TIMEOUT)
        self.buffer = bytearray()
        self.welcome: Message = {}
        #: Whether compression was agreed on, and how many payloads came compressed.
        self.compresses = False
        self.inflated = 0

    @property
    def client_id(self) -> str:
        """What `welcome` called us."""
        return str(self.welcome["client_id"])

    def write(self, data: bytes) -> None:
        """Send bytes, all of them."""
        self.socket.sendall(data)

    def send(self, *messages: object) -> None:
        """Send JSON values, a frame each, in one write."""
        self.write(b"".join(map(encode, messages)))

    def write_what_fits(self, data: bytes | memoryview) -> int:
        """Send until the sockets' buffers are full, or all is sent; returns how many bytes were."""
        self.socket.setblocking(False)
        sent = 0
        try:
            while sent < len(data):
                sent += self.socket.send(memoryview(data)[sent : sent + 65536])
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        finally:
            self.socket.settimeout(TIMEOUT)
        return sent

    def fill(self) -> bool:
        """
        Read once what is there; False at the end.

        Raises:
            Ended: the connection was reset.
        """
        try:
            data = self.socket.recv(262144)
        except CUT as error:
            raise Ended(f"{error} after {bytes(self.buffer[:200])!r}", True) from None
        self.buffer += data
        return bool(data)

    def nothing_for(self, seconds: float) -> None:
        """
        See that nothing comes for a time.

        Raises:
            AssertionError: something did, or the end.
        """
        self.socket.settimeout(seconds)
        try:
            came = self.fill()
        except TimeoutError:
            return
        finally:
            self.socket.settimeout(TIMEOUT)
        raise AssertionError(f"came unasked: {bytes(self.buffer[:200])!r}" if came else "the end came")

    def payload(self) -> bytes:
        """
        The next payload.

        Raises:
            Ended: the connection ended before it was complete.
        """
        while (end := self._end(0)) > len(self.buffer):
            if not self.fill():
                raise Ended(f"end after {bytes(self.buffer[:200])!r}", False)
        payload = self._payload(0, end)
        del self.buffer[:end]
        return payload

    def payloads(self, count: int) -> list[bytes]:
        """The next payloads, so many."""
        # Cutting the front off the buffer for each of many would take long.
        found: list[bytes] = []
        while len(found) < count:
            position = 0
            while len(found) < count and (end := self._end(position)) <= len(self.buffer):
                found.append(self._payload(position, end))
                position = end
            del self.buffer[:position]
            if len(found) < count and not self.fill():
                raise Ended(f"end after {len(found)} of {count} frames", False)
        return found

    def _end(self, start: int) -> int:
        """Where the frame that begins at `start` ends in the buffer; behind its end where it is not whole."""
        prefix = self.buffer[start : start + 4]
        if len(prefix) < 4:
            return len(self.buffer) + 1
        length = int.from_bytes(prefix, "big")
        if length >= COMPRESSED:
            if not self.compresses:
                raise AssertionError(f"a compressed frame came unasked: {bytes(self.buffer[start:][:200])!r}")
            length -= COMPRESSED
        return start + 4 + length

    def _payload(self, start: int, end: int) -> bytes:
        """The payload of a whole frame in the buffer."""
        payload = bytes(self.buffer[start + 4 : end])
        if self.buffer[start] & 0x80:
            payload = inflate(payload)
            self.inflated += 1
        elif not self.compresses and b'"hello_response"' in payload:
            message = json.loads(payload)
            self.compresses = (message["type"], message.get("compression")) == ("hello_response", "zlib")
        return payload

    def receive(self) -> Message:
        """The next message, which must be strict JSON and an object."""
        payload = self.payload()
        message = strict_json(payload)
        if not isinstance(message, dict):
            raise AssertionError(f"no message: {payload[:200]!r}")
        return message

    def ask(self, message: object) -> Message:
        """Send a request and return the next message."""
        self.send(message)
        return self.receive()

    def stats(self) -> Message:
        """The server's statistics."""
        return self.ask({"type": "get_stats"})

    def rest(self) -> list[Message]:
        """
        All messages up to the end, which must come between two frames.

        Raises:
            Ended: it came within a frame, or as a reset.
        """
        messages: list[Message] = []
        while True:
            try:
                messages.append(self.receive())
            except Ended as ended:
                if ended.reset or self.buffer:
                    raise
                return messages

    def until_end(self) -> Iterator[Message]:
        """All messages up to the end, be it a reset; what is left in `buffer` then was cut."""
        while True:
            try:
                yield self.receive()
            except Ended:
                return

    def ending(self) -> Message:
        """
        The fatal error that comes now, and behind it the end, in order.

        Raises:
            AssertionError: something else came.
            Ended: the connection was reset, or ended before.
        """
        error, rest = self.receive(), self.rest()
        if (error["type"], error.get("fatal"), rest) != ("error", True, []):
            raise AssertionError(f"no fatal error and the end: {[error, *rest]}")
        return error

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def reset(self) -> None:
        """Close the socket by force."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def _with_log(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """A test whose failures tell what the servers logged meanwhile; a traceback there is a failure."""

    @functools.wraps(method)
    def run(case: ServerTestCase) -> None:
        try:
            method(case)
            for server, start in case.servers:
                case.assertNotIn("Traceback", "\n".join(server.log[start:]))
        except SkipTest:
            raise
        except Exception as error:
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            parts = [text]
            for server, start in case.servers:
                lines = server.log[start:]
                parts += ["--- the server's log ---", *lines[:20]]
                if len(lines) > 20:
                    parts += ["[...]", *lines[max(20, len(lines) - 40) :]]
            raise case.failureException("\n".join(parts)).with_traceback(error.__traceback__) from None

    return run


class ServerTestCase(SynchronousTestCase):
    """
    Tests that share a server with others of the same options, or start their own.

    What the server logged is part of each failure; a traceback there is one, too.
    """

    #: The options of the server that is shared.
    options: tuple[str, ...] = ()
    #: Speak TLS.
    tls = False
    #: Begin with a PROXY header that tells our own address.
    proxied = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, member in list(vars(cls).items()):
            if name.startswith("test"):
                setattr(cls, name, _with_log(member))

    def __init__(self, methodName: str = "runTest") -> None:
        super().__init__(methodName)
        #: The servers of this test, and how many lines of their logs are of earlier ones.
        self.servers: list[tuple[Server, int]] = []

    @property
    def port(self) -> str:
        """The endpoint that servers of this case listen on."""
        port = certificates().port if self.tls else LOOPBACK
        return f"haproxy:{port}" if self.proxied else port

    @property
    def server(self) -> Server:
        """The shared server."""
        return self.watch(shared(*self.options, ports=(self.port,)))

    def watch(self, server: Server) -> Server:
        """Add a server's log to failures of this test."""
        if all(server is not known for known, _ in self.servers):
            self.servers.append((server, len(server.log)))
        return server

    def start(
        self,
        *options: str,
        ports: Iterable[str] | None = None,
        soft_files: int | None = None,
        files: int | None = None,
        cwd: Path | None = None,
    ) -> Server:
        """Start a server for this test alone."""
        ports = [self.port] if ports is None else ports
        server = Server(*options, ports=ports, soft_files=soft_files, files=files, cwd=cwd)
        self.addCleanup(server.stop)
        self.servers.append((server, 0))
        return server

    def dial(
        self,
        server: Server,
        *,
        index: int = 0,
        source: str | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
    ) -> socket.socket:
        """
        A bare TCP connection to a server, closed at the end of the test.

        Args:
            server: where to.
            index: to which of its endpoints.
            source: the address that it comes from.
            receive_buffer, send_buffer: sizes of its socket's buffers in bytes; the system's when None.
        """
        host, number = server.tcp_address(index)
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.addCleanup(connection.close)
        # Before the connection: the window that a peer is told grows with it.
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        connection.settimeout(TIMEOUT)
        if source is not None:
            connection.bind((source, 0))
        connection.connect((host, number))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def connect(
        self,
        server: Server | None = None,
        *,
        index: int = 0,
        source: str | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        greet: bool = True,
    ) -> Peer:
        """
        A client, over TLS or with a PROXY header where the case says so.

        Args:
            server: the shared one when left out.
            index, source, receive_buffer, send_buffer: as of `dial`.
            greet: read `welcome`.
        """
        connection = self.dial(
            server or self.server,
            index=index,
            source=source,
            receive_buffer=receive_buffer,
            send_buffer=send_buffer,
        )
        if self.tls:
            connection = certificates().client.wrap_socket(connection, server_hostname="127.0.0.1")
            self.addCleanup(connection.close)
        peer = Peer(connection)
        if self.proxied:
            host, number = connection.getsockname()
            peer.write(b"PROXY TCP4 %s 127.0.0.1 %d 9999\r\n" % (host.encode(), number))
        if greet:
            peer.welcome = peer.receive()
            self.assertEqual(peer.welcome["type"], "welcome")
        return peer

    def figures(self, client_id: str) -> dict[str, str]:
        """`disconnects` of the shared server. Ports come again: what earlier tests did does not count."""
        server = self.server
        return server.disconnects(client_id, next(start for known, start in self.servers if known is server))

    def ends_as(self, code: str, peer: Peer, server: Server, witness: Peer) -> Message:
        """
        See that a client's end has one code: in the error that is the last it gets, in the log, in the
        statistics.

        Returns:
            The error.
        """
        *_, error = peer.rest()
        self.assertEqual((error["type"], error.get("code"), error.get("fatal")), ("error", code, True))
        peer.close()
        self.assertEqual(server.disconnects(peer.client_id)["reason"], code)
        self.same_reasons(server, witness)
        return error

    def same_reasons(self, server: Server, witness: Peer, expected: dict[str, int] | None = None) -> None:
        """
        See that the statistics tell the same of all ends as the log, where a refusal comes late, or only when
        the server ends; and that it is what is expected.
        """
        found: dict[str, int] = {}

        def same() -> bool:
            found.clear()
            found.update(witness.stats()["details"]["disconnects"])
            return server.tells(found) and expected in (None, found)

        try:
            until(same, "statistics and log tell the same", 5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}, {server.reasons()}, {expected}") from None

    def alone(self, peer: Peer, others: int = 0) -> None:
        """Wait until the server counts no clients but this one and so many others."""
        until(lambda: peer.stats()["connected_clients"] == 1 + others, "the others left")
