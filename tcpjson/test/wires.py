"""Real sockets, and real TLS on them, under a reactor whose time stands still."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import ssl
import warnings
from typing import Any

import trustme
from twisted.internet import tcp, unix
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tcpjson.core.framing import FrameReader, frame
from tcpjson.core.limits import LARGEST_FRAME
from tcpjson.tlstransport import BoundedTLSFactory

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


def run_due(clock: Clock) -> bool:
    """
    Run what is due now, but not what that makes due: one pass of a reactor, where `advance(0)` would run
    all. Returns whether there was anything.
    """
    due = [call for call in clock.calls if call.getTime() <= clock.seconds()]
    for call in due:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)
    return bool(due)


class Loop(Clock):
    """
    What transports need of a reactor. Nothing happens but in `turn`, `settle` and `until`, and the clock
    moves only when it is told to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def addReader(self, descriptor: Any) -> None:
        self.readers.add(descriptor)

    def addWriter(self, descriptor: Any) -> None:
        self.writers.add(descriptor)

    def removeReader(self, descriptor: Any) -> None:
        self.readers.discard(descriptor)

    def removeWriter(self, descriptor: Any) -> None:
        self.writers.discard(descriptor)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> tcp.Port:
        listening = tcp.Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def _handle(self, descriptor: Any, event: int) -> None:
        why = None
        reading = False
        if event & _GONE and not event & select.POLLIN:
            reading = descriptor in self.readers
            why = CONNECTION_DONE if reading else CONNECTION_LOST
        else:
            if event & select.POLLIN and descriptor in self.readers:
                reading = True
                why = descriptor.doRead()
            if why is None and event & select.POLLOUT and descriptor in self.writers:
                reading = False
                why = descriptor.doWrite()
        if why is None:
            return
        self.removeReader(descriptor)
        if reading and isinstance(why, ConnectionDone):
            descriptor.readConnectionLost(Failure(why))
        else:
            self.removeWriter(descriptor)
            descriptor.connectionLost(Failure(why))

    def turn(self, wait: float = 0.0) -> bool:
        """One pass, with a wait of some seconds for the sockets; returns whether anything happened."""
        due = run_due(self)
        poll = select.poll()
        watched = {}
        for descriptor in self.readers | self.writers:
            events = select.POLLIN * (descriptor in self.readers)
            events |= select.POLLOUT * (descriptor in self.writers)
            watched[descriptor.fileno()] = descriptor
            poll.register(descriptor.fileno(), events)
        happened = poll.poll(wait * 1000)
        for number, event in happened:
            if watched[number] in self.readers | self.writers:
                self._handle(watched[number], event)
        return due or bool(happened)

    def settle(self) -> None:
        """Go on until nothing happens any more."""
        for _ in range(20_000):
            if not self.turn():
                return
        raise AssertionError("it goes on for ever")

    def close(self) -> None:
        """Close all sockets that are still watched or paused."""
        for descriptor in self.readers | self.writers:
            if isinstance(descriptor, tcp.Port):
                descriptor.stopListening()
            else:
                descriptor.connectionLost(Failure(ConnectionDone()))
        self.settle()


@functools.cache
def authority() -> trustme.CA:
    """An authority for certificates."""
    return trustme.CA()


@functools.cache
def server_context() -> Any:
    """What a TLS server needs, with a certificate for localhost."""
    pem = authority().issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    with warnings.catch_warnings():
        # Twisted calls what pyOpenSSL means to remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        return PrivateCertificate.loadPEM(pem).options()


def tls_factory(factory: IProtocolFactory, clock: Clock) -> BoundedTLSFactory:
    """The factory with TLS around its protocols."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return BoundedTLSFactory(server_context(), False, factory, clock)


class Wire:
    """
    The peer's end of a connection: what came is in `raw` as it stood on the wire, in `data` as the peer
    understands it.

    Args:
        loop: runs the other end.
        end: a connected socket.
    """

    def __init__(self, loop: Loop, end: socket.socket) -> None:
        self.loop = loop
        self.socket = end
        end.setblocking(False)
        self.raw = b""
        self.data = b""
        #: Whether the other side has closed its sending side.
        self.ended = False
        self._reader = FrameReader()
        self._fed = 0

    def take(self, size: int) -> int:
        """Take at most `size` bytes from the socket; returns how many there were."""
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return 0
        self.ended = not data
        self.raw += data
        self._understand(data)
        return len(data)

    def _understand(self, data: bytes) -> None:
        self.data += data

    def take_all(self) -> None:
        """Let the other end run, and take all that comes, until nothing comes any more."""
        self.loop.settle()
        while not self.ended and self.take(1 << 20):
            self.loop.settle()

    def send(self, data: bytes) -> None:
        """Send bytes and let the other end run, as often as they need it."""
        view = memoryview(data)
        while view:
            view = view[self.socket.send(view) :]
            self.loop.settle()

    def seal(self, data: bytes) -> bytes:
        """The bytes as they are to go over the wire."""
        return data

    def send_payload(self, *payloads: bytes) -> None:
        """Send payloads, each in a frame."""
        self.send(b"".join(map(frame, payloads)))

    def payloads(self) -> list[bytes]:
        """The payloads that came since the last call, after taking all there is."""
        self.take_all()
        fresh = self.data[self._fed :]
        self._fed = len(self.data)
        if fresh:
            self._reader.feed(fresh)
        payloads: list[bytes] = []
        while taken := self._reader.take(1000, LARGEST_FRAME):
            payloads += taken
        return payloads

    def end(self) -> None:
        """Close the sending side."""
        self.socket.shutdown(socket.SHUT_WR)
        self.loop.settle()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
        self.loop.settle()


class TLSWire(Wire):
    """The peer's end of a TLS connection; `shake_hands` first."""

    def __init__(self, loop: Loop, end: socket.socket) -> None:
        super().__init__(loop, end)
        context = ssl.create_default_context()
        authority().configure_trust(context)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._secure = False

    def _send_raw(self) -> None:
        if data := self._outgoing.read():
            super().send(data)

    def shake_hands(self) -> None:
        """Do the handshake."""
        for _ in range(3):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_raw()
                self.take(1 << 20)
            else:
                self._secure = True
                self._send_raw()
                return
        raise AssertionError("no handshake")

    def _understand(self, data: bytes) -> None:
        self._incoming.write(data)
        while self._secure:
            try:
                if not (plain := self.tls.read(1 << 20)):
                    return
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                return
            self.data += plain

    def seal(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        super().send(self.seal(data))

    def say_goodbye(self) -> None:
        """Send close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._send_raw()


def socket_pair(send_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, between which all that is sent is there at once."""
    ours, theirs = socket.socketpair()
    if send_buffer is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    return ours, theirs


def attach(loop: Loop, protocol: IProtocol, ours: socket.socket) -> unix.Server:
    """Connect a protocol to one end of a pair."""
    transport = unix.Server(ours, protocol, "", None, 1, loop)
    transport.repstr = "<one of a pair>"
    protocol.makeConnection(transport)
    return transport


def connect(loop: Loop, factory: Any, *, tls: bool = False, send_buffer: int | None = None) -> Wire:
    """A new connection to what `factory` makes."""
    ours, theirs = socket_pair(send_buffer)
    if tls:
        factory = tls_factory(factory, loop)
    attach(loop, factory.buildProtocol(UNIXAddress(None)), ours)
    if not tls:
        return Wire(loop, theirs)
    wire = TLSWire(loop, theirs)
    wire.shake_hands()
    return wire
