"""The charts of the benchmark: what they show of a run, and that nothing in one can break them."""

from __future__ import annotations

import io
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench.charts import (
    MOST_LINES,
    WIDTH,
    Axis,
    Bar,
    Series,
    amount,
    bars,
    charts,
    clients,
    duration,
    latency,
    lines,
    main,
    ratios,
    save,
    size_of,
    sizes,
    text,
)
from tcpjson.bench.results import Latency, Machine, Ratio, Result, Run
from tcpjson.test.hypo import given

SVG = "{http://www.w3.org/2000/svg}"
#: What each character takes of the width of a drawing, about: those of fonts differ.
LETTER = 6.2
LINE = 10.0

MACHINE = Machine(
    processor="Model 7", processors=2, memory_bytes=2**34, system="Linux", python="3.11", packages={"a": "1"}
)


def result(scenario: str = "small", **fields: Any) -> Result:
    """A result with these fields."""
    given_fields = {
        "label": f"work {scenario}",
        "clients": 10,
        "seconds": 1.0,
        "messages": 100,
        "per_second": 100.0,
        "bytes_per_second": 1000.0,
        "checked": 100,
    }
    return Result(scenario=scenario, **{**given_fields, **fields})


def timed(*percentiles: tuple[float, float], **fields: Any) -> Result:
    """A result with these percentiles of latency."""
    return result("latency", latency=Latency(list(percentiles), 0.001, 0.1, 100), **fields)


def ratio(label: str = "echo", server: str = "other", **figures: float) -> Ratio:
    return Ratio(scenario="small", label=label, server=server, rounds=3, **figures)


def run_of(results: Sequence[Result] = (), found: Sequence[Ratio] = ()) -> Run:
    return Run(
        started="2026-01-01T00:00:00Z",
        version="1",
        machine=MACHINE,
        command=["python", "-m", "tcpjson.bench"],
        results=list(results),
        ratios=list(found),
    )


