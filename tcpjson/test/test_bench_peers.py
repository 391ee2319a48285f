"""What the benchmark compares with: how programs are started and ended, and brokers spoken to."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import skipUnless

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench import driver as ours
from tcpjson.bench import peers
from tcpjson.bench.drivers import nats, redis
from tcpjson.bench.peers import ALL, Peer, PeerError, absent, usable
from tcpjson.bench.scenarios import SCENARIOS
from tcpjson.test.hypo import given

LISTENING = r"listening on 127\.0\.0\.1:(\d+)"
SAYS = "print('listening on 127.0.0.1:1234', flush=True)"
STAYS = "import signal; signal.pause()"


def program(*lines: str, label: str = "made up", listening: str = LISTENING, port: bool = False) -> Peer:
    """One of Python; its arguments are a folder, and a free port if it wants one."""
    words = ("-c", "\n".join(lines), "{folder}", *(["{port}"] if port else []))
    return Peer(label, None, words, listening)


def runs(pid: int) -> bool:
    """Whether a child of ours is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class StartTests(SynchronousTestCase):
    def test_life(self) -> None:
        """It runs while the context stands, in a folder that goes with it."""
        with program("import sys, os", f"open('x', 'w'); {SAYS}; {STAYS}").start() as running:
            self.assertEqual(running.port, 1234)
            self.assertTrue(runs(running.pid))
        self.assertFalse(runs(running.pid))

    @skipUnless(sys.platform == "linux", "needs /proc")
    def test_folder(self) -> None:
        with program(f"open('x', 'w'); {SAYS}; {STAYS}").start() as running:
            folder = Path(os.readlink(f"/proc/{running.pid}/cwd"))
            self.assertTrue((folder / "x").exists())
            words = Path(f"/proc/{running.pid}/cmdline").read_bytes().decode().split("\0")
            self.assertEqual(words[-2], str(folder))
        self.assertFalse(folder.exists())

    def test_an_error_while_it_runs(self) -> None:
        pids = []

        def fail() -> None:
            with program(SAYS, STAYS).start() as running:
                pids.append(running.pid)
                raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, fail)
        self.assertFalse(runs(pids[0]))

    def test_by_force(self) -> None:
        """One that does not heed SIGTERM is killed."""
        self.patch(peers, "STOP_SECONDS", 0.05)
        ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        with program(ignores, SAYS, STAYS).start() as running:
            pass
        self.assertFalse(runs(running.pid))

    def test_ended_by_itself(self) -> None:
        # It may have been seen to end while its log was looked at.
        with program(SAYS).start() as running, contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        self.assertFalse(runs(running.pid))

    def fails(self, peer: Peer) -> str:
        """See that it cannot be started; returns what is said of it."""
        with self.assertRaises(PeerError) as caught, peer.start():
            pass
        return str(caught.exception)

    def test_does_not_listen(self) -> None:
        said = self.fails(
            program("print('no such option', flush=True)", "raise SystemExit(3)", label="that one")
        )
        self.assertIn("that one", said)
        self.assertIn("no such option", said)

    def test_says_nothing(self) -> None:
        self.patch(peers, "START_SECONDS", 0.0)
        self.assertIn("did not come to listen", self.fails(program(STAYS)))

    def test_a_long_story(self) -> None:
        """Its end is shown, where the reason stands."""
        said = self.fails(program("print('x' * 100_000, 'the reason')"))
        self.assertIn("the reason", said)
        self.assertLess(len(said), 2100)

    def test_no_program(self) -> None:
        peer = Peer("that one", "no-such-program-7", (), LISTENING)
        self.assertEqual(peer.missing(), "no program no-such-program-7 in PATH")
        self.assertIn("no-such-program-7", self.fails(peer))

    def test_a_free_port(self) -> None:
        """One that is told its port is given another when that is taken meanwhile."""
        tries = (
            "import sys, os",
            "names = [name for name in os.listdir(sys.argv[1]) if name.isdigit()]",
            "open(os.path.join(sys.argv[1], sys.argv[2]), 'w')",
            "if len(names) < 2: sys.exit('bind: Address already in use')",
            "print('ready', flush=True)",
            "print(sys.argv[2], flush=True)",
            STAYS,
        )
        with program(*tries, listening="ready", port=True).start() as running:
            self.assertGreater(running.port, 1023)
        self.assertFalse(runs(running.pid))

    def ports(self) -> list[int]:
        """The free ports that are found from now on."""
        found: list[int] = []
        real = peers._free_port

        def free_port() -> int:
            found.append(real())
            return found[-1]

        self.patch(peers, "_free_port", free_port)
        return found

    def test_never_a_free_port(self) -> None:
        tried = self.ports()
        said = self.fails(program("raise SystemExit('Address already in use')", listening="up", port=True))
        self.assertIn("in use", said)
        self.assertEqual(len(tried), peers._TRIES)

    def test_another_reason(self) -> None:
        """What a free port does not help is not tried again."""
        tried = self.ports()
        self.fails(program("raise SystemExit('bad option')", listening="ready", port=True))
        self.assertEqual(len(tried), 1)

    @skipUnless(sys.platform == "linux", "only there the limit is raised")
    def test_files(self) -> None:
        """It may open all that the system allows."""
        says = (
            "import resource",
            "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)",
            "print(f'listening on 127.0.0.1:{int(soft == hard)}', flush=True)",
        )
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], limits[1] - 1), limits[1]))
        with program(*says, STAYS).start() as running:
            self.assertEqual(running.port, 1)


