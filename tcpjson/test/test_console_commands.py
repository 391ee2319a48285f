"""What is typed, and how it is understood."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tcpjson.console.commands import COMMANDS, Command, CommandError, help_rows, parse, parse_json
from tcpjson.test.hypo import given


def sent(line: str) -> Any:
    """The message that a line leads to."""
    command = parse(line)
    assert command is not None and command.message is not None, line
    return json.loads(msgspec.json.encode(command.message))


class ParseTests(SynchronousTestCase):
    def refused(self, line: str) -> str:
        """What is said of a line that cannot be done."""
        return str(self.assertRaises(CommandError, parse, line))

    def test_nothing(self) -> None:
        for line in ("", " ", "\t "):
            self.assertIsNone(parse(line))

    def test_text(self) -> None:
        for line in ("hello", " /ping", '{"type":"x"}', "1", "\N{GREEK SMALL LETTER OMEGA}", " a "):
            self.assertEqual(parse(line), Command("text", argument=line))
        self.assertEqual(parse("//ping x"), Command("text", argument="/ping x"))

    def test_no_utf8(self) -> None:
        for line in ("a\udcff", "/echo \udcff", "/raw \udcff"):
            self.assertEqual(self.refused(line), "the line is not UTF-8")

    def test_each_command_is_known(self) -> None:
        arguments = {"echo": "x", "broadcast": "x", "custom": "x", "json": "on"}
        for name in COMMANDS:
            command = parse(f"/{name} {arguments.get(name, '')}")
            assert command is not None
            self.assertEqual(command.name, name)
        self.assertEqual(parse("/quit"), Command("exit"))
        self.assertEqual(parse("/ping\t"), parse("/ping"))

    def test_what_takes_nothing(self) -> None:
        for name in ("ping", "stats", "help", "exit", "quit"):
            self.assertIn("nothing stands behind it", self.refused(f"/{name} x"))

    def test_messages_without_more(self) -> None:
        self.assertEqual(sent("/ping"), {"type": "ping"})
        self.assertEqual(sent("/stats"), {"type": "get_stats"})

    def test_misspelt(self) -> None:
        for line, meant in (
            ("/pnig", "ping"),
            ("/st", "stats"),
            ("/BROADCAST x", "broadcast"),
            ("/qui", "quit"),
        ):
            self.assertTrue(self.refused(line).endswith(f": did you mean /{meant}?"), line)
        for line in ("/", "/ ping", "/xyzzy"):
            self.assertTrue(self.refused(line).endswith("; /help shows them all"), line)
        self.assertLess(len(self.refused("/" + "y" * 1000)), 200)

    def test_contents(self) -> None:
        for text, content in (
            ("hi there", "hi there"),
            ("  hi ", "hi"),
            ("1.10", 1.1),
            ("true", True),
            ('"true"', "true"),
            ('{"a": [1, null]}', {"a": [1, None]}),
            ("tru", "tru"),
            ('"open', '"open'),
        ):
            for name in ("echo", "broadcast"):
                self.assertEqual(sent(f"/{name} {text}"), {"type": name, "content": content})
        self.assertEqual(self.refused("/echo "), "/echo: what? Type /echo TEXT or JSON")

    def test_numbers_to_the_last_digit(self) -> None:
        command = parse("/echo [1.10, 123456789012345678901234567890, 1E2]")
        assert command is not None and command.message is not None
        self.assertIn(b"[1.10, 123456789012345678901234567890, 1E2]", msgspec.json.encode(command.message))

    def test_where_json_is_broken(self) -> None:
        for line, said in (
            ("/echo {", "/echo: bad JSON: it is not complete"),
            (
                "/echo [1,2,,3]",
                "/echo: bad JSON at character 6 of the JSON, before ',3]': invalid character",
            ),
            (
                '/custom move {"x": 1,}',
                "/custom: bad JSON at character 9 of the JSON, before '}': trailing comma in object",
            ),
            ("/echo [1e999]", "/echo: bad JSON: number out of range - at `$[0]`"),
            # Characters, not bytes.
            (
                '/custom m {"\xe4\xf6\xfc": x' + "y" * 50,
                "/custom: bad JSON at character 9 of the JSON, before "
                f"'x{'y' * 19}\N{HORIZONTAL ELLIPSIS}': invalid character",
            ),
            ("/custom m {} {", "/custom: bad JSON at its end: trailing characters"),
            (f"/echo {'[' * 100000}", "/echo: the JSON nests too deep"),
        ):
            self.assertEqual(self.refused(line), said)

    def test_custom(self) -> None:
        self.assertEqual(sent("/custom move"), {"type": "move"})
        self.assertEqual(sent('/custom move  {"x": 1, "y": [2]}'), {"type": "move", "x": 1, "y": [2]})
        for line, said in (
            ("/custom", "the type is missing"),
            ('/custom {"x": 1}', "the type is missing"),
            ("/custom move [1]", "a JSON object, in braces"),
            ("/custom move 1", "a JSON object, in braces"),
            ('/custom move {"type": "x"}', "no type in the object: it stands before the object"),
            ('/custom move {"id": 1}', "no id in the object: the client gives its own"),
        ):
            self.assertIn(said, self.refused(line))

    def test_raw_is_as_it_is(self) -> None:
        for line, payload in (("/raw", ""), ("/raw ", ""), ("/raw  {x ", " {x "), ("/raw /ping", "/ping")):
            self.assertEqual(parse(line), Command("raw", argument=payload))

    def test_json(self) -> None:
        self.assertEqual(parse("/json on"), Command("json", argument="on"))
        self.assertEqual(parse("/json off"), Command("json", argument="off"))
        for line in ("/json", "/json maybe"):
            self.assertEqual(self.refused(line), "/json: on or off?")

    def test_connect(self) -> None:
        self.assertEqual(parse("/connect"), Command("connect"))
        self.assertEqual(parse("/connect tls:host:1"), Command("connect", argument="tls:host:1"))

    def test_help_names_all(self) -> None:
        shown = " ".join(what for what, _ in help_rows())
        for name in COMMANDS:
            self.assertIn(f"/{name}", shown)

    @given(st.one_of(st.text(), st.text().map(lambda text: f"/custom {text}"), st.text().map("/".__add__)))
    def test_any_line(self, line: str) -> None:
        """Nothing else is raised, and in one line; what is sent can be sent."""
        try:
            command = parse(line)
        except CommandError as error:
            self.assertNotIn("\n", str(error).replace(line, ""))
            return
        if command is not None and command.message is not None:
            self.assertIsInstance(sent(line)["type"], str)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_any_json(self, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False)
        self.assertEqual(json.loads(bytes(parse_json(f" {text}\n"))), value)
