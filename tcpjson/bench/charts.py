"""The charts of a run, as SVG: latency, throughput by size and by clients, and ratios to others.

Each is a whole document of its own that can also stand in a page of HTML. It loads nothing, and follows the
reader's choice of light or dark. All texts may be a stranger's: `text` makes them fit for both.
"""

from __future__ import annotations

import argparse
import html
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tcpjson.bench.results import Ratio, Result, Run

#: Units of the drawings; a letter of their text is some 6.6 of them wide.
WIDTH = 440.0
_LETTER = 6.6
_LINE = 18.0
_LEFT, _RIGHT, _TOP = 62.0, 16.0, 50.0
_PLOT = 200.0
_BELOW = 44.0

#: So many lines can be told apart; the tables have all.
MOST_LINES = 8
#: Characters of a name in a legend.
_NAME = 52
#: Figures beyond these are no measurements.
_LEAST, _MOST = 1e-9, 1e15
_TICKS = 6

#: The scenarios that tell throughput by size, and by clients.
_BY_SIZE = frozenset(("small", "large", "sizes"))
_BY_CLIENTS = "scaling"

_COLOURS = (
    ("#1f66b0", "#6fb3ff"),
    ("#c2410c", "#ff9e64"),
    ("#0f766e", "#4fd1c0"),
    ("#7c3aed", "#b69cff"),
    ("#92690b", "#f0c04a"),
    ("#be185d", "#ff8ac0"),
    ("#4d7c0f", "#a6d35c"),
    ("#475569", "#b6c2d4"),
)
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2", "1 4", "6 2")

_STYLE = (
    ".tjc{--ink:#1b1f24;--soft:#59636e;--grid:#e3e6ea;--back:#ffffff;"
    "font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
    + "".join(f".tjc .c{number}{{--c:{light}}}" for number, (light, _) in enumerate(_COLOURS))
    + ".tjc .back{fill:var(--back)}.tjc text{fill:var(--ink)}.tjc .soft{fill:var(--soft)}"
    ".tjc .head{font-size:14px;font-weight:600}.tjc .grid{stroke:var(--grid);fill:none}"
    ".tjc .one{stroke:var(--soft);fill:none}.tjc .line{stroke:var(--c);fill:none;stroke-width:2;"
    "stroke-linejoin:round}.tjc .dot{fill:var(--c)}"
    "@media (prefers-color-scheme:dark){.tjc{--ink:#e8eaed;--soft:#a3adb8;--grid:#343a41;--back:#16191d}"
    + "".join(f".tjc .c{number}{{--c:{dark}}}" for number, (_, dark) in enumerate(_COLOURS))
    + "}"
)


class Series(NamedTuple):
    """A line of a chart: its name, and its points."""

    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    """What is told along one side, and how a value is written there."""

    label: str
    written: Callable[[float], str]
    #: Whether it is logarithmic; else it begins at zero.
    logarithmic: bool = True


class Bar(NamedTuple):
    """A bar of a chart of ratios: the group and the name that it stands under, and its value."""

    group: str
    name: str
    value: float


