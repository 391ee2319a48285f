"""Several rounds against several servers: the medians, and the ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from tcpjson.bench.results import Ratio, Result

#: Rounds of `--peers`, in each of which each server has its turn.
ROUNDS = 3
_MEDIANS = (
    *("per_second", "bytes_per_second", "server_cpu_us", "server_cpu"),
    *("generator_cpu", "generator_cpu_us", "memory_bytes"),
)


def median(results: Sequence[Result]) -> Result:
    """
    One result for those of several rounds, at least one: the sums of what was counted, the medians of what
    was measured, and whatever else the middle round had.
    """
    middle = sorted(results, key=lambda result: result.per_second)[len(results) // 2]
    figures = {
        name: statistics.median(values)
        for name in _MEDIANS
        if len(values := [value for each in results if (value := getattr(each, name)) is not None])
        == len(results)
    }
    return msgspec.structs.replace(
        middle,
        seconds=sum(result.seconds for result in results),
        messages=sum(result.messages for result in results),
        checked=sum(result.checked for result in results),
        wrong=sum(result.wrong for result in results),
        note=next((result.note for result in results if result.wrong), middle.note),
        **figures,
    )


def ratio(ours: Sequence[Result], theirs: Sequence[Result]) -> Ratio:
    """Our results beside a peer's, of the same rounds in the same order."""

    def of(name: str) -> float | None:
        pairs = [(getattr(our, name), getattr(their, name)) for our, their in zip(ours, theirs, strict=True)]
        if any(our is None or not their for our, their in pairs):
            return None
        return float(statistics.median(our / their for our, their in pairs))

    idle = ours[0].memory_bytes is not None
    return Ratio(
        scenario=ours[0].scenario,
        label=ours[0].label,
        server=theirs[0].server,
        rounds=len(ours),
        # At a given rate all do the same, and what stands idle does nothing.
        throughput=None if idle or ours[0].rate is not None else of("per_second"),
        cpu=of("server_cpu_us"),
        memory=of("memory_bytes"),
    )
