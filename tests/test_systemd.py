"""Under systemd: what it is told, sockets that it passes, and the units of contrib/systemd.

There is no systemd here: the tests pass the sockets and read what is told.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tcpjson import tap
from tcpjson.core.limits import Limits
from tests import harness
from tests.harness import LOOPBACK, TIMEOUT, Peer, Server, ServerTestCase, certificates
from tests.identities import new_path, scram, token, tokens, users, write

UNITS = Path(__file__).resolve().parent.parent / "contrib" / "systemd"

# Takes sockets from a Unix socket, puts them where systemd does, and becomes a command that gets no memory to
# write to and execute, as by MemoryDenyWriteExecute. Linux has that from 6.3 on (PR_SET_MDWE).
_LAUNCHER = """
import ctypes, fcntl, os, socket, sys
path, names, *words = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as giver:
    giver.connect(path)
    descriptors = socket.recv_fds(giver, 1, 9)[1]
for number, descriptor in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 100) for each in descriptors]):
    os.dup2(descriptor, 3 + number)
pid = str(os.getpid())
os.environ.update(LISTEN_FDS=str(len(descriptors)), LISTEN_PID=pid, LISTEN_FDNAMES=names, WATCHDOG_PID=pid)
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.execv(words[0], words)
"""


def listening_socket(kind: str = "INET") -> socket.socket:
    """A socket that is listened on, of one of Twisted's `domain=`; a Unix one is open to its owner only."""
    if kind == "INET":
        return socket.create_server(("127.0.0.1", 0))
    if kind == "INET6":
        return socket.create_server(("::1", 0), family=socket.AF_INET6)
    found = socket.socket(socket.AF_UNIX)
    path = new_path(".sock")
    found.bind(str(path))
    path.chmod(0o600)
    found.listen(100)
    return found


class SystemdTestCase(ServerTestCase):
    """Servers that are started as systemd starts them."""

    def setUp(self) -> None:
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.notified.close)
        self.notified.settimeout(TIMEOUT)
        self.notify_path = str(new_path(".notify"))
        self.notified.bind(self.notify_path)

    def listening(self, kind: str = "INET") -> socket.socket:
        """A listening socket of a `domain=`, which is ours, and open to the end of the test."""
        try:
            found = listening_socket(kind)
        except OSError:
            self.skipTest(f"there is no {kind} here")
        self.addCleanup(found.close)
        return found

    def activate(
        self,
        sockets: dict[str, socket.socket],
        *options: str,
        ports: Sequence[str] = (),
        words: Sequence[str] = (),
        **variables: str,
    ) -> Server:
        """
        Start a server that is passed sockets, and wait until it listens.

        Args:
            sockets: by their names.
            options, ports: as of `Server`.
            words: what twistd gets in place of these.
            variables: further ones of its environment.
        """
        giver = socket.socket(socket.AF_UNIX)
        self.addCleanup(giver.close)
        path = str(new_path(".give"))
        giver.bind(path)
        giver.listen()
        giver.settimeout(TIMEOUT)

        def give() -> None:
            taker, _ = giver.accept()
            with taker:
                descriptors = [each.fileno() for each in sockets.values()]
                socket.send_fds(taker, [b"x"], descriptors)

        def command(*arguments: str, **others: Any) -> tuple[list[str], dict[str, str]]:
            usual, environment = usual_command(*(words or arguments), **others)
            environment.update({"NOTIFY_SOCKET": self.notify_path, **variables})
            return [sys.executable, "-c", _LAUNCHER, path, ":".join(sockets), *usual], environment

        usual_command = harness.command
        thread = threading.Thread(target=give, daemon=True)
        thread.start()
        with patch.object(harness, "command", command):
            return self.start(*options, ports=ports)

    def dial_to(self, listening: socket.socket, host: str | None = None) -> Peer:
        """A client of a socket; `welcome` is still to come."""
        address = listening.getsockname()
        client = socket.socket(listening.family if host is None else socket.AF_INET)
        self.addCleanup(client.close)
        client.settimeout(TIMEOUT)
        client.connect(address if host is None else (host, address[1]))
        return Peer(client)

    def told(self) -> list[str]:
        """The lines of the next message to systemd."""
        return self.notified.recv(1 << 16).decode().split("\n")

    def greeted(self, peer: Peer) -> Peer:
        """A client that has its `welcome`."""
        peer.welcome = peer.receive()
        self.assertEqual(peer.welcome["type"], "welcome")
        return peer


