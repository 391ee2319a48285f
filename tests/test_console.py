"""`python -m tcpjson.console`: in pipes, and in a real terminal, which is tmux."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.harness import TIMEOUT, Server, ServerTestCase, certificates, command, folder, until
from tests.identities import authority, new_path, tokens, users, write
from tests.strangers import Classic, Proxy, Stranger, silent

PROGRAM = [sys.executable, "-m", "tcpjson.console"]

# The program, which tells at its end how much memory it took, in kB. (That of a process that was just made by
# another counts what the other has.)
_MEASURED = (
    "import re, sys; from tcpjson.console.program import main; status = main();"
    " text = open('/proc/self/status').read();"
    " print(re.search(r'VmHWM:\\s*(\\d+)', text)[1], file=sys.stderr); sys.exit(status)"
)


def where(server: Server) -> str:
    """What the console is told."""
    host, port = server.address
    return f"{host}:{port}"


def start(
    *arguments: str, stdout: int = subprocess.PIPE, program: list[str] = PROGRAM
) -> subprocess.Popen[str]:
    """The console in pipes, which is not waited for."""
    return subprocess.Popen(
        [*program, *arguments],
        env=command()[1],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        # Nobody is to be asked for a password; and in the background of a script Ctrl-C would be ignored.
        start_new_session=True,
    )


def run(*arguments: str, given: str = "", program: list[str] = PROGRAM) -> tuple[int, list[str], list[str]]:
    """The console in pipes: its status, its lines, and those on standard error."""
    process = start(*arguments, program=program)
    try:
        output, told = process.communicate(given, TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output.splitlines(), told.splitlines()


class PipedTests(ServerTestCase):
    def test_answers_in_order(self) -> None:
        given = '/ping\n/stats\n/echo hi\nhello\n/raw {"type":"echo","content":[1]}'
        given += '\n/broadcast x\n/custom move {"x":1}'
        status, lines, told = run(where(self.server), given=given)
        self.assertEqual((status, told), (0, []))
        self.assertRegex(lines[0], r"^pong: \d+(\.\d+)? ms$")
        self.assertRegex(lines[1], r"^stats: connected_clients=\d+, .* figures in details$")
        self.assertEqual(lines[2:5], ["echo: hi", "echo: hello", "echo: [1]"])
        self.assertRegex(lines[5], r"^broadcast: \d+ recipients?$")
        self.assertRegex(lines[6], r'^response: \{"type":"move","x":1,"id":-\d+\}$')

    def test_objects(self) -> None:
        given = "/ping\n/pnig\n/raw {\n\x1b\u202e\n"
        status, lines, told = run(where(self.server), "--json", given=given)
        objects = [json.loads(line) for line in lines]
        self.assertEqual(
            [(each["line"], each["ok"]) for each in objects], [(1, True), (2, False), (3, False), (4, True)]
        )
        self.assertEqual(objects[3]["message"]["original_text"], "\x1b\u202e")
        self.assertTrue(lines[3].isprintable())
        self.assertEqual((status, len(told)), (1, 2))

    def test_files(self) -> None:
        """Which no reactor can wait for."""
        source, sink = write(new_path(".in"), "/echo 1\r\n/echo 2"), new_path(".out")
        for given, shown in ((source, "echo: 1\necho: 2\n"), (Path(os.devnull), "")):
            with given.open("rb") as stdin, sink.open("wb") as stdout:
                done = subprocess.run(
                    [*PROGRAM, where(self.server)],
                    env=command()[1],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=subprocess.PIPE,
                    timeout=TIMEOUT,
                    check=False,
                )
            self.assertEqual((done.returncode, done.stderr, sink.read_text()), (0, b"", shown))

    def test_a_failure(self) -> None:
        status, lines, told = run(where(self.server), given="/echo 1\n/raw {\n/echo 2\n")
        self.assertEqual((status, lines), (1, ["echo: 1", "echo: 2"]))
        self.assertRegex("\n".join(told), r"^tcpjson\.console: line 2: /raw: bad_json: .*$")

    def test_nobody_answers(self) -> None:
        with Stranger(silent) as stranger:
            at = stranger.where
            status, lines, told = run(at, "--timeout", "0.5", given="/ping\n")
            self.assertEqual((status, lines, len(told), len(stranger.arrivals)), (1, [], 1, 1))
        status, lines, told = run(at, given="/ping\n")
        self.assertEqual((status, lines), (1, []))
        self.assertRegex(
            "\n".join(told),
            rf"^tcpjson\.console: cannot connect to {re.escape(at)}: (?!no connection within).*refused",
        )

    def test_one_that_falls_silent(self) -> None:
        with Proxy(self.server.address) as proxy:
            process = start(proxy.where, "--timeout", "1")
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            process.stdin.write("/echo 1\n")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), "echo: 1\n")
            proxy.hold()
            output, told = process.communicate("/echo 2\ntext\n", TIMEOUT)
            self.assertEqual((process.returncode, output), (1, ""))
            self.assertEqual(
                told.splitlines(),
                [
                    "tcpjson.console: line 2: /echo: no reply in time",
                    "tcpjson.console: line 3: no reply in time",
                ],
            )

    def test_cut_in_the_midst(self) -> None:
        """Each command that was sent is answered, or told to have failed; none twice."""
        with Proxy(self.server.address, cut_each=200000) as proxy:
            given = "".join(f"/echo {number}\ntext {number}\n" for number in range(5000))
            status, lines, told = run(proxy.where, "--json", given=given)
            self.assertEqual(proxy.accepted, 1)
        objects = [json.loads(line) for line in lines]
        self.assertEqual([each["line"] for each in objects], list(range(1, len(objects) + 1)))
        answered = [each for each in objects if each["ok"]]
        self.assertTrue(0 < len(answered) < len(objects) < 10000)
        for each in answered:
            number, is_text = divmod(each["line"] - 1, 2)
            expected = f"text {number}" if is_text else number
            self.assertEqual(each["message"]["original_text" if is_text else "content"], expected)
        self.assertEqual(status, 1)
        self.assertEqual(len(told), len(objects) - len(answered) + 1)
        self.assertIn("the rest of the input was not sent", told[-1])

    def test_many_lines_take_no_memory(self) -> None:
        if not Path("/proc/self/status").exists():
            raise SkipTest("needs /proc")
        peaks = []
        for count in (100, 100000):
            given = "".join(f"/echo {number}\n" for number in range(count))
            status, lines, told = run(
                where(self.server), given=given, program=[sys.executable, "-c", _MEASURED]
            )
            self.assertEqual((status, lines), (0, [f"echo: {number}" for number in range(count)]))
            peaks.append(int(told[0]))
        self.assertLess(peaks[1] - peaks[0], 8000)

    def test_a_long_text(self) -> None:
        """With what the console sends behind it, it is more than clients keep in wait by themselves."""
        text = "x" * 10_000_000
        status, lines, told = run(where(self.start("--max-length", "20000000")), given=text)
        self.assertEqual((status, [len(line) for line in lines], told), (0, [len(text) + len("echo: ")], []))

    def test_nobody_reads_on(self) -> None:
        """As with `head`: it ends without a word."""
        process = start(where(self.server))
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        feeding = threading.Thread(target=feed, args=(process, "/echo x\n" * 200000))
        feeding.start()
        self.assertEqual(process.stdout.readline(), "echo: x\n")
        process.stdout.close()
        self.assertEqual(process.wait(TIMEOUT), 1)
        feeding.join(TIMEOUT)
        self.assertEqual(process.stderr.read(), "")
        process.stderr.close()

    def test_a_slow_reader_gets_all(self) -> None:
        peer = self.connect()
        asked = [peer.stats()["total_messages"]]
        process = start(where(self.server))
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        count = 30000
        feeding = threading.Thread(target=feed, args=(process, f"/echo {'x' * 100}\n" * count))
        feeding.start()

        def waits() -> bool:
            """Nothing more is asked once the pipe is full, but by us, fifty times in a row."""
            asked.append(peer.stats()["total_messages"])
            return asked[-1] - asked[0] > 1000 and asked[-50:] == list(range(asked[-1] - 49, asked[-1] + 1))

        until(waits, "it waits")
        self.assertLess(asked[-1] - asked[0], count // 2)
        self.assertEqual(len(process.stdout.read().splitlines()), count)
        self.assertEqual(process.wait(TIMEOUT), 0)
        feeding.join(TIMEOUT)
        for stream in (process.stdout, process.stderr):
            stream.close()

    def test_signals(self) -> None:
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            process = start(where(self.server))
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("/echo 1\n")
            process.stdin.flush()
            self.assertEqual(process.stdout.readline(), "echo: 1\n")
            process.send_signal(number)
            # The end of its input, too, would end it.
            process.wait(TIMEOUT)
            self.assertEqual(process.communicate(timeout=TIMEOUT), ("", ""))
            self.assertEqual(process.returncode, status)

    def test_listening(self) -> None:
        """It goes on when the input has ended, until it is told, or the server goes."""
        server = self.start()
        process = start(where(server), "--listen")
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("/echo 1\n")
        process.stdin.close()
        process.stdin = None
        self.assertEqual(process.stdout.readline(), "echo: 1\n")
        self.connect(server).send({"type": "broadcast", "content": "hello\x1b"})
        self.assertRegex(process.stdout.readline(), r"^broadcast from 127\.0\.0\.1:\d+: hello\\x1b\n$")
        server.process.kill()
        output, told = process.communicate(timeout=TIMEOUT)
        self.assertEqual((process.returncode, output, told.count("\n")), (1, "", 1))

    def test_pipes_are_left_as_they_were(self) -> None:
        ours, theirs = os.pipe()
        self.addCleanup(os.close, ours)
        os.write(theirs, b"/echo 1\n")
        os.close(theirs)
        done = subprocess.run(
            [*PROGRAM, where(self.server)],
            env=command()[1],
            stdin=ours,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (0, b"echo: 1\n"))
        self.assertTrue(os.get_blocking(ours))

    def test_closed_pipes(self) -> None:
        line = f"{shlex.join([*PROGRAM, where(self.server)])} <&- >&-"
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=command()[1], stderr=subprocess.PIPE, timeout=TIMEOUT, check=False
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(
            done.stderr, b"tcpjson.console: the standard input and output: Bad file descriptor\n"
        )

    def test_where_that_is_none(self) -> None:
        for arguments in (["127.0.0.1:99999"], ["nonsense:x:y"], ["--ca", "/nonexistent", "localhost"]):
            status, lines, told = run(*arguments)
            self.assertEqual((status, lines, len(told)), (2, [], 1), told)
            self.assertRegex(told[0], "^tcpjson.console: ")

    def test_wrong_options(self) -> None:
        status, lines, told = run("--timeout", "-1")
        self.assertEqual((status, lines), (2, []))
        self.assertIn("--timeout: must be a number of seconds greater than 0", told[-1])


def feed(process: subprocess.Popen[str], text: str) -> None:
    """Write all of it, or what is taken."""
    assert process.stdin is not None
    try:
        process.stdin.write(text)
        process.stdin.close()
    except BrokenPipeError:
        pass


class StrangerTests(SynchronousTestCase):
    def test_a_classic_server(self) -> None:
        lacking: tuple[str, ...]
        for lacking in (), ("ping_timestamp", "pong_timestamp", "client_id"):
            with Classic({"pong": lacking}) as server:
                given = '/ping\nhello\n/echo {"a":[1]}\n/raw {broken\n'
                given += '/broadcast x\n/stats\n/custom move {"x":1}\n'
                status, lines, told = run(server.where, given=given)
                self.assertEqual((status, told), (0, []))
                self.assertRegex(lines[0], r"^pong: .* ms$")
                self.assertEqual(
                    lines[1:5], ["echo: hello", 'echo: {"a":[1]}', "echo: {broken", "broadcast: 0 recipients"]
                )
                self.assertRegex(lines[5], r"^stats: connected_clients=1, ")
                self.assertRegex(lines[6], r'^response: \{"type":"move","x":1,')
                self.assertEqual(server.failures, [])


class LoginTests(ServerTestCase):
    """Secrets come from files, and go nowhere else."""

    SECRET = "hunter2 and more"

    def test_a_password(self) -> None:
        server = self.start("--auth", f"scram:{write(new_path('.users'), users({'ann': self.SECRET}))}")
        password = write(new_path(".password"), self.SECRET + "\n")
        trace = new_path(".trace")
        arguments = [where(server), "--user", "ann", "--password-file", str(password), "--trace", str(trace)]
        status, lines, told = run(*arguments, given="/echo 1\n")
        self.assertEqual((status, lines, told), (0, ["echo: 1"], []))
        traced = [json.loads(line) for line in trace.read_text().splitlines()]
        self.assertEqual({each["direction"] for each in traced}, {"sent", "received"})
        self.assertNotIn("hunter2", trace.read_text())

        wrong = write(new_path(".password"), "wrong")
        status, lines, told = run(
            where(server), "--user", "ann", "--password-file", str(wrong), given="/ping\n"
        )
        self.assertEqual((status, lines, len(told)), (1, [], 1))
        self.assertIn("the server does not know the name", told[0])
        status, lines, told = run(where(server), given="/ping\n")
        self.assertEqual((status, lines, len(told)), (1, [], 1))

    def test_nobody_to_ask(self) -> None:
        status, lines, told = run(where(self.server), "--user", "ann", given="/ping\n")
        self.assertEqual((status, lines), (1, []))
        self.assertEqual(
            told, ["tcpjson.console: no terminal to ask for the password on: use --password-file"]
        )

    def test_a_token_over_tls(self) -> None:
        issued = authority().issue("server")
        option = f"token:{write(new_path('.tokens'), tokens({'s3same': 'ann'}))}"
        server = self.start("--auth", option, ports=[issued.port])
        token = str(write(new_path(".token"), "s3same\n"))
        status, lines, told = run(
            where(server), "--ca", str(authority().file), "--token-file", token, given="/connect\n/echo 1"
        )
        self.assertEqual((status, lines[1:], told), (0, ["echo: 1"], []))
        # Another authority vouches for another server.
        status, lines, told = run(where(server), "--ca", str(certificates().certificate), given="/ping\n")
        self.assertEqual((status, lines), (1, []))

    def test_a_secret_is_for_one_place(self) -> None:
        option = f"token:{write(new_path('.tokens'), tokens({'s3same': 'ann'}))}"
        first, second = (self.start("--auth", option, "--allow-plain-auth") for _ in range(2))
        trace = new_path(".trace")
        token = str(write(new_path(".token"), "s3same\n"))
        places = [where(self.server), where(first), where(second)]
        status, lines, told = run(
            *(where(first), "--token-file", token, "--allow-plain-auth", "--trace", str(trace)),
            given="".join(f"/connect {place}\n/echo {place}\n" for place in places),
        )
        self.assertEqual((status, lines[1::2]), (1, [f"echo: {place}" for place in places[:2]]))
        without = "is asked without a login: the name and the secret are for"
        self.assertEqual(
            told[:3],
            [
                f"tcpjson.console: {where(self.server)} {without} {where(first)} alone",
                f"tcpjson.console: {where(second)} {without} {where(first)} alone",
                "tcpjson.console: line 5: /connect: the server asks who it is (token)",
            ],
        )
        traced = [json.loads(line)["message"] for line in trace.read_text().splitlines()]
        self.assertEqual(sum(message["type"] == "auth" for message in traced), 2)

    def test_an_authority_is_for_hosts_and_ports(self) -> None:
        server = self.start(ports=[authority().issue("server").port])
        place = f"tcp:{where(self.server)}"
        status, lines, told = run(
            where(server),
            "--ca",
            str(authority().file),
            given=f"/connect {place}\n/echo 1\n/connect {where(server)}",
        )
        self.assertEqual((status, len(lines), lines[1]), (0, 3, "echo: 1"))
        why = "is asked without --ca: that is for a host and port only"
        self.assertEqual(told, [f"tcpjson.console: {place} {why}"])
        status, lines, told = run(place, "--ca", str(authority().file))
        self.assertEqual((status, lines, len(told)), (2, [], 1))


class Screen:
    """
    A terminal, in which a program runs. When that has ended, its status is to be seen, and how the terminal
    is set.

    Args:
        arguments: those of the console.
        environment: what is other than in ours.
        program: what is run.
    """

    _count = 0

    def __init__(
        self, *arguments: str, environment: dict[str, str] | None = None, program: list[str] = PROGRAM
    ) -> None:
        Screen._count += 1
        self._socket = str(folder() / f"tmux{Screen._count}")
        self._pid = new_path(".pid")
        variables = {**command()[1], "LC_ALL": "C.UTF-8", "NO_COLOR": "", **(environment or {})}
        settings = [
            f"{name}={variables[name]}" for name in ("PYTHONPATH", *(environment or {})) if name in variables
        ]
        line = shlex.join(["env", *settings, *program, *arguments])
        script = f"sh -c 'echo $$ > {self._pid}; exec \"$@\"' sh {line}; echo ended: $?; stty -a; exec cat"
        self._tmux(
            "-f", os.devnull, "new-session", "-d", "-x", "120", "-y", "40", script, environment=variables
        )

    def _tmux(self, *words: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-S", self._socket, *words],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        return done.stdout

    @property
    def pid(self) -> int:
        """The process of the program."""
        return int(until(lambda: self._pid.exists() and self._pid.read_text().strip(), "it runs"))

    def shown(self, escapes: bool = False) -> str:
        """What is to be seen, with the escape sequences of its colours if they are wanted."""
        return self._tmux("capture-pane", "-p", *(["-e"] if escapes else [])).rstrip("\n")

    def until(self, pattern: str) -> str:
        """Wait until lines that match are to be seen; returns all that is."""
        seen = ""

        def matches() -> bool:
            nonlocal seen
            seen = self.shown()
            return re.search(pattern, seen, re.MULTILINE) is not None

        try:
            until(matches, pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}") from None
        return seen

    def type(self, text: str) -> None:
        """Type a text as it is."""
        self._tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys by their names: Enter, Tab, Up, C-c."""
        self._tmux("send-keys", *keys)

    def enter(self, text: str) -> None:
        """Type a line."""
        self.type(text)
        # It must have come: what is entered too fast is taken for pasted.
        self.until(re.escape(text.rstrip()))
        self.press("Enter")

    def ended(self, status: int) -> None:
        """Wait for its end; the terminal is as it was before."""
        seen = self.until(r"^ended: \d+$(.|\n)*-?\becho\b")
        assert f"ended: {status}\n" in seen, seen
        for setting in ("icanon", "echo", "isig", "icrnl", "opost"):
            assert re.search(rf"(?<![-\w]){setting}\b", seen), (setting, seen)
        assert "Traceback" not in seen, seen

    def close(self) -> None:
        """End it all."""
        self._tmux("kill-server")


