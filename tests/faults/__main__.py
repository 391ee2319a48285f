"""
Plays the faults against real servers and prints what came of them:

    python -m tests.faults [--only WORDS] [--short] [--list] [--by-fault]

The status is 1 if anything falls short.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

from twisted.trial.unittest import SkipTest

from tests.faults.catalogue import COMBINATIONS, FAULTS, Fault, Play, Row, names_of
from tests.faults.registered import OUT_OF_REACH, in_groups

_HEADS = (
    "fault",
    "over",
    "login",
    "expected",
    "came",
    "closed s",
    "growth MiB",
    "lost",
    "wait s",
    "verdict",
)


def _number(value: float | None, digits: int, none: str = "-") -> str:
    return none if value is None else f"{value:.{digits}f}"


def cells(row: Row) -> list[str]:
    """A line of the table."""
    transport, state = names_of(row.tls, row.before)
    return [
        row.fault.name,
        transport,
        state,
        row.expected,
        row.came or "nothing",
        _number(row.seconds, 2, "open"),
        _number(row.growth, 1),
        str(row.lost),
        f"{row.worst:.2f}",
        row.verdict,
    ]


def dashes(fault: Fault, tls: bool, before: bool, reason: str) -> list[str]:
    """The line of a combination that is not played."""
    return [fault.name, *names_of(tls, before), *["-"] * 6, f"({reason})"]


def summary(fault: Fault, rows: Sequence[Row]) -> list[str]:
    """One line for all combinations of a fault, with the worst of each figure."""
    where = [
        "/".join(name for before, name in ((True, "before"), (False, "after")) if (tls, before) in played)
        or "-"
        for played in [{(row.tls, row.before) for row in rows}]
        for tls in (False, True)
    ]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    return [
        fault.name,
        *where,
        " or ".join(dict.fromkeys(row.came or "nothing" for row in rows)),
        _number(max(seconds, default=None), 2, "open"),
        _number(max((row.growth for row in rows if row.growth is not None), default=None), 1),
        str(sum(row.lost for row in rows)),
        f"{max(row.worst for row in rows):.2f}",
        "; ".join(dict.fromkeys(row.verdict for row in rows if row.problems or row.note)) or "ok",
    ]


class Table:
    """Prints lines as they come, in columns."""

    def __init__(self, heads: Sequence[str], longest: Sequence[str]) -> None:
        self._widths = [max(len(head), len(text)) for head, text in zip(heads, longest, strict=True)]
        self.line(heads)
        self.line(["-" * width for width in self._widths[:-1]] + ["-" * len(heads[-1])])

    def line(self, texts: Sequence[str]) -> None:
        """Print a line."""
        padded = [text.ljust(width) for text, width in zip(texts, self._widths, strict=True)]
        print("  ".join(padded).rstrip(), flush=True)


def _longest(faults: Iterable[Fault], wide: bool) -> list[str]:
    """The longest text of each column, as far as it is known before."""
    faults = list(faults)
    names = max((fault.name for fault in faults), key=len)
    codes = [
        " or ".join(dict.fromkeys(fault.expects(*each) for each in fault.combinations()))
        if wide
        else max((fault.expects(*each) for each in fault.combinations()), key=len)
        for fault in faults
    ]
    longest = max(codes, key=len)
    over, login = ("before/after", "before/after") if wide else ("tcp", "before")
    expected = [] if wide else [longest]
    return [names, over, login, *expected, longest, *[""] * 5]


def list_faults(faults: Iterable[Fault]) -> None:
    """Print what there is."""
    for fault in faults:
        where = ", ".join(" ".join(names_of(*each)) for each in fault.combinations())
        expected = dict.fromkeys(fault.expects(*each) for each in fault.combinations())
        print(f"{fault.name} (section {fault.section})" + (" [long]" if fault.long else ""))
        print(f"    {fault.hazard}")
        print(f"    {where}: {' or '.join(expected)}")
        for name, reason in fault.never.items():
            print(f"    not {name}: {reason}")
    for code, reason in OUT_OF_REACH.items():
        print(f"{code}: {reason}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Play them; returns the status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Plays the faults of peers against real servers, with 20 healthy clients beside them.",
    )
    parser.add_argument("--only", metavar="WORDS", help="those faults whose names hold the words")
    parser.add_argument("--short", action="store_true", help="less of each, and not what takes long")
    parser.add_argument("--by-fault", action="store_true", help="one line a fault, with its worst figures")
    parser.add_argument("--list", action="store_true", help="say what there is, and play nothing")
    options = parser.parse_args(arguments)
    faults = [
        fault
        for fault in in_groups(FAULTS.values())
        if (options.only or "") in fault.name and not (options.short and fault.long)
    ]
    if not faults:
        parser.error(f"no fault has {options.only!r} in its name")
    if options.list:
        list_faults(faults)
        return 0
    heads = list(_HEADS)
    if options.by_fault:
        # That something else came is part of the verdict.
        heads[1:4] = ["over tcp", "over tls"]
    started = time.monotonic()
    table = Table(heads, _longest(faults, options.by_fault))
    play = Play(options.short)
    every: list[Row] = []
    try:
        for fault in faults:
            rows = []
            played = fault.combinations(options.short)
            for tls, before in COMBINATIONS:
                if (tls, before) not in played:
                    reason = fault.never_because(tls, before)
                    if reason and not options.by_fault:
                        table.line(dashes(fault, tls, before, reason))
                    continue
                try:
                    rows.append(play.play(fault, tls, before))
                except SkipTest as skipped:
                    table.line(dashes(fault, tls, before, f"skipped: {skipped}"))
                    continue
                if not options.by_fault:
                    table.line(cells(rows[-1]))
            if options.by_fault and rows:
                table.line(summary(fault, rows))
            every += rows
    finally:
        play.close()
    failed = sum(bool(row.problems) for row in every)
    lost = sum(row.lost for row in every)
    print(
        f"\n{len(faults)} faults, {len(every)} runs in {time.monotonic() - started:.0f} s:"
        f" {len(every) - failed} as expected, {failed} not; {lost} broadcasts lost or out of order"
    )
    return 1 if failed or not every else 0


if __name__ == "__main__":
    sys.exit(main())
