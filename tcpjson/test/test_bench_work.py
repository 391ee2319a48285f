"""What a process of the benchmark's generator does, against a small server in a thread."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import runpy
import select
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.bench import closed, driver, fanout, links, paced, polling, storm, worker
from tcpjson.bench.certificate import make_certificate
from tcpjson.bench.client import Client
from tcpjson.bench.jobs import Address, Failed, Job, Ready, Report, Word
from tcpjson.bench.latency import merged
from tcpjson.bench.polling import IN, OUT, Poll
from tcpjson.bench.pool import Pool
from tcpjson.bench.replies import Checker
from tcpjson.bench.wire import frame, take

Json = dict[str, Any]
#: What a server makes of a message of its own: other bytes, or None for none.
Mangle = Callable[[Json], bytes | None]


def plain(message: Json) -> bytes | None:
    """As it should be."""
    return frame(json.dumps(message).encode())


class SmallServer:
    """
    Serves the classic messages in a thread, on a port of loopback.

    Args:
        mangle: is given each message that is to be sent.
        greeting: sent to each that connects; None: the welcome.
        tls: what TLS needs.
        end_after: close a connection when it has sent so many messages.
    """

    def __init__(
        self,
        mangle: Mangle = plain,
        greeting: bytes | None = None,
        tls: ssl.SSLContext | None = None,
        end_after: int | None = None,
    ) -> None:
        self._mangle = mangle
        self._greeting = frame(b'{"type": "welcome"}') if greeting is None else greeting
        self._tls = tls
        self._end_after = end_after
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._buffers: dict[Any, bytes] = {}
        self._counts: Counter[Any] = Counter()
        self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._wake.send(b"x")
        self._thread.join(10)
        for each in (self._wake, self._woken, self._listener, *self._buffers):
            each.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    sock: Any = key.fileobj
                    if sock is self._woken:
                        return
                    if sock is self._listener:
                        self._accept(selector)
                    elif not self._read(sock):
                        selector.unregister(sock)
                        del self._buffers[sock]
                        sock.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        sock: Any = self._listener.accept()[0]
        self.connections += 1
        if self._tls is not None:
            sock.settimeout(5)
            try:
                sock = self._tls.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        self._buffers[sock] = b""
        sock.settimeout(5)
        sock.sendall(self._greeting)
        selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: Any) -> bool:
        try:
            data = sock.recv(65536)
            while self._tls is not None and sock.pending():
                data += sock.recv(65536)
        except OSError:
            data = b""
        data = self._buffers[sock] + data if data else b""
        if not data:
            return False
        at = 0
        answers: dict[Any, list[bytes]] = {}
        while (found := take(data, at)) is not None:
            payload, at = found
            self._counts[sock] += 1
            if self._counts[sock] == self._end_after:
                return False
            self._answer(sock, json.loads(payload), answers)
        self._buffers[sock] = data[at:]
        for each, frames in answers.items():
            try:
                each.sendall(b"".join(frames))
            except OSError:
                continue
        return True

    def _answer(self, sock: Any, message: Json, answers: dict[Any, list[bytes]]) -> None:
        stamp = "2024-01-01T12:00:00.000Z"
        kind = message["type"]
        others = [each for each in self._buffers if each is not sock]
        if kind == "echo":
            reply = {"type": "echo_response", "content": message["content"], "timestamp": stamp}
        elif kind == "broadcast":
            for each in others:
                copy = {"type": "broadcast", "content": message["content"], "timestamp": stamp}
                self._give(answers, each, copy)
            reply = {"type": "broadcast_sent", "recipients": len(others)}
        else:
            reply = {"type": "pong", "ping_timestamp": message.get("timestamp")}
        if "id" in message:
            reply["id"] = message["id"]
        self._give(answers, sock, reply)

    def _give(self, answers: dict[Any, list[bytes]], sock: Any, message: Json) -> None:
        data = self._mangle(message)
        if data is not None:
            answers.setdefault(sock, []).append(data)


def every(count: int, kind: str, wrong: Mangle) -> Mangle:
    """Each so many-th message of a kind is another."""
    seen = 0

    def mangle(message: Json) -> bytes | None:
        nonlocal seen
        if message["type"] == kind:
            seen += 1
            if seen % count == 0:
                return wrong(message)
        return plain(message)

    return mangle


def job(kind: str, port: int, **fields: Any) -> Job:
    """A short one."""
    address = Address(family=socket.AF_INET, at=("127.0.0.1", port), name="127.0.0.1")
    defaults = {"address": address, "clients": 2, "seconds": 0.05, "in_flight": 4}
    return Job(kind=kind, **{**defaults, **fields})


class WorkTestCase(SynchronousTestCase):
    """Has a server."""

    def server(self, *arguments: Any, **fields: Any) -> SmallServer:
        made = SmallServer(*arguments, **fields)
        self.addCleanup(made.stop)
        return made

    def words(self, job: Job, commands: bytes = b"go\n") -> tuple[int, list[Word]]:
        """What a process says of a job, and its status."""
        out = io.BytesIO()
        status = worker.serve(io.BytesIO(msgspec.json.encode(job) + b"\n" + commands), out)
        found: list[Any] = [msgspec.json.decode(line, type=Word) for line in out.getvalue().splitlines()]
        return status, found

    def report(self, job: Job) -> Report:
        """What it reports in the end."""
        status, (ready, report) = self.words(job)
        self.assertEqual(status, 0)
        self.assertIsInstance(ready, Ready)
        assert isinstance(report, Report)
        return report

    def failure(self, job: Job) -> str:
        """Why it fails."""
        status, words = self.words(job)
        self.assertEqual(status, 1)
        failed = words[-1]
        assert isinstance(failed, Failed)
        return failed.why


class EchoTests(WorkTestCase):
    """The closed loop."""

    def test_narrow(self) -> None:
        """A connection that takes little at once loses nothing, whatever is done."""

        def narrow(make: Callable[[int], links.Link], count: int, until: float) -> list[links.Link]:
            made = links.connect(make, count, until)
            for link in made:
                link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return made

        self.patch(worker, "connect", narrow)
        for kind in ("echo", "paced", "fanout"):
            report = self.report(job(kind, self.server().port, size=300_000, rate=50.0, in_flight=6))
            self.assertGreater(report.messages, 1)
            self.assertEqual((report.wrong, report.unanswered), (0, 0))

    def test_right(self) -> None:
        """All is counted, and right."""
        report = self.report(job("echo", self.server().port))
        self.assertGreater(report.messages, 50)
        self.assertEqual((report.checked, report.wrong, report.unanswered), (report.messages, 0, 0))
        self.assertLess(report.seconds, 5)
        self.assertGreater(report.bytes, report.messages * 200)
        self.assertGreater(report.cpu_seconds, 0)

    def test_large(self) -> None:
        """Contents larger than what a socket takes at once."""
        report = self.report(job("echo", self.server().port, size=400_000, in_flight=3))
        self.assertGreater(report.messages, 5)
        self.assertEqual((report.wrong, report.unanswered), (0, 0))

    def test_wrong(self) -> None:
        """A server that answers wrongly now and then is found out."""
        wrong = every(10, "echo_response", lambda message: plain({**message, "content": "x" * 100}))
        report = self.report(job("echo", self.server(wrong).port))
        # Those of the warming-up count, too.
        self.assertGreaterEqual(report.wrong, report.messages // 10)
        self.assertIn("xxx", report.first_wrong)

    def test_remembers(self) -> None:
        """A server that gives the same answer to all is found out."""
        kept: list[bytes | None] = []

        def remember(message: Json) -> bytes | None:
            kept.append(plain(message))
            return kept[0]

        self.patch(closed, "SILENCE", 0.2)
        self.patch(closed, "TICK", 0.05)
        why = self.failure(job("echo", self.server(remember).port, clients=1, in_flight=2))
        self.assertRegex(
            why, "left 2 requests unanswered, and [0-9]+ replies were wrong, the first: .*echo_resp"
        )

    def test_silent(self) -> None:
        """A server that answers no more is told of."""
        self.patch(closed, "SILENCE", 0.2)
        self.patch(closed, "TICK", 0.05)
        silent = every(10, "echo_response", lambda message: None)
        self.assertIn("unanswered", self.failure(job("echo", self.server(silent).port)))

    def test_slow(self) -> None:
        """What is answered too late is given up, and counted."""
        self.patch(closed, "DRAIN", 0.0)
        self.patch(closed, "TICK", 0.01)

        def late(message: Json) -> bytes | None:
            time.sleep(0.002)
            return plain(message)

        report = self.report(job("echo", self.server(late).port, in_flight=30, clients=3))
        self.assertGreater(report.unanswered, 0)
        self.assertGreater(report.messages, 0)

    def test_closes(self) -> None:
        """A server that closes is told of."""
        self.assertIn("clos", self.failure(job("echo", self.server(end_after=100).port, in_flight=1)))

    def test_reset(self) -> None:
        """So is one that resets, or says no more than an error."""
        fatal = {"type": "error", "code": "rate_limited", "message": "no", "fatal": True}
        said = every(10, "echo_response", lambda message: plain(fatal))
        self.assertEqual(
            self.failure(job("echo", self.server(said).port)), "the server said rate_limited: no"
        )

    def test_tls(self) -> None:
        """Over TLS, with more than one record at once."""
        folder = Path(self.mktemp())
        folder.mkdir()
        made = make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        port = self.server(tls=context).port
        address = Address(
            family=socket.AF_INET, at=("127.0.0.1", port), name="127.0.0.1", tls=True, ca=made.authority
        )
        report = self.report(job("echo", port, address=address, size=30_000))
        self.assertEqual(report.wrong, 0)
        self.assertGreater(report.messages, 5)
        report = self.report(job("fanout", port, address=address, size=30_000))
        self.assertEqual(report.wrong, 0)
        report = self.report(job("storm", port, address=address))
        self.assertEqual(report.wrong, 0)
        other = msgspec.structs.replace(address, name="example.org")
        self.assertIn("TLS: ", self.failure(job("echo", port, address=other)))
        for ca, why in ((str(folder / "key.pem"), "no certificate"), (str(folder / "none"), "No such file")):
            lacking = msgspec.structs.replace(address, ca=ca)
            self.assertIn(why, self.failure(job("echo", port, address=lacking)))

    def test_several(self) -> None:
        """The index from which a client sends differs from client to client."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            welcome = b'{"type": "welcome"}'
            seen = []

            def serve() -> None:
                socks = [listener.accept()[0] for _ in range(2)]
                for sock in socks:
                    sock.sendall(frame(welcome))
                for sock in socks:
                    with sock:
                        data = b""
                        while (found := take(data, 0)) is None:
                            data += sock.recv(1000)
                        seen.append(json.loads(found[0])["id"])

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            # The server goes away once it knows.
            self.words(job("echo", port, in_flight=1))
            thread.join(10)
        self.assertEqual(len(set(seen)), 2)


