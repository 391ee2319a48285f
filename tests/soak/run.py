"""One soak test: the run, its table and the verdict."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.harness import Server
from tests.soak.figures import Sample, Watch, floors, slope
from tests.soak.guests import KINDS, Plan, Site, Tally
from tests.soak.load import Load, ended_as_done

_PROBE = Path(__file__).with_name("probe.py")
_END = re.compile(r"\] disconnected (\S+) (?:user=.* )?reason=(\S+) (?:why=\S+ )?seconds=")
# Points below which a slope says nothing, and those from which on it is judged: in a few minutes the garbage
# that is not collected yet, and what the C library keeps, go up and down by more than any bound.
_POINTS, _JUDGED = 6, 30
# Blocks of Python that the server keeps of a connection that was.
_REMEMBERED = 6
# What the log should not hold.
_COMPLAINT = re.compile(r"Traceback|Unhandled|not read anew|handler .*failed")


@dataclass(frozen=True)
class Bounds:
    """What may be left of the load, beyond what was there before it; in KiB, a minute in the slope."""

    heap: float
    blocks: int
    resident: float
    slope: float


@dataclass
class Outcome:
    """What a run came to."""

    #: Before the load and after it: with no client, and all garbage collected.
    before: Sample
    after: Sample
    #: Under load.
    samples: list[Sample]
    #: Seconds of which the least resident memory is a point of the slope.
    stretch: float
    counts: Counter[str]
    problems: list[str] = field(default_factory=list)
    #: How often which deed ended how, and what does not fit.
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong_ends: list[str] = field(default_factory=list)
    #: By code, as the log and as the server itself tell it.
    logged: Counter[str] = field(default_factory=Counter)
    #: What the log should not hold.
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    fits: bool
    text: str
    #: What is to be said when it does not fit.
    more: Sequence[str] = ()


def start(plan: Plan, site: Site) -> Server:
    """A server that tells of itself when it is asked to."""
    program = f"import runpy; runpy.run_path({str(_PROBE)!r})['run']({str(site.probe)!r})"
    return Server(*plan.options, *site.auth, ports=site.ports, program=program)


def settle(watch: Watch, calls: object, seconds: float) -> Sample:
    """
    Wait until nobody is connected and the delayed calls are those given, for so many seconds at the most.

    Returns:
        What is there then, when all garbage is collected.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sample = watch.look()
        if not sample.inside["connections"] and sample.inside["calls"] == calls:
            break
        time.sleep(0.2)
    return watch.look(collect=True)


HEADER = (
    "minute  connections  logins  delivered  lost  resident MiB  in use MiB  descriptors  delayed calls"
    "  uncollected"
)


def row(number: int, samples: Sequence[Sample], counts: Counter[str]) -> str:
    """A minute in the table: medians of what was measured, and what was counted."""

    def middle(value: Callable[[Sample], float | None]) -> float:
        return median(value(sample) or 0.0 for sample in samples)

    counted = f"{counts['connections']:13}{counts['logins']:8}{counts['delivered']:11}{counts['lost']:6}"
    memory = f"{middle(lambda s: s.resident) / 1024:14.1f}{middle(lambda s: s.heap) / 1024:12.1f}"
    others = f"{middle(lambda s: s.descriptors):13.0f}{middle(lambda s: s.calls):15.0f}{middle(_gone):13.0f}"
    return f"{number:6}{counted}{memory}{others}"


def _gone(sample: Sample) -> float:
    """Connections that are gone, and that are still in memory."""
    alive: int = sample.inside["kinds"].get("tcpjson.connection.Connection", 0)
    connected: int = sample.inside["connections"]
    return alive - connected


def soak(plan: Plan, say: Callable[[str], object]) -> Outcome:
    """
    Run a server under load; `say` is called with the lines of the table.

    Raises:
        AssertionError: the server does not start or does not answer any more.
    """
    site, tally = Site(), Tally()
    server = start(plan, site)
    try:
        watch = Watch(server, site.probe)
        fresh = watch.look(collect=True)
        # A frame that has begun is watched over for so long, whoever is gone.
        patience = plan.frame_timeout + plan.longest / 16384 + 15
        said: Counter[str] = Counter()
        number = 0

        def minute(samples: Sequence[Sample]) -> None:
            nonlocal said, number
            number += 1
            now = Counter(tally.counts)
            say(row(number, samples, now - said))
            said = now

        _put_on(Load(plan, site, server, tally, plan.seed), watch, plan.warm)
        before = settle(watch, fresh.inside["calls"], patience)
        said = Counter(tally.counts)
        say(HEADER)
        samples = _put_on(Load(plan, site, server, tally, plan.seed + 1), watch, plan.seconds, minute)
        after = settle(watch, before.inside["calls"], patience)
    finally:
        server.stop()
    found = [(match[1], match[2]) for line in server.log if (match := _END.search(line))]
    ends, wrong = ended_as_done(tally.ends, found)
    return Outcome(
        before=before,
        after=after,
        samples=samples,
        stretch=plan.minute / 3,
        counts=tally.counts,
        problems=tally.problems,
        ends=ends,
        wrong_ends=wrong,
        logged=server.reasons(),
        complaints=[line for line in server.log if _COMPLAINT.search(line)],
    )


