"""The messages as an AsyncAPI document (3.0.0), seen from the server."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from tcpjson._version import __version__
from tcpjson.core.messages import (
    Error,
    HeartbeatPing,
    HeartbeatPong,
    Message,
    Relayed,
    Text,
    TextEcho,
    Welcome,
)
from tcpjson.handlers import Router
from tcpjson.schema.catalogue import Catalogue, Entry, catalogue
from tcpjson.schema.components import components, each

_CHANNEL = "#/channels/connection"
# What the server sends without being asked.
_UNASKED = (Welcome, HeartbeatPing, Relayed, Error, Message)
# What is no request with an `id`, and no reply that could carry it.
_WITHOUT_ID = (Welcome, HeartbeatPing, HeartbeatPong, Relayed, Text, TextEcho)

_FRAMING = (
    "Both directions carry frames: 4 bytes, unsigned and big-endian, that say the number of payload bytes,"
    " and the payload, one JSON text in UTF-8."
)
_SERVERS = {
    "tcp": {"host": "localhost:9999", "protocol": "tcp", "description": _FRAMING},
    "tls": {
        "host": "localhost:9999",
        "protocol": "tcps",
        "description": f"{_FRAMING} All of it goes over TLS.",
    },
}
_SECURITY = {
    "plain": {"type": "plain", "description": "`auth` with `username` and `password`."},
    "token": {"type": "apiKey", "in": "password", "description": "`auth` with `token`."},
    "scram-sha-256": {
        "type": "scramSha256",
        "description": "`auth` with `data`, twice (RFC 5802, RFC 7677).",
    },
    "certificate": {"type": "X509", "description": "A TLS client certificate; no `auth` is needed."},
}


def asyncapi(routers: Sequence[Router] = ()) -> dict[str, Any]:
    """
    An AsyncAPI 3.0.0 document of a server with these routers.

    Raises:
        ValueError, TypeError: as `tcpjson.schema.json_schema`.
    """
    found = catalogue(routers)
    entries = [*(request.entry for request in found.requests), *found.answers]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "tcpjson",
            "version": __version__,
            "description": "The messages of a tcpjson server. `auth` in `welcome` says whether a client must"
            " authenticate, and by which of the security schemes.",
        },
        "defaultContentType": "application/json",
        "servers": deepcopy(_SERVERS),
        "channels": {
            "connection": {
                "address": None,
                "description": "A connection of one client.",
                "messages": {
                    entry.name: {"$ref": f"#/components/messages/{entry.name}"} for entry in entries
                },
            }
        },
        "operations": _operations(found),
        "components": {
            "schemas": {
                name: _draft_7(schema)
                for name, schema in components(found, "#/components/schemas/{name}").items()
            },
            "messages": {entry.name: _message(entry) for entry in entries},
            "correlationIds": {
                "id": {
                    "description": "A request may have one; its reply carries the same.",
                    "location": "$message.payload#/id",
                }
            },
            "securitySchemes": deepcopy(_SECURITY),
        },
    }


def _message(entry: Entry) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": entry.type or entry.name,
        "title": entry.type or entry.name.partition(".")[2].replace("_", " "),
        "payload": {"$ref": f"#/components/schemas/{entry.name}"},
    }
    if entry.text:
        message["description"] = entry.text
    if entry.kind not in _WITHOUT_ID:
        message["correlationId"] = {"$ref": "#/components/correlationIds/id"}
    if entry.kind is Text:
        message |= {"contentType": "text/plain", "payload": {"type": "string"}}
    return message


def _operations(found: Catalogue) -> dict[str, Any]:
    operations = {}
    for request in found.requests:
        if request.entry.kind is not HeartbeatPong:
            operation = _operation("receive", request.entry, [*request.replies, found.answer(Error)])
            if request.text:
                operation["description"] = request.text
            operations[request.entry.name] = operation
    pong = next(request.entry for request in found.requests if request.entry.kind is HeartbeatPong)
    for entry in found.answers:
        if entry.kind in _UNASKED:
            operations[entry.name] = _operation("send", entry, [pong] if entry.kind is HeartbeatPing else [])
    return operations


def _operation(action: str, entry: Entry, replies: list[Entry]) -> dict[str, Any]:
    operation: dict[str, Any] = {"action": action, **_on_channel([entry])}
    if replies:
        operation["reply"] = _on_channel(replies)
    return operation


def _on_channel(entries: list[Entry]) -> dict[str, Any]:
    return {
        "channel": {"$ref": _CHANNEL},
        "messages": [{"$ref": f"{_CHANNEL}/messages/{entry.name}"} for entry in entries],
    }


def _draft_7(schema: Any) -> Any:
    """A schema as AsyncAPI reads it, by older rules for tuples and for what stands beside a `$ref`."""
    if not isinstance(schema, dict):
        # True or False.
        return schema
    old = each(schema, _draft_7)
    if "prefixItems" in old:
        # How many there are is said by minItems and maxItems, too.
        old["items"] = old.pop("prefixItems")
    if "$ref" in old and len(old) > 1:
        old["allOf"] = [{"$ref": old.pop("$ref")}]
    return old
