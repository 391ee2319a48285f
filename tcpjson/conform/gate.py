"""What must be right before anything else can be checked, and what is learnt by it."""

from __future__ import annotations

import time
from collections.abc import Callable

from tcpjson.conform.checks import Check
from tcpjson.conform.scene import Scene, facts
from tcpjson.conform.verdicts import Failed, Skip

# Seconds of a login that is held back, and until the failures should be forgotten.
_HELD_BACK = 1.5
_FORGOTTEN = 66.0
_AGAIN = 6.0


def _welcome(scene: Scene) -> None:
    scene.facts = facts(scene.greet("first").welcome)


def _ping(scene: Scene) -> None:
    word = scene.nonce()
    # What is wrong with its fields, or comes before it, others tell.
    scene.pongs_tell = scene.pong(scene.greet("first"), word).get("ping_timestamp") == word


def _login(scene: Scene) -> None:
    scene.need(scene.facts.auth, "the server asks for no login")
    scene.need(scene.credentials, scene.no_login)
    try:
        scene.connect("first")
    except (Failed, Skip) as error:
        # It would go wrong each time, and be held back longer and longer.
        scene.credentials, scene.no_login = None, f"the login went wrong: {error}"
        raise


WELCOME = Check(
    "welcome-comes", "3", "classic", True, "A client that connects gets a welcome.", _welcome, rules=("R3.1",)
)
LOGIN = Check("login", "6", "full", True, "Who we are lets us in.", _login, rules=("R6.10",))
PING = Check("ping-gets-pong", "3", "classic", True, "A ping gets a pong.", _ping, rules=("R3.2",))


def learn(scene: Scene, tell: Callable[[str], None]) -> None:
    """
    Look whether the server is strict, and who else is connected.

    Where failures of this address, of an earlier run, hold logins back, wait until they are forgotten.

    Raises:
        Failed, Skip: it cannot be seen.
    """
    end = scene.patience.now() + _FORGOTTEN
    if scene.facts.auth and _held_back(scene):
        tell(f"the server holds logins back after failures of this address: up to {_FORGOTTEN:g} s to wait")
        while scene.patience.now() < end and _held_back(scene):
            time.sleep(_AGAIN)
    answer = scene.answer(scene.connect("first"), {"type": scene.nonce()}, "response", "error")
    scene.strict = (answer.get("type"), answer.get("code")) == ("error", "unknown_type")
    scene.clear()
    scene.count_strangers()


def _held_back(scene: Scene) -> bool:
    """Whether a login takes as long as one behind failures."""
    scene.patience.begin()
    began = scene.patience.now()
    scene.connect("first")
    scene.clear()
    return scene.patience.now() - began > _HELD_BACK
