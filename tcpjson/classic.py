"""The handlers of the classic messages (docs/protocol.rst, section 3)."""

from __future__ import annotations

from msgspec import UNSET

from tcpjson.core.errors import ProtocolError
from tcpjson.core.messages import (
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
    relayed = Relayed(message.content, session.client_id, session.user or UNSET)
    return BroadcastSent(int(session.broadcast(relayed)))


@router.handler
def get_stats(session: Session, message: GetStats) -> ServerStats:
    return session.server_stats()


@router.handler
def custom(session: Session, message: Custom) -> Message:
    return Response(message.original)


@router.handler
def text(session: Session, message: Text) -> Message:
    return TextEcho(message.original)


@router.handler
def refused(session: Session, message: Refused) -> ProtocolError:
    if message.fault is not None:
        fault, message.fault = message.fault, None
        try:
            raise fault
        finally:
            # Else it would lead, by its traceback, to itself.
            del fault
    return message.error