class TerminalTestCase(ServerTestCase):
    def setUp(self) -> None:
        if shutil.which("tmux") is None:
            raise SkipTest("needs tmux, a package of Debian and others of that name")
        self.state = new_path(".state")

    def screen(self, *arguments: str, program: list[str] = PROGRAM, **environment: str) -> Screen:
        """The console in a terminal."""
        environment = {"XDG_STATE_HOME": str(self.state), **environment}
        screen = Screen(*arguments, environment=environment, program=program)
        self.addCleanup(screen.close)
        return screen


class TerminalTests(TerminalTestCase):
    """With prompt_toolkit."""

    def setUp(self) -> None:
        super().setUp()
        if importlib.util.find_spec("prompt_toolkit") is None:
            raise SkipTest("needs prompt_toolkit: pip install 'tcpjson[console]'")

    def test_a_session(self) -> None:
        at = where(self.server)
        screen = self.screen(at)
        connected = rf"^connected to {re.escape(at)} as 127\.0\.0\.1:\d+$"
        # Above the prompt, and at the bottom.
        screen.until(rf"{connected}\n>\n+{connected}\Z")
        screen.enter("/ping")
        screen.until(r"^pong: \d+(\.\d+)? ms\n>$")
        screen.type("/st")
        screen.until("^> /st$")
        screen.press("Tab")
        screen.until("^> /stats$")
        screen.press("Enter")
        screen.until(r"^stats:\n(.*\n)*connected clients +\d+\n(.*\n)*details\n")
        screen.press("C-l")
        screen.enter("plain text")
        screen.until(r"^> plain text\necho: plain text\n>$")
        screen.enter('/custom move {"x": 1,}')
        screen.until(r"^/custom: bad JSON at character 9 of the JSON, before '\}': trailing comma in object$")
        screen.enter("/pnig")
        screen.until(r"^there is no command /pnig: did you mean /ping\?$")
        screen.type("half a")
        screen.until("^> half a$")
        self.connect().send({"type": "broadcast", "content": "ev\x1b[2Jil\u202e\x9b\r"})
        screen.until(r"^broadcast from 127\.0\.0\.1:\d+: ev\\x1b\[2Jil\\u202e\\x9b\\r\n> half a$")
        screen.type(" line")
        screen.until("^> half a line$")
        screen.press("C-c")
        screen.until(r"^>$")
        screen.type("more")
        screen.until("^> more$")
        screen.press("C-c")
        screen.until(r"^>$")
        screen.press("C-c")
        screen.ended(0)

    def test_history(self) -> None:
        """It is there in the next run, for its owner alone; what may be a secret is not."""
        first = self.screen(where(self.server))
        first.until("^connected")
        first.enter("/echo remember")
        first.until("^echo: remember")
        first.enter('/custom auth {"mechanism":"token","token":"s3cret"}')
        first.until("^/custom: bad_message")
        first.press("C-d")
        first.ended(0)
        path = self.state / "tcpjson" / "history"
        self.assertEqual((path.read_text(), path.stat().st_mode & 0o777), ("/echo remember\n", 0o600))
        second = self.screen(where(self.server))
        second.until("^connected")
        second.press("Up")
        second.until("^> /echo remember$")
        second.press("Enter")
        second.until("^echo: remember")
        second.enter("/exit")
        second.ended(0)

    def test_a_server_that_comes_again(self) -> None:
        """A line that is half typed stays, and can be finished."""
        server = self.start()
        at = where(server)
        screen = self.screen(at)
        screen.until("^connected")
        screen.type("half a")
        screen.until("^> half a$")
        server.process.kill()
        server.wait()
        screen.until(r"^disconnected: .*\n> half a\n+reconnecting in \d+ s: .*refused\Z")
        screen.type(" line")
        screen.until("^> half a line$")
        again = self.start(ports=[f"tcp:{server.address[1]}:interface=127.0.0.1"])
        again_connected = rf"connected to {re.escape(at)} as 127\.0\.0\.1:\d+"
        screen.until(rf"^disconnected: .*\n{again_connected}\n> half a line\n+{again_connected}\Z")
        screen.press("Enter")
        screen.until(r"^echo: half a line\n>$")
        again.process.kill()
        screen.until("^reconnecting")
        screen.enter("/ping")
        screen.until("^/ping: not connected")
        screen.enter("/connect 127.0.0.1:99999")
        screen.until("^/connect: .*no such port")
        screen.press("C-d")
        screen.ended(0)

    def test_nobody_there(self) -> None:
        server = self.start()
        server.stop()
        screen = self.screen(where(server))
        told = rf"^cannot connect to {where(server)}: .*refused.*; trying again\n>\n"
        screen.until(rf"{told}(.|\n)*^reconnecting in \d+ s: .*refused")
        screen.enter(f"/connect {where(self.server)}")
        screen.until(rf"^connected to {where(self.server)} as .*\Z")
        screen.press("C-d")
        screen.ended(0)

    def test_completion_of_types(self) -> None:
        screen = self.screen(where(self.server))
        screen.until("^connected")
        screen.enter("/custom reposition")
        screen.until("^response:")
        screen.type("/custom rep")
        screen.until("^> /custom rep$")
        screen.press("Tab")
        # The last line, not that which was entered.
        screen.until(r"^> /custom reposition\n\n+connected .*\Z")
        screen.press("C-c")
        screen.until("^>$")
        screen.type("/e")
        screen.until("^> /e$")
        screen.press("Tab")
        # What it could be.
        screen.until(r"^ +/echo *\n +/exit")
        screen.press("C-c")
        screen.until("^>$")
        screen.press("C-d")
        screen.ended(0)

    def test_colour(self) -> None:
        for no_colour, coloured in (("", True), ("1", False)):
            screen = self.screen(where(self.server), NO_COLOR=no_colour)
            screen.until("^connected")
            screen.enter("/ping")
            screen.until("^pong")
            screen.enter("/pnig")
            screen.until("^there is no command")
            # Foreground and background, by all their numbers.
            colours = re.findall(r"\x1b\[[0-9;]*[349][0-7][0-9;]*m", screen.shown(escapes=True))
            self.assertEqual(bool(colours), coloured, colours)
            screen.press("C-d")
            screen.ended(0)

    def test_a_flood(self) -> None:
        """What is typed is still answered, and the memory does not grow."""
        screen = self.screen(where(self.server))
        screen.until("^connected")
        before = resident(screen.pid)
        given = f"/broadcast {'x' * 1000}\n" * 50000
        flood = start(where(self.server), stdout=subprocess.DEVNULL)
        feeding = threading.Thread(target=feed, args=(flood, given))
        feeding.start()
        self.addCleanup(flood.kill)
        screen.until("more messages came, too many to show")
        screen.type("/ping")
        screen.until("^> /ping$")
        screen.press("Enter")
        screen.until(r"^pong: ")
        self.assertEqual(flood.wait(TIMEOUT), 0)
        feeding.join(TIMEOUT)
        assert flood.stderr is not None
        flood.stderr.close()
        screen.press("C-l")
        screen.enter("done")
        screen.until("^echo: done$")
        self.assertLess(resident(screen.pid) - before, 16000)
        screen.press("C-d")
        screen.ended(0)

    def test_signals(self) -> None:
        """The terminal is restored."""
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 0)):
            screen = self.screen(where(self.server))
            screen.until("^connected")
            os.kill(screen.pid, number)
            screen.ended(status)

    def test_a_password_is_asked_for(self) -> None:
        server = self.start("--auth", f"scram:{write(new_path('.users'), users({'ann': 'hunter2'}))}")
        screen = self.screen(where(server), "--user", "ann")
        screen.until("^Password of ann:$")
        screen.type("hunter2")
        screen.press("Enter")
        seen = screen.until(rf"^connected to {where(server)} as \S+ \(ann\)\Z")
        self.assertNotIn("hunter2", seen)
        screen.press("C-d")
        screen.ended(0)
        wrong = self.screen(where(server), "--user", "ann")
        wrong.until("^Password of ann:$")
        wrong.type("wrong")
        wrong.press("Enter")
        reason = "not connected: the server does not know the name, or not with this secret"
        hint = "start the console anew"
        wrong.until(rf"^{reason}; {hint} to log in\b(.|\n)*^{reason}; {hint}\Z")
        wrong.press("C-d")
        wrong.ended(0)
        left = self.screen(where(server), "--user", "ann")
        left.until("^Password of ann:$")
        left.press("C-c")
        left.ended(130)

    def test_no_such_place(self) -> None:
        screen = self.screen("127.0.0.1:99999")
        screen.until("^tcpjson.console: 127.0.0.1:99999: there is no such port$")
        screen.ended(2)


