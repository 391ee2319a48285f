"""What is typed: commands, and text that is sent as it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

Json = dict[str, Any]

#: Each command with what stands behind it, and what it does.
COMMANDS = {
    "ping": ("", "asks whether the server is there, and shows how long the answer took"),
    "echo": ("TEXT or JSON", "has the server send it back"),
    "broadcast": ("TEXT or JSON", "has the server send it to all others"),
    "stats": ("", "shows the server's statistics"),
    "custom": ("TYPE [JSON object]", "sends a message of any type, with the fields of the object"),
    "raw": ("PAYLOAD", "sends a payload as it is, be it broken"),
    "json": ("on|off", "shows messages as JSON, or in words"),
    "connect": ("[WHERE]", "connects again, or to another server, there without --user and token"),
    "help": ("", "shows this"),
    "exit": ("", "ends; so does /quit"),
}
_OTHER_NAMES = {"quit": "exit"}
# What beside the commands is told by /help.
_REST = (
    ("other text", "goes to the server as plain text"),
    ("//text", "goes as plain text that begins with a slash"),
    ("Ctrl-C", "forgets the line; on an empty one, ends (without prompt_toolkit: twice in a row)"),
    ("Ctrl-D", "on an empty line, ends"),
)

_JSON_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_JSON_SPACE}]+")
_JSON_START = ("{", "[")
# So much is shown of where JSON is broken.
_SHOWN = 20


class CommandError(ValueError):
    """What was typed cannot be done; in one line."""


class Command(NamedTuple):
    """What is to be done."""

    #: A name of `COMMANDS`, or `text`.
    name: str
    #: The request that it sends, where it sends one.
    message: Json | None = None
    #: Else what it is about: the payload of `text` and `raw`, where to `connect`, `on` or `off`.
    argument: str = ""

    @property
    def sent(self) -> str | bytes:
        """What `Client.send` takes for `text` and `raw`."""
        return self.argument.encode() if self.name == "raw" else self.argument


def help_rows() -> list[tuple[str, str]]:
    """What there is to be typed, and what it does."""
    rows = [(f"/{name} {what}".rstrip(), does) for name, (what, does) in COMMANDS.items()]
    return [*rows, *_REST]


def parse(line: str) -> Command | None:
    """
    Read a line, without its end; None: there is nothing in it.

    Raises:
        CommandError: it is no command, or not a right one.
    """
    if not line.isascii():
        try:
            line.encode()
        except UnicodeEncodeError:
            raise CommandError("the line is not UTF-8") from None
    if not line.startswith("/"):
        return Command("text", argument=line) if line.strip() else None
    if line.startswith("//"):
        return Command("text", argument=line[1:])
    name, rest = _split(line[1:])
    name = _OTHER_NAMES.get(name, name)
    if name not in COMMANDS:
        raise CommandError(f"there is no command /{name[:64]}{_suggestion(name)}")
    if name == "raw":
        # One character parts it from its name; all others are its own.
        return Command("raw", argument=line[len("/raw ") :])
    if rest and not COMMANDS[name][0]:
        raise CommandError(f"/{name}: nothing stands behind it")
    reader = _READERS.get(name)
    return Command(name) if reader is None else reader(rest)


def _split(text: str) -> tuple[str, str]:
    """The first word, and what stands behind it."""
    space = _SPACES.search(text)
    if space is None:
        return text, ""
    return text[: space.start()], text[space.end() :].rstrip(_JSON_SPACE)


def _suggestion(name: str) -> str:
    names = [*COMMANDS, *_OTHER_NAMES]
    begun = [known for known in names if name and known.startswith(name)]
    near = begun or difflib.get_close_matches(name.lower(), names, 1, 0.5)
    return f": did you mean /{near[0]}?" if near else "; /help shows them all"


def _content(name: str) -> Callable[[str], Command]:
    def read(text: str) -> Command:
        if not text:
            raise CommandError(f"/{name}: what? Type /{name} {COMMANDS[name][0]}")
        content: object = text
        try:
            content = parse_json(text)
        except CommandError as error:
            # As the server tells plain text from JSON (docs/protocol.rst, section 1).
            if text.startswith(_JSON_START):
                raise CommandError(f"/{name}: {error}") from None
        return Command(name, {"type": name, "content": content})

    return read


def _custom(text: str) -> Command:
    kind, rest = _split(text)
    if not kind or kind.startswith(_JSON_START):
        raise CommandError("/custom: the type is missing; type /custom TYPE [JSON object]")
    fields: dict[str, msgspec.Raw] = {}
    if rest:
        try:
            value = parse_json(rest)
            fields = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
        except CommandError as error:
            raise CommandError(f"/custom: {error}") from None
        except (ValueError, RecursionError):
            raise CommandError("/custom: behind the type stands a JSON object, in braces") from None
    for field, why in (("type", "it stands before the object"), ("id", "the client gives its own")):
        if field in fields:
            raise CommandError(f"/custom: no {field} in the object: {why}")
    return Command("custom", {"type": kind, **fields})


def _json(text: str) -> Command:
    if text not in ("on", "off"):
        raise CommandError("/json: on or off?")
    return Command("json", argument=text)


_READERS: dict[str, Callable[[str], Command]] = {
    "ping": lambda text: Command("ping", {"type": "ping"}),
    "echo": _content("echo"),
    "broadcast": _content("broadcast"),
    "stats": lambda text: Command("stats", {"type": "get_stats"}),
    "custom": _custom,
    "json": _json,
    "connect": lambda text: Command("connect", argument=text),
}


def parse_json(text: str) -> msgspec.Raw:
    """
    Check that a text is JSON, which is sent as it was typed: numbers to the last digit.

    Raises:
        CommandError: it is none; says where.
    """
    data = text.encode()
    try:
        msgspec.json.decode(data)
    except RecursionError:
        raise CommandError("the JSON nests too deep") from None
    except msgspec.DecodeError as error:
        raise CommandError(_where(data, str(error))) from None
    return msgspec.Raw(data.strip(_JSON_SPACE.encode()))


def _where(data: bytes, reason: str) -> str:
    found = re.fullmatch(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)", reason)
    if found is None:
        return f"bad JSON: {'it is not complete' if 'truncated' in reason else reason.lower()}"
    before = data[: int(found[2])].decode(errors="replace")
    rest = data.decode()[len(before) :]
    place = f"character {len(before) + 1} of the JSON"
    shown = f"{rest[:_SHOWN]}…" if len(rest) > _SHOWN else rest
    at = f"at {place}, before {shown!r}" if rest else "at its end"
    return f"bad JSON {at}: {found[1]}"
