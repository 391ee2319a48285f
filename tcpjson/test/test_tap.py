"""The command line of `twistd tcpjson`, and the service that it makes."""

from __future__ import annotations

import importlib
import io
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from OpenSSL import SSL
from twisted.cred import strcred
from twisted.cred.credentials import IUsernamePassword
from twisted.internet import endpoints, reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.plugins.cred_file import theFileCheckerFactory
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.systemd import ListenFDs

from tcpjson import Limits, TCPJSONServerFactory, __version__, tap
from tcpjson.auth import TokenChecker, VerifierChecker
from tcpjson.proxied import ProxiedEndpoint, ProxiedProtocol
from tcpjson.service import Refusal, ServerService
from tcpjson.systemd import ActivatedEndpoint
from tcpjson.tap import (
    Options,
    allowed_connections,
    makeService,
    open_metrics_port,
    open_port,
    port_from,
    raise_file_limit,
)
from tcpjson.test.test_service import FakeSystemd, ServiceCase
from tcpjson.test.wires import Loop, authority, connect
from tcpjson.tlstransport import TLSEndpoint
from tcpjson.verifiers import Verifier, hash_token

SECRET = "s3cret"


def parse(*arguments: str) -> Options:
    """A command line, parsed."""
    options = Options()
    options.parseOptions(arguments)
    return options


def written(path: str, content: bytes) -> str:
    """The path of a new file that nobody else may read."""
    Path(path).touch(mode=0o600)
    Path(path).write_bytes(content)
    return path


def certificate(path: str) -> str:
    """The path of a new file with a certificate for localhost and its key."""
    return written(path, authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())


def ca_file(path: str) -> str:
    """The path of a new file with the authority."""
    return written(path, authority().cert_pem.bytes())


def token_file(path: str) -> str:
    """The path of a new file with one token."""
    return written(path, f"ann:{hash_token(SECRET).hex()}\n".encode())


def scram_file(path: str) -> str:
    """The path of a new file with one user."""
    verifier = Verifier.make(SECRET, 4096, bytes)
    return written(path, f"ann:{verifier.format()}\n".encode())


class RefusingCase(ServiceCase):
    """Command lines that are refused."""

    def refused(self, *arguments: str) -> str:
        """The line that says why."""
        line = self.one_line(self.assertRaises(Refusal, parse, *arguments))
        self.assertNotIn(SECRET, line)
        return line


class OptionsTests(RefusingCase):
    """What is taken, and what is refused in one line."""

    def test_defaults(self) -> None:
        options = parse()
        self.assertEqual(options["limits"], Limits())
        self.assertEqual((options["ports"], options["auth"], options["handlers"]), ([], [], []))
        self.assertFalse(options["strict"])
        self.assertFalse(options["allow-plain-auth"])
        for name in ("send-buffer", "receive-buffer", "client-ca"):
            self.assertIsNone(options[name])
        self.assertEqual(options["compress-over"], 1024)

    def test_all(self) -> None:
        options = parse(
            *("--port", "tcp:1", "-p", "unix:/a", "--strict", "--max-length", "10", "--max-queue", "20"),
            *("--write-timeout", "0.5", "--frame-timeout", "7", "--handler-timeout", "8.25"),
            *("--auth-timeout", "9.5", "--idle-timeout", "600", "--heartbeat", "40", "--grace", "11"),
            *("--max-connections", "50", "--max-connections-per-ip", "6", "--rate", "70:80"),
            *("--byte-rate", "90.5:100", "--rate-policy", "close", "--allow-plain-auth"),
            *("--send-buffer", "30", "--receive-buffer", "40", "--client-ca", "/ca.pem"),
            *("--compress-over", "300", "--max-handlers", "12"),
        )
        self.assertEqual(
            options["limits"],
            Limits(
                max_length=10,
                max_queue=20,
                write_timeout=0.5,
                frame_timeout=7,
                handler_timeout=8.25,
                max_handlers=12,
                auth_timeout=9.5,
                idle_timeout=600,
                heartbeat=40,
                grace=11,
                max_connections=50,
                max_connections_per_ip=6,
                messages_per_second=70,
                message_burst=80,
                bytes_per_second=90.5,
                byte_burst=100,
                rate_policy="close",
            ),
        )
        self.assertEqual(options["ports"], ["tcp:1", "unix:/a"])
        self.assertTrue(options["strict"])
        self.assertTrue(options["allow-plain-auth"])
        self.assertEqual((options["send-buffer"], options["receive-buffer"]), (30, 40))
        self.assertEqual(options["client-ca"], "/ca.pem")
        self.assertEqual(options["compress-over"], 300)

    def test_options_are_not_shared(self) -> None:
        parse("--port", "tcp:1", "--auth", "memory:ann:secret")
        self.assertEqual((parse()["ports"], parse()["auth"]), ([], []))
        self.assertNotIn("credCheckers", parse())

    def test_bad_numbers(self) -> None:
        sizes = ("max-length", "max-queue", "send-buffer", "receive-buffer", "compress-over")
        counts = ("max-connections", "max-connections-per-ip", "log-sample")
        times = (
            *("write-timeout", "frame-timeout", "handler-timeout", "auth-timeout", "idle-timeout"),
            *("heartbeat", "grace"),
        )
        rates = ("rate", "byte-rate")
        off = ("idle-timeout", "heartbeat", "max-connections-per-ip", "compress-over", *rates)
        for name in sizes + counts + times + rates:
            wrong = ["", "x", "-1", "1e3", " 1", "1 ", "\u0661", "0x10", "inf", "nan", "1_000", "9" * 40]
            wrong += ["1.5", "00"] if name in sizes + counts else ["0.0", "1.", ".5", "1.5.5"]
            wrong += [] if name in off else ["0"]
            wrong += ["1:", ":1", "0:1", "1:0", "1:1.5", "1:-1", "1:1:1", "1: 1"]
            for value in wrong:
                line = self.refused(f"--{name}", value)
                self.assertIn(f"--{name}: ", line)
                self.assertIn(repr(value), line)

    def test_numbers_of_many_digits(self) -> None:
        """They are numbers; what is wrong is that they are too large, if so."""
        large = "0" * 20 + "1" * 15 + ".0"
        for name, bound in (
            *(("max-queue", 10**15), ("max-connections", 10**15), ("rate", 10**15), ("byte-rate", 10**15)),
            *(("grace", 10**9), ("heartbeat", 10**9)),
        ):
            for value in (str(bound), "9" * 5000):
                self.assertIn(
                    f"--{name}: {value!r} must be less than {bound}", self.refused(f"--{name}", value)
                )
            parse(f"--{name}", str(bound - 1))
        self.assertIn("must be less than", self.refused("--rate", f"1:{10**15}"))
        self.assertEqual(parse("--rate", large)["limits"].messages_per_second, float(large))
        self.assertEqual(parse("--grace", "0.00000000001")["limits"].grace, 1e-11)
        line = self.refused("--max-length", "20000000000000")
        self.assertEqual(line, "tcpjson: --max-length must be at most 268435456")

    def test_what_can_be_off(self) -> None:
        """The line and the help say so."""
        text = Options().getUsage(width=2000)
        off = ("idle-timeout", "heartbeat", "max-connections-per-ip", "rate", "byte-rate", "compress-over")
        for name, *_ in (row for row in Options.optParameters if row[4] is not None):
            [line] = [line for line in text.splitlines() if f" --{name}= " in line]
            self.assertEqual("; 0: off." in line, name in off, name)
            if name in off:
                self.assertTrue(self.refused(f"--{name}", "-1").endswith(", or 0 for off"))
        self.assertIn("greater than 0, or 0 for off", self.refused("--heartbeat", "-1"))

    def test_a_path_that_is_none(self) -> None:
        """A variable of a shell that is not set must not switch the protection off."""
        line = self.refused("--client-ca", "")
        self.assertEqual(line, "tcpjson: --client-ca: the path of a file must follow")

    def test_paths_outlive_a_change_of_the_folder(self) -> None:
        self.assertEqual(parse("--client-ca", "ca.pem")["client-ca"], os.path.abspath("ca.pem"))

    def test_arguments(self) -> None:
        self.assertEqual(self.refused("foo"), "tcpjson: unexpected argument 'foo'")
        self.assertEqual(self.refused("--strict", "a", "b"), "tcpjson: unexpected argument 'a'")
        line = self.refused(f"memory:ann:{SECRET}")
        self.assertEqual(line, "tcpjson: unexpected argument 'memory'")

    def test_switched_off(self) -> None:
        options = parse(
            *("--idle-timeout", "0", "--heartbeat", "0", "--max-connections-per-ip", "0"),
            *("--rate", "0", "--byte-rate", "0", "--compress-over", "0"),
        )
        self.assertEqual(options["limits"], Limits(heartbeat=None))
        self.assertIsNone(options["compress-over"])

    def test_rates(self) -> None:
        """With a burst or without; of messages, of bytes, or of both."""
        for arguments, limits in (
            (("--rate", "5"), Limits(messages_per_second=5)),
            (("--rate", "0.5"), Limits(messages_per_second=0.5)),
            (("--rate", "0.5:1"), Limits(messages_per_second=0.5, message_burst=1)),
            (("--byte-rate", "5000"), Limits(bytes_per_second=5000)),
            (("--byte-rate", "5:1"), Limits(bytes_per_second=5, byte_burst=1)),
            (
                ("--rate", "5:6", "--byte-rate", "7"),
                Limits(messages_per_second=5, message_burst=6, bytes_per_second=7),
            ),
        ):
            self.assertEqual(parse(*arguments)["limits"], limits)

    def test_policies(self) -> None:
        for policy in ("throttle", "close", "observe"):
            self.assertEqual(parse("--rate-policy", policy)["limits"].rate_policy, policy)
        for policy in ("", "Close", "none", "close\nobserve"):
            line = self.refused("--rate-policy", policy)
            self.assertIn(f"--rate-policy: {policy!r} must be one of throttle, close, observe", line)

    def test_out_of_bounds(self) -> None:
        line = self.refused("--max-length", "268435457")
        self.assertIn("--max-length must be at most 268435456", line)
        self.assertEqual(parse("--max-length", "268435456")["limits"].max_length, 268435456)

    def test_buffers_that_no_socket_takes(self) -> None:
        """What `setsockopt` would refuse at every connection is refused at the start."""
        for name in ("send-buffer", "receive-buffer"):
            self.assertIn(f"--{name}", self.refused(f"--{name}", "2147483648"))
            self.assertEqual(parse(f"--{name}", "2147483647")[name], 2147483647)

    def test_unknown(self) -> None:
        self.assertIn("nonsense", self.refused("--nonsense"))
        self.assertIn("strict", self.refused(f"--strict={SECRET}"))
        self.refused(f"--aut=memory:ann:{SECRET}")
        self.assertIn("max-length", self.refused("--max-length"))
        self.refused("--non\nsense")

    def test_version(self) -> None:
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        error = self.assertRaises(SystemExit, parse, "--version")
        self.assertEqual((error.code, out.getvalue()), (0, f"tcpjson {__version__}\n"))

    def test_help(self) -> None:
        """Each option is in it, with what is the default."""
        text = Options().getUsage(width=2000)
        lines = {line.split()[0]: line for line in text.splitlines() if line.strip().startswith("--")}
        for name, _, default, _, _ in (row for row in Options.optParameters if len(row) == 5):
            self.assertIn("" if default is None else str(default), lines[f"--{name}="])
        for name in ("idle-timeout", "max-connections", "max-connections-per-ip", "rate", "byte-rate"):
            self.assertRegex(lines[f"--{name}="], r"[^;] \[default: [^\]]+\]$")
        for name in ("--port=", "--auth=", "--client-ca=", "--strict", "--allow-plain-auth", "--help-auth"):
            self.assertIn(name, "\n".join(text.split()))
        self.assertNotIn("None", text)
        for line in text.splitlines():
            self.assertNotRegex(re.sub(r"^ *(-\w, )?--[\w-]+=? +", "", line), r"\S\s\s|\t", line)
        self.assertIn("tls:FOLDER", text)
        self.assertIn("tcp:9999:interface=127.0.0.1", text)


