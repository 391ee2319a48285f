"""The metrics for Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from twisted.trial.unittest import SkipTest

from tcpjson import Limits, __version__
from tcpjson.core import errors
from tcpjson.metrics.exposition import expose, registry_of
from tcpjson.test.hypo import given
from tcpjson.test.test_views import Case, Wait

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

# The names that people write rules and charts with; a change of these breaks both.
NAMES = {
    "tcpjson_info": "gauge",
    "tcpjson_start_time_seconds": "gauge",
    "tcpjson_draining": "gauge",
    "tcpjson_certificate_remaining_seconds": "gauge",
    "tcpjson_connections": "gauge",
    "tcpjson_clients": "gauge",
    "tcpjson_peak_clients": "gauge",
    "tcpjson_max_connections": "gauge",
    "tcpjson_unfinished_handlers": "gauge",
    "tcpjson_queue_bytes": "gauge",
    "tcpjson_longest_queue_bytes": "gauge",
    "tcpjson_slow_clients": "gauge",
    "tcpjson_connections_accepted": "counter",
    "tcpjson_connections_refused": "counter",
    "tcpjson_connections_closed": "counter",
    "tcpjson_connection_duration_seconds": "histogram",
    "tcpjson_messages_received": "counter",
    "tcpjson_message_bytes_received": "counter",
    "tcpjson_messages_sent": "counter",
    "tcpjson_message_bytes_sent": "counter",
    "tcpjson_received_bytes": "counter",
    "tcpjson_sent_bytes": "counter",
    "tcpjson_broadcasts": "counter",
    "tcpjson_broadcast_deliveries": "counter",
    "tcpjson_handling_seconds": "histogram",
    "tcpjson_handler_seconds": "histogram",
    "tcpjson_reactor_lag_seconds": "histogram",
    "tcpjson_errors": "counter",
    "tcpjson_logins": "counter",
    "tcpjson_rate_limit_hits": "counter",
}


class ExpositionTests(Case):
    def families(self) -> dict[str, Metric]:
        """What the server tells, as Prometheus reads it."""
        text, content_type = expose(registry_of(self.factory))
        self.assertEqual(content_type, "text/plain; version=0.0.4; charset=utf-8")
        return {family.name: family for family in parse(text.decode())}

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample."""
        found = [
            sample.value
            for family in self.families().values()
            for sample in family.samples
            if (sample.name, sample.labels) == (name, labels)
        ]
        self.assertEqual(len(found), 1, f"{name} {labels}")
        return found[0]

    def labelled(self, name: str, label: str) -> dict[str, float]:
        """The values of a counter by its label."""
        return {sample.labels[label]: sample.value for sample in self.families()[name].samples}

    def test_names_and_types(self) -> None:
        self.server(limits=Limits(max_connections=5))
        self.factory.stats.certificate_days = 1.0
        families = self.families()
        ours = {name: family.type for name, family in families.items() if name.startswith("tcpjson_")}
        self.assertEqual(ours, NAMES)
        for name, family in families.items():
            self.assertNotIn(family.documentation, ("", name))
        for name in (
            "process_resident_memory_bytes",
            "process_open_fds",
            "python_info",
            "python_gc_collections",
        ):
            self.assertIn(name, families)

    def test_what_is_not_there_is_not_told(self) -> None:
        """No limit, and no TLS."""
        names = {"tcpjson_max_connections", "tcpjson_certificate_remaining_seconds"}
        self.assertEqual(set(NAMES) - set(self.families()), names)

    def test_openmetrics(self) -> None:
        self.stuck()
        text, content_type = expose(registry_of(self.factory), OPENMETRICS)
        self.assertTrue(content_type.startswith("application/openmetrics-text; version=1.0.0"))
        self.assertTrue(text.endswith(b"# EOF\n"))
        found = {family.name: family for family in parse_openmetrics(text.decode())}
        plain = self.families()
        self.assertEqual(set(found), set(plain))
        self.assertEqual(found["tcpjson_queue_bytes"].samples, plain["tcpjson_queue_bytes"].samples)

    @given(
        st.one_of(
            st.text(st.characters(codec="latin-1")),
            st.lists(
                st.sampled_from(
                    [
                        *(
                            "application/openmetrics-text",
                            "text/plain",
                            "*/*",
                            ",",
                            ";",
                            " ",
                            "version=",
                            "=",
                            "1.0.0",
                        ),
                        *(
                            "0.0.1",
                            "x",
                            "-1",
                            "escaping=",
                            "underscores",
                            "allow-utf-8",
                            "q=0.5",
                            "1.0.0.0.0",
                            ".",
                        ),
                    ]
                )
            ).map("".join),
        )
    )
    def test_any_accept(self, accept: str) -> None:
        text, content_type = expose(registry_of(self.factory), accept)
        self.assertIn(b"tcpjson_clients 0.0\n", text)
        self.assertTrue(content_type.startswith(("text/plain", "application/openmetrics-text")))

    def test_a_version_that_is_none(self) -> None:
        _, content_type = expose(registry_of(self.factory), "application/openmetrics-text; version=x")
        self.assertEqual(content_type, "text/plain; version=0.0.4; charset=utf-8")

    def test_promtool(self) -> None:
        if (promtool := shutil.which("promtool")) is None:
            raise SkipTest("promtool, of Prometheus, is not installed")
        self.server(limits=Limits(max_connections=5))
        self.factory.stats.certificate_days = 1.0
        self.factory.stats.waited(Wait, 0.5)
        text, _ = expose(registry_of(self.factory))
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    # Values.

    def test_version_and_start(self) -> None:
        self.loop.advance(100)
        self.assertEqual(self.value("tcpjson_info", version=__version__), 1)
        self.assertEqual(self.value("tcpjson_start_time_seconds"), 1704110400)

    def test_the_start_does_not_move(self) -> None:
        registry = registry_of(self.factory)
        before = re.findall(rb"tcpjson_start_time_seconds \S+", expose(registry)[0])
        self.loop.advance(50.25)
        self.factory.timestamps = None  # type: ignore[assignment]  # whatever the time of day does meanwhile
        self.assertEqual(re.findall(rb"tcpjson_start_time_seconds \S+", expose(registry)[0]), before)

    def test_draining(self) -> None:
        self.assertEqual(self.value("tcpjson_draining"), 0)
        self.factory.draining = True
        self.assertEqual(self.value("tcpjson_draining"), 1)

    def test_certificates(self) -> None:
        self.factory.stats.certificate_days = 2.5
        self.assertEqual(self.value("tcpjson_certificate_remaining_seconds"), 216000)

    def test_connections(self) -> None:
        self.server(limits=Limits(max_connections=2))
        first, _, third = (self.client() for _ in range(3))
        third.close()
        self.loop.advance(5)
        first.close()
        for name, value in (
            ("connections", 1),
            ("clients", 1),
            ("peak_clients", 2),
            ("max_connections", 2),
            ("connections_accepted_total", 3),
        ):
            self.assertEqual(self.value(f"tcpjson_{name}"), value, name)
        self.assertEqual(
            self.labelled("tcpjson_connections_refused", "reason"),
            {"server_full": 1, "too_many_connections": 0, "going_away": 0},
        )
        closed = self.labelled("tcpjson_connections_closed", "code")
        self.assertEqual(
            {code: count for code, count in closed.items() if count}, {"server_full": 1, "client_closed": 1}
        )

    def test_histograms_add_up(self) -> None:
        for value in (0.05, 0.05, 30, 1e9):
            self.factory.stats.durations.observe(value)
        samples = self.families()["tcpjson_connection_duration_seconds"].samples
        buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
        self.assertEqual((buckets["0.1"], buckets["10.0"], buckets["60.0"], buckets["+Inf"]), (2, 2, 3, 4))
        self.assertEqual(list(buckets.values()), sorted(buckets.values()))
        name = "tcpjson_connection_duration_seconds"
        self.assertEqual((self.value(f"{name}_count"), self.value(f"{name}_sum")), (4, 1000000030.1))

    def test_messages(self) -> None:
        one, two = self.client(), self.client()
        echo = {"type": "echo", "content": "hi"}
        self.send(
            one, echo, echo, {"type": "broadcast", "content": 1}, {"type": "no such type"}, {"type": "wait"}
        )
        two.take_all()
        received = self.labelled("tcpjson_messages_received", "type")
        self.assertEqual(
            {kind: count for kind, count in received.items() if count},
            {"echo": 2, "broadcast": 1, "other": 1, "wait": 1},
        )
        sizes = self.labelled("tcpjson_message_bytes_received", "type")
        self.assertEqual(sizes["echo"], 2 * len(json.dumps(echo)))
        self.assertEqual(set(sizes), set(received))
        sent = self.labelled("tcpjson_messages_sent", "type")
        self.assertEqual(
            (sent["echo_response"], sent["broadcast"], sent["broadcast_sent"], sent["welcome"], sent["own"]),
            (2, 1, 1, 2, 0),
        )
        self.assertGreater(self.labelled("tcpjson_message_bytes_sent", "type")["broadcast"], 20)
        self.assertEqual(self.value("tcpjson_broadcasts_total"), 1)
        self.assertEqual(self.value("tcpjson_broadcast_deliveries_total"), 1)
        stats = self.factory.stats
        self.assertGreater(stats.bytes_in, 0)
        self.assertEqual(self.value("tcpjson_received_bytes_total"), stats.bytes_in)
        self.assertEqual(self.value("tcpjson_sent_bytes_total"), stats.bytes_out)
        self.assertNotEqual(stats.bytes_in, stats.bytes_out)

    def test_no_word_of_a_stranger_is_a_label(self) -> None:
        self.send(
            self.client(), {"type": "mine"}, {"type": "auth", "mechanism": "mine"}, {"type": "ping", "id": []}
        )
        text, _ = expose(registry_of(self.factory))
        self.assertNotIn(b"mine", text)
        self.assertNotIn(b"unix:", text)

    def test_times(self) -> None:
        stats = self.factory.stats
        stats.handling.observe(0.02)
        stats.lag.observe(0.5)
        self.send(self.client(), {"type": "wait"})
        self.loop.advance(2)
        self.waiting.pop().callback(None)
        self.assertEqual(self.value("tcpjson_handling_seconds_sum"), stats.handling.sum)
        self.assertEqual(self.value("tcpjson_reactor_lag_seconds_bucket", le="0.3"), 0)
        self.assertEqual(self.value("tcpjson_reactor_lag_seconds_bucket", le="1.0"), 1)
        self.assertEqual(self.value("tcpjson_handler_seconds_sum", type="wait"), 2)
        self.assertEqual(self.value("tcpjson_handler_seconds_count", type="wait"), 1)

    def test_queues(self) -> None:
        self.send(self.client(), {"type": "wait"}, {"type": "wait"})
        self.stuck(50_000)
        self.stuck(60_000)
        self.loop.advance(1)
        self.loop.advance(1)
        queues = sorted(each.waiting for each in self.factory.connections)
        self.assertEqual(self.value("tcpjson_queue_bytes"), sum(queues))
        self.assertEqual(self.value("tcpjson_longest_queue_bytes"), queues[-1])
        self.assertEqual(self.value("tcpjson_slow_clients"), 2)
        self.assertEqual(self.value("tcpjson_unfinished_handlers"), 2)
        self.assertGreater(queues[1], 0)

    def test_errors(self) -> None:
        self.send(self.client(), {"type": "ping", "id": []}, {"type": "ping", "id": []})
        counts = self.labelled("tcpjson_errors", "code")
        self.assertEqual({code: count for code, count in counts.items() if count}, {"bad_message": 2})
        self.assertEqual(set(counts), set(errors.CODES))

    def test_codes_of_the_application(self) -> None:
        """They are told as they are, but no more than a hundred of them."""
        for number in range(105):
            self.factory.stats.errors[f"own{number}"] = 2
        counts = self.labelled("tcpjson_errors", "code")
        self.assertEqual((counts["own0"], counts["own99"], counts["other"]), (2, 2, 10))
        self.assertNotIn("own100", counts)

    def test_a_code_of_any_characters(self) -> None:
        for code in ('a"b', "a\nb", "a\\b", "ä", ""):
            self.factory.stats.disconnects[code] = 1
        counts = self.labelled("tcpjson_connections_closed", "code")
        for code in ('a"b', "a\nb", "a\\b", "ä", ""):
            self.assertEqual(counts[code], 1)

    def test_logins_and_rates(self) -> None:
        self.factory.stats.logins["token", "authentication_failed"] = 3
        self.factory.stats.over_rate = 4
        samples = self.families()["tcpjson_logins"].samples
        self.assertEqual(len(samples), 8)
        self.assertEqual(
            self.value("tcpjson_logins_total", mechanism="token", result="authentication_failed"), 3
        )
        self.assertEqual(self.value("tcpjson_logins_total", mechanism="plain", result="authenticated"), 0)
        self.assertEqual(self.value("tcpjson_rate_limit_hits_total"), 4)

    def test_counters_are_there_from_the_start(self) -> None:
        """A rate of what is not there is none, not 0."""

        def zeros(name: str) -> Iterable[Any]:
            return [tuple(sample.labels.values()) for sample in families[name].samples if sample.value == 0]

        families = self.families()
        self.assertIn(("slow_consumer",), zeros("tcpjson_connections_closed"))
        self.assertIn(("handshake_failed",), zeros("tcpjson_connections_closed"))
        self.assertIn(("internal",), zeros("tcpjson_errors"))
        self.assertIn(("wait",), zeros("tcpjson_messages_received"))
        self.assertIn(("own",), zeros("tcpjson_messages_sent"))
        self.assertNotIn(("bad_json",), zeros("tcpjson_connections_closed"))
