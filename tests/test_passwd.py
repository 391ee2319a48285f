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
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tcpjson.verifiers import Verifier
from tests.harness import TIMEOUT, Message, ServerTestCase, certificates, command
from tests.identities import new_path, new_source, plain, scram, token, write

SECRET = "hunter2 \N{GREEK SMALL LETTER OMEGA}"

PROGRAM = (sys.executable, "-m", "tcpjson.passwd")

# Makes the terminal that it was given its own, as a login does, and becomes the program. What runs in the
# background of a script ignores Ctrl-C, and so would its children.
_ON_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def environment() -> dict[str, str]:
    """That of the server's."""
    return command()[1]


class Run:
    """The program without a terminal, started and not waited for. It reads `given`."""

    def __init__(self, *arguments: str, given: str | bytes = b"", umask: int = 0o022) -> None:
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Nobody is to be asked.
            start_new_session=True,
            umask=umask,
        )
        self._given = given.encode() if isinstance(given, str) else given

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end; returns its status, its output, and what it told."""
        output, told = self._process.communicate(self._given, TIMEOUT)
        return (
            self._process.returncode,
            output.decode(errors="backslashreplace"),
            told.decode(errors="backslashreplace"),
        )


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

    def ok(self, run: Run, told: str) -> str:
        """See that it went well, and says so in one line of standard error; returns its output."""
        status, output, error = run.ended()
        self.assertEqual(status, 0, error)
        self.assertEqual(len(error.splitlines()), 1, error)
        self.assertTrue(error.startswith(f"tcpjson.passwd: {told}"), error)
        self.assertNotIn("hunter", error)
        return output.strip()

    def no(self, run: Run, told: str, status: int = 1) -> None:
        """See that it failed, and says why in its last line, which for the status 1 is the only one."""
        ended, output, error = run.ended()
        self.assertEqual((ended, output), (status, ""), error)
        self.assertIn(told, error.splitlines()[-1])
        if status == 1:
            self.assertEqual(len(error.splitlines()), 1, error)
        self.assertNotIn("hunter", error)

    def test_a_life(self) -> None:
        """Users and tokens are added, changed and removed while a server runs."""
        users, tokens = new_path(".users"), new_path(".tokens")
        alice = Run("--password-stdin", str(users), "alice", given=f"{SECRET}\n")
        sensor = Run("--token", str(tokens), "sensor")
        self.ok(alice, "set the password of alice")
        made = [self.ok(sensor, "added a token of sensor")]
        for path in (users, tokens):
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            self.assertNotIn(made[0], path.read_text(encoding="utf-8"))
        port = certificates().port
        server = self.start("--auth", f"scram:{users}", "--auth", f"token:{tokens}", ports=[port])
        self.tls = True

        def status(log_in: Callable[..., Message], *secrets: str) -> str:
            return str(log_in(self.connect(server, source=new_source()), *secrets)["status"])

        yes, no = "authenticated", "authentication_failed"
        for log_in in (scram, plain):
            self.assertEqual(status(log_in, "alice", SECRET), yes)
        self.assertEqual(status(token, made[0]), yes)
        alice = Run("--password-stdin", "--iterations", "5000", str(users), "alice", given="hunter3")
        bob = Run("--password-stdin", str(users), "Bob", given="hunter4\r\n")
        sensor = Run("--token", str(tokens), "sensor")
        self.ok(alice, "set the password of alice")
        self.ok(bob, "set the password of Bob")
        made.append(self.ok(sensor, "added a token of sensor"))
        self.assertEqual([len(each) for each in made], [43, 43])
        # It reads when it is told, and not before.
        self.assertEqual(status(plain, "alice", "hunter3"), no)
        server.signal(signal.SIGHUP)
        server.wait_for("read anew: ")
        for log_in in (scram, plain):
            self.assertEqual(status(log_in, "alice", SECRET), no)
            self.assertEqual(status(log_in, "alice", "hunter3"), yes)
            self.assertEqual(status(log_in, "Bob", "hunter4"), yes)
        self.assertEqual([status(token, each) for each in made], [yes, yes])
        alice, sensor = (
            Run("--delete", str(users), "alice"),
            Run("--delete", "--token", str(tokens), "sensor"),
        )
        self.ok(alice, "removed alice from ")
        self.ok(sensor, "removed 2 tokens of sensor from ")
        server.signal(signal.SIGHUP)
        server.wait_for("read anew: ", 2)
        self.assertEqual(status(plain, "alice", "hunter3"), no)
        self.assertEqual([status(token, each) for each in made], [no, no])
        self.assertEqual(status(scram, "Bob", "hunter4"), yes)

    def test_refusals(self) -> None:
        """Nothing is changed, nor a file left behind."""
        place = new_path(".folder")
        place.mkdir()
        users = place / "users"
        before = f"alice:{Verifier.make(SECRET, 4096, os.urandom).format()}\n"
        write(users, before)
        broken = write(place / "broken", "hunter")
        path = str(users)
        none = str(place / "none" / "x")
        runs = [
            (Run(path, "alice"), "no terminal to ask on: use --password-stdin"),
            (Run("--password-stdin", path, "alice"), "the password is empty"),
            (Run("--password-stdin", path, "alice", given=b"hunter\xff\n"), "the password is not UTF-8"),
            (Run("--password-stdin", path, "alice", given="hunter" * 200), "longer than 1024 bytes"),
            (Run("--password-stdin", path, "a:b", given=SECRET), "the name: "),
            (Run("--password-stdin", str(broken), "bob", given=SECRET), f"{broken}: line 1: "),
            (Run("--delete", path, "bob"), "there is no bob"),
            (Run("--token", none, "bob"), f"{none}: No such file"),
            (Run("--token", path, "bob"), f"{path}: line 1: "),
        ]
        for run, told in runs:
            self.no(run, told)
        self.no(Run("--delete", "--password-stdin", path, "alice"), "for new passwords", 2)
        self.assertEqual(users.read_text(encoding="utf-8"), before)
        self.assertEqual(sorted(each.name for each in place.iterdir()), ["broken", "users"])

    def test_many_at_once(self) -> None:
        """None of them is lost, and whoever reads meanwhile reads a whole file."""
        path = new_path(".users")
        runs = [Run("--token", str(path), f"device-{number}") for number in range(8)]
        reading = threading.Event()

        def read() -> None:
            while not reading.is_set():
                with contextlib.suppress(FileNotFoundError):
                    contents.add(path.read_text(encoding="ascii"))

        contents: set[str] = set()
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for run in runs:
            self.ok(run, "added a token of device-")
        reading.set()
        reader.join(TIMEOUT)
        for content in contents:
            self.assertRegex(content, r"\A([\w-]+:[0-9a-f]{64}\n)*\Z")
        names = sorted(line.partition(":")[0] for line in path.read_text(encoding="ascii").splitlines())
        self.assertEqual(names, sorted(f"device-{number}" for number in range(8)))

    def test_an_end_in_the_middle(self) -> None:
        """What cannot be written whole is not written: the old file stays."""
        before = f"alice:{Verifier.make(SECRET, 4096, os.urandom).format()}\n"
        users = write(new_path(".users"), before)
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
        self.assertEqual(ended.returncode, 1, ended)
        self.assertRegex(ended.stderr, rf"\Atcpjson.passwd: {users}: .*\n\Z")
        self.assertEqual(users.read_text(encoding="utf-8"), before)
        self.assertEqual([*users.parent.glob(".tcpjson-*")], [])

    def test_modes_and_links(self) -> None:
        """Whatever the umask and the old mode, others may not read it; a link stays one."""
        users = write(new_path(".users"), "# mine\n\n")
        users.chmod(0o664)
        link = new_path(".link")
        link.symlink_to(users)
        run = Run("--password-stdin", str(link), "alice", given=SECRET, umask=0)
        self.ok(run, "set the password of alice")
        self.assertTrue(link.is_symlink())
        self.assertEqual(users.stat().st_mode & 0o777, 0o600)
        self.assertRegex(
            users.read_text(encoding="utf-8"), r"\A# mine\n\nalice:SCRAM-SHA-256\$100000:\S+\n\Z"
        )

    def test_help(self) -> None:
        status, output, error = Run("--help").ended()
        self.assertEqual((status, error), (0, ""))
        for option in ("--delete", "--token", "--password-stdin", "--iterations"):
            self.assertIn(option, output)
