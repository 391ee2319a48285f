"""The command line of the console, and what is made of it."""

from __future__ import annotations

import getpass
import warnings
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.console import program
from tcpjson.console.options import ask_password, credentials, read
from tcpjson.credentials import Password, Token


class OptionsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        options = read([])
        self.assertEqual((options.where, options.timeout, options.json), ("localhost", 10.0, False))
        self.assertIsNone(credentials(options))
        self.assertEqual(read(["--timeout", "2.5"]).timeout, 2.5)

    def test_wrong(self) -> None:
        for arguments in (
            ["--timeout", "0"],
            ["--timeout", "x"],
            ["--timeout", "inf"],
            ["--timeout", "nan"],
            ["--user", "a", "--token-file", "f"],
            ["--password-file", "f"],
            ["--password", "secret"],
            ["a", "b"],
        ):
            with patch("sys.stderr"):
                error = self.assertRaises(SystemExit, read, arguments)
            self.assertEqual(error.code, 2, arguments)

    def file(self, content: bytes) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content)
        return str(path)

    def test_secrets_of_files(self) -> None:
        for content in (b"s3cret", b"s3cret\n", b"s3cret\r\nmore\n"):
            path = self.file(content)
            token = credentials(read(["--token-file", path, "--allow-plain-auth"]))
            assert isinstance(token, Token)
            self.assertEqual(token.begin(["token"], False).first["token"], "s3cret")
            password = credentials(read(["--user", "ann", "--password-file", path]))
            assert isinstance(password, Password)
            first = password.begin(["plain"], True).first
            self.assertEqual((first["username"], first["password"]), ("ann", "s3cret"))

    def test_files_that_will_not_do(self) -> None:
        for path, reason in (
            (self.file(b""), "its first line is empty"),
            (self.file(b"\nsecret"), "its first line is empty"),
            (self.file(b"x" * 5000), "its first line is longer than 4096 bytes"),
            (self.file(b"\xff"), "no UTF-8"),
            ("/nonexistent", "No such file or directory"),
        ):
            error = self.assertRaises(ValueError, credentials, read(["--token-file", path]))
            self.assertEqual(str(error), f"{path}: {reason}")

    def test_a_password_that_is_asked_for(self) -> None:
        asked: list[str] = []

        def ask(name: str) -> str:
            asked.append(name)
            return "s3cret"

        password = credentials(read(["--user", "ann"]), ask)
        assert isinstance(password, Password)
        self.assertEqual((asked, password.begin(["plain"], True).first["password"]), (["ann"], "s3cret"))

    def test_asking(self) -> None:
        def warn(prompt: str) -> str:
            warnings.warn("it would be seen", getpass.GetPassWarning, stacklevel=1)
            return "seen"

        def leave(prompt: str) -> str:
            raise EOFError

        with patch("getpass.getpass", lambda prompt: f"answer to {prompt}"):
            self.assertEqual(ask_password("ann"), "answer to Password of ann: ")
        for function, reason in (
            (warn, "no terminal to ask for the password on: use --password-file"),
            (leave, "no password was given"),
            (lambda prompt: "", "no password was given"),
        ):
            with patch("getpass.getpass", function), patch("sys.stderr"):
                self.assertEqual(str(self.assertRaises(ValueError, ask_password, "ann")), reason)


class ProgramTests(SynchronousTestCase):
    def test_which(self) -> None:
        for environment, is_terminal, kind in (
            ({"TERM": "xterm"}, False, "piped"),
            ({"TERM": "dumb"}, True, "plain"),
            ({}, True, "plain"),
        ):
            self.assertEqual(program.choose(environment, is_terminal), kind)
        for found, kind in ((None, "missing"), (object(), "terminal")):
            with patch("importlib.util.find_spec", lambda name, found=found: found):
                self.assertEqual(program.choose({"TERM": "xterm"}, True), kind)

    def test_what_ends_it_before_it_begins(self) -> None:
        told: list[bytes] = []
        with patch.object(program, "write_all", lambda descriptor, data: told.append(data)):
            self.assertEqual(program.main(["--token-file", "/nonexistent"]), 1)
            self.assertEqual(program.main(["--trace", "/nonexistent/\x1b"]), 1)
            with patch("getpass.getpass", side_effect=KeyboardInterrupt), patch("sys.stderr"):
                self.assertEqual(program.main(["--user", "ann"]), 130)
            with patch("os.fstat", side_effect=OSError(9, "Bad file descriptor")):
                self.assertEqual(program.main([]), 1)
        self.assertEqual(
            told,
            [
                b"tcpjson.console: /nonexistent: No such file or directory\n",
                b"tcpjson.console: /nonexistent/\\x1b: No such file or directory\n",
                b"tcpjson.console: the standard input and output: Bad file descriptor\n",
            ],
        )