def _put_on(
    load: Load,
    watch: Watch,
    seconds: float,
    minute: Callable[[Sequence[Sample]], None] = lambda samples: None,
) -> list[Sample]:
    """Put a load on for a time; returns what was measured meanwhile, and calls `minute` with that of each."""
    samples: list[Sample] = []
    part: list[Sample] = []
    told = 0.0
    watch.began = time.monotonic()
    load.start(seconds)
    while not load.ended():
        time.sleep(load.plan.every)
        part.append(watch.look())
        if load.ended() or part[-1].at // load.plan.minute > told:
            told = part[-1].at // load.plan.minute
            minute(part)
            samples += part
            part = []
    load.join()
    return samples


# The verdict.


def verdict(outcome: Outcome, bounds: Bounds) -> Iterator[Check]:
    """What was to be shown, and whether it was."""
    before, after, counts = outcome.before, outcome.after, outcome.counts
    everything = [before, *outcome.samples, after]
    yield Check(
        counts["delivered"] > 0 and not counts["lost"],
        f"broadcasts: {counts['delivered']} came to those who stayed, {counts['lost']} lost or out of order",
    )
    yield Check(
        not outcome.problems, f"answers: {len(outcome.problems)} not as they must be", outcome.problems
    )
    told = Counter(after.inside["disconnects"])
    refused = counts["refused"]
    yield Check(
        not outcome.wrong_ends and outcome.logged == told and told["server_full"] == refused,
        f"ends: {told.total()} connections, {len(outcome.wrong_ends)} ended as they should not;"
        f" {refused} were refused",
        [*outcome.wrong_ends, f"log: {dict(outcome.logged)}", f"statistics: {dict(told)}"],
    )
    wrong, failed = counts["wrong logins"], after.inside["failed_logins"]
    yield Check(
        wrong == failed, f"logins: {counts['logins']} right, {wrong} wrong; {failed} wrong in the statistics"
    )
    yield Check(not outcome.complaints, f"log: {len(outcome.complaints)} complaints", outcome.complaints)
    left = {name: after.inside[name] for name in ("connections", "clients", "admitted", "deadlines")}
    yield Check(not any(left.values()), f"nobody is there at the end: {_listed(left)}")
    stale = sum((Counter(sample.inside["stale"]) for sample in everything), Counter[str]())
    yield Check(
        not stale,
        f"in {len(everything)} looks, {stale.total()} deadlines or calls of connections that are gone",
        [_listed(stale)],
    )
    yield Check(
        before.descriptors == after.descriptors,
        f"descriptors: {before.descriptors} before the load, {after.descriptors} after it",
        [f"before: {_listed(before.files)}", f"after: {_listed(after.files)}"],
    )
    yield Check(
        before.inside["calls"] == after.inside["calls"],
        f"delayed calls: {before.calls} before, {after.calls} after",
        [f"before: {_listed(before.inside['calls'])}", f"after: {_listed(after.inside['calls'])}"],
    )
    # Those that hash passwords are started one by one, and stay.
    most_threads = 1 + max(1, (os.cpu_count() or 1) // 2)
    yield Check(after.threads <= most_threads, f"threads: {before.threads} before, {after.threads} after")
    grown = Counter(after.inside["kinds"])
    grown.subtract(before.inside["kinds"])
    # The reactor keeps those that were cancelled until their time comes.
    del grown["twisted.internet.base.DelayedCall"]
    # One for each kind of warning that was logged.
    del grown["tcpjson.notices._Item"]
    grown = +grown
    yield Check(
        not grown, f"objects of the server and of Twisted: {grown.total()} more than before", [_listed(grown)]
    )
    made = max(1, after.inside["made"] - before.inside["made"])
    # The server remembers the last 1,000 connections on purpose.
    blocks = bounds.blocks + _REMEMBERED * (after.inside["remembered"] - before.inside["remembered"])
    for what, unit, bound, least, most in (
        ("heap in use", " KiB", bounds.heap, before.heap, after.heap),
        ("blocks of Python in use", "", blocks, before.inside["blocks"], after.inside["blocks"]),
        ("resident memory", " KiB", bounds.resident, before.resident, after.resident),
    ):
        if least is None or most is None:
            continue
        shown = f"{1024 * bound / made:.0f} bytes" if unit else f"{bound / made:.2f} blocks"
        yield Check(
            most - least <= bound,
            f"{what}: {least:.0f}{unit} before, {most:.0f}{unit} after, {most - least:+.0f};"
            f" {bound:.0f} allowed, so {shown} a connection would show",
        )
    half = outcome.samples[-1].at / 2
    points = floors((sample for sample in outcome.samples if sample.at >= half), outcome.stretch)
    what = "slope of the resident memory in the second half"
    if len(points) < _POINTS:
        yield Check(True, f"{what}: the run is too short for it")
        return
    steep = slope(points)
    judged = len(points) >= _JUDGED
    allowed = f"{bounds.slope:.0f} allowed" if judged else "the run is too short to judge it"
    yield Check(
        not judged or steep.least <= bounds.slope,
        f"{what}: {steep.middle:+.1f} KiB a minute, surely more than {steep.least:.1f} and less than"
        f" {steep.most:.1f}; {allowed}",
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:12]
    )


def ends_table(outcome: Outcome) -> Iterator[str]:
    """What was done, how the log says that it ended, and how often, by kind of socket."""
    yield f"{'what the client did':26}{'end in the log':20}" + "".join(f"{kind:>8}" for kind in KINDS)
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for (what, code), count in sorted(outcome.ends.items()):
        deed, _, kind = what.rpartition(", ")
        kinds.setdefault((deed, code), Counter())[kind] += count
    for (deed, code), counts in kinds.items():
        yield f"{deed:26}{code:20}" + "".join(f"{counts[kind] or '':8}" for kind in KINDS)
    yield f"{'one more than may be':26}{'server_full':20}{outcome.counts['refused']:8}"
