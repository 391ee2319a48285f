"""What answers HTTP, to friends and to others."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http
from zope.interface import implementer

from tcpjson.metrics import live, page, views
from tcpjson.metrics import site as site_module
from tcpjson.metrics.site import MetricsSite, host_name, is_address, site_of
from tcpjson.server import TCPJSONServerFactory
from tcpjson.test.hypo import given
from tcpjson.test.wires import Loop, Wire, connect

PATHS = ("/", "/events", "/metrics", "/healthz", "/readyz", "/connections", "/closed")


class Answer(NamedTuple):
    """One answer."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def request(target: str = "/healthz", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """The bytes of a request, to localhost unless a header says otherwise."""
    lines = [f"{method} {target} HTTP/{version}", *headers]
    if not any(header.lower().startswith("host:") for header in headers):
        lines.append("Host: localhost:9100")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def answers(data: bytes, head: bool = False) -> list[Answer]:
    """The answers in what came, which must hold whole ones; `head`: they were asked for without bodies."""
    found = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        status, *lines = top.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if len(headers) != len(lines):
            raise AssertionError(f"a header stands there twice: {lines}")
        length = 0 if head else int(headers.get("content-length", 0))
        if len(data) < length:
            raise AssertionError(f"{status}: of {length} bytes came {len(data)}")
        found.append(Answer(int(status.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.loop = Loop()
        self.addCleanup(self.loop.close)
        self.server = TCPJSONServerFactory(self.loop)
        site = site_of(self.server, self.loop, hosts=["Stats.Example."])
        assert isinstance(site, MetricsSite)
        self.site = site
        self.site.startFactory()

    def open(self, send_buffer: int | None = None, tls: bool = False) -> Wire:
        """A connection to the site."""
        wire = connect(self.loop, self.site, send_buffer=send_buffer, tls=tls)
        self.addCleanup(wire.socket.close)
        return wire

    def client(self) -> Wire:
        """A client of the server."""
        wire = connect(self.loop, self.server)
        self.addCleanup(wire.socket.close)
        return wire

    def ask(self, data: bytes, head: bool = False) -> Answer:
        """The answer to what is sent on a new connection."""
        wire = self.open()
        wire.send(data)
        wire.take_all()
        wire.close()
        [answer] = answers(wire.data, head)
        return answer

    def get(self, target: str, *headers: str) -> Answer:
        return self.ask(request(target, *headers))

    def goes_on(self, wire: Wire) -> bool:
        """Whether the connection still answers."""
        if wire.ended:
            return False
        before = len(wire.data)
        wire.send(request())
        wire.take_all()
        return wire.data[before:].endswith(b"ok\n")


class PathTests(Case):
    """What there is."""

    def test_health(self) -> None:
        answer = self.get("/healthz")
        self.assertEqual((answer.code, answer.text), (200, "ok\n"))
        self.assertEqual(answer.headers["content-type"], "text/plain; charset=utf-8")

    def test_readiness(self) -> None:
        answer = self.get("/readyz")
        self.assertEqual((answer.code, answer.text), (200, "ready\n"))
        self.server.draining = True
        answer = self.get("/readyz")
        self.assertEqual((answer.code, answer.text), (503, "draining\n"))
        self.assertEqual(self.get("/healthz").code, 200)

    def test_metrics(self) -> None:
        self.client()
        self.assertEqual(self.get("/metrics", "Accept: \xff").code, 200)
        answer = self.get("/metrics")
        self.assertEqual(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        self.assertIn("\ntcpjson_clients 1.0\n", answer.text)
        answer = self.get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain")
        self.assertTrue(answer.headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(answer.text.endswith("# EOF\n"))

    def test_the_page(self) -> None:
        self.client()
        answer = self.get("/")
        self.assertEqual(answer.code, 200)
        self.assertEqual(answer.headers["content-type"], "text/html; charset=utf-8")
        self.assertEqual(answer.headers["content-security-policy"], page.POLICY)
        self.assertIn("unix:1", answer.text)
        self.assertTrue(answer.text.lower().startswith("<!doctype html>"))

    def test_events(self) -> None:
        wire = self.open()
        wire.send(request("/events"))
        wire.take_all()
        head, _, body = wire.data.decode().partition("\r\n\r\n")
        self.assertIn("HTTP/1.1 200 OK\r\n", head)
        self.assertIn("text/event-stream", head)
        self.assertIn("Cache-Control: no-store\r\n", head)
        self.assertIn('data: {"', body)
        before = len(wire.data)
        for _ in range(20):
            # No timeout of a request ends it.
            self.loop.advance(1)
            wire.take_all()
        self.assertGreater(wire.data[before:].count(b"data: "), 15)
        self.assertFalse(wire.ended)

    def test_too_many_watch(self) -> None:
        wires = [self.open() for _ in range(live.MOST_WATCHERS + 1)]
        for wire in wires:
            wire.send(request("/events"))
            wire.take_all()
        [answer] = answers(wires[-1].data)
        self.assertEqual((answer.code, answer.text), (503, f"{live.MOST_WATCHERS} watch already\n"))
        self.assertTrue(self.goes_on(wires[-1]))

    def test_connections(self) -> None:
        for _ in range(3):
            self.client()
        self.client().send_payload(b'{"type":"ping"}')
        answer = self.get("/connections?sort=messages_in&order=desc&offset=0&limit=2")
        self.assertEqual(answer.headers["content-type"], "application/json")
        found = json.loads(answer.body)
        self.assertEqual(found, views.connections(self.server, sort="messages_in", descending=True, limit=2))
        self.assertEqual(
            (found["total"], [row["client"] for row in found["connections"]]), (4, ["unix:4", "unix:3"])
        )
        ascending = json.loads(self.get("/connections?sort=messages_in&order=asc&offset=1").body)
        self.assertEqual([row["client"] for row in ascending["connections"]], ["unix:2", "unix:3", "unix:4"])

    def test_closed(self) -> None:
        for _ in range(3):
            self.client().close()
        found = json.loads(self.get("/closed?offset=1&limit=1").body)
        self.assertEqual(found, views.closed(self.server, offset=1, limit=1))
        self.assertEqual([row["client"] for row in found["closed"]], ["unix:2"])

    def test_nothing_else(self) -> None:
        for target in (
            "/x",
            "/metrics/",
            "//",
            "/Metrics",
            "*",
            "http://localhost/healthz",
            "/..",
            "/%6detrics",
        ):
            answer = self.get(target)
            self.assertEqual(answer.code, 404, target)
            self.assertEqual(answer.text, f"there is nothing here but {', '.join(PATHS)}\n")

    def test_parameters_that_are_wrong(self) -> None:
        for query, text in (
            ("sort=held", "sort must be one of client, user, state,"),
            ("sort=%00%0a%ff", "sort must be one of "),
            ("order=down", "order must be asc or desc"),
            ("limit=0", "limit must be from 1 to 1000"),
            ("limit=1001", "limit must be from 1 to 1000"),
            ("limit=", "limit must be a whole number"),
            ("limit=-1", "limit must be a whole number"),
            ("limit=1e3", "limit must be a whole number"),
            ("limit=%D9%A3", "limit must be a whole number"),
            ("offset=9999999999", "offset must be a whole number"),
            ("limit=5&limit=6", "limit stands there twice"),
            ("page=2", "there is no parameter page, but sort, order, offset, limit"),
            ("p%0Ag%ff=2", r"there is no parameter p\ng" + "\N{REPLACEMENT CHARACTER}, but sort, "),
            ("x" * 200 + "=2", "there is no parameter " + "x" * 64 + ", but "),
        ):
            answer = self.get(f"/connections?{query}")
            self.assertEqual(answer.code, 400, query)
            self.assertIn(text, answer.text)
            self.assertEqual(answer.text.count("\n"), 1)
        answer = self.get("/closed?sort=client")
        self.assertEqual((answer.code, answer.text), (400, "there is no parameter sort, but offset, limit\n"))

    def test_head(self) -> None:
        for path in PATHS:
            if path == "/events":
                continue
            wire = self.open()
            wire.send(request(path, method="HEAD"))
            wire.take_all()
            [answer] = answers(wire.data, head=True)
            self.assertEqual(answer.code, 200)
            self.assertGreater(int(answer.headers["content-length"]), 2)
            self.assertTrue(self.goes_on(wire))

    def test_other_methods(self) -> None:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "X"):
            for path in ("/", "/healthz", "/connections"):
                answer = self.ask(request(path, method=method))
                self.assertEqual((answer.code, answer.headers["allow"]), (405, "GET, HEAD"), method)
                self.assertEqual(answer.text, "only GET, HEAD here\n")
        for method in ("HEAD", "POST"):
            answer = self.ask(request("/events", method=method), head=method == "HEAD")
            self.assertEqual((answer.code, answer.headers["allow"]), (405, "GET"))

    def test_what_fails_tells_nothing(self) -> None:
        def fail(*_: object) -> Any:
            raise RuntimeError("a secret")

        self.patch(views, "connections", fail)
        answer = self.get("/connections")
        self.assertEqual((answer.code, answer.text), (500, "it failed; the log says how\n"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_what_fails_in_the_midst_of_an_answer(self) -> None:
        def fail(events: object, asked: Any) -> Any:
            asked.write(b"x")
            raise RuntimeError

        self.patch(live.Events, "render_GET", fail)
        wire = self.open()
        wire.send(request("/events"))
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertNotIn(b"it failed", wire.data)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_headers(self) -> None:
        for target in (*PATHS[2:], "/x", "/closed?x=1"):
            headers = self.get(target).headers
            expected = {
                "server": "tcpjson",
                "cache-control": "no-store",
                "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
                "cross-origin-resource-policy": "same-origin",
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
                "x-frame-options": "DENY",
            }
            self.assertEqual({name: headers.get(name) for name in expected}, expected, target)
            self.assertIn("date", headers)
        self.assertEqual(self.get("/").headers["x-frame-options"], "DENY")


class HostTests(Case):
    """`Host`."""

    def test_names_that_are_ours(self) -> None:
        for host in (
            *("localhost", "LocalHost:9100", "localhost.", "127.0.0.1", "127.0.0.1:9100", "192.0.2.7:80"),
            *(
                "[::1]",
                "[::1]:9100",
                "[2001:DB8::1]",
                "stats.example",
                "STATS.example:80",
                "stats.example.:80",
            ),
        ):
            self.assertEqual(self.get("/healthz", f"Host: {host}").code, 200, host)

    def test_other_names(self) -> None:
        for host in (
            *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:9100", ""),
            *("1", "0x7f.1", "127.1", "[::1", "::1", "[evil]", "[::1%lo]", "localhost:x", "localhost:80:80"),
            *("user@localhost", "localhost/x", "localhost localhost", "xstats.example", ":9100", "[]"),
        ):
            for path in PATHS:
                answer = self.get(path, f"Host: {host}")
                self.assertEqual(answer.code, 421, host)
                self.assertIn("--metrics-host", answer.text)
                self.assertEqual(answer.text.count("\n"), 1)
        self.assertEqual(
            self.get("/", "Host: evil.example:80").text,
            "this is not evil.example; where it is, start the server with --metrics-host evil.example\n",
        )

    def test_the_status_has_a_name(self) -> None:
        wire = self.open()
        wire.send(request("/", "Host: evil.example"))
        wire.take_all()
        self.assertTrue(wire.data.startswith(b"HTTP/1.1 421 Misdirected Request\r\n"))

    def test_none_and_two(self) -> None:
        """Checks may come without: many load balancers send none."""
        for path in (b"/healthz", b"/readyz"):
            for version in (b"1.0", b"1.1"):
                self.assertEqual(self.ask(b"GET %b HTTP/%b\r\n\r\n" % (path, version)).code, 200)
        for data in (
            b"GET /connections HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            request("/healthz", "Host: localhost", "Host: localhost"),
        ):
            answer = self.ask(data)
            self.assertEqual(answer.code, 421)
            self.assertIn("one header Host", answer.text)

    def test_what_is_shown_of_it(self) -> None:
        answer = self.get("/", "Host: <b>\x7f\x01\xff" + "y" * 1000)
        self.assertEqual(answer.code, 421)
        self.assertLess(len(answer.text), 400)
        self.assertTrue(answer.text.rstrip("\n").isprintable())

    @given(st.ip_addresses(), st.integers(0, 65535))
    def test_any_address(self, address: Any, port: int) -> None:
        host = f"[{address}]" if address.version == 6 else str(address)
        for text in (host, f"{host}:{port}"):
            self.assertTrue(is_address(host_name(text)), text)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        self.assertIn(is_address(host_name(text)), (True, False))


class BodyTests(Case):
    """Requests with bodies."""

    def refuses(self, *headers: str, body: bytes = b"") -> None:
        wire = self.open()
        wire.send(request("/healthz", *headers, method="POST") + body)
        wire.take_all()
        [answer] = answers(wire.data)
        self.assertEqual((answer.code, answer.text), (413, "a request here has no body\n"))
        self.assertEqual(answer.headers["connection"], "close")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertTrue(wire.ended)
        # What still comes is read, and goes nowhere.
        wire.send(b"x" * 500_000)
        self.assertEqual(len(answers(wire.data)), 1)

    def test_refused(self) -> None:
        def touched(length: object) -> Any:
            raise AssertionError("a file for the body")

        self.patch(http, "_getContentFile", touched)
        self.refuses("Content-Length: 5", body=b"12345")
        self.refuses("Content-Length: 100000000")
        self.refuses(f"Content-Length: {10**30}")
        self.refuses("Transfer-Encoding: chunked", body=b"5\r\n12345\r\n0\r\n\r\n")
        self.refuses("Content-Length: 5", "Expect: 100-continue")

    def test_an_empty_one(self) -> None:
        self.assertEqual(self.get("/healthz", "Content-Length: 0").code, 200)

    def test_what_cannot_be_told(self) -> None:
        for headers in (
            ["Content-Length: x"],
            ["Content-Length: 5", "Content-Length: 6"],
            ["Content-Length: 5", "Transfer-Encoding: chunked"],
            ["Transfer-Encoding: gzip"],
        ):
            wire = self.open()
            wire.send(request("/healthz", *headers))
            wire.take_all()
            self.assertTrue(wire.data.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), headers)
            self.assertEqual(wire.data.count(b"HTTP/1.1"), 1)
            self.assertTrue(wire.ended)


class ConnectionTests(Case):
    """Connections: how many, for how long, and what goes over them."""

    def test_one_after_the_other(self) -> None:
        wire = self.open()
        for _ in range(3):
            self.assertTrue(self.goes_on(wire))

    def test_pipelining(self) -> None:
        wire = self.open()
        targets = ["/healthz", "/readyz", "/x", "/closed", "/healthz"] * 20
        wire.send(b"".join(map(request, targets)))
        wire.take_all()
        codes = {"/x": 404}
        self.assertEqual(
            [answer.code for answer in answers(wire.data)], [codes.get(target, 200) for target in targets]
        )

    def test_one_answer_in_a_turn(self) -> None:
        wire = self.open()
        wire.socket.send(request() * 5)
        counts = []
        for _ in range(10):
            self.loop.turn()
            wire.take(1 << 20)
            counts.append(wire.data.count(b"ok\n"))
        self.assertEqual(sorted(set(counts)), [0, 1, 2, 3, 4, 5])

    def test_an_old_version(self) -> None:
        for target, headers in (("/healthz", []), ("/metrics", ["Connection: keep-alive"])):
            wire = self.open()
            wire.send(request(target, *headers, version="1.0"))
            wire.take_all()
            [answer] = answers(wire.data)
            self.assertEqual(answer.code, 200)
            self.assertTrue(wire.ended)

    def test_close_is_asked_for(self) -> None:
        wire = self.open()
        wire.send(request("/healthz", "Connection: close") + request())
        wire.take_all()
        [answer] = answers(wire.data)
        self.assertEqual(answer.code, 200)
        self.assertTrue(wire.ended)

    def test_no_more_than_64(self) -> None:
        wires = [self.open() for _ in range(64)]
        late = self.open()
        with self.assertRaises((ConnectionResetError, BrokenPipeError, AssertionError)):
            late.send(request())
            late.take_all()
            self.assertEqual(late.data, b"HTTP")
        self.assertEqual(late.data, b"")
        self.assertTrue(all(map(self.goes_on, wires)))
        wires[7].close()
        self.assertTrue(self.goes_on(self.open()))

    def test_silence(self) -> None:
        wire = self.open()
        self.loop.advance(9.9)
        self.assertTrue(self.goes_on(wire))
        self.loop.advance(9.9)
        self.loop.settle()
        self.assertTrue(self.goes_on(wire))
        self.loop.advance(10)
        self.assertTrue(self.cut(wire))

    def cut(self, wire: Wire) -> bool:
        """Whether the connection was cut."""
        try:
            wire.take_all()
        except ConnectionResetError:
            return True
        return wire.ended

    def test_a_byte_now_and_then(self) -> None:
        wire = self.open()
        data = request()
        for position in range(9):
            wire.send(data[position : position + 1])
            self.loop.advance(1)
        self.assertFalse(self.cut(wire))
        self.loop.advance(1)
        self.assertTrue(self.cut(wire))

    def test_long_lines_and_many_headers(self) -> None:
        for data in (
            b"GET /" + b"x" * 20_000,
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000,
            request("/", "X: " + "x" * 16_000, "Y: " + "y" * 16_000),
            request("/", *[f"X{number}: 1" for number in range(200)]),
            b"nonsense\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            request("/", "no colon"),
        ):
            wire = self.open()
            wire.send(data)
            wire.take_all()
            [answer] = answers(wire.data)
            self.assertIn(answer.code, (400, 431), data[:40])
            self.assertTrue(wire.ended)
            # It is over, whatever follows.
            wire.send(request() * 3)
            wire.take_all()
            self.assertEqual(len(answers(wire.data)), 1)

    def test_who_does_not_close(self) -> None:
        wire = self.open()
        wire.send(request("/healthz", version="1.0"))
        wire.take_all()
        self.assertTrue(wire.ended)
        self.assertEqual(len(self.site._channels), 1)
        self.loop.advance(10)
        self.loop.settle()
        self.assertEqual(self.site._channels, set())

    def test_over_tls(self) -> None:
        wire = self.open(tls=True)
        self.assertTrue(self.goes_on(wire))
        wire.send(request("/healthz", "Connection: close"))
        wire.take_all()
        self.assertEqual([answer.code for answer in answers(wire.data)], [200, 200])
        # It waits for the other to close, too, but not for long.
        self.assertEqual(len(self.site._channels), 1)
        self.loop.advance(10)
        self.loop.settle()
        self.assertEqual(self.site._channels, set())

    def test_too_many_over_tls(self) -> None:
        for _ in range(64):
            self.open()
        self.assertRaises((AssertionError, OSError), self.open, tls=True)
        self.assertEqual(len(self.site._channels), 64)


_PIECES = st.sampled_from(
    [
        *(
            b"GET",
            b"HEAD",
            b"POST",
            b" ",
            b"/",
            b"/connections",
            b"/closed",
            b"/metrics",
            b"/healthz",
            b"*",
            b"?",
        ),
        *(
            b"sort=",
            b"limit=",
            b"&",
            b"%",
            b"%00",
            b"%ff",
            b";",
            b"=",
            b"1",
            b" HTTP/1.1",
            b" HTTP/1.0",
            b" HTTP/2.0",
        ),
        *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b"\xff", b":", b": ", b"Host", b"Host: localhost\r\n"),
        *(b"Content-Length: ", b"Transfer-Encoding: chunked", b"Connection: close", b"Expect: 100-continue"),
        *(
            b"Accept: ",
            b"application/openmetrics-text;version=",
            b"Cookie: =;",
            b"Range: bytes=0-",
            b" folded",
        ),
        *(b"If-None-Match: *", b"Upgrade: h2c", b"Content-Type: multipart/form-data"),
        *(request(), request("/connections?limit=1"), request("/closed", method="HEAD")),
    ]
)


class AnyBytesTests(Case):
    @given(st.lists(_PIECES, max_size=20).map(b"".join), st.integers(1, 100), examples=150)
    def test_any_bytes(self, data: bytes, size: int) -> None:
        """Whatever comes, and however it is cut, nothing fails, and all that is open goes."""
        wire = self.open()
        try:
            for position in range(0, len(data), size):
                wire.send(data[position : position + size])
            wire.take_all()
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.assertNotIn(b"HTTP/1.1 500", wire.data)
        self.assertTrue(self.goes_on(self.open()))
        self.loop.advance(10)
        self.loop.settle()
        self.assertEqual(self.site._channels, set())
        wire.close()


class SlowReaderTests(Case):
    """Those that ask and do not read."""

    SIZE = 300_000

    def setUp(self) -> None:
        super().setUp()
        self.patch(views, "closed", lambda server, **_: {"closed": "y" * self.SIZE})

    def test_pipelined_answers_wait(self) -> None:
        """What waits is one answer, and what is left of others, whatever was asked for."""
        wire = self.open(send_buffer=4096)
        wire.send(request("/closed") * 20)
        [channel] = self.site._channels
        transport = channel.transport
        self.assertLess(
            len(transport.dataBuffer) + sum(map(len, transport._tempDataBuffer)), self.SIZE + 70_000
        )
        self.assertTrue(channel.full)
        # Who reads gets all.
        wire.take_all()
        self.assertEqual(len(answers(wire.data)), 20)
        self.assertFalse(channel.full)

    def test_who_takes_too_long_is_cut(self) -> None:
        wire = self.open(send_buffer=4096)
        wire.send(request("/closed"))
        self.assertEqual(len(self.site._channels), 1)
        self.loop.advance(9.9)
        self.loop.settle()
        self.assertEqual(len(self.site._channels), 1)
        self.loop.advance(0.1)
        self.loop.settle()
        self.assertEqual(self.site._channels, set())

    def test_who_leaves_the_end_of_an_answer(self) -> None:
        self.SIZE = 60_000
        for version in ("1.0", "1.1"):
            wire = self.open(send_buffer=4096)
            wire.send(request("/closed", version=version))
            [channel] = self.site._channels
            self.assertFalse(channel.full)
            self.loop.advance(10)
            self.loop.settle()
            self.assertEqual(self.site._channels, set())

    def test_who_goes_while_an_answer_waits(self) -> None:
        wire = self.open(send_buffer=4096)
        wire.send(request("/closed"))
        wire.close()
        self.assertEqual(self.site._channels, set())
        self.assertTrue(self.goes_on(self.open()))

    def test_who_has_not_read_all_when_it_ends(self) -> None:
        wire = self.open(send_buffer=4096)
        wire.send(request("/closed"))
        self.site.stopFactory()
        wire.take_all()
        self.assertEqual(len(answers(wire.data)), 1)
        self.assertTrue(wire.ended)

    def test_who_watches_and_reads_again(self) -> None:
        self.patch(live, "figures", lambda *_: {"x": "y" * self.SIZE})
        wire = self.open(send_buffer=4096)
        wire.send(request("/events"))
        [channel] = self.site._channels
        self.assertTrue(channel.full)
        for _ in range(20):
            self.loop.advance(1)
        wire.take_all()
        self.assertEqual(wire.data.count(b"data: "), 1)
        self.assertFalse(channel.full)
        self.loop.advance(1)
        wire.take_all()
        self.assertEqual(wire.data.count(b"data: "), 2)


class TurnTests(Case):
    """Answers come one after the other, and leave time for the clients."""

    def setUp(self) -> None:
        super().setUp()
        self.work = 0.5
        self.when: list[float] = []

        def view(*_: object, **options: object) -> dict[str, Any]:
            self.when.append(self.loop.seconds())
            # It takes a while.
            self.loop.rightNow += self.work
            return {}

        self.patch(views, "closed", view)

    def test_nine_times_the_work_is_rest(self) -> None:
        wires = [self.open() for _ in range(3)]
        for wire in wires:
            wire.send(request("/closed"))
        self.assertEqual(self.when, [0])
        self.loop.advance(4.4)
        self.loop.settle()
        self.assertEqual(len(self.when), 1)
        self.loop.advance(0.1)
        self.loop.settle()
        self.assertEqual(self.when, [0, 5])
        self.work = 0.01
        self.loop.advance(4.5)
        self.loop.settle()
        self.assertEqual(self.when, [0, 5, 10])
        self.loop.advance(0.09)
        self.loop.settle()
        self.assertTrue(self.goes_on(wires[0]))

    def test_checks_wait_for_no_other(self) -> None:
        """Who asks for much does not make the server look dead."""
        wires = [self.open() for _ in range(3)]
        for wire in wires[:2]:
            wire.send(request("/closed"))
        for target in ("/healthz", "/readyz"):
            self.assertEqual(self.get(target).code, 200)
        self.assertEqual(self.when, [0])

    def test_who_has_gone_takes_no_time(self) -> None:
        wires = [self.open() for _ in range(3)]
        for wire in wires:
            wire.send(request("/closed"))
        wires[1].close()
        self.loop.advance(4.5)
        self.loop.settle()
        self.loop.advance(0.1)
        self.loop.settle()
        # The one that is gone had its turn, and the next had it at once.
        self.assertEqual(self.when, [0, 5])
        wires[2].take_all()
        self.assertEqual(len(answers(wires[2].data)), 1)


class EndTests(Case):
    """When it listens no more."""

    def test_all_is_closed(self) -> None:
        idle, watcher, asks = self.open(), self.open(), self.open()
        watcher.send(request("/events"))
        self.loop.rightNow += 1
        asks.socket.send(request())
        self.loop.turn()
        self.site.stopFactory()
        # It may be told twice, and begin anew.
        self.site.stopFactory()
        for wire in (idle, watcher, asks):
            wire.take_all()
            self.assertTrue(wire.ended)
            wire.close()
        self.assertNotIn(b"HTTP", asks.data)
        self.assertTrue(watcher.data.endswith(b"0\r\n\r\n"))
        self.assertEqual(self.site._channels, set())
        self.assertEqual(self.loop.getDelayedCalls(), [])
        self.assertTrue(self.goes_on(self.open()))

    def test_nothing_was_open(self) -> None:
        before = len(self.loop.getDelayedCalls())
        self.site.stopFactory()
        self.site.stopFactory()
        self.assertEqual(len(self.loop.getDelayedCalls()), before)

    def test_no_log_of_requests(self) -> None:
        seen: list[Any] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            seen.append(event)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.get("/healthz")
        self.get("/x")
        wire = self.open()
        self.loop.advance(10)
        wire.take_all()
        self.assertEqual(seen, [])


class ConstantTests(SynchronousTestCase):
    def test_the_paths_that_are_named_are_all(self) -> None:
        site = MetricsSite(TCPJSONServerFactory(Loop()), Loop())
        self.assertEqual({path.decode() for path in site._answers}, set(PATHS))
        self.assertEqual(site_module._MOST_CONNECTIONS, 64)
