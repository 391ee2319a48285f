"""
JSON messages over one TCP or TLS port, each behind a 4-byte length.

`twistd -n tcpjson --port tcp:9999` runs the server. To serve messages of your own, write handlers, and
listen with their router:

    from tcpjson import Forbidden, Message, Router, TCPJSONServerFactory
    from twisted.internet import reactor
    from twisted.internet.endpoints import serverFromString

    router = Router()

    class Move(Message, tag="move"):
        x: int
        y: int

    @router.handler
    def move(session, message: Move):
        if message.x < 0:
            raise Forbidden("off the board")
        session.broadcast({"type": "moved", "x": message.x, "y": message.y})
        return {"type": "move_ok"}

    factory = TCPJSONServerFactory(reactor, routers=[router])
    serverFromString(reactor, "tcp:9999").listen(factory)
    reactor.run()

`tcpjson.testing` runs the same server in memory, for tests; `docs/protocol.rst` is the wire protocol.
"""

from tcpjson._version import __version__
from tcpjson.core.errors import BadMessage, Forbidden, ProtocolError
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Message
from tcpjson.handlers import Router, Session
from tcpjson.server import TCPJSONServerFactory

__all__ = [
    "BadMessage",
    "Forbidden",
    "Limits",
    "Message",
    "ProtocolError",
    "Router",
    "Session",
    "TCPJSONServerFactory",
    "__version__",
]
