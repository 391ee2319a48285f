"""Connecting, and connecting again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.protocol import ReconnectingClientFactory

from tcpjson.client.protocol import ClientProtocol, reason_of
from tcpjson.core.errors import Disconnected, PermanentError
from tcpjson.core.retry import FullJitter

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress, IConnector, IReactorTime
    from twisted.python.failure import Failure


class Owner(Protocol):
    """Whose factory it is."""

    def build(self) -> ClientProtocol:
        """The protocol of a new connection."""

    def begun(self) -> None:
        """An attempt to connect begins."""

    def ended(self) -> Exception | None:
        """The connection is gone; returns why, if it ever was one."""

    def waits(self, error: Exception, seconds: float) -> None:
        """It is to be tried again, as long from now."""

    def stopped(self, error: Exception) -> None:
        """It is not tried again, for this reason."""


class TCPJSONClientFactory(ReconnectingClientFactory):
    """
    Connects again whenever a connection could not be made or is lost, after a random time with a bound that
    doubles from 0.5 to 30 seconds, or when the server said so, but for an hour at most.

    It is the `factory` of a `tcpjson.client.Client`, and goes with `connectTCP`, `connectSSL`, `connectUNIX`
    or an `EndpointConnector`. `maxRetries` bounds the attempts that follow one on another; None: endless.

    Args:
        clock: the reactor.
        owner: whose it is.
        random: gives a number from 0 up to 1.
        retries: `maxRetries`.
    """

    noisy = False
    maxRetries: Any = None
    clock: Any = None
    # The waits are those of `FullJitter`.
    factor = 1
    jitter = 0

    def __init__(
        self, clock: IReactorTime, owner: Owner, random: Callable[[], float], retries: int | None
    ) -> None:
        self.clock = clock
        self.maxRetries = retries
        self._owner = owner
        self._waits = FullJitter(random)

    def buildProtocol(self, addr: IAddress | None) -> ClientProtocol:
        protocol = self._owner.build()
        protocol.factory = self
        return protocol

    def startedConnecting(self, connector: IConnector) -> None:
        self.connector = connector
        self._owner.begun()

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        error = Disconnected(reason_of(reason))
        error.__cause__ = reason.value
        self._again(connector, error)

    def clientConnectionLost(self, connector: IConnector, reason: Failure) -> None:
        self._again(connector, self._owner.ended() or Disconnected(reason_of(reason)))

    def resetDelay(self) -> None:
        super().resetDelay()
        self._waits.reset()

    def _again(self, connector: IConnector, error: Exception) -> None:
        if not self.continueTrying:
            return
        used_up = self.maxRetries is not None and self.retries >= self.maxRetries
        if used_up or isinstance(error, PermanentError):
            self.continueTrying = 0
            self._owner.stopped(error)
            return
        self.delay = seconds = self._waits.next(getattr(error, "retry_after", None))
        self.retry(connector)
        self._owner.waits(error, seconds)
