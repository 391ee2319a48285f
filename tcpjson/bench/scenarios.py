"""What is measured: the scenarios, and the steps that each of them has."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

#: Connections that the benchmark makes at once, at most.
MOST_CLIENTS = 20_000
#: Bytes of contents that are on their way on one connection, about, in a scenario of several sizes.
_ON_THE_WAY = 512 * 1024


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement."""

    scenario: str
    label: str
    #: As `tcpjson.bench.jobs.Job` has it.
    kind: str
    clients: int
    size: int = 0
    in_flight: int = 1
    rate: float | None = None
    #: A server of our own speaks TLS.
    tls: bool = False
    #: Connections that stand before it is measured, and go away again.
    before: int = 0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One or more measurements under one name."""

    name: str
    about: str
    #: It is taken when none is named.
    default: bool = True
    #: Its steps, for a number of clients and a rate where those are given.
    steps: Callable[[int | None, float | None], list[Step]]


def _amount(size: int) -> str:
    return f"{size // 1000} kB" if size >= 1000 else f"{size} bytes"


def _echo(scenario: str, size: int, clients: int, in_flight: int, label: str = "", tls: bool = False) -> Step:
    return Step(
        scenario=scenario,
        label=label or f"echo of {_amount(size)}",
        kind="echo",
        clients=clients,
        size=size,
        in_flight=in_flight,
        tls=tls,
    )


def _small(clients: int | None, rate: float | None) -> list[Step]:
    return [_echo("small", 100, clients or 10, 50)]


def _large(clients: int | None, rate: float | None) -> list[Step]:
    return [_echo("large", 10_000, clients or 10, 10)]


def _sizes(clients: int | None, rate: float | None) -> list[Step]:
    return [
        _echo("sizes", size, clients or 10, max(1, min(50, _ON_THE_WAY // size // 5)))
        for size in (10, 100, 1000, 10_000, 100_000)
    ]


def _latency(clients: int | None, rate: float | None) -> list[Step]:
    asked = rate or 5000.0
    label = f"echo of 100 bytes, {asked:,.0f} a second"
    return [Step(scenario="latency", label=label, kind="paced", clients=clients or 10, size=100, rate=asked)]


def _fanout(clients: int | None, rate: float | None) -> list[Step]:
    receivers = clients or 200
    return [
        Step(
            scenario="fanout",
            label=f"broadcast to {receivers}",
            kind="fanout",
            clients=receivers,
            size=100,
            in_flight=20,
        )
    ]


def _storm(clients: int | None, rate: float | None) -> list[Step]:
    label = "connect, welcome, ping, close"
    return [Step(scenario="storm", label=label, kind="storm", clients=clients or 50)]


def _idle(clients: int | None, rate: float | None) -> list[Step]:
    count = clients or 1000
    label = "connections that do nothing"
    return [Step(scenario="idle", label=label, kind="hold", clients=count, before=min(count, 100))]


def _scaling(clients: int | None, rate: float | None) -> list[Step]:
    return [
        _echo("scaling", 100, count, 10, f"echo, {count} client{'s' * (count > 1)}")
        for count in (1, 10, 100, 1000)
    ]


def _tls(clients: int | None, rate: float | None) -> list[Step]:
    return [_echo("tls", 100, clients or 10, 50, "echo of 100 bytes, TLS", tls=True)]


#: All, in the order in which they are run.
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="small", about="echo of 100 bytes: 10 clients, 50 in flight each", steps=_small),
        Scenario(name="large", about="echo of 10 kB: 10 clients, 10 in flight each", steps=_large),
        Scenario(
            name="sizes", about="echo of 10 bytes to 100 kB: throughput by size", default=False, steps=_sizes
        ),
        Scenario(
            name="latency",
            about="round trips at a given rate, counted from when each was due (--rate, else 5,000 a second)",
            steps=_latency,
        ),
        Scenario(name="fanout", about="one client broadcasts to 200, 20 in flight", steps=_fanout),
        Scenario(name="storm", about="connect, welcome, ping, close: 50 at a time", steps=_storm),
        Scenario(name="idle", about="memory of 1,000 connections that do nothing", steps=_idle),
        Scenario(
            name="scaling",
            about="echo by 1, 10, 100 and 1,000 clients, 10 in flight each",
            default=False,
            steps=_scaling,
        ),
        Scenario(name="tls", about="as small, over TLS", steps=_tls),
    )
}
