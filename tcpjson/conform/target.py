"""Where the server is, and how to get there."""

from __future__ import annotations

import re
import selectors
import ssl
from collections.abc import Callable

from tcpjson.blocking.stream import Stream, addresses, unix

#: The port where none is named.
PORT = 9999

_WHERE = re.compile(r"(?P<tls>tls:)?(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:\[\]/]+))(?::(?P<port>[0-9]{1,5}))?")


class Target:
    """
    A server's address.

    Args:
        where: `HOST`, `HOST:PORT`, `[::1]:9999`, `tls:HOST:PORT` or `unix:PATH`.
        ca: speak TLS with servers that a certificate in this PEM file vouches for.
        certificate: the PEM file of our own, with its key.

    Raises:
        ValueError: with one line.
    """

    def __init__(self, where: str, ca: str | None = None, certificate: str | None = None) -> None:
        #: As it was given.
        self.where = where
        self._path: str | None = None
        self._context: ssl.SSLContext | None = None
        if where.startswith("unix:"):
            self._path = where.removeprefix("unix:")
            if not self._path:
                raise ValueError(f"{where}: the path of a socket must follow")
            if ca is not None or certificate is not None:
                raise ValueError("there is no TLS on a Unix socket")
            return
        match = _WHERE.fullmatch(where)
        if match is None:
            raise ValueError(f"{where}: neither HOST:PORT nor unix:PATH")
        self._host = match["ipv6"] or match["host"]
        self._port = int(match["port"] or PORT)
        if not 0 < self._port < 65536:
            raise ValueError(f"{where}: there is no such port")
        if match["tls"] or ca is not None or certificate is not None:
            self._context = _context(ca, certificate)

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self._context is not None

    @property
    def local(self) -> bool:
        """Whether it is a Unix socket."""
        return self._path is not None

    @property
    def secure(self) -> bool:
        """Whether nobody between reads what is sent."""
        return self.tls or self.local

    def connect(self, until: float, now: Callable[[], float]) -> Stream:
        """
        A connection, with TLS where it is spoken.

        Args:
            until: when it must be there.
            now: the time.

        Raises:
            OSError: there is none.
        """
        error: OSError = TimeoutError("no address was found in time")
        for family, address in [unix(self._path)] if self._path else addresses(self._host, self._port):
            try:
                return self._open(family, address, until, now)
            except OSError as failed:
                error = failed
        raise error

    def _open(self, family: int, address: object, until: float, now: Callable[[], float]) -> Stream:
        stream = Stream(family, address)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(stream, selectors.EVENT_WRITE)
                if not selector.select(max(until - now(), 0)):
                    raise TimeoutError("it does not take the connection in time")
                stream.finish()
                if self._context is not None:
                    selector.unregister(stream)
                    stream.begin_tls(self._context, self._host)
                    selector.register(stream, selectors.EVENT_READ)
                    while not stream.shake_hands():
                        selector.modify(stream, stream.wanted)
                        if not selector.select(max(until - now(), 0)):
                            raise TimeoutError("the TLS handshake is not complete in time")
        except BaseException:
            stream.close()
            raise
        return stream


def _context(ca: str | None, certificate: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(f"{ca}: no certificate in it") from None
    except OSError as error:
        raise ValueError(f"{ca}: {error.strerror}") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate)
        except ssl.SSLError:
            raise ValueError(f"{certificate}: it needs a certificate and its key") from None
        except OSError as error:
            raise ValueError(f"{certificate}: {error.strerror}") from None
    return context