class FakeFactory:
    """A plugin that makes checkers: `error` is raised when it is to make one."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def generateChecker(self, argument: str) -> object:
        raise self.error


class AuthOptionTests(RefusingCase):
    """`--auth`."""

    def test_ours(self) -> None:
        scram, token = scram_file(self.mktemp()), token_file(self.mktemp())
        options = parse("--auth", f"scram:{scram}", "--auth", f"token:{token}")
        self.assertEqual(options["auth"], ["scram", "token"])
        self.assertEqual([type(each) for each in options["credCheckers"]], [VerifierChecker, TokenChecker])

    def test_of_others(self) -> None:
        options = parse("--auth", f"memory:ann:{SECRET}")
        self.assertEqual(options["auth"], ["memory"])
        [checker] = options["credCheckers"]
        self.assertIn(IUsernamePassword, checker.credentialInterfaces)

    def test_refused(self) -> None:
        """The line says the option and the kind once, and of what is behind them at most a path."""
        for value, text in (
            (f"nonsense:{SECRET}", "--auth nonsense: there is no such kind"),
            ("", "--auth : there is no such kind"),
            (f"memory:{SECRET}", "--auth memory: argstring must be"),
            (f"memory:ann:{SECRET}:bob", "--auth memory: argstring must be"),
            ("anonymous", "--auth anonymous: it knows neither passwords nor tokens"),
            ("scram:", "--auth scram: the path of a file must follow"),
            ("token", "--auth token: the path of a file must follow"),
            ("scram:/nonexistent/x", "--auth scram: /nonexistent/x: No such file or directory"),
            ("token:/nonexistent/x", "--auth token: /nonexistent/x: No such file or directory"),
            (f"non\nsense:{SECRET}", "there is no such kind"),
        ):
            line = self.refused("--auth", value)
            self.assertIn(text, line)
            self.assertEqual(line.count("--auth "), 1, line)

    def test_a_file_of_passwords(self) -> None:
        """Twisted would take one that is not there, and let nobody in."""
        path = written(self.mktemp(), f"ann:{SECRET}\n".encode())
        self.assertEqual(parse("--auth", f"file:{path}")["auth"], ["file"])
        self.patch(theFileCheckerFactory, "errorOutput", io.StringIO())
        for path, why in (("/nonexistent/x", "No such file or directory"), ("/", "Is a directory")):
            self.assertEqual(self.refused("--auth", f"file:{path}"), f"tcpjson: --auth file: {path}: {why}")

    def test_without_scramp(self) -> None:
        with patch.dict("sys.modules", {"scramp": None}):
            line = self.refused("--auth", "scram:x")
        self.assertEqual(line, "tcpjson: --auth scram: the package scramp is missing: pip install scramp")

    def test_a_broken_file(self) -> None:
        """What is wrong in it is not shown: it may be a password."""
        for kind in ("scram", "token"):
            path = written(self.mktemp(), f"ann:{SECRET}\n".encode())
            line = self.refused("--auth", f"{kind}:{path}")
            self.assertIn(f"--auth {kind}: ", line)
            self.assertIn(path, line)
            self.assertIn("line 1", line)

    def test_a_plugin_that_fails(self) -> None:
        """Only what is meant to be read is shown, and of that, one line."""
        for error, text in (
            (ValueError(f"invalid literal for int() with base 10: {SECRET!r}"), "ValueError"),
            (ImportError(SECRET), "ImportError"),
            (strcred.InvalidAuthArgumentString(f"two parts\n{SECRET}"), "two parts"),
            (strcred.InvalidAuthArgumentString("--auth kind: two parts"), "two parts"),
            (strcred.InvalidAuthArgumentString(), "InvalidAuthArgumentString"),
        ):
            self.patch(strcred, "findCheckerFactory", lambda kind, error=error: FakeFactory(error))
            self.assertEqual(self.refused("--auth", f"kind:{SECRET}"), f"tcpjson: --auth kind: {text}")

    def test_kinds_are_listed(self) -> None:
        options = Options()
        options.authOutput = out = io.StringIO()
        self.assertRaises(SystemExit, options.parseOptions, ["--help-auth"])
        listed = {line.split()[0] for line in out.getvalue().splitlines() if line}
        self.assertEqual({"scram", "token", "memory"} - listed, set())
        self.assertNotIn("anonymous", listed)


class HandlersCase(ServiceCase):
    """With a module in the current folder, and what it leaves behind put away."""

    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        self.addCleanup(self._restore, os.getcwd(), list(sys.path))
        os.chdir(folder)

    def _restore(self, folder: str, path: list[str]) -> None:
        os.chdir(folder)
        sys.path[:] = path
        for name in list(sys.modules):
            if name.startswith("own_"):
                del sys.modules[name]

    def module(self, name: str, text: str) -> None:
        """A module whose name begins with `own_`."""
        Path(f"{name}.py").write_text(f"from tcpjson import Message, Router\nrouter = Router()\n{text}")
        importlib.invalidate_caches()

    def handler(self, tag: str, field: str = "") -> str:
        """The lines of a handler, and of its class."""
        return (
            f'class Own(Message, tag="{tag}"):\n    {field or "pass"}\n'
            "@router.handler\ndef handle(session, message: Own):\n    return {'type': 'done'}\n"
        )


class HandlersOptionTests(HandlersCase, RefusingCase):
    """`--handlers`."""

    def test_in_their_order(self) -> None:
        self.module("own_first", "router.on_stop(print)\n")
        self.module("own_second", "router.on_stop(print)\nother = Router()\nother.on_stop(print)\n")
        options = parse(
            *("--handlers", "own_second:other", "--handlers", "own_first:router"),
            *("--handlers=own_second:router",),
        )
        first, second = sys.modules["own_first"], sys.modules["own_second"]
        self.assertEqual(options["handlers"], [second.other, first.router, second.router])

    def test_refused(self) -> None:
        self.module("own_broken", "\n1 / 0\n")
        self.module("own_lines", "raise ValueError('two\\nlines')\n")
        path = os.path.join(os.getcwd(), "own_broken.py")
        for where, expected in (
            ("own_none:router", "no module own_none"),
            ("own_broken", "it must be MODULE:NAME, as game.moves:router"),
            ("own_broken:router", f"{path}, line 4: ZeroDivisionError: division by zero"),
            ("own_lines:router", f"{path[:-9]}lines.py, line 3: ValueError: two lines"),
            ("tcpjson:Router", "not a tcpjson.Router: it is a type"),
        ):
            self.assertEqual(self.refused("--handlers", where), f"tcpjson: --handlers {where}: {expected}")


class EndpointTests(ServiceCase):
    """Endpoint strings."""

    def listens(self, description: str) -> tuple[Any, ...]:
        """How the memory reactor is told to listen: port, factory, backlog, interface."""
        memory = MemoryReactorClock()
        factory = TCPJSONServerFactory(memory)
        self.successResultOf(port_from(description, memory).endpoint.listen(factory))
        [listening] = memory.tcpServers or memory.unixServers
        return listening

    def test_backlog(self) -> None:
        for description, backlog in (
            ("tcp:0", 4096),
            ("tcp:0:interface=127.0.0.1", 4096),
            ("tcp6:0", 4096),
            ("tcp:0:backlog=7", 7),
            ("tcp:0:backlog=7:interface=127.0.0.1", 7),
            ("haproxy:tcp:0", 4096),
            ("haproxy:tcp:0:backlog=9", 9),
            # Twisted takes these.
            ("TCP:0", 4096),
            ("HAProxy:Tcp:0", 4096),
        ):
            self.assertEqual(self.listens(description)[2], backlog, description)

    def test_backlog_of_unix(self) -> None:
        for description, backlog in (
            ("unix:/run/x", 4096),
            ("unix:/run/x:backlog=3", 3),
            # A colon of its name.
            ("unix:/run/x\\:backlog\\=3", 4096),
            ("unix:address=/run/x\\:backlog=3", 4096),
            ("unix:address=/run/backlog=3", 4096),
        ):
            self.assertEqual(self.listens(description)[2], backlog, description)

    def test_interface(self) -> None:
        self.assertEqual(self.listens("tcp:9999")[3], "")
        self.assertEqual(self.listens("tcp:9999:interface=127.0.0.1")[3], "127.0.0.1")

    def test_backlog_of_tls(self) -> None:
        pem, folder = certificate(self.mktemp()), Path(self.mktemp())
        folder.mkdir()
        certificate(str(folder / "a.pem"))
        for description, backlog in (
            (f"ssl:0:privateKey={pem}", 4096),
            (f"ssl:0:privateKey={pem}:backlog=5", 5),
            (f"tls:{folder}:0", 4096),
            (f"tls:{folder}:0:backlog=6", 6),
            (f"SSL:0:privateKey={pem}", 4096),
        ):
            self.assertEqual(self.listens(description)[2], backlog, description)

    def test_kinds_without_a_backlog(self) -> None:
        """They are left as they are."""
        # There are no descriptors of systemd's here; a backlog it would not even know.
        self.assertRaises(IndexError, port_from, "systemd:domain=INET:index=0", MemoryReactorClock())
        self.assertRaises(ValueError, port_from, "nonsense:0", MemoryReactorClock())

    def test_haproxy_before_tls(self) -> None:
        pem = certificate(self.mktemp())
        _, factory, backlog, interface = self.listens(
            f"haproxy:ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
        )
        self.assertIs(factory.protocol, ProxiedProtocol)
        self.assertTrue(issubclass(factory.wrappedFactory.protocol, TLSMemoryBIOProtocol))
        self.assertEqual((backlog, interface), (4096, "127.0.0.1"))

    def test_haproxy(self) -> None:
        memory = MemoryReactorClock()
        self.assertIsInstance(port_from("haproxy:tcp:0", memory).endpoint, ProxiedEndpoint)
        self.assertIsInstance(port_from("tcp:0", memory).endpoint, TCP4ServerEndpoint)


class PortTests(ServiceCase):
    """What a `--port` is."""

    def port(self, description: str, client_ca: str | None = None) -> tap.Port:
        port = port_from(description, MemoryReactorClock(), client_ca)
        self.assertEqual(port.description, description)
        return port

    def test_in_the_clear(self) -> None:
        for description in (
            "tcp:0",
            "tcp6:0",
            "haproxy:tcp:0",
            "haproxy:unix:/run/x",
            "tcp:0:interface=unix",
        ):
            port = self.port(description)
            self.assertIsNone(port.tls)
            self.assertFalse(port.confidential, description)

    def test_unix(self) -> None:
        """Nobody is between two processes of one system."""
        for description in ("unix:/run/x", "UNIX:/run/x"):
            port = self.port(description)
            self.assertIsNone(port.tls)
            self.assertTrue(port.confidential)

    def passed(self, *sockets: socket.socket) -> None:
        """Have systemd pass sockets; they are called a, b and so on."""
        for each in sockets:
            self.addCleanup(each.close)
            # The system chooses.
            each.bind("" if each.family == socket.AF_UNIX else ("127.0.0.1", 0))
            each.listen()
        descriptors = [each.fileno() for each in sockets]
        self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs(descriptors, "ab"[: len(descriptors)]))

    def test_systemd(self) -> None:
        """What counts is what the socket is, not what it is called."""
        self.passed(socket.socket(), socket.socket(socket.AF_UNIX))
        for description, confidential in (
            ("systemd:domain=UNIX:index=1", True),
            ("systemd:index=1:domain=UNIX", True),
            ("Systemd:domain=UNIX:name=b", True),
            ("systemd:domain=INET:name=b", True),
            ("systemd:domain=INET:index=0", False),
            ("systemd:domain=UNIX:index=0", False),
            ("haproxy:systemd:domain=UNIX:index=1", False),
        ):
            port = self.port(description)
            self.assertIsNone(port.tls)
            self.assertEqual(port.confidential, confidential, description)
            endpoint = port.endpoint
            if isinstance(endpoint, ProxiedEndpoint):
                endpoint = endpoint._endpoint
            self.assertIsInstance(endpoint, ActivatedEndpoint)

    def test_tls_over_systemd(self) -> None:
        """`systemd` stands where the port would be."""
        self.passed(socket.socket(), socket.socket(socket.AF_UNIX))
        pem, folder = certificate(self.mktemp()), Path(self.mktemp())
        folder.mkdir()
        certificate(str(folder / "a.pem"))
        for description in (
            f"ssl:systemd:domain=INET:name=a:privateKey={pem}",
            f"ssl:systemd:{pem}:index=0:domain=INET",
            f"ssl:port=systemd:domain=INET:name=a:privateKey={pem}",
            f"haproxy:ssl:systemd:domain=UNIX:name=b:privateKey={pem}",
            f"tls:{folder}:systemd:domain=INET:name=a",
            f"tls:{folder}:port=systemd:domain=INET:index=0",
        ):
            port = self.port(description)
            self.assertIsNotNone(port.tls)
            self.assertTrue(port.confidential)
            # What listens: only systemd's sockets need no port of the reactor's own.
            self.assertIsInstance(port.endpoint, TLSEndpoint)
            below: Any = port.endpoint
            while not isinstance(below, ActivatedEndpoint):
                below = below._endpoint
            self.assertEqual(below.local, "UNIX" in description)
        for description, why in (
            (f"ssl:systemd:domain=INET:name=c:privateKey={pem}", "systemd passed no socket c"),
            (f"ssl:systemd:privateKey={pem}", "domain"),
            (f"ssl:systemd:domain=INET:privateKey={pem}", "index or name"),
            (f"ssl:systemd:domain=INET:name=a:interface=127.0.0.1:privateKey={pem}", "interface"),
            (f"ssl:9999:name=a:privateKey={pem}", "name"),
            (f"tls:{folder}:port=systemd:domain=INET:name=a:backlog=5", "backlog"),
            (f"tls:{folder}:port=systemd:domain=INET:name=a:interface=", "interface"),
            (f"tls:{folder}:domain=INET", "domain"),
        ):
            refusal = self.assertRaises(Refusal, open_port, description, MemoryReactorClock(), None)
            self.assertIn(why, self.one_line(refusal).rpartition(": ")[2], description)

    def test_systemd_passes_a_connection(self) -> None:
        first, second = socket.socketpair()
        for each in (first, second):
            self.addCleanup(each.close)
        self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs([first.fileno()]))
        refusal = self.assertRaises(
            Refusal, open_port, "systemd:domain=UNIX:index=0", MemoryReactorClock(), None
        )
        self.assertIn("does not listen", self.one_line(refusal))

    def test_tls(self) -> None:
        pem, folder = certificate(self.mktemp()), Path(self.mktemp())
        folder.mkdir()
        certificate(str(folder / "a.pem"))
        for description in (
            f"ssl:0:privateKey={pem}",
            f"haproxy:ssl:0:privateKey={pem}",
            f"tls:{folder}:0",
            f"HAProxy:SSL:0:privateKey={pem}",
        ):
            port = self.port(description)
            self.assertIsNotNone(port.tls)
            self.assertTrue(port.confidential)

    def test_client_certificates(self) -> None:
        """They are demanded where there is TLS."""
        description = f"ssl:0:privateKey={certificate(self.mktemp())}"
        for client_ca, mode in ((None, SSL.VERIFY_NONE), (ca_file(self.mktemp()), SSL.VERIFY_PEER)):
            tls = self.port(description, client_ca).tls
            assert tls is not None
            demanded = tls.serverConnectionForTLS(None).get_verify_mode()
            self.assertEqual(demanded & SSL.VERIFY_PEER, mode)
        self.assertIsNone(self.port("tcp:0", "/nonexistent").tls)

    def test_refused(self) -> None:
        """In one line that names the port."""
        for description in (
            *("nonsense:1", "tcp", "tcp:x", "tcp:1:nonsense=2", "haproxy:", "haproxy:nonsense:1", ""),
            *("ssl:1:privateKey=/nonexistent", "unix", "systemd:domain=INET:index=0", "tls:/nonexistent"),
            *(
                "haproxy:ssl:1:privateKey=/nonexistent",
                "ssl:1:sslmethod=SSLv3_METHOD",
                "ssl:1:2:3:4:5:6:7:8:9",
            ),
        ):
            reactor = MemoryReactorClock()
            line = self.one_line(self.assertRaises(Refusal, open_port, description, reactor, None))
            self.assertIn(f"--port {description}: ", line)
        self.one_line(self.assertRaises(Refusal, open_port, "tcp:1\n2", MemoryReactorClock(), None))

    def test_kinds_in_disguise(self) -> None:
        """Twisted would take them for `ssl:`, which asks for no client certificate and is never read anew."""
        pem = certificate(self.mktemp())
        for description in (
            *(f"s\\sl:0:privateKey={pem}", f"\\ssl:0:privateKey={pem}", f"privateKey={pem}:ssl:0"),
            *(f"haproxy:s\\sl:0:privateKey={pem}", f"haproxy:privateKey={pem}:ssl:0"),
            *(
                f"h\\aproxy:ssl:0:privateKey={pem}",
                f"haproxy:haproxy:ssl:0:privateKey={pem}",
                "haproxy:HAProxy:tcp:0",
            ),
        ):
            refusal = self.assertRaises(Refusal, open_port, description, MemoryReactorClock(), None)
            self.assertRegex(self.one_line(refusal), "must begin with the kind|may stand there once")

    def test_plain_words(self) -> None:
        """What Twisted raises says nothing to who typed it."""
        pem = certificate(self.mktemp())
        for description, why in (
            ("tcp:abc", "'abc' is no port number"),
            ("tcp:", "'' is no port number"),
            ("tcp::interface=127.0.0.1", "'' is no port number"),
            (f"ssl:abc:privateKey={pem}", "'abc' is no port number"),
            ("tcp:1:backlog=abc", "'abc' is no backlog"),
            ("unix:/run/x:mode=9", "'9' is no mode"),
            ("systemd:domain=INET:index=0", "systemd passed no socket 0"),
            ("systemd:domain=INET:name=web", "systemd passed no socket web"),
        ):
            refusal = self.assertRaises(Refusal, open_port, description, MemoryReactorClock(), None)
            self.assertEqual(self.one_line(refusal), f"tcpjson: --port {description}: {why}")

    def test_other_errors_are_left(self) -> None:
        """As they are: a key that is missing elsewhere is not systemd's."""
        for description, error in (
            ("tcp:1", KeyError("x")),
            ("systemd:domain=INET:index=0", ValueError("x")),
        ):
            self.patch(tap, "port_from", lambda *_, error=error: self.raises(error))
            refusal = self.assertRaises(Refusal, open_port, description, MemoryReactorClock(), None)
            self.assertEqual(self.one_line(refusal), f"tcpjson: --port {description}: {error}")

    def raises(self, error: Exception) -> None:
        """Raise it."""
        raise error

    def test_a_broken_authority(self) -> None:
        pem = certificate(self.mktemp())
        broken = written(self.mktemp(), b"nothing of the kind")
        for path in (broken, "/nonexistent"):
            path = os.path.abspath(path)
            line = self.one_line(
                self.assertRaises(Refusal, open_port, f"ssl:0:privateKey={pem}", MemoryReactorClock(), path)
            )
            self.assertTrue(line.startswith(f"tcpjson: --client-ca: {path}: "), line)

    def test_a_number_alone(self) -> None:
        refusal = self.assertRaises(Refusal, open_port, "9994", MemoryReactorClock(), None)
        self.assertIn("did you mean tcp:9994?", self.one_line(refusal))
        refusal = self.assertRaises(Refusal, open_port, "x", MemoryReactorClock(), None)
        self.assertNotIn("did you mean", self.one_line(refusal))

    def test_opened(self) -> None:
        self.assertEqual(open_port("tcp:0", MemoryReactorClock(), None).description, "tcp:0")


