"""What a process of the generator is told, and what it tells."""

from __future__ import annotations

from typing import Any

import msgspec


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, found already."""

    family: int
    #: As `socket.connect` takes it.
    at: tuple[Any, ...]
    #: Whether TLS is spoken.
    tls: bool = False
    #: The name that its certificate must have.
    name: str = ""
    #: The file of the authorities that are trusted; None: the system's.
    ca: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one process."""

    #: "echo", "paced", "fanout", "storm" or "hold".
    kind: str
    address: Address
    clients: int
    #: Bytes of contents.
    size: int = 100
    #: Requests that a client has unanswered; of a fan-out, the sender.
    in_flight: int = 1
    #: Requests of this process in a second, and how far behind the others it begins (0 to 1); None: closed
    #: loop.
    rate: float | None = None
    phase: float = 0.0
    seconds: float
    #: What makes its contents differ from those of the other processes.
    seed: int = 0
    #: The module that speaks the server's protocol in a fan-out.
    driver: str = "tcpjson.bench.driver"
    #: Connections that a storm may make.
    most: int = 20_000


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """All connections stand; the work begins with the next line of input."""

    #: Seconds that they took.
    seconds: float = 0.0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The work cannot be done."""

    why: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What was done."""

    #: Answered; of a fan-out, delivered; of a storm, connections.
    messages: int
    #: From the first request to the last answer.
    seconds: float
    #: Bytes both ways.
    bytes: int
    checked: int
    wrong: int = 0
    #: The first wrong reply, cut.
    first_wrong: str = ""
    #: CPU of this process in that time.
    cpu_seconds: float = 0.0
    #: How long it had work and no processor.
    waited_seconds: float = 0.0
    #: Requests that had no answer in time.
    unanswered: int = 0
    #: The latencies (`tcpjson.bench.latency.encoded`).
    histogram: str = ""
    note: str = ""


Word = Ready | Failed | Report