class PacedTests(WorkTestCase):
    """The open loop."""

    def test_rate(self) -> None:
        """As many as are due, with their latencies."""
        report = self.report(job("paced", self.server().port, rate=400.0, seconds=0.3))
        self.assertEqual((report.messages, report.wrong, report.unanswered), (120, 0, 0))
        found = merged([report.histogram])
        assert found is not None
        self.assertEqual(found.count, 120)
        self.assertLess(found.percentiles[0][1], 0.1)

    def test_stall(self) -> None:
        """While the server stands still, those that are due wait, and their time runs."""
        stalled: list[Json] = []

        def stall(message: Json) -> bytes | None:
            if message["type"] == "echo_response" and len(stalled) < 101:
                stalled.append(message)
                # Behind the 80 of the warming-up.
                if len(stalled) == 100:
                    time.sleep(0.3)
            return plain(message)

        # Few may be under way: most of them are sent late, and it is not then that their time begins.
        self.patch(paced, "MOST", 3)
        report = self.report(job("paced", self.server(stall).port, rate=400.0, seconds=0.5))
        self.assertEqual((report.messages, report.wrong), (200, 0))
        found = merged([report.histogram])
        assert found is not None
        # About 120 of the 200 came due while it stood still.
        self.assertGreater(dict(found.percentiles)[75.0], 0.1)

    def test_bound(self) -> None:
        """No client has more unanswered than it may; all that are due are asked in the end."""
        self.patch(paced, "MOST", 3)
        most: list[int] = []

        class Watched(Client):
            def ask(self, count: int) -> None:
                super().ask(count)
                most.append(self.replies.outstanding)

        self.patch(paced, "Client", Watched)
        report = self.report(job("paced", self.server().port, rate=20_000.0, seconds=0.1))
        self.assertLessEqual(max(most), 3)
        self.assertEqual((report.messages, report.wrong, report.unanswered), (2000, 0, 0))

    def test_unanswered(self) -> None:
        """What was not answered counts with the time that it was waited for."""
        self.patch(paced, "DRAIN", 0.3)
        self.patch(paced, "MOST", 5)
        seen: list[Json] = []

        def forget(message: Json) -> bytes | None:
            seen.append(message)
            return plain(message) if len(seen) <= 40 else None

        report = self.report(job("paced", self.server(forget).port, rate=300.0, seconds=0.1))
        # Ten more were asked, and another ten were due.
        self.assertEqual((report.messages, report.unanswered), (10, 20))
        found = merged([report.histogram])
        assert found is not None
        self.assertEqual(found.count, 30)
        self.assertGreater(found.maximum, 0.2)

    def test_cold(self) -> None:
        """A server that does not answer when it gets warm is not measured."""
        self.patch(paced, "DRAIN", 0.1)
        silent = every(1, "echo_response", lambda message: None)
        self.assertIn("unanswered", self.failure(job("paced", self.server(silent).port, rate=100.0)))