class PlainTerminalTests(TerminalTestCase):
    """On a terminal that can do nothing, and so without prompt_toolkit."""

    def test_a_session(self) -> None:
        server = self.start()
        screen = self.screen(where(server), TERM="dumb")
        screen.until(r"^connected to \S+ as 127\.0\.0\.1:\d+$")
        screen.enter("/ping")
        screen.until(r"^pong: ")
        self.connect(server).send({"type": "broadcast", "content": "ev\x1bil"})
        screen.until(r"^broadcast from \S+: ev\\x1bil$")
        server.process.kill()
        screen.until(r"^disconnected: .*\nreconnecting in \d+ s: ")
        screen.press("C-c")
        screen.until(r"Ctrl-C again, or /exit, to leave$")
        screen.press("C-c")
        screen.ended(0)

    def test_nobody_there(self) -> None:
        server = self.start()
        server.stop()
        screen = self.screen(where(server), TERM="dumb")
        screen.until(rf"\Acannot connect to {where(server)}: .*refused.*; trying again\Z")
        screen.enter(f"/connect {where(self.server)}")
        screen.until(rf"^connected to {where(self.server)} as \S+\Z")
        screen.enter("/exit")
        screen.ended(0)

    def test_without_prompt_toolkit(self) -> None:
        """What to install is told, once."""
        hidden = "import sys; sys.modules['prompt_toolkit'] = None; import tcpjson.console.program as program"
        program = [sys.executable, "-c", f"{hidden}; sys.exit(program.main())"]
        screen = self.screen(where(self.server), program=program)
        hint = r"for editing, history and completion: pip install 'tcpjson\[console\]'"
        screen.until(rf"\A{hint}\nconnected to \S+ as \S+\Z")
        screen.enter("/exit")
        screen.ended(0)

    def test_ways_out(self) -> None:
        for key, status in (("C-d", 0), (None, 0)):
            screen = self.screen(where(self.server), TERM="dumb")
            screen.until("^connected")
            if key is None:
                screen.enter("/exit")
            else:
                screen.press(key)
            screen.ended(status)
        screen = self.screen(where(self.server), TERM="dumb")
        screen.until("^connected")
        os.kill(screen.pid, signal.SIGTERM)
        screen.ended(143)


def resident(pid: int) -> int:
    """The memory of a process, in kB."""
    path = Path(f"/proc/{pid}/status")
    if not path.exists():
        raise SkipTest("needs /proc")
    match = re.search(r"VmRSS:\s*(\d+)", path.read_text())
    assert match is not None
    return int(match[1])
