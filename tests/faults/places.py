"""Faults of those for whom there is no room, or no more time."""

from __future__ import annotations

import signal

from tests.faults.arena import PING, Stage
from tests.faults.catalogue import fault
from tests.identities import new_source

#: The witnesses and four more, two from one address.
FULL = ("--max-connections", "24", "--max-connections-per-ip", "2")

_REFUSED = {"after": "it is refused before it could log in"}


@fault(
    "one more than --max-connections",
    section="9",
    expected={"tcp": "server_full", "tls": "server_full, untold"},
    seconds=1,
    options=FULL,
    never=_REFUSED,
)
def server_full(stage: Stage) -> None:
    """No place is left: it is told so; over TLS it is closed, for want of a handshake."""
    others = [stage.peer(source=new_source()) for _ in range(4)]
    stage.turned_away()
    # A place that is free again is given away.
    stage.leaves(others.pop())
    stage.leaves(stage.peer(source=new_source()))
    for other in others:
        stage.leaves(other)


@fault(
    "one more than --max-connections-per-ip",
    section="9",
    expected={"tcp": "too_many_connections", "tls": "too_many_connections, untold"},
    seconds=1,
    options=FULL,
    never=_REFUSED,
)
def too_many(stage: Stage) -> None:
    """One address takes all places."""
    others = [stage.peer() for _ in range(2)]
    stage.turned_away()
    stage.leaves(others.pop())
    stage.leaves(stage.peer())
    stage.leaves(others.pop())


@fault(
    "requests while the server shuts down",
    section="11",
    expected="going_away",
    seconds=3,
    ends=True,
    slow=True,
)
def going_away(stage: Stage) -> None:
    """What came before is answered; a later request is refused by its id, and the end is in order."""
    guest = stage.peer()
    guest.send(*(PING | {"id": number} for number in range(100)))
    stage.server.signal(signal.SIGTERM)
    stage.complete()
    answers = [guest.receive() for _ in range(100)]
    assert [answer.get("id") for answer in answers] == [*range(100)]
    farewell, refusal = guest.receive(), guest.ask(PING | {"id": "late"})
    assert (farewell["code"], refusal["code"], refusal["id"]) == ("going_away", "going_away", "late")
    assert not stage.ends(guest)
    stage.came = stage.reason(guest)
