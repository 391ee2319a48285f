"""Behind a proxy: the PROXY header, and word that it has come (docs/protocol.rst, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IStreamServerEndpoint

# Twisted's public function hands out an endpoint alone, which tells nobody of a header that comes without
# a byte of the client's behind it; a client that waits for `welcome` would wait for ever.
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from zope.interface import Interface, implementer

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory


class IProxyListener(Interface):
    """A protocol that wants to know when its peer's real address is known."""

    def proxyHeaderReceived() -> None:
        """The transport's `getPeer` tells the real address from now on."""


class ProxiedProtocol(HAProxyProtocolWrapper):
    """Tells the wrapped protocol of the header before any data."""

    def dataReceived(self, data: bytes) -> None:
        known = self._proxyInfo is not None
        super().dataReceived(data)
        if not known and self._proxyInfo is not None:
            listener = IProxyListener(self.wrappedProtocol, None)
            if listener is not None:
                listener.proxyHeaderReceived()


class _ProxiedFactory(HAProxyWrappingFactory):
    protocol = ProxiedProtocol  # type: ignore[assignment]  # the base's type is not open to subclasses


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections begin with a PROXY header, version 1 or 2."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._endpoint.listen(_ProxiedFactory(factory))
