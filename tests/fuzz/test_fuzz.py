"""The fuzzing, in a short form; and that it sees what it is to see."""

from __future__ import annotations

import io
import struct
import time
from contextlib import redirect_stderr, redirect_stdout
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.framing import FrameReader
from tests.fuzz.__main__ import main, parse, shares
from tests.fuzz.core import CoreFuzz, MemoryFuzz, run_core
from tests.fuzz.mutate import Mutator, frame
from tests.fuzz.reference import FATAL, Conversation, Rules, Wrong
from tests.fuzz.result import Result, report, smallest
from tests.fuzz.sockets import ARENAS, run_arena

_SEED = "short"
_STAMP = b'"timestamp":"2024-01-01T12:00:00.000Z"'


class CoreTests(SynchronousTestCase):
    """The core, and servers in memory."""

    def test_some_thousands(self) -> None:
        core, memory = run_core(_SEED, 12_000, 60)
        self.assertEqual(core.findings + memory.findings, [])
        self.assertGreaterEqual(core.frames + memory.frames, 12_000)
        self.assertLessEqual({"bad_json", "bad_message", "unknown_type", "bad_frame"}, set(core.errors))
        self.assertLessEqual({"too_large", "client_closed", "connection_lost"}, set(memory.closes))

    def test_a_seed_decides(self) -> None:
        found = []
        for seed in ("one", "one", "other"):
            fuzz, memory = CoreFuzz(seed), MemoryFuzz(seed)
            for number in range(5):
                fuzz.batch(number)
            memory.batch(0)
            found.append(
                (fuzz.result.frames, fuzz.result.answers, memory.result.frames, memory.result.errors)
            )
        self.assertEqual(found[0], found[1])
        self.assertNotEqual(found[0], found[2])

    def test_what_fails_is_made_small(self) -> None:
        """A reader that loses frames is found, and shown by the one of them."""
        whole, lost = FrameReader.feed, frame(b'{"type":"ping"}')

        def feed(reader: FrameReader, data: bytes) -> None:
            whole(reader, data.replace(lost, b""))

        self.patch(FrameReader, "feed", feed)
        fuzz = CoreFuzz(_SEED)
        for number in range(60):
            fuzz.batch(number)
        self.assertTrue(fuzz.result.findings)
        shortest = min(fuzz.result.findings, key=len)
        self.assertIn(f"seed {_SEED}", shortest)
        self.assertTrue(shortest.endswith(f"bytes: {lost.hex()}"), shortest)


class SocketTests(SynchronousTestCase):
    """Real servers: each kind of connection for a moment."""

    def _assert_fine(self, names: list[str], frames: int) -> None:
        for arena in ARENAS:
            if arena.name in names:
                result = run_arena(arena, _SEED, 0, frames, 30)
                self.assertEqual(result.findings, [])
                self.assertGreaterEqual(result.frames, frames)
                self.assertGreater(result.witnessed, 0)
                self.assertEqual(result.after["connections"], 1)

    def test_tcp(self) -> None:
        self._assert_fine(["tcp", "proxy"], 1500)

    def test_tls_and_authentication(self) -> None:
        self._assert_fine(["tls auth strict"], 1000)