def charts(run: Run) -> dict[str, str]:
    """The charts that a run has figures for, by name: latency, sizes, clients, throughput, cpu, memory."""
    drawn = {
        "latency": latency(run.results),
        "sizes": sizes(run.results),
        "clients": clients(run.results),
        "throughput": ratios(run.ratios, "throughput"),
        "cpu": ratios(run.ratios, "cpu"),
        "memory": ratios(run.ratios, "memory"),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def save(run: Run, folder: Path) -> list[Path]:
    """
    Write the charts of a run to a folder, which is made, as NAME.svg each; returns the files.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, svg in charts(run).items():
        path = folder / f"{name}.svg"
        path.write_text(svg + "\n", encoding="utf-8")
        written.append(path)
    return written


def latency(results: Iterable[Result]) -> str:
    """The times of replies by percentile, the rare slow ones spread out; empty where none were measured."""
    having = [result for result in results if result.latency is not None]
    # Of those without a rate the slow replies hold up the next requests, and so hide others.
    paced = [result for result in having if result.rate is not None]
    shown = paced or having
    names = _names(shown)
    series = [
        Series(name, [(_nines(percentile), seconds) for percentile, seconds in result.latency.percentiles])
        for result, name in zip(shown, names, strict=True)
        if result.latency is not None
    ]
    works = {result.label for result in shown}
    return lines(
        "latency",
        "Latency by percentile",
        series,
        Axis("percent of the replies that took no longer", _percent, logarithmic=False),
        Axis(works.pop() if len(works) == 1 else "latency", duration),
        (0.0, *(_nines(percentile) for percentile in (50.0, 90.0, 99.0, 99.9, 99.99, 99.999))),
    )


def sizes(results: Iterable[Result]) -> str:
    """Messages a second by size, a line for each server; empty where no two sizes were measured."""
    best: dict[str, dict[float, float]] = {}
    for result in results:
        if result.scenario in _BY_SIZE:
            points = best.setdefault(result.server, {})
            points[result.size] = max(points.get(result.size, 0.0), result.per_second)
    if len({size for points in best.values() for size in points}) < 2:
        return ""
    return lines(
        "sizes",
        "Throughput by size",
        [Series(name, sorted(points.items())) for name, points in best.items()],
        Axis("bytes of contents", size_of),
        Axis("messages a second", amount),
    )


def clients(results: Iterable[Result]) -> str:
    """Messages a second by clients, a line for each server; empty where there is one number only."""
    found: dict[str, dict[float, float]] = {}
    for result in results:
        if result.scenario == _BY_CLIENTS:
            found.setdefault(result.server, {})[result.clients] = result.per_second
    counts = sorted({count for points in found.values() for count in points})
    if len(counts) < 2:
        return ""
    return lines(
        "clients",
        "Throughput by clients",
        [Series(server, sorted(points.items())) for server, points in found.items()],
        Axis("clients", amount),
        Axis("messages a second", amount, logarithmic=False),
        counts,
    )


#: The figures of a ratio: how they are called, and whether more of it is better.
_FIGURES = {
    "throughput": ("Throughput", True),
    "cpu": ("CPU of the server a message", False),
    "memory": ("Memory of an idle connection", False),
}


def ratios(found: Iterable[Ratio], figure: str) -> str:
    """One figure of tcpjson in parts of the others'; empty where there is none."""
    name, more = _FIGURES[figure]
    values = [(ratio, getattr(ratio, figure)) for ratio in found]
    rows = [Bar(ratio.label, ratio.server, value) for ratio, value in values if value is not None]
    return bars(figure, f"{name}: tcpjson's to the other's", rows, more)


def lines(name: str, title: str, series: Sequence[Series], x: Axis, y: Axis, at: Sequence[float] = ()) -> str:
    """
    A chart of lines.

    Args:
        name: tells its parts from those of other charts in a page.
        series: the lines; points that cannot be drawn are left out.
        at: where the horizontal axis is marked; empty: at round numbers.

    Returns:
        The SVG; empty where no point is left.
    """
    known = [
        Series(each.name, [point for point in each.points if _drawable(point, x.logarithmic)])
        for each in series
    ]
    known = [each for each in known if each.points]
    if not known:
        return ""
    shown, rest = known[:MOST_LINES], len(known) - MOST_LINES
    across = [point[0] for each in shown for point in each.points]
    up = [point[1] for each in shown for point in each.points]
    left, right, bottom = _LEFT, WIDTH - _RIGHT, _TOP + _PLOT
    horizontal = _Scale(min(across), max(across), x.logarithmic, left, right)
    vertical = _Scale(min(up), max(up), y.logarithmic, bottom, _TOP, rounded=True)
    out = [_text(0, 34, y.label, "soft")]
    out += _rows(vertical, y, left, right)
    out += _columns(horizontal, x, at, bottom)
    out.append(_text((left + right) / 2, bottom + 36, x.label, "soft", "middle"))
    for number, each in enumerate(shown):
        spots = [(horizontal(point[0]), vertical(point[1])) for point in each.points]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in spots)
        out.append(f'<g class="c{number}">')
        if len(spots) > 1:
            out.append(f'<polyline class="line" points="{path}"{_dash(number)}/>')
        out += [f'<circle class="dot" cx="{across:.1f}" cy="{up:.1f}" r="2.6"/>' for across, up in spots]
        out.append("</g>")
    names = [each.name for each in shown]
    legend, height = _legend(names, rest, bottom + _BELOW)
    told = "; ".join(
        f"{each.name}: " + ", ".join(f"{y.written(up)} at {x.written(across)}" for across, up in each.points)
        for each in shown
    )
    return _document(name, title, f"{y.label}, by {x.label}. {told}.", out + legend, height)


