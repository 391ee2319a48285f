"""What a run of the benchmark found: the figures that the table, `--json` and `--html` are made of.

The other modules of the package agree on these names:

* `tcpjson.bench.html.page(run: Run) -> str` is the page of `--html`.
* `tcpjson.bench.peers.usable() -> list[Peer]` are the servers of `--peers` that are at hand. A `Peer` has
  `label`
  (str), `start()`, a context manager that gives an object with `port` (on 127.0.0.1) and `pid`, `scenarios`
  (a frozenset of the names of scenarios that it can take part in), and `driver`: None where it speaks our
  protocol, else the name of a module with the functions of `tcpjson.bench.driver`.
"""

from __future__ import annotations

import msgspec

#: What can have limited a scenario.
LIMITS = ("server", "generator", "the given rate", "the server's rate limit", "unknown")


class Latency(msgspec.Struct, frozen=True):
    """How long replies took; all times in seconds, counted from when each request was due."""

    #: Pairs of a percentile, up to 99.99, and its time; both rise.
    percentiles: list[tuple[float, float]]
    mean: float
    maximum: float
    #: How many requests these are.
    count: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one scenario found with one server. None: it could not be known, or has no meaning here."""

    #: Its short name, as `--scenario` takes it. Those with several sizes or numbers of clients have a result
    #: each.
    scenario: str
    #: Its name for people.
    label: str
    #: "tcpjson", or the label of a peer.
    server: str = "tcpjson"
    clients: int
    #: Bytes of the contents of a message.
    size: int = 0
    #: How many requests each client had unanswered.
    in_flight: int = 1
    #: Requests asked for in a second; None: as many as were answered (a closed loop).
    rate: float | None = None
    #: How long was measured.
    seconds: float
    #: Messages answered; in fanout those delivered; in storm, connections; in idle, connections that stood.
    messages: int
    per_second: float
    #: Bytes on the wire, both ways, without TLS.
    bytes_per_second: float
    #: Replies that were compared with what they had to be, and how many of them were not that.
    checked: int
    wrong: int = 0
    #: CPU of the server's process, user and system: microseconds a message, and share of one processor.
    server_cpu_us: float | None = None
    server_cpu: float | None = None
    #: CPU of the generator's busiest process: share of one processor; and of all: microseconds a message.
    generator_cpu: float = 0.0
    generator_cpu_us: float = 0.0
    #: Memory of the server's process that an idle connection takes.
    memory_bytes: float | None = None
    latency: Latency | None = None
    #: One of `LIMITS`.
    limited_by: str = "unknown"
    #: What a reader of the figures must know; empty where there is nothing.
    note: str = ""


class Skipped(msgspec.Struct, frozen=True):
    """A scenario that was not measured, and why."""

    scenario: str
    server: str
    why: str


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """
    A peer beside tcpjson in one scenario: the medians of the ratios within each round, tcpjson's figure
    divided by the peer's. So of throughput more is better, of CPU and memory less.
    """

    scenario: str
    label: str
    server: str
    rounds: int
    throughput: float | None = None
    cpu: float | None = None
    memory: float | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    #: The model, as the system names it.
    processor: str
    #: How many there are that the program may use.
    processors: int
    memory_bytes: int | None
    system: str
    python: str
    #: Versions of the packages that matter, by name.
    packages: dict[str, str]


class Run(msgspec.Struct, kw_only=True):
    """A whole run."""

    #: ISO 8601, UTC.
    started: str
    #: Of tcpjson's benchmark.
    version: str
    #: What `welcome` says of the server: "name/version"; empty for a classic one.
    server: str = ""
    #: HOST:PORT, or empty where the program started the server itself.
    where: str = ""
    machine: Machine
    #: The command line.
    command: list[str]
    results: list[Result] = msgspec.field(default_factory=list)
    skipped: list[Skipped] = msgspec.field(default_factory=list)
    ratios: list[Ratio] = msgspec.field(default_factory=list)
