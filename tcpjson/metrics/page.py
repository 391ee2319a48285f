"""The page: what a server does, in words and figures, for people."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tcpjson.core.errors import CLIENT_CLOSED, CLOSED_BY_HANDLER, GoingAway
from tcpjson.core.text import printable
from tcpjson.metrics.views import percentile, seconds, size, snapshot

if TYPE_CHECKING:
    from tcpjson.server import TCPJSONServerFactory

_TEMPLATE = files("tcpjson.metrics").joinpath("page.html").read_text(encoding="utf-8")


def _source(element: str) -> str:
    """What a Content-Security-Policy calls the only style, or the only script, of the page."""
    (text,) = re.findall(f"<{element}>(.*?)</{element}>", _TEMPLATE, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


#: The Content-Security-Policy of the page: its own style and script, its own server, and nothing else.
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src {_source('script')}",
        f"style-src {_source('style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

# The parts of the template, with a name at each second place.
_PARTS = re.split(r"\{\{(\w+)\}\}", _TEMPLATE)

# Ends that nothing is wrong with.
_USUAL = frozenset({CLIENT_CLOSED, CLOSED_BY_HANDLER, GoingAway.code})
# How many of a kind are told of at the top, and for how many seconds a closed connection is among them.
_TOLD = 3
_TOLD_SECONDS = 120
# Seconds of lag from which on the server itself is slow.
_LAG = 0.1
# Days before the end of a certificate from which on it is told of.
_CERTIFICATE_DAYS = 14
# Characters of a name that are shown.
_NAME = 64

_TILES = (
    ("clients", "Clients"),
    ("messages_in", "Messages received"),
    ("messages_out", "Messages sent"),
    ("bytes_in", "Bytes received"),
    ("bytes_out", "Bytes sent"),
    ("handling", "Handling time"),
    ("lag", "Reactor lag"),
    ("queues", "Waiting in queues"),
    ("errors", "Errors"),
    ("unfinished", "Unfinished handlers"),
)

# The columns of the tables; a star marks the widest.
_TABLES = {
    "slowest": ("Client", "Why*", "User", "Waiting", "For", "Round trip", "Messages in / out"),
    "closed": ("Client", "Why*", "User", "Code", "Closed", "Stood", "Messages in / out"),
    "codes": ("What", "Code", "Count", "Meaning*"),
    "types": ("Type", "Received", "Sent", "Answered after"),
    "clients": (
        "Client",
        "User",
        "State",
        "Age",
        "Waiting",
        "For",
        "Round trip",
        "Messages in / out",
        "Bytes in / out",
    ),
}

Row = list[str]


def _name(text: str | None) -> str:
    """A stranger's text: cut, and without what turns, hides or breaks the words around it."""
    return "" if text is None else printable(text, _NAME)


def _who(row: Mapping[str, Any]) -> str:
    client, user = _name(row["client"]), _name(row["user"])
    return f"{client} (user {user})" if user else client


def _optional(time: float | None) -> str:
    return "" if time is None else seconds(time)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


def _plural(count: int, one: str) -> str:
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def _ago(row: Mapping[str, Any], now: datetime) -> float:
    """Seconds since a connection closed."""
    return (now - datetime.fromisoformat(row["closed_at"])).total_seconds()


def _ago_text(row: Mapping[str, Any], now: datetime) -> str:
    # Less than 0, even, when the time of day was set back.
    ago = int(_ago(row, now))
    return f"{seconds(ago)} ago" if ago > 0 else "just now"


def _closed_why(row: Mapping[str, Any]) -> str:
    detail = _name(row["detail"])
    why = printable(row["why"])
    return f"{why} ({detail.replace('_', ' ')})" if detail else why


def _attention(shown: Mapping[str, Any], now: datetime, lag: float | None) -> list[Row]:
    """What to look at: the level, a word, a sentence; the worst first."""
    found: list[Row] = []
    if shown["draining"]:
        found.append(["server", "Server", "It is shutting down: no client can connect any more."])
    if lag is not None and lag >= _LAG:
        text = f"It is busy, and late for everybody: one time of a hundred by {seconds(lag)} or more."
        found.append(["server", "Server", text])
    most = shown["max_connections"]
    if most is not None and shown["connections"] >= most:
        found.append(["server", "Server", f"It is full: all {_plural(most, 'connection')} are taken."])
    days = shown["certificate_days"]
    if days is not None and days < _CERTIFICATE_DAYS:
        text = "has ended" if days <= 0 else f"ends in {seconds(days * 86400)}"
        found.append(["server", "Server", f"Its certificate {text}."])
    slow = [row for row in shown["slowest"] if row["why"] is not None]
    found += [["slow", "Slow", f"{_who(row)}: {printable(row['why'])}."] for row in slow[:_TOLD]]
    more = max(len(slow), shown["queues"]["slow_clients"]) - _TOLD
    if more > 0:
        found.append(["slow", "Slow", f"and {more:,} more"])
    closed = [
        row
        for row in shown["recently_closed"]
        if row["code"] not in _USUAL and _ago(row, now) < _TOLD_SECONDS
    ]
    found += [
        ["closed", "Closed", f"{_who(row)}, {_ago_text(row, now)}: {_closed_why(row)}."]
        for row in closed[:_TOLD]
    ]
    if len(closed) > _TOLD:
        found.append(
            [
                "closed",
                "Closed",
                f"and {len(closed) - _TOLD} more of the last {len(shown['recently_closed'])}",
            ]
        )
    return found or [
        ["well", "Well", "No client is slow, and none was closed for a fault in the last 2 minutes."]
    ]


