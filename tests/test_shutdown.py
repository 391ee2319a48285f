"""What SIGTERM leads to: no answer is lost, and nobody can hold it up."""

from __future__ import annotations

import signal
import threading
import time

from tests.harness import (
    CUT,
    LOOPBACK,
    TIMEOUT,
    Ended,
    Message,
    Peer,
    Server,
    ServerTestCase,
    certificates,
    encode,
    until,
)

PING = {"type": "ping"}

# Seconds that clients have to hear that the server goes away.
FAREWELL = 1.0


class Received:
    """
    What a client gets that asks for echoes, whose `id` count from 0, up to the end. `outcome` says how it
    ended, or what was wrong.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.outcome = ""
        self.answered = 0
        #: Requests that came too late.
        self.refused = 0

    def run(self) -> None:
        """Read all."""
        try:
            self.read()
        except Ended as ended:
            self.outcome = f"reset after {self.answered} and {self.refused}" if ended.reset else "the end"
        except Exception as error:
            self.outcome = f"{type(error).__name__} after {self.answered} and {self.refused}: {error}"

    def read(self) -> None:
        """
        Read up to the end.

        Raises:
            Ended: always, at last.
            AssertionError: an answer is missing, or is not what it should be.
        """
        while (message := self.peer.receive()).get("id") == self.answered:
            assert message["type"] == "echo_response", message
            self.answered += 1
            self.went_on()
        # The goodbye.
        assert (message.get("code"), message.get("id")) == ("going_away", None), message
        while True:
            message = self.peer.receive()
            assert message.get("code") == "going_away", message
            assert message.get("id") == self.answered + self.refused, message
            self.refused += 1
            self.went_on()

    def went_on(self) -> None:
        """A request is done with."""


class Flood(Received, threading.Thread):
    """One with hundreds of requests in flight, that goes on to the end."""

    flight = 400

    def __init__(self, peer: Peer) -> None:
        threading.Thread.__init__(self, daemon=True)
        Received.__init__(self, peer)
        self._sent = 0

    def went_on(self) -> None:
        while self._sent - self.answered - self.refused < self.flight:
            more = range(self._sent, self._sent + 100)
            self._sent += 100
            try:
                self.peer.send(*({"type": "echo", "content": n, "id": n} for n in more))
            except CUT:
                # It has been told why, which is still to be read.
                return

    def read(self) -> None:
        self.went_on()
        super().read()


# Kinds of endpoints: plain ones, such as begin with a PROXY header, those with TLS.
TCP, PROXY, TLS = KINDS = range(3)


class ShutdownTestCase(ServerTestCase):
    """Servers that are told to end, and listen on endpoints of each kind."""

    def serve(self, *options: str) -> Server:
        """Start a server."""
        return self.start(*options, ports=[LOOPBACK, f"haproxy:{LOOPBACK}", certificates().port])

    def client(self, server: Server, kind: int = TCP, receive_buffer: int | None = None) -> Peer:
        """A client at the endpoint of a kind."""
        self.tls, self.proxied = kind == TLS, kind == PROXY
        return self.connect(server, index=kind, receive_buffer=receive_buffer)

    def begin(self, server: Server, number: signal.Signals = signal.SIGTERM) -> float:
        """Have it shut down; returns when that began, by the steady clock."""
        start = time.monotonic()
        server.signal(number)
        server.wait_for(r"\] shutting down: ")
        return start

    def ended(self, server: Server, number: signal.Signals = signal.SIGTERM) -> float:
        """Wait for its end by a signal, with nothing bad in its log; returns when that was."""
        self.assertEqual(server.wait(), -number)
        now = time.monotonic()
        self.assertIn("Server Shut Down.", server.log[-1])
        for word in ("Traceback", "Unhandled", "Error", "error"):
            self.assertNotIn(word, "\n".join(server.log))
        return now

    def goodbye(self, message: Message) -> float:
        """The `retry_after` of the message that says that the server goes away, unasked."""
        self.assertEqual(
            (message["type"], message["code"], message["fatal"], "id" in message),
            ("error", "going_away", False, False),
        )
        self.assertGreaterEqual(message["retry_after"], 1)
        self.assertLess(message["retry_after"], 31)
        return float(message["retry_after"])


class SignalTests(ShutdownTestCase):
    """What signals do."""

    def test_nobody(self) -> None:
        server = self.serve()
        self.client(server).close()
        start = self.begin(server)
        self.assertLess(self.ended(server) - start, 1)

    def test_a_second_signal(self) -> None:
        """It ends at once, whatever waits; be it SIGTERM or SIGINT."""
        for first, second in (
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGTERM, signal.SIGINT),
            (signal.SIGINT, signal.SIGINT),
        ):
            server = self.serve("--send-buffer", "8192", "--grace", "60")
            stuck, sender = self.client(server, receive_buffer=8192), self.client(server)
            for _ in range(10):
                sender.ask({"type": "broadcast", "content": "x" * 50_000})
            self.begin(server, first)
            self.goodbye(sender.receive())
            start = time.monotonic()
            server.signal(second)
            self.assertLess(self.ended(server, first) - start, 0.9)
            self.assertEqual(server.reasons(), {"going_away": 2})
            del stuck

    def test_two_signals_at_once(self) -> None:
        """They come while the server does something else."""
        server = self.serve("--grace", "60")
        peer = self.client(server)
        server.signal(signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGINT)
        start = time.monotonic()
        server.signal(signal.SIGCONT)
        self.assertIn(server.wait(), (-signal.SIGTERM, -signal.SIGINT))
        self.assertLess(time.monotonic() - start, 0.9)
        [*peer.until_end()]


class EndTests(ShutdownTestCase):
    """How clients end."""

    def test_idle(self) -> None:
        """
        Nobody can connect any more; all are told, and to come back at different times; who asks for something
        is told again; after a second all are closed, in order.
        """
        server = self.serve()
        peers = [self.client(server, kind) for kind in KINDS for _ in range(7)]
        peers[1].write(encode(PING)[:-1])
        start = self.begin(server)
        pauses = [self.goodbye(peer.receive()) for peer in peers]
        self.assertGreater(len(set(pauses)), 10)
        self.assertNotEqual(pauses, sorted(pauses))
        # The port closes in the turn after.
        until(lambda: not self.listens(server), "nobody can connect", FAREWELL)
        self.assertLess(time.monotonic() - start, FAREWELL)

        peers[0].send({**PING, "id": "x"}, {"type": "broadcast", "id": 5}, {"type": "mine", "id": 6})
        for request_id in ("x", 5, 6):
            error = peers[0].receive()
            self.assertEqual((error["code"], error["id"], error["fatal"]), ("going_away", request_id, False))
            self.assertEqual(error["retry_after"], pauses[0])
        peers[1].write(encode(PING)[-1:])
        self.assertEqual(peers[1].receive()["code"], "going_away")
        self.assertEqual([peer.rest() for peer in peers], [[]] * len(peers))
        self.assertGreaterEqual(time.monotonic() - start, FAREWELL - 0.1)
        for peer in peers:
            peer.close()
        self.assertLess(self.ended(server) - start, FAREWELL + 1)
        self.assertEqual(server.reasons(), {"going_away": len(peers)})

    def listens(self, server: Server) -> bool:
        """Whether one can connect."""
        try:
            self.dial(server).close()
        except ConnectionRefusedError:
            return False
        return True

    def test_a_stuck_client(self) -> None:
        """One that does not read is aborted after `--grace`, and not before."""
        server = self.serve("--send-buffer", "8192", "--grace", "1.3")
        stuck = [self.client(server, kind, 8192) for kind in KINDS for _ in range(3)]
        sender = self.client(server)
        for _ in range(20):
            sender.ask({"type": "broadcast", "content": "x" * 50_000})
        for asking, begun, _ in zip(*[iter(stuck)] * 3, strict=True):
            asking.write_what_fits(encode({"type": "echo", "content": "x" * 1000}) * 5000)
            begun.write(b"\0\0")
        self.assertEqual(sender.ask(PING)["type"], "pong")
        start = self.begin(server)
        self.goodbye(sender.receive())
        self.assertEqual(sender.rest(), [])
        sender.close()
        taken = self.ended(server) - start
        self.assertGreaterEqual(taken, 1.2)
        self.assertLess(taken, 2.8)
        self.assertEqual(server.reasons(), {"going_away": len(stuck) + 1})

    def test_those_that_are_not_there_yet(self) -> None:
        """Without a header or handshake, refused, or not accepted: they hold up nothing."""
        server = self.serve("--max-connections", "3")
        peer = self.client(server)
        raw = [Peer(self.dial(server, index=kind)) for kind in (PROXY, TLS)]
        until(lambda: peer.stats()["details"]["connections"] == 3, "they are accepted")
        one_more = Peer(self.dial(server))
        self.assertEqual(one_more.receive()["code"], "server_full")
        server.signal(signal.SIGSTOP)
        coming = [Peer(self.dial(server, index=kind)) for kind in KINDS for _ in range(10)]
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGCONT)
        start = time.monotonic()
        server.wait_for(r"\] shutting down: ")
        self.goodbye(peer.receive())
        for other in (*raw, *coming, peer, one_more):
            [*other.until_end()]
            other.close()
        self.assertLess(self.ended(server) - start, FAREWELL + 1)


class AnswerTests(ShutdownTestCase):
    """No answer is lost."""

    def test_under_load(self) -> None:
        """
        Clients that ask without a pause: each has an answer to all that it asked for up to some request, and
        is told of each one after that, up to some other, that the server goes away.
        """
        server = self.serve()
        floods = [Flood(self.client(server, kind)) for kind in KINDS for _ in range(2)]
        for flood in floods:
            flood.start()
        until(lambda: all(flood.answered > 500 or flood.outcome for flood in floods), "the flood runs")
        start = self.begin(server)
        for flood in floods:
            flood.join(TIMEOUT)
            self.assertEqual(flood.outcome, "the end")
            self.assertGreater(flood.refused, 0)
            flood.peer.close()
        self.assertLess(self.ended(server) - start, FAREWELL + 1.5)
        for flood in floods:
            self.all_was_received(server, flood)

    def test_throttled(self) -> None:
        """Requests that wait only because there were too many are answered now."""
        server = self.serve("--rate", "1:1")
        received = Received(self.client(server))
        received.peer.send(*({"type": "echo", "content": n, "id": n} for n in range(500)))
        server.wait_for("more than the rate")
        start = self.begin(server)
        received.run()
        received.peer.close()
        self.assertEqual((received.outcome, received.answered, received.refused), ("the end", 500, 0))
        self.assertLess(self.ended(server) - start, FAREWELL + 1)

    def test_slow_readers(self) -> None:
        """
        They get all their answers in order, long after the others are gone, if they read before `--grace` is
        over: answers that the system has, and answers that wait for it to have room.
        """
        server = self.serve("--send-buffer", "65536", "--grace", "8")
        clients = [Received(self.client(server, kind, 4096)) for kind in KINDS for _ in range(2)]
        some, many = clients[::2], clients[1::2]
        filler = "x" * 1000
        witness = self.client(server)
        for count, asking in ((20, some), (1000, many)):
            requests = [encode({"type": "echo", "content": filler, "id": n}) for n in range(count)]
            for received in asking:
                received.peer.write_what_fits(b"".join(requests))
        echoes = 0
        while echoes < (echoes := witness.stats()["details"]["messages_by_type"].get("echo", 0)):
            witness.nothing_for(0.05)
        self.assertGreater(echoes, 300)
        start = self.begin(server)
        self.goodbye(witness.receive())
        self.assertEqual(witness.rest(), [])
        witness.close()
        # A connection that ends by an error would be aborted by now.
        time.sleep(max(0.0, start + FAREWELL + 2.4 - time.monotonic()))
        for received in clients:
            received.run()
            self.assertEqual(received.outcome, "the end")
            received.peer.close()
        for received in some:
            self.assertEqual((received.answered, received.refused), (20, 0))
        self.assertGreaterEqual(sum(received.answered for received in clients), echoes)
        self.assertLess(self.ended(server) - start, 7)
        for received in clients:
            self.all_was_received(server, received)

    def all_was_received(self, server: Server, received: Received) -> None:
        """A client got all that the server counts as sent to it, `welcome` and the goodbye among them."""
        figures = server.disconnects(received.peer.client_id)
        self.assertEqual(figures["reason"], "going_away")
        self.assertEqual(figures["messages_out"], str(received.answered + received.refused + 2))
