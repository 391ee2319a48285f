"""What systemd is told, and the sockets that it passes."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.testing import MemoryReactorClock

from tcpjson import TCPJSONServerFactory
from tcpjson.systemd import ActivatedEndpoint, Notifier
from tcpjson.test.test_service import FakeSystemd, ServiceCase
from tcpjson.test.wires import Loop, Wire


class NotifierTests(ServiceCase):
    """`Notifier`."""

    def test_messages(self) -> None:
        """In the words of sd_notify(3); the clock is told in microseconds."""
        systemd = FakeSystemd(self)
        notifier = Notifier(systemd.environ(), 1, monotonic=lambda: 12_345_999)
        notifier.ready("listening on 127.0.0.1:9999")
        notifier.reloading()
        notifier.stopping("shutting down", 2.5)
        notifier.alive()
        self.assertEqual(
            systemd.told(),
            [
                ["READY=1", "STATUS=listening on 127.0.0.1:9999"],
                ["RELOADING=1", "MONOTONIC_USEC=12345"],
                ["STOPPING=1", "EXTEND_TIMEOUT_USEC=7500000", "STATUS=shutting down"],
                ["WATCHDOG=1"],
            ],
        )

    def test_the_clock_is_that_of_systemd(self) -> None:
        systemd = FakeSystemd(self)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        Notifier(systemd.environ(), 1).reloading()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        [[_, line]] = systemd.told()
        self.assertTrue(before <= int(line.removeprefix("MONOTONIC_USEC=")) <= after, line)

    def test_names_that_are_no_files(self) -> None:
        systemd = FakeSystemd(self, abstract=True)
        environ = systemd.environ()
        self.assertTrue(environ["NOTIFY_SOCKET"].startswith("@"))
        Notifier(environ, 1).alive()
        self.assertEqual(systemd.told(), [["WATCHDOG=1"]])

    def test_nothing_is_left_for_children(self) -> None:
        environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
        Notifier(environ, 1)
        self.assertEqual(environ, {"HOME": "/"})

    def test_nobody_asks(self) -> None:
        lines = self.lines()
        notifier = Notifier({}, 1)
        notifier.ready("here")
        self.assertIsNone(notifier.interval)
        self.assertEqual(lines(), [])

    def test_the_watchdog(self) -> None:
        """It is fed twice in its time, if it watches this process, and there is somebody to tell."""
        for variables, interval in (
            ({"WATCHDOG_USEC": "3000000"}, 1.5),
            ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "17"}, 1.5),
            ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "18"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
            ({"WATCHDOG_USEC": "9" * 5000}, None),
            ({"WATCHDOG_USEC": ""}, None),
            ({"WATCHDOG_PID": "17"}, None),
        ):
            environ = {"NOTIFY_SOCKET": "/x", **variables}
            self.assertEqual(Notifier(environ, 17).interval, interval, variables)
        self.assertIsNone(Notifier({"WATCHDOG_USEC": "3000000"}, 17).interval)

    def test_a_status_is_one_line(self) -> None:
        """Whatever is in the names of files: it must not say more than it is."""
        systemd = FakeSystemd(self)
        notifier = Notifier(systemd.environ(), 1)
        notifier.ready("listening on /run/a\nSTOPPING=1, \0b, \udcff")
        notifier.stopping("a\n\nb", 1)
        ready, stopping = systemd.told()
        self.assertEqual(ready, ["READY=1", "STATUS=listening on /run/a STOPPING=1, @b, ?"])
        self.assertEqual(stopping[2:], ["STATUS=a b"])

    def test_nobody_is_there(self) -> None:
        """A line, and no second one before it has worked in between."""
        systemd = FakeSystemd(self)
        path = systemd.environ()["NOTIFY_SOCKET"]
        lines = self.lines()
        notifier = Notifier({"NOTIFY_SOCKET": path}, 1)
        for _ in range(2):
            os.rename(path, f"{path}.away")
            for _ in range(3):
                notifier.alive()
            [line] = lines()
            self.assertRegex(line, "^systemd cannot be told WATCHDOG=1: .*No such file")
            os.rename(f"{path}.away", path)
            notifier.alive()
        self.assertEqual(lines(), [])
        self.assertEqual(systemd.told(), [["WATCHDOG=1"]] * 2)

    def test_names_that_cannot_be(self) -> None:
        lines = self.lines()
        for name in ("/x" * 200, "@" + "x" * 200, "vsock:2:1234", "/\udcff"):
            Notifier({"NOTIFY_SOCKET": name}, 1).alive()
            self.assertEqual(len(lines()), 1, name)

    def test_systemd_does_not_read(self) -> None:
        """Nobody waits for it."""
        systemd = FakeSystemd(self)
        lines = self.lines()
        notifier = Notifier(systemd.environ(), 1)
        for _ in range(10_000):
            notifier.alive()
        [line] = lines()
        self.assertIn("Resource temporarily unavailable", line)
        # What is said once has more patience.
        before = time.monotonic()
        notifier.ready("now")
        self.assertGreaterEqual(time.monotonic() - before, 0.9)
        systemd.told()
        notifier.ready("again")
        self.assertEqual(systemd.told(), [["READY=1", "STATUS=again"]])

    def test_no_descriptor_is_kept(self) -> None:
        systemd = FakeSystemd(self)
        notifier = Notifier(systemd.environ(), 1)
        before = os.listdir("/dev/fd")
        notifier.alive()
        self.assertEqual(os.listdir("/dev/fd"), before)


class AdoptingLoop(Loop):
    """One that takes over sockets of the internet, as Twisted's reactors do."""

    def adoptStreamPort(self, descriptor: int, family: int, factory: IProtocolFactory) -> tcp.Port:
        port: tcp.Port = tcp.Port._fromListeningDescriptor(self, descriptor, family, factory)
        port.startListening()
        return port