class FanOutTests(WorkTestCase):
    """One sends, all get it."""

    def test_right(self) -> None:
        """All is counted, and right."""
        report = self.report(job("fanout", self.server().port, clients=5))
        self.assertGreater(report.messages, 20)
        self.assertEqual(report.messages % 5, 0)
        self.assertEqual((report.checked, report.wrong), (report.messages, 0))

    def test_alone(self) -> None:
        """One at a time."""
        report = self.report(job("fanout", self.server().port, clients=1, in_flight=1))
        self.assertEqual(report.wrong, 0)
        self.assertGreater(report.messages, 5)

    def test_forgets(self) -> None:
        """What is remembered of a stream has a bound."""
        self.patch(fanout, "_SEEN", 1)
        report = self.report(job("fanout", self.server().port, clients=5))
        self.assertEqual(report.wrong, 0)

    def test_wrong(self) -> None:
        """Other contents are found, whoever of the receivers gets them."""
        for count in (10, 11):
            wrong = every(count, "broadcast", lambda message: plain({**message, "content": "x" * 100}))
            report = self.report(job("fanout", self.server(wrong).port, clients=3))
            self.assertGreaterEqual(report.wrong, report.messages // count)
            self.assertIn("xxx", report.first_wrong)

    def test_all_wrong(self) -> None:
        """What all receivers get alike, and is wrong, counts for each of them."""
        made = []

        def wrong(message: Json) -> bytes | None:
            if message["type"] == "broadcast" and message["content"][0] < "d":
                made.append(message)
                message = {**message, "content": "x" * 100}
            return plain(message)

        report = self.report(job("fanout", self.server(wrong).port, clients=3))
        self.assertGreater(report.wrong, 0)
        self.assertEqual(report.wrong, len(made))

    def test_too_few(self) -> None:
        """An acknowledgement that names fewer receivers than there are is wrong."""
        wrong = every(1, "broadcast_sent", lambda message: plain({**message, "recipients": 1}))
        report = self.report(job("fanout", self.server(wrong).port))
        self.assertGreater(report.wrong, 0)
        self.assertIn("handed to 1 of 2", report.first_wrong)

    def test_lost(self) -> None:
        """A message that one of them does not get is found."""
        self.patch(fanout, "SILENCE", 0.2)
        self.patch(fanout, "TICK", 0.05)
        lost = every(20, "broadcast", lambda message: None)
        why = self.failure(job("fanout", self.server(lost).port, in_flight=1))
        self.assertIn("lack messages", why)

    def test_invented(self) -> None:
        """A message that nobody sent ends it."""
        twice = every(20, "broadcast", lambda message: (plain(message) or b"") * 20)
        self.assertIn("nobody sent", self.failure(job("fanout", self.server(twice).port)))

    def test_asides(self) -> None:
        """What is no delivery is passed over."""
        aside = frame(b'{"type": "going_away"}')
        chatty = every(3, "broadcast", lambda message: (plain(message) or b"") + aside)
        self.assertEqual(self.report(job("fanout", self.server(chatty).port)).wrong, 0)
        chatty = every(3, "broadcast_sent", lambda message: (plain(message) or b"") + aside)
        self.assertEqual(self.report(job("fanout", self.server(chatty).port)).wrong, 0)

    def test_much(self) -> None:
        """More than a socket takes at once."""
        report = self.report(job("fanout", self.server().port, size=500_000, in_flight=8, clients=1))
        self.assertEqual(report.wrong, 0)

    def test_closes(self) -> None:
        """A server that closes is told of."""
        self.assertIn("clos", self.failure(job("fanout", self.server(end_after=50).port)))

    def test_early(self) -> None:
        """A receiver that nothing came for after all is looked at later."""
        port = self.server().port
        address = job("fanout", port).address
        made = links.connect(
            lambda number: links.Link(address, None, b"", lambda data: len(data)), 2, time.monotonic() + 10
        )
        for link in made:
            self.addCleanup(link.close)
        running = fanout.FanOut(job("fanout", port, clients=1), made, driver)
        self.assertEqual(running._receive(running._receivers[made[1].fd]), 0)
        self.assertGreater(running.run().messages, 0)

    def test_no_acknowledgement(self) -> None:
        """Of a server that acknowledges nothing, none is waited for; what it says nevertheless is dropped."""

        class Driver:
            ACKNOWLEDGES = False

            def __getattr__(self, name: str) -> Any:
                return getattr(driver, name)

        self.patch(
            worker, "importlib", type("Import", (), {"import_module": staticmethod(lambda _: Driver())})
        )
        report = self.report(job("fanout", self.server().port))
        self.assertGreater(report.messages, 0)
        self.assertEqual(report.wrong, 0)


class StormTests(WorkTestCase):
    """Connections, each as short as it can be."""

    def test_right(self) -> None:
        """All is counted, and right."""
        server = self.server()
        report = self.report(job("storm", server.port, clients=5))
        self.assertGreater(report.messages, 5)
        self.assertEqual((report.checked, report.wrong, report.note), (report.messages, 0, ""))
        self.assertEqual(server.connections, report.messages)

    def test_most(self) -> None:
        """There is an end of it."""
        server = self.server()
        report = self.report(job("storm", server.port, most=7, seconds=5.0))
        self.assertEqual(report.messages, 7)
        self.assertEqual(server.connections, 7)
        self.assertIn("after 7 connections", report.note)

    def test_wrong(self) -> None:
        """Other answers than a pong to the ping are found."""
        for message in (b"[]", b"{", b'{"type": "pong"}', b'{"type": "hi"}'):
            port = self.server(lambda _, message=message: frame(message)).port
            report = self.report(job("storm", port))
            self.assertEqual(report.wrong, report.messages)
            self.assertEqual(report.first_wrong, message.decode())

    def test_silent(self) -> None:
        """No answer at all ends it."""
        self.patch(storm, "DRAIN", 0.1)
        self.patch(storm, "TICK", 0.05)
        port = self.server(lambda message: None).port
        self.assertEqual(self.failure(job("storm", port)), "2 connections got no answer")

    def test_early(self) -> None:
        """A connection on which nothing came after all is looked at later."""

        def late(message: Json) -> bytes | None:
            time.sleep(0.3)
            return plain(message)

        doing = job("storm", self.server(late).port, clients=1, most=1)
        made = []

        def make(number: int) -> links.Link:
            made.append(links.Link(doing.address, None, b"", lambda data: len(data)))
            return made[-1]

        running = storm.Storm(doing, make)
        self.assertTrue(running._begin())
        (link,) = made
        link.sock.setblocking(True)
        running._step(link.fd)
        link.sock.setblocking(False)
        self.assertEqual(running._step(link.fd), 0)
        link.sock.setblocking(True)
        self.assertEqual(running._step(link.fd), 1)

    def test_closes(self) -> None:
        """A connection that ends without an answer ends it."""
        port = self.server(end_after=1).port
        self.assertIn("instead of answering", self.failure(job("storm", port)))

    def test_in_pieces(self) -> None:
        """The greeting and the answer may come in pieces."""
        made = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for byte in frame(b'{"type": "welcome"}'):
                        sock.sendall(bytes([byte]))
                        time.sleep(0.002)
                    ping = json.loads(sock.recv(1000)[4:])
                    for byte in plain({"type": "pong", "ping_timestamp": ping["timestamp"]}) or b"":
                        sock.sendall(bytes([byte]))
                        time.sleep(0.002)
                    made.append(sock.recv(10))

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            port = listener.getsockname()[1]
            report = self.report(job("storm", port, clients=1, most=1, seconds=5.0))
            thread.join(10)
        self.assertEqual((report.messages, report.wrong), (1, 0))
        self.assertEqual(made, [b""])

    def test_no_ports(self) -> None:
        """Where this machine has no port left, it ends early, and says so."""
        server = self.server()
        address = job("storm", server.port).address

        def make(number: int) -> links.Link:
            if number == 3:
                raise OSError(errno.EADDRNOTAVAIL, "no port")
            return links.Link(address, None, b"", lambda data: len(data))

        report = storm.Storm(job("storm", server.port, seconds=5.0), make).run()
        self.assertEqual(report.messages, 3)
        self.assertIn("no port left", report.note)

    def test_refused(self) -> None:
        """Where none is to be had from the beginning, it fails; so it does of another error."""
        for number, code in ((0, errno.EADDRNOTAVAIL), (1, errno.EMFILE)):
            server = self.server()
            address = job("storm", server.port).address

            def make(
                which: int, number: int = number, code: int = code, address: Address = address
            ) -> links.Link:
                if which == number:
                    raise OSError(code, "no")
                return links.Link(address, None, b"", lambda data: len(data))

            with self.assertRaises(OSError):
                storm.Storm(job("storm", server.port), make).run()


class HoldTests(WorkTestCase):
    """Connections that only stand."""

    def test_held(self) -> None:
        """They stand until the end is asked for."""
        server = self.server()
        report = self.report(job("hold", server.port, clients=100))
        self.assertEqual(report.messages, 100)
        self.assertEqual(server.connections, 100)


class ConnectingTests(WorkTestCase):
    """When connections do not come about."""

    def test_nobody(self) -> None:
        """Nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.assertEqual(self.failure(job("echo", port)), "connection 1 of 2: Connection refused")
        self.assertEqual(self.failure(job("storm", port)), "Connection refused")
        address = msgspec.structs.replace(job("echo", port).address, tls=True)
        self.assertIn("Connection refused", self.failure(job("echo", port, address=address)))

    def test_at_once(self) -> None:
        """An address that cannot be reached from here."""
        address = Address(family=socket.AF_INET, at=("255.255.255.255", 1))
        self.assertIn("connection 1 of 2: ", self.failure(job("echo", 1, address=address)))

    def test_no_welcome(self) -> None:
        """Other greetings, none, and one without an end."""
        error = frame(b'{"type": "error", "code": "server_full", "message": "no room"}')
        for greeting, why in (
            (error, "server_full"),
            (b"SSH-2.0-x\r\n", "no frames"),
            (frame(b"[]"), "no message"),
        ):
            self.assertIn(why, self.failure(job("echo", self.server(greeting=greeting).port)))
        self.patch(worker, "CONNECT", 0.1)
        self.patch(worker, "EACH", 0.0)
        why = self.failure(job("echo", self.server(greeting=b"\x00").port))
        self.assertEqual(why, "only 0 of 2 connections were welcomed in time")
        self.patch(worker, "CONNECT", 10.0)
        self.patch(links, "_LONGEST", 100)
        endless = (1000).to_bytes(4, "big") + b"x" * 500
        self.assertIn("no greeting ends", self.failure(job("echo", self.server(greeting=endless).port)))

    def test_closed_at_once(self) -> None:
        """A server that closes instead of greeting."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                for _ in range(2):
                    listener.accept()[0].close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            why = self.failure(job("echo", listener.getsockname()[1]))
            thread.join(10)
        self.assertIn("before its greeting", why)

    def test_interrupted(self) -> None:
        """Whatever ends it, no connection is left open."""
        server = self.server()
        address = job("echo", server.port).address
        made = []

        def ready(data: bytes) -> int | None:
            raise KeyboardInterrupt

        def make(number: int) -> links.Link:
            made.append(links.Link(address, None, b"", ready))
            return made[-1]

        with self.assertRaises(KeyboardInterrupt):
            links.connect(make, 3, time.monotonic() + 10)
        self.assertEqual([link.sock.fileno() for link in made], [-1, -1, -1])

    def test_hello(self) -> None:
        """What is to be said first is said, in pieces where it must be."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = Address(family=socket.AF_INET, at=listener.getsockname())
            hello = b"x" * 20_000_000
            got = []

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    size = 0
                    while size < len(hello):
                        size += len(sock.recv(1 << 20))
                    got.append(size)
                    sock.sendall(b"hi, there")

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            (link,) = links.connect(
                lambda number: links.Link(address, None, hello, lambda data: 2), 1, time.monotonic() + 20
            )
            thread.join(10)
            link.close()
        self.assertEqual(got, [len(hello)])
        self.assertEqual(link.came, b", there")

    def test_files(self) -> None:
        """More connections than files may be open."""
        limits: list[tuple[int, int]] = []
        self.patch(resource, "setrlimit", lambda which, pair: limits.append(pair))
        infinity = resource.RLIM_INFINITY
        for pair in ((infinity, infinity), (500, 1000)):
            self.patch(resource, "getrlimit", lambda which, pair=pair: pair)
            worker.allow_files(400)
        self.assertEqual(limits, [])
        worker.allow_files(600)
        self.patch(resource, "getrlimit", lambda which: (100, infinity))
        worker.allow_files(600)
        self.assertEqual(limits, [(650, 1000), (650, infinity)])
        self.patch(resource, "getrlimit", lambda which: (500, 1000))
        self.assertIn("the system allows 1000", self.failure(job("echo", 1, clients=1000)))


class ProcessTests(WorkTestCase):
    """The process itself."""

    def test_nobody_begins(self) -> None:
        """When whoever started it is gone before the work, it is not done."""
        status, words = self.words(job("echo", self.server().port), commands=b"")
        self.assertEqual(status, 1)
        self.assertEqual([type(word) for word in words], [Ready])

    def test_watch(self) -> None:
        """Once the work has begun, the end of whoever started it is the end of the process."""
        left: list[int] = []
        ended = threading.Event()

        def leave(status: int) -> None:
            left.append(status)
            ended.set()

        self.patch(os, "_exit", leave)
        commands = worker._Commands(io.BytesIO(b"job\ngo\nmore"))
        self.assertEqual(commands.readline(), b"job\n")
        self.assertEqual(left, [])
        self.assertEqual(commands.readline(), b"go\n")
        self.assertTrue(ended.wait(10))
        self.assertEqual(left, [1])
        self.assertEqual(commands.readline(), b"")

    def test_main(self) -> None:
        """It is told by its standard input; nobody need read what it says."""

        class Streams:
            def __init__(self, commands: bytes, out: Any) -> None:
                self.stdin = io.TextIOWrapper(io.BytesIO(commands))
                self.stdout = io.TextIOWrapper(out)

        class Broken(io.BytesIO):
            def write(self, data: Any) -> int:
                raise BrokenPipeError

        self.patch(os, "_exit", lambda status: None)
        line = msgspec.json.encode(job("hold", self.server().port)) + b"\n"
        for out, status in ((io.BytesIO(), 1), (Broken(), 1)):
            self.patch(worker, "sys", Streams(line, out))
            self.assertEqual(worker.main(), status)

    def test_program(self) -> None:
        """As a program, it ends with that status."""
        left: list[int] = []
        self.patch(os, "_exit", left.append)
        self.patch(sys, "argv", ["worker"])
        self.patch(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        line = msgspec.json.encode(job("hold", self.server().port)) + b"\ngo\n"
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
        self.patch(sys, "modules", {name: each for name, each in sys.modules.items() if each is not worker})
        runpy.run_module("tcpjson.bench.worker", run_name="__main__")
        until = time.monotonic() + 10
        while len(left) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        # Both its end, and that of its standard input.
        self.assertEqual(sorted(left), [0, 1])


class PollingTests(SynchronousTestCase):
    """Waiting where there is no epoll."""

    def setUp(self) -> None:
        self.ours, self.other = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.other.close)

    def test_poll(self) -> None:
        """It tells the same."""
        polled = Poll()
        polled.register(self.ours.fileno(), IN)
        self.assertEqual(polled.poll(0), [])
        polled.modify(self.ours.fileno(), IN | OUT)
        self.assertEqual(polled.poll(1.0), [(self.ours.fileno(), OUT)])
        self.other.send(b"x")
        self.assertEqual(polled.poll(1.0), [(self.ours.fileno(), IN | OUT)])
        polled.unregister(self.ours.fileno())
        self.assertEqual(polled.poll(0), [])
        polled.close()

    def test_choice(self) -> None:
        """It is taken where there is nothing better."""
        self.patch(polling, "select", type("Select", (), {"poll": select.poll}))
        self.assertIsInstance(polling.poller(), Poll)

    def test_nap(self) -> None:
        """A nap ends when something comes, and does not oversleep."""
        for polled in (Poll(), polling.poller()):
            polled.register(self.ours.fileno(), IN)
            begin = time.perf_counter()
            polling.nap(polled, 0.02)
            polling.nap(polled, 0.0005)
            self.assertLess(time.perf_counter() - begin, 5)
            self.assertGreater(time.perf_counter() - begin, 0.01)
            self.other.send(b"x")
            polling.nap(polled, 10.0)
            self.ours.recv(1)
            polled.close()


class ClientTests(SynchronousTestCase):
    """One client, with a socket that takes little."""

    def setUp(self) -> None:
        self.ours, self.other = socket.socketpair()
        self.addCleanup(self.other.close)
        self.addCleanup(self.ours.close)
        self.ours.setblocking(False)
        self.other.setblocking(False)
        self.link: Any = type("Link", (), {"sock": self.ours, "fd": self.ours.fileno(), "came": b""})()
        self.polled = polling.poller()
        self.addCleanup(self.polled.close)

    def test_full(self) -> None:
        """A socket that takes nothing at all gets it later."""
        pool = Pool(10, 1)
        client = Client(self.link, Checker(pool, 1), 0, self.polled)
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += self.ours.send(b"x" * 1000)
        client.ask(1)
        client.flush()
        got = 0
        while got < size:
            got += len(self.other.recv(size - got))
        client.flush()
        self.assertEqual(self.other.recv(1000), bytes(pool.piece(0, 1)))

    def test_grows(self) -> None:
        """A buffer that is too small for a reply grows."""
        pool = Pool(1000, 1)
        client = Client(self.link, Checker(pool, 1), 0, self.polled)
        client.ask(1)
        answer = {"type": "echo_response", "content": pool.contents[0].decode(), "id": pool.ids[0]}
        self.other.send(plain(answer) or b"")
        data = bytearray(64)
        answered = 0
        for _ in range(100):
            answered += client.receive(data)[0]
        self.assertEqual((answered, client.replies.wrong), (1, 0))

    def test_gone(self) -> None:
        """When the other is gone, that is an error."""
        client = Client(self.link, Checker(Pool(10, 1), 1), 0, self.polled)
        self.other.close()
        with self.assertRaises(ConnectionError):
            client.receive(bytearray(100))

    def test_flush(self) -> None:
        """What is not taken at once is kept in order."""
        link, polled, other = self.link, self.polled, self.other
        pool = Pool(50_000, 10)
        client = Client(link, Checker(pool, 10), 60, polled)
        for _ in range(4):
            client.ask(10)
        self.assertEqual(client.receive(bytearray(100)), (0, 0))
        got = b""
        client.flush()
        while len(got) < 40 * pool.length:
            got += other.recv(1 << 20)
            client.flush()
        first = 60 % pool.count
        wanted = b"".join(bytes(pool.piece((first + index) % pool.count, 1)) for index in range(40))
        self.assertTrue(got == wanted)
        self.assertEqual(polled.poll(0), [])
        client.flush()