def bars(name: str, title: str, rows: Sequence[Bar], more: bool) -> str:
    """
    A chart of ratios: bars that begin at 1, to the right where a ratio is greater.

    Args:
        name: tells its parts from those of other charts in a page.
        rows: those of a group behind one another; what cannot be drawn is left out.
        more: whether more is better.

    Returns:
        The SVG; empty where no bar is left.
    """
    rows = [row for row in rows if _LEAST <= row.value <= _MOST]
    if not rows:
        return ""
    # Room for the names on the left, and for a figure at either end of a bar.
    left, right = 168.0, WIDTH - 52.0
    scale = _Scale(
        min(0.8, *(row.value for row in rows)), max(1.25, *(row.value for row in rows)), True, left, right
    )
    out = [_text(0, 34, "more than 1 is better" if more else "less than 1 is better", "soft")]
    drawn: list[str] = []
    top = _TOP
    group = None
    for row in rows:
        if row.group != group:
            top += 4 if group is None else 8
            drawn.append(_text(0, top + 11, _cut(row.group, 60), "soft"))
            group, top = row.group, top + _LINE
        good = (row.value >= 1) is more or row.value == 1
        begin, end = sorted((scale(1.0), scale(row.value)))
        length = max(end - begin, 1.0)
        drawn.append(_text(8, top + 12, _cut(row.name, 16)))
        drawn.append(
            f'<rect class="dot {"c0" if good else "c1"}" x="{begin:.1f}" y="{top + 2:.1f}"'
            f' width="{length:.1f}" height="13" rx="1.5"/>'
        )
        if row.value < 1:
            drawn.append(_text(begin - 5, top + 12, _ratio(row.value), anchor="end"))
        else:
            drawn.append(_text(begin + length + 5, top + 12, _ratio(row.value)))
        top += _LINE + 2
    for tick in _apart((scale(tick), _three(tick)) for tick in scale.ticks()):
        out.append(f'<path class="grid" d="M{tick[0]:.1f} {_TOP}V{top:.1f}"/>')
        out.append(_text(tick[0], top + 16, tick[1], "soft", "middle"))
    out.append(f'<path class="one" d="M{scale(1.0):.1f} {_TOP}V{top:.1f}"/>')
    told = "; ".join(f"{row.group}, {row.name}: {_ratio(row.value)}" for row in rows)
    words = "More than 1 is better." if more else "Less than 1 is better."
    return _document(name, title, f"{words} {told}.", out + drawn, top + 26)


def text(value: object, most: int = 200) -> str:
    """A value as a piece of SVG or HTML: cut after so many characters, escaped, all of it to be seen."""
    seen = "".join(char if char.isprintable() else "\ufffd" for char in _cut(str(value), most))
    return html.escape(seen)


def duration(seconds: float) -> str:
    """Seconds, in words: 85 µs, 1.5 ms, 2 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        # What would be written as 1000 of a unit is 1 of the next.
        if seconds >= size * 0.9995:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds * 1e9)} ns"


def size_of(count: float) -> str:
    """Bytes, in words: 100 B, 10 kB, 1.5 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size * 0.9995:
            return f"{_three(count / size)} {unit}"
    return f"{_three(count)} B"


def amount(count: float) -> str:
    """A number: 85.5, 1,200, 12.5k, 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size * 0.9995:
            return f"{_three(count / size)}{unit}"
    if count >= 9999.5:
        return f"{_three(count / 1e3)}k"
    return f"{count:,.0f}" if count >= 99.95 else _three(count)


def _three(value: float) -> str:
    """A number with three digits, or all before the point, and no zeros behind it."""
    # Beyond, there is no other unit.
    if value >= 1e6 or 0 < value < 1e-4:
        return f"{value:.1e}"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= value < 9.995 else _three(value)


def _nines(percentile: float) -> float:
    """Where a percentile stands: 0.3 for 50, 1 for 90, 2 for 99, and so on; NaN: nowhere."""
    return math.log10(100 / (100 - percentile)) if 0 <= percentile < 100 else math.nan


def _percent(nines: float) -> str:
    return f"{100 - 100 / 10**nines:.7g} %"


def _names(results: Sequence[Result]) -> list[str]:
    """What their lines are called: by what they differ in of server and work."""
    several = len({result.label for result in results}) > 1
    if len({result.server for result in results}) == 1:
        return [result.label if several else result.server for result in results]
    return [f"{result.server}: {result.label}" if several else result.server for result in results]


def _drawable(point: tuple[float, float], logarithmic: bool) -> bool:
    across, up = point
    return (_LEAST if logarithmic else 0) <= across <= _MOST and _LEAST <= up <= _MOST


class _Scale:
    """Places values on one side of a chart."""

    def __init__(
        self, low: float, high: float, logarithmic: bool, first: float, last: float, rounded: bool = False
    ) -> None:
        self._logarithmic = logarithmic
        if not logarithmic:
            low, high = 0.0, high or 1.0
            step = _step(high)
            high = math.ceil(high / step * (1 - 1e-9)) * step
        elif low >= high:
            low, high = low / 2, high * 2
        elif rounded:
            low, high = low / 1.15, high * 1.15
        self.low, self.high = low, high
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        low, high = self._log(self.low), self._log(self.high)
        return self._first + (self._log(value) - low) / (high - low) * (self._last - self._first)

    def _log(self, value: float) -> float:
        return math.log10(value) if self._logarithmic else value

    def ticks(self) -> list[float]:
        """Round numbers between its ends."""
        if not self._logarithmic:
            step = _step(self.high)
            return [number * step for number in range(round(self.high / step) + 1)]
        decades = math.log10(self.high / self.low)
        if decades > 3:
            factors: tuple[float, ...] = (1,)
        elif decades > 1.4:
            factors = (1, 3)
        else:
            factors = (1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 4, 5, 7)
        every = max(1, math.ceil(decades / _TICKS)) if decades > 3 else 1
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        within = [tick for tick in found if self.low <= tick <= self.high]
        # The ends of a narrow range say more than one mark.
        return within if len(within) > 1 else [self.low, self.high]


def _step(high: float) -> float:
    """The distance of round marks from zero to this value."""
    rough = high / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)


def _apart(marks: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those marks whose words, in the middle of their places, do not run into the one before."""
    kept: list[tuple[float, str]] = []
    end = -math.inf
    for place, words in sorted(marks):
        half = len(words) * _LETTER / 2
        if place - half >= end:
            kept.append((place, words))
            end = place + half + _LETTER
    return kept


