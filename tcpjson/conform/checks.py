"""The table of all checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tcpjson.conform.scene import Scene

Level = Literal["classic", "full"]
Play = Callable[["Scene"], None]

#: The sections of docs/protocol.rst.
SECTIONS = {
    "1": "framing",
    "2": "messages",
    "3": "classic messages",
    "4": "welcome",
    "5": "hello",
    "6": "authentication",
    "7": "compression",
    "8": "heartbeats",
    "9": "errors",
    "10": "backpressure",
    "11": "shutting down",
}


class Check(NamedTuple):
    """One thing that a server has to do."""

    name: str
    section: str
    level: Level
    #: Whether the contract demands it; else it recommends it.
    must: bool
    #: What it is, in a sentence.
    why: str
    #: Makes it; raises `Failed`, or `Skip` where it cannot be made.
    play: Play
    #: It delays logins of this address for a while, and so is made after all else.
    last: bool = False
    #: The ids of rules of docs/protocol.rst that it is about, where it says them.
    rules: tuple[str, ...] = ()


#: All that are written in Python, in the order of their modules.
CHECKS: list[Check] = []


def check(
    *rules: str, level: Level = "full", must: bool = True, last: bool = False, section: str | None = None
) -> Callable[[Play], Play]:
    """
    Enter a function into the table: its name is the check's, its docstring says what is checked.

    Args:
        rules: ids of the document's rules, as "R1.2"; or a section alone, of which a note says it.
        level, must, last: as of `Check`.
        section: when it is not that of the first rule.
    """

    def enter(play: Play) -> Play:
        CHECKS.append(
            Check(
                name=play.__name__.replace("_", "-"),
                section=section or rules[0].removeprefix("R").partition(".")[0],
                level=level,
                must=must,
                why=play.__doc__ or "",
                play=play,
                last=last,
                rules=tuple(rule for rule in rules if rule.startswith("R")),
            )
        )
        return play

    return enter
