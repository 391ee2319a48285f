"""The life of a connection as one table: a state, an event, the state that follows."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """What a connection is at (docs/protocol.rst, sections 4, 6 and 9)."""

    #: Connected, but not known: the TLS handshake or the PROXY header is to come.
    OPEN = "open"
    #: Known, and asked who it is.
    AUTHENTICATING = "authenticating"
    #: Served.
    READY = "ready"
    #: Served no more: what was answered is on its way, then the connection closes.
    DRAINING = "draining"
    #: Gone.
    CLOSED = "closed"


class Event(Enum):
    """What moves a connection on."""

    #: The peer's address is known, and nothing else is asked.
    IDENTIFIED = "identified"
    #: The peer's address is known, and it must authenticate.
    CHALLENGED = "challenged"
    #: The peer proved who it is.
    AUTHENTICATED = "authenticated"
    #: A fatal error, the peer's end of file, a handler or the shutdown ends the connection.
    ENDED = "ended"
    #: The transport is gone.
    LOST = "lost"


#: The whole table. What is not here must not happen.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.IDENTIFIED): State.READY,
    (State.OPEN, Event.CHALLENGED): State.AUTHENTICATING,
    (State.OPEN, Event.ENDED): State.DRAINING,
    (State.OPEN, Event.LOST): State.CLOSED,
    (State.AUTHENTICATING, Event.AUTHENTICATED): State.READY,
    (State.AUTHENTICATING, Event.ENDED): State.DRAINING,
    (State.AUTHENTICATING, Event.LOST): State.CLOSED,
    (State.READY, Event.ENDED): State.DRAINING,
    (State.READY, Event.LOST): State.CLOSED,
    (State.DRAINING, Event.LOST): State.CLOSED,
}


def advance(state: State, event: Event) -> State:
    """
    The state after `event`.

    Raises:
        RuntimeError: the table has no such step; names both.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise RuntimeError(f"{event.value} cannot happen to a connection that is {state.value}") from None
