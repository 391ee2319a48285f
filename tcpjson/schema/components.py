"""Message classes to schemas: what msgspec makes of them, and what it cannot know."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, Raw
from msgspec.structs import FieldInfo

from tcpjson.core.messages import Answer, Message, Text
from tcpjson.schema.builtin import ANSWER_NOTES, REQUEST_NOTES
from tcpjson.schema.catalogue import Catalogue, Entry

Schema = dict[str, Any]

# Where schemas stand in a schema.
_SINGLE = ("items", "additionalProperties", "propertyNames", "not", "contains")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties")


def components(found: Catalogue, ref_template: str) -> dict[str, Schema]:
    """
    Schemas by name: of each entry that is an object, and of the classes in their fields.

    Args:
        found: the entries.
        ref_template: the way from the root of the document to `{name}`.

    Raises:
        ValueError: a field cannot be described; one line names it.
    """
    requests = [request.entry for request in found.requests]
    structs = [_struct(entry, answer=False) for entry in requests if entry.type]
    structs += [_struct(entry, answer=True) for entry in found.answers if entry.type]
    schemas = {name: _mended(schema) for name, schema in _made(structs, ref_template).items()}
    # Where two classes have one name, msgspec calls both otherwise.
    for name in {struct.__name__ for struct in structs} - schemas.keys():
        raise ValueError(f"a class of a field must not be called {name}, as a message is")
    for entries in (requests, found.answers):
        known = [entry.type for entry in entries if entry.type]
        for entry in entries:
            if entry.type:
                schemas[entry.name]["title"] = entry.type
            elif entry.kind is not Text:
                schemas[entry.name] = _other(entry, known)
    return schemas


def _other(entry: Entry, known: list[str]) -> Schema:
    """An object of none of the known types."""
    return {
        "title": "any other message",
        "description": entry.text,
        "type": "object",
        "properties": {"type": {"type": "string", "not": {"enum": known}}},
        # A client may leave it out.
        "required": ["type"] if entry.kind is Message else [],
    }


def _struct(entry: Entry, *, answer: bool) -> type[msgspec.Struct]:
    """A class of which msgspec makes the schema of an entry."""
    config = entry.kind.__struct_config__
    common = ANSWER_NOTES if answer else REQUEST_NOTES
    notes = {"id": common["id"], **entry.notes}
    added = {**common, **entry.notes}
    fields: list[tuple[str, Any, Any]] = []
    for field in _declared(entry.kind):
        # The server stamps its own, as it stamps those without a timestamp.
        if field.name == "timestamp" and issubclass(entry.kind, Answer):
            continue
        added.pop(field.encode_name, None)
        metas = [notes[field.encode_name]] if field.encode_name in notes else []
        options: dict[str, Any] = {"name": field.encode_name}
        # The server sends the others always, whatever they are.
        if not answer or field.default is UNSET or config.omit_defaults:
            options |= {"default": field.default, "default_factory": field.default_factory}
        try:
            if isinstance(options.get("default"), Raw):
                # msgspec writes none.
                metas.append(Meta(extra_json_schema={"default": msgspec.json.decode(field.default)}))
                options["default"] = UNSET
            annotation = field.type
            for meta in metas:
                annotation = Annotated[annotation, meta]
            fields.append((field.name, annotation, msgspec.field(**options)))
            _made([msgspec.defstruct(field.name, fields[-1:])])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{entry.kind.__name__}.{field.name}: no schema of it: {error}") from None
    if answer or not config.forbid_unknown_fields:
        kind, default = (str, NODEFAULT) if answer else (Raw, UNSET)
        fields += [
            (name, Annotated[kind, note], msgspec.field(default=default)) for name, note in added.items()
        ]
    return msgspec.defstruct(
        entry.name,
        fields,
        kw_only=True,
        tag_field=config.tag_field,
        tag=config.tag,
        forbid_unknown_fields=config.forbid_unknown_fields,
        namespace={"__doc__": entry.text},
    )


def _declared(kind: type[Message]) -> tuple[FieldInfo, ...]:
    try:
        return msgspec.structs.fields(kind)
    # An annotation can be any expression.
    except Exception as error:
        raise TypeError(f"{kind.__name__}: {error}") from None


def _made(structs: list[type[msgspec.Struct]], ref_template: str = "{name}") -> dict[str, Schema]:
    _, made = msgspec.json.schema_components(structs, schema_hook=_of_strange, ref_template=ref_template)
    # Defaults may be tuples, and numbers that JSON has not.
    plain: dict[str, Schema] = json.loads(json.dumps(made, allow_nan=False))
    return plain


def _of_strange(kind: type) -> Schema:
    """The schema of a class that msgspec does not know."""
    if kind is object:
        return {"description": "Any JSON value."}
    raise TypeError(f"no JSON value is a {kind.__name__}")


def each(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """A schema in which those within it are changed."""
    changed = dict(schema)
    for name, value in schema.items():
        if name in _SINGLE:
            changed[name] = change(value)
        elif name in _LISTS:
            changed[name] = [change(part) for part in value]
        elif name in _MAPS:
            changed[name] = {key: change(part) for key, part in value.items()}
    return changed


def _mended(schema: Any) -> Any:
    """A schema without what JSON Schema has not, and with what msgspec takes besides."""
    if not isinstance(schema, dict):
        # True or False.
        return schema
    mended = each(schema, _mended)
    # OpenAPI has it.
    mended.pop("discriminator", None)
    if mended.get("format") == "decimal":
        mended["type"] = ["string", "number"]
    return mended
