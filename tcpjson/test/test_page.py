"""The page: what it says, and that nothing a stranger wrote is more than text in it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.core.text import printable
from tcpjson.metrics import page
from tcpjson.metrics.page import figures, render
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given

Snapshot = dict[str, Any]

_BOUNDS = [0.001, 0.01, 0.1, 1.0]

# Elements without an end.
_EMPTY = {"meta", "link", "line", "path"}


def times(*counts: int) -> Snapshot:
    """The part of a snapshot that tells of a histogram with a count for each bound, and one more."""
    return {"bounds": _BOUNDS, "counts": [*counts, 0, 0, 0, 0, 0][:5]}


def row(**changes: Any) -> Snapshot:
    """A client of a snapshot that nothing is wrong with."""
    return {
        "client": "127.0.0.1:50000",
        "user": None,
        "state": "ready",
        "age_seconds": 5.0,
        "messages_in": 1200,
        "messages_out": 34,
        "bytes_in": 5000,
        "bytes_out": 6000,
        "queued_bytes": 0,
        "waits_seconds": None,
        "round_trip_seconds": None,
        "held": [],
        "unfinished": 0,
        "why": None,
        **changes,
    }


def slow(**changes: Any) -> Snapshot:
    """One that does not read."""
    return row(**{"queued_bytes": 2048, "waits_seconds": 4.0, "why": "does not read", **changes})


def closed(**changes: Any) -> Snapshot:
    """A connection of a snapshot that was closed for a fault, 12 seconds ago."""
    return {
        "client": "127.0.0.1:60000",
        "user": None,
        "code": "slow_consumer",
        "why": "it did not read",
        "detail": "",
        "age_seconds": 90.0,
        "messages_in": 3,
        "messages_out": 4,
        "bytes_in": 5,
        "bytes_out": 6,
        "closed_at": "2026-11-23T23:19:48.000Z",
        **changes,
    }


def snapshot(**changes: Any) -> Snapshot:
    """What `views.snapshot` returns of a server that nothing is wrong with."""
    names = ("messages_in", "messages_out", "bytes_in", "bytes_out")
    others = (
        "broadcasts",
        "deliveries",
        "accepted",
        "refused",
        "closed",
        "errors",
        "over_rate",
        "failed_logins",
    )
    return {
        "version": "1.2.0",
        "time": "2026-11-23T23:20:00.000Z",
        "clock": 1000.0,
        "uptime_seconds": 3900.0,
        "draining": False,
        "clients": 3,
        "connections": 4,
        "peak_clients": 9,
        "max_connections": None,
        "unfinished_handlers": 0,
        "totals": dict.fromkeys(names + others, 0),
        "rates": {f"{name}_per_second": 0.0 for name in names},
        "types": [],
        "errors": [],
        "refused": [],
        "disconnects": [],
        "logins": [],
        "queues": {"total_bytes": 0, "longest_bytes": 0, "slow_clients": 0},
        "handling": times(),
        "lag": times(),
        "handlers": [],
        "limits": {"max_queue": 8 * 1024 * 1024},
        "certificate_days": None,
        "slowest": [],
        "recently_closed": [],
        **changes,
    }


class Reader(HTMLParser):
    """Takes HTML apart: its elements with their attributes, and its texts."""

    def __init__(self, html: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.texts: list[str] = []
        self.others: list[str] = []
        self._open: list[str] = []
        self.feed(html.decode())
        self.close()
        if self._open:
            raise AssertionError(f"these have no end: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))
        if tag not in _EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        if self._open.pop() != tag:
            raise AssertionError(f"</{tag}> ends another")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]) and data.strip():
            self.texts.append(data.strip())

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def values(self, name: str) -> set[str | None]:
        """All values of an attribute."""
        return {value for _, attributes in self.elements for key, value in attributes if key == name}


def read(shown: Snapshot, earlier: Sequence[Snapshot] = ()) -> Reader:
    """The page with a snapshot, taken apart."""
    return Reader(render(figures(shown, earlier)))


class TestWhatItSays(SynchronousTestCase):
    """The words for a snapshot."""

    def attention(self, **changes: Any) -> list[list[str]]:
        """What is said above all else of a server."""
        found: list[list[str]] = figures(snapshot(**changes))["lists"]["attention"]
        return found

    def test_well(self) -> None:
        """Nothing is wrong, and that is said."""
        self.assertEqual(
            self.attention(slowest=[row()], recently_closed=[closed(code="client_closed")]),
            [["well", "Well", "No client is slow, and none was closed for a fault in the last 2 minutes."]],
        )

    def test_slow(self) -> None:
        """A slow client is named, with the reason."""
        found = self.attention(slowest=[slow(), slow(user="ada"), row()])
        self.assertEqual(
            found,
            [
                ["slow", "Slow", "127.0.0.1:50000: does not read."],
                ["slow", "Slow", "127.0.0.1:50000 (user ada): does not read."],
            ],
        )

    def test_many_slow(self) -> None:
        """Three are named, the others counted, those too that the snapshot does not hold."""
        self.assertEqual(self.attention(slowest=[slow()] * 5)[3:], [["slow", "Slow", "and 2 more"]])
        queues = {"total_bytes": 0, "longest_bytes": 0, "slow_clients": 1003}
        self.assertEqual(
            self.attention(slowest=[slow()] * 10, queues=queues)[3:], [["slow", "Slow", "and 1,000 more"]]
        )

    def test_closed(self) -> None:
        """Who was closed for a fault is named, with the reason, for two minutes."""
        old = closed(closed_at="2026-11-23T23:17:59.000Z")
        recent = closed(user="eve", detail="not_done_in_time", closed_at="2026-11-23T23:18:01.000Z")
        ahead = closed(closed_at="2026-11-23T23:20:05.000Z")
        moment = closed(closed_at="2026-11-23T23:19:59.500Z")
        usual = [closed(code=code) for code in ("client_closed", "going_away", "closed_by_handler")]
        self.assertEqual(
            self.attention(recently_closed=[moment, closed(), *usual, recent, old]),
            [
                ["closed", "Closed", "127.0.0.1:60000, just now: it did not read."],
                ["closed", "Closed", "127.0.0.1:60000, 12 s ago: it did not read."],
                [
                    "closed",
                    "Closed",
                    "127.0.0.1:60000 (user eve), 1 min 59 s ago: it did not read (not done in time).",
                ],
            ],
        )

        self.assertIn("just now", self.attention(recently_closed=[ahead])[0][2])

    def test_many_closed(self) -> None:
        """Three are named."""
        self.assertEqual(
            self.attention(recently_closed=[closed()] * 7)[3:],
            [["closed", "Closed", "and 4 more of the last 7"]],
        )

    def test_server(self) -> None:
        """What is wrong with the server itself comes first."""
        found = self.attention(
            draining=True,
            max_connections=4,
            certificate_days=2.5,
            lag=times(50, 0, 0, 50),
            slowest=[slow()],
        )
        self.assertEqual([level for level, *_ in found], ["server"] * 4 + ["slow"])
        text = "\n".join(line for *_, line in found)
        for part in ("shutting down", "by 982 ms or more", "all 4 connections", "ends in 2 d 12 h"):
            self.assertIn(part, text)
        (level, _, line), *_ = self.attention(certificate_days=-1)
        self.assertEqual((level, line), ("server", "Its certificate has ended."))
        fine = self.attention(max_connections=5, certificate_days=15, lag=times(100))
        self.assertEqual([level for level, *_ in fine], ["well"])

    def test_slowest(self) -> None:
        """A row tells what waits, for how long, and why; of those that are fine there are few."""
        wrong = slow(user="ada", round_trip_seconds=0.3)
        found = figures(snapshot(slowest=[row(), wrong, row(), row(), row()]))["rows"]["slowest"]
        self.assertEqual(
            found[0],
            ["slow", "127.0.0.1:50000", "does not read", "ada", "2 KiB", "4 s", "300 ms", "1,200 / 34"],
        )
        fine = ["fine", "127.0.0.1:50000", "nothing is wrong with it", "", "", "", "", "1,200 / 34"]
        self.assertEqual(found[1:], [fine] * 3)

    def test_last_closed(self) -> None:
        """A row tells why, with the code, when, and how long it stood."""
        found = figures(snapshot(recently_closed=[closed(user="eve"), closed(code="client_closed")]))["rows"]
        self.assertEqual(
            found["closed"][0],
            [
                "closed",
                "127.0.0.1:60000",
                "it did not read",
                "eve",
                "slow_consumer",
                "12 s ago",
                "1 min 30 s",
                "3 / 4",
            ],
        )
        self.assertEqual(found["closed"][1][0], "fine")

    def test_nothing_yet(self) -> None:
        """Empty tables say that they are."""
        self.assertEqual(
            figures(snapshot())["rows"],
            {
                "slowest": [["none", "No client is connected."]],
                "closed": [["none", "None has closed yet."]],
                "codes": [["none", "None yet."]],
                "types": [["none", "None yet."]],
            },
        )

    def test_codes(self) -> None:
        """Errors, refusals, ends and logins stand in one table."""
        found = figures(
            snapshot(
                errors=[{"code": "bad_json", "count": 1234, "why": "not valid"}],
                refused=[{"code": "server_full", "count": 2, "why": "no room"}],
                disconnects=[{"code": "client_closed", "count": 3, "why": "it went"}],
                logins=[
                    {"mechanism": "plain", "result": "authenticated", "count": 4},
                    {"mechanism": "token", "result": "authentication_failed", "count": 5},
                ],
            )
        )["rows"]["codes"]
        self.assertEqual(
            found,
            [
                ["", "error", "bad_json", "1,234", "not valid"],
                ["", "refused", "server_full", "2", "no room"],
                ["", "end", "client_closed", "3", "it went"],
                ["", "login", "plain", "4", "logged in"],
                ["", "login", "token", "5", "did not prove who it is"],
            ],
        )

    def test_types(self) -> None:
        """Types with messages both ways, and how long their handlers take."""
        kinds = ("messages_received", "bytes_received", "messages_sent", "bytes_sent")
        found = figures(
            snapshot(
                types=[
                    {"type": "echo", **dict(zip(kinds, (1000, 2048, 0, 0), strict=True))},
                    {"type": "order", **dict(zip(kinds, (1, 5, 2, 6), strict=True))},
                    {"type": "late", **dict(zip(kinds, (0, 0, 3, 7), strict=True))},
                ],
                handlers=[
                    {"type": "order", "p50": 0.5, "p99": 2.0},
                    {"type": "late", "p50": None, "p99": None},
                ],
            )
        )["rows"]["types"]
        self.assertEqual(
            found,
            [
                ["", "echo", "1,000, 2 KiB", "", ""],
                ["", "order", "1, 5 bytes", "2, 6 bytes", "500 ms, 99 % 2 s"],
                ["", "late", "", "3, 7 bytes", ""],
            ],
        )

    def test_before_there_is_an_earlier(self) -> None:
        """Rates are the last minute's, percentiles those since the start."""
        totals = {**snapshot()["totals"], "messages_in": 90_000, "bytes_out": 2**20, "errors": 7}
        rates = {**snapshot()["rates"], "messages_in_per_second": 1500.4, "bytes_out_per_second": 2048.0}
        found = figures(snapshot(totals=totals, rates=rates, handling=times(100)))
        texts, charts = found["texts"], found["charts"]
        self.assertEqual(texts["messages_in"], "1,500/s")
        self.assertEqual(texts["messages_in_note"], "90,000 since the start, the last minute's mean")
        self.assertEqual(texts["bytes_out"], "2 KiB/s")
        self.assertEqual(texts["bytes_out_note"], "1 MiB since the start, the last minute's mean")
        self.assertEqual(texts["handling"], "500 µs")
        self.assertEqual(texts["handling_note"], "the median; 99 % within 990 µs, since the start")
        self.assertEqual((texts["lag"], texts["lag_note"]), ("none", "nothing since the start"))
        self.assertEqual(texts["errors"], "7")
        self.assertEqual(charts["messages_in"], [1500.4, "1,500/s"])
        self.assertEqual(charts["bytes_out"], [2048.0, "2 KiB/s"])
        self.assertEqual(charts["handling"], [0.00099, "990 µs"])
        self.assertEqual(charts["lag"], [0, "0 µs"])
        self.assertEqual(charts["errors"], [0.0, "0/s"])

    def test_since_earlier(self) -> None:
        """Rates are counted from the last snapshot, percentiles from the first."""
        before = snapshot()["totals"]
        first = snapshot(clock=990.0, handling=times(1000), totals={**before, "messages_in": 1})
        last = snapshot(clock=998.0, totals={**before, "messages_in": 100, "bytes_in": 1024, "errors": 1})
        now = snapshot(
            handling=times(1000, 100), totals={**before, "messages_in": 105, "bytes_in": 5120, "errors": 5}
        )
        found = figures(now, [first, last])
        self.assertEqual(found["clock"], 1000.0)
        self.assertEqual(found["texts"]["messages_in"], "2.5/s")
        self.assertEqual(found["texts"]["messages_in_note"], "105 since the start")
        self.assertEqual(found["texts"]["bytes_in"], "2 KiB/s")
        self.assertEqual(found["texts"]["handling_note"], "the median; 99 % within 9.91 ms, in the last 10 s")
        self.assertEqual(found["charts"]["errors"], [2.0, "2/s"])

    def test_the_same_moment(self) -> None:
        """Two snapshots of one moment do no harm."""
        self.assertEqual(figures(snapshot(), [snapshot()])["texts"]["messages_in"], "0/s")

    def test_bounds(self) -> None:
        """What may be is shown beside what is."""
        found = figures(snapshot(max_connections=1000, connections=1))["texts"]
        self.assertEqual(found["clients_note"], "1 connection of 1,000; peak 9; 0 came, 0 refused")
        self.assertIn("4 connections; ", figures(snapshot())["texts"]["clients_note"])
        self.assertEqual(found["queues_note"], "0 slow clients; longest queue 0 bytes of 8 MiB")
        self.assertEqual(found["about"], "1.2.0 · up 1 h 5 min")


