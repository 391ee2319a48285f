"""tcpjson.conform: what is said of the checks."""

from __future__ import annotations

import json
from typing import Literal

from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.conform.checks import Check
from tcpjson.conform.report import (
    Text,
    detail,
    document,
    listing,
    piece_lines,
    short,
    skipped,
    status,
    summary,
)
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Ended, Failed, Piece, Result, Transcript, Verdict


def result(
    verdict: Verdict,
    name: str = "a-check",
    section: str = "1",
    reason: str = "",
    pieces: list[Piece] | None = None,
) -> Result:
    """What came of a check."""
    return Result(
        section=section,
        name=name,
        level="classic",
        must=True,
        rules=("R1.2",),
        why="It is so.",
        verdict=verdict,
        reason=reason,
        pieces=pieces or [],
        seconds=0.12345,
    )


def piece(data: bytes, way: Literal["sent", "came", "note"] = "came") -> Piece:
    """A piece that is kept whole."""
    return Piece("sender", way, data, len(data))


PASSED = result(Verdict.PASSED)
FAILED = result(Verdict.FAILED, reason="expected 1, got 2", pieces=[piece(b"\0\0\0\0", "sent")])
SKIPPED = result(Verdict.SKIPPED, section="7", reason="the server offers no compression")
WARNED = result(Verdict.WARNED, section="2", reason="a clock")


class PieceTests(SynchronousTestCase):
    """What went over the wire."""

    def test_text(self) -> None:
        payload = b'{"type":"ping"}'
        self.assertEqual(
            piece_lines(piece(b"\0\0\0\x0f" + payload)),
            [
                'sender    came  00 00 00 0f 7b 22 74 79 70 65 22 3a 22 70 69 6e  ....{"type":"pin',
                '                {"type":"ping"}',
            ],
        )

    def test_text_that_is_no_frame(self) -> None:
        lines = piece_lines(piece(b"GET / HTTP/1.1 and more", "sent"))
        self.assertEqual(lines[1].strip(), "GET / HTTP/1.1 and more")

    def test_long_text(self) -> None:
        lines = piece_lines(piece(b"\0\0\1\0" + b"x" * 256))
        self.assertEqual([line.strip() for line in lines[1:]], ["x" * 160 + "…", "(260 bytes)"])

    def test_bytes(self) -> None:
        lines = piece_lines(Piece("sender", "came", bytes(range(200, 256)) * 4, 5000))
        self.assertEqual(len(lines), 5)
        self.assertTrue(lines[0].endswith("d4 d5 d6 d7  ................"))
        self.assertEqual(lines[4].strip(), "(5000 bytes)")

    def test_few_bytes(self) -> None:
        self.assertEqual(piece_lines(piece(b"")), [])
        [line] = piece_lines(piece(b"\0a"))
        self.assertEqual(line, f"sender    came  {'00 61':47}  .a")

    def test_notes(self) -> None:
        """A server's words in them do nothing to a terminal."""
        self.assertEqual(piece_lines(piece(b"it \x1b[2J", "note")), ["sender: it \\x1b[2J"])


class LineTests(SynchronousTestCase):
    """Results in lines."""

    def test_detail(self) -> None:
        self.assertEqual(
            detail(FAILED),
            [
                "FAIL  1   a-check: It is so. (R1.2)",
                "      expected 1, got 2",
                f"        sender    sent  {'00 00 00 00':47}  ....",
            ],
        )
        [first, _] = detail(structs.replace(WARNED, rules=()))
        self.assertEqual(first, "warn  2   a-check: It is so.")

    def test_the_last_pieces(self) -> None:
        many = result(Verdict.FAILED, pieces=[piece(b"%d" % number, "note") for number in range(20)])
        self.assertEqual([line.strip() for line in detail(many)[2:]], [f"sender: {n}" for n in range(12, 20)])

    def test_short(self) -> None:
        self.assertEqual(short(PASSED), "pass  1   a-check")
        self.assertEqual(short(SKIPPED), "skip  7   a-check: the server offers no compression")

    def test_summary(self) -> None:
        self.assertEqual(
            summary([PASSED, PASSED, FAILED, SKIPPED, WARNED]),
            [
                "section 1   framing               2 passed     1 failed     0 skipped",
                "section 2   messages              0 passed     0 failed     0 skipped     1 warned",
                "section 7   compression           0 passed     0 failed     1 skipped",
                "all                               2 passed     1 failed     1 skipped     1 warned",
            ],
        )

    def test_skipped(self) -> None:
        others = result(Verdict.SKIPPED, reason="late")
        self.assertEqual(
            skipped([others, SKIPPED, PASSED, SKIPPED]),
            ["skipped 2: the server offers no compression", "skipped 1: late"],
        )

    def test_text(self) -> None:
        text = Text(verbose=False)
        self.assertEqual((text.lines(PASSED), text.lines(SKIPPED)), ([], []))
        for _ in range(5):
            self.assertEqual(text.lines(FAILED), detail(FAILED))
        # So many of one section say it; the next one is another's.
        self.assertEqual(text.lines(FAILED), ["FAIL  1   a-check: expected 1, got 2"])
        self.assertEqual(text.lines(WARNED), detail(WARNED))
        self.assertEqual(text.end([SKIPPED]), [*summary([SKIPPED]), *skipped([SKIPPED])])

    def test_verbose_text(self) -> None:
        text = Text(verbose=True)
        self.assertEqual(text.lines(PASSED), [short(PASSED)])
        for _ in range(7):
            self.assertEqual(text.lines(FAILED), detail(FAILED))
        self.assertEqual(text.end([SKIPPED]), summary([SKIPPED]))

    def test_listing(self) -> None:
        def play(scene: Scene) -> None:
            raise AssertionError("it is not to be made")

        checks = [
            Check("one", "1", "classic", True, "A.", play),
            Check("two", "10", "full", False, "B.", play),
        ]
        self.assertEqual(
            list(listing(checks)), ["1   classic  MUST    one: A.", "10  full     SHOULD  two: B."]
        )

    def test_status(self) -> None:
        self.assertEqual(status([PASSED, SKIPPED, WARNED]), 0)
        self.assertEqual(status([PASSED, FAILED, PASSED]), 1)


