"""Clients by the thousand in a process of their own: the crowds of the fault battery.

`tests.faults.crowds` starts it as ``python swarm.py PLAN`` with the fields of `Plan` as JSON, reads events
from its output, a JSON object a line, and writes words to its input: ``counts``, ``leave``. The end of the
input ends it, too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import random
import resource
import socket
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]

# Seconds that nothing takes.
TIMEOUT = 60.0
# From <linux/in.h>; Python has no name for it. Without it, bind() looks for a port before it knows the peer.
IP_BIND_ADDRESS_NO_PORT = 24
# Files of this process that are not clients.
RESERVED = 50
# What others say to all; there can be much of it.
_BROADCAST = b'{"type":"broadcast",'


@dataclass
class Plan:
    """
    What a swarm does.

    Attributes:
        kind: the name of a function in `KINDS`, which each client runs.
        host, port: where the server is.
        count: how many clients.
        tls: speak TLS; the certificate is not looked at.
        messages: what each client sends before all else, and gets one answer each to: logins, say.
        sources: the addresses to come from, in turn.
        at_once: how many may shake hands at a time over TLS: so many are not yet to be connected while this
            process, and not the server, is busy.
        parameters: what the kind wants to know.
    """

    kind: str
    host: str
    port: int
    count: int
    tls: bool = False
    messages: list[Message] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    at_once: int = 100
    parameters: dict[str, Any] = field(default_factory=dict)


class Ended(Exception):
    """The connection ended; the text says how: the code of a fatal error, `closed`, `reset`, `refused`."""


def frame(payload: bytes) -> bytes:
    """The payload behind its length."""
    return len(payload).to_bytes(4, "big") + payload


def encode(*messages: Message) -> bytes:
    """The frames of messages."""
    return b"".join(frame(json.dumps(message).encode()) for message in messages)


def context() -> ssl.SSLContext:
    """Speaks TLS with whoever is there: the crowd is to be fast, not safe."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


