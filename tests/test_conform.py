"""`python -m tcpjson.conform` against real servers, small ones, faulty ones and hostile ones."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.conform.checks import CHECKS
from tcpjson.conform.played import vector_tokens
from tcpjson.conform.program import main
from tcpjson.conform.runner import all_checks
from tcpjson.vectors import load
from tests.faulty import FAULTS, Fault, Faulty, Planted, Sound, spoiled
from tests.harness import (
    LOOPBACK,
    TIMEOUT,
    Server,
    ServerTestCase,
    command,
    encode,
    folder,
    frame,
    shared,
    until,
)
from tests.identities import authority, new_path, tokens, users, write
from tests.strangers import NO_WELCOME, WELCOME, Classic, Proxy, Stranger, Visit, says

PASSWORD = "pencil-4711"
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "protocol.rst"

#: Checks that are skipped where no login is asked for, beside the vectors.
LOGINS = {
    *("login-by-each-mechanism", "before-the-login", "frames-before-the-login"),
    *("nobody-hears-before-the-login", "broadcasts-tell-the-user", "requests-behind-the-proof"),
    *("auth-behind-the-login", "auth-that-is-none", "secrets-do-not-come-back", "auth-timeout"),
    *("three-failures", "failures-lock-nobody-out", "broken-frames-before-the-login"),
    "limits-of-those-who-log-in",
}
#: Those that wait for the deadlines of a server as it is by default.
SLOW = {
    *("frame-timeout", "ping-after-silence", "no-ping-unasked", "frames-are-signs-of-life"),
    "heartbeat-timeout",
}
#: Those that no server in these tests allows.
NEVER = {"going-away"}
#: Those that need a rate, and those that need that there is none.
RATED = {"over-the-rate"}
UNRATED = {"all-is-answered-that-is-read-late", "a-stuck-client-holds-up-nobody", "slow-consumer"}

STRICT_VECTORS = {vector.name for vector in load() if vector.options.strict}
TOKEN_VECTORS = {vector.name for vector in load() if vector.options.tokens}

#: All sections but those of which the checks take seconds and are the same in all modes.
BRIEF = tuple(
    itertools.chain.from_iterable(("--section", str(number)) for number in (1, 2, 3, 4, 5, 6, 7, 8, 11))
)

QUICK = ("--frame-timeout", "1", "--heartbeat", "1", "--auth-timeout", "1")


def token_arguments() -> tuple[str, ...]:
    """The options of a server that knows the tokens of the vectors."""
    return "--auth", f"token:{write(new_path('.tokens'), tokens(vector_tokens()))}", "--allow-plain-auth"


class Outcome:
    """What the program said, and its status."""

    def __init__(self, status: int, output: str, told: str) -> None:
        self.status = status
        self.output = output
        self.told = told
        self.document: dict[str, Any] = json.loads(output) if output.startswith("{") else {}
        self.checks: dict[str, Any] = {each["name"]: each for each in self.document.get("checks", ())}

    def of(self, verdict: str) -> dict[str, str]:
        """The checks with a verdict, and what was said of each."""
        return {name: each["reason"] for name, each in self.checks.items() if each["verdict"] == verdict}


def run(*arguments: str) -> Outcome:
    """Run the program in this process."""
    output, told = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(told):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(str(error.code))
    return Outcome(status, output.getvalue(), told.getvalue())


def play(where: str, *arguments: str) -> Outcome:
    """Run it in this process, with --json."""
    return run(where, "--json", *arguments)


def where(server: Server) -> str:
    """What the program is told of a server."""
    return "{}:{}".format(*server.address)


class RealServerTests(ServerTestCase):
    """`twistd tcpjson`, in all its modes."""

    def sound(self, outcome: Outcome, skipped: set[str], strict: bool = False) -> None:
        """See that nothing failed, and what was skipped."""
        self.assertEqual((outcome.of("failed"), outcome.of("warned"), outcome.status), ({}, {}, 0))
        played = set(outcome.checks)
        expected = (skipped | NEVER) & played | (set() if strict else STRICT_VECTORS)
        if strict:
            # Those for which it would have to be lenient; how many there are does not depend on the kit.
            lenient = {name for name, why in outcome.of("skipped").items() if why == "the server is strict"}
            self.assertEqual(len(lenient), 93)
            expected |= lenient
        self.assertEqual(set(outcome.of("skipped")), expected)
        self.assertEqual(outcome.document["strict"], strict)

    def test_as_it_is(self) -> None:
        """The command itself."""
        server = self.start()
        words = [sys.executable, "-m", "tcpjson.conform", where(server), "--section", "7"]
        done = subprocess.run(
            words, env=command()[1], capture_output=True, encoding="utf-8", timeout=2 * TIMEOUT, check=False
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], r"^127\.0\.0\.1:\d+ is tcpjson/\S+; level full$")
        self.assertRegex(lines[1], r"^section 3   classic messages +\d+ passed     0 failed +\d+ skipped$")
        self.assertRegex(lines[3], r"^all  +\d+ passed     0 failed +\d+ skipped$")
        self.assertRegex(lines[4], r"^skipped \d+: the server asks for no login$")

    def test_default(self) -> None:
        server = self.start()
        self.sound(play(where(server)), TOKEN_VECTORS | LOGINS | SLOW | RATED)

    def test_again(self) -> None:
        """It leaves nothing behind that a second run would meet; one section of it takes a moment."""
        server = self.start()
        for _ in range(2):
            outcome = play(where(server), "--section", "3")
            self.assertEqual((outcome.of("failed"), outcome.of("warned")), ({}, {}))

    def test_strict(self) -> None:
        outcome = play(where(self.start("--strict")), *BRIEF)
        self.sound(outcome, TOKEN_VECTORS | LOGINS | SLOW, strict=True)

    def test_tls(self) -> None:
        port = authority().issue().port
        server = self.start(ports=[port])
        outcome = play(where(server), "--ca", str(authority().file))
        skipped = TOKEN_VECTORS | LOGINS | SLOW | RATED | {"half-closed-clients-get-their-answers"}
        self.sound(outcome, skipped)
        self.assertTrue(outcome.document["tls"])

    def test_tls_that_is_not_trusted(self) -> None:
        port = authority().issue(hosts=("example.org",)).port
        server = self.start(ports=[port])
        outcome = run(where(server), "--ca", str(authority().file))
        self.assertEqual((outcome.status, outcome.output), (2, ""))
        self.assertRegex(outcome.told, r"certificate verify failed")

    def test_certificates_of_clients(self) -> None:
        server = self.start("--client-ca", str(authority().file), ports=[authority().issue().port])
        mine = authority().issue("sensor-7")
        both = write(new_path(".pem"), mine.certificate_pem + mine.key_pem)
        outcome = play(
            where(server), "--ca", str(authority().file), "--certificate", str(both), "--section", "4"
        )
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        self.assertIn("welcome-auth", outcome.of("passed"))

    def test_tokens(self) -> None:
        server = self.start(*token_arguments())
        outcome = play(where(server), "--vector-tokens", "--allow-plain-auth", *BRIEF)
        self.sound(outcome, SLOW | {"auth-timeout", "three-failures"})

    def test_a_token_of_ones_own(self) -> None:
        server = self.start(*token_arguments())
        secret = write(new_path(".secret"), "tok-b\n")
        # The last ones take long, and are played elsewhere.
        own = {each.name for each in CHECKS if each.section == "6" and not each.last}
        only = itertools.chain.from_iterable(("--only", name) for name in own)
        outcome = play(where(server), "--token-file", str(secret), "--allow-plain-auth", *only)
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        self.assertEqual(set(outcome.of("skipped")), {"auth-timeout"})

    def test_passwords(self) -> None:
        server = self.start("--auth", f"scram:{write(new_path('.users'), users({'alice': PASSWORD}))}")
        secret = write(new_path(".secret"), f"{PASSWORD}\n")
        outcome = play(where(server), "--user", "alice", "--password-file", str(secret), *BRIEF)
        skipped = TOKEN_VECTORS | SLOW | {"auth-timeout", "requests-behind-the-proof"}
        self.sound(outcome, skipped)

    def test_a_wrong_password(self) -> None:
        """It is said once, and nothing of the password."""
        server = self.start("--auth", f"scram:{write(new_path('.users'), users({'alice': PASSWORD}))}")
        secret = write(new_path(".secret"), "wrong-password\n")
        outcome = run(where(server), "--user", "alice", "--password-file", str(secret), "--section", "3")
        self.assertEqual(outcome.status, 1)
        self.assertEqual(outcome.output.count("FAIL"), 1)
        self.assertIn("FAIL  6   login: Who we are lets us in. (R6.10)", outcome.output)
        self.assertIn("authentication_failed", outcome.output)
        self.assertNotIn("wrong-password", outcome.output + outcome.told)

    def test_no_secret(self) -> None:
        """Without one there is little to check, and it is said."""
        outcome = play(where(self.start(*token_arguments())))
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        reasons = Counter(outcome.of("skipped").values())
        self.assertGreater(reasons["the server asks for a login: give --token-file, or --user"], 400)
        self.assertIn("before-the-login", outcome.of("passed"))

    def test_short_deadlines(self) -> None:
        """They are waited for without being asked; the longer ones with --slow."""
        server = self.start(*QUICK)
        outcome = play(where(server), "--section", "8", "--section", "1")
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        skipped = {name for name in outcome.of("skipped") if name not in STRICT_VECTORS | TOKEN_VECTORS}
        self.assertEqual(skipped, {"heartbeat-timeout"})

    def test_a_rate(self) -> None:
        """The kit keeps to it, and sees that it holds."""
        server = self.start("--rate", "200", "--byte-rate", "3000000")
        outcome = play(where(server), "--section", "10", "--section", "2", "--section", "3")
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        skipped = {name for name in outcome.of("skipped") if name not in STRICT_VECTORS | TOKEN_VECTORS}
        self.assertEqual(skipped, UNRATED)

    def test_a_rate_that_closes(self) -> None:
        """Nobody is closed but who goes over it on purpose."""
        server = self.start("--rate", "100", "--rate-policy", "close")
        outcome = play(where(server), "--section", "10", "--section", "2")
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        self.assertIn("over-the-rate", outcome.of("passed"))
        until(lambda: server.reasons()["rate_limited"] == 1, "one is told of in the log")

    def test_a_low_rate_that_closes(self) -> None:
        """Frames count where they end, and there is some air between them."""
        server = self.start("--rate", "20", "--rate-policy", "close")
        outcome = play(where(server), "--only", "segments-that-cut-anywhere")
        self.assertEqual((outcome.of("failed"), outcome.of("skipped"), outcome.status), ({}, {}, 0))

    def test_short_messages(self) -> None:
        """What is too long is not sent."""
        for size in ("100", "200", "3000"):
            outcome = play(where(self.start("--max-length", size)), "--timeout", "1", *BRIEF)
            self.assertEqual((outcome.of("failed"), outcome.of("warned"), outcome.status), ({}, {}, 0))
            self.assertGreater(len(outcome.of("passed")), 40)

    def test_other_ways_there(self) -> None:
        path = folder() / "conform.sock"
        server = self.start(ports=[f"unix:{path}", "tcp6:0:interface=\\:\\:1", LOOPBACK])
        for address in (f"unix:{path}", f"[::1]:{server.tcp_address(1)[1]}", "localhost:{}"):
            outcome = play(address.format(server.tcp_address(2)[1]), "--section", "2", "--section", "4")
            self.assertEqual((outcome.of("failed"), outcome.of("warned"), outcome.status), ({}, {}, 0))
            self.assertIn("client-id-is-the-address", outcome.of("passed"))

    def test_few_connections(self) -> None:
        """What needs more is skipped, and says so."""
        server = self.start("--max-connections", "2")
        names = ("broadcast-reaches-all-others", "total-messages-grows", "echo-strings")
        outcome = play(where(server), *itertools.chain.from_iterable(("--only", name) for name in names))
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))
        self.assertEqual(set(outcome.of("skipped")), {"broadcast-reaches-all-others"})
        why = outcome.of("skipped")["broadcast-reaches-all-others"]
        self.assertEqual(why, "the server takes no more connections: server_full")

    def test_others_are_there(self) -> None:
        """Their broadcasts, and their number, are no concern of the kit's."""
        server = self.start()
        other = self.connect(server)
        over = threading.Event()

        def chatter() -> None:
            while not over.wait(0.002):
                other.send({"type": "broadcast", "content": "never mind"})
                other.buffer.clear()
                other.fill()

        thread = threading.Thread(target=chatter, daemon=True)
        thread.start()
        try:
            outcome = play(where(server), "--section", "3", "--section", "1", "--section", "10")
        finally:
            over.set()
            thread.join(TIMEOUT)
        self.assertEqual((outcome.of("failed"), outcome.of("warned"), outcome.status), ({}, {}, 0))
        reason = "other clients are connected to the server"
        skipped = {name for name, why in outcome.of("skipped").items() if why == reason}
        self.assertLess({"recipients-are-counted", "connected-clients-are-counted", "slow-consumer"}, skipped)

    def test_others_come(self) -> None:
        """What they made fail is made again."""
        server = self.start()
        proxy = Proxy(server.address)
        self.addCleanup(proxy.stop)
        # Half of a second later somebody else connects, while connections are counted.
        timer = threading.Timer(0.05, lambda: self.connect(server))
        timer.start()
        outcome = play(proxy.where, "--section", "3")
        timer.join()
        self.assertEqual((outcome.of("failed"), outcome.status), ({}, 0))


