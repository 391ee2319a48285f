"""The program that keeps the files of users and tokens."""

from __future__ import annotations

import fcntl
import getpass
import io
import os
import pty
import select
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import tcpjson
from tcpjson import passwd
from tcpjson.verifiers import ITERATIONS, MAX_PASSWORD, Tokens, Verifiers

# How each line of a change ends.
SIGHUP = "; a running server reads it on SIGHUP\n"

FAST = ("--iterations", "4096")


class PasswdCase(SynchronousTestCase):
    """Runs of the program."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.path = folder / "file"

    def main(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Run it; returns the status and what it wrote."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            patch("sys.stdout", out),
            patch("sys.stderr", err),
        ):
            try:
                status = passwd.main([str(self.path), *arguments])
            except SystemExit as end:
                assert isinstance(end.code, int)
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def set(self, name: str, password: str = "secret") -> None:
        """Set a password."""
        status, _, err = self.main(name, "--password-stdin", *FAST, stdin=f"{password}\n".encode())
        self.assertEqual(status, 0, err)

    def refused(self, *arguments: str, stdin: bytes = b"") -> str:
        """A run that fails; returns what it says, which is one line."""
        before = self.content()
        status, out, err = self.main(*arguments, stdin=stdin)
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(self.content(), before)
        start, line, rest = err.partition("tcpjson.passwd: ")
        self.assertEqual((start, bool(line), rest.count("\n")), ("", True, 1), err)
        return rest.rstrip("\n")

    def content(self) -> str | None:
        """The file."""
        return self.path.read_text(encoding="utf-8") if self.path.exists() else None

    def lines(self) -> list[str]:
        """The lines of the file, which is there."""
        return (self.content() or "").splitlines()

    def matches(self, name: str, password: str) -> bool | None:
        """Whether it is the password of a user; None where there is none."""
        verifier = Verifiers(self.path.read_bytes(), b"").find(name)
        return verifier and verifier.matches(password)


class UserTests(PasswdCase):
    """Users and their passwords."""

    def test_a_new_file(self) -> None:
        status, out, err = self.main("alice", "--password-stdin", *FAST, stdin=b"secret\n")
        self.assertEqual(
            (status, out, err),
            (
                0,
                "",
                f"tcpjson.passwd: set the password of alice in {self.path}{SIGHUP}",
            ),
        )
        self.assertTrue(self.matches("alice", "secret"))
        self.assertFalse(self.matches("alice", "Secret"))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual([path.name for path in self.path.parent.iterdir()], ["file"])

    def test_it_holds_a_secret_of_its_own(self) -> None:
        """From which come the salts of those who are not there; once, and another one in each file."""
        self.set("alice")
        self.set("bob")
        self.assertEqual([line.startswith("# salt secret: ") for line in self.lines()], [True, False, False])
        first = Verifiers(self.path.read_bytes(), b"one").decoy("x")
        self.assertEqual(first, Verifiers(self.path.read_bytes(), b"two").decoy("x"))
        self.path.unlink()
        self.set("alice")
        self.assertNotEqual(Verifiers(self.path.read_bytes(), b"one").decoy("x").salt, first.salt)

    def test_an_empty_file_is_a_new_one(self) -> None:
        self.path.touch()
        self.set("alice")
        self.assertTrue(self.lines()[0].startswith("# salt secret: "))

    def test_changed_and_removed_in_their_place(self) -> None:
        for name in ("alice", "bob", "carol"):
            self.set(name)
        text = f"# mine\n\n{self.content()}#bob:x"
        self.path.write_text(text, encoding="utf-8")
        self.set("bob", "other")
        self.assertTrue(self.matches("bob", "other"))
        self.assertFalse(self.matches("bob", "secret"))
        old, new = text.splitlines(), self.lines()
        self.assertEqual([a == b for a, b in zip(old, new, strict=True)], [True] * 4 + [False] + [True] * 2)
        _, _, err = self.main("bob", "--delete")
        self.assertEqual(err, f"tcpjson.passwd: removed bob from {self.path}{SIGHUP}")
        self.assertEqual(self.lines(), [*new[:4], *new[5:]])
        self.set("dave")
        self.assertEqual(self.lines()[:-1], [*new[:4], *new[5:]])
        self.assertTrue(self.lines()[-1].startswith("dave:"))

    def test_salts_are_random(self) -> None:
        self.set("alice")
        self.set("bob")
        salts = {line.split("$")[1] for line in self.lines()[1:]}
        self.assertEqual(len(salts), 2)

    def test_iterations(self) -> None:
        self.main("alice", "--password-stdin", stdin=b"secret")
        self.main("bob", "--password-stdin", "--iterations", "5000", stdin=b"secret")
        self.assertEqual([passwd._iterations(each) for each in ("4096", "10000000")], [4096, 10_000_000])
        counts = [line.split("$")[1].partition(":")[0] for line in self.lines()[1:]]
        self.assertEqual(counts, [str(ITERATIONS), "5000"])

    def test_the_name_is_brought_to_its_normal_form(self) -> None:
        self.set("\N{ROMAN NUMERAL NINE}")
        self.assertTrue(self.matches("IX", "secret"))

    def test_lines_of_the_standard_input(self) -> None:
        for line, password in (
            (b"one\n", "one"),
            (b"one\r\n", "one"),
            (b"one", "one"),
            (b"one\ntwo\n", "one"),
            (b" one \n", " one "),
            ("ö".encode(), "ö"),
            (b"x" * MAX_PASSWORD + b"\r\n", "x" * MAX_PASSWORD),
        ):
            self.assertEqual(self.main("alice", "--password-stdin", *FAST, stdin=line)[0], 0)
            self.assertTrue(self.matches("alice", password), password)

    def test_passwords_that_are_refused(self) -> None:
        for line, wrong in (
            (b"", "the password is empty"),
            (b"\n", "the password is empty"),
            ("\N{SOFT HYPHEN}\n".encode(), "the password: it is empty"),
            (b"\xff\n", "the password is not UTF-8"),
            (b"a\x00b\n", "the password: it holds a character that is not allowed"),
            (b"x" * (MAX_PASSWORD + 1) + b"\n", f"the password: it is longer than {MAX_PASSWORD} bytes"),
            (b"x" * 9999, f"the password: it is longer than {MAX_PASSWORD} bytes"),
        ):
            self.assertEqual(self.refused("alice", "--password-stdin", *FAST, stdin=line), wrong)

    def test_names_that_are_refused(self) -> None:
        for name in ("", "a:b", "#a", "a\n", "x" * 257, "\udcff"):
            for options in (["--password-stdin"], ["--delete"], ["--token"]):
                self.assertTrue(self.refused(name, *options, stdin=b"x").startswith("the name: it "))
        self.assertEqual(self.refused("a:b", "--token"), "the name: it must not hold a colon")

    def test_who_is_not_there(self) -> None:
        self.assertEqual(self.refused("alice", "--delete"), f"{self.path}: No such file or directory")
        self.set("alice")
        self.assertEqual(self.refused("bob", "--delete"), "there is no bob")

    def test_a_broken_file_is_left_alone(self) -> None:
        self.path.write_text("alice:secret\n", encoding="utf-8")
        for arguments in (["bob", "--password-stdin"], ["alice", "--delete"]):
            said = self.refused(*arguments, stdin=b"x")
            self.assertTrue(said.startswith(f"{self.path.resolve()}: line 1: not NAME:"), said)
        self.path.write_bytes(b"\xff")
        self.assertIn("line 1: not UTF-8", self.main("bob", "--token")[2])

    def test_a_file_of_the_other_kind(self) -> None:
        self.set("alice")
        self.refused("bob", "--token")
        self.path.unlink()
        self.main("dev", "--token")
        self.refused("bob", "--password-stdin", stdin=b"x")

    def test_a_place_where_no_file_can_be(self) -> None:
        self.path = self.path / "nowhere" / "file"
        self.assertEqual(
            self.refused("alice", "--password-stdin", stdin=b"x"), f"{self.path}: No such file or directory"
        )

    def test_without_scramp(self) -> None:
        with patch.dict("sys.modules", {"scramp": None, "scramp.core": None}):
            self.set("alice")
            self.assertEqual(
                self.refused("ä", "--password-stdin", stdin=b"x"),
                "the package scramp is missing: pip install scramp",
            )

    def test_options_that_do_not_go_together(self) -> None:
        for arguments in (
            ["a", "--delete", "--password-stdin"],
            ["a", "--token", "--password-stdin"],
            ["a", "--token", *FAST],
            ["a", "--delete", *FAST],
            ["a", "--iterations", "4095"],
            ["a", "--iterations", "10000001"],
            *(["a", "--iterations", each] for each in ("x", "", "5000.0", "5_000", "9" * 5000)),
            ["a", "b"],
            [],
        ):
            status, out, err = self.main(*arguments)
            self.assertEqual((status, out), (2, ""), arguments)
            self.assertIn("error: ", err)
            if len(arguments) == 3 and arguments[1] == "--iterations":
                self.assertIn("--iterations: must be a whole number, 4096 to 10000000\n", err)
        self.assertIsNone(self.content())

    def test_help(self) -> None:
        status, out, _ = self.main("--help")
        self.assertEqual(status, 0)
        words = " ".join(out.split())
        self.assertIn("SIGHUP", words)
        self.assertIn("--auth token:FILE", words)
        self.assertIn("NAME the user, or the name of the token", words)


class AskTests(PasswdCase):
    """What is typed."""

    def _typed(self, *answers: Any) -> Any:
        return patch("getpass.getpass", side_effect=answers)

    def test_twice_the_same(self) -> None:
        with self._typed("secret", "secret"):
            self.assertEqual(self.main("alice", *FAST)[0], 0)
        self.assertTrue(self.matches("alice", "secret"))

    def test_what_goes_wrong(self) -> None:
        for answers, wrong in (
            (("secret", "Secret"), "the passwords differ"),
            (("", ""), "the password is empty"),
        ):
            with self._typed(*answers):
                self.assertEqual(self.refused("alice"), wrong)

    def test_what_is_broken_off(self) -> None:
        """It is said in a line of its own, not behind the prompt."""
        for answers, wrong in (
            ((EOFError(),), "no password was given"),
            (("secret", KeyboardInterrupt()), "interrupted"),
        ):
            with self._typed(*answers):
                self.assertEqual(self.main("alice"), (1, "", f"\ntcpjson.passwd: {wrong}\n"))
            self.assertIsNone(self.content())

    def test_no_terminal(self) -> None:
        """getpass would go on, and show what is typed."""

        def no_terminal(prompt: str) -> str:
            import warnings

            warnings.warn("no echo", getpass.GetPassWarning, stacklevel=1)
            return "secret"

        with patch("getpass.getpass", no_terminal):
            self.assertEqual(self.refused("alice"), "no terminal to ask on: use --password-stdin")

    def test_on_a_terminal(self) -> None:
        """The program itself: it shows nothing of what is typed."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        package = Path(tcpjson.__file__).parent.parent
        process = subprocess.Popen(
            [sys.executable, "-m", "tcpjson.passwd", str(self.path.resolve()), "alice", *FAST],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])},
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        os.close(theirs)
        shown = b""

        def expect(text: bytes) -> None:
            nonlocal shown
            while text not in shown:
                self.assertTrue(select.select([ours], [], [], 60)[0], shown)
                shown += os.read(ours, 4096)

        expect(b"New password: ")
        os.write(ours, b"secret\n")
        expect(b"The same again: ")
        os.write(ours, b"secret\n")
        expect(b"SIGHUP")
        self.assertEqual((process.stdout.read(), process.wait(60)), (b"", 0))
        self.assertNotIn(b"secret", shown)
        self.assertTrue(self.matches("alice", "secret"))