class AtHandTests(SynchronousTestCase):
    def test_all_or_a_reason(self) -> None:
        at_hand = [peer.label for peer in usable()]
        self.assertEqual(sorted([*at_hand, *absent()]), sorted(peer.label for peer in ALL))
        self.assertEqual([peer.label for peer in ALL if peer.label in at_hand], at_hand)
        self.assertIn("asyncio streams", at_hand)

    def test_modules(self) -> None:
        peer = Peer("that one", None, (), LISTENING, ("json", "no_such_module_7", "no_such_module_8"))
        self.assertEqual(peer.missing(), "pip install no_such_module_7 no_such_module_8")
        self.patch(peers, "ALL", (peer, Peer("here", None, (), LISTENING, ("json",))))
        self.assertEqual(absent(), {"that one": "pip install no_such_module_7 no_such_module_8"})
        self.assertEqual([each.label for each in usable()], ["here"])

    def test_programs_of_the_system(self) -> None:
        """Some stand where an ordinary user's PATH does not lead."""
        folder = Path(self.mktemp())
        folder.mkdir()
        made = folder / "that-program"
        made.write_text("#!/bin/sh\n")
        made.chmod(0o755)
        peer = Peer("that one", "that-program", (), LISTENING)
        self.assertNotEqual(peer.missing(), "")
        self.patch(peers, "_MORE_FOLDERS", (str(folder.resolve()),))
        self.assertEqual(peer.missing(), "")

    def test_what_they_can_do(self) -> None:
        """Their scenarios exist; what speaks another protocol is known, and only fans out."""
        for peer in ALL:
            self.assertLessEqual(peer.scenarios, SCENARIOS.keys())
            if peer.driver is None:
                self.assertEqual(peer.scenarios, set(SCENARIOS) - {"tls"}, peer.label)
            else:
                self.assertEqual(peer.scenarios, {"fanout"}, peer.label)
                module = importlib.import_module(peer.driver)
                names = [name for name in vars(ours) if not name.startswith("_")]
                functions = [name for name in names if getattr(ours, name).__class__.__name__ == "function"]
                for name in {*functions, "ACKNOWLEDGES"} - {"frame", "take"}:
                    self.assertTrue(hasattr(module, name), f"{peer.driver} has no {name}")


def fed(data: bytes, parse: Callable[[bytes, int], tuple[Any, int] | None]) -> Iterator[Any]:
    """What a parser takes out of data that comes byte by byte, and then as a whole."""
    left = b""
    for number in range(len(data)):
        left += data[number : number + 1]
        while (found := parse(left, 0)) is not None:
            yield found[0]
            left = left[found[1] :]
    if left:
        raise AssertionError(f"not taken: {left!r}")


def at_once(data: bytes, parse: Callable[[bytes, int], tuple[Any, int] | None]) -> list[Any]:
    """What a parser takes out of data that is all there; it must go on at each step."""
    at = 0
    taken = []
    while (found := parse(data, at)) is not None:
        if not at < found[1] <= len(data):
            raise AssertionError(f"from {at} to {found[1]} of {len(data)}")
        taken.append(found[0])
        at = found[1]
    return taken


