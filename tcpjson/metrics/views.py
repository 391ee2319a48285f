"""What a server does, as people and programs ask for it: its connections, its figures, and words for both."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpjson._version import __version__
from tcpjson.core.errors import (
    CLIENT_CLOSED,
    CLOSED_BY_HANDLER,
    CONNECTION_LOST,
    HANDSHAKE_FAILED,
    AuthFailed,
    AuthTimeout,
    BadFrame,
    BadJSON,
    BadMessage,
    Forbidden,
    FrameTimeout,
    GoingAway,
    HandlerTimeout,
    HeartbeatTimeout,
    IdleTimeout,
    Internal,
    RateLimited,
    ServerFull,
    SlowConsumer,
    TooLarge,
    TooManyConnections,
    Unauthenticated,
    UnknownType,
)
from tcpjson.core.session import State
from tcpjson.transports import round_trip

if TYPE_CHECKING:
    from tcpjson.connection import Connection
    from tcpjson.core.histogram import Histogram
    from tcpjson.core.limits import Limits
    from tcpjson.core.stats import ClosedConnection
    from tcpjson.server import TCPJSONServerFactory

#: How many rows a list has at the most.
MOST_ROWS = 1000
#: Seconds that something waits for a client before it counts as slow.
SLOW = 1.0

# Rows of the snapshot.
_SLOWEST = 10
_CLOSED = 20
# Connections of which one is looked for that is far away: to ask the system takes microseconds.
_ASKED = 100
# Seconds there and back from which on a client is far away.
_FAR = 0.25

# What is told of limits.
_LIMITS = (
    "max_connections",
    "max_connections_per_ip",
    "max_queue",
    "write_timeout",
    "handler_timeout",
    "max_handlers",
    "messages_per_second",
    "bytes_per_second",
    "rate_policy",
    "idle_timeout",
    "heartbeat",
)

# Plain words for each code of section 9; in braces stand limits.
_WORDS = {
    BadFrame.code: "it sent a frame of length 0, or a compressed one that is broken",
    TooLarge.code: "it sent a frame that is longer than the server takes",
    FrameTimeout.code: "it began a frame and did not complete it in time",
    BadJSON.code: "it sent what is not valid JSON",
    BadMessage.code: "it sent a message with a wrong field",
    UnknownType.code: "it sent a message of a type that nobody handles",
    Unauthenticated.code: "it asked for something before it had logged in",
    Forbidden.code: "it asked for what it may not do",
    AuthTimeout.code: "it did not log in within {auth_timeout}",
    AuthFailed.code: "it failed to log in, too often",
    RateLimited.code: "it sent more than its rate",
    SlowConsumer.code: (
        "it did not read what was sent to it: it took nothing for {write_timeout}, or more than {max_queue}"
        " waited for it"
    ),
    ServerFull.code: "there was no room: all connections were taken",
    TooManyConnections.code: "there were too many connections from its address",
    IdleTimeout.code: "it neither sent nor took anything for too long",
    HeartbeatTimeout.code: "it was silent and did not answer a ping",
    GoingAway.code: "the server shut down",
    Internal.code: "the server failed on a message; its log says how",
    HandlerTimeout.code: "a handler took longer than {handler_timeout}",
    CLIENT_CLOSED: "the client closed the connection",
    CONNECTION_LOST: "the connection broke",
    HANDSHAKE_FAILED: "the TLS handshake or the PROXY header failed, or did not come in time",
    CLOSED_BY_HANDLER: "the application closed it",
}


# Words.


def size(count: float) -> str:
    """Bytes for people: `2.3 MiB`."""
    if count < 1024:
        return f"{count:.0f} bytes"
    units = iter(("KiB", "MiB", "GiB"))
    unit = next(units)
    count /= 1024
    while count >= 1024 and (greater := next(units, None)) is not None:
        unit = greater
        count /= 1024
    return f"{count:.1f}".removesuffix(".0") + f" {unit}"


def seconds(time: float) -> str:
    """A span of time for people: `1.2 ms`, `4 s`, `3 h 5 min`."""
    if time < 0.001:
        return f"{time * 1e6:.0f} µs"
    if time < 1:
        return f"{time * 1e3:.3g} ms"
    if time < 60:
        return f"{int(time * 10) / 10:g} s"
    minutes, hours, days = int(time // 60), int(time // 3600), int(time // 86400)
    if not hours:
        left = int(time % 60)
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def why(code: str, limits: Limits) -> str:
    """Plain words for a code of section 9; one of the application's own stands for itself."""
    words = _WORDS.get(code)
    if words is None:
        return code
    return words.format(
        auth_timeout=seconds(limits.auth_timeout),
        handler_timeout=seconds(limits.handler_timeout),
        write_timeout=seconds(limits.write_timeout),
        max_queue=size(limits.max_queue),
    )