class ActivationTests(SystemdTestCase):
    """Sockets that are listened on before the server starts, and when it has ended."""

    def restart(self, kind: str) -> None:
        """Nobody is refused: who connects while no server serves is served by the next."""
        listening = self.listening(kind)
        path = Path(str(listening.getsockname()))
        port = f"systemd:domain={kind}:name=json"
        peers = [self.dial_to(listening) for _ in range(5)]
        for _ in range(2):
            server = self.activate({"json": listening}, ports=[port])
            name = listening.getsockname()
            brackets = "[{}]:{}" if kind == "INET6" else "{}:{}"
            where = name if isinstance(name, str) else brackets.format(*name)
            self.assertEqual(server.addresses, [where])
            peers.append(self.dial_to(listening))
            for peer in peers:
                self.assertEqual(self.greeted(peer).ask({"type": "ping"})["type"], "pong")
            server.signal(signal.SIGTERM)
            server.wait_for(r"\] shutting down: ")
            late = [self.dial_to(listening) for _ in range(5)]
            for peer in peers:
                self.assertEqual(peer.receive()["code"], "going_away")
                self.assertEqual(peer.rest(), [])
                peer.close()
            self.assertEqual(server.wait(), -signal.SIGTERM)
            self.assertEqual(server.reasons(), {"going_away": len(peers)})
            peers = [*late, *(self.dial_to(listening) for _ in range(5))]
            if kind == "UNIX":
                self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_inet(self) -> None:
        self.restart("INET")

    def test_inet6(self) -> None:
        self.restart("INET6")

    def test_unix(self) -> None:
        """Its file stays, too, and only those may use it who could before."""
        self.restart("UNIX")

    def test_tls_and_headers(self) -> None:
        """Whatever can be made of a port of the server's own."""
        names = "abcd"
        sockets = {name: self.listening("INET") for name in names}
        keys = f"privateKey={certificates().key}:certKey={certificates().certificate}"
        pems = new_path("")
        pems.mkdir()
        write(pems / "a.pem", certificates().key.read_bytes() + certificates().certificate.read_bytes())
        server = self.activate(
            sockets,
            ports=[
                f"ssl:systemd:domain=INET:name=a:{keys}",
                f"tls:{pems}:systemd:domain=INET:name=b",
                "haproxy:systemd:domain=INET:name=c",
                f"haproxy:ssl:systemd:domain=INET:name=d:{keys}",
            ],
        )
        for index, name in enumerate(names):
            self.tls, self.proxied = name in "abd", False
            peer = self.dial_to(sockets[name])
            if name in "cd":
                peer.write(b"PROXY TCP4 192.0.2.7 192.0.2.8 1000 2000\r\n")
            if name in "abd":
                peer = Peer(certificates().client.wrap_socket(peer.socket, server_hostname="127.0.0.1"))
                self.addCleanup(peer.close)
            self.greeted(peer)
            self.assertEqual(peer.client_id == "192.0.2.7:1000", name in "cd")
            self.assertEqual(server.tcp_address(index), sockets[name].getsockname())

    def test_deadlines(self) -> None:
        """A client that came long before the server has as much time as others, and no more."""
        keys = f"privateKey={certificates().key}:certKey={certificates().certificate}"
        sockets = {"tls": self.listening(), "plain": self.listening()}
        silent, stuck = self.dial_to(sockets["tls"]), self.dial_to(sockets["plain"])
        stuck.write(b"\0\0")
        server = self.activate(
            sockets,
            *("--auth-timeout", "0.6", "--frame-timeout", "0.6"),
            ports=[f"ssl:systemd:domain=INET:name=tls:{keys}", "systemd:domain=INET:name=plain"],
        )
        self.assertEqual(self.greeted(stuck).ending()["code"], "frame_timeout")
        self.assertEqual([*silent.until_end()], [])
        stuck.close()
        server.wait_for("reason=handshake_failed why=not_done_in_time")

    def test_secrets_on_a_unix_socket(self) -> None:
        """Nobody reads them there; what is no such socket is not taken for one."""
        file = write(new_path(".tokens"), tokens({"s3cret": "ann"}))
        auth = ("--auth", f"token:{file}")
        listening = self.listening("UNIX")
        self.activate({"json": listening}, *auth, ports=["systemd:domain=UNIX:name=json"])
        peer = self.greeted(self.dial_to(listening))
        self.assertEqual(token(peer, "s3cret")["status"], "authenticated")
        for kind in ("INET", "UNIX"):
            line = self.refused({"json": self.listening()}, f"systemd:domain={kind}:name=json", *auth)
            self.assertIn("is in the clear", line)

    def refused(self, sockets: dict[str, socket.socket], port: str, *options: str) -> str:
        """Why a server does not start."""
        error = self.assertRaises(AssertionError, self.activate, sockets, *options, ports=[port])
        *_, line = str(error).splitlines()
        self.assertTrue(line.startswith("tcpjson: "), line)
        return line

    def test_refused(self) -> None:
        first, second = socket.socketpair()
        for each in (first, second):
            self.addCleanup(each.close)
        sockets = {"json": self.listening(), "connection": first}
        for port, why in (
            ("systemd:domain=INET:name=jsno", "systemd passed no socket jsno"),
            ("systemd:domain=INET:index=2", "systemd passed no socket 2"),
            ("systemd:domain=UNIX:name=connection", "systemd passed a socket that does not listen"),
        ):
            self.assertEqual(self.refused(sockets, port), f"tcpjson: --port {port}: {why}")

    def test_who_is_asked(self) -> None:
        """The warning goes by the address that the socket has."""
        everywhere = socket.create_server(("0.0.0.0", 0))
        self.addCleanup(everywhere.close)
        ports = ["systemd:domain=INET:name=all", "systemd:domain=INET:name=here"]
        server = self.activate({"all": everywhere, "here": self.listening()}, ports=ports)
        self.dial_to(everywhere, "127.0.0.1")
        server.wait_for("connected|listening", 2)
        warned = [line for line in server.log if "nobody is asked" in line]
        self.assertEqual(len(warned), 1, warned)
        self.assertIn("--port systemd:domain=INET:name=all ", warned[0])