CONTENTS = st.lists(st.text("abcXYZ019", max_size=40).map(str.encode), max_size=6)
JUNK = st.binary(max_size=60) | st.lists(
    st.sampled_from(
        [
            *(b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$", b"MSG bench 1 ", b":", b"\r\n", b"+OK", b"PING"),
            *(b"5", b"-1", b"999999999", b"9999999999", b" ", b"INFO {}", b"-ERR no\r\n", b"abcde"),
        ]
    ),
    max_size=8,
).map(b"".join)


class RedisTests(SynchronousTestCase):
    def test_ready(self) -> None:
        for hello, sender, answer in (
            (redis.hello_sender(), True, b"+PONG\r\n"),
            (
                redis.hello_receiver(),
                False,
                b"*3\r\n$9\r\nsubscribe\r\n$5\r\nbench\r\n:1\r\n",
            ),
        ):
            self.assertTrue(hello.endswith(b"\r\n"))
            for length in range(len(answer)):
                self.assertIs(redis.ready(answer[:length], sender), None)
            self.assertEqual(redis.ready(answer + b"more", sender), len(answer))
            error = self.assertRaises(
                ValueError, redis.ready, b"-NOAUTH Authentication required.\r\n", sender
            )
            self.assertIn("NOAUTH", str(error))

    def test_publish(self) -> None:
        self.assertEqual(redis.publish(b"abc"), b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$3\r\nabc\r\n")

    @given(CONTENTS)
    def test_delivered(self, contents: list[bytes]) -> None:
        data = b"".join(
            b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$%d\r\n%b\r\n" % (len(content), content)
            for content in contents
        )
        self.assertEqual(list(fed(data, redis.delivered)), contents)
        self.assertEqual(at_once(data, redis.delivered), contents)

    @given(st.lists(st.integers(0, 10**9 - 1), max_size=6))
    def test_acknowledged(self, counts: list[int]) -> None:
        data = b"".join(b":%d\r\n" % count for count in counts)
        self.assertEqual(list(fed(data, redis.acknowledged)), counts)
        self.assertEqual(at_once(data, redis.acknowledged), counts)

    def test_what_is_none(self) -> None:
        head = b"*3\r\n$7\r\nmessage\r\n$5\r\nbench\r\n$"
        for data in (
            b"-ERR no\r\n",
            b"*2\r\n",
            head + b"x",
            head + b"\r\n",
            head + b"1" * 11,
            head + b"1\r\nabc",
        ):
            error = self.assertRaises(ValueError, redis.delivered, data, 0)
            self.assertIn("Redis", str(error))
        for data in (b"-ERR no\r\n", b"$5\r\n", b":-1\r\n", b":\r\n", b":9999999999"):
            self.assertRaises(ValueError, redis.acknowledged, data, 0)

    @given(JUNK, st.integers(0, 5))
    def test_anything(self, data: bytes, at: int) -> None:
        """Nothing but ValueError comes of what is no message."""
        for parse in (redis.delivered, redis.acknowledged):
            try:
                at_once(data[at:], parse)
            except ValueError as error:
                self.assertLess(len(str(error)), 400)


class NatsTests(SynchronousTestCase):
    INFO = b'INFO {"server_id":"X","max_payload":1048576}\r\n'

    def test_ready(self) -> None:
        """When the question behind the subscription is answered, and no sooner."""
        self.assertIn(b"SUB bench 1\r\nPING\r\n", nats.hello_receiver())
        self.assertTrue(nats.hello_sender().endswith(b"}\r\nPING\r\n"))
        for between in (b"", b"PING\r\n", b"+OK\r\n"):
            answer = self.INFO + between + b"PONG\r\n"
            for sender in (True, False):
                for length in range(len(answer)):
                    self.assertIs(nats.ready(answer[:length], sender), None)
                self.assertEqual(nats.ready(answer + b"MSG", sender), len(answer))
        error = self.assertRaises(ValueError, nats.ready, b"-ERR 'Authorization Violation'\r\n", True)
        self.assertIn("Authorization", str(error))

    def test_publish(self) -> None:
        self.assertEqual(nats.publish(b"abc"), b"PUB bench 3\r\nabc\r\n")

    @given(CONTENTS, st.booleans())
    def test_delivered(self, contents: list[bytes], asked: bool) -> None:
        """Questions of the server's in between are none."""
        aside = b"PING\r\n" if asked else b""
        data = b"".join(
            b"MSG bench 1 %d\r\n%b\r\n%b" % (len(content), content, aside) for content in contents
        )
        wanted = [each for content in contents for each in ([content, None] if asked else [content])]
        self.assertEqual(list(fed(data, nats.delivered)), wanted)
        self.assertEqual(at_once(data, nats.delivered), wanted)

    def test_acknowledged(self) -> None:
        """Nothing is; what the server says to all is taken."""
        self.assertFalse(nats.ACKNOWLEDGES)
        self.assertEqual(at_once(b"PING\r\n" + self.INFO + b"+OK", nats.acknowledged), [None, None])
        self.assertRaises(ValueError, nats.acknowledged, b"-ERR 'Slow Consumer'\r\n", 0)

    def test_what_is_none(self) -> None:
        for data in (
            b"-ERR 'Slow Consumer'\r\n",
            b"MSG bench 2 1\r\n",
            b"MSG bench 1 x\r\n",
            b"MSG bench 1 \r\n",
            b"MSG bench 1 9999999999\r\n",
            b"MSG bench 1 1\r\nabc",
            b"x" * 65536,
        ):
            error = self.assertRaises(ValueError, nats.delivered, data, 0)
            self.assertIn("NATS", str(error))

    @given(JUNK, st.integers(0, 5))
    def test_anything(self, data: bytes, at: int) -> None:
        """Nothing but ValueError comes of what is no message."""
        for parse in (nats.delivered, nats.acknowledged):
            try:
                at_once(data[at:], parse)
            except ValueError as error:
                self.assertLess(len(str(error)), 400)
        for sender in (True, False):
            try:
                nats.ready(data, sender)
            except ValueError as error:
                self.assertLess(len(str(error)), 400)