def _hostile() -> st.SearchStrategy[str]:
    pieces = [
        "<",
        ">",
        "&",
        '"',
        "'",
        "</script>",
        "<img src=x onerror=alert(1)>",
        "&lt;",
        "{{codes}}",
        "-->",
    ]
    return st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=5).map("".join)


def strange(text: Sequence[str]) -> Snapshot:
    """A snapshot with strangers' texts wherever one can be."""
    client, user, code, why, detail, kind = text
    counted = [{"code": code, "count": 1, "why": why}]
    return snapshot(
        version=kind,
        slowest=[slow(client=client, user=user, why=why)],
        recently_closed=[closed(client=client, user=user, code=code, why=why, detail=detail)],
        errors=counted,
        refused=counted,
        disconnects=counted,
        logins=[{"mechanism": code, "result": "authenticated", "count": 1}],
        types=[
            {"type": kind, "messages_received": 1, "bytes_received": 1, "messages_sent": 1, "bytes_sent": 1}
        ],
    )


class TestMarkup(SynchronousTestCase):
    """The page as HTML."""

    @given(st.lists(_hostile(), min_size=6, max_size=6))
    def test_strangers(self, text: list[str]) -> None:
        """Whatever strangers write is text, and adds nothing to the page but that."""
        plain = read(strange(["a"] * 6))
        found = read(strange(text))
        self.assertEqual(found.elements, plain.elements)
        self.assertEqual(found.others, plain.others)
        shown = printable(text[0], 64).strip()
        self.assertTrue(not shown or shown in found.texts)

    def test_unprintable(self) -> None:
        """What turns or breaks the words around it is spelled out, half a character too."""
        found = figures(snapshot(slowest=[slow(user="a\u202eb\ud800\n" + "c" * 300)]))
        line = found["lists"]["attention"][0][2]
        self.assertEqual(line, f"127.0.0.1:50000 (user a\\u202eb\\ud800\\n{'c' * 59}): does not read.")
        self.assertIn(b"a\\u202eb\\ud800\\n", render(found))

    def test_policy(self) -> None:
        """The policy allows the style and the script that are there, and nothing more."""
        text = render(figures(snapshot())).decode()
        for element in ("style", "script"):
            (inside,) = re.findall(f"<{element}[^>]*>(.*?)</{element}>", text, re.DOTALL)
            digest = b64encode(sha256(inside.encode()).digest()).decode()
            self.assertIn(f"{element}-src 'sha256-{digest}';", page.POLICY)
        self.assertTrue(page.POLICY.startswith("default-src 'none'; "))
        self.assertNotIn("unsafe", page.POLICY)
        for _, attributes in read(snapshot()).elements:
            for name, _ in attributes:
                self.assertFalse(name == "style" or name.startswith("on"), name)

    def test_self_contained(self) -> None:
        """Nothing comes from elsewhere."""
        found = read(snapshot())
        links = found.values("href") | found.values("src")
        for link in links:
            assert link is not None
            self.assertTrue(link.startswith("data:") or re.fullmatch(r"[a-z]+", link), link)
        self.assertIn("metrics", links)

    def test_rendered(self) -> None:
        """The words of `figures` are in the page, so that it can be read without a script."""
        shown = strange(["cli", "usr", "cod", "wherefore", "det", "knd"])
        found = read(shown)
        words = figures(shown)
        texts = set(found.texts)
        self.assertTrue(set(words["texts"].values()) <= texts)
        for line in words["lists"]["attention"]:
            self.assertTrue(set(line[1:]) <= texts, line)
        for rows in words["rows"].values():
            for _, *cells in rows:
                self.assertTrue({cell for cell in cells if cell} <= texts, cells)

    def test_wide_word(self) -> None:
        """A word for people goes across its table."""
        found = read(snapshot())
        self.assertIn("No client is connected.", found.texts)
        self.assertEqual(found.values("colspan"), {"7", "4"})

    def test_places(self) -> None:
        """Each place of the page that is kept up to date has something in `figures`, and the reverse."""
        found, words = read(snapshot()), figures(snapshot())
        self.assertEqual(found.values("data-text"), set(words["texts"]))
        self.assertEqual(found.values("data-rows"), {*words["rows"], "clients"})
        self.assertEqual(found.values("data-list"), set(words["lists"]))
        self.assertEqual(found.values("data-chart"), set(words["charts"]))

    def test_of_a_server(self) -> None:
        """The page of a server that has nothing to tell."""
        found = Reader(page.page(TCPJSONServerFactory(Clock())))
        self.assertIn("No client is connected.", found.texts)
