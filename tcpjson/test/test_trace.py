"""What a trace tells of a connection, and what it keeps to itself."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

import tcpjson.redaction
from tcpjson.test.hypo import given
from tcpjson.timestamps import format_timestamp
from tcpjson.trace import MAX_PAYLOAD, Trace

NOON = 1704110400.0
SECRET = "a pencil of mine"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Case(SynchronousTestCase):
    def lines(self, *payloads: bytes, direction: str = "sent") -> list[dict[str, Any]]:
        """What is written of payloads; each line is what it is to be."""
        file = io.StringIO()
        Trace(file, lambda: NOON)(direction, payloads)
        text = file.getvalue()
        self.assertTrue(text.isascii())
        self.assertEqual(text.count("\n"), len(payloads))
        self.assertTrue(all(map(str.isprintable, text.split("\n"))), text)
        lines = [json.loads(line) for line in text.splitlines()]
        for line, payload in zip(lines, payloads, strict=True):
            self.assertEqual(list(line)[:3], ["time", "direction", "length"])
            self.assertEqual(line.pop("time"), "2024-01-01T12:00:00.000Z")
            self.assertEqual(line.pop("direction"), direction)
            self.assertEqual(line.pop("length"), len(payload))
        return lines

    def message(self, payload: bytes) -> Any:
        """What is written of a payload that is JSON."""
        [line] = self.lines(payload)
        self.assertEqual(list(line), ["message"])
        return line["message"]

    def text(self, payload: bytes) -> Any:
        """What is written of one that is not."""
        [line] = self.lines(payload)
        self.assertEqual(list(line), ["text"])
        return line["text"]


class LineTests(Case):
    """Frames that hold no secrets."""

    def test_a_message(self) -> None:
        file = io.StringIO()
        Trace(file, lambda: NOON + 0.25)("received", [b'{"type":"pong"}'])
        self.assertEqual(
            file.getvalue(),
            '{"time":"2024-01-01T12:00:00.250Z","direction":"received","length":15,"message":{"type":"pong"}}\n',
        )

    def test_frames_of_one_turn(self) -> None:
        self.assertEqual(self.lines(b"{}", b"[1]", direction="received"), [{"message": {}}, {"message": [1]}])
        self.assertEqual(self.lines(), [])

    def test_the_time_of_each(self) -> None:
        times = iter([NOON, NOON + 1.5])
        file = io.StringIO()
        trace = Trace(file, lambda: next(times))
        trace("sent", [b"1"])
        trace("received", [b"2", b"3"])
        written = [json.loads(line)["time"] for line in file.getvalue().splitlines()]
        self.assertEqual(written, [format_timestamp(NOON), *2 * [format_timestamp(NOON + 1.5)]])

    def test_values_as_they_came(self) -> None:
        """To the last digit, whatever a parser would make of it."""
        content = '{"a":1.50,"b":1e999,"c":123456789012345678901234567890,"a":-0.0,"d":"\\/\\u0041"}'
        file = io.StringIO()
        Trace(file)("sent", [content.encode()])
        self.assertTrue(file.getvalue().endswith(f'"message":{content}}}\n'))

    def test_on_one_line(self) -> None:
        self.assertEqual(self.message(b'{\r\n\t"a": [\n1]\n}\n'), {"a": [1]})
        self.assertEqual(
            self.message('"\u2028\x7f\x85\N{SNOWMAN}😀"'.encode()), "\u2028\x7f\x85\N{SNOWMAN}😀"
        )

    def test_what_is_no_json(self) -> None:
        for payload, text in (
            (b"", ""),
            (b"hello", "hello"),
            (b"two\nlines\x1b[2J", "two\nlines\x1b[2J"),
            (b'{"a":1', '{"a":1'),
            (b"NaN", "NaN"),
            (b"\xef\xbb\xbf{}", "\ufeff{}"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b'{"a":"\xff"}', '{"a":"\\xff"}'),
            (b'"\xed\xa0\x80"', '"\\xed\\xa0\\x80"'),
            ("ä".encode(), "ä"),
        ):
            self.assertEqual(self.text(payload), text)

    def test_far_too_deep(self) -> None:
        self.assertEqual(self.text(b"[" * 50000), "[" * 50000)
        deep = b"[" * 20000 + b"]" * 20000
        self.assertEqual(self.text(deep), deep.decode())

    def test_long_payloads(self) -> None:
        fits = json.dumps("x" * (MAX_PAYLOAD - 2)).encode()
        self.assertEqual(self.message(fits), json.loads(fits))
        longer = json.dumps("x" * (MAX_PAYLOAD - 1)).encode()
        for payload in (longer, b"y" * (MAX_PAYLOAD + 1), b"{}" * 500_000):
            self.assertEqual(self.lines(payload), [{"text": payload[:MAX_PAYLOAD].decode(), "cut": True}])

    def test_cut_within_a_character(self) -> None:
        [line] = self.lines(b"x" + "ä".encode() * MAX_PAYLOAD)
        self.assertEqual(line["text"][-6:], "ää\\xc3")

    @given(
        st.lists(st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()), max_size=4)
    )
    def test_any_payloads(self, payloads: list[bytes]) -> None:
        for line, payload in zip(self.lines(*payloads), payloads, strict=True):
            if "message" in line:
                self.assertEqual(line["message"], json.loads(payload))


class SecretTests(Case):
    """What is never written."""

    def test_messages_of_section_6(self) -> None:
        for message, shown in (
            (
                {"type": "auth", "mechanism": "plain", "id": -2, "username": "ann", "password": SECRET},
                {"type": "auth", "mechanism": "plain", "id": -2, "username": "ann", "password": "(hidden)"},
            ),
            (
                {"type": "auth", "mechanism": "token", "token": SECRET},
                {"type": "auth", "mechanism": "token", "token": "(hidden)"},
            ),
            (
                {"type": "auth", "data": SECRET, "id": [1], "tokens": {"a": SECRET}},
                {"type": "auth", "data": "(hidden)", "id": [1], "tokens": "(hidden)"},
            ),
            (
                {"type": "auth_challenge", "data": SECRET, "id": -2},
                {"type": "auth_challenge", "data": "(hidden)", "id": -2},
            ),
            (
                {"type": "auth_result", "status": "authenticated", "user": "ann", "data": SECRET},
                {"type": "auth_result", "status": "authenticated", "user": "ann", "data": "(hidden)"},
            ),
            (
                {"type": "auth_result", "status": "authenticated", "echo": SECRET},
                {"type": "auth_result", "status": "authenticated", "echo": "(hidden)"},
            ),
            (
                {"type": "error", "code": "bad_message", "message": SECRET, "id": -2},
                {"type": "error", "code": "bad_message", "message": "(hidden)", "id": -2},
            ),
            # Sent back by a server that knows no `auth`.
            (
                {"type": "response", "original_message": {"type": "auth", "token": SECRET}, "n": 1},
                {"type": "response", "original_message": {"type": "auth", "token": "(hidden)"}, "n": 1},
            ),
        ):
            for payload in (json.dumps(message), json.dumps(message, indent=4)):
                self.assertEqual(self.message(payload.encode()), shown)

    def test_however_it_is_spelt(self) -> None:
        for payload in (
            rb'{"type":"\u0061uth","password":"a pencil of mine"}',
            rb'{"t\u0079pe":"\u0061\u0075\u0074\u0068","password":"a pencil of mine"}',
            rb'{"password":"a pencil of mine","n":1e999,"type":"auth"}',
            b' {"type":"auth","password":"a pencil of mine\xff"}',
            b'\r\n{"type":"auth","password":"a pencil of mine","x":' + b"[" * 500 + b"]" * 500 + b"}",
        ):
            self.assertNotIn("pencil", str(self.lines(payload)))

    def test_nothing_else_is_hidden(self) -> None:
        for message in (
            {"type": "echo", "content": "auth", "data": SECRET},
            {"type": "welcome", "auth": ["plain"], "data": SECRET},
            {"type": "author", "password": SECRET},
            {"type": "error", "code": "bad_message", "message": SECRET, "id": -3},
            {"password": SECRET, "about": "auth"},
            {"type": ["auth"], "password": SECRET},
            {"type": "auth_result", "status": "authentication_failed"},
            {"type": "response", "original_message": {"type": "authors", "token": SECRET}},
            {"type": "response", "original_message": "auth"},
            ["auth", SECRET],
        ):
            self.assertEqual(self.message(json.dumps(message).encode()), message)
        for text in ("the author said", '"auth', "auth " + SECRET):
            self.assertEqual(self.text(text.encode()), text)
        self.assertEqual(self.text(rb"\u0061"), r"\u0061")

    def test_what_is_not_hidden_stays_as_it_came(self) -> None:
        for payload in ('{"type":"echo","content":[1.50,"auth"]}', '{"original_message":{"auth":1.50}}'):
            file = io.StringIO()
            Trace(file)("sent", [payload.encode()])
            self.assertTrue(file.getvalue().endswith(f'"message":{payload}}}\n'))

    def test_a_broken_one(self) -> None:
        """Nobody knows where the secret is in it."""
        for payload in (
            b'{"type":"auth","password":"a pencil of mine",}',
            b' \n{"type": "auth", "password": "a pencil of mine"',
            b'{"type":"auth","password":"a pencil of mine","x":' + b"[" * 50000,
            b'{"type":"auth","\xff":"a pencil of mine"}',
        ):
            self.assertEqual(self.text(payload), "(hidden)")

    def test_a_long_one(self) -> None:
        message = {"type": "auth", "username": "ann", "password": SECRET, "token": "x" * MAX_PAYLOAD}
        self.assertEqual(self.message(json.dumps(message).encode())["password"], "(hidden)")
        message = {"password": SECRET, "username": "n" * MAX_PAYLOAD, "type": "auth"}
        [line] = self.lines(json.dumps(message).encode())
        self.assertTrue(line["cut"])
        self.assertNotIn(SECRET, line["text"])

    def test_nested_without_end(self) -> None:
        """A server cannot have it look deeper and deeper."""
        looks: list[bytes] = []
        decode = tcpjson.redaction._decode_fields

        def counted(payload: bytes) -> Any:
            looks.append(payload)
            return decode(payload)

        self.patch(tcpjson.redaction, "_decode_fields", counted)
        payload = b'{"original_message":' * 300 + b'"auth"' + b"}" * 300
        self.assertEqual(self.message(payload), json.loads(payload))
        self.assertEqual(len(looks), 2)

    @given(
        st.dictionaries(st.text(max_size=9), st.just(SECRET) | st.lists(st.just(SECRET)), max_size=4),
        st.booleans(),
        st.booleans(),
    )
    def test_any_auth(self, fields: dict[str, Any], escaped: bool, returned: bool) -> None:
        allowed = {"mechanism", "id", "username"}
        message: Any = {name: value for name, value in fields.items() if name not in allowed}
        message["type"] = "auth"
        if returned:
            message = {"type": "response", "original_message": message}
        payload = json.dumps(message, ensure_ascii=escaped).encode()
        self.assertNotIn(SECRET, json.dumps(self.lines(payload)))


class Full(io.StringIO):
    """A file on a disk that is full."""

    tries = 0

    def flush(self) -> None:
        self.tries += 1
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        super().close()
        self.flush()


class FileTests(Case):
    def path(self) -> Path:
        return Path(self.mktemp())

    def test_open(self) -> None:
        path = self.path()
        old = os.umask(0o002)
        self.addCleanup(os.umask, old)
        for number in range(2):
            trace = Trace.open(path, lambda: NOON)
            trace("sent", [b"%d" % number])
            trace.close()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        self.assertEqual([line["message"] for line in lines], [0, 1])
        self.assertEqual(lines[0]["time"], "2024-01-01T12:00:00.000Z")

    def test_the_mode_of_an_old_file_stays(self) -> None:
        path = self.path()
        path.touch(0o640)
        path.chmod(0o640)
        Trace.open(str(path)).close()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
        # No line was begun in it.
        self.assertEqual(path.read_bytes(), b"")

    def test_a_path_that_cannot_be_opened(self) -> None:
        self.assertRaises(FileNotFoundError, Trace.open, self.path() / "trace")
        path = self.path()
        path.mkdir()
        self.assertRaises(IsADirectoryError, Trace.open, path)

    def test_behind_a_line_that_was_cut(self) -> None:
        path = self.path()
        path.write_text('{"time":"2024')
        for _ in range(2):
            trace = Trace.open(path)
            trace("sent", [b"1"])
            trace.close()
        cut, *lines = path.read_text().splitlines()
        self.assertEqual(cut, '{"time":"2024')
        self.assertEqual([json.loads(line)["message"] for line in lines], [1, 1])

    def test_read_while_it_grows(self) -> None:
        path = self.path()
        trace = Trace.open(path)
        self.addCleanup(trace.close)
        for count in range(1, 4):
            trace("sent", [b"1"])
            self.assertEqual(path.read_text().count("\n"), count)

    def test_a_killed_program(self) -> None:
        """It leaves whole lines, all of them."""
        path = self.path()
        script = (
            "import os, signal, sys; from tcpjson.trace import Trace; trace = Trace.open(sys.argv[1])\n"
            "for _ in range(100): trace('sent', [b'1'] * 20)\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        root = str(Path(tcpjson.__file__).parent.parent)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])},
            check=False,
        )
        self.assertEqual(done.returncode, -9)
        lines = path.read_text().split("\n")
        self.assertEqual((len(lines), lines[-1]), (2001, ""))
        for line in lines[:-1]:
            json.loads(line)

    def test_a_pipe(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        os.set_blocking(reading, False)
        trace = Trace.open(f"/dev/fd/{writing}")
        trace("sent", [b"1"])
        self.assertEqual(json.loads(os.read(reading, 1000))["message"], 1)
        trace.close()

    def test_a_full_disk(self) -> None:
        """One line in the log, and nothing more."""
        file = Full()
        trace = Trace(file)
        with capturedLogs() as logged:
            for _ in range(3):
                trace("sent", [b"1"])
            trace.close()
        [event] = logged
        self.assertIn("No space left", str(event["error"]))
        self.assertEqual(event["log_level"].name, "warn")
        # Closing it flushes, too.
        self.assertEqual(file.tries, 2)

    def test_a_closed_file(self) -> None:
        file = io.StringIO()
        trace = Trace(file)
        file.close()
        with capturedLogs() as logged:
            for _ in range(3):
                trace("sent", [b"1"])
        self.assertEqual(len(logged), 1)

    def test_close(self) -> None:
        file = io.StringIO()
        trace = Trace(file)
        with capturedLogs() as logged:
            trace.close()
            trace.close()
            trace("sent", [b"1"])
        self.assertTrue(file.closed)
        self.assertEqual(logged, [])

    def test_threads(self) -> None:
        """No line within another, whoever writes."""
        events: list[str] = []

        class Slow(io.StringIO):
            """While it writes for one thread, another comes."""

            def write(self, text: str) -> int:
                events.append("begun")
                if not threads:
                    threads.append(threading.Thread(target=trace, args=("sent", [b"2"])))
                    threads[0].start()
                    threads[0].join(0.2)
                events.append("done")
                return super().write(text)

        threads: list[threading.Thread] = []
        file = Slow()
        trace = Trace(file)
        trace("sent", [b"1"])
        threads[0].join(30)
        self.assertEqual(events, ["begun", "done"] * 2)
        self.assertEqual([json.loads(line)["message"] for line in file.getvalue().splitlines()], [1, 2])
