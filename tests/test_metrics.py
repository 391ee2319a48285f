"""What a real server tells over HTTP, at --metrics, of what real clients do."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.harness import TIMEOUT, Server, ServerTestCase, certificates, until
from tests.identities import new_path, token_message, tokens, write

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

HANDLERS = """
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tcpjson import Message, Router

router = Router()


class Nap(Message, tag="nap"):
    seconds: float = 0.0


class Fail(Message, tag="fail"):
    pass


@router.handler
async def nap(session, message: Nap):
    await deferLater(reactor, message.seconds)
    return {"type": "awake"}


@router.handler
def fail(session, message: Fail):
    raise RuntimeError("on purpose")
"""


class MetricsTestCase(ServerTestCase):
    """Servers that are asked over HTTP."""

    def shows(self, *options: str, **more: Any) -> Server:
        """A server with --metrics."""
        return self.start("--metrics", "tcp:0", *options, **more)

    def site(self, server: Server) -> tuple[str, int]:
        """Where it answers HTTP."""
        [match] = server.wait_for(r"\] metrics on http://([^:]*):(\d+)/$")
        return match[1], int(match[2])

    def http(self, server: Server) -> HTTPConnection:
        """A connection to where it answers HTTP."""
        connection = HTTPConnection(*self.site(server), timeout=TIMEOUT)
        self.addCleanup(connection.close)
        return connection

    def get(self, server: Server, path: str, host: str | None = None, accept: str = "") -> tuple[int, str]:
        """The status and the text of an answer."""
        connection = self.http(server)
        headers = {"Host": host} if host is not None else {}
        connection.request("GET", path, headers={**headers, "Accept": accept})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def json(self, server: Server, path: str) -> Any:
        status, text = self.get(server, path)
        self.assertEqual(status, 200, text)
        return json.loads(text)

    def samples(self, server: Server) -> Samples:
        """All that /metrics tells."""
        status, text = self.get(server, "/metrics")
        self.assertEqual(status, 200)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse(text)
            for sample in family.samples
        }

    def value(self, server: Server, name: str, **labels: str) -> float:
        """One figure of /metrics."""
        return self.samples(server)[f"tcpjson_{name}", frozenset(labels.items())]


class FigureTests(MetricsTestCase):
    """Figures, by value."""

    def test_messages_bytes_and_ends(self) -> None:
        server = self.shows()
        ann, bob = self.connect(server), self.connect(server)
        echo = {"type": "echo", "content": "hello"}
        for _ in range(5):
            self.assertEqual(ann.ask(echo)["type"], "echo_response")
        self.assertEqual(ann.ask({"type": "broadcast", "content": 1})["recipients"], 1)
        self.assertEqual(bob.receive()["type"], "broadcast")
        self.assertEqual(bob.ask({"type": "ping", "id": []})["code"], "bad_message")
        self.assertEqual(bob.ask({"type": "what nobody knows"})["type"], "response")
        bob.close()
        server.disconnects(bob.client_id)
        samples = self.samples(server)

        def value(name: str, **labels: str) -> float:
            return samples[f"tcpjson_{name}", frozenset(labels.items())]

        self.assertEqual(value("clients"), 1)
        self.assertEqual(value("connections"), 1)
        self.assertEqual(value("peak_clients"), 2)
        self.assertEqual(value("connections_accepted_total"), 2)
        self.assertEqual(value("connections_closed_total", code="client_closed"), 1)
        self.assertEqual(value("connections_closed_total", code="slow_consumer"), 0)
        self.assertEqual(value("connection_duration_seconds_count"), 1)
        self.assertEqual(value("messages_received_total", type="echo"), 5)
        self.assertEqual(value("message_bytes_received_total", type="echo"), 5 * len(json.dumps(echo)))
        self.assertEqual(value("messages_received_total", type="broadcast"), 1)
        self.assertEqual(value("messages_received_total", type="other"), 2)
        self.assertEqual(value("messages_sent_total", type="echo_response"), 5)
        self.assertEqual(value("messages_sent_total", type="welcome"), 2)
        self.assertEqual(value("messages_sent_total", type="broadcast"), 1)
        self.assertEqual(value("errors_total", code="bad_message"), 1)
        self.assertEqual(value("broadcasts_total"), 1)
        self.assertEqual(value("broadcast_deliveries_total"), 1)
        self.assertEqual(value("handling_seconds_count"), 8)
        stats = ann.stats()["details"]
        # All bytes but those of these statistics.
        self.assertEqual(
            value("received_bytes_total"), stats["bytes_in"] - 4 - len(json.dumps({"type": "get_stats"}))
        )
        self.assertGreater(value("sent_bytes_total"), value("received_bytes_total"))
        self.assertGreater(value("start_time_seconds"), 1.7e9)
        self.assertGreater(samples["process_resident_memory_bytes", frozenset()], 10e6)

    def test_openmetrics(self) -> None:
        server = self.shows()
        _, text = self.get(
            server, "/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
        )
        self.assertIn("tcpjson_errors", {family.name for family in parse_openmetrics(text)})

    def test_refusals(self) -> None:
        server = self.shows("--max-connections", "2")
        first, _ = self.connect(server), self.connect(server)
        self.assertEqual(self.connect(server, greet=False).ending()["code"], "server_full")
        self.assertEqual(self.value(server, "connections_refused_total", reason="server_full"), 1)
        self.assertEqual(self.value(server, "max_connections"), 2)
        self.assertEqual(self.value(server, "connections_accepted_total"), 3)
        first.close()

    def test_handlers(self) -> None:
        path = new_path("handlers")
        path.mkdir()
        write(path / "napping.py", HANDLERS)
        server = self.shows("--handlers", "napping:router", cwd=path)
        peer = self.connect(server)
        peer.send({"type": "nap", "seconds": 1e5}, {"type": "nap", "seconds": 0.05, "id": 2})
        self.assertEqual(peer.receive()["type"], "awake")
        self.assertEqual(self.value(server, "unfinished_handlers"), 1)
        self.assertEqual(self.value(server, "handler_seconds_count", type="nap"), 1)
        self.assertGreater(self.value(server, "handler_seconds_sum", type="nap"), 0.04)
        self.assertEqual(self.value(server, "messages_received_total", type="nap"), 2)
        self.assertEqual(self.value(server, "messages_sent_total", type="own"), 1)

    def test_a_handler_that_fails(self) -> None:
        path = new_path("handlers")
        path.mkdir()
        write(path / "failing.py", HANDLERS)
        # Not one of this case: its log has a traceback.
        server = Server("--metrics", "tcp:0", "--handlers", "failing:router", cwd=path)
        self.addCleanup(server.stop)
        self.assertEqual(self.connect(server).ask({"type": "fail"})["code"], "internal")
        self.assertEqual(self.value(server, "errors_total", code="internal"), 1)

    def test_logins(self) -> None:
        path = write(new_path(".tokens"), tokens({"right": "ann"}))
        server = self.shows("--auth", f"token:{path}", "--allow-plain-auth")
        peer = self.connect(server)
        self.assertEqual(peer.ask(token_message("wrong"))["status"], "authentication_failed")
        self.assertEqual(peer.ask(token_message("right"))["status"], "authenticated")
        for result in ("authenticated", "authentication_failed"):
            self.assertEqual(self.value(server, "logins_total", mechanism="token", result=result), 1)
        [row] = self.json(server, "/connections")["connections"]
        self.assertEqual((row["user"], row["state"]), ("ann", "ready"))

    def test_rates(self) -> None:
        server = self.shows("--rate", "5")
        peer = self.connect(server)
        peer.send(*[{"type": "ping"}] * 8)
        self.assertGreaterEqual(
            until(lambda: self.value(server, "rate_limit_hits_total"), "over the rate"), 1
        )
        [row] = self.json(server, "/connections")["connections"]
        self.assertEqual(row["held"], ["rate"])

    def test_certificates(self) -> None:
        server = self.shows(ports=[certificates().port])
        self.assertGreater(self.value(server, "certificate_remaining_seconds"), 86400)

    def test_lag(self) -> None:
        server = self.shows()
        until(lambda: self.value(server, "reactor_lag_seconds_count") > 2, "it looks four times a second")

    def test_who_does_not_read(self) -> None:
        server = self.shows("--send-buffer", "4096", "--write-timeout", "3")
        slow = self.connect(server, receive_buffer=4096)
        sender = self.connect(server)
        for _ in range(5):
            sender.ask({"type": "broadcast", "content": "x" * 100_000})
        found = self.json(server, "/connections?sort=queued_bytes&order=desc&limit=1")["connections"][0]
        self.assertEqual(found["client"], slow.client_id)
        self.assertGreater(found["queued_bytes"], 300_000)
        self.assertGreater(found["round_trip_seconds"], 0)
        samples = self.samples(server)
        queue, longest = (
            samples[f"tcpjson_{name}_bytes", frozenset()] for name in ("queue", "longest_queue")
        )
        self.assertEqual(queue, longest)
        until(lambda: self.value(server, "slow_clients") == 1, "it has waited for a second")
        until(
            lambda: self.value(server, "connections_closed_total", code="slow_consumer") == 1, "it is dropped"
        )
        closed = self.json(server, "/closed")["closed"][0]
        self.assertEqual((closed["client"], closed["code"]), (slow.client_id, "slow_consumer"))
        self.assertIn("did not read what was sent to it: it took nothing for 3 s", closed["why"])
        self.assertEqual(self.value(server, "queue_bytes"), 0)


class ListTests(MetricsTestCase):
    """/connections and /closed, with 300 clients."""

    def test_pages_in_order(self) -> None:
        server = self.shows()
        peers = [self.connect(server) for _ in range(300)]
        for count, peer in enumerate(peers[:20], 1):
            for _ in range(count):
                peer.ask({"type": "ping"})
        names = {peer.client_id for peer in peers}
        rows: list[dict[str, Any]] = []
        for offset in range(0, 400, 100):
            answer = self.json(server, f"/connections?offset={offset}&limit=100")
            self.assertEqual((answer["total"], answer["offset"]), (300, offset))
            rows += answer["connections"]
        self.assertEqual([row["client"] for row in rows], sorted(names))
        self.assertEqual({row["state"] for row in rows}, {"ready"})
        answer = self.json(server, "/connections?sort=messages_in&order=desc&limit=20")
        self.assertEqual(
            [(row["client"], row["messages_in"]) for row in answer["connections"]],
            [(peer.client_id, count) for count, peer in reversed(list(enumerate(peers[:20], 1)))],
        )
        youngest = self.json(server, "/connections?sort=age_seconds&limit=1")["connections"]
        self.assertEqual([row["client"] for row in youngest], [peers[-1].client_id])
        far = self.json(server, "/connections?sort=round_trip_seconds&order=desc&limit=1000")["connections"]
        times = [row["round_trip_seconds"] for row in far]
        self.assertEqual(len(times), 300)
        self.assertGreater(min(times), 0)
        for peer in peers[:10]:
            peer.close()
            server.disconnects(peer.client_id)
        answer = self.json(server, "/closed?offset=3&limit=4")
        self.assertEqual(answer["total"], 10)
        self.assertEqual(
            [row["client"] for row in answer["closed"]], [peer.client_id for peer in peers[6:2:-1]]
        )
        self.assertEqual(answer["closed"][0]["messages_in"], 7)

    def test_wrong_questions(self) -> None:
        server = self.shows()
        for path, text in (
            ("/connections?sort=x", "sort must be one of client, "),
            ("/connections?limit=0", "limit must be from 1 to 1000"),
            ("/closed?offset=-1", "offset must be a whole number"),
            ("/closed?x=1", "there is no parameter x"),
        ):
            status, answer = self.get(server, path)
            self.assertEqual(status, 400)
            self.assertIn(text, answer)


class DrainTests(MetricsTestCase):
    def test_not_ready_while_it_shuts_down(self) -> None:
        server = self.shows("--grace", "20")
        self.assertEqual(self.get(server, "/readyz"), (200, "ready\n"))
        peer = self.connect(server, receive_buffer=4096)
        # One that keeps it from ending: it has not read its answers.
        peer.send(*[{"type": "echo", "content": "x" * 200_000}] * 30)
        until(lambda: self.value(server, "queue_bytes") > 0, "something waits")
        server.signal(signal.SIGTERM)
        server.wait_for("shutting down")
        until(lambda: self.get(server, "/readyz") == (503, "draining\n"), "it says that it drains")
        self.assertEqual(self.get(server, "/healthz"), (200, "ok\n"))
        self.assertEqual(self.value(server, "draining"), 1)
        peer.close()
        self.assertEqual(server.wait(), -signal.SIGTERM)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, self.site(server))


class AccessTests(MetricsTestCase):
    """Who may ask, and how much."""

    def test_hosts(self) -> None:
        server = self.shows("--metrics-host", "stats.example")
        for host in ("localhost", "127.0.0.1:9100", "[::1]", "stats.example", "Stats.Example:443"):
            self.assertEqual(self.get(server, "/healthz", host)[0], 200, host)
        for host in ("evil.example", "127.0.0.1.evil.example"):
            for path in ("/", "/connections", "/events", "/metrics", "/healthz"):
                status, text = self.get(server, path, host)
                self.assertEqual(status, 421, path)
                self.assertIn("--metrics-host", text)

    def test_on_loopback_unless_told_otherwise(self) -> None:
        server = self.shows()
        self.assertEqual(self.site(server)[0], "127.0.0.1")
        self.assertNotIn("whoever reaches --metrics", "\n".join(server.log))
        server = self.start("--metrics", "tcp:0:interface=0.0.0.0")
        server.wait_for("whoever reaches --metrics tcp:0:interface=0.0.0.0 sees who is connected")

    def answer(self, connection: HTTPConnection) -> HTTPResponse:
        answer = connection.getresponse()
        answer.read()
        return answer

    def test_bodies_are_refused(self) -> None:
        server = self.shows()
        connection = self.http(server)
        connection.request("POST", "/connections", body=b"x" * 300_000)
        self.assertEqual(self.answer(connection).status, 413)
        self.assertEqual(self.get(server, "/healthz")[0], 200)

    def test_one_connection_many_requests(self) -> None:
        connection = self.http(self.shows())
        for path in ("/", "/metrics", "/connections", "/closed", "/healthz", "/readyz") * 3:
            connection.request("GET", path)
            self.assertEqual(self.answer(connection).status, 200)
            connection.request("HEAD", path)
            self.assertEqual(self.answer(connection).status, 200)
        connection.request("DELETE", "/")
        answer = self.answer(connection)
        self.assertEqual((answer.status, answer.headers["Allow"]), (405, "GET, HEAD"))

    def test_64_at_once(self) -> None:
        server = self.shows()
        address = self.site(server)
        open_ones = []
        for _ in range(64):
            open_ones.append(socket.create_connection(address))
            self.addCleanup(open_ones[-1].close)
        late = socket.create_connection(address)
        late.settimeout(TIMEOUT)
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(late.recv(1), b"")
        late.close()
        open_ones.pop().close()
        until(lambda: self._answers(address), "there is room again")
        # They sent nothing, and are cut.
        for each in open_ones:
            each.settimeout(TIMEOUT)
            with contextlib.suppress(ConnectionResetError):
                self.assertEqual(each.recv(1), b"")

    def _answers(self, address: tuple[str, int]) -> bool:
        with socket.create_connection(address) as connection:
            connection.settimeout(TIMEOUT)
            try:
                connection.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return connection.recv(100).startswith(b"HTTP/1.0 200 ")
            except OSError:
                return False

    def test_those_who_ask_much_and_read_nothing(self) -> None:
        """Neither clients nor memory suffer."""
        server = self.shows()
        peers = [self.connect(server) for _ in range(200)]
        address = self.site(server)
        before = server.resident()
        askers = []
        for _ in range(20):
            asker = socket.create_connection(address)
            self.addCleanup(asker.close)
            asker.sendall(b"GET /connections?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
            askers.append(asker)
        for peer in peers[:50]:
            self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
        self.assertLess(server.resident() - before, 40e6)
        for asker in askers:
            asker.close()
        self.assertEqual(peers[0].ask({"type": "ping"})["type"], "pong")

    def test_requests_leave_no_line_in_the_log(self) -> None:
        server = self.shows()
        self.site(server)
        before = len(server.log)
        for path in ("/healthz", "/x", "/connections?x=1"):
            self.get(server, path)
        peer = self.connect(server)
        peer.close()
        server.disconnects(peer.client_id)
        self.assertEqual(
            [line for line in server.log[before:] if "connected " not in line],
            [],
            "more than that one came and went",
        )
