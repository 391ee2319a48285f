"""The page of the benchmark: that it needs nothing else, and that all in it is only text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench.html import page
from tcpjson.bench.results import Latency, Machine, Ratio, Result, Run, Skipped
from tcpjson.test.hypo import given

# Elements that have no end.
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements and texts; an element that is not ended is an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        if self._open:
            raise AssertionError(f"not ended: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            raise AssertionError(f"ended, but not begun: {tag}")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "html"):
            self.texts.append(data)
            if self._open[-1] in ("td", "th"):
                self.tables[-1][-1][-1] += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def run_of(**fields: Any) -> Run:
    known: dict[str, Any] = {
        "started": "2026-01-01T00:00:00Z",
        "version": "1.2",
        "machine": Machine(
            processor="Model 7",
            processors=2,
            memory_bytes=3 * 2**30,
            system="System 8",
            python="CPython 9",
            packages={"msgspec": "0.1", "Twisted": "2"},
        ),
        "command": ["python", "-m", "tcpjson.bench", "--html", "a page.html"],
    }
    return Run(**{**known, **fields})


def result(label: str = "echo", **fields: Any) -> Result:
    known: dict[str, Any] = {
        "scenario": "small",
        "clients": 10,
        "seconds": 1.0,
        "messages": 100,
        "per_second": 12345.6,
        "bytes_per_second": 1e6,
        "checked": 1000,
    }
    return Result(label=label, **{**known, **fields})


class PageTests(SynchronousTestCase):
    def test_nothing_measured(self) -> None:
        found = Page(page(run_of()))
        self.assertIn("Nothing was measured.", found.texts)
        self.assertEqual(found.tables, [])
        self.assertNotIn("svg", found.tags())

    def test_machine_and_command(self) -> None:
        found = Page(page(run_of(server="tcpjson/7", where="[::1]:9999")))
        for words in (
            "tcpjson 1.2, 2026-01-01T00:00:00Z",
            "Model 7 (2 usable)",
            "3.0 GiB",
            "System 8",
            "CPython 9",
            "msgspec 0.1, Twisted 2",
            "tcpjson/7, [::1]:9999",
            "python -m tcpjson.bench --html 'a page.html'",
        ):
            self.assertIn(words, found.texts)

    def test_unknown_machine(self) -> None:
        machine = Machine(processor="p", processors=1, memory_bytes=None, system="s", python="3", packages={})
        found = Page(page(run_of(machine=machine)))
        self.assertIn("not named, started by the benchmark", found.texts)
        self.assertNotIn("memory", found.texts)
        self.assertNotIn("packages", found.texts)

    def test_results(self) -> None:
        """Figures stand under their heads; columns in which nothing stands are not there."""
        full = result(
            "paced",
            server="other",
            clients=1000,
            size=10_000,
            in_flight=50,
            rate=5000.0,
            server_cpu_us=1.234,
            server_cpu=0.5,
            generator_cpu=0.25,
            memory_bytes=1759.0,
            wrong=3,
            limited_by="server",
        )
        [table] = Page(page(run_of(results=[full, result(server_cpu_us=12_345.0)]))).tables
        self.assertEqual(
            dict(zip(table[0], table[1], strict=True)),
            {
                "work": "paced",
                "server": "other",
                "clients x in flight": "1,000 x 50",
                "size": "10 kB",
                "a second": "12.3k",
                "bytes a second": "1 MB",
                "server's CPU a message": "1.23 µs",
                "server's CPU": "50%",
                "generator's CPU": "25%",
                "memory a connection": "1.76 kB",
                "wrong": "3",
                "limited by": "server",
            },
        )
        second = dict(zip(table[0], table[2], strict=True))
        empty = ("size", "generator's CPU", "wrong", "memory a connection")
        self.assertEqual([second[name] for name in empty], [""] * len(empty))
        self.assertEqual(second["clients x in flight"], "10")
        self.assertEqual(second["server's CPU a message"], "12,345 µs")
        [table] = Page(page(run_of(results=[result()]))).tables
        self.assertEqual(
            table[0],
            ["work", "server", "clients x in flight", "a second", "bytes a second", "limited by"],
        )

    def test_wrong_replies(self) -> None:
        """They are said before anything else, loudly."""
        found = Page(page(run_of(results=[result(wrong=2), result()])))
        self.assertIn("2 of 2,000 replies were wrong.", found.texts)
        self.assertIn(("p", {"class": "bad"}), found.elements)
        found = Page(page(run_of(results=[result(), result()])))
        self.assertIn("2,000 replies were checked; all were right.", found.texts)
        self.assertNotIn(("p", {"class": "bad"}), found.elements)

    def test_latency(self) -> None:
        """A column for each percentile that any result has."""
        results = [
            result(latency=Latency([(50.0, 0.001), (99.9, 0.002)], 0.0012, 0.5, 1234)),
            result(rate=20_000.0, latency=Latency([(50.0, 0.003)], 0.003, 0.004, 5)),
            result("other"),
        ]
        table = Page(page(run_of(results=results))).tables[-1]
        self.assertEqual(
            table,
            [
                ["work", "server", "50 %", "99.9 %", "most", "mean", "replies"],
                ["echo", "tcpjson", "1 ms", "2 ms", "500 ms", "1.2 ms", "1,234"],
                ["echo", "tcpjson", "3 ms", "", "4 ms", "3 ms", "5"],
            ],
        )

    def test_ratios_and_what_was_left_out(self) -> None:
        ratio = Ratio(scenario="small", label="echo", server="Node", rounds=3, throughput=1.5, cpu=0.123)
        run = run_of(ratios=[ratio], skipped=[Skipped("tls", "Node", "it speaks no TLS")])
        ratios, skipped = Page(page(run)).tables
        self.assertEqual(ratios[1], ["echo", "Node", "1.50", "0.12", "", "3"])
        self.assertEqual(skipped[1], ["tls", "Node", "it speaks no TLS"])

    def test_notes(self) -> None:
        found = Page(page(run_of(results=[result(note="slow line"), result()])))
        self.assertIn("echo, tcpjson: slow line", found.texts)
        self.assertIn("li", found.tags())
        self.assertNotIn("li", Page(page(run_of(results=[result()]))).tags())

    def test_charts(self) -> None:
        results = [result(size=size) for size in (100, 1000)]
        self.assertIn("Throughput by size", Page(page(run_of(results=results))).texts)

    def test_nothing_from_elsewhere(self) -> None:
        """No element leads out of the page, and a browser is told to load nothing."""
        results = [result(size=size, latency=Latency([(50.0, 1.0)], 1.0, 1.0, 1)) for size in (1, 2)]
        source = page(run_of(results=results, ratios=[]))
        found = Page(source)
        allowed = {
            *("html", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "dt", "dd", "pre", "div"),
            *("table", "thead", "tbody", "tr", "th", "td"),
            *("svg", "desc", "rect", "text", "path", "g", "polyline", "circle"),
        }
        self.assertEqual(found.tags() - allowed, set())
        for _, attributes in found.elements:
            self.assertEqual(attributes.keys() & {"src", "href", "action", "onload", "onerror"}, set())
        self.assertNotIn("url(", source)
        self.assertNotIn("@import", source)
        policies = [each["content"] for tag, each in found.elements if tag == "meta" and "content" in each]
        self.assertIn("default-src 'none'; style-src 'unsafe-inline'", policies)
        self.assertIn("width=device-width, initial-scale=1", policies)
        self.assertIn("prefers-color-scheme:dark", source)

    @given(st.text(max_size=30) | st.just("</td></svg><script>alert(1)</script><img src=x onerror=y>"))
    def test_any_words(self, words: str) -> None:
        """Whatever stands in a run stays text, and the page can be written."""
        machine = Machine(
            processor=words, processors=1, memory_bytes=1, system=words, python=words, packages={words: words}
        )
        timed = Latency([(50.0, 0.1), (90.0, 0.2)], 0.1, 1.0, 1)
        run = run_of(
            started=words,
            version=words,
            server=words,
            where=words,
            machine=machine,
            command=[words],
            results=[
                result(words, server=words, size=size, note=words, limited_by=words, latency=timed)
                for size in (1, 2)
            ],
            ratios=[Ratio(scenario=words, label=words, server=words, rounds=1, cpu=1.0)],
            skipped=[Skipped(words, words, words)],
        )
        source = page(run)
        source.encode()
        found = Page(source)
        self.assertEqual(found.tags() & {"script", "img"}, set())
        self.assertEqual(len(found.tables), 4)

    def test_odd_figures(self) -> None:
        """What a clock or a system said wrongly breaks nothing."""
        for value in (0.0, -1.0, 1e300, float("inf"), float("nan")):
            odd = result(
                per_second=value,
                bytes_per_second=value,
                rate=value,
                server_cpu=value,
                server_cpu_us=value,
                generator_cpu=value,
                memory_bytes=value,
                latency=Latency([(value, value), (50.0, value)], value, value, 0),
            )
            ratio = Ratio(scenario="a", label="a", server="a", rounds=0, throughput=value, cpu=value)
            Page(page(run_of(results=[odd, odd], ratios=[ratio])))

    def test_very_many(self) -> None:
        """The page stays one that a browser can show."""
        many = [result(note="x" * 10_000, latency=Latency([(50.0, 1.0)], 1.0, 1.0, 1))] * 5000
        ratios = [Ratio(scenario="a", label="a", server="a", rounds=1)] * 5000
        source = page(run_of(results=many, ratios=ratios, command=["y" * 100_000]))
        self.assertLess(len(source), 2_000_000)
        self.assertEqual([len(table) for table in Page(source).tables], [1001] * 3)