class NotifyTests(SystemdTestCase):
    """What systemd is told."""

    def test_a_life(self) -> None:
        file = write(new_path(".tokens"), tokens({"s3cret": "ann"}))
        server = self.activate(
            {}, "--auth", f"token:{file}", "--allow-plain-auth", "--grace", "7", ports=[LOOPBACK]
        )
        listening = f"STATUS=listening on {server.addresses[0]}"
        self.assertEqual(self.told(), ["READY=1", listening])
        # It is ready for signals, too: there is no moment in which they would end it.
        for content, status in (
            ("nonsense", f"{listening}; not read anew: --auth token: {file}: line 1"),
            (tokens({"other": "ann"}), listening),
        ):
            write(file, content)
            server.signal(signal.SIGHUP)
            begun, done = self.told(), self.told()
            self.assertEqual((begun[0], done[0]), ("RELOADING=1", "READY=1"))
            self.assertRegex(begun[1], r"^MONOTONIC_USEC=\d+$")
            self.assertTrue(done[1].startswith(status), done[1])
        server.signal(signal.SIGTERM)
        self.assertEqual(
            self.told(),
            ["STOPPING=1", "EXTEND_TIMEOUT_USEC=12000000", "STATUS=shutting down: 0 connections"],
        )
        self.assertEqual(server.wait(), -signal.SIGTERM)

    def test_the_watchdog(self) -> None:
        """It is fed while the server serves; not when that stands still."""
        server = self.activate({}, ports=[LOOPBACK], WATCHDOG_USEC="200000")
        told = [self.told() for _ in range(6)]
        told.remove(["READY=1", f"STATUS=listening on {server.addresses[0]}"])
        self.assertEqual(told, [["WATCHDOG=1"]] * 5)
        server.signal(signal.SIGSTOP)
        self.notified.settimeout(1)
        with self.assertRaises(TimeoutError):
            for _ in range(20):
                self.told()
        self.notified.settimeout(TIMEOUT)
        server.signal(signal.SIGCONT)
        self.assertEqual(self.told(), ["WATCHDOG=1"])

    def test_nobody_reads(self) -> None:
        """Clients do not notice."""
        path = str(new_path(".notify"))
        server = self.activate({}, ports=[LOOPBACK], NOTIFY_SOCKET=path, WATCHDOG_USEC="20000")
        peer = self.connect(server)
        peer.nothing_for(0.2)
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
        self.assertEqual(len([line for line in server.log if "systemd cannot be told" in line]), 1)


