"""
JSON messages over one TCP or TLS port, each behind a 4-byte length.

`twistd -n tcpjson --port tcp:9999` runs the server. To serve messages of your own, write handlers; in
`game.py`, say:

    from tcpjson import Forbidden, Message, Router

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

and `twistd -n tcpjson --port tcp:9999 --handlers game:router` serves them. (In a program of your own,
`TCPJSONServerFactory` and `TCPServer` take routers.)

A program without a reactor has a blocking client:

    from tcpjson import TCPClient

    client = TCPClient("localhost", 9999)
    client.set_message_callback(print)
    if client.connect():
        client.echo("Hello Server!")
        client.disconnect()

`tcpjson.client` has the one for Twisted and asyncio, `tcpjson.testing` runs server and client in memory, for
tests; `docs/handlers.rst`, `docs/clients.rst` and `docs/protocol.rst` say the rest.
"""

from tcpjson._version import __version__
from tcpjson.blocking import ConnectionPool, TCPClient, TCPServer
from tcpjson.client import CircuitBreaker, CircuitOpen, Client, Pool
from tcpjson.core.errors import (
    AuthenticationFailed,
    BadJSON,
    BadMessage,
    ClientError,
    Disconnected,
    Forbidden,
    GoingAway,
    HandlerTimeout,
    Internal,
    ProtocolError,
    ProtocolMismatch,
    QueueFull,
    RequestTimeout,
    TooLarge,
    UnexpectedReply,
    UnknownType,
)
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Broadcast, Custom, Echo, GetStats, Message, Ping, Text
from tcpjson.credentials import Password, Token
from tcpjson.handlers import Router, Server, Session
from tcpjson.server import TCPJSONServerFactory

__all__ = [
    "AuthenticationFailed",
    "BadJSON",
    "BadMessage",
    "Broadcast",
    "CircuitBreaker",
    "CircuitOpen",
    "Client",
    "ClientError",
    "ConnectionPool",
    "Custom",
    "Disconnected",
    "Echo",
    "Forbidden",
    "GetStats",
    "GoingAway",
    "HandlerTimeout",
    "Internal",
    "Limits",
    "Message",
    "Password",
    "Ping",
    "Pool",
    "ProtocolError",
    "ProtocolMismatch",
    "QueueFull",
    "RequestTimeout",
    "Router",
    "Server",
    "Session",
    "TCPClient",
    "TCPJSONServerFactory",
    "TCPServer",
    "Text",
    "Token",
    "TooLarge",
    "UnexpectedReply",
    "UnknownType",
    "__version__",
]
