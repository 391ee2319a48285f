"""Where a client connects to: from a text to an endpoint, and from an endpoint to a connector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import HostnameAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    SSL4ClientEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
    wrapClientTLS,
)
from twisted.internet.error import NotConnectingError
from twisted.internet.interfaces import IConnector, IStreamClientEndpoint
from twisted.internet.protocol import ClientFactory
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from tcpjson.core.arguments import check_kind
from tcpjson.core.text import printable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

#: The port where none is named.
PORT = 9999

_HOST = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]+))?")
# What begins the description of an endpoint, in which a host must follow.
_KINDS = ("ssl", "tcp", "tcp6", "tls")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def client_endpoint(
    reactor: Any, where: str | IStreamClientEndpoint, ca: str | None = None
) -> IStreamClientEndpoint:
    """
    The endpoint of a server.

    Args:
        where: `"host"`, `"host:port"`, `"[::1]:9999"`, or the description of a client endpoint, such as
            `"tls:host:9999"` or `"unix:/p.sock"`; or an endpoint.
        ca: a PEM file: speak TLS, with servers that one of its certificates vouches for, to a host and port.

    Raises:
        TypeError, ValueError: with one line.
    """
    if not isinstance(where, str):
        if ca is not None:
            raise ValueError("an authority is of use with a host and port only")
        check_kind("connect", '"host:port" or an endpoint', where=where)
        return where
    where = where.strip()
    shown = printable(where, 100)
    match = _HOST.fullmatch(where)
    if not where:
        raise ValueError("no server is named")
    if isIPv6Address(where):
        raise ValueError(f"{shown}: write [{shown}]")
    if match is not None and match["host"] in _KINDS and match["port"]:
        raise ValueError(f"{shown}: no host in it; {match['host']}:localhost:{match['port']} has one")
    if match is None or (match["host"] == "unix" and match["port"]):
        if ca is not None:
            raise ValueError(f"{shown}: an authority is of use with a host and port only; see trustRoots=")
        try:
            endpoint: IStreamClientEndpoint = clientFromString(reactor, where)
        except Exception as error:
            # What a description that is none raises, or a file that is not there, is for Twisted to choose.
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if "endpoint type" in reason or isinstance(error, TypeError):
                reason = "neither HOST:PORT nor a client endpoint, such as tls:HOST:PORT or unix:PATH"
            raise ValueError(f"{shown}: {printable(reason, 100)}") from None
        if isinstance(endpoint, SSL4ClientEndpoint):
            # By default it does not look at the certificate.
            raise ValueError(f"{shown}: ssl: may speak with whoever answers; take tls:HOST:PORT")
        return endpoint
    host = match["ipv6"] or match["host"]
    port = match["port"] or str(PORT)
    if len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"{shown}: there is no such port")
    try:
        plain = _plain_endpoint(reactor, host, int(port))
        return plain if ca is None else wrapClientTLS(_trust(host, ca), plain)
    except UnicodeError:
        raise ValueError(f"{shown}: no name of a host") from None


def _plain_endpoint(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    endpoint: IStreamClientEndpoint
    # An address needs no look-up, nor the threads that do it.
    if isIPAddress(host):
        endpoint = TCP4ClientEndpoint(reactor, host, port)
    elif isIPv6Address(host):
        endpoint = TCP6ClientEndpoint(reactor, host, port)
    else:
        endpoint = HostnameEndpoint(reactor, host, port)
    return endpoint


def _trust(host: str, ca: str) -> Any:
    """TLS with a host that an authority of a file vouches for."""
    try:
        blocks = _PEM.findall(Path(ca).read_bytes())
    except OSError as error:
        raise ValueError(f"{ca}: {error.strerror}") from None
    try:
        authorities = [Certificate.loadPEM(block) for block in blocks]
    except Exception:
        # What a broken certificate raises is for the library below to choose.
        raise ValueError(f"{ca}: a broken certificate") from None
    if not authorities:
        raise ValueError(f"{ca}: no certificate in it")
    return optionsForClientTLS(host, trustRoot=trustRootFromCertificates(authorities))


@implementer(IConnector)
class EndpointConnector:
    """
    Connects a `ClientFactory` through an endpoint, as often as it is told: what `reactor.connectTCP` gives
    for hosts and ports, for anything that an endpoint can reach.

    Args:
        endpoint: where to.
        factory: its protocols have an attribute `lost`, and call it when their connection is lost.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, factory: ClientFactory) -> None:
        self._endpoint = endpoint
        self._factory = factory
        self._attempt: Deferred[Any] | None = None
        self._protocol: Any = None

    @property
    def state(self) -> str:
        """`"disconnected"`, `"connecting"` or `"connected"`."""
        if self._attempt is not None:
            return "connecting"
        return "disconnected" if self._protocol is None else "connected"

    def connect(self) -> None:
        """Begin an attempt. Raises `RuntimeError` when one is under way, or has succeeded."""
        if self.state != "disconnected":
            raise RuntimeError(f"it is {self.state} already")
        self._factory.doStart()
        self._factory.startedConnecting(self)
        self._attempt = maybeDeferred(self._endpoint.connect, self._factory)
        self._attempt.addCallbacks(self._connected, self._failed)

    def _connected(self, protocol: Any) -> None:
        self._attempt = None
        self._protocol = protocol
        protocol.lost = self._lost

    def _failed(self, failure: Failure) -> None:
        self._attempt = None
        self._factory.clientConnectionFailed(self, failure)
        self._factory.doStop()

    def _lost(self, reason: Failure) -> None:
        self._protocol = None
        self._factory.clientConnectionLost(self, reason)
        self._factory.doStop()

    def stopConnecting(self) -> None:
        """Give up the attempt under way. Raises `NotConnectingError` when there is none."""
        if self._attempt is None:
            raise NotConnectingError("no attempt is under way")
        self._attempt.cancel()

    def disconnect(self) -> None:
        """Give up the attempt under way, or close the connection."""
        if self._attempt is not None:
            self.stopConnecting()
        elif self._protocol is not None:
            self._protocol.transport.loseConnection()

    def getDestination(self) -> IAddress:
        """What is known of where it leads: the endpoint's text."""
        address: IAddress = HostnameAddress(str(self._endpoint).encode(), 0)
        return address