def _rows(scale: _Scale, axis: Axis, left: float, right: float) -> list[str]:
    out = []
    for tick in scale.ticks():
        place = scale(tick)
        out.append(f'<path class="grid" d="M{left} {place:.1f}H{right}"/>')
        out.append(_text(left - 6, place + 4, axis.written(tick), "soft", "end"))
    return out


def _columns(scale: _Scale, axis: Axis, at: Sequence[float], bottom: float) -> list[str]:
    places = [value for value in at or scale.ticks() if scale.low <= value <= scale.high]
    out = []
    for place, words in _apart((scale(value), axis.written(value)) for value in places):
        out.append(f'<path class="grid" d="M{place:.1f} {_TOP}V{bottom + 4}"/>')
        # The last one stays within the drawing.
        middle = min(place, WIDTH - len(words) * _LETTER / 2)
        out.append(_text(middle, bottom + 18, words, "soft", "middle"))
    return out


def _legend(names: Sequence[str], rest: int, top: float) -> tuple[list[str], float]:
    """The lines' names in rows, and where they end."""
    out = []
    across = 0.0
    for number, name in enumerate(names):
        words = _cut(name, _NAME)
        width = 30 + len(words) * _LETTER + 14
        if across and across + width > WIDTH:
            across, top = 0.0, top + _LINE
        out.append(
            f'<g class="c{number}"><path class="line" d="M{across:.1f} {top + 8}h24"{_dash(number)}/>'
            f'<circle class="dot" cx="{across + 12:.1f}" cy="{top + 8}" r="2.6"/></g>'
        )
        out.append(_text(across + 30, top + 12, words))
        across += width
    if rest > 0:
        top += _LINE
        out.append(_text(0, top + 12, f"and {rest} more, in the tables", "soft"))
    return out, top + _LINE + 6


def _dash(number: int) -> str:
    return f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _text(across: float, up: float, words: str, kind: str = "", anchor: str = "") -> str:
    marks = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{across:.1f}" y="{up:.1f}"{marks}>{text(words)}</text>'


def _document(name: str, title: str, told: str, parts: Sequence[str], height: float) -> str:
    """The whole drawing; `told` is for those who cannot see it."""
    return "\n".join(
        (
            '<svg xmlns="http://www.w3.org/2000/svg" class="tjc"'
            f' viewBox="-12 -4 {WIDTH + 24:g} {height + 8:g}"'
            f' role="img" aria-labelledby="{name}-title {name}-told">',
            f'<title id="{name}-title">{text(title)}</title>',
            f'<desc id="{name}-told">{text(told, 4000)}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="back" x="-12" y="-4" width="{WIDTH + 24:g}" height="{height + 8:g}"/>',
            _text(0, 14, title, "head"),
            *parts,
            "</svg>",
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the charts of an earlier run; returns the status."""
    parser = argparse.ArgumentParser(
        prog="python -m tcpjson.bench.charts",
        description="Writes the charts of an earlier run as files of SVG.",
    )
    parser.add_argument(
        "figures", metavar="FIGURES", help="what python -m tcpjson.bench --json FIGURES wrote"
    )
    parser.add_argument("folder", metavar="FOLDER", help="where they go; it is made")
    options = parser.parse_args(arguments)
    try:
        run = msgspec.json.decode(Path(options.figures).read_bytes(), type=Run)
        written = save(run, Path(options.folder))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        parser.error(f"{options.figures}: {error}")
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