class FileLimitTests(ServiceCase):
    """The soft limit of open files."""

    def setUp(self) -> None:
        self.limit = (1024, 4096)
        self.refuses: Exception | None = None
        self.patch(resource, "getrlimit", lambda kind: self.limit)
        self.patch(resource, "setrlimit", self.set_limit)

    def set_limit(self, kind: int, limit: tuple[int, int]) -> None:
        self.assertEqual(kind, resource.RLIMIT_NOFILE)
        if self.refuses is not None:
            raise self.refuses
        self.limit = limit

    def test_raised(self) -> None:
        self.assertEqual(raise_file_limit(), 4096)
        self.assertEqual(self.limit, (4096, 4096))

    def test_high_enough(self) -> None:
        self.limit = (4096, 4096)
        self.refuses = AssertionError()
        self.assertEqual(raise_file_limit(), 4096)

    def test_refused(self) -> None:
        lines = self.lines()
        for error in (ValueError("not allowed\nto raise"), OSError(1, "Operation not permitted")):
            self.refuses = error
            self.assertEqual(raise_file_limit(), 1024)
            self.assertEqual(self.limit, (1024, 4096))
            [line] = lines()
            self.assertIn("1024", line)

    def test_connections(self) -> None:
        """64 files are kept for all else, and there is always one connection."""
        for files, connections in ((1024, 960), (66, 2), (65, 1), (64, 1), (10, 1)):
            self.assertEqual(allowed_connections(files), connections)
        self.assertIsNone(allowed_connections(resource.RLIM_INFINITY))