Unit = dict[str, dict[str, list[str]]]


def parse(path: Path) -> Unit:
    """
    The values of a unit's settings, by sections and names.

    Raises:
        ValueError: there is a line that is no setting.
    """
    found: Unit = {}
    section: dict[str, list[str]] | None = None
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = found[header[1]] = {}
        elif setting := re.fullmatch(r"(\w+)=(.*\S)?", line):
            if section is None:
                raise ValueError(f"{path.name}: {line!r} stands in no section")
            section.setdefault(setting[1], []).append(" ".join((setting[2] or "").split()))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path.name}: {line!r}")
    return found


class UnitTests(SystemdTestCase):
    """The units of contrib/systemd."""

    def setUp(self) -> None:
        super().setUp()
        self.unit = parse(UNITS / "tcpjson.service")
        self.socket_unit = parse(UNITS / "tcpjson.socket")
        self.words = self.setting("ExecStart").split()

    def setting(self, name: str) -> str:
        """The one value of a setting of the service."""
        [value] = self.unit["Service"][name]
        return value

    def test_they_fit_together(self) -> None:
        """What one line says, another relies on."""
        self.assertEqual(set(self.unit), {"Unit", "Service", "Install"})
        self.assertEqual(set(self.socket_unit), {"Unit", "Socket", "Install"})
        for name in ("Requires", "After"):
            self.assertEqual(self.unit["Unit"][name], ["tcpjson.socket"])
        [name] = self.socket_unit["Socket"]["FileDescriptorName"]
        port = self.words[self.words.index("--port") + 1]
        self.assertIn(f":name={name}:", port)
        self.assertEqual(self.socket_unit["Socket"]["Backlog"], [str(tap._BACKLOG)])
        passed = {each.partition(":")[0] for each in self.unit["Service"]["LoadCredential"]}
        used = set(re.findall(r"%d/([\w.]+)", " ".join(self.words)))
        self.assertEqual(passed, used)
        sources = {each.partition(":")[2].split("/")[2] for each in self.unit["Service"]["LoadCredential"]}
        self.assertEqual(sources, {self.setting("ConfigurationDirectory")})
        self.assertIn(f"%S/{self.setting('StateDirectory')}/users", " ".join(self.words))
        self.assertGreater(float(self.setting("TimeoutStopSec")), Limits().grace + 5)
        # Nobody waits for a process in the background, and there is no file of its number to be written.
        self.assertEqual(self.words[1:4], ["-n", "--pidfile=", "tcpjson"])
        self.assertEqual((self.setting("Type"), self.setting("Restart")), ("notify", "on-failure"))

    def test_it_is_hardened(self) -> None:
        for name, value in (
            *((name, "strict") for name in ("ProtectSystem",)),
            *((name, "yes") for name in ("DynamicUser", "NoNewPrivileges", "MemoryDenyWriteExecute")),
            *((name, "yes") for name in ("ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateNetwork")),
            *((name, "") for name in ("CapabilityBoundingSet",)),
            ("UMask", "0077"),
            ("RestrictAddressFamilies", "AF_UNIX"),
        ):
            self.assertEqual(self.setting(name), value, name)
        self.assertEqual(self.unit["Service"]["SystemCallFilter"][0], "@system-service")
        for name in ("LimitNOFILE", "MemoryMax", "TasksMax", "WatchdogSec"):
            self.assertRegex(self.setting(name), "^[1-9][0-9]*%?$")

    def test_nothing_else_is_taken_for_a_unit(self) -> None:
        for text in ("[Unit]\nDescription", "[Unit]\n Requires=x", "Requires=x", "[Unit\n", "[Unit]\n; x"):
            self.assertRaises(ValueError, parse, write(new_path(".service"), text))

    def analyzed(self, *arguments: str) -> str:
        """What systemd-analyze says of the units; nothing where it is not installed. Its status must be 0."""
        tool = shutil.which("systemd-analyze")
        if tool is None:
            return ""
        units = new_path("")
        units.mkdir()
        for unit in ("tcpjson.service", "tcpjson.socket"):
            # It looks for the command, too.
            text = (UNITS / unit).read_text(encoding="utf-8").replace(self.words[0], sys.executable)
            write(units / unit, text)
        done = subprocess.run(
            [tool, *arguments, str(units / "tcpjson.service")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_systemd_takes_them(self) -> None:
        """Where it is installed it says so itself; and that the service is exposed by at most 0.5 of 10."""
        self.assertEqual(self.words[0], "/opt/tcpjson/bin/twistd")
        self.assertEqual(self.analyzed("verify"), "")
        self.analyzed("security", "--offline=yes", "--threshold=5")

    def test_the_command(self) -> None:
        """It starts, reloads and ends as the unit has it, and serves its users over TLS."""
        credentials, state = new_path(""), new_path("")
        for made in (credentials, state, state / "tcpjson"):
            made.mkdir()
        for name, path in (("key.pem", certificates().key), ("cert.pem", certificates().certificate)):
            write(credentials / name, path.read_bytes())
        write(state / "tcpjson" / "users", users({"alice": "s3cret"}))
        words = [word.replace("%d", str(credentials)).replace("%S", str(state)) for word in self.words]
        self.assertNotIn("%", " ".join(words))
        # Such a socket as ListenStream with a number alone leads to.
        kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        listening = socket.create_server(
            ("", 0), family=kind, dualstack_ipv6=kind == socket.AF_INET6, backlog=tap._BACKLOG
        )
        self.addCleanup(listening.close)
        [name] = self.socket_unit["Socket"]["FileDescriptorName"]
        early = self.dial_to(listening, "127.0.0.1")
        server = self.activate({name: listening}, words=words[1:])
        self.assertEqual(self.told()[0], "READY=1")
        peer = Peer(certificates().client.wrap_socket(early.socket, server_hostname="127.0.0.1"))
        self.addCleanup(peer.close)
        self.assertEqual(scram(self.greeted(peer), "alice", "s3cret")["status"], "authenticated")
        reload_command = self.setting("ExecReload").replace("/bin/", "")
        subprocess.run(
            ["/bin/sh", "-c", reload_command],
            env={"MAINPID": str(server.process.pid)},
            check=True,
            timeout=TIMEOUT,
        )
        self.assertEqual([self.told()[0], self.told()[0]], ["RELOADING=1", "READY=1"])
        server.signal(signal.SIGTERM)
        self.assertEqual(self.told()[0], "STOPPING=1")
        self.assertEqual(peer.receive()["code"], "going_away")
        peer.close()
        self.assertEqual(server.wait(), -signal.SIGTERM)