class TokenTests(PasswdCase):
    """Tokens."""

    def test_a_token(self) -> None:
        status, out, err = self.main("dev", "--token")
        self.assertEqual(status, 0)
        self.assertEqual(
            err,
            f"tcpjson.passwd: added a token of dev in {self.path}, which is not shown again{SIGHUP}",
        )
        self.assertRegex(out, r"\A[A-Za-z0-9_-]{43}\n\Z")
        token = out.strip()
        self.assertNotIn(token, err)
        self.assertNotIn(token, self.content() or "")
        self.assertEqual(Tokens(self.path.read_bytes()).find(token), "dev")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_several_of_one_name(self) -> None:
        made = [self.main(name, "--token")[1].strip() for name in ("dev", "ops", "dev")]
        self.assertEqual(len(set(made)), 3)
        tokens = Tokens(self.path.read_bytes())
        self.assertEqual([tokens.find(token) for token in made], ["dev", "ops", "dev"])
        status, out, err = self.main("dev", "--token", "--delete")
        self.assertEqual((status, out), (0, ""))
        self.assertEqual(err, f"tcpjson.passwd: removed 2 tokens of dev from {self.path}{SIGHUP}")
        tokens = Tokens(self.path.read_bytes())
        self.assertEqual([tokens.find(token) for token in made], [None, "ops", None])
        _, _, err = self.main("ops", "--token", "--delete")
        self.assertEqual(err, f"tcpjson.passwd: removed 1 token of ops from {self.path}{SIGHUP}")

    def test_names_need_no_scramp(self) -> None:
        with patch.dict("sys.modules", {"scramp": None, "scramp.core": None}):
            self.assertEqual(self.main("ä", "--token")[0], 0)