class MakingCase(ServiceCase):
    """The way from the command line to the service."""

    files = 20000

    def setUp(self) -> None:
        self.real: Any = reactor
        # It is changed for the process; a test puts it back.
        self.patch(self.real, "seconds", self.real.seconds)
        self.patch(tap, "raise_file_limit", lambda: self.files)

    def make(self, *arguments: str) -> ServerService:
        return makeService(parse(*arguments))

    def refused(self, *arguments: str) -> str:
        """The line that says why there is no service."""
        line = self.one_line(self.assertRaises(Refusal, self.make, *arguments))
        self.assertNotIn(SECRET, line)
        return line

    def turn_until(self, done: Any) -> None:
        """Let the reactor run until something is so."""
        for _ in range(1000):
            if done():
                return
            self.real.iterate(0.01)
        self.fail("it does not come")


class MakeServiceTests(MakingCase):
    """`makeService`."""

    def test_a_steady_clock(self) -> None:
        self.make()
        before = time.monotonic()
        self.assertTrue(before <= self.real.seconds() <= time.monotonic())

    def test_options_reach_the_factory(self) -> None:
        service = self.make("--max-length", "100", "--send-buffer", "4096", "--strict")
        factory = service.factory
        self.assertEqual(factory.limits.max_length, 100)
        self.assertIn((socket.SO_SNDBUF, 4096), factory._buffers)
        self.assertIn((socket.SO_RCVBUF, None), factory._buffers)
        [refused] = factory.dialects.ready.codec.decode([b"text"])
        self.assertEqual(type(refused).__name__, "Refused")
        self.assertIs(factory.clock, reactor)
        self.assertIsNone(factory.authenticator)

    def test_compression(self) -> None:
        for words, names, over in (
            ((), ("zlib",), 1024),
            (("--compress-over", "300"), ("zlib",), 300),
            (("--compress-over", "0"), (), None),
        ):
            factory = self.make(*words).factory
            self.assertEqual((factory.compression, factory._compress_over), (names, over))

    def test_default_port(self) -> None:
        [(description, endpoint)] = self.make()._endpoints
        self.assertEqual(description, "tcp:9999:interface=127.0.0.1")
        self.assertIsInstance(endpoint, TCP4ServerEndpoint)

    def test_named_ports_replace_it(self) -> None:
        service = self.make("--port", "tcp:1", "--port", "haproxy:tcp:2")
        self.assertEqual([description for description, _ in service._endpoints], ["tcp:1", "haproxy:tcp:2"])
        self.assertEqual(list(service._tls), [])

    def test_bad_ports(self) -> None:
        self.assertIn("--port 9994: ", self.refused("--port", "tcp:1", "--port", "9994"))

    def test_certificates_reach_the_service(self) -> None:
        """Those of each port with TLS, to be read anew."""
        description = f"ssl:1:privateKey={certificate(self.mktemp())}"
        service = self.make("--port", "tcp:1", "--port", description, "--port", "unix:/run/x")
        [(option, tls)] = service._tls
        self.assertEqual(option, f"--port {description}")
        before = tls.serverConnectionForTLS(None).get_context()
        service.reload()
        self.assertIsNot(tls.serverConnectionForTLS(None).get_context(), before)

    def test_files_that_are_read_anew(self) -> None:
        """Each that is broken is named by its option; passwords of the command line are in no file."""
        pem, scram, token = certificate(self.mktemp()), scram_file(self.mktemp()), token_file(self.mktemp())
        ca = ca_file(self.mktemp())
        port = f"ssl:1:privateKey={pem}"
        service = self.make(
            *("--auth", f"scram:{scram}", "--auth", "memory:ann:x", "--auth", f"token:{token}"),
            *("--port", port, "--client-ca", ca),
        )
        fresh = self.lines()
        service.reload()
        self.assertEqual(fresh(), ["read anew: certificates, passwords and tokens"])
        for path, option in (
            (scram, "--auth scram"),
            (token, "--auth token"),
            (ca, "--client-ca"),
            (pem, f"--port {port}"),
        ):
            good = Path(path).read_bytes()
            Path(path).write_bytes(b"x")
            service.reload()
            failure, end = fresh()
            self.assertTrue(
                failure.startswith(
                    f"not read anew, the old stays in use: {option}: {os.path.abspath(path)}: "
                ),
                failure,
            )
            self.assertEqual(end, "read anew, but for 1 of 3")
            Path(path).write_bytes(good)
        service = self.make("--auth", "memory:ann:x", "--allow-plain-auth")
        service.reload()
        self.assertEqual(fresh(), ["nothing to read anew"])

    def test_open_ports(self) -> None:
        """Whether the service is to warn of them."""
        port = f"ssl:1:privateKey={certificate(self.mktemp())}"
        ca = ca_file(self.mktemp())
        self.assertIsNone(self.make("--port", port)._client_ca)
        service = self.make("--port", port, "--client-ca", ca)
        self.assertEqual(service._client_ca, os.path.abspath(ca))

    def test_options_that_do_nothing(self) -> None:
        lines = self.lines()
        token = f"token:{token_file(self.mktemp())}"
        harmless: Sequence[tuple[str, ...]] = (
            *(("--rate-policy", "throttle"), ("--rate-policy", "close", "--rate", "1")),
            *(("--rate-policy", "observe", "--byte-rate", "1"), ("--allow-plain-auth", "--auth", token)),
        )
        for arguments in harmless:
            self.make(*arguments)
            self.assertEqual(lines(), [], arguments)
        vain: Sequence[tuple[tuple[str, ...], str]] = (
            (("--rate-policy", "close"), "--rate-policy does nothing without --rate or --byte-rate"),
            (
                ("--rate-policy", "close", "--rate", "0"),
                "--rate-policy does nothing without --rate or --byte-rate",
            ),
            (("--allow-plain-auth",), "--allow-plain-auth does nothing without --auth"),
        )
        for arguments, line in vain:
            self.make(*arguments)
            self.assertEqual(lines(), [line])

    def test_a_queue_shorter_than_a_message(self) -> None:
        lines = self.lines()
        self.make("--max-queue", "1048576")
        self.assertEqual(lines(), [])
        self.make("--max-queue", "1048575")
        [line] = lines()
        self.assertIn("--max-queue is less than --max-length", line)

    def test_connections(self) -> None:
        """As many as there may be files, unless fewer are asked for."""
        self.assertEqual(self.make().factory.limits.max_connections, 19936)
        for given in ("19936", "5"):
            limits = self.make("--max-connections", given).factory.limits
            self.assertEqual(limits.max_connections, int(given))
        line = self.refused("--max-connections", "19937")
        self.assertIn("--max-connections: ", line)
        self.assertIn("19936", line)

    def test_connections_without_a_limit(self) -> None:
        self.files = resource.RLIM_INFINITY
        self.assertIsNone(self.make().factory.limits.max_connections)
        limits = self.make("--max-connections", "999999999").factory.limits
        self.assertEqual(limits.max_connections, 999999999)

    def test_no_threads_where_nobody_logs_in(self) -> None:
        self.assertIsNone(self.make()._pool)

    def test_signals(self) -> None:
        """What they lead to is called by the reactor, not in the midst of something else."""
        number = signal.SIGHUP
        before = signal.getsignal(number)
        self.addCleanup(signal.signal, number, before)
        waiting: list[Any] = []
        self.patch(self.real, "callWhenRunning", lambda *call: waiting.append(call))
        called: list[str] = []
        self.make()._on_signal(number, lambda: called.append("it"))
        # At once, and again over what Twisted puts in place when it begins to run.
        self.assertIsNot(signal.getsignal(number), before)
        signal.signal(number, before)
        for function, *arguments in waiting:
            function(*arguments)
        signal.raise_signal(number)
        self.assertEqual(called, [])
        self.turn_until(lambda: called)
        self.assertEqual(called, ["it"])

    def test_systemd(self) -> None:
        """The environment says where it is; that is not handed on."""
        systemd = FakeSystemd(self)
        variables = systemd.environ(WATCHDOG_USEC="60000000", WATCHDOG_PID=str(os.getpid()))
        with patch.dict(os.environ, variables):
            notifier = self.make()._notifier
            self.assertEqual(set(variables) & set(os.environ), set())
        notifier.alive()
        self.assertEqual((systemd.told(), notifier.interval), ([["WATCHDOG=1"]], 30))
        with patch.dict(os.environ, {**variables, "WATCHDOG_PID": "1"}):
            self.assertIsNone(self.make()._notifier.interval)

    def test_the_end(self) -> None:
        """The reactor stops as of the signal itself: twistd looks at which it was."""
        told: list[tuple[str, int]] = []
        self.patch(self.real, "sigTerm", lambda number: told.append(("TERM", number)))
        self.patch(self.real, "sigInt", lambda number: told.append(("INT", number)))
        service = self.make()
        service._stop_reactor(signal.SIGTERM)
        service._stop_reactor(signal.SIGINT)
        self.assertEqual(told, [("TERM", signal.SIGTERM), ("INT", signal.SIGINT)])


