"""What came of all checks, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tcpjson.conform.checks import SECTIONS, Check
from tcpjson.conform.verdicts import Piece, Result, Verdict
from tcpjson.core.text import printable

# Bytes of a piece that a line shows, and lines.
_ROW = 16
_ROWS = 4
# Failures of a section of which all is told.
_FULL = 5
# Pieces that a report shows.
_LAST = 8
# Characters that a line shows of what is text.
_READABLE = 160
# Bytes that --json shows.
_SHOWN = 256
_MARKS = {Verdict.FAILED: "FAIL", Verdict.WARNED: "warn", Verdict.SKIPPED: "skip", Verdict.PASSED: "pass"}


def dump(data: bytes) -> list[str]:
    """Bytes in hexadecimal and as text, in lines of 16."""
    return [
        f"{data[at : at + _ROW].hex(' '):47}  {_text(data[at : at + _ROW])}"
        for at in range(0, min(len(data), _ROW * _ROWS), _ROW)
    ]


def _text(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def piece_lines(piece: Piece) -> list[str]:
    """What a piece was, in lines. Behind its first bytes is the payload, where it is ASCII."""
    if piece.way == "note":
        return [f"{piece.who}: {printable(piece.head.decode(errors='replace'), 200)}"]
    whole = piece.size == 4 + int.from_bytes(piece.head[:4], "big")
    plain = piece.head[4:] if whole else piece.head
    readable = len(piece.head) > _ROW and _text(plain) == plain.decode(errors="replace")
    lines = dump(piece.head[:_ROW] if readable else piece.head)
    if readable:
        lines.append(plain[:_READABLE].decode() + "…" * (len(plain) > _READABLE))
    if piece.size > (_READABLE if readable else _ROW * _ROWS):
        lines.append(f"({piece.size} bytes)")
    marks = [f"{piece.who:9} {piece.way}", *[" " * 14] * len(lines)]
    return [f"{mark}  {line}" for mark, line in zip(marks, lines, strict=False)]


def detail(result: Result) -> list[str]:
    """A failure in lines: what it is, what was wrong, what went over the wire before."""
    rules = f" ({', '.join(result.rules)})" if result.rules else ""
    lines = [f"{_MARKS[result.verdict]}  {result.section:2}  {result.name}: {result.why}{rules}"]
    lines.append(f"      {printable(result.reason, 500)}")
    for piece in result.pieces[-_LAST:]:
        lines += [f"        {line}" for line in piece_lines(piece)]
    return lines


def short(result: Result) -> str:
    """A result in a line."""
    reason = f": {printable(result.reason, 200)}" if result.reason else ""
    return f"{_MARKS[result.verdict]}  {result.section:2}  {result.name}{reason}"


def counts(results: Iterable[Result]) -> dict[str, dict[Verdict, int]]:
    """How many checks of each section had each verdict."""
    table = {section: dict.fromkeys(Verdict, 0) for section in SECTIONS}
    for result in results:
        table[result.section][result.verdict] += 1
    return table


def summary(results: Sequence[Result]) -> list[str]:
    """The table, a line for each section of which there were checks."""
    table = counts(results)
    lines = [
        _row(f"section {section:2}  {SECTIONS[section]}", row)
        for section, row in table.items()
        if any(row.values())
    ]
    total = {verdict: sum(row[verdict] for row in table.values()) for verdict in Verdict}
    return [*lines, _row("all", total)]


def _row(title: str, row: dict[Verdict, int]) -> str:
    warned = f"{row[Verdict.WARNED]:6} warned" if row[Verdict.WARNED] else ""
    figures = "".join(
        f"{row[verdict]:6} {verdict}" for verdict in (Verdict.PASSED, Verdict.FAILED, Verdict.SKIPPED)
    )
    return f"{title:29}{figures}{warned}"


def skipped(results: Iterable[Result]) -> list[str]:
    """Why checks were skipped, and how many."""
    reasons = Counter(result.reason for result in results if result.verdict is Verdict.SKIPPED)
    return [f"skipped {count}: {printable(reason, 200)}" for reason, count in reasons.most_common()]


class Text:
    """
    Results as they come, in lines.

    Args:
        verbose: tell of those that went well, too, and of all that is known of each failure.
    """

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._told = Counter[str]()

    def lines(self, result: Result) -> list[str]:
        """What to say of a result."""
        if result.verdict not in (Verdict.FAILED, Verdict.WARNED):
            return [short(result)] if self._verbose else []
        self._told[result.section] += 1
        full = self._verbose or self._told[result.section] <= _FULL
        return detail(result) if full else [short(result)]

    def end(self, results: Sequence[Result]) -> list[str]:
        """What to say of all, behind them."""
        return summary(results) if self._verbose else [*summary(results), *skipped(results)]


def listing(checks: Iterable[Check]) -> Iterator[str]:
    """Checks that were not made, a line each."""
    for check in checks:
        must = "MUST" if check.must else "SHOULD"
        yield f"{check.section:2}  {check.level:7}  {must:6}  {check.name}: {check.why}"


def document(results: Sequence[Result], about: dict[str, Any]) -> dict[str, Any]:
    """All of it, as JSON has it; `about` is what is known of the server."""
    table = counts(results)
    return {
        **about,
        "passed": not any(result.verdict is Verdict.FAILED for result in results),
        "sections": [
            {
                "section": section,
                "title": SECTIONS[section],
                **{verdict.value: row[verdict] for verdict in row},
            }
            for section, row in table.items()
            if any(row.values())
        ],
        "checks": [_check(result) for result in results],
    }


def _check(result: Result) -> dict[str, Any]:
    return {
        "section": result.section,
        "name": result.name,
        "level": result.level,
        "must": result.must,
        "rules": result.rules,
        "why": result.why,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "wire": [_piece(piece) for piece in result.pieces],
    }


def _piece(piece: Piece) -> dict[str, Any]:
    head = piece.head[:_SHOWN]
    if piece.way == "note":
        return {"who": piece.who, "note": piece.head.decode(errors="replace")}
    return {"who": piece.who, "way": piece.way, "bytes": piece.size, "hex": head.hex(), "text": _text(head)}


def status(results: Iterable[Result]) -> int:
    """The exit status: 1 when a check failed, else 0."""
    return int(any(result.verdict is Verdict.FAILED for result in results))
