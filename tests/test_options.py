"""The command line, the log, and how the server starts and ends."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

from tcpjson import __version__
from tcpjson.tap import Options
from tests.harness import (
    LOOPBACK,
    TIMEOUT,
    Peer,
    Server,
    ServerTestCase,
    allow_files,
    certificates,
    command,
    encode,
    folder,
    until,
)


class Program:
    """A `twistd` that is to end by itself, started and not waited for."""

    def __init__(self, *arguments: str) -> None:
        words, environment = command(*arguments)
        self._process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def ended(self) -> tuple[int, str]:
        """Wait for its end; returns its status and what it printed."""
        try:
            output, _ = self._process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            raise AssertionError(f"it did not end:\n{output}") from None
        return self._process.returncode, output


def serve(*options: str) -> Program:
    """The server with options that it is to refuse."""
    return Program("-n", "--pidfile=", "tcpjson", *options)


# Options for which 0 means off.
OFF = ("--idle-timeout", "--heartbeat", "--max-connections-per-ip", "--rate", "--byte-rate")


class RefusalTests(ServerTestCase):
    """What cannot be served ends with one clear line and a status other than 0."""

    def refused(self, *rows: tuple[str, ...]) -> list[str]:
        """For each row of options the line that says why it is refused, which is all that is printed."""
        lines = []
        for program in [serve(*row) for row in rows]:
            status, output = program.ended()
            self.assertNotEqual(status, 0, output)
            self.assertEqual(len(output.splitlines()), 1, output)
            self.assertRegex(output, "^tcpjson: ")
            lines.append(output.strip())
        return lines

    def cannot_listen(self, *options: str) -> str:
        """The line that says why, among those that twistd itself logs as it starts."""
        status, output = serve(*options).ended()
        self.assertNotEqual(status, 0, output)
        self.assertNotIn("Traceback", output)
        [line] = [line for line in output.splitlines() if "tcpjson: " in line]
        self.assertIn("cannot listen on ", line)
        return line

    def test_bad_options(self) -> None:
        lines = self.refused(("--bogus",), ("--strict=1",), ("--port",), ("an argument",))
        for line, name in zip(lines, ("--bogus", "--strict", "port", ""), strict=True):
            self.assertIn(name, line)

    def test_bad_numbers(self) -> None:
        [line] = self.refused(("--max-length", "many"))
        self.assertIn("--max-length", line)
        self.assertIn("many", line)

    def test_each_bad_number(self) -> None:
        """Not in processes of their own: there are many."""
        sizes = ("--max-length", "--max-queue", "--send-buffer", "--receive-buffer")
        times = ("--write-timeout", "--frame-timeout", "--handler-timeout", "--auth-timeout", "--grace")
        counts = ("--max-connections", "--max-connections-per-ip", "--max-handlers")
        rates = ("--rate", "--byte-rate")
        cases = [(name, value) for name in sizes for value in ("x", "0", "-1", "1.5", "1e3", "", "9" * 30)]
        cases += [(name, value) for name in times for value in ("x", "0", "-1", "nan", "inf", "")]
        # Where 0 means off.
        cases += [(name, value) for name in OFF[:2] for value in ("x", "-1", "nan", "inf", "", "0.0")]
        cases += [(name, value) for name in counts for value in ("x", "-1", "1.5", "1e3", "", "9" * 30)]
        cases += [
            (name, value)
            for name in rates
            for value in ("x", "-1", "0:5", "5:0", "5:", ":5", "5:1.5", "1:2:3", "nan", "inf", "")
        ]
        cases += [("--rate-policy", value) for value in ("", "x", "Throttle")]
        cases += [
            ("--max-connections", "0"),
            ("--max-handlers", "0"),
            ("--max-length", str(256 * 1024 * 1024 + 1)),
        ]
        for case in cases:
            error = self.assertRaises(SystemExit, Options().parseOptions, case)
            self.assertRegex(str(error), rf"\Atcpjson: .*{case[0]}(:| must be ).*\Z")

    def test_more_connections_than_files(self) -> None:
        words, environment = command("-n", "--pidfile=", "tcpjson", "--max-connections", "193", files=256)
        ended = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        self.assertNotEqual(ended.returncode, 0)
        [line] = [line for line in (ended.stdout + ended.stderr).splitlines() if "tcpjson: " in line]
        self.assertRegex(line, "--max-connections: .*192")

    def test_bad_endpoints(self) -> None:
        """Though another one is good."""
        bad = ["nonsense:1", "", "tcp:0:bogus=1", "ssl:0:privateKey=/none.pem", "haproxy:nonsense:1"]
        lines = self.refused(*(("--port", LOOPBACK, "--port", port) for port in bad))
        for line, port in zip(lines, bad, strict=True):
            self.assertIn(f"--port {port}: ", line)

    def test_an_endpoint_that_cannot_be(self) -> None:
        self.assertIn("tcp:99999", self.cannot_listen("--port", "tcp:99999"))
        path = folder() / "none" / "x.sock"
        self.assertIn(str(path), self.cannot_listen("--port", f"unix:{path}"))

    def test_a_taken_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            line = self.cannot_listen("--port", port)
        self.assertIn(port, line)
        self.assertIn("in use", line)

    def test_a_taken_port_in_the_background(self) -> None:
        """The terminal is told, and no pid file stays."""
        place = folder()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            words, environment = command("tcpjson", "--port", port)
            ended = subprocess.run(
                words,
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        self.assertEqual(ended.returncode, 1, ended)
        self.assertIn("cannot listen on ", ended.stdout + ended.stderr)
        # The terminal is told before.
        until(lambda: not (place / "twistd.pid").exists(), "no pid file")

    def test_one_good_port_and_one_taken(self) -> None:
        """All or nothing."""
        path = folder() / "good.sock"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            self.cannot_listen("--port", port, "--port", f"unix:{path}")
            self.assertFalse(path.exists())
            self.cannot_listen("--port", f"unix:{path}", "--port", port)
        self.assertFalse(path.exists())


class HelpTests(ServerTestCase):
    """What tells of the options."""

    def test_version(self) -> None:
        self.assertEqual(Program("tcpjson", "--version").ended(), (0, f"tcpjson {__version__}\n"))

    def test_help(self) -> None:
        status, output = Program("tcpjson", "--help").ended()
        self.assertEqual(status, 0)
        names = [row[0] for row in [*Options.optFlags, *Options.optParameters]]
        self.assertGreater(len(names), 6)
        for name in [*names, "port", "handlers", "version", "help"]:
            self.assertRegex(output, rf"(?m)^\s+(-\w, )?--{name}\b")
        self.assertIn("tcp:9999:interface=127.0.0.1", output)
        # A default each, or what is done without.
        text = " ".join(output.split())
        for name, _, default, help_text, *_ in Options.optParameters:
            if default is not None:
                self.assertIn(f"{help_text} [default: {default}]", text)
            else:
                self.assertRegex(help_text, r"default|Demand", name)
                self.assertIn(help_text, text)


class PortTests(ServerTestCase):
    """Where it listens."""

    def test_many_ports(self) -> None:
        """Each has a line, port 0 with the real port, and all serve the same clients."""
        path = folder() / "third.sock"
        server = self.start(ports=[LOOPBACK, certificates().port, f"unix:{path}"])
        lines = [line for line in server.log if "listening on" in line]
        self.assertEqual(len(lines), 3)
        self.assertEqual(server.addresses[2], str(path))
        plain = self.connect(server)
        raw = socket.create_connection(server.tcp_address(1), TIMEOUT)
        self.addCleanup(raw.close)
        encrypted = Peer(certificates().client.wrap_socket(raw, server_hostname="127.0.0.1"))
        self.addCleanup(encrypted.close)
        self.assertEqual(encrypted.receive()["type"], "welcome")
        self.assertNotIn(":0", server.addresses[:2])
        self.assertEqual(plain.ask({"type": "broadcast", "content": "x"})["recipients"], 1)
        self.assertEqual(encrypted.receive()["content"], "x")

    def test_the_default(self) -> None:
        """Port 9999 of the loopback interface, and of no other."""
        try:
            socket.create_server(("", 9999)).close()
        except OSError:
            self.skipTest("port 9999 is in use")
        server = self.start(ports=[])
        self.assertEqual(server.addresses, ["127.0.0.1:9999"])
        self.connect(server)
        # On Linux all of 127/8 is there, and would be served by a server that listens everywhere.
        with socket.socket() as other:
            other.settimeout(TIMEOUT)
            self.assertRaises(OSError, other.connect, ("127.0.0.2", 9999))

    def test_everywhere(self) -> None:
        """`tcp:` without an interface means all of them."""
        server = self.start(ports=["tcp:0"])
        _, number = server.address
        connection = socket.create_connection(("127.0.0.1", number), TIMEOUT)
        self.addCleanup(connection.close)
        self.assertEqual(Peer(connection).receive()["type"], "welcome")

    def test_backlog(self) -> None:
        """Two thousand clients that come while the server is busy are not turned away, and served then."""
        count = 2000
        try:
            most = int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
        except FileNotFoundError:
            self.skipTest("needs /proc")
        if most < 4096:
            self.skipTest(f"the system allows a backlog of {most}")
        allow_files(count)
        server = self.start()
        server.signal(signal.SIGSTOP)
        start = time.monotonic()
        peers = [Peer(self.dial(server)) for _ in range(count)]
        # The system tries again after a second where there is no room.
        self.assertLess(time.monotonic() - start, 10)
        server.signal(signal.SIGCONT)
        for peer in peers:
            self.assertEqual(peer.receive()["type"], "welcome")

    def test_limit_of_files(self) -> None:
        """The soft limit is raised: more clients than it allows at the start."""
        count = 300
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * count:
            self.skipTest("too few files may be open here")
        allow_files(count)
        server = self.start(soft_files=128)
        peers = [self.connect(server) for _ in range(count)]
        self.assertEqual(peers[-1].stats()["connected_clients"], count)


class OptionTests(ServerTestCase):
    """What the options do; those of limits have test modules of their own."""

    def test_limits(self) -> None:
        """Not in processes of their own."""
        options = Options()
        text = (
            "--max-connections=5 --max-connections-per-ip=3 --rate=2.5 --byte-rate=1000:50"
            " --rate-policy=observe --idle-timeout=0.5 --auth-timeout=2 --heartbeat=1 --grace=3"
        )
        options.parseOptions(text.split())
        limits = options["limits"]
        self.assertEqual((limits.max_connections, limits.max_connections_per_ip), (5, 3))
        self.assertEqual((limits.messages_per_second, limits.message_burst), (2.5, None))
        self.assertEqual((limits.bytes_per_second, limits.byte_burst), (1000, 50))
        self.assertEqual((limits.rate_policy, limits.idle_timeout), ("observe", 0.5))
        self.assertEqual((limits.auth_timeout, limits.heartbeat, limits.grace), (2, 1, 3))

    def test_off(self) -> None:
        options = Options()
        options.parseOptions([f"{name}=0" for name in OFF])
        limits = options["limits"]
        self.assertEqual((limits.idle_timeout, limits.heartbeat), (None, None))
        self.assertEqual((limits.max_connections_per_ip, limits.message_burst), (None, None))
        self.assertEqual((limits.messages_per_second, limits.bytes_per_second), (None, None))
        options = Options()
        options.parseOptions([])
        limits = options["limits"]
        self.assertEqual((limits.idle_timeout, limits.heartbeat), (None, 25))
        self.assertEqual((limits.messages_per_second, limits.bytes_per_second), (None, None))
        self.assertEqual((limits.rate_policy, limits.auth_timeout, limits.grace), ("throttle", 5, 10))

    def test_strict(self) -> None:
        peer = self.connect(self.start("--strict"))
        self.assertEqual(peer.ask({"type": "mine", "id": 4})["code"], "unknown_type")
        peer.write(b"\0\0\0\x05hello")
        self.assertEqual(peer.receive()["code"], "bad_json")
        self.assertEqual(peer.ask([1])["code"], "bad_message")
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")

    def test_welcome_says_the_limits(self) -> None:
        server = self.start(
            "--max-length", "2000", "--max-queue", "100000", "--write-timeout", "2.5", "--frame-timeout", "7"
        )
        welcome = self.connect(server).welcome
        self.assertEqual(welcome["max_length"], 2000)
        self.assertEqual(welcome["limits"], {"max_queue": 100000, "write_timeout": 2.5, "frame_timeout": 7})
        self.assertEqual(welcome["server"], f"tcpjson/{__version__}")

    def test_max_length(self) -> None:
        server = self.start("--max-length", "2000")
        peer = self.connect(server)
        text = b"x" * 2000
        peer.write(len(text).to_bytes(4, "big") + text)
        self.assertEqual(peer.receive()["original_text"], text.decode())
        peer.write((2001).to_bytes(4, "big"))
        self.assertEqual([message["code"] for message in peer.rest()], ["too_large"])

    def test_send_buffer(self) -> None:
        """What the system takes for a client that does not read grows with it."""
        small, large = (self.taken(self.start("--send-buffer", size)) for size in ("8192", "1000000"))
        self.assertLess(small, 150_000)
        self.assertGreater(large, 500_000)

    def taken(self, server: Server) -> int:
        """How many bytes the system takes for a client that does not read, of 3 MB."""
        stuck, sender = self.connect(server, receive_buffer=8192), self.connect(server)
        for _ in range(300):
            sender.ask({"type": "broadcast", "content": "x" * 10_000})
        stuck.reset()
        return int(server.disconnects(stuck.client_id)["bytes_out"])

    def test_receive_buffer(self) -> None:
        """What the system takes for a server that does not read grows with it."""
        small, large = (self.accepted(self.start("--receive-buffer", size)) for size in ("8192", "1000000"))
        self.assertLess(small, 300_000)
        self.assertGreater(large, 500_000)

    def accepted(self, server: Server) -> int:
        """How many bytes the system takes for a server that is stopped, of 3 MB."""
        peer = self.connect(server, send_buffer=65536)
        server.signal(signal.SIGSTOP)
        data = b"x" * 3_000_000
        sent = 0
        # The system passes them on bit by bit: full is what stays full.
        peer.socket.settimeout(0.5)
        try:
            while sent < len(data):
                sent += peer.socket.send(data[sent : sent + 65536])
        except TimeoutError:
            pass
        server.signal(signal.SIGCONT)
        return sent


class LogTests(ServerTestCase):
    """What `twistd -n` prints."""

    def test_a_line_each(self) -> None:
        """One when a client comes and one when it goes, with what passed."""
        server = self.start()
        peer = self.connect(server, greet=False)
        welcome = peer.payload()
        received = 4 + len(welcome)
        client_id = json.loads(welcome)["client_id"]
        requests = encode({"type": "ping"}) + encode({"type": "echo", "content": "not to be logged"}) * 2
        peer.write(requests)
        for _ in range(3):
            received += 4 + len(peer.payload())
        peer.close()
        figures = server.disconnects(client_id)
        self.assertEqual(
            {name: figures[name] for name in sorted(set(figures) - {"seconds"})},
            {
                "reason": "client_closed",
                "messages_in": "3",
                "messages_out": "4",
                "bytes_in": str(len(requests)),
                "bytes_out": str(received),
            },
        )
        self.assertRegex(figures["seconds"], r"^\d+\.\d{3}$")
        lines = [line for line in server.log if re.search(r"\b(dis)?connected\b", line)]
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertIn(client_id, line)
        self.assertNotIn("not to be logged", "\n".join(server.log))

    def test_counts_agree(self) -> None:
        """The statistics tell the same as the lines."""
        server = self.start()
        for _ in range(20):
            self.connect(server).close()
        peer = self.connect(server)
        peer.write(b"\0\0\0\0")
        self.assertEqual(peer.receive()["code"], "bad_frame")
        details = until(
            lambda: next(
                (found for found in [peer.stats()["details"]] if sum(found["disconnects"].values()) == 20),
                None,
            ),
            "all are gone",
        )
        self.assertEqual(details["connections"], 21)
        self.assertEqual(details["errors"], {"bad_frame": 1})
        self.assertEqual(sum(details["disconnects"].values()), 20)
        self.assertEqual(len([line for line in server.log if " connected " in line]), 21)