class MetricsOptionTests(MakingCase):
    """`--metrics`, and who may ask there."""

    def listens(self, description: str) -> tuple[Any, ...]:
        """How the memory reactor is told to listen: port, factory, backlog, interface."""
        memory = MemoryReactorClock()
        port = open_metrics_port(description, memory)
        self.successResultOf(port.endpoint.listen(Factory.forProtocol(Protocol)))
        [listening] = memory.tcpServers or memory.unixServers
        return listening

    def test_on_loopback_unless_told_otherwise(self) -> None:
        pem, folder = certificate(self.mktemp()), Path(self.mktemp())
        folder.mkdir()
        certificate(str(folder / "a.pem"))
        for description, interface in (
            ("tcp:9100", "127.0.0.1"),
            ("TCP:9100", "127.0.0.1"),
            ("tcp:port=9100", "127.0.0.1"),
            ("tcp:9100:backlog=5", "127.0.0.1"),
            ("tcp6:9100", "::1"),
            (f"ssl:9100:privateKey={pem}", "127.0.0.1"),
            (f"tls:{folder}:9100", "127.0.0.1"),
            ("tcp:9100:interface=0.0.0.0", "0.0.0.0"),
            ("tcp:interface=192.0.2.7:port=9100", "192.0.2.7"),
            ("tcp:9100:interface=", ""),
            (r"tcp6:9100:interface=\:\:", "::"),
            (f"ssl:9100:privateKey={pem}:interface=0.0.0.0", "0.0.0.0"),
            (f"tls:{folder}:9100:interface=0.0.0.0", "0.0.0.0"),
        ):
            listening = self.listens(description)
            self.assertEqual((listening[0], listening[3]), (9100, interface), description)

    def test_unix(self) -> None:
        self.assertEqual(self.listens("unix:/run/x")[0], "/run/x")

    def test_systemd(self) -> None:
        """It passes a socket, which is on the addresses that its unit says."""
        ours = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(ours.close)
        self.patch(endpoints._SystemdParser, "_sddaemon", ListenFDs([ours.fileno()], ["metrics"]))
        port = open_metrics_port("systemd:domain=INET:name=metrics", reactor)
        self.assertIsInstance(port.endpoint, ActivatedEndpoint)

    def test_it_reaches_the_service(self) -> None:
        service = self.make("--metrics", "tcp:9100", "--metrics-host", "stats.example")
        assert service._metrics is not None
        description, endpoint, site = service._metrics
        self.assertEqual(description, "tcp:9100")
        self.assertIsInstance(endpoint, TCP4ServerEndpoint)
        self.assertEqual(type(site).__name__, "MetricsSite")
        self.assertEqual([text for text, _ in service._endpoints], ["tcp:9999:interface=127.0.0.1"])

    def test_names_reach_the_site(self) -> None:
        """Who asks by another name is refused."""
        for names, asked, status in (
            ((), "stats.example", 4),
            (("--metrics-host", "stats.example"), "stats.example", 2),
            (("--metrics-host", "a.example", "--metrics-host", "b.example"), "b.example:9100", 2),
            (("--metrics-host", "a.example", "--metrics-host", "b.example"), "a.example", 2),
            (("--metrics-host", "a.example"), "b.example", 4),
        ):
            service = self.make("--metrics", "tcp:0", *names)
            assert service._metrics is not None
            loop = Loop()
            site: Any = service._metrics[2]
            site.startFactory()
            self.addCleanup(site.stopFactory)
            wire = connect(loop, site)
            self.addCleanup(wire.socket.close)
            wire.send(f"GET /healthz HTTP/1.1\r\nHost: {asked}\r\nConnection: close\r\n\r\n".encode())
            for _ in range(100):
                self.real.iterate(0)
                wire.take_all()
                if wire.data:
                    break
            self.assertTrue(wire.data.startswith(b"HTTP/1.1 %d" % status), wire.data[:100])
            wire.close()

    def test_without(self) -> None:
        self.assertIsNone(self.make()._metrics)
        self.assertIsNone(parse()["metrics"])
        self.assertEqual(parse()["metrics-host"], [])
        lines = self.lines()
        self.make("--metrics-host", "a.example")
        self.assertEqual(lines(), ["--metrics-host does nothing without --metrics"])

    def test_certificates(self) -> None:
        """They are read anew, and looked at, as those of the other ports."""
        pem = certificate(self.mktemp())
        service = self.make("--metrics", f"ssl:9100:privateKey={pem}")
        [(option, tls)] = service._tls
        self.assertTrue(option.startswith(f"--metrics ssl:9100:privateKey={pem}"), option)
        before = tls.serverConnectionForTLS(None).get_context()
        fresh = self.lines()
        service.reload()
        self.assertEqual(fresh(), ["read anew: certificates, passwords and tokens"])
        self.assertIsNot(tls.serverConnectionForTLS(None).get_context(), before)
        Path(pem).write_bytes(b"x")
        service.reload()
        self.assertIn("not read anew, the old stays in use: --metrics ssl:9100:", fresh()[0])

    def test_client_certificates_are_for_clients(self) -> None:
        """Who looks at the metrics shows none, and TLS there is none of a port."""
        pem, ca = certificate(self.mktemp()), ca_file(self.mktemp())
        line = self.refused("--metrics", f"ssl:9100:privateKey={pem}", "--client-ca", ca)
        self.assertEqual(line, "tcpjson: --client-ca: no --port has TLS")

    def test_refused(self) -> None:
        missing = os.path.abspath("nowhere.pem")
        for description, why in (
            ("", "tcpjson: --metrics: an endpoint must follow, as tcp:9100"),
            ("haproxy:tcp:9100", "tcpjson: --metrics haproxy:tcp:9100: haproxy: is for clients"),
            ("HAProxy:tcp:9100", "tcpjson: --metrics HAProxy:tcp:9100: haproxy: is for clients"),
            ("tcp:http", "tcpjson: --metrics tcp:http: 'http' is no port number"),
            ("tcp", "tcpjson: --metrics tcp: it lacks 'port'"),
            ("tcp:80:foo=3", "tcpjson: --metrics tcp:80:foo=3: it takes no foo="),
            ("tcp:80:a:1:b:9:9", "tcpjson: --metrics tcp:80:a:1:b:9:9: it has too many parts"),
            ("9100", "(did you mean tcp:9100?)"),
            ("udp:9100", "tcpjson: --metrics udp:9100: "),
            ("interface=0.0.0.0:tcp:1", "it must begin with the kind of the endpoint, as tcp:"),
            (f"ssl:9100:privateKey={missing}", missing),
            ("systemd:domain=INET:name=x", "systemd passed no socket x"),
        ):
            line = self.refused("--metrics", description)
            self.assertIn("--metrics", line)
            self.assertIn(why, line)

    def test_given_twice(self) -> None:
        line = self.refused("--metrics", "tcp:9100", "--metrics", "tcp:9101")
        self.assertEqual(line, "tcpjson: --metrics tcp:9101: it may stand there once")

    def test_a_package_that_is_missing(self) -> None:
        gone = [name for name in sys.modules if name.startswith(("prometheus_client", "tcpjson.metrics"))]
        with patch.dict("sys.modules"):
            for name in gone:
                del sys.modules[name]
            sys.modules["prometheus_client"] = None  # type: ignore[assignment]  # so that it cannot be imported
            line = self.refused("--metrics", "tcp:9100")
            # It is needed for nothing else.
            self.make()
        self.assertEqual(line, "tcpjson: --metrics needs another package: pip install 'tcpjson[metrics]'")

    def test_another_module_that_is_missing(self) -> None:
        """That is no question of a package to be installed."""
        with patch.dict("sys.modules", {"tcpjson.metrics.site": None}):
            error = self.assertRaises(ModuleNotFoundError, self.make, "--metrics", "tcp:9100")
        self.assertEqual(error.name, "tcpjson.metrics.site")


