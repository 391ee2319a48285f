"""The results as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from tcpjson.bench.limiting import WORDS
from tcpjson.bench.results import Latency, Ratio, Result, Run
from tcpjson.core.text import printable

_HEAD = (
    "scenario",
    "what",
    "clients",
    "a second",
    "MB/s",
    "us each",
    "server",
    "generator",
    "checked",
    "wrong",
    "limit",
)
_LEFT = (0, 1, len(_HEAD) - 1)


def columns(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Rows of equal length, the columns as wide as they must be; those of `left` begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _row(result: Result, several: bool) -> list[str]:
    in_flight = f" x {result.in_flight}" if result.in_flight > 1 else ""
    label = f"{result.label} ({result.server})" if several else result.label
    cpu = result.server_cpu_us
    return [
        result.scenario,
        label,
        f"{result.clients}{in_flight}",
        f"{result.per_second:,.0f}",
        f"{result.bytes_per_second / 1e6:,.1f}",
        "-" if cpu is None else f"{cpu:,.2f}",
        _share(result.server_cpu),
        _share(result.generator_cpu),
        f"{result.checked:,}",
        f"{result.wrong:,}",
        result.limited_by,
    ]


def time_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _latency(latency: Latency) -> str:
    shown = [f"{percentile:g} % {time_text(seconds)}" for percentile, seconds in latency.percentiles]
    return ", ".join([*shown, f"longest {time_text(latency.maximum)}"])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ratios(ratios: Sequence[Ratio]) -> list[str]:
    rows = [["scenario", "what", "beside", "throughput", "CPU each", "memory each"]]
    rows += [
        [each.scenario, each.label, each.server, *map(_ratio, (each.throughput, each.cpu, each.memory))]
        for each in ratios
    ]
    return [
        "",
        f"tcpjson's figure divided by the other's, median of {ratios[0].rounds} rounds: of throughput more is"
        " better, of CPU and memory less",
        *columns(rows, (0, 1, 2)),
    ]


def lines(run: Run) -> list[str]:
    """All that is told of a run."""
    machine = run.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB"
    told = [
        f"{run.where or 'a server of our own'}: {run.server or 'a classic server'}; {machine.python},"
        f" {machine.processors} x {machine.processor}{memory}, {machine.system}"
    ]
    several = len({result.server for result in run.results}) > 1
    busy = [result for result in run.results if result.scenario != "idle"]
    if busy:
        told += ["", *columns([list(_HEAD), *(_row(result, several) for result in busy)], _LEFT)]
        told += [
            "us each: CPU of the server in microseconds for each message, delivery or connection; server,"
            " generator: share of a processor"
        ]
    told.append("")
    for result in run.results:
        steps = sum((each.scenario, each.server) == (result.scenario, result.server) for each in run.results)
        who = f"{result.scenario}, {result.label}" if steps > 1 else result.scenario
        who = f"{who}, {result.server}" if several else who
        if result.latency is not None:
            told.append(f"{who}: {_latency(result.latency)}")
        if result.memory_bytes is not None:
            told.append(
                f"{who}: {result.clients:,} connections, {result.memory_bytes:,.0f} bytes of memory each"
            )
        if result.note:
            told.append(f"{who}: {printable(result.note, 400)}")
    for limit, words in WORDS.items():
        names = dict.fromkeys(result.scenario for result in busy if result.limited_by == limit)
        if names:
            where = "" if several else f" ({', '.join(names)})"
            # Of several servers, the column tells whose it is.
            told.append(f"limited by {limit}{where}: {words}")
    told += [
        f"{each.scenario} was not measured{f' with {each.server}' if several else ''}: {each.why}"
        for each in run.skipped
    ]
    if run.ratios:
        told += _ratios(run.ratios)
    wrong = sum(result.wrong for result in run.results)
    checked = sum(result.checked for result in run.results)
    told += [
        "",
        f"{checked:,} replies were checked, {wrong:,} of them were wrong"
        if wrong
        else f"{checked:,} replies were checked, all of them were right",
    ]
    return told
