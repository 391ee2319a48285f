"""What docs/protocol.rst says is what the code does: its tables, numbers and examples."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import textwrap
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, get_args, get_type_hints

from msgspec import Raw
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import auth, exchange, server, tap, tls, transports
from tcpjson.core import backoff, compression, errors, heartbeat, limits, messages, values
from tcpjson.core.limits import Limits
from tcpjson.core.session import TRANSITIONS, State
from tcpjson.core.stats import Stats
from tcpjson.testing import MemoryServer
from tests.test_vectors import token_file

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "protocol.rst").read_text(encoding="utf-8")

_TITLE = re.compile(r"^(.+)\n-+\n", re.MULTILINE)
_RULE = re.compile(r"_`R(\d+)\.(\d+)`")
_WORD = re.compile(r"\b(?:MUST|SHOULD|MAY)\b")
_NAME = re.compile(r"``([a-z_]+)``")

# A line of "A session in bytes": who, the offset, up to 16 bytes, the same as text, or as a length.
_DUMP = re.compile(r"^   ([SC]) ([0-9a-f]{4})  ([0-9a-f ]{48})  (.*)$", re.MULTILINE)


def sections() -> dict[str, str]:
    """The texts of the sections, by their titles."""
    _, *parts = _TITLE.split(TEXT)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def section(title: str) -> str:
    """The text of the section whose title begins so."""
    [text] = [text for name, text in sections().items() if name.startswith(title)]
    return text


def tables(title: str) -> list[list[list[str]]]:
    """The tables of a section: of each the rows, without the headings, in cells of one line."""
    found = []
    for table in section(title).split(".. list-table::")[1:]:
        rows: list[list[str]] = []
        for line in table.split("\n\n")[1].splitlines():
            if line.startswith("   * "):
                rows.append([])
            if line[5:7] in ("- ", "-"):
                rows[-1].append(line[7:])
            else:
                rows[-1][-1] += line[6:]
        found.append(rows[1:])
    return found


def code(cell: str) -> str:
    """What stands in a cell that is one literal."""
    return cell.removeprefix("``").removesuffix("``")


def diagram() -> str:
    """The states and their steps as a picture: a column for each state, an arrow for each step."""
    columns: dict[State, int] = {}
    for state in State:
        steps = [columns[at] + len(event.value) + 6 for (at, event), to in TRANSITIONS.items() if to is state]
        names = [column + (len(other.value) + len(state.value)) // 2 + 3 for other, column in columns.items()]
        columns[state] = max([len(state.value) // 2, *steps, *names])
    titles = ""
    for state, column in columns.items():
        titles = titles.ljust(column - len(state.value) // 2) + state.value
    empty = "".join("│" if at in columns.values() else " " for at in range(max(columns.values()) + 1))
    lines = [titles, empty]
    for (state, event), to in TRANSITIONS.items():
        start, end = columns[state], columns[to]
        arrow = f"├─ {event.value} ".ljust(end - start - 1, "─")
        lines.append(f"{empty[:start]}{arrow}>{empty[end:]}")
    return "\n".join(lines)


def given(values: dict[str, Any]) -> Limits:
    """Limits with these values."""
    return Limits(**values)


class RuleTests(SynchronousTestCase):
    """What obliges has a number, and what does not has none."""

    def test_numbers(self) -> None:
        """Those of a section stand in it, and count from 1."""
        for title, text in sections().items():
            numbers = _RULE.findall(text)
            expected = [(title.partition(".")[0], str(number + 1)) for number in range(len(numbers))]
            self.assertEqual(numbers, expected, title)
            self.assertEqual(bool(numbers), title[0].isdigit(), title)

    def test_words(self) -> None:
        """Each rule says MUST, SHOULD or MAY: the rows of section 3 in the line before them."""
        _, *parts = _RULE.split(TEXT)
        for number, rest, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if number == "3" and int(rest) <= len(tables("3. ")[0]):
                continue
            self.assertRegex(text.partition("\n\n")[0], _WORD, f"R{number}.{rest}")
        self.assertRegex(section("3. "), r"\A\nA server MUST .*:\n\n\.\. list-table::")

    def test_notes(self) -> None:
        """They bind nobody."""
        for title, text in sections().items():
            _, *notes = text.split("\nNotes:\n")
            for note in notes:
                self.assertEqual(re.findall(r"\b(?:[Mm]ust|[Ss]hould|MUST|SHOULD|MAY)\b", note), [], title)


class TableTests(SynchronousTestCase):
    """The tables of the document are those of the code."""

    maxDiff = None

    def test_states(self) -> None:
        [rows] = tables("The life of a connection")
        steps = [(at.value, event.value, to.value) for (at, event), to in TRANSITIONS.items()]
        self.assertEqual([tuple(map(code, row[:3])) for row in rows], steps)

    def test_the_diagram(self) -> None:
        drawn = textwrap.indent(diagram(), "   ")
        shown = section("The life of a connection").partition(".. code-block:: none\n\n")[2].partition("\n\n")
        self.assertEqual(shown[0], drawn, f"put this into The life of a connection:\n\n{drawn}\n")

    def test_codes(self) -> None:
        _, rows, _ = tables("9. ")
        shown = {code(row[0]): "yes" in row[1].replace("(yes", "") for row in rows}
        # Tests, too, derive errors with codes of their own.
        kinds = [kind for kind in errors.CODES.values() if kind.__module__ == errors.__name__]
        self.assertEqual(shown, {kind.code: kind.fatal for kind in kinds})
        self.assertEqual(len(shown), len(rows))
        [both] = [code(row[0]) for row in rows if "(yes" in row[1]]
        broken = compression.BrokenStream
        self.assertEqual((both, True), (broken.code, broken.fatal))

    def test_reasons(self) -> None:
        *_, rows = tables("9. ")
        reasons = {text for name, text in vars(errors).items() if name.isupper() and isinstance(text, str)}
        self.assertEqual({code(row[0]) for row in rows}, reasons)

    def test_what_the_protocol_fixes(self) -> None:
        text_id = get_args(get_args(messages.RequestId)[0])[1]
        fixed = {
            "the largest ``max_length``": f"{limits.LARGEST_FRAME:,} bytes",
            "levels of a value": f"{values.MAX_DEPTH}",
            "bytes of a frame for which it gets a second more": f"{limits.BYTES_PER_SECOND:,} bytes",
            "characters of an ``id``": f"{text_id.max_length}",
            "a frame before authentication": f"{limits.PRE_AUTH_MAX_LENGTH:,} bytes",
            "failures that end a connection": f"{auth.MAX_FAILURES}",
            "the longest delay after failures": f"{max(backoff.DELAYS):g} s",
            "the time for an answer to a ping of the server": f"{heartbeat.ANSWER_TIME:g} s",
            "from a fatal error to the abort": f"{limits.CLOSE_TIMEOUT:g} s",
            "answers that wait before requests do": f"{limits.HIGH_WATER:,} bytes",
        }
        self.assertEqual({row[0]: row[1] for row in tables("Limits")[0]}, fixed)

    def test_defaults(self) -> None:
        rows = {code(row[0]): row[1:] for row in tables("Limits")[1]}
        self.assertEqual([*rows], [*Limits.__struct_fields__])
        for name, (default, *_) in rows.items():
            value = getattr(Limits(), name)
            if isinstance(value, (int, float)):
                value = f"{value:,g}" if isinstance(value, float) else f"{value:,}"
            self.assertEqual(re.split("[ :]", default)[0], "none" if value is None else value, name)
            unit = re.search("(_timeout|^heartbeat|^grace)$|^max_(?:length|queue)$", name)
            if unit and value is not None:
                self.assertEqual(default.split(" ")[1], "s" if unit[1] else "bytes", name)

    def test_bounds(self) -> None:
        """The bounds are taken, and what is beyond them is not."""
        hints = get_type_hints(Limits)
        for cell, _, bounds, *_ in tables("Limits")[1]:
            name = code(cell)
            bounds, _, none = bounds.partition(", or ")
            self.assertEqual(none == "none", type(None) in get_args(hints[name]), name)
            good: list[Any]
            bad: list[Any] = [0, -1, float("inf"), float("nan")]
            if match := re.fullmatch(r"1 to ([\d,]+)", bounds):
                most = int(match[1].replace(",", ""))
                good, bad = [1, most], [*bad, most + 1]
            elif bounds == "1 and more":
                good = [1, 10**15]
                if float in get_args(hints[name]):
                    bad.append(0.5)
            elif bounds == "more than 0":
                good = [1e-9, 1, 1e15]
            else:
                good, bad = bounds.split(", "), ["", "else"]
            for value in good:
                self.assertEqual(getattr(given({name: value}), name), value)
            for value in bad:
                error = self.assertRaises(ValueError, given, {name: value})
                self.assertIn(name, str(error))
        # Where the bounds are names, these are all.
        [policies] = [row[2].split(", ") for row in tables("Limits")[1] if row[0] == "``rate_policy``"]
        self.assertEqual(policies, [*limits.RATE_POLICIES])

    def test_what_welcome_says_of_limits(self) -> None:
        """The same in the table of section 4, in that of the limits, and in the code."""
        names = Limits.__struct_fields__
        everything = given({name: 4096 for name in names if name != "rate_policy"})
        always, asked = ({*everything.announced(auth=each)} for each in (False, True))
        shown = {code(row[0]): row[3] for row in tables("Limits")[1]}
        own = {*names} & {*messages.Welcome.__struct_fields__}
        expected = {
            name: "as a field"
            if name in own
            else "in ``limits``"
            if name in always
            else "in ``limits``, with a login"
            if name in asked
            else "no"
            for name in names
        }
        self.assertEqual(shown, expected)
        [row] = [row for row in tables("4. ")[0] if row[0] == "``limits``"]
        self.assertEqual({*_NAME.findall(row[1])}, asked)

    def test_what_comes_beyond_the_limits(self) -> None:
        known = {*errors.CODES, *Limits.__struct_fields__, "ping"}
        for row in tables("Limits")[1]:
            self.assertEqual({*_NAME.findall(row[4])} - known, set(), row[0])

    def test_options(self) -> None:
        """Those that are named exist; each limit has one of its name, but for the rates."""
        options = {option.rstrip("=") for option in tap.Options().longOpt}
        self.assertEqual({*re.findall(r"``--([a-z-]+)", TEXT)} - options, set())
        without = {name for name in Limits.__struct_fields__ if name.replace("_", "-") not in options}
        [text] = re.findall(r"What each server is told:(.*?)\.\. list-table", section("Limits"), re.DOTALL)
        self.assertEqual({*_NAME.findall(text)}, {"tcpjson", *without})


class FieldTests(SynchronousTestCase):
    """The messages, and their fields, are those of `tcpjson.core.messages`."""

    def setUp(self) -> None:
        #: The fields by the types, of clients and of servers.
        self.shown: tuple[dict[str, set[str]], dict[str, set[str]]] = {}, {}
        for _, sent, reply, others in tables("3. ")[0]:
            self.enter(0, sent)
            self.enter(1, reply)
            self.enter(1, others)
        self.shown[1]["welcome"].update(code(row[0]) for row in tables("4. ")[0])
        hello, response = tables("5. ")[0]
        self.enter(0, ": ".join(hello))
        self.enter(1, ": ".join(response).removeprefix("reply: "))
        for _, _, cell in tables("6. ")[0]:
            for part in cell.split(" → "):
                self.enter(0 if part.startswith("``auth``") else 1, part)
        ping, pong = tables("8. ")[0]
        self.enter(1, ": ".join(ping))
        self.enter(0, ": ".join(pong))
        self.shown[1]["error"] = {code(row[0]) for row in tables("9. ")[0]}

    def enter(self, side: int, cell: str) -> None:
        """Take the names of a cell that begins with a type: those in parentheses are no fields."""
        if cell.startswith("``"):
            kind, *fields = _NAME.findall(re.sub(r"\([^()]*\)", "", cell))
            self.shown[side].setdefault(kind, set()).update(fields)

    def classes(self, answers: bool) -> dict[str, set[str]]:
        """The fields of the classes of one side by their types; those apart that any message has."""
        return {
            str(kind.__struct_config__.tag): {*kind.__struct_fields__} - {"id", "timestamp"}
            for kind in vars(messages).values()
            if isinstance(kind, type)
            and issubclass(kind, messages.Message)
            and kind.__struct_config__.tag
            and kind.__module__ == messages.__name__
            and issubclass(kind, messages.Answer) == answers
            and kind not in (messages.Message, messages.Answer)
        }

    def test_requests(self) -> None:
        """Some fields are taken, whatever they are, and not looked at."""
        shown = {kind: fields - {"timestamp"} for kind, fields in self.shown[0].items()}
        shown["ping"].remove("client_info")
        shown["pong"].remove("ping_timestamp")
        self.assertEqual(shown, self.classes(answers=False))

    def test_answers(self) -> None:
        shown = {kind: fields - {"id", "timestamp"} for kind, fields in self.shown[1].items()}
        self.assertEqual(shown, self.classes(answers=True))

    def test_details(self) -> None:
        stats = Stats(0.0, set())
        stats.certificate_days = 1.0
        [note] = re.findall(r"^\* ``details`` has(.*?)^\* ", section("3. "), re.MULTILINE | re.DOTALL)
        self.assertEqual({*_NAME.findall(note)}, {*stats.details(1.0)})

    def test_constant_fields(self) -> None:
        echo = messages.EchoResponse(Raw(b"1"))
        self.assertIn(f'``echoed_by``: ``"{echo.echoed_by}"``', section("3. "))
        [version] = [row[1] for row in tables("4. ")[0] if row[0] == "``protocol``"]
        welcome = messages.Welcome(client_id="", message="", server="", max_length=1, limits={})
        self.assertEqual(version, str(welcome.protocol))


_TIMES = {4: "four times"}


class FigureTests(SynchronousTestCase):
    """The numbers in the text are those of the code."""

    def check(self, title: str, *fragments: str) -> None:
        """Each of these stands in a section."""
        text = " ".join(section(title).split())
        for fragment in fragments:
            self.assertIn(fragment, text)

    def test_framing(self) -> None:
        defaults = Limits()
        self.check(
            "1. ",
            f"{defaults.max_length:,} by default, configurable up to {limits.LARGEST_FRAME >> 20} MiB",
            f"nesting deeper than {values.MAX_DEPTH} levels",
            f"({defaults.frame_timeout:g} s by default, and one second more for each"
            f" {limits.BYTES_PER_SECOND >> 10} KiB announced)",
            f"any number, and {values.MAX_DEPTH} levels",
            f"SHOULD take {values.MAX_DEPTH + 1} levels",
            f"``auth_timeout`` ({defaults.auth_timeout:g} s) ends the connection",
        )

    def test_messages(self) -> None:
        text_id, number_id = (get_args(each)[1] for each in get_args(messages.RequestId))
        self.check("2. ", f"at most {text_id.max_length} characters", "a signed 64-bit integer")
        self.assertEqual((number_id.ge, number_id.le), (-(2**63), 2**63 - 1))

    def test_authentication(self) -> None:
        *first, last = (f"{delay:g}" for delay in backoff.DELAYS)
        self.check(
            "6. ",
            f"({Limits().auth_timeout:g} s by default",
            f"longer than {limits.PRE_AUTH_MAX_LENGTH:,} bytes",
            f"(the first one not, none by more than {max(backoff.DELAYS):g} s)",
            f"The {('', 'first', 'second', 'third')[auth.MAX_FAILURES]} failure on a connection",
            f"waits {', '.join(first)} and from then on {last} s",
            f"forgotten {backoff.MEMORY:g} s after the last",
            f"of at most {auth._MAX_FIRST} bytes",
            f"longer than {tls._MAX_NAME} characters",
        )

    def test_compression(self) -> None:
        self.check("7. ", f"``--compress-over`` bytes, {compression.COMPRESS_OVER:,} by default")
        self.check("4. ", f'``["{compression.NAMES[0]}"]``')
        self.assertEqual(len(compression.NAMES), 1)

    def test_heartbeats(self) -> None:
        keepalive = dict(transports._KEEPALIVE)
        idle, every = keepalive[socket.TCP_KEEPIDLE], keepalive[socket.TCP_KEEPINTVL]
        most = Limits().write_timeout + server._USER_TIMEOUT_MARGIN
        given_up = next(time for time in range(idle + every, 10**6, every) if time > most)
        self.check(
            "8. ",
            f"Silence for {heartbeat.ANSWER_TIME:g} s more",
            f"looked at {_TIMES[heartbeat._LOOKS]} in each ``heartbeat``",
            f"and the {heartbeat.ANSWER_TIME:g} s begin anew",
            f"asks after {idle} s of silence and then every {every} s",
            f"``write_timeout`` and {server._USER_TIMEOUT_MARGIN} s more",
            f"after {given_up} s by default",
        )

    def test_errors(self) -> None:
        defaults = Limits()
        self.check(
            "9. ",
            f"``write_timeout`` ({defaults.write_timeout:g} s by default)",
            f"abort after {limits.CLOSE_TIMEOUT:g} s at the latest",
            f"looked at {_TIMES[exchange._LOOKS]} in each ``write_timeout``",
            f"more than {limits.HIGH_WATER >> 10} KiB of them waiting",
            f"for ``write_timeout`` and {server._USER_TIMEOUT_MARGIN} s more",
            f"looked for {_TIMES[heartbeat._LOOKS]} in each ``idle_timeout``",
            f"more than {server._LINGERING} refused connections",
            f"{limits.HIGH_WATER >> 10} KiB of answers and one more",
            f"``handler_timeout``, {defaults.handler_timeout:g} s by default",
        )

    def test_backpressure(self) -> None:
        most = Limits().max_handlers
        self.check(
            "10. ",
            f"more than {limits.HIGH_WATER >> 10} KiB of answers",
            f"when {exchange._LOW_WATER >> 10} KiB of answers or less wait",
            f"{most} unfinished handlers",
            f"until {most // 2} or fewer are left",
        )

    def test_shutting_down(self) -> None:
        least, most = server._SPREAD
        self.check(
            "11. ",
            f"{server._RETURNS} clients to a second, over {least:g} s at the least and {most:g} s at the",
            f"After {server._FAREWELL:g} s the server closes",
            f"complete in that {server._FAREWELL:g} s",
            f"grace period ({Limits().grace:g} s by default)",
        )

    def test_limits(self) -> None:
        self.check("Limits", f"as many as files may be open, less {tap._RESERVED_FILES})")


def dumped(text: str) -> list[tuple[str, dict[int, bytes]]]:
    """What was sent, of a text in hexadecimal: who sent it, and the bytes of its lines by their offsets."""
    sent: list[tuple[str, dict[int, bytes]]] = []
    for who, offset, digits, _ in _DUMP.findall(text):
        if int(offset, 16) == 0:
            sent.append((who, {}))
        assert sent[-1][0] == who
        sent[-1][1][int(offset, 16)] = bytes.fromhex(digits)
    return sent


def payloads(title: str) -> list[dict[str, Any]]:
    """The JSON objects that stand in the examples of a section, each in a line behind C or S."""
    return [json.loads(line) for line in re.findall(r"^   [CS] (\{.*\})$", section(title), re.MULTILINE)]


class DocumentTests(SynchronousTestCase):
    """What docs/protocol.rst shows is what happens."""

    def test_a_session_in_bytes(self) -> None:
        session = section("A session in bytes")
        sent = dumped(session)
        self.assertEqual("".join(who for who, _ in sent), "SCSCSCSCSCS")
        _, welcome = sent[0]
        self.assertIn(f" {int.from_bytes(welcome[0], 'big')} is its length", session)
        # Nothing else stands in the blocks.
        lines = [line for line in session.splitlines() if line.startswith("   ") and line != "   …"]
        self.assertEqual(len(_DUMP.findall(session)), len(lines))
        for *_, digits, shown in _DUMP.findall(session):
            data = bytes.fromhex(digits)
            characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data).rstrip()
            length = f"length: {int.from_bytes(data, 'big')}" if len(data) == 4 else characters
            self.assertIn(shown, (characters, length))
        server = MemoryServer()
        self.addCleanup(server.stop)
        peer = server.connect()
        for who, parts in sent:
            if who == "C":
                self.assertFalse(peer.closed)
                # When the ping comes, as the times in its answer say; nothing of what is sent is left out.
                server.advance(1.25 - server.clock.seconds())
                peer.send_bytes(b"".join(parts.values()))
                continue
            came = peer.transport.value()
            peer.transport.clear()
            self.assertEqual({at: came[at : at + len(part)] for at, part in parts.items()}, parts)
            self.assertEqual(max(parts) + len(parts[max(parts)]), len(came))
        self.assertTrue(peer.closed)

    def test_features(self) -> None:
        self.assertIn("there are no ``features`` yet", TEXT)
        server = MemoryServer()
        self.addCleanup(server.stop)
        [welcome] = server.connect().receive()
        self.assertEqual(welcome["features"], [])

    def test_a_login_by_scram(self) -> None:
        """The values are those that follow from the password, by RFC 5802 and without any library for it."""
        first, challenge, final, result = payloads("6. ")[2:]
        bare = first["data"].removeprefix("n,,")
        without_proof, _, proof = final["data"].rpartition(",p=")
        fields = dict(part.split("=", 1) for part in challenge["data"].split(","))
        rounds = int(fields["i"])
        salted = hashlib.pbkdf2_hmac("sha256", b"pencil", b64decode(fields["s"]), rounds)
        signed = ",".join((bare, challenge["data"], without_proof)).encode()
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        self.assertEqual(b64decode(proof), bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        verifier = b64encode(hmac.digest(server_key, signed, "sha256")).decode()
        self.assertEqual(result["data"], f"v={verifier}")
        self.assertEqual((bare.partition(",")[0], result["user"]), ("n=user", "user"))

    def test_a_compressed_frame(self) -> None:
        """The lines of Python of section 7."""
        [lines] = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", section("7. "), re.MULTILINE)
        names: dict[str, Any] = {}
        exec(textwrap.dedent(lines), names)
        server = MemoryServer()
        self.addCleanup(server.stop)
        peer = server.connect()
        peer.send({"type": "hello", "compression": ["zlib"]})
        peer.send_bytes(names["compressed"](b'{"type":"ping","timestamp":7}'))
        *_, pong = peer.receive()
        self.assertEqual((pong["type"], pong["ping_timestamp"]), ("pong", 7))

    def test_a_login_by_token(self) -> None:
        ask, result = payloads("6. ")[:2]
        tokens = {result["user"]: ask["token"]}
        server = MemoryServer(checkers=[auth.TokenChecker(token_file(tuple(tokens.items())))])
        self.addCleanup(server.stop)
        peer = server.connect()
        self.assertEqual(peer.receive()[0]["auth"], [ask["mechanism"]])
        peer.send(ask)
        self.assertEqual(peer.receive(), [result])