class LogOptionTests(MakingCase):
    """`--log-format`, and the log of messages."""

    def test_formats(self) -> None:
        self.assertEqual(parse()["log-format"], "text")
        for format in ("text", "json"):
            service = self.make("--log-format", format)
            assert service._logs is not None
            self.assertEqual(service._logs._format, format)
        for format in ("", "JSON", "xml", "json\n"):
            line = self.refused("--log-format", format)
            self.assertEqual(line, f"tcpjson: --log-format: {format!r} must be one of text, json")

    def test_what_twistd_says_otherwise(self) -> None:
        for twistd, words in (
            ({"syslog": True, "nodaemon": True}, "twistd's --syslog"),
            ({"logger": "a.b", "nodaemon": True}, "twistd's --logger"),
        ):
            options = parse("--log-format", "json")
            parent: Any = twistd
            options.parent = parent
            line = self.one_line(self.assertRaises(Refusal, makeService, options))
            self.assertIn("--log-format json: ", line)
            self.assertIn(words, line)

    def test_messages(self) -> None:
        """Not unless that is asked for; one of so many; with what is in them, or without."""
        self.assertIsNone(self.make().factory.message_log)
        for words, contents, every in (
            ((), False, 1),
            (("--log-contents",), True, 1),
            (("--log-sample", "7"), False, 7),
            (("--log-sample", "1", "--log-contents"), True, 1),
        ):
            fresh = self.lines()
            found = self.make("--log-messages", *words).factory.message_log
            assert found is not None
            self.assertEqual((found._contents, found._every), (contents, every))
            self.assertEqual(fresh(), [])

    def test_in_vain(self) -> None:
        lines = self.lines()
        for words in (("--log-contents",), ("--log-sample", "5"), ("--log-sample", "1")):
            self.assertIsNone(self.make(*words).factory.message_log)
            self.assertEqual(lines(), [f"{words[0]} does nothing without --log-messages"])


