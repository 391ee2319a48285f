"""Mutated frames to a real `twistd tcpjson`, over TCP and TLS, with a witness beside them."""

from __future__ import annotations

import contextlib
import re
import selectors
import signal
import socket
import ssl
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tcpjson.vectors import strict_json
from tests.fuzz.core import HELLO, WRONG_LOGIN, check_relays, relayed_of
from tests.fuzz.mutate import COMPRESSED, Mutator, frame
from tests.fuzz.reference import Conversation, Rules, Wrong
from tests.fuzz.result import Result, smallest
from tests.harness import CUT, LOOPBACK, TWISTD, Peer, Server, certificates
from tests.identities import new_path, tokens, users, write

TOKENS = {"sesame": "alice", "open-sesame": "bob"}
PASSWORDS = {"alice": "sesame"}

#: Clients that talk at the same time.
WIDTH = 6
# Seconds in which something must happen. A failed login is answered 2 s late.
_PATIENCE = 20.0
# Seconds without an answer after which one is left that the contract does not say all answers of.
_LOST = 1.0
# Growth that is none: what the allocator keeps, and what the statistics remember.
_MEMORY = 12 * 2**20
_OBJECTS = 3000

_RELAY = b'{"type":"broadcast",'
_LOGIN = b'{"type":"auth","mechanism":"token","token":"sesame"}'
_COMPLAINT = re.compile(r"Traceback|Unhandled|Exception|#error|#critical|failed for")
_WATCHED = "import tests.fuzz.watched; "


@dataclass(frozen=True)
class Arena:
    """A kind of server, and of connections to it."""

    name: str
    #: Its part of the frames, before that of TLS is known.
    share: float
    rules: Rules
    tls: bool = False
    proxied: bool = False
    options: tuple[str, ...] = ()


_COMPRESS_OVER = 1024
_ZLIB = Rules(compresses=True)
_AUTH = Rules(compresses=True, tokens=TOKENS, passwords=PASSWORDS)
ARENAS = [
    Arena("tcp", 4, _ZLIB),
    Arena("tcp strict", 1.5, Rules(compresses=True, strict=True)),
    Arena("tcp short", 1.5, Rules(compresses=True, max_length=2000), options=("--max-length", "2000")),
    Arena("tcp auth", 2, _AUTH),
    Arena("proxy", 1.5, _ZLIB, proxied=True),
    Arena("tls", 2, _ZLIB, tls=True),
    Arena("tls auth strict", 1, replace(_AUTH, strict=True), tls=True),
]


def _start(arena: Arena) -> Server:
    """A server of its own for an arena, that tells what it holds."""
    options = [*arena.options]
    rules = arena.rules
    if rules.strict:
        options.append("--strict")
    if rules.asks:
        options += ["--auth", f"token:{write(new_path('.tokens'), tokens(rules.tokens))}"]
        options += ["--auth", f"scram:{write(new_path('.users'), users(rules.passwords))}"]
        options += ["--allow-plain-auth", "--auth-timeout", "60"]
    port = certificates().port if arena.tls else LOOPBACK
    if arena.proxied:
        port = f"haproxy:{port}"
    return Server(*options, ports=[port], program=_WATCHED + TWISTD)


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(data)
    except zlib.error as error:
        raise Wrong(f"a compressed payload came that is broken: {error}") from None
    if not stream.eof or stream.unused_data or len(payload) <= max(len(data), _COMPRESS_OVER):
        raise Wrong(f"{len(data)} bytes came compressed that are {len(payload)}")
    return payload