class ClassicTests(SynchronousTestCase):
    """Servers of sections 1 to 3."""

    def test_a_sound_one(self) -> None:
        """One that was written from the document passes all of it, and is known by its welcome."""
        with Sound() as server:
            outcome = play(server.where)
        self.assertEqual((outcome.of("failed"), outcome.of("warned"), outcome.status), ({}, {}, 0))
        self.assertEqual(set(outcome.of("skipped")), {"frame-timeout"})
        self.assertEqual(outcome.document["level"], "classic")
        classic = {each.name for each in all_checks() if each.level == "classic"}
        self.assertEqual(set(outcome.checks), classic | {"welcome-comes", "ping-gets-pong"})

    def test_it_is_no_full_one(self) -> None:
        with Sound() as server:
            outcome = play(server.where, "--level", "full", "--section", "4", "--section", "5")
        failed = outcome.of("failed")
        self.assertLess({"welcome-protocol", "welcome-limits", "hello-first", "second-hello"}, set(failed))
        self.assertEqual(failed["welcome-protocol"], "protocol: expected 1, but it is missing")

    def test_a_full_one_is_a_classic_one(self) -> None:
        outcome = play(where(shared()), "--level", "classic", "--section", "3", "--section", "4")
        self.assertEqual((outcome.of("failed"), outcome.document["level"]), ({}, "classic"))
        self.assertEqual({each["section"] for each in outcome.document["sections"]}, {"3"})

    def test_a_pasted_one(self) -> None:
        """Sixty lines of sockets and threads, as they are in the field."""
        server = Classic()
        outcome = play(server.where, "--timeout", "1")
        # Its threads die of what they are sent.
        with contextlib.suppress(AssertionError):
            server.stop()
        self.assertEqual(outcome.status, 1)
        failed, passed = outcome.of("failed"), outcome.of("passed")
        for name in ("length-zero", "id-string", "too-large-by-one", "literal-nan-spellings", "get-stats"):
            self.assertIn(name, failed)
        for name in ("one-byte-at-a-time", "many-frames-in-one-segment", "broadcasts-keep-their-order"):
            self.assertIn(name, passed)
        self.assertEqual(failed["length-zero"], 'sender, answer 1: type: expected "error", got "echo"')
        wire = outcome.checks["length-zero"]["wire"]
        self.assertIn({"who": "sender", "way": "sent", "bytes": 4, "hex": "00000000", "text": "...."}, wire)
        self.assertIn('{"type": "echo", "original_text": ""', wire[-1]["text"])


