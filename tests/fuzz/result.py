"""What a run has found, and the table that tells of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Of what failed, more than this is not shown.
_SHOWN = 10
# Attempts to make a reproduction smaller.
_ATTEMPTS = 120


@dataclass
class Result:
    """What happened in one place."""

    name: str
    frames: int = 0
    seconds: float = 0.0
    #: CPU time of all that took part, in seconds.
    cpu: float = 0.0
    connections: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)
    #: Answers that witnesses got, the longest that they waited, in seconds, and broadcasts that came to them.
    witnessed: int = 0
    slowest: float = 0.0
    relayed: int = 0
    #: Whether it stopped because the time was over.
    cut_short: bool = False
    #: What is wrong, in some lines each.
    findings: list[str] = field(default_factory=list)
    #: Memory, in bytes, open files, delayed calls and objects: before (warmed up) and after.
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)

    def add(self, other: Result) -> None:
        """Count what happened elsewhere, too."""
        self.frames += other.frames
        self.seconds = max(self.seconds, other.seconds)
        self.cpu += other.cpu
        self.connections += other.connections
        self.answers += other.answers
        self.errors += other.errors
        self.closes += other.closes
        self.witnessed += other.witnessed
        self.slowest = max(self.slowest, other.slowest)
        self.relayed += other.relayed
        self.cut_short = self.cut_short or other.cut_short
        self.findings += other.findings
        for mine, theirs in ((self.before, other.before), (self.after, other.after)):
            for name, figure in theirs.items():
                mine[name] = mine.get(name, 0) + figure


def resident() -> int:
    """The resident memory of this process, in bytes; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * 4096


def smallest(frames: Sequence[bytes], fails: Callable[[list[bytes]], bool]) -> list[bytes]:
    """
    As few of the frames as can be found by halving that still fail, the last of them as short as can be.

    Args:
        frames: they fail.
        fails: whether these do.
    """
    least = list(frames)
    attempts = 0
    size = max(1, len(least) // 2)
    while attempts < _ATTEMPTS:
        shorter = False
        start = 0
        while start < len(least) and attempts < _ATTEMPTS and len(least) > 1:
            attempts += 1
            fewer = least[:start] + least[start + size :]
            if fewer and fails(fewer):
                least = fewer
                shorter = True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = max(1, size // 2)
    return least


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(len(first)), *others]))
    return lines


def _counts(counts: Counter[str]) -> str:
    return " ".join(f"{name}={count}" for name, count in counts.most_common()) or "none"


def report(results: Sequence[Result]) -> str:
    """The table, and below it what is wrong."""
    rows = [["where", "frames", "seconds", "CPU", "connections", "answers", "errors", "findings"]]
    rows += [
        [
            result.name,
            f"{result.frames:,}",
            f"{result.seconds:.0f}",
            f"{result.cpu:.0f}",
            f"{result.connections:,}" if result.connections else "-",
            f"{sum(result.answers.values()):,}",
            f"{sum(result.errors.values()):,}",
            str(len(result.findings)),
        ]
        for result in results
    ]
    lines = _rows(rows)
    growth = [["before and after", *_GROWTH]]
    growth += [[result.name, *(_change(result, name) for name in _GROWTH)] for result in results]
    if len(growth) > 1:
        lines += ["", *_rows(growth)]
    lines.append("")
    total = Result("all")
    for result in results:
        total.add(result)
    lines.append(f"answers by type: {_counts(total.answers)}")
    lines.append(f"errors by code: {_counts(total.errors)}")
    lines.append(f"ends: {_counts(total.closes)}")
    if total.witnessed:
        lines.append(
            f"witnesses: {total.witnessed:,} answers, the slowest after {total.slowest:.2f} s;"
            f" {total.relayed:,} broadcasts"
        )
    if total.cut_short:
        lines.append("--minutes ended it before all frames were sent")
    lines.append(f"findings: {len(total.findings) or 'none'}")
    for finding in total.findings[:_SHOWN]:
        lines += ["", finding]
    if len(total.findings) > _SHOWN:
        lines += ["", f"and {len(total.findings) - _SHOWN} more"]
    return "\n".join(lines)


_GROWTH = ("MiB", "files", "calls", "connections", "objects")


def _change(result: Result, name: str) -> str:
    if name not in result.before:
        return "-"
    before, after = result.before[name], result.after.get(name, 0)
    if name == "MiB":
        return f"{before / 2**20:.1f} → {after / 2**20:.1f}"
    return f"{before} → {after}"
