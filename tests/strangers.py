"""Servers that a client may meet: old ones, broken ones, other ones; and a proxy that cuts and stalls.

Each listens on loopback, on a port that the system chose, and is served by threads of this process.
"""

from __future__ import annotations

import contextlib
import json
import queue
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Self

from tests.harness import TIMEOUT, Ended, Message, Peer, encode, frame

#: What a server of version 1 says first; it can do nothing but what it must.
WELCOME: Message = {
    "type": "welcome",
    "client_id": "127.0.0.1:1",
    "message": "hello",
    "timestamp": "2024-01-01T12:00:00.000Z",
    "protocol": 1,
    "server": "stranger/1",
    "max_length": 1048576,
    "heartbeat": None,
    "compression": [],
    "features": [],
    "auth": [],
    "limits": {},
}


class Visit(Peer):
    """
    A connection that a script serves.

    Args:
        connection: its socket.
        number: which one it is, from 1 up.
    """

    def __init__(self, connection: socket.socket, number: int) -> None:
        super().__init__(connection)
        self.number = number
        #: Set when the server stops.
        self.over = threading.Event()

    def hold(self) -> None:
        """Say nothing more, and read until the client goes."""
        while self.fill():
            self.buffer.clear()

    def stall(self) -> None:
        """Say nothing more, and read nothing, until the server stops."""
        self.over.wait(TIMEOUT)


Script = Callable[[Visit], None]


class Stranger:
    """
    A server that does with each connection what a script says; it closes it when the script returns.

    Args:
        script: gets the `Visit`, in a thread of its own. That the client goes ends it, and is no failure.
        context: speak TLS.
        host: an address to listen on.
    """

    def __init__(
        self, script: Script, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._script = script
        self._context = context
        self._lock = threading.Lock()
        self._stopped = False
        self._threads: list[threading.Thread] = []
        #: Every connection that was accepted, and when, by the steady clock.
        self.visits: list[Visit] = []
        self.arrivals: list[float] = []
        #: What scripts raised that they should not.
        self.failures: list[str] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=1000)
        self.port: int = self._listening.getsockname()[1]
        #: What a client is told: host and port.
        self.where = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self._spawn(self._accept)

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                if self._stopped:
                    connection.close()
                    return
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        visit = Visit(connection, len(self.visits) + 1)
        self.visits.append(visit)
        self.arrivals.append(time.monotonic())
        self._spawn(self._run, visit)

    def _run(self, visit: Visit) -> None:
        try:
            if self._context is not None:
                visit.socket = self._context.wrap_socket(visit.socket, server_side=True)
            self._script(visit)
        except (Ended, OSError) as error:
            if isinstance(error, TimeoutError):
                self.failures.append(f"connection {visit.number}: nothing came for {TIMEOUT:g} seconds")
        except Exception as error:
            self.failures.append(f"connection {visit.number}: {type(error).__name__}: {error}")
        finally:
            visit.close()

    @property
    def accepted(self) -> int:
        """How many connections there were so far."""
        return len(self.visits)

    def stop(self) -> None:
        """
        Close all, and wait for the threads.

        Raises:
            AssertionError: a script failed.
        """
        with self._lock:
            self._stopped = True
            self._end(self._listening)
            for visit in self.visits:
                visit.over.set()
                self._end(visit.socket)
        for thread in self._threads:
            thread.join(TIMEOUT)
        if self.failures:
            raise AssertionError(f"the script failed: {self.failures}")

    @staticmethod
    def _end(connection: socket.socket) -> None:
        """Close a socket that another thread waits for, which closing alone does not wake."""
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


# Scripts. Those with arguments are made by a function.


def silent(visit: Visit) -> None:
    """Accepts, and says nothing."""
    visit.hold()


def closing(visit: Visit) -> None:
    """Accepts, and closes."""


def says(*pieces: bytes, close: bool = False, welcome: bool = False) -> Script:
    """
    Sends bytes, whatever it is asked.

    Args:
        pieces: a write each.
        close: it then closes, and does not wait for the client to go.
        welcome: a proper welcome comes before, and the client's first frame is awaited.
    """

    def script(visit: Visit) -> None:
        if welcome:
            visit.send(WELCOME)
            visit.payload()
        for piece in pieces:
            visit.write(piece)
        if not close:
            visit.hold()

    return script