class Drawing:
    """What a drawing shows."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)
        self.texts = [each.text or "" for each in self.root.iter(f"{SVG}text")]
        self.title = self.root.findtext(f"{SVG}title")
        self.told = self.root.findtext(f"{SVG}desc") or ""

    def all(self, tag: str, kind: str = "") -> list[ElementTree.Element]:
        return [each for each in self.root.iter(f"{SVG}{tag}") if kind in each.get("class", "").split(" ")]

    def lines(self) -> list[list[tuple[float, float]]]:
        """The points of each line."""
        return [
            [
                (float(across), float(up))
                for across, up in re.findall(r"([\d.]+),([\d.]+)", each.get("points", ""))
            ]
            for each in self.all("polyline", "line")
        ]

    def place(self, words: str) -> tuple[float, float]:
        """Where a text stands."""
        [found] = [each for each in self.root.iter(f"{SVG}text") if each.text == words]
        return float(found.get("x", "")), float(found.get("y", ""))

    def boxes(self) -> list[tuple[float, float, float, float, str]]:
        """Left, top, right and bottom of each text, about."""
        found = []
        for each in self.root.iter(f"{SVG}text"):
            words = each.text or ""
            across, bottom = float(each.get("x", "")), float(each.get("y", ""))
            width = len(words) * LETTER
            left = across - {"middle": width / 2, "end": width}.get(each.get("text-anchor", ""), 0.0)
            found.append((left, bottom - LINE, left + width, bottom, words))
        return found

    def faults(self) -> list[str]:
        """Texts that run into one another or out of the drawing, and numbers that are none."""
        left, top, width, height = (float(word) for word in self.root.get("viewBox", "").split())
        wrong = []
        boxes = self.boxes()
        for number, box in enumerate(boxes):
            if box[0] < left or box[1] < top or box[2] > left + width or box[3] > top + height:
                wrong.append(f"out of the drawing: {box}")
            for other in boxes[:number]:
                apart = box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
                if not apart and box[4] and other[4]:
                    wrong.append(f"{box} runs into {other}")
        for each in self.root.iter():
            for name in ("x", "y", "cx", "cy", "width", "height", "points", "d"):
                if re.search("nan|inf|e", value := each.get(name, "")):
                    wrong += [f"{each.tag} {name}={value}"]
            if each.tag == f"{SVG}circle" and not 0 <= float(each.get("cx", "")) <= WIDTH:
                wrong.append(f"a point out of the drawing: {each.get('cx')}")
        return wrong


class WordsTests(SynchronousTestCase):
    def test_durations(self) -> None:
        for seconds, words in (
            (0, "0 ns"),
            (5e-9, "5 ns"),
            (85e-6, "85 µs"),
            (0.00012345, "123 µs"),
            (0.0009999, "1 ms"),
            (0.0015, "1.5 ms"),
            (0.99999, "1 s"),
            (3600, "3600 s"),
            (2e-13, "0.0002 ns"),
            (2e7, "2.0e+07 s"),
            (2e-15, "2.0e-06 ns"),
        ):
            self.assertEqual(duration(seconds), words)

    def test_sizes(self) -> None:
        for count, words in (
            (0, "0 B"),
            (100, "100 B"),
            (999.9, "1 kB"),
            (10_000, "10 kB"),
            (1.5e6, "1.5 MB"),
        ):
            self.assertEqual(size_of(count), words)
        self.assertEqual(size_of(2e9), "2 GB")

    def test_amounts(self) -> None:
        for count, words in (
            (0, "0"),
            (3.14159, "3.14"),
            (99.99, "100"),
            (1234.4, "1,234"),
            (9999.7, "10k"),
            (123_456, "123k"),
            (999_900, "1M"),
            (2_500_000, "2.5M"),
            (1e9, "1G"),
        ):
            self.assertEqual(amount(count), words)

    def test_text(self) -> None:
        self.assertEqual(text("<a href='\"'>&"), "&lt;a href=&#x27;&quot;&#x27;&gt;&amp;")
        self.assertEqual(text("a\x00b\nc\u202ed\ud800"), "a\ufffdb\ufffdc\ufffdd\ufffd")
        self.assertEqual(text("abcdef", 4), "abc…")
        self.assertEqual(text("abcd", 4), "abcd")
        self.assertEqual(text(5), "5")


class LatencyTests(SynchronousTestCase):
    def test_places(self) -> None:
        """Each nine more is as far from the one before, and ten times the time as far up."""
        drawing = Drawing(latency([timed((90.0, 0.001), (99.0, 0.01), (99.9, 0.1), rate=100.0)]))
        [[first, second, third]] = drawing.lines()
        self.assertApproximates(second[0] - first[0], third[0] - second[0], 0.2)
        self.assertApproximates(second[1] - first[1], third[1] - second[1], 0.2)
        self.assertLess(first[0], third[0])
        self.assertGreater(first[1], third[1])
        self.assertApproximates(drawing.place("99 %")[0], second[0], 0.2)
        self.assertApproximates(drawing.place("10 ms")[1] - 4, second[1], 0.2)
        self.assertEqual(drawing.title, "Latency by percentile")
        self.assertIn("1 ms at 90 %, 10 ms at 99 %, 100 ms at 99.9 %", drawing.told)

    def test_the_paced_ones_only(self) -> None:
        points = (50.0, 0.001), (99.0, 0.01)
        drawing = Drawing(latency([timed(*points, rate=10.0), timed(*points), result()]))
        self.assertEqual(len(drawing.lines()), 1)
        self.assertEqual(len(Drawing(latency([timed(*points), timed(*points)])).lines()), 2)

    def test_names(self) -> None:
        """What is common to all lines is said once."""
        points = (50.0, 0.001), (99.0, 0.01)

        def names(*results: Result) -> list[str]:
            texts = Drawing(latency(results)).texts
            return [each for each in texts if re.search("work|left|right", each)]

        one, two = (timed(*points, server=server, label="work") for server in ("left", "right"))
        other = timed(*points, server="left", label="more work")
        self.assertEqual(names(one), ["work", "left"])
        self.assertEqual(names(one, two), ["work", "left", "right"])
        self.assertEqual(names(one, other), ["work", "more work"])
        self.assertEqual(names(two, other), ["right: work", "left: more work"])

    def test_nothing(self) -> None:
        self.assertEqual(latency([]), "")
        self.assertEqual(latency([result()]), "")
        self.assertEqual(latency([timed()]), "")
        # 100 would stand infinitely far; there are no times below nothing.
        self.assertEqual(latency([timed((100.0, 1.0), (-1.0, 1.0), (50.0, 0.0), (math.nan, 1.0))]), "")

    def test_one_point(self) -> None:
        drawing = Drawing(latency([timed((0.0, 0.001))]))
        self.assertEqual(len(drawing.all("circle", "dot")), 2)
        self.assertEqual(drawing.lines(), [])
        self.assertEqual(drawing.faults(), [])


class ThroughputTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        """A line for each server, from small to large, the best where a size comes twice."""
        drawing = Drawing(
            sizes(
                [
                    result("large", size=10_000, per_second=10.0),
                    result("sizes", size=100, per_second=1000.0),
                    result("sizes", size=1000, per_second=100.0),
                    result("small", size=100, per_second=900.0),
                    result("small", size=100, per_second=500.0, server="other"),
                    result("tls", size=100, per_second=7e6),
                    result("scaling", size=100, per_second=7e6),
                ]
            )
        )
        [[first, second, third]] = drawing.lines()
        self.assertLess(first[0], second[0])
        self.assertApproximates(second[0] - first[0], third[0] - second[0], 0.2)
        self.assertApproximates(second[1] - first[1], third[1] - second[1], 0.2)
        self.assertIn("tcpjson: 1,000 at 100 B, 100 at 1 kB, 10 at 10 kB; other: 500 at 100 B.", drawing.told)
        self.assertEqual({"tcpjson", "other"} - set(drawing.texts), set())

    def test_clients(self) -> None:
        """From nothing up, so that lengths can be compared."""
        drawing = Drawing(
            clients([result("scaling", clients=count, per_second=count * 10.0) for count in (1, 10, 50)])
        )
        [[first, second, third]] = drawing.lines()
        self.assertEqual(drawing.texts.count("0"), 1)
        zero = drawing.place("0")[1] - 4
        self.assertApproximates((zero - second[1]) / (zero - first[1]), 10, 1)
        self.assertApproximates((zero - third[1]) / (zero - second[1]), 5, 0.1)
        self.assertEqual({"1", "10", "50", "clients"} - set(drawing.texts), set())

    def test_nothing(self) -> None:
        self.assertEqual(
            sizes([result(size=100), result(size=100, server="other"), result("idle", size=7)]), ""
        )
        self.assertEqual(clients([result("scaling", clients=5), result("small", clients=9)]), "")


class RatioTests(SynchronousTestCase):
    def test_bars(self) -> None:
        """They begin at 1; which ones are good is told by colour."""
        found = [
            ratio("echo", "a", cpu=0.5),
            ratio("echo", "b", cpu=2.0),
            ratio("cast", "c", cpu=1.0),
            ratio(),
        ]
        drawing = Drawing(ratios(found, "cpu"))
        half, double, same = drawing.all("rect", "dot")
        ends = [(float(each.get("x", "")), float(each.get("width", ""))) for each in (half, double, same)]
        one = ends[1][0]
        self.assertApproximates(ends[0][0] + ends[0][1], one, 0.2)
        self.assertApproximates(ends[0][1], ends[1][1], 0.2)
        self.assertEqual(ends[2][1], 1.0)
        self.assertEqual([each.get("class") for each in (half, double, same)], ["dot c0", "dot c1", "dot c0"])
        self.assertEqual({"echo", "cast", "a", "b", "c", "0.50", "2.00", "1.00"} - set(drawing.texts), set())
        self.assertEqual(drawing.texts.count("echo"), 1)
        self.assertIn("less than 1 is better", drawing.texts)
        self.assertIn("echo, a: 0.50; echo, b: 2.00", drawing.told)

    def test_more_is_better(self) -> None:
        drawing = Drawing(ratios([ratio(throughput=0.5), ratio(throughput=2.0)], "throughput"))
        self.assertEqual([each.get("class") for each in drawing.all("rect", "dot")], ["dot c1", "dot c0"])
        self.assertIn("more than 1 is better", drawing.texts)

    def test_nothing(self) -> None:
        self.assertEqual(ratios([], "cpu"), "")
        self.assertEqual(ratios([ratio(cpu=1.0)], "memory"), "")
        for value in (0.0, -1.0, math.inf, math.nan):
            self.assertEqual(ratios([ratio(cpu=value)], "cpu"), "")


class RunTests(SynchronousTestCase):
    RESULTS = (
        *(result("sizes", size=size) for size in (100, 1000)),
        *(result("scaling", clients=count) for count in (1, 10)),
        timed((50.0, 0.1), (90.0, 0.2)),
    )

    def test_names(self) -> None:
        self.assertEqual(charts(run_of()), {})
        self.assertEqual(list(charts(run_of([result()]))), [])
        found = charts(run_of(self.RESULTS, [ratio(throughput=2.0, cpu=0.5, memory=1.5)]))
        self.assertEqual(list(found), ["latency", "sizes", "clients", "throughput", "cpu", "memory"])
        ids = [each for svg in found.values() for each in re.findall(r' id="(.*?)"', svg)]
        self.assertEqual(len(ids), 12)
        self.assertEqual(len(set(ids)), 12)
        for svg in found.values():
            drawing = Drawing(svg)
            self.assertEqual(drawing.faults(), [])
            self.assertEqual(
                drawing.root.get("aria-labelledby", "").split(),
                [drawing.all("title")[0].get("id"), drawing.all("desc")[0].get("id")],
            )
            self.assertIn("@media (prefers-color-scheme:dark)", svg)
            self.assertNotRegex(svg.replace("http://www.w3.org/2000/svg", ""), "http|url|href|import|script")

    def test_files(self) -> None:
        folder = Path(tempfile.mkdtemp(dir=self.mktemp_folder())) / "deep" / "er"
        written = save(run_of(self.RESULTS), folder)
        self.assertEqual(written, [folder / f"{name}.svg" for name in ("latency", "sizes", "clients")])
        self.assertEqual(sorted(folder.iterdir()), sorted(written))
        self.assertEqual(Drawing(written[1].read_text(encoding="utf-8")).title, "Throughput by size")
        # Over what an earlier run left.
        self.assertEqual(save(run_of(self.RESULTS), folder), written)

    def test_program(self) -> None:
        """The charts of what `--json` wrote."""
        folder = Path(self.mktemp_folder())
        figures = folder / "figures.json"
        figures.write_bytes(msgspec.json.encode(run_of(self.RESULTS, [ratio(cpu=2.0)])))
        printed = io.StringIO()
        self.patch(sys, "stdout", printed)
        self.assertEqual(main([str(figures), str(folder / "charts")]), 0)
        written = [folder / "charts" / f"{name}.svg" for name in ("latency", "sizes", "clients", "cpu")]
        self.assertEqual(printed.getvalue(), "".join(f"{path}\n" for path in written))
        self.assertEqual(sorted((folder / "charts").iterdir()), sorted(written))

    def test_program_fails(self) -> None:
        """In one line of words."""
        folder = Path(self.mktemp_folder())
        for content in (None, b"", b"[]", b"{}", b"\xff", b'{"x":"\xff"}', b"[" * 100_000):
            figures = folder / "figures.json"
            if content is not None:
                figures.write_bytes(content)
            complaint = io.StringIO()
            self.patch(sys, "stderr", complaint)
            error = self.assertRaises(SystemExit, main, [str(figures), str(folder / "charts")])
            self.assertEqual(error.code, 2)
            self.assertIn(f"error: {figures}: ", complaint.getvalue())

    def mktemp_folder(self) -> str:
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        return str(folder)


def _number(value: float) -> str:
    return f"{value:.3g}"


FIGURES = st.floats() | st.floats(0, 1e7) | st.sampled_from((0.0, 1.0, 1e-9, 1e15, math.inf, math.nan))


class AnythingTests(SynchronousTestCase):
    """Whatever is drawn is well-formed, with no text in another's place."""

    @given(
        st.lists(
            st.tuples(st.text(max_size=80), st.lists(st.tuples(FIGURES, FIGURES), max_size=6)), max_size=12
        ),
        st.booleans(),
        st.booleans(),
        st.lists(FIGURES, max_size=6),
    )
    def test_lines(
        self, series: list[tuple[str, list[tuple[float, float]]]], one: bool, other: bool, at: list[float]
    ) -> None:
        svg = lines(
            "x",
            "A title",
            [Series(*each) for each in series],
            Axis("across", amount, one),
            Axis("up", duration, other),
            [mark for mark in at if math.isfinite(mark)],
        )
        if svg:
            self.assertEqual(Drawing(svg).faults(), [])

    @given(
        st.lists(
            st.builds(Bar, st.text(max_size=90) | st.just("echo"), st.text(max_size=30), FIGURES), max_size=12
        ),
        st.booleans(),
    )
    def test_bars(self, rows: list[Bar], more: bool) -> None:
        svg = bars("x", "A title", rows, more)
        if svg:
            drawing = Drawing(svg)
            self.assertEqual(drawing.faults(), [])
            known = [row for row in rows if 1e-9 <= row.value <= 1e15]
            self.assertEqual(len(drawing.all("rect", "dot")), len(known))

    def test_too_many_lines(self) -> None:
        """Those that cannot be told apart are left to the tables."""
        many = [Series(f"line {number}", [(1.0, 1.0), (2.0, 2.0)]) for number in range(MOST_LINES + 3)]
        drawing = Drawing(lines("x", "t", many, Axis("a", _number), Axis("b", _number)))
        self.assertEqual(len(drawing.lines()), MOST_LINES)
        self.assertIn("and 3 more, in the tables", drawing.texts)
        self.assertEqual(drawing.faults(), [])
        looks = {
            (each.get("stroke-dasharray"), each.get("class")) for each in drawing.all("polyline", "line")
        }
        self.assertEqual(len(looks), MOST_LINES)

    def test_long_names(self) -> None:
        """They are cut, so that they stay in the drawing and out of one another."""
        long = "a very long name of a server " * 9
        axis = Axis("up", _number)
        for svg in (
            lines("x", long[:60], [Series(long, [(1.0, 1.0)]), Series(long, [(2.0, 2.0)])], axis, axis),
            bars("x", long[:60], [Bar(long, long, 0.001), Bar(long, long, 10.0)], True),
        ):
            self.assertEqual(Drawing(svg).faults(), [])

    def test_wide_ranges(self) -> None:
        """Marks are few enough to be read, and the last one's words stay in the drawing."""
        across = Axis("across", lambda value: f"{value:.0e} in all")
        ends = Series("a", [(1e-9, 1e-9), (1e15, 1e15)])
        drawing = Drawing(lines("x", "t", [ends], across, Axis("up", _number)))
        self.assertEqual(drawing.faults(), [])
        marks = [each for each in drawing.all("text", "soft") if each.get("text-anchor") == "end"]
        self.assertLess(len(marks), 9)

    def test_room_above(self) -> None:
        """No point lies on the frame, where half of it would be lost."""
        axis = Axis("up", _number)
        drawing = Drawing(lines("x", "t", [Series("a", [(1.0, 1.0), (2.0, 1000.0)])], axis, axis))
        [[low, high]] = drawing.lines()
        self.assertGreater(high[1], 50)
        self.assertLess(low[1], 250)

    def test_narrow_ranges(self) -> None:
        """Some marks stand at any axis."""
        for low, high in (
            (1.0, 1.0),
            (1.01, 1.02),
            (1.06, 1.2),
            (1.0, 4.0),
            (1.0, 9.0),
            (2.0, 1e3),
            (1.0, 1e15),
        ):
            for logarithmic in (True, False):
                axis = Axis("up", _number, logarithmic)
                svg = lines("x", "t", [Series("a", [(low, low), (high, high)])], axis, axis)
                marks = [
                    each for each in Drawing(svg).all("text", "soft") if each.get("text-anchor") == "end"
                ]
                self.assertGreaterEqual(len(marks), 2, (low, high, logarithmic))

    def test_markup(self) -> None:
        """A label is never more than text."""
        evil = "</text><script>alert(1)</script>"
        found = charts(
            run_of(
                [
                    timed((50.0, 0.1), (90.0, 0.2), label=evil, server=evil, rate=1.0),
                    timed((50.0, 0.1), (90.0, 0.2), label="b", server="b", rate=1.0),
                    result("small", size=1, server=evil),
                    result("small", size=2, server=evil),
                ],
                [ratio(evil, evil, cpu=2.0)],
            )
        )
        self.assertEqual(len(found), 3)
        for svg in found.values():
            self.assertEqual(Drawing(svg).all("script"), [])
            self.assertNotIn("<script", svg)
