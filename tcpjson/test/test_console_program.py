"""The command line of the console, and what is made of it."""

from __future__ import annotations

import getpass
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.console import program
from tcpjson.console.link import maker
from tcpjson.console.options import read
from tcpjson.credentials import Password, Token
from tcpjson.logins import ask_password, credentials


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


class MakerTests(SynchronousTestCase):
    """What goes to the first place, and to no other."""

    def setUp(self) -> None:
        #: Places with what is shown to them, and lines that are told.
        self.made: list[tuple[str, str | None, object]] = []
        self.told: list[str] = []

    def make(self, where: str, *, ca: str | None, credentials: Any, on_message: Any) -> Any:
        if where == "nowhere":
            raise ValueError("nowhere: no such place")
        self.made.append((where, ca, credentials))

    def connect(self, *places: str, ca: str | None = None, who: Token | None = None) -> list[str]:
        """Make clients of places; returns what is told."""
        make = maker(self.make, "here:1", ca, who, self.told.append)
        for place in places:
            make(place, on_message=None)
        return self.told

    def test_a_secret(self) -> None:
        who = Token("s3cret")
        told = self.connect("here:1", "there:1", "here:1", "here:2", "unix:/here:1", "here:1", who=who)
        self.assertEqual([each is who for _, _, each in self.made], [True, False, True, False, False, True])
        self.assertEqual([each for _, _, each in self.made if each is not who], [None] * 3)
        why = "is asked without a login: the name and the secret are for here:1 alone"
        self.assertEqual(told, [f"{place} {why}" for place in ("there:1", "here:2", "unix:/here:1")])

    def test_an_authority(self) -> None:
        """Of use with a host and port only; where it is, it is never left out."""
        used = [
            "here:1",
            "there",
            "there:1",
            "[::1]",
            "[::1]:1",
            "a.example:9999",
            "localhost:9",
            "127.0.0.1:9",
        ]
        self.assertEqual(self.connect(*used, ca="f"), [])
        self.assertEqual(self.made, [(place, "f", None) for place in used])
        self.made.clear()
        others = ["tcp:there:1", "tls:there:1", "unix:/there", "unix:5", "tcp:host=there:port=1"]
        told = self.connect(*others, ca="f")
        self.assertEqual(self.made, [(place, None, None) for place in others])
        why = "is asked without --ca: that is for a host and port only"
        self.assertEqual(told, [f"{place} {why}" for place in others])

    def test_the_first_place_gets_what_was_given(self) -> None:
        """So that it is refused, where it is of no use there."""
        maker(self.make, "tcp:here:1", "f", None, self.told.append)("tcp:here:1", on_message=None)
        self.assertEqual((self.made, self.told), ([("tcp:here:1", "f", None)], []))

    def test_nothing_to_tell(self) -> None:
        self.assertEqual(self.connect("there:1", "tcp:there:1"), [])
        self.assertRaises(ValueError, self.connect, "nowhere", ca="f", who=Token("s3cret"))
        self.assertEqual(self.told, [])


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