class FaultTests(SynchronousTestCase):
    """Faults that are planted one at a time."""

    #: The options of each kind of server, and those of the kit.
    _servers: ClassVar[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
        "plain": ((), ()),
        "quick": (QUICK, ()),
        "token": (("token",), ("--vector-tokens", "--allow-plain-auth")),
        "quick-token": (("token", *QUICK), ("--vector-tokens", "--allow-plain-auth")),
        "guess": (("token",), ("--vector-tokens", "--allow-plain-auth")),
    }

    def _server(self, kind: str) -> Server:
        options, _ = self._servers[kind]
        words = itertools.chain.from_iterable(
            token_arguments() if word == "token" else (word,) for word in options
        )
        server = Server(*words)
        self.addCleanup(server.stop)
        return server

    def _play(self, server: Server, fault: Fault, kind: str, checks: Iterable[str], *more: str) -> Outcome:
        only = itertools.chain.from_iterable(("--only", name) for name in checks)
        with Faulty(server.address, fault) as faulty:
            return play(faulty.where, *self._servers[kind][1], *only, *more)

    def _finds(self, kind: str, fresh: bool = False) -> None:
        """
        Each fault of a kind of server is found by the checks that it is for, and none without it.

        Args:
            kind: which server stands behind.
            fresh: each has its own; that the checks pass without a fault, `RealServerTests` sees.
        """
        planted = {name: each for name, each in FAULTS.items() if each.server == kind}
        self.assertTrue(planted)
        server = self._server(kind)
        found = {name: self._failed(server, each, fresh) for name, each in planted.items()}
        self.assertEqual({name: missing for name, missing in found.items() if missing}, {})
        # The proxy itself is none: but it hands on whole frames alone, and keeps what nobody reads.
        checks = {check for each in planted.values() for check in each.checks}
        checks -= {"frame-timeout", "slow-consumer"}
        if fresh:
            return
        sound = self._play(self._server(kind), Fault(), kind, checks)
        self.assertEqual((sound.of("failed"), sound.of("skipped"), sound.status), ({}, {}, 0))

    def _failed(self, server: Server, planted: Planted, fresh: bool) -> set[str]:
        """The checks that should have failed, and did not."""
        if fresh:
            server = self._server(planted.server)
        outcome = self._play(server, planted.make(), planted.server, planted.checks, "--timeout", "0.8")
        return set(planted.checks) - set(outcome.of("failed"))

    def test_plain(self) -> None:
        self._finds("plain")

    def test_quick(self) -> None:
        self._finds("quick")

    def test_token(self) -> None:
        self._finds("token")

    def test_quick_token(self) -> None:
        self._finds("quick-token")

    def test_guess(self) -> None:
        """Failures of one run hold the next one's logins back."""
        self._finds("guess", fresh=True)

    def test_they_are_of_all_sections(self) -> None:
        """But of the shutdown, which cannot be seen."""
        sections = {each.name: each.section for each in all_checks()}
        found = {sections[check] for each in FAULTS.values() for check in each.checks}
        self.assertEqual(found, {str(number) for number in range(1, 11)})
        self.assertGreaterEqual(len(FAULTS), 25)


