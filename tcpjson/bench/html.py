"""A run as one page of HTML that needs nothing else: `--html`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tcpjson.bench.charts import amount, charts, duration, size_of, text
from tcpjson.bench.results import Latency, Machine, Ratio, Result, Run

# Characters of a command line, and of a note, that are shown.
_COMMAND, _NOTE = 1000, 500
# Nobody reads a page of more figures.
_MOST_ROWS = 1000

_CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--grid:#d9dde2;--back:#fff;--card:#f5f6f8;
--bad:#b42318}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a3adb8;--grid:#343a41;--back:#16191d;
--card:#1f242a;--bad:#ff8f80}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:16px;background:var(--back);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
h1{font-size:1.5rem;margin:.4rem 0}h2{font-size:1.15rem;margin:1.8rem 0 .6rem}
p{margin:.5rem 0;max-width:75ch}.soft{color:var(--soft)}.bad{color:var(--bad);font-weight:600}
pre{background:var(--card);padding:10px;border-radius:6px;margin:.5rem 0;white-space:pre-wrap;
overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:.5rem 0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}ul{padding-left:18px;max-width:100ch;overflow-wrap:anywhere}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:4px 8px;border-bottom:1px solid var(--grid);text-align:right;vertical-align:top}
td{white-space:nowrap}thead th{color:var(--soft);font-weight:500;vertical-align:bottom}
.name{text-align:left}th:first-child,td:first-child{padding-left:0}
td.note{white-space:normal;min-width:28ch;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:20px;align-items:start}
.charts svg{display:block;width:100%;height:auto}
"""


class _Column(NamedTuple):
    """A column of a table: its head, what it shows of a row (empty: nothing), its kind if that is words."""

    head: str
    shown: Callable[[Result], str]
    kind: str = ""


def page(run: Run) -> str:
    """The page of a run; what a stranger may have said in it, as labels or notes, is only ever text."""
    measured = f"tcpjson {run.version}, {run.started}"
    drawn = charts(run)
    parts = [
        "<h1>How fast it is</h1>",
        f'<p class="soft">{text(measured)}</p>',
        _pairs(_about(run)),
        f"<pre>{text(shlex.join(run.command), _COMMAND)}</pre>",
        *_wrong(run.results),
        *(("<h2>Charts</h2>", '<div class="charts">', *drawn.values(), "</div>") if drawn else ()),
        "<h2>Results</h2>",
        _results(run.results),
        *_notes(run.results),
    ]
    if run.ratios:
        parts += ["<h2>Beside others</h2>", _COMPARED, _ratios(run.ratios)]
    timed = [result for result in run.results if result.latency is not None]
    if timed:
        parts += ["<h2>Latency</h2>", _TIMED, _percentiles(timed)]
    if run.skipped:
        rows = [(skipped.scenario, skipped.server, skipped.why) for skipped in run.skipped]
        parts += [
            "<h2>Not measured</h2>",
            _table(("scenario", "server", "why"), rows, ("name", "name", "name note")),
        ]
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy"'
            " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(measured)}</title>",
            f"<style>{_CSS}</style>",
            "<body>",
            *parts,
            "</body>",
            "</html>",
            "",
        )
    )


_COMPARED = (
    "<p>tcpjson's figure divided by the other's, in the same rounds. Of throughput more than 1 is better for "
    "tcpjson; of CPU and memory less than 1.</p>"
)
_TIMED = (
    "<p>A time counts from when the request was due: where a rate was given, "
    "also while the server stood still.</p>"
)


def _about(run: Run) -> list[tuple[str, str]]:
    """What was measured where."""
    machine: Machine = run.machine
    memory = "" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    found = [
        ("server", f"{run.server or 'not named'}, {run.where or 'started by the benchmark'}"),
        ("processor", f"{machine.processor} ({machine.processors} usable)"),
        ("memory", memory),
        ("system", machine.system),
        ("Python", machine.python),
        ("packages", packages),
    ]
    return [(name, value) for name, value in found if value]


def _wrong(results: Iterable[Result]) -> list[str]:
    """What must not be overlooked."""
    checked = sum(result.checked for result in results)
    wrong = sum(result.wrong for result in results)
    if wrong:
        return [f'<p class="bad">{wrong:,} of {checked:,} replies were wrong.</p>']
    return [f"<p>{checked:,} replies were checked; all were right.</p>"] if checked else []


