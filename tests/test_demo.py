"""`python -m tcpjson.demo` in processes of its own, with servers and without."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.verifiers import hash_token
from tests.harness import TIMEOUT, ServerTestCase, command
from tests.identities import authority, new_path, write
from tests.strangers import NO_WELCOME, Classic, Stranger, answers, echo, says

PROGRAM = (sys.executable, "-m", "tcpjson.demo")

STEPS = [
    *("welcome", "ping", "text", "object", "unicode", "numbers", "broadcast", "statistics"),
    *("other type", "plain text", "error", "compression", "timeout", "end"),
]


class Run:
    """The program, started and not waited for."""

    def __init__(self, *arguments: str, stdout: int = subprocess.PIPE, encoding: str = "utf-8") -> None:
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env={**command()[1], "PYTHONIOENCODING": encoding},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def ended(self) -> tuple[int, list[str], str]:
        """Wait for its end; returns its status, the lines that it printed, and what it complained of."""
        output, told = self._process.communicate(timeout=TIMEOUT)
        return self._process.returncode, (output or "").splitlines(), told


def steps(lines: list[str]) -> list[str]:
    """The steps that lines tell of."""
    return [line[:11].rstrip() for line in lines if line[11:14] in (" > ", " * ") and line[:11].strip()]


class ServedTests(ServerTestCase):
    """Where a server runs."""

    def shows(self, where: str, *arguments: str) -> list[str]:
        """Run it, with success; returns what it printed between the first line and the last."""
        status, lines, told = Run(where, *arguments).ended()
        self.assertEqual((status, told), (0, ""), lines)
        self.assertEqual(lines[0], f"a server listens at {where}")
        self.assertRegex(lines[-1], rf"^all {len(STEPS)} steps came back right, in \d\.\d\d seconds$")
        self.assertEqual(steps(lines), STEPS)
        return lines[1:-1]

    def test_a_server(self) -> None:
        server = self.start()
        lines = self.shows("{}:{}".format(*server.address))
        # Three clients, and the one that looked whether it was there.
        server.wait_for(r"\] disconnected \S+ reason=client_closed ", 4)
        for wanted in (
            '            < {"x": 1, "y": [2, 3], "z": null, "deep": {"yes": true}}',
            '            < "Grüße, 你好, \N{WAVING HAND SIGN}"',
            "            < [18446744073709551615, -9223372036854775808, 0.30000000000000004]",
            "            < 2 recipients",
        ):
            self.assertIn(wanted, lines)

    def test_others_are_there(self) -> None:
        """Clients that get the broadcast too, and send some of their own."""
        server = self.start()
        other = self.connect(server)
        other.send(*({"type": "broadcast", "content": number} for number in range(3)))
        lines = self.shows("{}:{}".format(*server.address))
        self.assertIn("            < 3 recipients", lines)

    def test_a_server_that_does_less(self) -> None:
        server = self.start("--strict", "--compress-over=0", "--max-length=400")
        lines = self.shows("{}:{}".format(*server.address))
        self.assertIn("            < unknown_type: no such type: demo", lines)
        self.assertIn("            < bad_json", lines)
        self.assertIn("compression * left out: the server offers none", lines)

    def test_short_messages_alone(self) -> None:
        server = self.start("--max-length=400")
        lines = self.shows("{}:{}".format(*server.address))
        self.assertTrue(any(line.startswith("            * 200 characters each way; ") for line in lines))

    def test_unix(self) -> None:
        path = new_path(".sock")
        self.start(ports=[f"unix:{path}"])
        self.shows(f"unix:{path}")

    def test_tls(self) -> None:
        server = self.start(ports=[authority().issue().port])
        self.shows("{}:{}".format(*server.address), "--ca", str(authority().file))

    def test_it_is_not_let_in(self) -> None:
        tokens = write(new_path(".tokens"), f"me:{hash_token('secret').hex()}\n")
        server = self.start("--auth", f"token:{tokens}", "--allow-plain-auth")
        status, lines, told = Run("{}:{}".format(*server.address)).ended()
        self.assertEqual((status, len(lines)), (1, 1))
        self.assertEqual(
            told,
            "tcpjson.demo: welcome: the server wants a login, which the demo cannot do:"
            " try python -m tcpjson.console --user NAME (or --token-file FILE)\n",
        )

    def test_no_tls_where_it_is_wanted(self) -> None:
        server = self.start()
        status, _, told = Run("{}:{}".format(*server.address), "--ca", str(authority().file)).ended()
        self.assertEqual((status, told.count("\n")), (1, 1))


class OutputTests(ServerTestCase):
    """Where the output goes."""

    def setUp(self) -> None:
        self.where = "{}:{}".format(*self.server.address)

    def ends(self, stdout: int) -> None:
        """See that it ends as it should, and complains of nothing."""
        status, _, told = Run(self.where, stdout=stdout).ended()
        self.assertEqual((status, told), (0, ""))

    def test_nobody_reads_on(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb"):
            self.ends(writing)

    def test_a_full_disk(self) -> None:
        with open("/dev/full", "wb") as full:
            self.ends(full.fileno())

    def test_closed(self) -> None:
        ended = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, self.where],
            env=command()[1],
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual((ended.returncode, ended.stderr), (0, b""))

    def test_ascii_alone(self) -> None:
        status, lines, told = Run(self.where, encoding="ascii").ended()
        self.assertEqual((status, told), (0, ""))
        self.assertIn(r'            < "Gr\xfc\xdfe, \u4f60\u597d, \U0001f44b"', lines)


class StrangerTests(SynchronousTestCase):
    """Where another server than ours runs."""

    def run_with(self, stranger: Stranger) -> tuple[int, list[str], str]:
        """What it makes of it."""
        with stranger:
            return Run(stranger.where).ended()

    def test_a_classic_server(self) -> None:
        status, lines, told = self.run_with(Classic())
        self.assertEqual((status, told), (0, ""), lines)
        self.assertEqual(steps(lines), STEPS)
        self.assertIn("error       * left out: a classic server tells of no errors", lines)
        self.assertIn("compression * left out: the server offers none", lines)

    def test_a_wrong_answer(self) -> None:
        stranger = Stranger(answers(lambda message: [{**echo(message), "type": "pong", "ping_timestamp": 1}]))
        status, lines, told = self.run_with(stranger)
        self.assertEqual(status, 1)
        self.assertEqual(steps(lines), ["welcome", "ping"])
        self.assertRegex(told, r'^tcpjson\.demo: ping: expected "[0-9a-f]{8}", came 1\n$')

    def test_what_is_no_server(self) -> None:
        for name in ("an HTTP answer", "a TLS alert", "another message"):
            status, lines, told = self.run_with(Stranger(says(NO_WELCOME[name])))
            self.assertEqual((status, len(lines), told.count("\n")), (1, 1, 1), f"{name}: {told}")
            self.assertRegex(told, r"^tcpjson\.demo: welcome: expected no error, came ProtocolMismatch: ")


class UnservedTests(SynchronousTestCase):
    """Where none runs, or none that answers."""

    def bound(self) -> socket.socket:
        """A socket whose port is nobody else's."""
        bound = socket.socket()
        self.addCleanup(bound.close)
        bound.bind(("127.0.0.1", 0))
        return bound

    def test_a_server_of_its_own(self) -> None:
        where = f"127.0.0.1:{self.bound().getsockname()[1]}"
        begin = time.monotonic()
        status, lines, told = Run(where).ended()
        self.assertEqual((status, told), (0, ""))
        self.assertRegex(
            lines[0],
            rf"^nobody listens at {where}: this is a server of the demo's own, 127\.0\.0\.1:\d+$",
        )
        self.assertNotIn(where, lines[0].rpartition(",")[2])
        self.assertEqual(steps(lines), STEPS)
        self.assertLess(time.monotonic() - begin, 5)

    def test_none_of_its_own_over_tls(self) -> None:
        where = f"127.0.0.1:{self.bound().getsockname()[1]}"
        status, lines, told = Run(where, "--ca", str(authority().file)).ended()
        self.assertEqual((status, lines), (1, []))
        self.assertRegex(told, rf"^tcpjson\.demo: nobody answers at {where}: .*refused\.?\n$")

    def test_none_of_its_own_for_other_endpoints(self) -> None:
        where = f"unix:{new_path('.sock')}"
        status, lines, told = Run(where).ended()
        self.assertEqual((status, lines), (1, []))
        self.assertRegex(
            told, rf"^tcpjson\.demo: nobody answers at {where}: .*No such file or directory\.?\n$"
        )

    def test_no_address(self) -> None:
        status, lines, told = Run("tls:somewhere").ended()
        self.assertEqual((status, lines), (2, []))
        self.assertRegex(told.splitlines()[-1], r"^python -m tcpjson\.demo: error: tls:somewhere: ")

    def test_it_says_nothing(self) -> None:
        """Neither does the demo wait for ever."""
        listening = self.bound()
        listening.listen()
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        begin = time.monotonic()
        status, lines, told = Run(where).ended()
        self.assertEqual((status, lines), (1, [f"a server listens at {where}"]))
        self.assertRegex(told, r"^tcpjson\.demo: welcome: expected ")
        self.assertLess(time.monotonic() - begin, 7)

    def test_an_interrupt(self) -> None:
        listening = self.bound()
        listening.listen()
        listening.settimeout(TIMEOUT)
        run = Run(f"127.0.0.1:{listening.getsockname()[1]}")
        # The first one looks whether somebody listens.
        for _ in range(2):
            accepted, _ = listening.accept()
            self.addCleanup(accepted.close)
        run.interrupt()
        status, lines, told = run.ended()
        self.assertEqual((status, len(lines), told), (130, 1, ""))
