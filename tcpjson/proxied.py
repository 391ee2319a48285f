"""Behind a balancer: connections that begin with a PROXY header (docs/protocol.rst, section 4)."""

from __future__ import annotations

from ipaddress import IPv4Address as IPv4
from typing import TYPE_CHECKING

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol, IStreamServerEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import Interface, implementer

from tcpjson.core.proxyheader import parse_proxy_header
from tcpjson.transports import layers

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory

# Twisted has a wrapper of its own. It refuses a header that comes in pieces, believes any address, and tells
# nobody of a header without data behind it: a client that waits for `welcome` would wait for ever.


class IProxyListener(Interface):
    """A protocol that wants to know when its peer's real address is known."""

    def proxyHeaderReceived() -> None:
        """The transport's `getPeer` tells the real address from now on."""


@implementer(IHalfCloseableProtocol)
class ProxiedProtocol(ProtocolWrapper):
    """Takes the header off, and tells a wrapped `IProxyListener` before it gets any data."""

    # What came of the header; None when all has come.
    _header: bytes | None = b""
    _peer: IAddress | None = None

    def dataReceived(self, data: bytes) -> None:
        if self._header is None:
            super().dataReceived(data)
            return
        self._header += data
        try:
            header = parse_proxy_header(self._header)
        except ValueError:
            self._header = b""
            self.abortConnection()
            return
        if header is None:
            return
        rest = self._header[header.length :]
        self._header = None
        if header.source is not None:
            address, port = header.source
            kind = IPv4Address if isinstance(address, IPv4) else IPv6Address
            self._peer = kind("TCP", str(address), port)
        # Where TLS is inside, its handshake is still to come, and tells in its turn.
        listener = IProxyListener(self.wrappedProtocol, None)
        if listener is not None:
            listener.proxyHeaderReceived()
        if rest:
            super().dataReceived(rest)

    def readConnectionLost(self) -> None:
        """The peer closed its sending side: the wrapped protocol may still answer, if it can be told."""
        # TLS, where it is inside, knows no half of a connection; but its objects claim all that their
        # transport, which is this one, provides. So it is their class that is asked.
        if self._header is None and IHalfCloseableProtocol.implementedBy(type(self.wrappedProtocol)):
            IHalfCloseableProtocol(self.wrappedProtocol).readConnectionLost()
        else:
            self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Our sending side is closed."""

    def getPeer(self) -> IAddress:
        peer: IAddress = self._peer or super().getPeer()
        return peer


def is_proxied(transport: object) -> bool:
    """Whether a PROXY header is, or was, to come first."""
    return any(isinstance(layer, ProxiedProtocol) for layer in layers(transport))


class _ProxiedFactory(WrappingFactory):
    protocol = ProxiedProtocol
    noisy = False


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections begin with a PROXY header, version 1 or 2."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._endpoint.listen(_ProxiedFactory(protocolFactory))