class Client:
    """One of the crowd."""

    def __init__(self, swarm: Swarm, number: int) -> None:
        self.swarm = swarm
        self.plan = swarm.plan
        self.number = number
        self.was_ready = False
        self.begun = 0.0
        self._socket: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._rest = b""
        self._payloads: Iterator[bytes] = iter(())

    def dial(self) -> None:
        """Begin to connect."""
        self._rest, self._payloads = b"", iter(())
        self._socket = dialled = socket.socket()
        dialled.setblocking(False)
        sources = self.plan.sources
        if sources:
            dialled.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            dialled.bind((sources[self.number % len(sources)], 0))
        self.begun = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            dialled.connect((self.plan.host, self.plan.port))

    async def open(self, tls: bool) -> None:
        """
        Connect, with the TLS handshake if there is to be one.

        Raises:
            Ended: there is no connection.
        """
        more: dict[str, Any] = {}
        if tls:
            more = {
                "ssl": self.swarm.context,
                "server_hostname": self.plan.host,
                "ssl_handshake_timeout": TIMEOUT,
            }
        try:
            async with self.swarm.slots if tls else contextlib.nullcontext():
                if self._socket is None:
                    self.dial()
                assert self._socket is not None
                with contextlib.suppress(BlockingIOError):
                    await self.swarm.loop.sock_connect(self._socket, (self.plan.host, self.plan.port))
                self._reader, self._writer = await asyncio.open_connection(sock=self._socket, **more)
        except ConnectionRefusedError:
            raise Ended("refused") from None
        except ssl.SSLError:
            raise Ended("closed") from None
        except OSError:
            raise Ended("reset") from None

    async def receive(self) -> Message:
        """
        The next message.

        Raises:
            Ended: there is none, or it is a fatal error.
        """
        message: Message = json.loads(await self.payload())
        if message.get("fatal"):
            raise Ended(message["code"])
        return message

    async def payload(self) -> bytes:
        """The next payload that is no broadcast, or `Ended`."""
        while True:
            for payload in self._payloads:
                if not payload.startswith(_BROADCAST):
                    return payload
            self._payloads = self._split(await self.read())

    async def read(self) -> bytes:
        """What is there, or `Ended`."""
        try:
            data = await self._reader.read(1 << 20)
        except ssl.SSLError:
            raise Ended("closed") from None
        except OSError:
            raise Ended("reset") from None
        if not data:
            raise Ended("closed")
        return data

    def _split(self, data: bytes) -> Iterator[bytes]:
        """The payloads of what was read, the last of them with what was read before."""
        data = self._rest + data
        position = 0
        while len(data) >= position + 4:
            end = position + 4 + int.from_bytes(data[position : position + 4], "big")
            if len(data) < end:
                break
            yield data[position + 4 : end]
            position = end
        self._rest = data[position:]

    def write(self, data: bytes) -> None:
        """Send bytes, some day."""
        assert self._writer is not None
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until most of what was written is sent, or raise `Ended`."""
        assert self._writer is not None
        try:
            await self._writer.drain()
        except OSError:
            raise Ended("reset") from None

    async def enter(self) -> None:
        """Connect, read `welcome`, say what the plan asks for first."""
        await self.open(self.plan.tls)
        welcome = await self.receive()
        if welcome["type"] != "welcome":
            raise Ended(f"no welcome but {welcome['type']}")
        for message in self.plan.messages:
            self.write(encode(message))
            answer = await self.receive()
            if answer.get("status", "authenticated") != "authenticated" or answer["type"] == "error":
                raise Ended(f"{answer.get('status')} {answer.get('code')}")

    async def discard(self) -> None:
        """Read all until the end, and raise `Ended`."""
        while True:
            await self.receive()

    def ready(self) -> None:
        """It has come as far as it is to come."""
        if not self.was_ready:
            self.was_ready = True
            self.swarm.trips.append(time.monotonic() - self.begun)
            self.swarm.one_is_ready()

    def close(self) -> None:
        """Close what is open."""
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def run(self) -> str:
        """Do what the kind of the crowd does; returns how it ended."""
        try:
            await KINDS[self.plan.kind](self)
            return "done"
        except Ended as ended:
            return str(ended)
        except asyncio.CancelledError:
            return "stayed"
        finally:
            self.close()
            self.ready()


# What the kinds of clients do.


async def silent(client: Client) -> None:
    """Connect, send `bytes` if there are any, and nothing more: over TLS, no handshake."""
    await client.open(tls=False)
    client.write(bytes.fromhex(client.plan.parameters.get("bytes", "")))
    client.ready()
    while True:
        await client.read()


async def stay(client: Client) -> None:
    """Enter, and read what comes."""
    await client.enter()
    client.ready()
    await client.discard()


async def ping(client: Client) -> None:
    """Enter, ping, and read what comes."""
    await client.enter()
    client.write(encode({"type": "ping", "id": client.number}))
    while (await client.receive()).get("id") != client.number:
        pass
    client.ready()
    await client.discard()


async def call(client: Client) -> None:
    """Enter, ping, and leave when that is answered; so many at a time as may shake hands."""
    async with client.swarm.calls:
        await client.enter()
        client.write(encode({"type": "ping", "id": client.number}))
        while (await client.receive()).get("id") != client.number:
            pass
    client.ready()


async def flood(client: Client) -> None:
    """Enter, and send one of the `payloads`, which are hex, again and again; the answers are read away."""
    payloads = client.plan.parameters["payloads"]
    one = frame(bytes.fromhex(payloads[client.number % len(payloads)]))
    block = one * (65536 // len(one))
    await client.enter()
    client.ready()

    async def read() -> None:
        while True:
            client.swarm.counts["bytes_in"] += len(await client.read())

    async def write() -> None:
        while True:
            client.write(block)
            await client.drain()
            client.swarm.counts["bytes_out"] += len(block)
            # What is sent at once gives way to nobody.
            await asyncio.sleep(0)

    both = [asyncio.ensure_future(read()), asyncio.ensure_future(write())]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        raise next(iter(done)).exception() or Ended("done")
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def dribble(client: Client) -> None:
    """Enter, and send a frame that never ends, a byte each tenth of a second."""
    await client.enter()
    client.ready()
    reading = asyncio.ensure_future(client.discard())
    try:
        for byte in frame(b"x" * 4000):
            client.write(bytes([byte]))
            if (await asyncio.wait([reading], timeout=0.1))[0]:
                break
        await reading
    finally:
        reading.cancel()


async def beat(client: Client, answers: bool = True) -> None:
    """Enter, ask for pings, and answer them."""
    await client.enter()
    client.write(encode({"type": "hello", "heartbeat": True}))
    while (await client.receive())["type"] != "hello_response":
        pass
    client.ready()
    while True:
        message = await client.receive()
        if message["type"] == "ping" and answers:
            client.swarm.counts["pings"] += 1
            client.write(encode({"type": "pong", "ping_timestamp": message["timestamp"]}))


async def mute(client: Client) -> None:
    """Enter, ask for pings, and leave them unanswered."""
    await beat(client, answers=False)


def proof(challenge: str) -> str:
    """A client's last SCRAM message, in the right form and wrong."""
    nonce = challenge.partition(",")[0]
    return f"c=biws,{nonce},p={base64.b64encode(random.randbytes(32)).decode()}"