def answers(reply: Callable[[Message], Iterable[object]], welcome: Message | None = None) -> Script:
    """
    A server of version 1 that answers `hello` as it should, and all else as it is told.

    Args:
        reply: gives the messages to send, for each that comes.
        welcome: what differs in its welcome.
    """

    def script(visit: Visit) -> None:
        visit.send(WELCOME | (welcome or {}))
        while True:
            message = visit.receive()
            if message["type"] == "hello":
                hello: Message = {
                    "type": "hello_response",
                    "compression": None,
                    "heartbeat": False,
                    "features": [],
                }
                visit.send(hello | {"id": message.get("id")})
            else:
                visit.send(*reply(message))

    return script


def echo(message: Message) -> Message:
    """The proper answer to an `echo`, and to anything else as if it were one."""
    return {"type": "echo_response", "content": message.get("content"), "id": message.get("id")}


def stalls_after(count: int) -> Script:
    """Answers so many messages, `hello` not counted; then it reads no more, and says nothing."""

    def script(visit: Visit) -> None:
        visit.send(WELCOME)
        left = count
        while left:
            message = visit.receive()
            if message["type"] == "hello":
                visit.send({"type": "hello_response", "id": message.get("id")})
            else:
                visit.send(echo(message))
                left -= 1
        visit.stall()

    return script


def error(code: str, **fields: object) -> Message:
    """An `error` message."""
    return {"type": "error", "code": code, "message": f"no: {code}", "fatal": True, **fields}


def refuses(code: str, **fields: object) -> Script:
    """Sends an error instead of `welcome`, and closes."""
    return says(encode(error(code, **fields)), close=True)