class _Frames:
    """Takes bytes and gives payloads."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        #: Compressed payloads that came.
        self.compressed = 0

    def take(self, data: bytes, conversation: Conversation | None = None) -> Iterator[bytes]:
        """
        The payloads that are complete now.

        Args:
            data: what came.
            conversation: says, when it is known of each payload before, whether the next may be compressed.
        """
        buffer = self.buffer
        buffer += data
        position = 0
        while len(buffer) >= position + 4:
            length = int.from_bytes(buffer[position : position + 4], "big")
            compressed = length >= COMPRESSED
            end = position + 4 + length - COMPRESSED * compressed
            if compressed and not (conversation is not None and conversation.compresses):
                raise Wrong(
                    f"a compressed frame came unasked: {bytes(buffer[position : position + 100]).hex()}"
                )
            if len(buffer) < end:
                break
            payload = bytes(buffer[position + 4 : end])
            position = end
            if compressed:
                self.compressed += 1
                payload = _inflate(payload)
            yield payload
        del buffer[:position]


@dataclass(eq=False)
class Client:
    """One connection: what is sent on it, and how it is to end."""

    number: int
    conversation: Conversation
    pieces: deque[bytes]
    #: "close", "half" (only the sending side, then the server's end is awaited) or "reset".
    ending: str
    header_only: bool = False
    connection: Any = None
    name: str = ""
    expected_name: str = ""
    welcomed: bool = False
    input: _Frames = field(default_factory=_Frames)
    half: bool = False
    last: float = 0.0
    relays: int = 0
    wants: int = 0


class Witness:
    """A client in good order: its numbered echoes come back one by one, and all broadcasts come to it."""

    def __init__(self, fuzz: SocketFuzz) -> None:
        self._fuzz = fuzz
        rules = fuzz.arena.rules
        self.connection, _ = fuzz.connect(0)
        peer = Peer(self.connection)
        if fuzz.arena.proxied:
            peer.write(b"PROXY TCP4 127.0.0.9 127.0.0.1 9 9\r\n")
        peer.receive()
        if rules.asks:
            peer.write(frame(_LOGIN))
            if peer.receive().get("status") != "authenticated":
                raise Wrong("the witness cannot log in")
        self.connection.setblocking(False)
        self._input = _Frames()
        self._asked: deque[tuple[int, float, Callable[[dict[str, Any]], None]]] = deque()
        self._number = 0
        self._output = b""
        self.slowest = 0.0
        self.answers = 0
        self.relays: dict[str, list[Any]] = {}
        self.relayed = 0
        self.ignored: set[str] = set()

    def ask(self, then: Callable[[dict[str, Any]], None], kind: str = "echo") -> None:
        """Ask, and have `then` called with the answer, when all that was sent before has come."""
        self._number += 1
        self._asked.append((self._number, time.monotonic(), then))
        message = b'{"type":"%b","id":%d,"content":"w%d"}' % (kind.encode(), self._number, self._number)
        self._output += frame(message)
        self.write()

    def write(self) -> None:
        """Send what waits."""
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while self._output:
                self._output = self._output[self.connection.send(self._output) :]

    @property
    def waits(self) -> bool:
        """Whether answers are still to come."""
        return bool(self._asked)

    def read(self) -> None:
        """Take what came."""
        for data in _received(self.connection):
            if not data:
                raise Wrong("the witness was disconnected")
            for payload in self._input.take(data):
                self._take(payload)
        if self._asked and time.monotonic() - self._asked[0][1] > _PATIENCE:
            raise Wrong(f"the witness got no answer in {_PATIENCE:g} seconds")
        self.write()

    def _take(self, payload: bytes) -> None:
        if payload.startswith(_RELAY):
            sender, content = relayed_of(payload)
            self.relayed += 1
            if sender not in self.ignored:
                self.relays.setdefault(sender, []).append(content)
            return
        message: Any = strict_json(payload)
        number, since, then = self._asked.popleft() if self._asked else (0, 0.0, lambda _: None)
        right = message["type"] == "server_stats" or message.get("content") == f"w{number}"
        if message.get("id") != number or not right:
            raise Wrong(f"the witness asked for {number} and got {payload[:300]!r}")
        self.slowest = max(self.slowest, time.monotonic() - since)
        self.answers += 1
        then(message)


def _received(connection: Any) -> list[bytes]:
    """What there is, in pieces; an empty one at the end of it all."""
    pieces = []
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        while True:
            data = connection.recv(262144)
            pieces.append(data)
            if not data or (len(data) < 16384 and not isinstance(connection, ssl.SSLSocket)):
                break
            if len(pieces) > 16:
                break
    return pieces


class SocketFuzz:
    """
    Talks to a server of one arena.

    Args:
        arena: which.
        seed: decides, with the number of a client, what that does.
        job: of those that do the same elsewhere, which one this is.
    """

    def __init__(self, arena: Arena, seed: str, job: int) -> None:
        self.arena = arena
        self._seed = f"{seed}:{arena.name}:{job}"
        self._job = job
        self.result = Result(arena.name)
        self._selector = selectors.DefaultSelector()
        self._clients: set[Client] = set()
        self._server = _start(arena)
        try:
            self._witness = Witness(self)
        except BaseException:  # at Ctrl-C, too: nobody else knows of the process
            self._server.stop()
            raise
        self._selector.register(self._witness.connection, selectors.EVENT_READ, None)
        self._number = 0
        self._patience = _PATIENCE
        self._failed: list[tuple[Client, list[bytes], Wrong]] = []

    # Connections.

    def connect(self, number: int) -> tuple[Any, str]:
        """A connection from an address of its own, and that; where TLS is spoken, the handshake is done."""
        host = f"127.{20 + self._job}.{number // 250 % 250}.{number % 250 + 2}"
        connection = socket.socket()
        connection.settimeout(_PATIENCE)
        connection.bind((host, 0))
        connection.connect(self._server.address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        where = f"{host}:{connection.getsockname()[1]}"
        if self.arena.tls:
            return certificates().client.wrap_socket(connection, server_hostname="127.0.0.1"), where
        return connection, where

    def _plan(self, number: int) -> tuple[list[bytes], Mutator]:
        """The frames of a client."""
        mutator = Mutator(Random(f"{self._seed}:{number}"), self.arena.rules.max_length)
        rules = self.arena.rules
        chance = mutator.below(100)
        frames: list[bytes] = []
        if rules.asks:
            if chance % 17 == 0:
                frames += [frame(WRONG_LOGIN)] * (1 + mutator.below(3))
            frames += mutator.frames(mutator.below(12), 0.01 if chance < 10 else 0.0, guest=True)
            if chance % 10:
                frames.append(frame(_LOGIN))
        if rules.compresses and chance % 2:
            frames.insert(0, frame(HELLO))
        dirt = 0.05 if chance % 5 == 0 else 0.0
        count = 40 + mutator.below(600 if not dirt else 60)
        return frames + mutator.frames(count, dirt, compressed=bool(rules.compresses and chance % 2)), mutator

    def _client(self, number: int, frames: Sequence[bytes], mutator: Mutator) -> Client:
        """A client that is about to send frames."""
        stream = b"".join(frames)
        header = b""
        expected = ""
        chance = mutator.below(100)
        if self.arena.proxied:
            if chance < 10:
                header, stream = mutator.any_proxy_header(), b""
            else:
                host, port = f"10.{self._job}.{number // 250 % 250}.{number % 250}", 1 + mutator.below(65535)
                header, expected = mutator.proxy_header(host, port), f"{host}:{port}"
        if chance < 70 or len(stream) < 2:
            count = 1 + mutator.below(3)
        elif chance < 97:
            count = 1 + mutator.below(60)
        else:
            stream = stream[: 300 + mutator.below(300)]
            count = 10_000
        ending = "close" if chance % 3 == 0 else "half"
        if chance % 12 == 1:
            ending = "reset"
        elif self.arena.tls:
            ending = "close"
        data = header + stream
        conversation = Conversation(self.arena.rules, stream)
        pieces = deque(
            mutator.cuts(data, count) if count < 10_000 else [data[i : i + 1] for i in range(len(data))]
        )
        only = self.arena.proxied and not expected
        client = Client(number, conversation, pieces, "half" if only else ending, header_only=only)
        client.connection, name = self.connect(number)
        client.expected_name = expected or name
        client.connection.setblocking(False)
        client.last = time.monotonic()
        return client

    def _add(self, client: Client) -> None:
        self._clients.add(client)
        client.wants = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(client.connection, client.wants, client)

    def _remove(self, client: Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)

    # What happens.

    def _turn(self) -> None:
        """Handle what the sockets are ready for."""
        for key, events in self._selector.select(0.2):
            client = key.data
            if client is None:
                self._witness.read()
            elif client in self._clients:
                self._guarded(client, events)
        now = time.monotonic()
        for client in tuple(self._clients):
            if client.conversation.lost and not client.pieces and now - client.last > _LOST:
                self._finish(client, "left open by the contract")
                continue
            if now - client.last > self._patience:
                due = client.conversation.due()
                wrong = Wrong(f"nothing came, {due} was due to {client.conversation.frame[:300]!r}")
                self._fail(client, wrong)

    def _guarded(self, client: Client, events: int) -> None:
        try:
            self._handle(client, events)
        except Wrong as wrong:
            self._fail(client, wrong)

    def _fail(self, client: Client, wrong: Wrong) -> None:
        self._remove(client)
        client.connection.close()
        self._witness.ignored.add(client.name)
        self._failed.append((client, [], wrong))

    def _handle(self, client: Client, events: int) -> None:
        ended = False
        if events & selectors.EVENT_READ:
            try:
                for data in _received(client.connection):
                    client.last = time.monotonic()
                    ended = not data
                    for payload in client.input.take(data, client.conversation):
                        self._take(client, payload)
            except CUT as error:
                # A PROXY header that is none is answered by force.
                if not (client.header_only and not client.welcomed):
                    raise Wrong(f"the server broke off: {error}") from None
                ended = True
        if events & selectors.EVENT_WRITE:
            self._write(client)
        if ended:
            self._ended(client)
        else:
            self._go_on(client)

    def _take(self, client: Client, payload: bytes) -> None:
        if not client.welcomed:
            message: Any = strict_json(payload)
            if message.get("type") != "welcome":
                raise Wrong(f"no welcome: {payload[:300]!r}")
            client.name = message["client_id"]
            client.welcomed = True
            if client.name != client.expected_name and not client.header_only:
                raise Wrong(f"it is {client.expected_name}, and was welcomed as {client.name}")
        elif payload.startswith(_RELAY):
            client.relays += 1
            if client.relays % 50 == 0:
                relayed_of(payload)
        elif client.header_only:
            strict_json(payload)
        else:
            client.conversation.reply(payload)

    def _write(self, client: Client) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            while client.pieces and not client.conversation.ended:
                try:
                    sent = client.connection.send(client.pieces[0])
                except CUT as error:
                    # The error may be there to be read.
                    if not (client.header_only or client.conversation.ended):
                        raise Wrong(f"the server takes nothing: {error}") from None
                    client.pieces.clear()
                    return
                client.last = time.monotonic()
                if sent < len(client.pieces[0]):
                    client.pieces[0] = client.pieces[0][sent:]
                else:
                    client.pieces.popleft()
                if client.ending == "reset" and len(client.pieces) < 1 + client.number % 3:
                    self._finish(client, "we reset")
                    return

    def _go_on(self, client: Client) -> None:
        """Go on, or end it when all is said."""
        if client not in self._clients:
            return
        conversation = client.conversation
        if conversation.ended:
            # What is left is not sent; the server's end is to come.
            client.pieces.clear()
            self._close_half(client)
        elif not client.pieces and (client.welcomed or client.header_only):
            if client.ending == "half":
                if client.header_only or conversation.due() is None or client.number % 2:
                    self._close_half(client)
            elif conversation.due() is None and not client.half:
                self._finish(client, "we closed")
                return
        wants = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.pieces else 0)
        if wants != client.wants:
            client.wants = wants
            self._selector.modify(client.connection, wants, client)

    def _close_half(self, client: Client) -> None:
        if not client.half:
            client.half = True
            if not isinstance(client.connection, ssl.SSLSocket):
                with contextlib.suppress(OSError):
                    client.connection.shutdown(socket.SHUT_WR)

    def _ended(self, client: Client) -> None:
        """The server has closed."""
        conversation = client.conversation
        if client.header_only:
            self._finish(client, "header taken" if client.welcomed else "header refused")
            return
        if not (client.half or conversation.ended):
            raise Wrong("the server closed without a reason")
        if client.input.buffer:
            raise Wrong("the server closed within a frame")
        due = conversation.due()
        if due is not None and not conversation.lost:
            raise Wrong(f"no answer to {conversation.frame[:300]!r}: {sorted(due.kinds)} was due")
        self._finish(client, "fatal error" if conversation.ended else "we ended, it closed")

    def _finish(self, client: Client, how: str) -> None:
        """A client is done: count it, and see that the witness got its broadcasts."""
        self._remove(client)
        if how == "we reset":
            client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connection.close()
        result, conversation = self.result, client.conversation
        result.connections += 1
        result.frames += conversation.frames
        result.answers += conversation.answers
        result.errors += conversation.errors
        if client.input.compressed:
            result.answers["(of these, compressed)"] += client.input.compressed
        result.closes[how] += 1
        witness = self._witness
        if how == "we reset" or client.header_only or not client.welcomed or conversation.lost:
            # Nobody knows how much of it was handled.
            witness.ignored.add(client.expected_name)
            witness.relays.pop(client.expected_name, None)
            return

        def check(answer: dict[str, Any]) -> None:
            try:
                check_relays(witness.relays.pop(client.name, []), conversation)
            except Wrong as wrong:
                self._failed.append((client, [], wrong))

        witness.ask(check)

    # Runs.

    def _finish_all(self) -> None:
        """Wait until all clients are done, and the witness has its answers."""
        while self._clients or self._witness.waits:
            self._turn()

    def _settle(self) -> None:
        """The same, and that the server knows."""
        self._finish_all()
        alone: list[bool] = []

        def look(answer: dict[str, Any]) -> None:
            alone.append(answer["connected_clients"] == 1)
            if answer["details"]["errors"].get("internal"):
                raise Wrong("a handler failed")

        deadline = time.monotonic() + _PATIENCE
        while not (alone and alone[-1]):
            if time.monotonic() > deadline:
                raise Wrong("the server counts clients that are gone")
            self._witness.ask(look, "get_stats")
            self._finish_all()

    def _measure(self) -> dict[str, int]:
        """What the server holds, when only the witness is there."""
        self._settle()
        time.sleep(0.2)
        since = len(self._server.log)
        self._server.signal(signal.SIGUSR2)
        match = self._server.wait_for(r"^holds calls=(\d+) connections=(\d+) objects=(\d+)$", since=since)[0]
        figures = dict(zip(("calls", "connections", "objects"), map(int, match.groups()), strict=True))
        return {"MiB": self._server.resident(), "files": self._server.open_files(), **figures}

    def run(self, frames: int, until: float) -> Result:
        """Talk until so many frames were answered, or it is time to stop, or too much is wrong."""
        result = self.result
        begun = time.monotonic()
        result.cpu = -time.process_time()
        try:
            while result.frames < frames and time.monotonic() < until and len(self._failed) < 3:
                while len(self._clients) < WIDTH:
                    self._number += 1
                    planned, mutator = self._plan(self._number)
                    self._add(self._client(self._number, planned, mutator))
                self._turn()
                if not result.before and result.frames >= frames // 5:
                    result.before = self._measure()
            result.before = result.before or self._measure()
            result.after = self._measure()
            self._look_at_growth()
        except Exception as error:
            log = "\n  ".join(self._server.log[-20:])
            result.findings.append(f"{self._seed}: {type(error).__name__}: {error}\n  {log}")
        result.seconds = time.monotonic() - begun
        for client, _, wrong in self._failed[:3]:
            self._tell(client, wrong)
        complaints = [line for line in self._server.log if _COMPLAINT.search(line)]
        if complaints:
            result.findings.append(
                f"{self._seed}: the server's log: {complaints[0]} ({len(complaints)} lines)"
            )
        witness = self._witness
        result.witnessed, result.slowest, result.relayed = witness.answers, witness.slowest, witness.relayed
        result.cut_short = result.frames < frames
        result.cpu += time.process_time() + self._server.cpu()
        return result

    def _look_at_growth(self) -> None:
        before, after = self.result.before, self.result.after
        bounds = {
            "MiB": before["MiB"] + _MEMORY,
            "files": before["files"],
            "calls": before["calls"] + 2,
            "connections": 1,
            "objects": before["objects"] + _OBJECTS,
        }
        for name, bound in bounds.items():
            if after[name] > bound:
                told = f"{name}: {after[name]}, not {bound} at the most ({before[name]} before)"
                self.result.findings.append(f"{self._seed}: {told}")

    def _tell(self, client: Client, wrong: Wrong) -> None:
        """Tell of a client that met what must not be, with as few frames as lead to it."""
        frames, _ = self._plan(client.number)
        deadline = time.monotonic() + 60
        self._patience = min(self._patience, 5.0)

        def fails(fewer: list[bytes]) -> bool:
            if time.monotonic() > deadline:
                return False
            return self._fails(fewer, client.number)

        again = fails(frames)
        least = smallest(frames, fails) if again else frames
        self.result.findings.append(
            f"{self._seed}, client {client.number}{'' if again else ' (not again)'}: {wrong}\n"
            f"  bytes: {b''.join(least).hex()[:4000]}"
        )

    def _fails(self, frames: list[bytes], number: int) -> bool:
        """Whether a client that sends these meets what must not be."""
        _, mutator = self._plan(number)
        counted = len(self._failed)
        try:
            self._number += 1
            client = self._client(self._number, frames, mutator)
            self._add(client)
            self._finish_all()
        except (Wrong, OSError):
            return True
        failed = len(self._failed) > counted
        del self._failed[counted:]
        return failed

    def stop(self) -> None:
        """End the server, and all that is left."""
        for client in self._clients:
            client.connection.close()
        self._witness.connection.close()
        self._selector.close()
        self._server.stop()


def run_arena(arena: Arena, seed: str, job: int, frames: int, seconds: float) -> Result:
    """Fuzz one arena with so many frames, for so many seconds at the longest."""
    try:
        fuzz = SocketFuzz(arena, seed, job)
    except Exception as error:
        return Result(arena.name, findings=[f"{arena.name}: no beginning: {error!r}"])
    try:
        return fuzz.run(frames, time.monotonic() + seconds)
    finally:
        fuzz.stop()