class ReferenceTests(SynchronousTestCase):
    """Each wrong reply is seen."""

    def _talk(self, sent: list[bytes], came: list[bytes], **rules: Any) -> Conversation:
        conversation = Conversation(Rules(**rules), b"".join(map(frame, sent)))
        for payload in came:
            conversation.reply(payload)
        return conversation

    def test_what_is_right(self) -> None:
        conversation = self._talk(
            [b'{"type":"echo","content":[1.50],"id":7}', b"{", b'{"type":"ping"}'],
            [
                b'{"type":"echo_response","content":[1.50],"id":7,%b}' % _STAMP,
                b'{"type":"error","code":"bad_json","message":"m","fatal":false,%b}' % _STAMP,
                b'{"type":"pong","ping_timestamp":null,%b}' % _STAMP,
            ],
        )
        self.assertIsNone(conversation.due())
        self.assertEqual((conversation.frames, conversation.errors.total()), (3, 1))

    def test_what_is_wrong(self) -> None:
        sent = b'{"type":"echo","content":1,"id":7}'
        for came in (
            b'{"type":"echo_response","content":1,%b}',
            b'{"type":"echo_response","content":1,"id":8,%b}',
            b'{"type":"echo_response","content":1.0,"id":7,%b}',
            b'{"type":"echo_response","content":1,"id":7,"id":7,%b}',
            b'{"type":"pong","ping_timestamp":1,"id":7,%b}',
            b'{"type":"error","code":"internal","message":"m","fatal":false,"id":7,%b}',
            b'{"type":"error","code":"bad_json","message":"m","fatal":true,"id":7,%b}',
            b'{"type":"error","code":"other","message":"m","fatal":false,"id":7,%b}',
            b'{"type":"echo_response","content":1,"id":7,"x":"\\ud800",%b}',
            b'{"type":"echo_response","content":1,"id":7,"x":NaN,%b}',
            b"[1,{%b}]",
        ):
            with self.assertRaises(Wrong, msg=came):
                self._talk([sent], [came % _STAMP])
        with self.assertRaises(Wrong):
            self._talk([sent], [b'{"type":"echo_response","content":1,"id":7}'])
        right = b'{"type":"echo_response","content":1,"id":7,%b}' % _STAMP
        with self.assertRaises(Wrong):
            self._talk([sent], [right, right])

    def test_what_must_not_be_relayed(self) -> None:
        for content in (b"1e999", b"18446744073709551616", b"[" * 65 + b"]" * 65):
            conversation = self._talk([b'{"type":"echo","content":%b}' % content], [])
            due = conversation.due()
            self.assertEqual(None if due is None else due.kinds, {"bad_json"})

    def test_the_stream(self) -> None:
        """What is too long ends it; what is not complete is due no reply."""
        long = Conversation(Rules(max_length=10), struct.pack(">I", 11))
        due = long.due()
        self.assertEqual(None if due is None else (due.kinds, due.ends), ({"too_large"}, True))
        short = Conversation(Rules(), struct.pack(">I", 11) + b"1234567890")
        self.assertIsNone(short.due())
        self.assertFalse(short.whole)

    def test_logins(self) -> None:
        wrong = b'{"type":"auth","mechanism":"token","token":"x"}'
        failed = b'{"type":"auth_result","status":"authentication_failed",%b}' % _STAMP
        conversation = self._talk([wrong] * 3, [failed] * 3, tokens={"t": "u"})
        due = conversation.due()
        self.assertEqual(None if due is None else due.kinds, {"auth_failed"})
        with self.assertRaises(Wrong):
            self._talk([wrong], [b'{"type":"auth_result","status":"authenticated","user":"u",%b}' % _STAMP])


class CommandTests(SynchronousTestCase):
    """`python -m tests.fuzz`."""

    def test_it_ends_with_a_table(self) -> None:
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            status = main(["--frames", "0", "--core", "600", "--jobs", "1", "--seed", "5"])
        self.assertEqual(status, 0, out.getvalue())
        lines = out.getvalue().splitlines()
        self.assertEqual((lines[0], lines[-1]), ("seed 5", "findings: none"))

    def test_findings_are_told(self) -> None:
        text = report([Result("core", frames=1, findings=["this"] * 30)])
        self.assertIn("findings: 30\n\nthis\n", text)
        self.assertTrue(text.endswith("and 20 more"))

    def test_options(self) -> None:
        for wrong in (["--frames", "-1"], ["--tls", "101"], ["--minutes", "0"], ["--jobs", "x"], ["more"]):
            with redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                parse(wrong)
        for tls in (0, 25, 100):
            parts = shares(tls)
            self.assertAlmostEqual(sum(share for _, share in parts), 1)
            self.assertAlmostEqual(sum(share for arena, share in parts if arena.tls), tls / 100)

    def test_time_is_bounded(self) -> None:
        begun = time.monotonic()
        core, _ = run_core(_SEED, 10**9, 0.5)
        self.assertLess(time.monotonic() - begun, 20)
        self.assertTrue(core.cut_short)


class PartTests(SynchronousTestCase):
    """The parts."""

    def test_codes(self) -> None:
        """Those of section 9, as the server has them."""
        from tcpjson.core.errors import CODES

        self.assertEqual(FATAL, {code: kind.fatal for code, kind in CODES.items()})

    def test_smallest(self) -> None:
        frames = [b"%d" % number for number in range(100)]
        least = smallest(frames, lambda few: {b"17", b"80"} <= set(few))
        self.assertEqual(least, [b"17", b"80"])

    def test_cuts(self) -> None:
        mutator = Mutator(Random(1), 1000)
        for pieces in (1, 2, 50):
            cut = mutator.cuts(b"0123456789", pieces)
            self.assertEqual(b"".join(cut), b"0123456789")
            self.assertTrue(all(cut) and len(cut) <= pieces)
