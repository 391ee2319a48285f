"""TLS over another endpoint, with bounds on what a peer makes of TLS itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint, ITransport
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from zope.interface import implementer

from tcpjson.transports import descriptor_of

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime
    from twisted.python.failure import Failure

# Bytes that are read at once: the work of a turn, and what OpenSSL's buffers grow to.
_READ = 16 * 1024
# Bytes of records that may come without content for the application: a record, or a handshake with its
# certificates.
_BARREN = 32 * 1024
# Bytes that may wait below TLS. The outbox hands over 64 KiB at a time; what is more is TLS's own.
_WAITING = 128 * 1024


class BoundedTLS(BufferingTLSTransport):
    """
    TLS that is aborted when the peer sends nothing but messages of TLS, or makes it answer them and does not
    read the answers. No limit of the application's sees either: in TLS 1.3 a peer may ask for new keys
    for ever (KeyUpdate), at many times the cost of asking.
    """

    _barren = 0
    _content = 0

    def makeConnection(self, transport: ITransport) -> None:
        descriptor = descriptor_of(transport)
        if descriptor is not None:
            descriptor.bufferSize = _READ
        super().makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        # What our connections count; nothing is known of other protocols.
        content: int | None = getattr(self.wrappedProtocol, "bytes_in", None)
        if content == self._content:
            self._barren += len(data)
        else:
            self._barren = 0
            self._content = content or 0
        if self._barren > _BARREN or self._waiting() > _WAITING:
            self.abortConnection()

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        # Nothing public comes by the error, whose traceback holds OpenSSL's connection in a cycle: 50 KiB and
        # more for each connection that ends without close_notify, until the garbage collector finds them.
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)

    def _waiting(self) -> int:
        """Bytes that the socket has not taken."""
        descriptor = descriptor_of(self.transport)
        if descriptor is None:
            return 0
        # Nothing public counts them before the socket has room.
        return len(descriptor.dataBuffer) - descriptor.offset + int(descriptor._tempDataLen)


class BoundedTLSFactory(TLSMemoryBIOFactory):
    """Wraps the protocols of a factory in `BoundedTLS`."""

    protocol = BoundedTLS


@implementer(IStreamServerEndpoint)
class TLSEndpoint:
    """
    Listens with TLS over another endpoint, which may be a `tcpjson.proxied.ProxiedEndpoint`.

    Args:
        creator: makes the server's side of connections.
        endpoint: the one below.
        clock: the reactor; None for the global one.
    """

    def __init__(
        self,
        creator: IOpenSSLServerConnectionCreator,
        endpoint: IStreamServerEndpoint,
        clock: IReactorTime | None = None,
    ) -> None:
        self._creator = creator
        self._endpoint = endpoint
        self._clock = clock

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._endpoint.listen(
            BoundedTLSFactory(self._creator, False, protocolFactory, clock=self._clock)
        )