class WritingTests(PasswdCase):
    """How the file is changed."""

    def test_nobody_else_can_ever_read_it(self) -> None:
        modes = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            real(descriptor)

        self.addCleanup(os.umask, os.umask(0))
        with patch("os.fsync", fsync):
            self.set("alice")
        self.assertEqual(modes, [0o600])
        self.path.chmod(0o644)
        self.set("alice")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_a_disk_that_is_full(self) -> None:
        """The file stays as it was, and nothing is left beside it."""
        self.set("alice")
        with patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(
                self.refused("bob", "--password-stdin", stdin=b"x"), f"{self.path}: No space left on device"
            )
        self.assertEqual([path.name for path in self.path.parent.iterdir()], ["file"])

    def test_the_folder_is_written_too(self) -> None:
        synced = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_ino, self.content()))
            real(descriptor)

        self.set("alice")
        with patch("os.fsync", fsync):
            self.set("bob")
        self.assertEqual(synced[-1], (self.path.parent.stat().st_ino, self.content()))
        self.assertNotEqual(synced[0][1], self.content(), "what it is replaced by is written first")

    def test_a_symbolic_link_stays(self) -> None:
        real = self.path.with_name("real")
        self.path.symlink_to("real")
        for name in ("alice", "bob"):
            self.set(name)
            self.assertTrue(self.path.is_symlink())
        self.assertFalse(real.is_symlink())
        self.assertTrue(self.matches("bob", "secret"))

    def test_the_owner_stays(self) -> None:
        """Where root changes the file of the server, it must be able to read it."""
        self.set("alice")
        if os.getuid() == 0:
            owner = (12345, 12346)
        else:
            others = set(os.getgroups()) - {self.path.stat().st_gid}
            if not others:
                raise SkipTest("it takes another group")
            owner = (os.getuid(), min(others))
        os.chown(self.path, *owner)
        self.set("alice")
        self.assertEqual((self.path.stat().st_uid, self.path.stat().st_gid), owner)

    def test_one_at_a_time(self) -> None:
        self.set("alice")

        def edit(lines: list[str]) -> list[str]:
            with open(self.path, "rb") as other:
                self.assertRaises(BlockingIOError, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lines

        passwd.change(str(self.path), lambda content: None, edit, create=False)
        with open(self.path, "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_who_waited_sees_what_the_other_wrote(self) -> None:
        self.set("alice")
        real = fcntl.flock

        def flock(descriptor: int, operation: int) -> None:
            if len(self.lines()) == 2:
                with patch("fcntl.flock", real):
                    self.set("bob")
            real(descriptor, operation)

        with patch("fcntl.flock", flock):
            self.set("carol")
        self.assertEqual([line.partition(":")[0] for line in self.lines()[1:]], ["alice", "bob", "carol"])

    def test_who_waited_for_a_file_that_is_gone(self) -> None:
        self.set("alice")
        real = fcntl.flock

        def flock(descriptor: int, operation: int) -> None:
            if "alice" in (self.content() or ""):
                self.path.unlink()
            real(descriptor, operation)

        with patch("fcntl.flock", flock):
            status, _, err = self.main("alice", "--delete")
            self.assertEqual((status, err), (1, f"tcpjson.passwd: {self.path}: No such file or directory\n"))
        self.set("alice")
        with patch("fcntl.flock", flock):
            self.set("bob")
        self.assertEqual([line.partition(":")[0] for line in self.lines()[1:]], ["bob"])

    def test_what_would_be_broken_is_not_written(self) -> None:
        self.set("alice")
        before = self.content()
        self.assertRaises(
            ValueError,
            passwd.change,
            str(self.path),
            lambda content: Verifiers(content, b""),
            lambda lines: [*lines, "bob:x\n"],
            create=False,
        )
        self.assertEqual(self.content(), before)