class ActivatedTests(ServiceCase):
    """`ActivatedEndpoint`."""

    def setUp(self) -> None:
        self.loop = AdoptingLoop()
        self.addCleanup(self.loop.close)
        self.factory = TCPJSONServerFactory(self.loop)

    def passed(self, listening: socket.socket) -> int:
        """The descriptor of a copy of a socket, as systemd passes one."""
        self.addCleanup(listening.close)
        return os.dup(listening.fileno())

    def unix_socket(self, backlog: int = 200) -> tuple[socket.socket, Path]:
        """A Unix socket that only its owner may use, and its path."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "s")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(backlog)
        return listening, path

    def listen(self, endpoint: ActivatedEndpoint) -> Any:
        port: Any = self.successResultOf(endpoint.listen(self.factory))
        return port

    def greeted(self, client: socket.socket) -> None:
        """Wait until a client has got its `welcome`."""
        wire = Wire(self.loop, client)
        for _ in range(1000):
            if wire.take(1 << 16):
                break
            self.loop.turn(0.01)
        self.assertIn(b'"welcome"', wire.data)

    def test_of_the_internet(self) -> None:
        """A client that came before us is served, with all that is set for clients of ports of our own."""
        listening = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listening.getsockname())
        self.addCleanup(client.close)
        descriptor = self.passed(listening)
        endpoint = ActivatedEndpoint(self.loop, descriptor)
        self.assertFalse(endpoint.local)
        port = self.listen(endpoint)
        self.assertEqual(port.getHost().port, listening.getsockname()[1])
        self.assertRaises(OSError, os.fstat, descriptor)
        self.greeted(client)
        [connection] = self.factory.connections
        handle = connection.transport.getHandle()
        for level, option, least in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000),
        ):
            self.assertGreaterEqual(handle.getsockopt(level, option), least)
        self.outlives(port, listening)

    def outlives(self, port: Any, listening: socket.socket) -> None:
        """See that a socket is listened on when a port of ours has stopped."""
        stopped = port.stopListening()
        self.loop.settle()
        self.successResultOf(stopped)
        self.assertFalse(port.connected)
        with socket.socket(listening.family) as client:
            client.settimeout(5)
            client.connect(listening.getsockname())
            self.assertEqual(self.loop.turn(), False)
            listening.setblocking(False)
            accepted, _ = listening.accept()
            accepted.close()

    def test_of_unix(self) -> None:
        """Its file, and who may use it, stay as they are; and it is no port of ours that ends."""
        listening, path = self.unix_socket()
        endpoint = ActivatedEndpoint(self.loop, self.passed(listening))
        self.assertTrue(endpoint.local)
        port = self.listen(endpoint)
        self.assertEqual(os.fsdecode(port.getHost().name), str(path))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            self.greeted(client)
        self.outlives(port, listening)

    def test_the_backlog_stays(self) -> None:
        for family in (socket.AF_UNIX, socket.AF_INET):
            if family == socket.AF_UNIX:
                listening, _ = self.unix_socket()
            else:
                listening = socket.create_server(("127.0.0.1", 0), backlog=200)
            self.listen(ActivatedEndpoint(self.loop, self.passed(listening)))
            for _ in range(150):
                client = socket.socket(family)
                self.addCleanup(client.close)
                client.setblocking(False)
                client.connect_ex(listening.getsockname())
                poll = select.poll()
                poll.register(client, select.POLLOUT)
                [(_, event)] = poll.poll(5000)
                self.assertEqual((event, client.getpeername()), (select.POLLOUT, listening.getsockname()))

    def test_no_accept_waits(self) -> None:
        """It may be passed in blocking mode."""
        for listening in (socket.create_server(("127.0.0.1", 0)), self.unix_socket()[0]):
            listening.setblocking(True)
            self.listen(ActivatedEndpoint(self.loop, self.passed(listening)))
            self.assertFalse(os.get_blocking(listening.fileno()))

    def test_the_family_is_that_of_the_socket(self) -> None:
        memory = MemoryReactorClock()
        with socket.socket(socket.AF_INET6) as listening:
            listening.listen()
            self.listen(ActivatedEndpoint(memory, os.dup(listening.fileno())))
        [(_, family, factory)] = memory.adoptedPorts
        self.assertEqual((family, factory), (socket.AF_INET6, self.factory))

    def test_what_does_not_listen(self) -> None:
        first, second = socket.socketpair()
        self.addCleanup(second.close)
        for found in (first, socket.socket(), socket.socket(type=socket.SOCK_DGRAM)):
            descriptor = self.passed(found)
            self.addCleanup(os.close, descriptor)
            error = self.assertRaises(ValueError, ActivatedEndpoint, self.loop, descriptor)
            self.assertEqual(str(error), "systemd passed a socket that does not listen")

    def test_what_is_no_socket(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        self.assertRaises(OSError, ActivatedEndpoint, self.loop, reading)
        os.close(reading)
        self.assertRaises(OSError, ActivatedEndpoint, self.loop, reading)

    def test_listened_on_twice(self) -> None:
        """By two `--port` of one name: that is an error of the second."""
        listening = socket.create_server(("127.0.0.1", 0))
        descriptor = self.passed(listening)
        first, second = ActivatedEndpoint(self.loop, descriptor), ActivatedEndpoint(self.loop, descriptor)
        self.listen(first)
        self.failureResultOf(second.listen(self.factory), OSError)
