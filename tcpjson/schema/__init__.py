"""
The messages of a server as JSON Schema, and as an AsyncAPI document: `python -m tcpjson.schema --help`.

    from tcpjson.schema import json_schema
    from game.moves import router

    json_schema([router])["$defs"]["client.move"]

Neither says all that a server asks of a payload: lengths, depth and the range of numbers (section 1 of
docs/protocol.rst), and what a `__post_init__` looks at, are left out; and `1.0` is an integer to JSON Schema,
but not to the server.
"""

from tcpjson.schema.asyncapi3 import asyncapi
from tcpjson.schema.jsonschema2020 import json_schema

__all__ = ["asyncapi", "json_schema"]