class DocumentTests(SynchronousTestCase):
    """Results as JSON."""

    def test_document(self) -> None:
        found = json.loads(json.dumps(document([FAILED, SKIPPED], {"where": "here"})))
        self.assertEqual((found["where"], found["passed"]), ("here", False))
        self.assertEqual([each["section"] for each in found["sections"]], ["1", "7"])
        first = {"section": "1", "title": "framing", "passed": 0, "failed": 1, "warned": 0, "skipped": 0}
        self.assertEqual(found["sections"][0], first)
        self.assertEqual(
            found["checks"][0],
            {
                "section": "1",
                "name": "a-check",
                "level": "classic",
                "must": True,
                "rules": ["R1.2"],
                "why": "It is so.",
                "verdict": "failed",
                "reason": "expected 1, got 2",
                "seconds": 0.123,
                "wire": [{"who": "sender", "way": "sent", "bytes": 4, "hex": "00000000", "text": "...."}],
            },
        )
        self.assertTrue(document([PASSED, WARNED], {})["passed"])

    def test_pieces(self) -> None:
        long = Piece("sender", "came", b"x" * 400, 9000)
        failed = result(Verdict.FAILED, pieces=[piece(b"connects", "note"), long])
        [note, cut] = document([failed], {})["checks"][0]["wire"]
        self.assertEqual(note, {"who": "sender", "note": "connects"})
        self.assertEqual((cut["bytes"], cut["text"]), (9000, "x" * 256))


class TranscriptTests(SynchronousTestCase):
    """What is kept of the wire."""

    def setUp(self) -> None:
        self.transcript = Transcript()

    def _heads(self) -> list[bytes]:
        return [each.head for each in self.transcript.pieces]

    def test_pieces(self) -> None:
        self.transcript.add("sender", "sent", memoryview(b"abc"))
        self.transcript.note("sender", "closed")
        self.assertEqual(
            self.transcript.pieces,
            [Piece("sender", "sent", b"abc", 3), Piece("sender", "note", b"closed", 0)],
        )
        self.transcript.clear()
        self.assertEqual(self.transcript.pieces, [])

    def test_bounds(self) -> None:
        for number in range(30):
            self.transcript.add("sender", "came", b"%d" % number + b"x" * 10_000)
        self.assertEqual(len(self.transcript.pieces), 24)
        self.assertEqual((len(self._heads()[0]), self.transcript.pieces[0].size), (512, 10_001))

    def test_secrets(self) -> None:
        """Neither whole nor, where the cut goes through one, in part."""
        self.transcript.hide("pencil")
        self.transcript.add("sender", "sent", b"a pencil, and a pencil")
        self.transcript.add("sender", "sent", b"x" * 509 + b"pencil")
        self.assertEqual(self._heads(), [b"a ******, and a ******", b"x" * 509 + b"***"])

    def test_fold(self) -> None:
        self.transcript.note("sender", "before")
        mark = self.transcript.mark()
        self.transcript.add("sender", "came", b"welcome")
        self.transcript.fold(mark, "sender", "is welcomed")
        self.assertEqual(self._heads(), [b"before", b"is welcomed"])
        self.transcript.fold(mark, "sender", "")
        self.assertEqual(self._heads(), [b"before"])

    def test_fold_of_what_is_no_longer_kept(self) -> None:
        self.transcript.note("sender", "before")
        mark = self.transcript.mark()
        for _ in range(40):
            self.transcript.note("sender", "x")
        self.transcript.fold(mark, "sender", "")
        self.assertEqual(self._heads(), [])

    def test_failures(self) -> None:
        self.assertEqual(
            (str(Failed("why")), Failed("why").hung, Failed("why", True).hung), ("why", False, True)
        )
        ended = Ended("gone", True)
        self.assertEqual((ended.hung, ended.reset, Ended("gone", False).reset), (False, True, False))