class HostileTests(SynchronousTestCase):
    """Servers that do what they like. Whatever it is, the kit ends soon, and says what was wrong."""

    def ends(self, server: Stranger, *arguments: str, seconds: float = 10.0) -> Outcome:
        """Play a server; it fails in time, and by what the contract says, not by a fault of the kit's."""
        began = time.monotonic()
        outcome = play(server.where, "--timeout", "0.3", *arguments)
        self.assertLess(time.monotonic() - began, seconds)
        self.assertEqual(outcome.status, 1)
        for reason in outcome.of("failed").values():
            self.assertNotRegex(reason, r"^[A-Z]\w+(Error|Exception)\b")
        return outcome

    def test_no_welcome(self) -> None:
        for name, data in NO_WELCOME.items():
            with Stranger(says(data)) as server:
                outcome = self.ends(server)
            self.assertEqual(list(outcome.of("failed")), ["welcome-comes"], name)
            self.assertEqual(len(outcome.of("passed")), 0, name)

    def test_silence(self) -> None:
        with Stranger(Visit.hold) as server:
            outcome = self.ends(server)
        self.assertEqual(outcome.of("failed"), {"welcome-comes": "nothing came in 0.3 s"})

    def test_the_end(self) -> None:
        with Stranger(Visit.close) as server:
            outcome = self.ends(server)
        self.assertRegex(outcome.of("failed")["welcome-comes"], "closed the connection|was reset")

    def test_nothing_but_a_welcome(self) -> None:
        with Stranger(says(encode(WELCOME))) as server:
            outcome = self.ends(server)
        self.assertEqual(outcome.of("failed"), {"ping-gets-pong": "nothing came in 0.3 s"})

    def test_bytes_without_end(self) -> None:
        """Of one frame, and of many."""
        for data in (b"x" * 1_000_000, frame(b"{}") * 200_000, encode({"type": "pong"}) * 50_000):

            def flood(visit: Visit, data: bytes = data) -> None:
                visit.send(WELCOME)
                while True:
                    visit.write(data)

            with Stranger(flood) as server:
                self.ends(server, "--section", "3", seconds=60)

    def test_a_byte_now_and_then(self) -> None:
        def drip(visit: Visit) -> None:
            for byte in encode({"type": "welcome"}) * 1000:
                visit.write(bytes([byte]))
                time.sleep(0.05)

        with Stranger(drip) as server:
            outcome = self.ends(server)
        self.assertEqual(outcome.of("failed"), {"welcome-comes": "the rest of a frame did not come in 0.3 s"})

    def test_it_takes_nothing(self) -> None:
        """It welcomes and pongs, and from then on reads nothing."""

        def stall(visit: Visit) -> None:
            visit.send(WELCOME)
            ping = visit.receive()
            visit.send({"type": "pong", "ping_timestamp": ping.get("timestamp")})
            visit.stall()

        with Stranger(stall) as server:
            outcome = self.ends(server, "--section", "10", seconds=60)
        self.assertIn("all-is-answered-that-is-read-late", outcome.of("failed"))

    def test_limits_that_nobody_can_keep(self) -> None:
        """Nothing is sent then, nobody waits, and not all is well."""
        ping = "ping-gets-pong"
        rates = {"messages_per_second": 1e-300, "bytes_per_second": 1e300}
        for fields, failed in (
            ({"limits": rates}, {ping, "welcome-limits"}),
            ({"limits": {"messages_per_second": 0.05}}, {ping, "welcome-limits"}),
            ({"limits": {"bytes_per_second": 30}}, {ping}),
            ({"max_length": 1}, {ping}),
        ):
            fault = spoiled("welcome", fields)
            with Faulty(shared().address, fault()) as faulty:
                outcome = self.ends(faulty)
            self.assertEqual(set(outcome.of("failed")), failed, fields)
            self.assertEqual(
                set(outcome.of("passed")) & {"welcome-comes", "welcome-server"},
                {"welcome-comes", "welcome-server"},
            )
            self.assertGreater(len(outcome.of("skipped")), 500)

    def test_it_dies(self) -> None:
        """In the midst of it: the rest is skipped, and it is said why."""
        server = Server()
        self.addCleanup(server.stop)
        with Faulty(server.address, Fault()) as faulty:
            timer = threading.Timer(0.5, server.process.kill)
            timer.start()
            outcome = self.ends(faulty)
            timer.join()
        reasons = Counter(outcome.of("skipped").values())
        [gone] = [reason for reason in reasons if reason.startswith("the server no longer serves: ")]
        self.assertGreater(reasons[gone], 200)
        self.assertGreater(len(outcome.of("passed")), 10)

    def test_odd_values(self) -> None:
        """Answers of the right types with the wrong things in them."""
        odd: list[object] = [None, [], {}, "", -1, 1e308, True, "x" * 1000, {"a": [None]}]
        for number, value in enumerate(odd):

            class Odd(Fault):
                def down(self, link: Any, message: Any, whole: bytes, value: object = value) -> bytes:
                    spoiled = dict.fromkeys(message, value)
                    return encode({**spoiled, "type": message["type"]})

            with Faulty(shared().address, Odd()) as faulty:
                sections = ("--section", str(2 + number % 6), "--section", "4")
                began = time.monotonic()
                outcome = play(faulty.where, "--timeout", "0.3", *sections)
            self.assertLess(time.monotonic() - began, 40)
            for name, reason in outcome.of("failed").items():
                self.assertNotRegex(reason, r"^[A-Z]\w+(Error|Exception)\b", (value, name))


