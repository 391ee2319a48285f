"""The alerts and the dashboard that go with the metrics: all that they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SkipTest

from tests.harness import certificates
from tests.test_metrics import MetricsTestCase

CONTRIB = Path(__file__).parent.parent / "contrib"
ALERTS = CONTRIB / "prometheus" / "alerts.yml"
DASHBOARD = CONTRIB / "grafana" / "tcpjson.json"

# What Prometheus itself adds.
_FROM_PROMETHEUS = {"up"}
_FROM_PROMETHEUS_LABELS = {"job", "instance"}
_WORDS = {"and", "or", "unless", "on", "by", "without", "ignoring", "group_left", "bool", "offset"}


def selectors(query: str) -> Iterable[tuple[str, dict[str, tuple[str, str]]]]:
    """The metrics that a query names, each with what it says of labels: the operator and the value."""
    query = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", query)
    for match in re.finditer(
        r'\b([a-zA-Z_:][\w:]*)\s*(\{(?:[^"}]|"[^"]*")*\}|(\())?|"[^"]*"|\[[^\]]*\]', query
    ):
        if match[1] and not match[3] and match[1] not in _WORDS:
            found = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', match[2] or "")
            yield match[1], {label: (operator, value) for label, operator, value in found}


def grouped(query: str) -> set[str]:
    """The labels by which a query groups or joins."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", query)
    return {label.strip() for labels in lists for label in labels.split(",")}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool; the test is skipped where there is none."""
    program = shutil.which("promtool")
    if program is None:
        raise SkipTest("promtool, of Prometheus, is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


class QueryTests(MetricsTestCase):
    """What the files ask for, and what a server tells."""

    def told(self) -> dict[str, list[dict[str, str]]]:
        """The samples of a server with limits and TLS, by their names: the labels of each."""
        server = self.shows("--max-connections", "10", ports=[certificates().port])
        found: dict[str, list[dict[str, str]]] = {}
        for family in text_string_to_metric_families(self.get(server, "/metrics")[1]):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        # Told by type when there is one.
        for name in ("bucket", "sum", "count"):
            found.setdefault(f"tcpjson_handler_seconds_{name}", [{"type": "nap", "le": "1"}])
        return found

    def check(self, queries: Iterable[str]) -> set[str]:
        """All that the queries name is there; returns the metrics."""
        told = self.told()
        named: set[str] = set()
        for query in queries:
            labels: set[str] = set()
            for metric, conditions in selectors(query):
                named.add(metric)
                if metric in _FROM_PROMETHEUS:
                    continue
                self.assertIn(metric, told, query)
                labels |= {label for each in told[metric] for label in each}
                for label, (operator, value) in conditions.items():
                    if label in _FROM_PROMETHEUS_LABELS:
                        continue
                    values = {each.get(label) for each in told[metric]}
                    if operator in ("=", "!="):
                        self.assertIn(value, values, query)
                    else:
                        self.assertTrue(any(re.fullmatch(value, each or "") for each in values), query)
            self.assertLessEqual(grouped(query), labels | _FROM_PROMETHEUS_LABELS, query)
        return named

    def test_alerts(self) -> None:
        queries = re.findall(r"^        expr: (.*)$", ALERTS.read_text(encoding="utf-8"), re.MULTILINE)
        self.assertGreater(len(queries), 10)
        named = self.check(queries)
        for name in (
            *("up", "tcpjson_connections_closed_total", "tcpjson_errors_total", "tcpjson_max_connections"),
            *(
                "tcpjson_connections_refused_total",
                "tcpjson_reactor_lag_seconds_bucket",
                "tcpjson_logins_total",
            ),
            *("tcpjson_certificate_remaining_seconds", "process_max_fds"),
        ):
            self.assertIn(name, named)

    def test_dashboard(self) -> None:
        dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        named = self.check(queries)
        # A counter or gauge that the dashboard does not show is one that nobody sees.
        shown = {name.removesuffix("_bucket") for name in named}
        left = {
            re.sub("_(bucket|sum|count)$", "", name) for name in self.told() if name.startswith("tcpjson_")
        } - shown
        self.assertEqual(left, set())

    def test_the_names_are_taken_out_of_queries(self) -> None:
        query = (
            'sum by (le, a) (rate(x_bucket{b=~"y z", c!="q{}"}[5m])) / on (j) m > 0.9 and "t" offset 5m or n'
        )
        self.assertEqual(
            list(selectors(query)),
            [("x_bucket", {"b": ("=~", "y z"), "c": ("!=", "q{}")}), ("m", {}), ("n", {})],
        )
        self.assertEqual(grouped(query), {"le", "a", "j"})


class AlertTests(MetricsTestCase):
    """contrib/prometheus."""

    def test_promtool_takes_them(self) -> None:
        done = promtool("check", "rules", str(ALERTS))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_they_fire_when_they_should(self) -> None:
        done = promtool("test", "rules", str(ALERTS.with_name("alerts_test.yml")))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_says_what_to_do_and_is_tried(self) -> None:
        text = ALERTS.read_text(encoding="utf-8")
        rules = text.split("      - alert: ")[1:]
        tried = ALERTS.with_name("alerts_test.yml").read_text(encoding="utf-8")
        for rule in rules:
            name = rule.partition("\n")[0]
            for line in ("expr: ", "severity: ", 'summary: "{{ $labels.instance }}: ', 'description: "'):
                self.assertEqual(rule.count(line), 1, f"{name}: {line}")
            self.assertIn(f'alertname="{name}"', tried)


class DashboardTests(MetricsTestCase):
    """contrib/grafana."""

    def setUp(self) -> None:
        self.dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        self.panels: list[dict[str, Any]] = self.dashboard["panels"]

    def test_each_panel_is_whole(self) -> None:
        self.assertGreater(len(self.panels), 20)
        for panel in self.panels:
            self.assertTrue(panel["title"])
            self.assertTrue(panel["fieldConfig"]["defaults"]["unit"], panel["title"])
            self.assertTrue(panel["targets"], panel["title"])
            for target in panel["targets"]:
                self.assertIn('{instance=~"$instance"', target["expr"])
                self.assertTrue(target["legendFormat"])
            self.assertEqual(len({target["refId"] for target in panel["targets"]}), len(panel["targets"]))
        for key in ("id", "title"):
            self.assertEqual(len({panel[key] for panel in self.panels}), len(self.panels))

    def test_panels_do_not_overlap(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in self.panels:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            self.assertFalse(cells & taken, panel["title"])
            taken |= cells

    def test_it_is_of_no_one_place(self) -> None:
        """The source of data is chosen where it is loaded."""
        sources = re.findall(r'"uid": "([^"]*)"', json.dumps(self.dashboard))
        self.assertEqual(set(sources), {"tcpjson", "${datasource}"})
        variables = {variable["name"] for variable in self.dashboard["templating"]["list"]}
        self.assertEqual(variables, {"datasource", "instance"})

    def test_queries_are_promql(self) -> None:
        queries = [target["expr"] for panel in self.panels for target in panel["targets"]]
        rules = [
            {
                "record": f"r{number}",
                "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*"),
            }
            for number, query in enumerate(queries)
        ]
        path = Path(self.mktemp())
        # JSON is YAML.
        path.write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}), encoding="utf-8")
        done = promtool("check", "rules", str(path))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
