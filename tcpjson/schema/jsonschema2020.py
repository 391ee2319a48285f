"""The messages as a JSON Schema (draft 2020-12)."""

from __future__ import annotations

from collections.abc import Sequence

from tcpjson.core.messages import Text
from tcpjson.handlers import Router
from tcpjson.schema.catalogue import catalogue
from tcpjson.schema.components import Schema, components

_GROUPS = {
    "client": "Any message that a client sends. Plain text, which is no object, is not described here.",
    "server": "Any message that a server sends.",
}


def json_schema(routers: Sequence[Router] = ()) -> Schema:
    """
    A JSON Schema of the messages of a server with these routers: `client` in its `$defs` fits what a client
    sends, `server` what the server sends, and each message has a schema of its own, as `client.ping`.

    Raises:
        ValueError, TypeError: one line about the routers, or about a field that has no schema.
    """
    found = catalogue(routers)
    definitions = components(found, "#/$defs/{name}")
    groups = {"client": [request.entry for request in found.requests], "server": found.answers}
    for name in groups.keys() & definitions:
        raise ValueError(f"a class of a field must not be called {name}, as a part of the schema is")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tcpjson messages",
        "description": "A message of the tcpjson protocol, version 1, in either direction. To validate"
        " what goes one way, use #/$defs/client or #/$defs/server.",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in groups],
        "$defs": {
            **{
                name: {
                    "description": _GROUPS[name],
                    "anyOf": [
                        {"$ref": f"#/$defs/{entry.name}"} for entry in entries if entry.kind is not Text
                    ],
                }
                for name, entries in groups.items()
            },
            **definitions,
        },
    }
