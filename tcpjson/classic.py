"""The handlers of the classic messages (docs/protocol.rst, section 3)."""

from __future__ import annotations

from tcpjson.core.errors import BadMessage, ProtocolError
from tcpjson.core.messages import (
    Auth,
    Broadcast,
    BroadcastSent,
    Custom,
    Echo,
    EchoResponse,
    GetStats,
    Message,
    Ping,
    Pong,
    Refused,
    Relayed,
    Response,
    ServerStats,
    Text,
    TextEcho,
)
from tcpjson.handlers import Router, Session

router = Router()


@router.handler
def ping(session: Session, message: Ping) -> Message:
    return Pong(message.timestamp, session.timestamp, session.client_id)


@router.handler
def echo(session: Session, message: Echo) -> Message:
    return EchoResponse(message.content)


@router.handler
def broadcast(session: Session, message: Broadcast) -> Message:
    return BroadcastSent(int(session.broadcast(Relayed(message.content, session.client_id))))


@router.handler
def get_stats(session: Session, message: GetStats) -> ServerStats:
    return session.server_stats()


@router.handler
def auth(session: Session, message: Auth) -> ProtocolError:
    # Section 6: where none is asked for, its fields are never sent back, as an unknown type's would be.
    return BadMessage("no authentication is asked for")


@router.handler
def custom(session: Session, message: Custom) -> Message:
    return Response(message.original)


@router.handler
def text(session: Session, message: Text) -> Message:
    return TextEcho(message.original)


@router.handler
def refused(session: Session, message: Refused) -> ProtocolError:
    return message.error