class MakeHandlersTests(HandlersCase, MakingCase):
    """What `--handlers` leads to."""

    def test_they_are_served(self) -> None:
        self.module("own_served", self.handler("own"))
        self.module("own_pinged", self.handler("ping"))
        lines = self.lines()
        service = self.make("--handlers", "own_served:router", "--handlers", "own_pinged:router")
        self.assertEqual(lines(), ["handlers of: own, ping"])
        ready = service.factory.dialects.ready
        messages = ready.codec.decode([b'{"type":"own"}', b'{"type":"ping"}', b'{"type":"echo"}'])
        self.assertEqual([type(message).__name__ for message in messages], ["Own", "Own", "Echo"])

    def test_none(self) -> None:
        lines = self.lines()
        ready = self.make().factory.dialects.ready
        self.assertEqual(lines(), [])
        [message] = ready.codec.decode([b'{"type":"own"}'])
        self.assertEqual(type(message).__name__, "Custom")

    def test_refused(self) -> None:
        """What only shows when all of it is together."""
        self.module("own_one", self.handler("own"))
        self.module("own_two", self.handler("own"))
        self.module("own_hello", self.handler("hello"))
        self.module("own_field", self.handler("odd", "x: list[Router]"))
        self.module("own_name", self.handler("odd", "x: 'NoSuchName'"))
        for names, expected in (
            (("one", "two"), "own_two.handle: own has a handler already, own_one.handle"),
            (("one", "one"), "own_one.handle: own has a handler already, own_one.handle"),
            (("hello",), "own_hello.handle: hello belongs to the protocol"),
            (("field",), "own_field.Own.x: no JSON value is a Router"),
            (("name",), "own_name.Own: name 'NoSuchName' is not defined"),
        ):
            words = [word for name in names for word in ("--handlers", f"own_{name}:router")]
            self.assertEqual(self.refused(*words), f"tcpjson: --handlers: {expected}")


