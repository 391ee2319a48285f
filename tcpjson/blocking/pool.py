"""Connections that threads borrow from one another."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from tcpjson.blocking.client import TCPClient
from tcpjson.core.arguments import check_numbers
from tcpjson.core.errors import Disconnected, RequestTimeout

_pools: WeakSet[ConnectionPool] = WeakSet()


class ConnectionPool:
    """
    Up to `pool_size` connections to one server, made when they are first wanted, each for one borrower at a
    time. All methods may be called from any thread.

        pool = ConnectionPool("localhost", 9999, pool_size=4)
        with pool.connection() as client:
            print(client.request("get_stats"))

    Args:
        host, port: of the server.
        pool_size: how many connections there may be, 1 or more.
        options: those of `TCPClient`; `timeout` is also that of `get_connection`.

    Raises:
        ValueError, TypeError: an option is out of its bounds, or there is no such option.
    """

    def __init__(
        self, host: str = "localhost", port: int = 9999, pool_size: int = 10, **options: Any
    ) -> None:
        check_numbers(pool_size=pool_size)
        if pool_size < 1:
            raise ValueError("pool_size must be at least 1")
        # What is wrong with the options is to be known now.
        self._new(host, port, options)
        self._where = (host, port)
        self._options = options
        self._size = pool_size
        self._timeout: float = options.get("timeout", 30.0)
        self._changed = threading.Condition()
        # The one that was used last is the last.
        self._idle: list[TCPClient] = []
        self._lent: set[TCPClient] = set()
        # Who waits for one: without a line, who gives one back would have it again at once, every time.
        self._line: deque[object] = deque()
        # Those that are just connecting.
        self._coming = 0
        self._closed = False
        _pools.add(self)

    @staticmethod
    def _new(host: str, port: int, options: dict[str, Any]) -> TCPClient:
        return TCPClient(host, port, **options)

    def get_connection(self, timeout: float | None = None) -> TCPClient:
        """
        A client that is connected, for the caller alone until `return_connection`. One whose connection was
        lost is replaced.

        Args:
            timeout: seconds to wait for one, connecting included; the option of that name when None.

        Raises:
            RequestTimeout: all are lent, and none came back in time.
            Disconnected, AuthenticationFailed, ProtocolMismatch, ProtocolError: a new one cannot connect, or
                the pool is closed.
        """
        timeout = self._timeout if timeout is None else timeout
        until = time.monotonic() + timeout
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while True:
                    if self._closed:
                        raise Disconnected("the pool is closed")
                    if self._line[0] is place:
                        client = self._take_idle()
                        if client is not None:
                            return client
                        if len(self._lent) + self._coming < self._size:
                            self._coming += 1
                            break
                    left = until - time.monotonic()
                    if left <= 0:
                        raise RequestTimeout(f"no connection was free in {timeout:g} seconds")
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        return self._connect(max(0.0, until - time.monotonic()))

    def _take_idle(self) -> TCPClient | None:
        """The idle client that was used last and is connected; those that are not are let go."""
        while self._idle:
            client = self._idle.pop()
            if client.connected:
                self._lent.add(client)
                return client
            # It has no connection: there is nothing to wait for.
            client.disconnect()
        return None

    def _connect(self, timeout: float) -> TCPClient:
        client = self._new(*self._where, self._options)
        try:
            connected = client.connect(timeout)
        except BaseException:
            client.disconnect()
            connected = False
            raise
        finally:
            with self._changed:
                self._coming -= 1
                taken = connected and not self._closed
                if taken:
                    self._lent.add(client)
                else:
                    # Another may try.
                    self._changed.notify_all()
        if not taken:
            client.disconnect()
            raise client.error or Disconnected("the pool is closed")
        return client

    def return_connection(self, client: TCPClient) -> None:
        """
        Give a client back. Its message callback is taken away.

        Raises:
            ValueError: it was not lent by this pool, or was given back already.
        """
        with self._changed:
            if client not in self._lent:
                raise ValueError("this connection is not lent by this pool")
            self._lent.remove(client)
            client.set_message_callback(None)
            kept = client.connected and not self._closed
            if kept:
                self._idle.append(client)
            self._changed.notify_all()
        if not kept:
            client.disconnect()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[TCPClient]:
        """`get_connection` for the length of a `with` block."""
        client = self.get_connection(timeout)
        try:
            yield client
        finally:
            self.return_connection(client)

    def close(self) -> None:
        """Disconnect all: those that are lent when they come back. No more are lent."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for client in idle:
            client.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _after_fork(self) -> None:
        # Whoever held it stayed with the parent.
        self._changed = threading.Condition()
        self._line.clear()
        self._coming = 0


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)
