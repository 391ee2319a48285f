"""Clients that do not read, and what they must not do to the server and to others."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.harness import Peer, Server, ServerTestCase, allow_files, encode, until

MEBIBYTE = 1024 * 1024

# The sockets' buffers are kept small: what a client does not take waits in its queue soon.
SMALL = 8192


class StuckTests(ServerTestCase):
    """Over TCP."""

    stuck = 200
    witnesses = 20
    rounds = 100
    # What the server may grow by while it serves both, in bytes. All queues hold the same objects, so that
    # there is little more than one copy of max_queue, 256 KiB; 15 MiB of broadcasts pass through. Measured:
    # 1.6 MiB.
    growth = 6 * MEBIBYTE

    def test_healthy_clients_lose_nothing(self) -> None:
        """
        Twenty witnesses exchange numbered broadcasts while two hundred others do not read.

        The witnesses get all, in order; the others end as slow consumers; the server stays small.
        """
        allow_files(self.stuck + self.witnesses)
        # Buffers much smaller than a round would make the witnesses slow, too.
        server = self.start("--max-queue", "262144", "--write-timeout", "5", "--send-buffer", "65536")
        stuck = [self.connect(server, receive_buffer=SMALL) for _ in range(self.stuck)]
        witnesses = [self.connect(server) for _ in range(self.witnesses)]
        names = {witness.client_id: number for number, witness in enumerate(witnesses)}
        self.assertEqual(len(names), self.witnesses)
        before = peak = server.resident()
        filler = "x" * 8000
        for number in range(self.rounds):
            for index, witness in enumerate(witnesses):
                witness.send({"type": "broadcast", "content": [index, number, filler], "id": number})
            for index, witness in enumerate(witnesses):
                self.expect_round(witness, names, index, number)
            peak = max(peak, server.resident())
        self.assertLess(peak - before, self.growth)

        ends = server.wait_for(r"\] disconnected (\S+) reason=(\S+) ", self.stuck)
        self.assertEqual({end[2] for end in ends}, {"slow_consumer"})
        self.assertEqual({end[1] for end in ends}, {peer.client_id for peer in stuck})
        stats = witnesses[0].stats()
        self.assertEqual(stats["connected_clients"], self.witnesses)
        self.assertEqual(stats["details"]["errors"], {"slow_consumer": self.stuck})

    def expect_round(self, witness: Peer, names: dict[str, int], index: int, number: int) -> None:
        """A witness must get the broadcast of each other one, and word of its own."""
        senders: list[int] = []
        for payload in witness.payloads(self.witnesses):
            message = json.loads(payload)
            if message["type"] == "broadcast":
                sender, count, _ = message["content"]
                self.assertEqual(count, number, f"witness {index} lost a broadcast of {sender}")
                self.assertEqual(names[message["from_client"]], sender)
                senders.append(sender)
            else:
                self.assertEqual((message["type"], message["id"]), ("broadcast_sent", number))
        self.assertEqual(sorted(senders), [other for other in range(self.witnesses) if other != index])

    def test_the_error_follows_the_frame_that_was_begun(self) -> None:
        """A slow consumer that reads at last finds whole frames, the error as the last, and the end."""
        server = self.start("--max-queue", "262144", "--send-buffer", str(SMALL))
        stuck = [self.connect(server, receive_buffer=SMALL) for _ in range(5)]
        sender = self.connect(server)
        number = 0
        errors: dict[str, int] = {}
        while errors.get("slow_consumer", 0) < len(stuck):
            self.assertLess(number, 2000)
            # Longer than what the socket takes at once: surely one is begun.
            sender.ask({"type": "broadcast", "content": [number, "x" * 20_000]})
            number += 1
            errors = sender.stats()["details"]["errors"]
        # They are aborted 2 seconds later.
        for peer in stuck:
            messages = peer.rest()
            self.assertEqual(
                [message["content"][0] for message in messages[:-1]], [*range(len(messages) - 1)]
            )
            self.assertGreater(len(messages), 1)
            # What waited is dropped, but for 64 KiB that another layer may have got.
            self.assertLess(len(messages), number - 7)
            last = messages[-1]
            self.assertEqual((last["type"], last["code"], last["fatal"]), ("error", "slow_consumer", True))
        for peer in stuck:
            peer.close()
            self.assertEqual(server.disconnects(peer.client_id)["reason"], "slow_consumer")

    def test_write_timeout(self) -> None:
        """Who takes nothing for `--write-timeout` is cut, though there is room; who takes a little is not."""
        server = self.start("--write-timeout", "1", "--send-buffer", str(SMALL))
        stuck = self.connect(server, receive_buffer=SMALL)
        slow = self.connect(server, receive_buffer=SMALL)
        sender = self.connect(server)
        size = 300_000
        sender.ask({"type": "broadcast", "content": "x" * size})
        for _ in range(11):
            # Every fifth of a second, for longer than twice the timeout.
            slow.buffer += slow.socket.recv(4096)
            sender.nothing_for(0.2)
        self.assertEqual(sender.stats()["details"]["errors"], {"slow_consumer": 1})
        # The server would wait for its end, 2 seconds at most.
        stuck.close()
        end = server.disconnects(stuck.client_id)
        self.assertEqual(end["reason"], "slow_consumer")
        self.assertGreaterEqual(float(end["seconds"]), 1)
        self.assertEqual(len(slow.receive()["content"]), size)
        self.assertEqual(slow.ask({"type": "ping"})["type"], "pong")

    def test_requests_without_reading(self) -> None:
        """
        Who sends requests and does not read is handled no further, and not cut, however long.

        When it reads, all answers are there, in order.
        """
        server = self.start("--write-timeout", "1", "--send-buffer", str(SMALL))
        greedy = self.connect(server, receive_buffer=SMALL)
        other = self.connect(server)
        before = server.resident()
        count = 12_000
        requests = [
            encode({"type": "echo", "content": f"{n:0900}", "id": n}) for n in range(10_000, 10_000 + count)
        ]
        size = len(requests[0])
        data = b"".join(requests)
        sent = greedy.write_what_fits(data)
        self.assertLess(sent, len(data), "the buffers took it all")

        def echoes() -> int:
            return int(other.stats()["details"]["messages_by_type"].get("echo", 0))

        handled = self.steady(echoes, other)
        # 64 KiB of answers and what the sockets hold: a fraction of what was sent.
        self.assertGreater(handled, 0)
        self.assertLess(handled * size, MEBIBYTE)
        self.assertLess(server.resident() - before, 4 * MEBIBYTE)

        got = 0
        while got < count:
            for payload in greedy.payloads(sent // size - got):
                answer = json.loads(payload)
                expected = 10_000 + got
                self.assertEqual((answer["id"], answer["content"]), (expected, f"{expected:0900}"))
                got += 1
            sent += greedy.write_what_fits(data[sent:])
        self.assertEqual(greedy.ask({"type": "ping"})["type"], "pong")
        self.assertEqual(other.stats()["details"]["errors"], {})

    def steady(self, figure: Callable[[], int], other: Peer) -> int:
        """Wait until a figure stops to grow, and see that it stays the same for 2 seconds."""
        seen = [0]

        def stopped() -> bool:
            seen.append(figure())
            return seen[-1] > 0 and len(seen) > 20 and len(set(seen[-20:])) == 1

        until(stopped, "requests are handled no more")
        other.nothing_for(2)
        self.assertEqual(figure(), seen[-1])
        return seen[-1]


class StuckProxyTests(StuckTests):
    """Behind a proxy, where bytes pass another layer."""

    proxied = True
    # Measured: 15 MiB.
    growth = 30 * MEBIBYTE


class StuckTLSTests(StuckTests):
    """Over TLS."""

    tls = True
    # TLS is handed up to 64 KiB at a time and keeps them encrypted, a copy for each of 200. Measured: 26 MiB.
    growth = 40 * MEBIBYTE


class LeavingTests(ServerTestCase):
    """Clients that leave in the middle."""

    def leave(self, server: Server, how: str) -> None:
        """Send 2,000 broadcasts and leave at once; each of three witnesses must get all."""
        witnesses = [self.connect(server) for _ in range(3)]
        leaver = self.connect(server)
        count = 2000
        leaver.write(b"".join(encode({"type": "broadcast", "content": n}) for n in range(count)))
        getattr(leaver, how)()
        figures = server.disconnects(leaver.client_id)
        for witness in witnesses:
            # The pong comes behind all that was handed out.
            witness.send({"type": "ping"})
            got = []
            while (message := witness.receive())["type"] == "broadcast":
                got.append(message["content"])
            self.assertEqual(got, [*range(len(got))])
            self.assertEqual(len(got), count, f"broadcasts are missing; the log says {figures}")

    def test_closing_without_reading(self) -> None:
        """What was sent before the end is handled, though nobody is there for the answers."""
        self.leave(self.start(), "close")

    def test_many_that_close_without_reading(self) -> None:
        """Again and again: what arrives must not depend on who is faster."""
        server = self.start()
        for _ in range(20):
            self.leave(server, "close")
