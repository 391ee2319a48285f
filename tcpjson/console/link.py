"""The client that commands go to: another one after each `/connect`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from tcpjson.client import Client
from tcpjson.core.handshake import Credentials

Json = dict[str, Any]

#: What a server answers to requests; anything else that comes may have been sent to all.
#: (No set: a stranger's `type` may be anything.)
REPLIES = (
    *("echo", "response", "error", "pong", "echo_response", "broadcast_sent", "server_stats"),
    *("hello_response", "auth_challenge", "auth_result"),
)

#: Makes a client of the server at a place; it takes the callbacks of `tcpjson.client.Client`.
Make = Callable[..., Client]


# What begins the description of an endpoint, not a host and port.
_DESCRIPTION = re.compile(r"unix:|\w+:(?![0-9]+$)")


def maker(
    make: Make, where: str, ca: str | None, credentials: Credentials | None, tell: Callable[[str], object]
) -> Make:
    """
    What makes clients, which show to one place alone who we are.

    Args:
        make: is given where to, `ca` and `credentials` beside the callbacks.
        where: the place that `ca` and the credentials are for. Elsewhere there are no credentials; and `ca`
            only where it is of use.
        ca: a PEM file with authorities.
        credentials: who we are.
        tell: is given a line when a client is made without something that was given.
    """

    def made(place: str, **callbacks: Any) -> Client:
        if place == where:
            return make(place, ca=ca, credentials=credentials, **callbacks)
        described = _DESCRIPTION.match(place) is not None
        client = make(place, ca=None if described else ca, credentials=None, **callbacks)
        if credentials is not None:
            tell(f"{place} is asked without a login: the name and the secret are for {where} alone")
        if described and ca is not None:
            tell(f"{place} is asked without --ca: that is for a host and port only")
        return client

    return made


class Listener:
    """Who is told what happens on the connection."""

    def heard(self, message: Json) -> None:
        """A message that answers none of our requests."""

    def connected(self, welcome: Json) -> None:
        """The server serves us."""

    def disconnected(self, error: Exception) -> None:
        """It served us, and is gone."""

    def retrying(self, error: Exception, seconds: float) -> None:
        """Why there is no connection, and when the next attempt begins."""

    def failed(self, error: Exception) -> None:
        """There will be no other attempt."""


class Answer(NamedTuple):
    """What came back, and after how many seconds."""

    message: Json
    seconds: float


class Link:
    """
    One server at a time.

    Args:
        clock: the reactor.
        make: makes the client of a place. Raises `ValueError` when it is none.
        listener: hears of the client that is in use, and of no earlier one.
        where: the first place.
    """

    def __init__(self, clock: IReactorTime, make: Make, listener: Listener, where: str) -> None:
        self._clock = clock
        self._make = make
        self._listener = listener
        self.where = where
        self.client: Client | None = None

    def open(self, where: str = "", timeout: float | None = None) -> Deferred[Json]:
        """
        Leave the server there is, and connect to a place, or to the same again; the result is the welcome.
        `timeout` in seconds.

        Raises:
            ValueError: there is no such place. Nothing has changed.
        """
        where = where or self.where
        listener = self._listener
        current = self._current
        made: list[Client] = []
        client = self._make(
            where,
            on_message=current(made, listener.heard),
            on_connect=current(made, listener.connected),
            on_disconnect=current(made, listener.disconnected),
            on_retry=current(made, listener.retrying),
            on_failure=current(made, listener.failed),
        )
        made.append(client)
        before, self.client = self.client, client
        self.where = where
        if before is not None:
            before.close()
        return client.connect(timeout=timeout)

    def _current(self, made: list[Client], function: Callable[..., None]) -> Callable[..., None]:
        """The function, for as long as the client that will be in the list is the one in use."""

        def call(*arguments: Any) -> None:
            if self.client in made:
                function(*arguments)

        return call

    def ask(self, request: Json) -> Deferred[Answer]:
        """Send a request; fails as those of the client do."""
        assert self.client is not None
        begun = self._clock.seconds()
        return self.client.request(request).addCallback(
            lambda message: Answer(message, self._clock.seconds() - begun)
        )

    def close(self) -> Deferred[None]:
        """Leave the server."""
        client, self.client = self.client, None
        return succeed(None) if client is None else client.close()
