"""Counters of a server, and their rates (docs/protocol.rst, section 3, `server_stats`)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from tcpjson.core.messages import Message

#: Seconds between two samples, and how many make the last minute.
SAMPLE_INTERVAL = 5.0
_SAMPLES = 13

_RATED = ("messages_in", "messages_out", "bytes_in", "bytes_out")

# How many closed connections are remembered.
_REMEMBERED = 1000


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
        #: Messages by their class; the statistics show them by their type.
        self.kinds: dict[type[Message], int] = dict.fromkeys(kinds, 0)
        self.errors: Counter[str] = Counter()
        self.disconnects: Counter[str] = Counter()
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
        counts: Counter[str] = Counter()
        for kind, count in self.kinds.items():
            if count:
                counts[str(kind.__struct_config__.tag or "other")] += count
        return dict(counts)

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
