"""The generator's connections: many at once, non-blocking, ready for the work when they are handed out."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from tcpjson.bench.jobs import Address
from tcpjson.bench.polling import IN, OUT, poller

#: Connections that are made at the same time.
_AT_ONCE = 64
#: Bytes of one read of a greeting.
_READ = 65536
#: Bytes that a greeting may have.
_LONGEST = 1024 * 1024
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_UNDERWAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK)


class Unreachable(Exception):
    """A connection does not come about; the text says why."""


def context(address: Address) -> ssl.SSLContext | None:
    """
    What TLS needs, None where it is not spoken.

    Raises:
        Unreachable: the file of authorities is none.
    """
    if not address.tls:
        return None
    try:
        return ssl.create_default_context(cafile=address.ca)
    except ssl.SSLError:
        raise Unreachable(f"{address.ca}: no certificate in it") from None
    except OSError as error:
        raise Unreachable(f"{address.ca}: {error.strerror}") from None


class Link:
    """
    One connection, from its beginning.

    Args:
        address: where to.
        tls: what TLS needs; None: it is not spoken.
        hello: what is sent as soon as it stands.
        ready: is given all that came, and returns how much of it belongs to the greeting, None while it lacks
            some; raises `ValueError` where it is none.

    Raises:
        OSError: there is no connection.
    """

    __slots__ = ("_address", "_hello", "_ready", "_tls", "came", "fd", "sock", "wants")

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        hello: bytes,
        ready: Callable[[bytes], int | None],
    ) -> None:
        self._address = address
        self._tls = tls
        self._hello = hello
        self._ready = ready
        #: What came and is not the greeting.
        self.came = b""
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        self.sock: Any = sock
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failed = sock.connect_ex(address.at)
            if failed not in _UNDERWAY:
                raise OSError(failed, os.strerror(failed))
        except BaseException:
            sock.close()
            raise
        self.fd = sock.fileno()
        #: What to wait for before the next `step`. The server speaks first where nothing is to be said.
        self.wants = OUT if tls is not None or hello else IN

    def step(self) -> bool:
        """
        Go on; returns whether the connection is ready.

        Raises:
            OSError: it is lost.
            ValueError: what came is no greeting.
        """
        sock = self.sock
        if self._tls is not None:
            if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed))
            self.sock = sock = self._tls.wrap_socket(
                sock, server_hostname=self._address.name, do_handshake_on_connect=False
            )
            self._tls = None
            self.wants = IN
        try:
            if isinstance(sock, ssl.SSLSocket) and sock.version() is None:
                self.wants = IN
                sock.do_handshake()
            if self._hello:
                self._hello = self._hello[sock.send(self._hello) :]
                self.wants = OUT if self._hello else IN
            data = sock.recv(_READ)
        except _LATER:
            return False
        if not data:
            raise ConnectionError("the server closed the connection before its greeting")
        self.came += data
        if len(self.came) > _LONGEST:
            raise ValueError("no greeting ends")
        end = self._ready(self.came)
        if end is None:
            return False
        self.came = self.came[end:]
        return True

    def close(self) -> None:
        self.sock.close()


def connect(make: Callable[[int], Link], count: int, until: float) -> list[Link]:
    """
    So many connections, ready.

    Args:
        make: makes the one of this number.
        count: how many.
        until: when all must be there, by `time.monotonic`.

    Raises:
        Unreachable: one of them does not come about.
    """
    ready: dict[int, Link] = {}
    opening: dict[int, tuple[int, Link]] = {}
    polled = poller()
    begun = 0
    try:
        while len(ready) < count:
            while begun < count and len(opening) < _AT_ONCE:
                link = make(begun)
                opening[link.fd] = begun, link
                polled.register(link.fd, link.wants)
                begun += 1
            left = until - time.monotonic()
            if left <= 0:
                raise Unreachable(f"only {len(ready)} of {count} connections were welcomed in time")
            for fd, _ in polled.poll(min(left, 1.0)):
                number, link = opening[fd]
                if link.step():
                    polled.unregister(fd)
                    ready[number] = opening.pop(fd)[1]
                else:
                    polled.modify(fd, link.wants)
    except (OSError, ValueError) as error:
        _close(ready, opening)
        raise Unreachable(f"connection {len(ready) + 1} of {count}: {_words(error)}") from None
    except BaseException:
        _close(ready, opening)
        raise
    finally:
        polled.close()
    return [ready[number] for number in range(count)]


def _close(ready: dict[int, Link], opening: dict[int, tuple[int, Link]]) -> None:
    for link in (*ready.values(), *(each for _, each in opening.values())):
        link.close()


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return str(getattr(error, "strerror", None) or error)
