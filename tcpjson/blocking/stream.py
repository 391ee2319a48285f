"""A socket, in the clear or with TLS, that never blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import ssl

# Bytes that are read, and written, at once.
_CHUNK = 256 * 1024
# Seconds without a word after which the system asks whether the other end is there, and seconds between two
# such questions.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15))

# What says that the socket has nothing to give, or no room, now.
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """
    The client's end of a connection; it is not there before `finish` and `shake_hands` have said so.

    Args:
        family: of the address.
        address: as `socket.connect` takes it.

    Raises:
        OSError: there can be none.
    """

    def __init__(self, family: int, address: object) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        #: Whether it can be read only when there is room for what TLS has to say.
        self.blocked = False
        try:
            self._socket.setblocking(False)
            if family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE:
                    # Not all systems have them.
                    if hasattr(socket, option):
                        self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            code = self._socket.connect_ex(address)  # type: ignore[arg-type]  # what getaddrinfo gave
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wanted(self) -> int:
        """The events of a selector that it waits for in any case."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.blocked else 0)

    def finish(self) -> None:
        """The socket can be written to. Raises `OSError` when that means that it could not connect."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    def begin_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Speak TLS from now on, with the server of this name; `shake_hands` is next."""
        self._socket = context.wrap_socket(self._socket, server_hostname=name, do_handshake_on_connect=False)

    def shake_hands(self) -> bool:
        """Go on with the handshake of TLS; returns whether it is done. Raises `OSError` when it fails."""
        assert isinstance(self._socket, ssl.SSLSocket)
        try:
            self._socket.do_handshake()
        except _NOT_NOW as wait:
            self.blocked = isinstance(wait, ssl.SSLWantWriteError)
            return False
        self.blocked = False
        return True

    def receive(self) -> bytes | None:
        """What is there; None for nothing yet, no bytes at the end. Raises `OSError`."""
        try:
            data = self._socket.recv(_CHUNK)
        except _NOT_NOW as wait:
            self.blocked = isinstance(wait, ssl.SSLWantWriteError)
            return None
        except ssl.SSLZeroReturnError:
            return b""
        self.blocked = False
        return data

    @property
    def pending(self) -> bool:
        """Whether there is more to receive that the system knows nothing of."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def send(self, data: memoryview) -> int:
        """Send what there is room for; returns how many bytes. Raises `OSError`."""
        try:
            return self._socket.send(data[:_CHUNK])
        except _NOT_NOW:
            return 0

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()
            else:
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of it; the other end is not told by more than the system's own word."""
        self._socket.close()


def addresses(host: str, port: int) -> list[tuple[int, object]]:
    """Family and address of all that a name stands for, in order. It may take long. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def unix(path: str) -> tuple[int, object]:
    """Family and address of a Unix socket."""
    return socket.AF_UNIX, path