def _rate(limits: Limits) -> str:
    rates = []
    if limits.messages_per_second is not None:
        rates.append(f"{limits.messages_per_second:g} messages")
    if limits.bytes_per_second is not None:
        rates.append(size(limits.bytes_per_second))
    return " and ".join(rates)


def _what_is_wrong(row: Mapping[str, Any], reason: str, limits: Limits) -> str | None:
    """Why the client of a row is slow, in a sentence; None when there is nothing to say."""
    said = []
    queued, waits, held = row["queued_bytes"], row["waits_seconds"] or 0.0, row["held"]
    slow = queued and (waits >= SLOW or queued > limits.max_queue // 4)
    if slow:
        said.append(
            f"does not read, or too slowly: {size(queued)} wait for it, for {seconds(waits)}; closed"
            f" when it takes nothing for {seconds(limits.write_timeout)}, or at {size(limits.max_queue)}"
        )
    elif "answers" in held:
        said.append("does not read its answers: what it sends waits")
    if "rate" in held:
        said.append(f"sends more than its rate, {_rate(limits)} a second: what it sends waits")
    if "handlers" in held:
        said.append(
            f"its handlers are unfinished: {row['unfinished']}, and no more may be; what it sends waits"
        )
    if "auth" in held:
        said.append(
            "who it is is being checked"
            if row["state"] == State.AUTHENTICATING.value
            else "the application has not let it in yet"
        )
    if "paused" in held:
        said.append("paused by the application")
    # At a shutdown all are.
    if ("ending" in held or "closing" in held) and reason != GoingAway.code:
        said.append(f"is being closed: {why(reason, limits)}" if reason else "is being closed")
    if (row["round_trip_seconds"] or 0.0) >= _FAR:
        said.append(f"far away: {seconds(row['round_trip_seconds'])} there and back")
    return "; ".join(said) or None


# Connections.


def _wait(connection: Connection) -> float:
    """Rises with how long something has waited for a client; the least where nothing does."""
    since = connection.waits_since
    return -inf if since is None else -since


# By what connections can be sorted: the columns of a row that are one value. Nothing comes before anything.
_SORTS: dict[str, Callable[[Connection], Any]] = {
    "client": lambda connection: connection.client_id,
    "user": lambda connection: connection.user or "",
    "state": lambda connection: connection.status.value,
    "age_seconds": lambda connection: -connection.opened,
    "messages_in": lambda connection: connection.messages_in,
    "messages_out": lambda connection: connection.messages_out,
    "bytes_in": lambda connection: connection.bytes_in,
    "bytes_out": lambda connection: connection.bytes_out,
    "queued_bytes": lambda connection: connection.waiting,
    "waits_seconds": _wait,
    "round_trip_seconds": lambda connection: round_trip(connection.transport) or 0.0,
    "unfinished": lambda connection: connection.unfinished,
}


def _row(connection: Connection, now: float) -> dict[str, Any]:
    since = connection.waits_since
    return {
        "client": connection.client_id,
        "user": connection.user,
        "state": connection.status.value,
        "age_seconds": round(now - connection.opened, 3),
        "messages_in": connection.messages_in,
        "messages_out": connection.messages_out,
        "bytes_in": connection.bytes_in,
        "bytes_out": connection.bytes_out,
        "queued_bytes": connection.waiting,
        "waits_seconds": None if since is None else round(now - since, 3),
        "round_trip_seconds": round_trip(connection.transport),
        "held": list(connection.held),
        "unfinished": connection.unfinished,
    }


def _check_page(offset: int, limit: int) -> None:
    if offset < 0:
        raise ValueError("offset must be 0 or more")
    if not 1 <= limit <= MOST_ROWS:
        raise ValueError(f"limit must be from 1 to {MOST_ROWS}")


def connections(
    factory: TCPJSONServerFactory,
    *,
    sort: str = "client",
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> dict[str, Any]:
    """
    The connections there are, whatever their state: `limit` rows from the `offset`th on.

    Raises:
        ValueError: with a line that says what may be asked for.
    """
    if sort not in _SORTS:
        raise ValueError(f"sort must be one of {', '.join(_SORTS)}")
    _check_page(offset, limit)
    value = _SORTS[sort]
    choose = heapq.nlargest if descending else heapq.nsmallest
    # Of equals one is always the first, or some would be on no page, and some on two.
    first = choose(offset + limit, factory.connections, key=lambda each: (value(each), each.client_id))
    now = factory.clock.seconds()
    return {
        "total": len(factory.connections),
        "offset": offset,
        "limit": limit,
        "sort": sort,
        "descending": descending,
        "connections": [_row(connection, now) for connection in first[offset:]],
    }


def _closed_row(closed: ClosedConnection, limits: Limits) -> dict[str, Any]:
    return {
        "client": closed.client_id,
        "user": closed.user,
        "code": closed.code,
        "why": why(closed.code, limits),
        "detail": closed.detail,
        "age_seconds": round(closed.age, 3),
        "messages_in": closed.messages_in,
        "messages_out": closed.messages_out,
        "bytes_in": closed.bytes_in,
        "bytes_out": closed.bytes_out,
        "closed_at": closed.at,
    }


def closed(factory: TCPJSONServerFactory, *, offset: int = 0, limit: int = 100) -> dict[str, Any]:
    """
    The connections that closed, of the last 1,000, the latest first: `limit` rows from the `offset`th on.

    Raises:
        ValueError: with a line that says what may be asked for.
    """
    _check_page(offset, limit)
    latest = islice(reversed(factory.stats.closed), offset, offset + limit)
    return {
        "total": len(factory.stats.closed),
        "offset": offset,
        "limit": limit,
        "closed": [_closed_row(each, factory.limits) for each in latest],
    }


class Survey(NamedTuple):
    """What a look at all connections shows."""

    #: Bytes that wait for all clients together, and the most that wait for one.
    queued: int
    longest_queue: int
    #: For how many something has waited for over `SLOW` seconds.
    slow: int
    #: Unfinished handlers.
    unfinished: int
    #: Those for whom something waits, or whose messages do.
    suspects: list[Connection]


def survey(factory: TCPJSONServerFactory) -> Survey:
    """Look at all connections once."""
    queued = longest = slow = unfinished = 0
    suspects = []
    since = factory.clock.seconds() - SLOW
    for connection in factory.connections:
        unfinished += connection.unfinished
        if waiting := connection.waiting:
            queued += waiting
            longest = max(longest, waiting)
            slow += connection.waits_since is not None and connection.waits_since < since
            suspects.append(connection)
        elif connection.paused:
            suspects.append(connection)
    return Survey(queued, longest, slow, unfinished, suspects)


# Figures.


def percentile(bounds: Sequence[float], counts: Sequence[int], fraction: float) -> float | None:
    """
    The value that a fraction of a histogram's values do not exceed, as if those of one bound were spread
    evenly below it; the highest bound for those above all. None when there are no values.

    Args:
        bounds: rising, in seconds.
        counts: how many values belong to each bound, and, at the end, how many are above all.
        fraction: 0 to 1.
    """
    rank = fraction * sum(counts)
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and rank <= count:
            return lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return lower if counts[-1] else None


def _percentiles(histogram: Histogram) -> dict[str, Any]:
    bounds, counts, count = histogram.bounds, histogram.counts, histogram.count
    return {
        "count": count,
        "mean": histogram.sum / count if count else None,
        "p50": percentile(bounds, counts, 0.5),
        "p90": percentile(bounds, counts, 0.9),
        "p99": percentile(bounds, counts, 0.99),
        "over": counts[-1],
        "bounds": list(bounds),
        "counts": list(counts),
    }


def _counted(counts: Counter[str], limits: Limits) -> list[dict[str, Any]]:
    return [
        {"code": code, "count": count, "why": why(code, limits)}
        for code, count in counts.most_common()
        if count
    ]


def _types(factory: TCPJSONServerFactory) -> list[dict[str, Any]]:
    received, sent = factory.stats.received_by_type(), factory.stats.sent_by_type()
    rows = []
    for kind in {**received, **sent}:
        messages_in, bytes_in = received.get(kind, (0, 0))
        messages_out, bytes_out = sent.get(kind, (0, 0))
        if messages_in or messages_out:
            rows.append(
                {
                    "type": kind,
                    "messages_received": messages_in,
                    "bytes_received": bytes_in,
                    "messages_sent": messages_out,
                    "bytes_sent": bytes_out,
                }
            )
    return sorted(rows, key=lambda row: -(row["messages_received"] + row["messages_sent"]))


def _slowest(factory: TCPJSONServerFactory, suspects: list[Connection]) -> list[dict[str, Any]]:
    """
    The clients for whom most waits, then longest, then those of whom there is something to say, then those
    that are far away, of as many as can be asked how far they are.
    """
    now = factory.clock.seconds()
    worst = heapq.nlargest(_ASKED, suspects, key=lambda each: (each.waiting, _wait(each)))
    others = factory.connections.difference(worst) if len(worst) < _ASKED else ()
    rows = []
    for connection in islice(chain(worst, others), _ASKED):
        row = _row(connection, now)
        row["why"] = _what_is_wrong(row, connection.reason, factory.limits)
        rows.append(row)
    return heapq.nlargest(
        _SLOWEST,
        rows,
        key=lambda row: (
            row["queued_bytes"],
            row["waits_seconds"] or 0.0,
            row["why"] is not None,
            row["round_trip_seconds"] or 0.0,
        ),
    )


def snapshot(factory: TCPJSONServerFactory) -> dict[str, Any]:
    """
    All that the page shows, as JSON has it; times in seconds, sizes in bytes, None where there is nothing.
    What strangers wrote (`client`, `user`), and an application's own `code`, hold any characters.

    It looks at each connection, and asks the system of at most 100.

    Returns:
        * `version`, `time` (the time of day), `clock` (a steady one), `uptime_seconds`, `draining`;
        * `clients`, `connections`, `peak_clients`, `max_connections`, `unfinished_handlers`;
        * `totals` since the start, and `rates` of the last minute;
        * `types`, `errors`, `refused`, `disconnects`, `logins`: lists, what is most first, of what occurred;
          each error, refusal and end with plain words: `why`;
        * `queues`: `total_bytes`, `longest_bytes`, `slow_clients`;
        * `handling`, `lag`, and `handlers` by type: `count`, `mean`, `p50`, `p90`, `p99`, `over` (above all
          bounds), `bounds` and `counts` as of a `Histogram`;
        * `limits`, `certificate_days`;
        * `slowest`: at most 10 rows as of `connections`, and `why` each is slow, in words, or None;
        * `recently_closed`: at most 20 rows as of `closed`.
    """
    stats, limits = factory.stats, factory.limits
    now = factory.clock.seconds()
    looked = survey(factory)
    return {
        "version": __version__,
        "time": factory.timestamps.now(),
        "clock": now,
        "uptime_seconds": round(now - stats.started, 3),
        "draining": factory.draining,
        "clients": len(factory.clients),
        "connections": len(factory.connections),
        "peak_clients": stats.peak_clients,
        "max_connections": limits.max_connections,
        "unfinished_handlers": looked.unfinished,
        "totals": {
            "messages_in": stats.messages_in,
            "messages_out": stats.messages_out,
            "bytes_in": stats.bytes_in,
            "bytes_out": stats.bytes_out,
            "broadcasts": stats.broadcasts,
            "deliveries": stats.deliveries,
            "accepted": stats.connections,
            "refused": stats.refused.total(),
            "closed": stats.disconnects.total(),
            "errors": stats.errors.total(),
            "over_rate": stats.over_rate,
            "failed_logins": stats.failed_logins,
        },
        "rates": stats.rates(now),
        "types": _types(factory),
        "errors": _counted(stats.errors, limits),
        "refused": _counted(stats.refused, limits),
        "disconnects": _counted(stats.disconnects, limits),
        "logins": [
            {"mechanism": mechanism, "result": result, "count": count}
            for (mechanism, result), count in stats.logins.most_common()
        ],
        "queues": {
            "total_bytes": looked.queued,
            "longest_bytes": looked.longest_queue,
            "slow_clients": looked.slow,
        },
        "handling": _percentiles(stats.handling),
        "lag": _percentiles(stats.lag),
        "handlers": sorted(
            ({"type": kind, **_percentiles(histogram)} for kind, histogram in stats.awaited.items()),
            key=lambda row: -row["count"],
        ),
        "limits": {name: getattr(limits, name) for name in _LIMITS},
        "certificate_days": stats.certificate_days,
        "slowest": _slowest(factory, looked.suspects),
        "recently_closed": closed(factory, limit=_CLOSED)["closed"],
    }