def _spread(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    """The median and the 99th percentile of a histogram since it was as before, or since the start."""
    bounds, counts = now["bounds"], now["counts"]
    if before is not None:
        counts = [count - then for count, then in zip(counts, before["counts"], strict=True)]
    return percentile(bounds, counts, 0.5), percentile(bounds, counts, 0.99)


def _spread_texts(median: float | None, worst: float | None, since: str) -> tuple[str, str]:
    if median is None or worst is None:
        return "none", f"nothing {since}"
    return seconds(median), f"the median; 99 % within {seconds(worst)}, {since}"


def _rows(found: list[Row], empty: str) -> list[Row]:
    return found or [["none", empty]]


def _slowest(shown: Mapping[str, Any]) -> list[Row]:
    slow = [row for row in shown["slowest"] if row["why"] is not None]
    others = [row for row in shown["slowest"] if row["why"] is None]
    return [
        [
            "fine" if row["why"] is None else "slow",
            _name(row["client"]),
            "nothing is wrong with it" if row["why"] is None else printable(row["why"]),
            _name(row["user"]),
            size(row["queued_bytes"]) if row["queued_bytes"] else "",
            _optional(row["waits_seconds"]),
            _optional(row["round_trip_seconds"]),
            f"{row['messages_in']:,} / {row['messages_out']:,}",
        ]
        for row in slow + others[:_TOLD]
    ]


def _closed(shown: Mapping[str, Any], now: datetime) -> list[Row]:
    return [
        [
            "fine" if row["code"] in _USUAL else "closed",
            _name(row["client"]),
            _closed_why(row),
            _name(row["user"]),
            _name(row["code"]),
            _ago_text(row, now),
            seconds(row["age_seconds"]),
            f"{row['messages_in']:,} / {row['messages_out']:,}",
        ]
        for row in shown["recently_closed"]
    ]


def _codes(shown: Mapping[str, Any]) -> list[Row]:
    kinds = (("errors", "error"), ("refused", "refused"), ("disconnects", "end"))
    rows = [
        ["", word, _name(row["code"]), f"{row['count']:,}", printable(row["why"])]
        for kind, word in kinds
        for row in shown[kind]
    ]
    for row in shown["logins"]:
        meaning = "logged in" if row["result"] == "authenticated" else "did not prove who it is"
        rows.append(["", "login", _name(row["mechanism"]), f"{row['count']:,}", meaning])
    return rows


def _types(shown: Mapping[str, Any]) -> list[Row]:
    awaited = {row["type"]: row for row in shown["handlers"]}
    rows = []
    for row in shown["types"]:
        times = awaited.get(row["type"], {"p50": None, "p99": None})
        answered = "" if times["p50"] is None else f"{seconds(times['p50'])}, 99 % {seconds(times['p99'])}"
        ways = [
            f"{row[f'messages_{way}']:,}, {size(row[f'bytes_{way}'])}" if row[f"messages_{way}"] else ""
            for way in ("received", "sent")
        ]
        rows.append(["", _name(row["type"]), *ways, answered])
    return rows


def figures(shown: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """
    The words of the page, and the numbers of its charts.

    Args:
        shown: the snapshot to show.
        earlier: those before it, the oldest first. Rates are counted from the last of them, percentiles from
            the first; without one, rates are those of the last minute, and percentiles those since the start.

    Returns:
        `clock` (steady seconds), and by their names in page.html: `texts`; `rows` of tables, each a level and
        cells, one alone if it is a word for people; `lists` of lines, each a level, a title and a text;
        `charts`, each a number and the same for people.
    """
    now = datetime.fromisoformat(shown["time"])
    totals, queues = shown["totals"], shown["queues"]
    rates = {name.removesuffix("_per_second"): value for name, value in shown["rates"].items()}
    errors = 0.0
    over, since = ", the last minute's mean", "since the start"
    handling_before = lag_before = None
    if earlier:
        span = max(shown["clock"] - earlier[-1]["clock"], 1e-3)
        then = earlier[-1]["totals"]
        rates = {name: (totals[name] - then[name]) / span for name in rates}
        errors = (totals["errors"] - then["errors"]) / span
        handling_before, lag_before = earlier[0]["handling"], earlier[0]["lag"]
        over, since = "", f"in the last {seconds(round(shown['clock'] - earlier[0]['clock']))}"
    handling, handling_worst = _spread(shown["handling"], handling_before)
    lag, lag_worst = _spread(shown["lag"], lag_before)
    most = "" if shown["max_connections"] is None else f" of {shown['max_connections']:,}"
    texts = {
        "about": f"{shown['version']} · up {seconds(shown['uptime_seconds'])}",
        "clients": f"{shown['clients']:,}",
        "clients_note": f"{_plural(shown['connections'], 'connection')}{most};"
        f" peak {shown['peak_clients']:,}; {totals['accepted']:,} came, {totals['refused']:,} refused",
        "queues": size(queues["total_bytes"]),
        "queues_note": f"{_plural(queues['slow_clients'], 'slow client')};"
        f" longest queue {size(queues['longest_bytes'])} of {size(shown['limits']['max_queue'])}",
        "errors": f"{totals['errors']:,}",
        "errors_note": f"since the start; {totals['failed_logins']:,} failed logins,"
        f" {totals['over_rate']:,} times over the rate",
        "unfinished": f"{shown['unfinished_handlers']:,}",
        "unfinished_note": "the server waits for them to answer",
    }
    for way in ("in", "out"):
        messages, volume = f"messages_{way}", f"bytes_{way}"
        texts[messages] = f"{_rate(rates[messages])}/s"
        texts[f"{messages}_note"] = f"{totals[messages]:,} since the start{over}"
        texts[volume] = f"{size(rates[volume])}/s"
        texts[f"{volume}_note"] = f"{size(totals[volume])} since the start{over}"
    texts["handling"], texts["handling_note"] = _spread_texts(handling, handling_worst, since)
    texts["lag"], texts["lag_note"] = _spread_texts(lag, lag_worst, since)
    return {
        "clock": shown["clock"],
        "texts": texts,
        "rows": {
            "slowest": _rows(_slowest(shown), "No client is connected."),
            "closed": _rows(_closed(shown, now), "None has closed yet."),
            "codes": _rows(_codes(shown), "None yet."),
            "types": _rows(_types(shown), "None yet."),
        },
        "lists": {"attention": _attention(shown, now, lag_worst)},
        "charts": {
            "clients": [shown["clients"], texts["clients"]],
            **{name: [value, _volume(name, value)] for name, value in rates.items()},
            "handling": [handling_worst or 0, seconds(handling_worst or 0)],
            "lag": [lag_worst or 0, seconds(lag_worst or 0)],
            "queues": [queues["total_bytes"], texts["queues"]],
            "errors": [errors, f"{_rate(errors)}/s"],
            "unfinished": [shown["unfinished_handlers"], texts["unfinished"]],
        },
    }


def _volume(name: str, rate: float) -> str:
    return f"{_rate(rate) if name.startswith('messages') else size(rate)}/s"


def _tiles(texts: Mapping[str, str]) -> str:
    return "".join(
        f'<div><dt>{title}</dt><dd class="value" data-text="{name}">{escape(texts[name])}</dd>'
        f'<dd class="note" data-text="{name}_note">{escape(texts[f"{name}_note"])}</dd>'
        f'<dd class="chart" data-chart="{name}" aria-hidden="true"><svg viewBox="0 0 120 34"'
        ' preserveAspectRatio="none"><line x1="0" y1="33.5" x2="120" y2="33.5"/><path/></svg><small></small>'
        "</dd></div>"
        for name, title in _TILES
    )


def _table(name: str, rows: Sequence[Row]) -> str:
    titles = _TABLES[name]
    heads = "".join(
        f'<th scope="col" role="columnheader"{" class=long" * title.endswith("*")}>{title.rstrip("*")}</th>'
        for title in titles
    )
    body = []
    for level, *cells in rows:
        span = f' colspan="{len(titles)}"' if len(cells) == 1 else ""
        columns = "".join(
            f'<td role="cell"{span} data-label="{title.rstrip("*")}">{escape(cell)}</td>'
            for title, cell in zip(titles, cells, strict=False)
        )
        body.append(f'<tr role="row" data-level="{level}">{columns}</tr>')
    # On a phone a row is a card: the roles say that it is one of a table all the same.
    return (
        f'<div class="wide"><table role="table" aria-labelledby="{name}-title"><thead role="rowgroup">'
        f'<tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup" data-rows="{name}">{"".join(body)}</tbody></table></div>'
    )


def render(shown: Mapping[str, Any]) -> bytes:
    """The page as HTML, in UTF-8, with `figures`."""
    contents = {
        "about": escape(shown["texts"]["about"]),
        "attention": "".join(
            f'<li data-level="{level}"><b>{title}</b><span>{escape(text)}</span></li>'
            for level, title, text in shown["lists"]["attention"]
        ),
        "tiles": _tiles(shown["texts"]),
        "clients": _table("clients", ()),
        **{name: _table(name, rows) for name, rows in shown["rows"].items()},
    }
    return "".join(contents[part] if index % 2 else part for index, part in enumerate(_PARTS)).encode()


def page(factory: TCPJSONServerFactory) -> bytes:
    """The page as HTML, in UTF-8, with what the server does now; it goes with `POLICY`."""
    return render(figures(snapshot(factory)))
