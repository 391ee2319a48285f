"""Section 11: shutting down, of which little can be seen from outside."""

from __future__ import annotations

from tcpjson.conform.checks import check
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Skip


@check("R11.1", "R11.2", "R11.3")
def going_away(scene: Scene) -> None:
    """A server that shuts down sends going_away with retry_after, answers what it has, and closes."""
    raise Skip("only who runs the server can shut it down")