class CommandTests(SynchronousTestCase):
    """The command line."""

    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
        outcome = run(f"127.0.0.1:{port}")
        self.assertEqual((outcome.status, outcome.output), (2, ""))
        told = f"tcpjson.conform: 127.0.0.1:{port}: cannot connect: Connection refused\n"
        self.assertEqual(outcome.told, told)

    def test_wrong_ones(self) -> None:
        for arguments, told in {
            ("a:b:c",): "a:b:c: neither HOST:PORT nor unix:PATH",
            ("localhost:0",): "localhost:0: there is no such port",
            ("--only", "nonsense"): "--only nonsense: there is no such check; --list shows them",
            ("--ca", "/nowhere"): "/nowhere: No such file or directory",
            ("--token-file", "/nowhere"): "/nowhere: No such file or directory",
        }.items():
            outcome = run(*arguments)
            self.assertEqual((outcome.status, outcome.output), (2, ""), arguments)
            self.assertEqual(outcome.told, f"tcpjson.conform: {told}\n")

    def test_list(self) -> None:
        """It needs no server."""
        outcome = run("--list", "--level", "classic")
        self.assertEqual((outcome.status, outcome.told), (0, ""))
        self.assertIn("1   classic  MUST    length-zero: ", outcome.output)
        self.assertNotIn("  full  ", outcome.output)
        self.assertIn("alice  open-sesame-4711", outcome.output)

    def test_nobody_reads(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "tcpjson.conform", "--list"],
            env=command()[1],
            stdout=writing,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        os.close(writing)
        self.assertEqual((done.returncode, done.stderr), (141, ""))


class TableTests(SynchronousTestCase):
    """The checks as they stand in the table."""

    def test_names(self) -> None:
        names = Counter(each.name for each in all_checks())
        self.assertEqual([name for name, count in names.items() if count > 1], [])

    def test_rules(self) -> None:
        """Those that they name are in the document."""
        text = DOCUMENT.read_text(encoding="utf-8")
        named = {rule for each in CHECKS for rule in each.rules}
        self.assertGreater(len(named), 40)
        self.assertEqual([rule for rule in sorted(named) if rule not in text], [])