class AuthenticatorTests(MakingCase):
    """Who checks the clients."""

    def test_checkers(self) -> None:
        service = self.make("--auth", f"memory:ann:{SECRET}", "--port", "unix:/run/x")
        authenticator = service.factory.authenticator
        assert authenticator is not None
        [checker] = authenticator.checkers
        self.assertIn(IUsernamePassword, checker.credentialInterfaces)
        self.assertEqual(authenticator.mechanisms(True), ("plain",))
        self.assertEqual(authenticator.mechanisms(False), ())

    def test_passwords_take_turns(self) -> None:
        """Who sends many delays only itself."""
        service = self.make("--auth", f"memory:ann:{SECRET}", "--allow-plain-auth")
        authenticator, pool = service.factory.authenticator, service._pool
        assert authenticator is not None
        assert pool is not None
        order: list[str] = []
        results = [authenticator.run("many", order.append, "many") for _ in range(5 * tap._HASHERS + 5)]
        results.append(authenticator.run("one", order.append, "one"))
        pool.start()
        self.addCleanup(pool.stop)
        self.turn_until(lambda: all(result.called for result in results))
        self.assertLess(order.index("one"), len(order) - 1)

    def test_in_the_clear(self) -> None:
        service = self.make("--auth", f"memory:ann:{SECRET}", "--allow-plain-auth")
        authenticator = service.factory.authenticator
        assert authenticator is not None
        self.assertEqual(authenticator.mechanisms(False), ("plain",))

    def test_passwords_are_hashed_elsewhere(self) -> None:
        """By threads, as many as half of the processors: all else goes on."""
        service = self.make("--auth", f"memory:ann:{SECRET}", "--allow-plain-auth")
        authenticator, pool = service.factory.authenticator, service._pool
        assert authenticator is not None
        assert pool is not None
        pool.start()
        self.addCleanup(pool.stop)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        started: list[int] = []

        def hash_one() -> int:
            started.append(threading.get_ident())
            go_on.wait(10)
            return threading.get_ident()

        results = [authenticator.run(address, hash_one) for address in range(tap._HASHERS + 2)]
        self.turn_until(lambda: len(started) == tap._HASHERS)
        self.real.iterate(0.05)
        self.assertEqual(len(started), tap._HASHERS)
        go_on.set()
        self.turn_until(lambda: all(result.called for result in results))
        self.assertNotIn(threading.get_ident(), {self.successResultOf(result) for result in results})
        self.assertTrue(1 <= tap._HASHERS <= max(1, (os.cpu_count() or 1) // 2))


class ProtectionTests(MakingCase):
    """What would be no protection is refused."""

    def setUp(self) -> None:
        super().setUp()
        self.tls = f"ssl:1:privateKey={certificate(self.mktemp())}"
        self.scram = f"scram:{scram_file(self.mktemp())}"
        self.token = f"token:{token_file(self.mktemp())}"
        self.client_ca = ca_file(self.mktemp())

    def test_secrets_in_the_clear(self) -> None:
        """The line names the kind and the port: the first that is wrong."""
        for auth, name in ((f"memory:ann:{SECRET}", "memory"), (self.token, "token")):
            for port in ("tcp:1", "haproxy:tcp:1", "haproxy:unix:/run/x"):
                line = self.refused("--port", self.tls, "--port", port, "--auth", auth)
                self.assertIn(f"--auth {name}: --port {port} is in the clear", line)
                self.make("--port", port, "--auth", auth, "--allow-plain-auth")
        self.assertIn("--port tcp:9999:interface=127.0.0.1 ", self.refused("--auth", self.token))

    def test_one_of_several(self) -> None:
        line = self.refused("--auth", self.scram, "--auth", self.token)
        self.assertIn("--auth token: ", line)

    def test_secrets_that_nobody_reads(self) -> None:
        for auth in (f"memory:ann:{SECRET}", self.token, self.scram):
            for port in (self.tls, "unix:/run/x", f"haproxy:{self.tls}"):
                service = self.make("--port", port, "--auth", auth)
                self.assertIsNotNone(service.factory.authenticator)

    def test_scram_in_the_clear(self) -> None:
        """It shows no secret."""
        self.make("--auth", self.scram)

    def test_client_certificates_without_tls(self) -> None:
        for port in ("tcp:1", "unix:/run/x"):
            line = self.refused("--port", port, "--client-ca", self.client_ca)
            self.assertEqual(line, "tcpjson: --client-ca: no --port has TLS")

    def test_client_certificates_beside_an_open_door(self) -> None:
        for port in ("tcp:1", "haproxy:tcp:1", "unix:/run/x"):
            arguments = ("--port", self.tls, "--port", port, "--client-ca", self.client_ca)
            line = self.refused(*arguments)
            self.assertIn(f"--client-ca: --port {port} has no TLS and asks nobody", line)
            self.make(*arguments, "--auth", self.scram)

    def test_client_certificates(self) -> None:
        """Those on a Unix socket have none: they are asked for something else, or it is refused, as above."""
        for more in ((), ("--auth", self.token), ("--auth", self.token, "--port", "unix:/run/x")):
            self.make("--port", self.tls, "--client-ca", self.client_ca, *more)
