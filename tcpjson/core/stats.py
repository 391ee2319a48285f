"""Counters of a server, and their rates (docs/protocol.rst, section 3, `server_stats`)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import msgspec

from tcpjson.core.histogram import Histogram
from tcpjson.core.messages import Answer, Message, Relayed

#: Seconds between two samples, and how many make the last minute.
SAMPLE_INTERVAL = 5.0
_SAMPLES = 13

_RATED = ("messages_in", "messages_out", "bytes_in", "bytes_out")

# How many closed connections are remembered.
_REMEMBERED = 1000

# The bounds of histograms, in seconds.
_LIVES = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0)
_MOMENTS = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_WAITS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_LAGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

_SENT: list[type[Any]] = [*Answer.__subclasses__(), Message]

# The type under which all is counted that has none of its own, and all that the application sends.
OTHER = "other"
OWN = "own"


class ClosedConnection(msgspec.Struct, frozen=True, gc=False):
    """A connection that was: who it was, and why it ended."""

    client_id: str
    #: Who it had authenticated as.
    user: str | None
    #: The code of section 9.
    code: str
    #: How long it stood, in seconds.
    age: float
    bytes_in: int
    bytes_out: int
    messages_in: int = 0
    messages_out: int = 0
    #: What more is known of the end, in one word; or empty.
    detail: str = ""
    #: When it ended: the time of day, as the protocol writes it.
    at: str = ""


def type_of(kind: type[Message]) -> str:
    """The type that a class of messages stands for; `OTHER` for those that stand for many, or for none."""
    return str(kind.__struct_config__.tag or OTHER)


class Stats:
    """
    What happened since the server started.

    Args:
        now: the time in seconds, on any steady clock, as everywhere here.
        kinds: the message classes there are.
    """

    def __init__(self, now: float, kinds: Iterable[type[Message]] = ()) -> None:
        self.started = now
        self.messages_in = 0
        self.messages_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.broadcasts = 0
        #: Copies of broadcasts handed to clients.
        self.deliveries = 0
        self.connections = 0
        self.peak_clients = 0
        #: Messages received, and the bytes of their payloads, by their class.
        self.received: dict[type[Message], list[int]] = {kind: [0, 0] for kind in kinds}
        #: The same for messages sent; the class `Message` stands for all that the application made.
        self.sent = {kind: [0, 0] for kind in _SENT}
        self.errors: Counter[str] = Counter()
        self.disconnects: Counter[str] = Counter()
        #: Connections for which there was no room, by the code that says why.
        self.refused: Counter[str] = Counter()
        #: Logins by their mechanism and `status` (section 6); the mechanism `certificate` is that of TLS.
        self.logins: Counter[tuple[str, str]] = Counter()
        #: For how long connections stood, that closed; in seconds, as all histograms.
        self.durations = Histogram(_LIVES)
        #: How long the messages of one read took to be handled.
        self.handling = Histogram(_MOMENTS)
        #: How long handlers took that are awaited, by the type of their message.
        self.awaited: dict[str, Histogram] = {}
        #: By how much the reactor was late.
        self.lag = Histogram(_LAGS)
        #: The last 1,000 connections that closed, the latest at the end. Those that were refused at once, for
        #: want of room, are counted in `disconnects` alone.
        self.closed: deque[ClosedConnection] = deque(maxlen=_REMEMBERED)
        #: Times that a client was found over its rate.
        self.over_rate = 0
        self.failed_logins = 0
        #: Days until the first of the certificates in use ends; None without TLS.
        self.certificate_days: float | None = None
        self._samples: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=_SAMPLES)
        self.sample(now)

    def _totals(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in _RATED)

    def sample(self, now: float) -> None:
        """Call it every `SAMPLE_INTERVAL` seconds: the rates are counted from the oldest sample."""
        self._samples.append((now, self._totals()))

    def rates(self, now: float) -> dict[str, float]:
        """Messages and bytes a second, over the last minute or since the start if that is less."""
        then, totals = self._samples[0]
        span = now - then
        return {
            f"{name}_per_second": round((total - before) / span, 3) if span > 0 else 0.0
            for name, total, before in zip(_RATED, self._totals(), totals, strict=True)
        }

    def messages_by_type(self) -> dict[str, int]:
        """Messages by type; what has no tag of its own (other types, text, what is refused) is `other`."""
        return {kind: count for kind, (count, _) in self.received_by_type().items() if count}

    def received_by_type(self) -> dict[str, tuple[int, int]]:
        """Messages received, and the bytes of their payloads, by type: of a handler's, or `other`."""
        return _by_type((type_of(kind), count, size) for kind, (count, size) in self.received.items())

    def sent_by_type(self) -> dict[str, tuple[int, int]]:
        """
        Messages for clients, and the bytes of their payloads before compression, by type: those of the
        protocol, and `own` for what the application made; `broadcast` for what it broadcast, too.
        """
        return _by_type(
            (OWN if kind is Message else type_of(kind), count, size)
            for kind, (count, size) in self.sent.items()
        )

    def count_sent(self, kind: type[Any], count: int, size: int) -> None:
        """Count messages of one class, whose payloads have `size` bytes together."""
        counts = self.sent.get(kind) or self.sent[Message]
        counts[0] += count
        counts[1] += size

    def count_delivered(self, count: int, size: int) -> None:
        """Count copies of broadcasts, whose payloads have `size` bytes together."""
        self.deliveries += count
        self.count_sent(Relayed, count, size)

    def waited(self, kind: type[Message], seconds: float) -> None:
        """A handler that was awaited is done."""
        name = type_of(kind)
        histogram = self.awaited.get(name)
        if histogram is None:
            histogram = self.awaited[name] = Histogram(_WAITS)
        histogram.observe(seconds)

    def details(self, now: float) -> dict[str, object]:
        """The `details` of `server_stats`."""
        return {
            **{name: getattr(self, name) for name in _RATED},
            "broadcasts": self.broadcasts,
            "deliveries": self.deliveries,
            "connections": self.connections,
            "peak_clients": self.peak_clients,
            "over_rate": self.over_rate,
            "failed_logins": self.failed_logins,
            **({} if self.certificate_days is None else {"certificate_days": self.certificate_days}),
            "errors": dict(self.errors),
            "disconnects": dict(self.disconnects),
            "messages_by_type": self.messages_by_type(),
            "rates": self.rates(now),
        }


def _by_type(counts: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """Counts of one type are added up: several classes may stand for it."""
    found: dict[str, tuple[int, int]] = {}
    for kind, count, size in counts:
        before = found.get(kind, (0, 0))
        found[kind] = before[0] + count, before[1] + size
    return found