#: What is sent to a client that expects `welcome`, by what it is. None of it is a frame with a message.
NO_WELCOME: dict[str, bytes] = {
    "an HTTP answer": b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nConnection: close\r\n\r\n<html></html>",
    "a mail server": b"220 mail.example.org ESMTP\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "a TLS record": b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(range(111)),
    "a length of 2 GB": struct.pack(">I", 2**31 - 1) + b"{" * 1000,
    "a length of 4 GB": b"\xff" * 1000,
    "length 0": b"\0\0\0\0",
    "plain text": frame(b"hello, who are you?"),
    "JSON that is no object": encode([1, 2, 3]),
    "a number": encode(5),
    "null": encode(None),
    "broken JSON": frame(b'{"type": "welcome", '),
    "NaN": frame(b'{"type": "welcome", "protocol": NaN}'),
    "bytes that are not UTF-8": frame(b'{"type": "welcome", "message": "\xff\xfe"}'),
    "bytes that are not UTF-8 at all": frame(bytes(range(128, 256))),
    "JSON that is 100,000 deep": frame(b'{"type": "welcome", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an array 100,000 deep": frame(b"[" * 100_000 + b"]" * 100_000),
    "another message": encode({"type": "server_stats"}),
    "a type that is none": encode({"type": ["welcome"]}),
    "an object without type": encode({}),
}

#: Fields of `welcome` with which it is one all the same, if an odd one.
ODD_WELCOME: dict[str, Message] = {
    "client_id": {"client_id": 5},
    "protocol as text": {"protocol": "1"},
    "server": {"server": {"name": None}},
    "max_length as text": {"max_length": "1048576"},
    "max_length below 0": {"max_length": -1},
    "max_length beyond all": {"max_length": 10**30},
    "max_length true": {"max_length": True},
    "max_length with a point": {"max_length": 1048576.0},
    "heartbeat as text": {"heartbeat": "25"},
    "heartbeat below 0": {"heartbeat": -25},
    "heartbeat 0": {"heartbeat": 0},
    "heartbeat without end": {"heartbeat": 1e308},
    "compression": {"compression": "zlib"},
    "compression of numbers": {"compression": [1, None, {"zlib": 1}]},
    "features": {"features": 5},
    "auth": {"auth": None},
    "auth as an object": {"auth": {}},
    "limits": {"limits": [1]},
    "limits as text": {"limits": {"max_queue": "8", "frame_timeout": None, "messages_per_second": -1}},
    "id": {"id": -3},
    "timestamp": {"timestamp": {"a": 1}},
}


class Classic(Stranger):
    """
    A server as they have been pasted for years: a thread for each client, sections 1 to 3, and nothing more.

    It knows no `id` and no `hello`; times have no `Z`.

    Args:
        lacks: fields that it does not send, by the type of the message.
        answer: is called for each message before it is answered, in order; where it returns False there is no
            answer. It may wait.
    """

    def __init__(
        self,
        lacks: dict[str, tuple[str, ...]] | None = None,
        answer: Callable[[Message | str], bool] = lambda message: True,
    ) -> None:
        self._lacks = lacks or {}
        self._answer = answer
        self._clients: dict[str, Visit] = {}
        self._started = datetime.now()
        self._messages = 0
        #: What came, in order: objects, and text that is none.
        self.received: list[Message | str] = []
        super().__init__(self._handle)

    @property
    def clients(self) -> list[str]:
        """Who is connected."""
        return list(self._clients)

    def _say(self, visit: Visit, message: Message) -> None:
        missing = self._lacks.get(message["type"], ())
        visit.send({name: value for name, value in message.items() if name not in missing})

    def _handle(self, visit: Visit) -> None:
        host, port = visit.socket.getpeername()
        client_id = f"{host}:{port}"
        self._clients[client_id] = visit
        try:
            welcome = {"type": "welcome", "client_id": client_id, "message": "Connected to TCP Server"}
            self._say(visit, welcome | {"timestamp": datetime.now().isoformat()})
            while True:
                self._process(visit, client_id, visit.payload().decode())
        finally:
            del self._clients[client_id]

    def _process(self, visit: Visit, client_id: str, text: str) -> None:
        self._messages += 1
        now = datetime.now().isoformat()
        try:
            message = json.loads(text)
        except json.JSONDecodeError:
            message = None
        if not isinstance(message, dict):
            self.received.append(text)
            if self._answer(text):
                self._say(
                    visit, {"type": "echo", "original_text": text, "timestamp": now, "from_server": True}
                )
            return
        self.received.append(message)
        if not self._answer(message):
            return
        kind = message.get("type")
        reply: Message
        if kind == "ping":
            reply = {"type": "pong", "ping_timestamp": message.get("timestamp"), "pong_timestamp": now}
            reply["client_id"] = client_id
        elif kind == "echo":
            reply = {"type": "echo_response", "content": message.get("content", ""), "timestamp": now}
            reply["echoed_by"] = "TCP Server"
        elif kind == "broadcast":
            relayed = {"type": "broadcast", "from_client": client_id, "content": message.get("content")}
            others = [each for name, each in list(self._clients.items()) if name != client_id]
            for other in others:
                with contextlib.suppress(OSError):
                    self._say(other, relayed | {"timestamp": now})
            reply = {"type": "broadcast_sent", "recipients": len(others), "timestamp": now}
        elif kind == "get_stats":
            reply = {
                "type": "server_stats",
                "connected_clients": len(self._clients),
                "uptime_seconds": (datetime.now() - self._started).total_seconds(),
                "total_messages": self._messages,
                "server_start_time": self._started.isoformat(),
                "current_time": now,
            }
        else:
            reply = {
                "type": "response",
                "original_message": message,
                "timestamp": now,
                "from_server": True,
            }
        self._say(visit, reply)


class Proxy:
    """
    Stands between clients and a server, and fails as networks do.

    Args:
        target: host and port of the server, or the path of its Unix socket; may be changed. Without one a
            connection is closed as soon as it is made.
        cut_each: close each connection when so many bytes went to the client; may be changed.
    """

    def __init__(self, target: tuple[str, int] | str | None = None, cut_each: int | None = None) -> None:
        self.target = target
        self.cut_each = cut_each
        #: When each connection came, by the steady clock.
        self.arrivals: list[float] = []
        self._held = False
        self._pipes: dict[int, _Pipe] = {}
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], threading.Event]] = queue.SimpleQueue()
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self._listening.setblocking(False)
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self.port: int = self._listening.getsockname()[1]
        #: What a client is told: host and port.
        self.where = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def accepted(self) -> int:
        """How many connections came."""
        return len(self.arrivals)

    @property
    def open(self) -> int:
        """How many connections stand."""
        return len(self._pipes) // 2

    def hold(self) -> None:
        """Take what both sides send no more, and close nothing: the network is gone, and nobody is told."""
        self._do(lambda: self._hold(True))

    def release(self) -> None:
        """Go on; nothing was lost."""
        self._do(lambda: self._hold(False))

    def cut(self, after: int = 0, reset: bool = False) -> None:
        """
        End all connections that stand: at once, or each when so many bytes more went to the client.

        Args:
            after: those bytes.
            reset: do it by force.
        """
        self._do(lambda: self._cut(after, reset))

    def stop(self) -> None:
        """Close all."""
        if not self._stopped:
            self._do(self._stop)
            self._thread.join(TIMEOUT)

    def _do(self, work: Callable[[], None]) -> None:
        """Have its thread do something; it is done when this returns."""
        done = threading.Event()
        self._orders.put((work, done))
        self._bell.send(b"x")
        if not done.wait(TIMEOUT):
            raise AssertionError("the proxy hangs")

    # In its thread.

    def _run(self) -> None:
        while not self._stopped:
            for key, mask in self._selector.select():
                if key.fileobj is self._listening:
                    self._accept()
                elif key.fileobj is self._ear:
                    self._ear.recv(1)
                    work, done = self._orders.get()
                    work()
                    done.set()
                else:
                    # It may have been closed a moment ago.
                    pipe = self._pipes.get(key.fd)
                    if pipe is not None and pipe is key.data and not self._move(pipe, mask):
                        self._close(pipe)
        for each in (self._listening, self._ear, self._bell):
            each.close()
        self._selector.close()

    def _hold(self, held: bool) -> None:
        self._held = held
        for pipe in self._pipes.values():
            self._watch(pipe)

    def _cut(self, after: int, reset: bool) -> None:
        for pipe in list(self._pipes.values()):
            pipe.reset = reset
            if not after:
                self._close(pipe)
            elif pipe.counts:
                pipe.left = after

    def _stop(self) -> None:
        self._stopped = True
        self._cut(0, False)

    def _accept(self) -> None:
        try:
            client, _ = self._listening.accept()
        except OSError:
            return
        self.arrivals.append(time.monotonic())
        target = self.target
        server = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
        try:
            if target is None:
                raise ConnectionRefusedError
            # Loopback answers at once.
            server.connect(target)
        except OSError:
            client.close()
            server.close()
            return
        up = _Pipe(client, server)
        down = _Pipe(server, client)
        up.other, down.other = down, up
        down.counts, down.left = True, self.cut_each
        for pipe in (up, down):
            pipe.source.setblocking(False)
            self._pipes[pipe.source.fileno()] = pipe
            self._watch(pipe)

    def _watch(self, pipe: _Pipe) -> None:
        """Ask for what can be done: read what goes on in a pipe, write what waits in the opposite one."""
        mask = 0
        if not self._held:
            if not pipe.data and not pipe.ended:
                mask |= selectors.EVENT_READ
            if pipe.other.data:
                mask |= selectors.EVENT_WRITE
        known = pipe.source.fileno() in self._selector.get_map()
        if mask and known:
            self._selector.modify(pipe.source, mask, pipe)
        elif mask:
            self._selector.register(pipe.source, mask, pipe)
        elif known:
            self._selector.unregister(pipe.source)

    def _move(self, pipe: _Pipe, mask: int) -> bool:
        """Read from a socket and write to it what can be; False: the connection is at its end."""
        other = pipe.other
        try:
            if mask & selectors.EVENT_READ:
                pipe.take()
            if not (pipe.push() and other.push()):
                return False
        except OSError:
            return False
        if pipe.ended and other.ended and not other.data:
            return False
        self._watch(pipe)
        self._watch(other)
        return True

    def _close(self, pipe: _Pipe) -> None:
        for each in (pipe, pipe.other):
            if self._pipes.pop(each.source.fileno(), None) is not None:
                if each.source.fileno() in self._selector.get_map():
                    self._selector.unregister(each.source)
                if each.reset:
                    each.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class _Pipe:
    """One direction of a connection through a proxy."""

    other: _Pipe

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.data = b""
        self.ended = False
        #: Bytes that may still pass, where they are counted.
        self.counts = False
        self.left: int | None = None
        self.reset = False

    def take(self) -> None:
        """Read what there is, and hand on the end."""
        with contextlib.suppress(BlockingIOError):
            self.data = self.source.recv(65536)
            if not self.data:
                self.ended = True
                self.sink.shutdown(socket.SHUT_WR)

    def push(self) -> bool:
        """Send on what waits, as far as it goes; False: no more may pass."""
        if self.left is not None:
            self.data = self.data[: self.left]
        if self.data:
            try:
                sent = self.sink.send(self.data)
            except BlockingIOError:
                return True
            self.data = self.data[sent:]
            if self.left is not None:
                self.left -= sent
        return self.left != 0
