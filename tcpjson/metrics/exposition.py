"""The metrics for Prometheus, made of what the server counts anyhow, whenever somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tcpjson._version import __version__
from tcpjson.core import errors
from tcpjson.metrics.views import survey

if TYPE_CHECKING:
    from tcpjson.core.histogram import Histogram
    from tcpjson.server import TCPJSONServerFactory

_DAY = 86400.0

# How connections end without an error.
_ENDS = (
    errors.CLIENT_CLOSED,
    errors.CONNECTION_LOST,
    errors.HANDSHAKE_FAILED,
    errors.CLOSED_BY_HANDLER,
    errors.GoingAway.code,
)
_REFUSALS = (errors.ServerFull.code, errors.TooManyConnections.code, errors.GoingAway.code)
_MECHANISMS = ("plain", "token", "scram-sha-256", "certificate")
_RESULTS = ("authenticated", "authentication_failed")
# Codes of the application's own that are told apart; it can make any number.
_OWN_CODES = 100
_OTHER = "other"


def _codes(counts: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """Counts by code: the known ones, though they be 0, and not too many others."""
    found = dict.fromkeys(known, 0)
    own = 0
    for code, count in counts.items():
        if code not in found:
            own += 1
            if own > _OWN_CODES:
                code = _OTHER
        found[code] = found.get(code, 0) + count
    return found


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """How many values are at most as large as each bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((floatToGoString(bound), total))
    return buckets


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum)


class _ServerCollector(Collector):
    """Reads a server's figures when it is asked."""

    def __init__(self, factory: TCPJSONServerFactory) -> None:
        self._factory = factory
        now = datetime.fromisoformat(factory.timestamps.now()).timestamp()
        self._started = now - (factory.clock.seconds() - factory.stats.started)

    def collect(self) -> Iterator[Metric]:
        yield from self._state()
        yield from self._connections()
        yield from self._messages()
        yield from self._times()
        yield from self._troubles()

    def _state(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("tcpjson_info", "Always 1; its label says the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield _gauge(
            "tcpjson_start_time_seconds", "When the server started, in seconds since 1970.", self._started
        )
        yield _gauge("tcpjson_draining", "1 while the server shuts down, else 0.", self._factory.draining)
        days = self._factory.stats.certificate_days
        if days is not None:
            yield _gauge(
                "tcpjson_certificate_remaining_seconds",
                "Until the first of the certificates in use ends; less than 0 when it has.",
                days * _DAY,
            )

    def _connections(self) -> Iterator[Metric]:
        factory, stats = self._factory, self._factory.stats
        looked = survey(factory)
        yield _gauge(
            "tcpjson_connections", "Connections there are, whatever their state.", len(factory.connections)
        )
        yield _gauge("tcpjson_clients", "Clients that are served: they may do all.", len(factory.clients))
        yield _gauge("tcpjson_peak_clients", "The most there were since the start.", stats.peak_clients)
        if factory.limits.max_connections is not None:
            yield _gauge(
                "tcpjson_max_connections", "Connections that there may be.", factory.limits.max_connections
            )
        yield _gauge(
            "tcpjson_unfinished_handlers", "Handlers whose answer is not there yet.", looked.unfinished
        )
        yield _gauge("tcpjson_queue_bytes", "What waits for all clients together.", looked.queued)
        yield _gauge(
            "tcpjson_longest_queue_bytes", "The most that waits for one client.", looked.longest_queue
        )
        yield _gauge(
            "tcpjson_slow_clients", "Clients for whom something has waited for over a second.", looked.slow
        )
        yield _counter(
            "tcpjson_connections_accepted_total",
            "Connections that came, those that were refused too.",
            stats.connections,
        )
        yield _counters(
            "tcpjson_connections_refused_total",
            "Connections for which there was no room, by the code of their error.",
            "reason",
            _codes(stats.refused, _REFUSALS),
        )
        fatal = [code for code, error in errors.CODES.items() if error.fatal]
        yield _counters(
            "tcpjson_connections_closed_total",
            "Connections that ended, by the code that says why.",
            "code",
            _codes(stats.disconnects, (*fatal, *_ENDS)),
        )
        yield _histogram(
            "tcpjson_connection_duration_seconds",
            "For how long connections stood that ended.",
            stats.durations,
        )

    def _messages(self) -> Iterator[Metric]:
        stats = self._factory.stats
        for direction, counts in (("received", stats.received_by_type()), ("sent", stats.sent_by_type())):
            yield _counters(
                f"tcpjson_messages_{direction}_total",
                f"Messages {direction}, by type.",
                "type",
                {kind: messages for kind, (messages, _) in counts.items()},
            )
            yield _counters(
                f"tcpjson_message_bytes_{direction}_total",
                f"Bytes of the payloads of messages {direction}, before compression, by type.",
                "type",
                {kind: size for kind, (_, size) in counts.items()},
            )
        yield _counter(
            "tcpjson_received_bytes_total", "Bytes that came over the wire, without TLS.", stats.bytes_in
        )
        yield _counter(
            "tcpjson_sent_bytes_total", "Bytes that went over the wire, without TLS.", stats.bytes_out
        )
        yield _counter("tcpjson_broadcasts_total", "Messages for many clients.", stats.broadcasts)
        yield _counter(
            "tcpjson_broadcast_deliveries_total", "Copies of these handed to clients.", stats.deliveries
        )

    def _times(self) -> Iterator[Metric]:
        stats = self._factory.stats
        yield _histogram(
            "tcpjson_handling_seconds",
            "For how long the server was busy with the messages of one read.",
            stats.handling,
        )
        awaited = HistogramMetricFamily(
            "tcpjson_handler_seconds",
            "How long handlers took that are awaited, by the type of their message.",
            labels=["type"],
        )
        for kind, histogram in stats.awaited.items():
            awaited.add_metric([kind], _buckets(histogram), histogram.sum)
        yield awaited
        yield _histogram(
            "tcpjson_reactor_lag_seconds",
            "By how much the server was late to do what was due, looked at four times a second.",
            stats.lag,
        )

    def _troubles(self) -> Iterator[Metric]:
        stats = self._factory.stats
        yield _counters(
            "tcpjson_errors_total",
            "Errors sent to clients, by code.",
            "code",
            _codes(stats.errors, errors.CODES),
        )
        logins = CounterMetricFamily(
            "tcpjson_logins_total", "Logins, by mechanism and result.", labels=["mechanism", "result"]
        )
        for login, count in {**dict.fromkeys(product(_MECHANISMS, _RESULTS), 0), **stats.logins}.items():
            logins.add_metric(login, count)
        yield logins
        yield _counter(
            "tcpjson_rate_limit_hits_total", "Times that a client was found over its rate.", stats.over_rate
        )


def registry_of(factory: TCPJSONServerFactory) -> CollectorRegistry:
    """All metrics of a server and of its process; each is read when it is asked for, and kept nowhere."""
    registry = CollectorRegistry()
    registry.register(_ServerCollector(factory))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The metrics as text, and its Content-Type: that of Prometheus, or what `accept`, a header, prefers."""
    try:
        encode, content_type = choose_encoder(accept)
    # A stranger's version need be no number, and what is raised then depends on the release.
    except Exception:
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
