"""tcpjson.conform: how long it waits, how fast it sends, where it goes, and what it is told."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.conform.options import read
from tcpjson.conform.pace import Counter, Pace, Patience
from tcpjson.conform.scene import facts
from tcpjson.conform.target import Target
from tcpjson.conform.verdicts import Skip


class PatienceTests(SynchronousTestCase):
    """How long is waited."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patience = Patience(5.0, self.clock.seconds)
        self.patience.begin()

    def test_until(self) -> None:
        self.clock.advance(1)
        self.assertEqual(self.patience.now(), 1.0)
        self.assertEqual((self.patience.until(), self.patience.until(2)), (6.0, 3.0))

    def test_a_check_has_an_end(self) -> None:
        """However many answers are waited for."""
        self.clock.advance(28)
        self.assertEqual(self.patience.until(), 30.0)
        self.patience.extend(3)
        self.assertEqual(self.patience.until(), 33.0)
        self.patience.extend(30)
        self.assertEqual(self.patience.until(), 33.0)
        self.patience.begin()
        self.assertEqual(self.patience.until(100), 58.0)

    def test_hurry(self) -> None:
        for seconds in (2.5, 1.25, 1.0, 1.0):
            self.patience.hurry(1.0)
            self.assertEqual(self.patience.seconds, seconds)
        with self.patience.all():
            self.assertEqual(self.patience.until(), 5.0)
        self.assertEqual(self.patience.until(), 1.0)

    def test_hurry_of_the_impatient(self) -> None:
        patience = Patience(0.1, self.clock.seconds)
        patience.hurry(1.0)
        self.assertEqual(patience.seconds, 0.1)


class PaceTests(SynchronousTestCase):
    """How much is sent at once."""

    def test_messages(self) -> None:
        clock = Clock()
        pace = Pace(10, None, clock.seconds)
        # Nothing is known of what may come at once before anything was sent.
        self.assertEqual(pace.wait_for(10, 10**9), 0)
        # A tenth of a second by the rate, and half of it, and another tenth, as both clocks may differ.
        self.assertAlmostEqual(pace.wait_for(1, 0), 0.25)
        clock.advance(0.6)
        self.assertEqual(pace.wait_for(5, 0), 0)
        clock.advance(100)
        self.assertEqual(pace.wait_for(10, 0), 0)
        self.assertAlmostEqual(pace.wait_for(10, 0), 1.6)

    def test_both(self) -> None:
        """The slower of the two counts."""
        pace = Pace(100, 1000, Clock().seconds)
        self.assertEqual(pace.wait_for(100, 500), 0)
        self.assertAlmostEqual(pace.wait_for(10, 1000), 0.85)

    def test_too_much(self) -> None:
        error = self.assertRaises(Skip, Pace(10, None, Clock().seconds).wait_for, 11, 0)
        self.assertEqual(str(error), "it sends 11 messages at once, and the server takes 10 a second")
        error = self.assertRaises(Skip, Pace(None, 1000, Clock().seconds).wait_for, 1, 1001)
        self.assertEqual(str(error), "it sends 1001 bytes at once, and the server takes 1000 a second")

    def test_less_than_one(self) -> None:
        """A single message always may be sent, sometime."""
        pace = Pace(0.5, None, Clock().seconds)
        self.assertAlmostEqual(pace.wait_for(1, 0), 1.6)

    def test_rates_that_cannot_be(self) -> None:
        """Nobody waits for them."""
        for rate in (5e-324, 1e-300, 0.09):
            pace = Pace(rate, None, Clock().seconds)
            error = self.assertRaises(Skip, pace.wait_for, 1, 0)
            self.assertEqual(
                str(error), f"it sends 1 messages at once, and the server takes {rate:g} a second"
            )
            self.assertRaises(Skip, Pace(None, rate, Clock().seconds).wait_for, 0, 1)
        self.assertAlmostEqual(Pace(0.1, 1.9, Clock().seconds).wait_for(1, 1), 13.6)


class CounterTests(SynchronousTestCase):
    """Frames in what is sent, each where it ends."""

    def test_frames(self) -> None:
        data = b"".join(struct.pack(">I", size) + b"x" * size for size in (3, 0, 0, 300, 1))
        self.assertEqual(Counter().feed(data), 5)
        self.assertEqual(Counter().feed(data[:-1]), 4)
        counter = Counter()
        self.assertEqual([counter.feed(bytes([byte])) for byte in data].count(1), 5)
        self.assertEqual(counter.feed(b""), 0)

    def test_compressed(self) -> None:
        counter = Counter()
        self.assertEqual(counter.feed(b"\x80\0\0\x02ab\0\0\0\0"), 2)

    def test_a_length_without_end(self) -> None:
        counter = Counter()
        self.assertEqual(counter.feed(b"\xff\xff\xff\xff" + b"\0" * 1000), 0)