async def guess(client: Client) -> None:
    """Guess the password of `user`, by the `mechanisms` in turn; begin anew on each end."""
    user = client.plan.parameters["user"]
    mechanisms = itertools.cycle(client.plan.parameters["mechanisms"])
    counts = client.swarm.counts
    while True:
        try:
            await client.open(client.plan.tls)
            await client.receive()
            while True:
                mechanism = next(mechanisms)
                message: Message = {"type": "auth", "mechanism": mechanism}
                if mechanism == "plain":
                    message |= {"username": user, "password": random.randbytes(8).hex()}
                else:
                    message |= {"data": f"n,,n={user},r={random.randbytes(12).hex()}"}
                client.write(encode(message))
                answer = await client.receive()
                if answer["type"] == "auth_challenge":
                    client.write(encode(message | {"data": proof(answer["data"])}))
                    answer = await client.receive()
                counts[str(answer.get("status", answer["type"]))] += 1
                client.ready()
        except Ended as ended:
            counts[str(ended)] += 1
            client.close()
            client.ready()
            # It is not to be a storm of connects, too.
            await asyncio.sleep(0.05)


async def come_back(client: Client) -> None:
    """
    Enter; when the server ends, come again: after the `retry_after` of `going_away`, or, without such a word,
    after a pause that is random between nothing and `pause` seconds, and twice as much each time.
    """
    counts = client.swarm.counts
    pause = float(client.plan.parameters["pause"])
    await client.enter()
    client.ready()
    due = 0.0
    try:
        while True:
            message = await client.receive()
            if message.get("code") == "going_away":
                counts["going_away"] += 1
                client.swarm.pauses.append(message["retry_after"])
                due = time.monotonic() + message["retry_after"]
    except Ended as ended:
        counts[f"ended: {ended}"] += 1
    client.close()
    gone = time.monotonic()
    tries = 0
    while True:
        if not due:
            due = time.monotonic() + random.random() * min(30.0, pause * 2**tries)
        await asyncio.sleep(due - time.monotonic())
        due = 0.0
        tries += 1
        client.begun = time.monotonic()
        try:
            await client.enter()
        except Ended as ended:
            counts[f"try: {ended}"] += 1
            client.close()
            continue
        break
    client.swarm.came_back(time.monotonic() - client.begun, tries, time.monotonic() - gone)
    await client.discard()


KINDS: dict[str, Callable[[Client], Awaitable[None]]] = {
    function.__name__: function
    for function in (silent, stay, ping, call, flood, dribble, beat, mute, guess, come_back)
}


class Swarm:
    """All clients of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop = asyncio.get_running_loop()
        self.context = context()
        self.slots = asyncio.Semaphore(plan.at_once)
        self.calls = asyncio.Semaphore(plan.at_once)
        self.counts: Counter[str] = Counter()
        #: Seconds from the connection to where each wanted to be.
        self.trips: list[float] = []
        #: What the clients were told to wait for.
        self.pauses: list[float] = []
        self.begun = time.monotonic()
        self._ready = 0
        self._back: list[tuple[float, int, float]] = []
        self._first_back = 0.0
        self._tasks: list[asyncio.Task[str]] = []

    def tell(self, event: str, **fields: object) -> None:
        """Write an event."""
        print(json.dumps({"event": event, **fields}), flush=True)

    def one_is_ready(self) -> None:
        """Tell when all are."""
        self._ready += 1
        if self._ready == self.plan.count:
            self.loop.call_soon(self._all_ready)

    def _all_ready(self) -> None:
        ended = Counter(task.result() for task in self._tasks if task.done())
        self.tell("ready", seconds=time.monotonic() - self.begun, ended=ended, **self._times(self.trips))

    @staticmethod
    def _times(times: list[float]) -> Message:
        return {"median": statistics.median(times), "worst": max(times)} if times else {}

    def came_back(self, trip: float, tries: int, away: float) -> None:
        """One is there again."""
        self._back.append((trip, tries, away))
        if len(self._back) == self.plan.count:
            trips, tries_of_each, away_of_each = zip(*self._back, strict=True)
            self.tell(
                "back",
                away=max(away_of_each),
                tries=Counter(tries_of_each),
                counts=self.counts,
                pauses=[min(self.pauses, default=0), max(self.pauses, default=0)],
                **self._times(list(trips)),
            )

    async def run(self) -> None:
        """Run until it is told to leave."""
        words = asyncio.StreamReader()
        await self.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
        clients = [Client(self, number) for number in range(self.plan.count)]
        self.begun = time.monotonic()
        if self.plan.kind == "silent" or not (self.plan.tls or self.plan.kind == "call"):
            # All at once: the system connects them while we go on.
            for client in clients:
                client.dial()
        self.tell("begun")
        self._tasks = [asyncio.ensure_future(client.run()) for client in clients]
        while (word := (await words.readline()).strip()) not in (b"leave", b""):
            if word == b"counts":
                self.tell(
                    "counts",
                    counts=self.counts,
                    ended=Counter(task.result() for task in self._tasks if task.done()),
                    back=len(self._back),
                )
        for task in self._tasks:
            task.cancel()
        outcomes = Counter(await asyncio.gather(*self._tasks))
        self.tell("done", outcomes=outcomes, counts=self.counts)


def main() -> int:
    plan = Plan(**json.loads(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, plan.count + RESERVED), hard))

    async def run() -> None:
        await Swarm(plan).run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