def _clients(result: Result) -> str:
    return f"{result.clients:,}" + (f" x {result.in_flight:,}" if result.in_flight > 1 else "")


def _optional(written: Callable[[float], str], value: float | None) -> str:
    return "" if value is None else written(value)


def _share(value: float) -> str:
    return f"{value:.0%}"


def _micros(value: float) -> str:
    return f"{value:.2f} µs" if value < 100 else f"{value:,.0f} µs"


_COLUMNS = (
    _Column("work", lambda result: result.label, "name"),
    _Column("server", lambda result: result.server, "name"),
    _Column("clients x in flight", _clients),
    _Column("size", lambda result: size_of(result.size) if result.size else ""),
    _Column("a second", lambda result: amount(result.per_second)),
    _Column(
        "bytes a second", lambda result: size_of(result.bytes_per_second) if result.bytes_per_second else ""
    ),
    _Column("server's CPU a message", lambda result: _optional(_micros, result.server_cpu_us)),
    _Column("server's CPU", lambda result: _optional(_share, result.server_cpu)),
    _Column("generator's CPU", lambda result: _share(result.generator_cpu) if result.generator_cpu else ""),
    _Column("memory a connection", lambda result: _optional(size_of, result.memory_bytes)),
    _Column("wrong", lambda result: f"{result.wrong:,}" if result.wrong else ""),
    _Column("limited by", lambda result: result.limited_by, "name"),
)


def _results(results: Sequence[Result]) -> str:
    """All that was measured; columns that nothing stands in are left out."""
    if not results:
        return "<p>Nothing was measured.</p>"
    rows = [[column.shown(result) for column in _COLUMNS] for result in results[:_MOST_ROWS]]
    used = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]
    heads = [_COLUMNS[number].head for number in used]
    kinds = [_COLUMNS[number].kind for number in used]
    return _table(heads, [[row[number] for number in used] for row in rows], kinds)


def _notes(results: Iterable[Result]) -> list[str]:
    """What a reader of the figures must know."""
    found = [f"{result.label}, {result.server}: {result.note}" for result in results if result.note]
    items = [f"<li>{text(note, _NOTE)}</li>" for note in found[:_MOST_ROWS]]
    return ['<ul class="soft">', *items, "</ul>"] if items else []


def _percentiles(results: Sequence[Result]) -> str:
    """Latency, a row for each result."""
    known = [(result, result.latency) for result in results if result.latency is not None][:_MOST_ROWS]
    at = sorted({percentile for _, latency in known for percentile, _ in latency.percentiles})

    def row(result: Result, latency: Latency) -> list[str]:
        times = dict(latency.percentiles)
        return [
            result.label,
            result.server,
            *(duration(times[percentile]) if percentile in times else "" for percentile in at),
            duration(latency.maximum),
            duration(latency.mean),
            f"{latency.count:,}",
        ]

    heads = ["work", "server", *(f"{percentile:g} %" for percentile in at), "most", "mean", "replies"]
    return _table(heads, [row(*each) for each in known])


def _ratios(ratios: Sequence[Ratio]) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        (
            ratio.label,
            ratio.server,
            shown(ratio.throughput),
            shown(ratio.cpu),
            shown(ratio.memory),
            f"{ratio.rounds:,}",
        )
        for ratio in ratios[:_MOST_ROWS]
    ]
    return _table(("work", "beside", "throughput", "CPU a message", "memory a connection", "rounds"), rows)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs) + "</dl>"


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = ("name", "name")
) -> str:
    """A table that scrolls by itself where it is too wide; columns beyond `kinds` are figures."""
    marks = [f' class="{kind}"' if kind else "" for kind in kinds] + [""] * (len(heads) - len(kinds))
    cells = [
        "".join(f"<td{mark}>{text(cell)}</td>" for mark, cell in zip(marks, row, strict=True)) for row in rows
    ]
    head = "".join(f"<th{mark}>{text(name)}</th>" for mark, name in zip(marks, heads, strict=True))
    lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *(f"<tr>{row}</tr>" for row in cells), "</tbody>"]
    return "\n".join(('<div class="wide" tabindex="0"><table>', *lines, "</table></div>"))