class FactsTests(SynchronousTestCase):
    """What is understood of a welcome."""

    def test_all(self) -> None:
        found = facts(
            {
                "protocol": 1,
                "server": "x/1",
                "max_length": 1000,
                "heartbeat": 25,
                "compression": ["zlib"],
                "features": ["a", "b"],
                "auth": ["token"],
                "limits": {"max_queue": 5, "frame_timeout": 30.0},
            }
        )
        self.assertEqual(
            (found.protocol, found.server, found.max_length, found.heartbeat), (True, "x/1", 1000, 25.0)
        )
        self.assertEqual((found.compression, found.features, found.auth), (("zlib",), ("a", "b"), ("token",)))
        self.assertEqual(found.limits, {"max_queue": 5.0, "frame_timeout": 30.0})

    def test_none(self) -> None:
        found = facts({})
        self.assertEqual(
            (found.protocol, found.server, found.max_length, found.heartbeat), (False, "", 1048576, None)
        )
        self.assertEqual((found.compression, found.features, found.auth, found.limits), ((), (), (), {}))

    def test_nonsense(self) -> None:
        """What has the wrong type is not there."""
        for value in (None, True, "5", -1, 0, [1, None], {"a": "b", "c": True, "d": -1}, 1e400):
            names = ("server", "max_length", "heartbeat", "compression", "features", "auth", "limits")
            found = facts(dict.fromkeys(names, value))
            self.assertEqual((found.max_length, found.heartbeat, found.limits), (1048576, None, {}), value)
            self.assertEqual((found.compression, found.features, found.auth), ((), (), ()), value)


class TargetTests(SynchronousTestCase):
    """Where the server is."""

    def test_places(self) -> None:
        for where, secure, local in (
            ("localhost", False, False),
            ("example.org:80", False, False),
            ("[::1]:9999", False, False),
            ("[::1]", False, False),
            ("unix:/run/x.sock", True, True),
            ("tls:localhost:1", True, False),
        ):
            target = Target(where)
            self.assertEqual((target.where, target.secure, target.local), (where, secure, local))
            self.assertEqual(target.tls, where.startswith("tls:"))

    def test_no_places(self) -> None:
        for where in ("", ":", "a:b", "a:1:2", "::1", "unix:", "tls:", "a:0", "a:65536", "a:123456", "a/b:1"):
            self.assertRaises(ValueError, Target, where)

    def test_no_tls_on_a_unix_socket(self) -> None:
        self.assertRaises(ValueError, Target, "unix:/x", ca="file")
        self.assertRaises(ValueError, Target, "unix:/x", certificate="file")

    def test_files(self) -> None:
        file = Path(self.mktemp())
        for make in (lambda name: Target("a", ca=name), lambda name: Target("a", certificate=name)):
            self._refuses(make, str(file), "No such file or directory")
        file.write_text("no PEM", encoding="ascii")
        self._refuses(lambda name: Target("a", ca=name), str(file), "no certificate in it")
        self._refuses(lambda name: Target("a", certificate=name), str(file), "a certificate and its key")

    def _refuses(self, make: Callable[[str], Any], name: str, why: str) -> None:
        error = self.assertRaises(ValueError, make, name)
        self.assertTrue(str(error).startswith(f"{name}: "), error)
        self.assertIn(why, str(error))


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_defaults(self) -> None:
        options = read([])
        self.assertEqual((options.where, options.level, options.timeout), ("localhost:9999", None, 5.0))
        self.assertEqual(
            (options.section, options.only, options.slow, options.json), (None, None, False, False)
        )

    def test_repeated(self) -> None:
        options = read(["host:1", "--section", "1", "--section", "10", "--only", "a", "--timeout", "0.5"])
        self.assertEqual((options.where, options.section, options.only), ("host:1", ["1", "10"], ["a"]))
        self.assertEqual(options.timeout, 0.5)

    def test_wrong_ones(self) -> None:
        for words in (
            ["--timeout", "0"],
            ["--timeout", "x"],
            ["--timeout", "nan"],
            ["--timeout", "601"],
            ["--section", "12"],
            ["--level", "both"],
            ["--user", "a", "--token-file", "f"],
            ["--password-file", "f"],
            ["--json", "--verbose"],
            ["a", "b"],
        ):
            with redirect_stderr(io.StringIO()):
                error = self.assertRaises(SystemExit, read, words)
            self.assertEqual(error.code, 2, words)
