"""One measurement: the processes that do it, the server beside them, and the figures of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tcpjson.bench import processes
from tcpjson.bench.jobs import Job, Report
from tcpjson.bench.latency import merged
from tcpjson.bench.limiting import limited_by
from tcpjson.bench.results import Result
from tcpjson.bench.scenarios import MOST_CLIENTS, Step
from tcpjson.bench.target import Target
from tcpjson.bench.workers import Workers

# Bytes of a message around its contents, about; more than there are.
_AROUND = 200
# Seconds that a server needs to be quiet again.
_SETTLE = 0.3
# From this share of the time on it is told that others used the processors, too.
_NOTICED = 0.05

#: What is told while it goes on: seconds of the step that have passed.
Tick = Callable[[float], object]


class Skip(Exception):
    """A step that makes no sense with this server; the text says why."""


def jobs(step: Step, target: Target, seconds: float, count: int, driver: str) -> list[Job]:
    """
    The work of each process.

    Args:
        step: the measurement.
        target: the server.
        seconds: how long.
        count: how many processes there may be.
        driver: speaks the server's protocol in a fan-out.
    """
    # In a fan-out, what one sends all others await.
    count = 1 if step.kind in ("fanout", "hold") else min(count, step.clients)
    return [
        Job(
            kind=step.kind,
            address=target.address,
            clients=step.clients // count + (number < step.clients % count),
            size=step.size,
            in_flight=step.in_flight,
            rate=None if step.rate is None else step.rate / count,
            phase=number / count,
            seconds=seconds,
            seed=number,
            driver=driver,
            most=MOST_CLIENTS // count,
        )
        for number in range(count)
    ]


def check(step: Step, target: Target) -> None:
    """
    See that the server can do it.

    Raises:
        Skip: it cannot.
    """
    if target.max_length is not None and step.size + _AROUND > target.max_length:
        raise Skip(f"the server takes no more than {target.max_length} bytes (max_length in its welcome)")
    if step.tls and not target.address.tls:
        raise Skip("the server is spoken to without TLS: --tls speaks it")
    if step.kind == "hold" and target.pid is None:
        raise Skip("the memory of a server can be read only on its own machine, by its own user")


def allowed(step: Step, target: Target) -> float | None:
    """Messages in a second that the server takes from all clients of a step; None: it sets no limit."""
    if step.kind not in ("echo", "paced"):
        return None
    rates = []
    if target.messages_per_second is not None:
        rates.append(target.messages_per_second * step.clients)
    if target.bytes_per_second is not None:
        rates.append(target.bytes_per_second * step.clients / (step.size + 50))
    return min(rates, default=None)


def measure(
    step: Step,
    target: Target,
    *,
    seconds: float,
    count: int,
    tick: Tick,
    server: str = "tcpjson",
    driver: str = "tcpjson.bench.driver",
) -> Result:
    """
    Do one step.

    Args:
        step, target, seconds, count, driver: as `jobs` takes them.
        tick: is told how far it is.
        server: how the server is called in the result.

    Raises:
        Skip: the step makes no sense with this server.
        GeneratorFailed: it could not be done.
    """
    check(step, target)
    if step.kind == "hold":
        return _idle(step, target, tick, server, driver)
    with Workers(jobs(step, target, seconds, count, driver), tick) as workers:
        workers.ready()
        before = _used(target)
        reports = workers.run()
        after = _used(target)
    spent, waited = (
        None if first is None or last is None else last - first
        for first, last in zip(before, after, strict=True)
    )
    return result(step, reports, spent, waited or 0.0, allowed(step, target), server)


def _used(target: Target) -> tuple[float | None, float | None]:
    """CPU that the server has used, and how long it has waited for a processor."""
    if target.pid is None:
        return None, None
    return processes.cpu_seconds(target.pid), processes.waited_seconds(target.pid)


def result(
    step: Step,
    reports: Sequence[Report],
    spent: float | None,
    waited: float = 0.0,
    allowed: float | None = None,
    server: str = "tcpjson",
) -> Result:
    """
    What the reports of all processes say together.

    Args:
        step: what was done.
        reports: one of each process.
        spent: CPU of the server in seconds, None where it is not known.
        waited: seconds in which it had work and no processor, which others had.
        allowed: as `limited_by` takes it.
        server: its name.
    """
    messages = sum(report.messages for report in reports)
    seconds = max(report.seconds for report in reports)
    per_second = sum(report.messages / report.seconds for report in reports if report.seconds)
    busiest = max(report.cpu_seconds / report.seconds if report.seconds else 0.0 for report in reports)
    wrong = sum(report.wrong for report in reports)
    unanswered = sum(report.unanswered for report in reports)
    # The time of the reports, not ours: the server was idle in what is between.
    server_cpu = None if spent is None or not seconds else spent / seconds
    lost = waited / seconds if seconds else 0.0
    notes = [report.note for report in reports if report.note][:1]
    if unanswered:
        notes.append(
            f"{unanswered} requests had no answer; they count with the time that they were waited for"
        )
    if wrong:
        first = next(report.first_wrong for report in reports if report.wrong)
        notes.append(f"the first wrong reply: {first}")
    if lost >= _NOTICED:
        notes.append(f"the server had to wait for a processor {lost:.0%} of the time: others used it, too")
    if len(reports) > 1:
        notes.append(f"{len(reports)} processes generated it")
    return Result(
        scenario=step.scenario,
        label=step.label,
        server=server,
        clients=step.clients,
        size=step.size,
        in_flight=step.in_flight,
        rate=step.rate,
        seconds=seconds,
        messages=messages,
        per_second=per_second,
        bytes_per_second=sum(report.bytes / report.seconds for report in reports if report.seconds),
        checked=sum(report.checked for report in reports),
        wrong=wrong,
        server_cpu_us=None if spent is None or not messages else spent / messages * 1e6,
        server_cpu=server_cpu,
        generator_cpu=busiest,
        generator_cpu_us=sum(report.cpu_seconds for report in reports) / messages * 1e6 if messages else 0.0,
        latency=merged(report.histogram for report in reports if report.histogram) if step.rate else None,
        limited_by=limited_by(
            # Who waits for a processor is busy, too.
            server_cpu=None if server_cpu is None else server_cpu + lost,
            generator_cpu=max((_busy(report) for report in reports), default=0.0),
            per_second=per_second,
            rate=step.rate,
            allowed=allowed,
        ),
        note="; ".join(notes),
    )


def _busy(report: Report) -> float:
    return (report.cpu_seconds + report.waited_seconds) / report.seconds if report.seconds else 0.0


def _idle(step: Step, target: Target, tick: Tick, server: str, driver: str) -> Result:
    """Memory of the process with connections and without, for each of them."""
    assert target.pid is not None
    job = jobs(step, target, 0.0, 1, driver)[0]
    _hold(Job(kind="hold", address=job.address, clients=step.before, seconds=0.0, driver=driver), target)
    tick(0.0)
    before = processes.resident_bytes(target.pid)
    taken, seconds = _hold(job, target)
    memory = None if before is None or taken is None else max(taken - before, 0) / step.clients
    return Result(
        scenario=step.scenario,
        label=step.label,
        server=server,
        clients=step.clients,
        seconds=seconds,
        messages=step.clients,
        per_second=step.clients / seconds if seconds else 0.0,
        bytes_per_second=0.0,
        checked=step.clients,
        memory_bytes=memory,
        note="" if memory is not None else "the memory of the process could not be read",
    )


def _hold(job: Job, target: Target) -> tuple[int | None, float]:
    """Have connections stand for a moment; returns the memory of the process then, and how long they took."""
    assert target.pid is not None
    with Workers([job], lambda seconds: None) as workers:
        (ready,) = workers.ready()
        time.sleep(_SETTLE)
        taken = processes.resident_bytes(target.pid)
        workers.run()
    time.sleep(_SETTLE)
    return taken, ready.seconds
