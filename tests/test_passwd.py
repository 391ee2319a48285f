"""`python -m tcpjson.passwd` in processes of its own, on terminals and without."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import TIMEOUT, ServerTestCase, certificates, command
from tests.identities import new_path, new_source, plain, scram, token, write

SECRET = "hunter2 \N{GREEK SMALL LETTER OMEGA}"

PROGRAM = (sys.executable, "-m", "tcpjson.passwd")

# Makes the terminal that it was given its own, as a login does, and becomes the program.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


def environment() -> dict[str, str]:
    """That of the server's."""
    return command()[1]


def run(*arguments: str, given: str | bytes = b"", umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, without a terminal."""
    text = given.encode() if isinstance(given, str) else given
    ended = subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(),
        input=text,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        # Nobody is to be asked.
        start_new_session=True,
        umask=umask,
    )
    output = [stream.decode(errors="backslashreplace") for stream in (ended.stdout, ended.stderr)]
    return subprocess.CompletedProcess(ended.args, ended.returncode, *output)


class Terminal:
    """The program on a terminal, with somebody who types; `shown` is all that is to be seen there."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ON_TERMINAL, *PROGRAM, *arguments],
                env=environment(),
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        self.shown = ""

    def read(self) -> bool:
        """Read what is there to be read; False at the end."""
        if not select.select([self._ours], [], [], TIMEOUT)[0]:
            raise AssertionError(f"nothing more is shown: {self.shown!r}")
        try:
            data = os.read(self._ours, 4096)
        except OSError:
            # So a terminal says that the last program left it.
            return False
        self.shown += data.decode()
        return bool(data)

    def until(self, text: str) -> None:
        """Read until it is shown."""
        while text not in self.shown:
            if not self.read():
                raise AssertionError(f"it ended, and showed {self.shown!r}")

    def type(self, text: str) -> None:
        """Type it."""
        os.write(self._ours, text.encode())

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        flags: int = termios.tcgetattr(self._ours)[3]
        return bool(flags & termios.ECHO)

    def ended(self) -> int:
        """Read to the end; returns the status."""
        while self.read():
            pass
        return self.process.wait(TIMEOUT)

    def close(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


class TerminalTests(SynchronousTestCase):
    """Somebody is asked."""

    def terminal(self, *arguments: str) -> Terminal:
        """The program, ended with the test."""
        terminal = Terminal(*arguments)
        self.addCleanup(terminal.close)
        return terminal

    def answer(self, terminal: Terminal, *answers: str) -> None:
        """Answer the questions, one after the other."""
        for question, typed in zip(("New password: ", "The same again: "), answers, strict=False):
            terminal.until(question)
            self.assertFalse(terminal.echoes())
            terminal.type(f"{typed}\n")

    def test_twice_and_unseen(self) -> None:
        path = new_path(".users")
        terminal = self.terminal(str(path), "alice")
        self.answer(terminal, SECRET, SECRET)
        self.assertEqual(terminal.ended(), 0, terminal.shown)
        lines = terminal.shown.split("\r\n")
        told = f"tcpjson.passwd: set the password of alice in {path}; a running server reads it on SIGHUP"
        self.assertEqual(lines, ["New password: ", "The same again: ", told, ""])
        content = path.read_text(encoding="utf-8")
        self.assertRegex(content, r"\A# salt secret: \S+\nalice:SCRAM-SHA-256\$100000:\S+\n\Z")
        self.assertNotIn("hunter", content)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_two_that_differ(self) -> None:
        path = new_path(".users")
        terminal = self.terminal(str(path), "alice")
        self.answer(terminal, SECRET, f"{SECRET}2")
        self.assertEqual(terminal.ended(), 1)
        self.assertIn("tcpjson.passwd: the passwords differ\r\n", terminal.shown)
        self.assertNotIn("hunter", terminal.shown)
        self.assertFalse(path.exists())

    def test_given_up(self) -> None:
        """By Ctrl-C or Ctrl-D: the file is as it was, the terminal too."""
        path = new_path(".users")
        for key, told in (("hunter\x03", "interrupted"), ("\x04", "no password was given")):
            terminal = self.terminal(str(path), "alice")
            terminal.until("New password: ")
            self.assertFalse(terminal.echoes())
            terminal.type(key)
            terminal.until("tcpjson.passwd: ")
            self.assertTrue(terminal.echoes())
            self.assertEqual(terminal.ended(), 1)
            self.assertIn(f"tcpjson.passwd: {told}\r\n", terminal.shown)
            self.assertNotIn("hunter", terminal.shown)
            self.assertNotIn("Traceback", terminal.shown)
            self.assertFalse(path.exists())

    def test_nothing(self) -> None:
        terminal = self.terminal(str(new_path(".users")), "alice")
        self.answer(terminal, "", "")
        self.assertEqual(terminal.ended(), 1)
        self.assertIn("tcpjson.passwd: the password is empty\r\n", terminal.shown)


class ProgramTests(ServerTestCase):
    """Scripts run it; a server reads what it wrote."""

    def ok(self, ended: subprocess.CompletedProcess[str], told: str) -> str:
        """See that it went well, and says so in one line of standard error; returns its output."""
        self.assertEqual(ended.returncode, 0, ended)
        self.assertEqual(len(ended.stderr.splitlines()), 1, ended)
        self.assertTrue(ended.stderr.startswith(f"tcpjson.passwd: {told}"), ended)
        self.assertNotIn("hunter", ended.stderr)
        return ended.stdout

    def no(self, ended: subprocess.CompletedProcess[str], told: str, status: int = 1) -> None:
        """See that it failed, and says why in one line."""
        self.assertEqual((ended.returncode, ended.stdout), (status, ""), ended)
        self.assertIn(told, ended.stderr.splitlines()[-1])
        if status == 1:
            self.assertEqual(len(ended.stderr.splitlines()), 1, ended)
        self.assertNotIn("hunter", ended.stderr)

    def test_a_life(self) -> None:
        """Users and tokens are added, changed and removed while a server runs."""
        users, tokens = new_path(".users"), new_path(".tokens")
        self.ok(
            run("--password-stdin", str(users), "alice", given=f"{SECRET}\n"), "set the password of alice"
        )
        made = self.ok(run("--token", str(tokens), "sensor"), "added a token of sensor").split()
        self.assertEqual([len(each) for each in made], [43])
        for path in (users, tokens):
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            self.assertNotIn(made[0], path.read_text(encoding="utf-8"))
        port = certificates().port
        server = self.start("--auth", f"scram:{users}", "--auth", f"token:{tokens}", ports=[port])
        self.tls = True

        def status(log_in: object, *secrets: str) -> str:
            assert callable(log_in)
            return str(log_in(self.connect(server, source=new_source()), *secrets)["status"])

        yes, no = "authenticated", "authentication_failed"
        for log_in in (scram, plain):
            self.assertEqual(status(log_in, "alice", SECRET), yes)
        self.assertEqual(status(token, made[0]), yes)
        given = run("--password-stdin", "--iterations", "5000", str(users), "alice", given="hunter3")
        self.ok(given, "set the password of alice")
        self.ok(run("--password-stdin", str(users), "Bob", given="hunter4\r\n"), "set the password of Bob")
        made += self.ok(run("--token", str(tokens), "sensor"), "added a token of sensor").split()
        # It reads when it is told, and not before.
        self.assertEqual(status(plain, "alice", "hunter3"), no)
        server.signal(signal.SIGHUP)
        server.wait_for("were read anew")
        for log_in in (scram, plain):
            self.assertEqual(status(log_in, "alice", SECRET), no)
            self.assertEqual(status(log_in, "alice", "hunter3"), yes)
            self.assertEqual(status(log_in, "Bob", "hunter4"), yes)
        self.assertEqual([status(token, each) for each in made], [yes, yes])
        self.ok(run("--delete", str(users), "alice"), "removed user alice")
        self.ok(run("--delete", "--token", str(tokens), "sensor"), "removed token sensor")
        server.signal(signal.SIGHUP)
        server.wait_for("were read anew", 2)
        self.assertEqual(status(plain, "alice", "hunter3"), no)
        self.assertEqual([status(token, each) for each in made], [no, no])
        self.assertEqual(status(scram, "Bob", "hunter4"), yes)

    def test_refusals(self) -> None:
        """Nothing is changed, nor a file left behind."""
        place = new_path(".folder")
        place.mkdir()
        users = place / "users"
        self.ok(run("--password-stdin", str(users), "alice", given="hunter2"), "set the password of alice")
        before = users.read_bytes()
        broken = write(place / "broken", "hunter")
        path = str(users)
        self.no(run(path, "alice"), "no terminal to ask on: use --password-stdin")
        self.no(run("--password-stdin", path, "alice"), "the password is empty")
        self.no(run("--password-stdin", path, "alice", given=b"hunter\xff\n"), "the password is not UTF-8")
        self.no(run("--password-stdin", path, "alice", given="hunter" * 200), "longer than 1024 bytes")
        self.no(run("--password-stdin", path, "hun:ter", given="hunter2"), "the name: ")
        self.no(run("--delete", path, "bob"), "there is no bob")
        self.no(run("--delete", str(place / "none"), "bob"), "No such file")
        self.no(run("--token", str(place / "none" / "x"), "bob"), "No such file")
        self.no(run("--token", path, "bob"), f"{path}: line 2: ")
        self.no(run("--password-stdin", str(broken), "bob", given="hunter2"), f"{broken}: line 1: ")
        self.no(run("--delete", "--password-stdin", path, "alice"), "for new passwords", 2)
        self.assertEqual(users.read_bytes(), before)
        self.assertEqual(sorted(each.name for each in place.iterdir()), ["broken", "users"])

    def test_many_at_once(self) -> None:
        """None of them is lost, and whoever reads meanwhile reads a whole file."""
        path = new_path(".users")
        programs = [
            subprocess.Popen(
                [*PROGRAM, "--token", str(path), f"device-{number}"],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for number in range(12)
        ]
        deadline = time.monotonic() + TIMEOUT
        while any(program.poll() is None for program in programs) and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                self.assertRegex(path.read_text(encoding="ascii"), r"\A([\w-]+:[0-9a-f]{64}\n)*\Z")
        for program in programs:
            _, told = program.communicate(timeout=TIMEOUT)
            self.assertEqual(program.returncode, 0, told)
        names = sorted(line.partition(":")[0] for line in path.read_text(encoding="ascii").splitlines())
        self.assertEqual(names, sorted(f"device-{number}" for number in range(12)))

    def test_an_end_in_the_middle(self) -> None:
        """What cannot be written whole is not written: the old file stays."""
        users = new_path(".users")
        self.ok(run("--password-stdin", str(users), "alice", given="hunter2"), "set the password of alice")
        before = users.read_bytes()
        ended = subprocess.run(
            # No file may grow beyond 0 blocks.
            [
                "/bin/sh",
                "-c",
                'ulimit -f 0 && exec "$@"',
                "sh",
                *PROGRAM,
                "--password-stdin",
                str(users),
                "bob",
            ],
            env=environment(),
            input="hunter3",
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.no(ended, f"tcpjson.passwd: {users}: ")
        self.assertEqual(users.read_bytes(), before)
        self.assertEqual([*users.parent.glob(".tcpjson-*")], [])

    def test_modes_and_links(self) -> None:
        """Whatever the umask and the old mode, others may not read it; a link stays one."""
        users = write(new_path(".users"), "# mine\n\n")
        users.chmod(0o664)
        link = new_path(".link")
        link.symlink_to(users)
        ended = run("--password-stdin", str(link), "alice", given="hunter2", umask=0)
        self.ok(ended, "set the password of alice")
        self.assertTrue(link.is_symlink())
        self.assertEqual(users.stat().st_mode & 0o777, 0o600)
        self.assertRegex(
            users.read_text(encoding="utf-8"), r"\A# mine\n\nalice:SCRAM-SHA-256\$100000:\S+\n\Z"
        )

    def test_help(self) -> None:
        ended = run("--help")
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))
        for option in ("--delete", "--token", "--password-stdin", "--iterations"):
            self.assertIn(option, ended.stdout)
