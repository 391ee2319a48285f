"""The log of a real server: each line of it, where it goes, what it holds, and what it never does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.harness import (
    LOOPBACK,
    TIMEOUT,
    Ended,
    Peer,
    Server,
    ServerTestCase,
    command,
    encode,
    frame,
    until,
)
from tests.identities import (
    Scram,
    new_path,
    new_source,
    plain,
    plain_message,
    scram,
    token,
    token_message,
    tokens,
    users,
    write,
)
from tests.test_options import serve

# All secrets here, wrong ones too, hold this word; nothing that the server logs may.
MARK = "hunter"
ALICE = "hunter2-alice"
SENSOR = "hunter-sensor-p86cfjYXPsxY6Y4OtWmUIZqb"

HANDLERS = """
from tcpjson import Message, Router
from twisted.logger import Logger

log = Logger()
router = Router()


class Move(Message, tag="move"):
    x: int = 0


@router.handler
def move(session, message: Move):
    raise ValueError(f"no such field: {message.x}")


class Say(Message, tag="say"):
    text: str


@router.handler
def say(session, message: Say):
    print(message.text)
    log.info("told {text}", text=message.text)
    return {"type": "said"}
"""

# Nobody waits for clients that stay.
SHORT = ("--grace", "0.2")

# It would end one line and begin another, clear the screen, or be taken for a field.
FORGED = 'x"}\n{"time":"2024-01-01T00:00:00.000Z","event":"forged"}\r\x1b[2J\x85\u2028\u202e user=root'


class JSONServer(Server):
    """A server whose log is of JSON."""

    def wait_for(self, pattern: str, count: int = 1, since: int = 0) -> list[re.Match[str]]:
        if pattern.endswith("listening on (.*)$"):
            pattern = r'"message":"listening on ([^"]*)"'
        return super().wait_for(pattern, count, since)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the log holds so far; each line must be an object as it is to be."""
        return events(self.log)

    def of(self, *names: str) -> list[dict[str, Any]]:
        """The events of some names."""
        return [event for event in self.events if event["event"] in names]


def events(lines: list[str]) -> list[dict[str, Any]]:
    """The objects of a log's lines."""
    found = []
    for line in lines:
        event = json.loads(line)
        names = list(event)
        last = names[-2:] if "failure" in event else names[-1:]
        if (
            not (line.isascii() and line.isprintable() and len(line) < 16 * 1024)
            or names[:3] != ["time", "level", "event"]
            or last != ["message", "failure"][: len(last)]
            or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        ):
            raise AssertionError(f"no line of the log: {line}")
        found.append(event)
    return found


def handlers() -> Path:
    """A folder with handlers."""
    path = new_path(".handlers")
    path.mkdir()
    (path / "app.py").write_text(HANDLERS)
    return path


class Case(ServerTestCase):
    def begin(self, *options: str, cwd: Path | None = None, format: str = "json") -> JSONServer:
        """Start a server. Failures of handlers are no failures here."""
        kind: Any = JSONServer if format == "json" else Server
        server: JSONServer = kind("--log-format", format, *SHORT, *options, ports=[LOOPBACK], cwd=cwd)
        self.addCleanup(server.stop)
        return server

    def authenticated(self, *options: str, format: str = "json") -> JSONServer:
        """One that asks who its clients are."""
        kind = {"alice": ALICE}
        return self.begin(
            "--auth",
            f"scram:{write(new_path('.users'), users(kind))}",
            "--auth",
            f"token:{write(new_path('.tokens'), tokens({SENSOR: 'sensor-7'}))}",
            "--allow-plain-auth",
            *options,
            format=format,
        )


class LineTests(Case):
    """Lines of JSON."""

    def test_from_the_first_to_the_last(self) -> None:
        server = self.begin()
        peer = self.connect(server)
        self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
        peer.close()
        server.wait_for('"event":"disconnected"')
        server.stop()
        found = server.events
        self.assertRegex(found[0]["message"], "^twistd .* starting up")
        self.assertRegex(found[1]["message"], "^reactor class: ")
        self.assertEqual(found[-1]["message"], "Server Shut Down.")
        names = [event["event"] for event in found if event["event"] != "log"]
        self.assertEqual(names, ["listening", "connected", "disconnected", "shutting_down"])
        [connected] = server.of("connected")
        self.assertEqual((connected["client"], connected["user"]), (peer.client_id, None))
        [gone] = server.of("disconnected")
        self.assertEqual(list(gone)[:6], ["time", "level", "event", "client", "user", "code"])
        self.assertEqual((gone["client"], gone["code"]), (peer.client_id, "client_closed"))
        self.assertEqual((gone["messages_in"], gone["level"]), (1, "info"))

    def test_what_an_application_prints(self) -> None:
        for format in ("json", "text"):
            server = self.begin("--handlers", "app:router", cwd=handlers(), format=format)
            peer = self.connect(server)
            self.assertEqual(peer.ask({"type": "say", "text": FORGED})["type"], "said")
            server.stop()
            if format == "json":
                [told] = [event for event in server.events if event.get("text")]
                self.assertEqual((told["text"], told["logger"]), (FORGED, "app"))
                self.assertEqual(server.of("forged"), [])
            else:
                for line in server.log:
                    self.assertTrue(line.isprintable(), line)
                    self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\S+ \[\S+\] ")
                    self.assertNotRegex(line, r'^\{|"event":"forged"}$')

    def test_odd_options(self) -> None:
        for options, line in (
            (("--log-format", "xml"), "tcpjson: --log-format: 'xml' must be one of text, json"),
            (("--log-sample", "0", "--log-messages"), "tcpjson: --log-sample"),
        ):
            status, output = serve(*options).ended()
            self.assertEqual((status, output.count("\n")), (1, 1), output)
            self.assertTrue(output.startswith(line), output)

    def test_twistd_s_own_formats(self) -> None:
        for option in (("--syslog",), ("--logger", "twisted.logger.LogPublisher")):
            words, environment = command("-n", "--pidfile=", *option, "tcpjson", "--log-format", "json")
            done = subprocess.run(
                words, env=environment, capture_output=True, encoding="utf-8", timeout=TIMEOUT, check=False
            )
            self.assertEqual(
                (done.returncode, done.stdout, done.stderr),
                (1, "", f"tcpjson: --log-format json: twistd's {option[0]} has a format of its own\n"),
            )

    def test_a_logger_of_one_s_own(self) -> None:
        """It has the log, as without us."""
        where = new_path(".logger")
        where.mkdir()
        (where / "mine.py").write_text(
            "from twisted.logger import eventsFromJSONLogFile, jsonFileLogObserver\n"
            "def logger():\n    return jsonFileLogObserver(open('mine.log', 'w'))\n"
        )
        port = f"unix:{new_path('.sock')}"
        words, environment = command("-n", "--pidfile=", "--logger", "mine.logger", "tcpjson", "--port", port)
        environment["PYTHONPATH"] = f"{where}:{environment['PYTHONPATH']}"
        with subprocess.Popen(words, env=environment, cwd=where, stdout=subprocess.DEVNULL) as process:
            try:
                log = where / "mine.log"
                until(lambda: log.exists() and "listening on" in log.read_text(), "it listens")
            finally:
                process.terminate()


class PlaceTests(Case):
    """Where the log goes."""

    def run_in(self, place: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start twistd in a folder, with words before `tcpjson`; it listens on a Unix socket there."""
        place.mkdir()
        line, environment = command(
            *words, "tcpjson", "--log-format", "json", *SHORT, "--port", f"unix:{place}/s"
        )
        more.setdefault("stdout", subprocess.PIPE)
        process = subprocess.Popen(
            line,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            **more,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def dial_in(self, place: Path) -> Peer:
        """A client of the socket in a folder."""
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.settimeout(TIMEOUT)

        def connected() -> bool:
            with contextlib.suppress(OSError):
                connection.connect(str(place / "s"))
                return True
            return False

        until(connected, "it listens")
        peer = Peer(connection)
        peer.welcome = peer.receive()
        return peer

    def lines(self, path: Path) -> list[dict[str, Any]]:
        return events(path.read_text("ascii").splitlines())

    def test_a_file(self) -> None:
        place = new_path(".d")
        process = self.run_in(place, "-n", "--pidfile=", "--logfile", "server.log")
        self.assertEqual(self.dial_in(place).ask({"type": "ping"})["type"], "pong")
        process.terminate()
        output, _ = process.communicate(timeout=TIMEOUT)
        self.assertEqual(output, "")
        found = self.lines(place / "server.log")
        self.assertRegex(found[0]["message"], "^twistd .* starting up")
        self.assertEqual(found[-1]["message"], "Server Shut Down.")

    def test_a_file_that_cannot_be_written(self) -> None:
        place = new_path(".d")
        process = self.run_in(place, "-n", "--pidfile=", "--logfile", "no/such/place.log")
        output, _ = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(output, f"tcpjson: --logfile {place}/no/such/place.log: No such file or directory\n")

    def test_rotated(self) -> None:
        place = new_path(".d")
        process = self.run_in(place, "-n", "--pidfile=", "--logfile", "server.log")
        first = self.dial_in(place)
        process.send_signal(signal.SIGUSR1)
        until((place / "server.log.1").exists, "the file is rotated")
        second = self.dial_in(place)
        process.terminate()
        process.wait(TIMEOUT)
        for name, peer in (("server.log.1", first), ("server.log", second)):
            joined = [event["client"] for event in self.lines(place / name) if event["event"] == "connected"]
            self.assertEqual(joined, [peer.client_id])

    def ended(self, file: Path) -> bool:
        """Whether a log has its last line."""
        return "Server Shut Down" in file.read_text()

    def test_in_the_background(self) -> None:
        for words, log in (((), "twistd.log"), (("--logfile", "other.log"), "other.log")):
            place = new_path(".d")
            process = self.run_in(place, *words)
            output, _ = process.communicate(timeout=TIMEOUT)
            self.assertEqual((process.returncode, output), (0, ""))
            pid = int((place / "twistd.pid").read_text())
            try:
                self.assertEqual(self.dial_in(place).ask({"type": "ping"})["type"], "pong")
            finally:
                os.kill(pid, signal.SIGTERM)
            file = place / log
            until(partial(self.ended, file), "it ends")
            self.assertFalse((place / "twistd.pid").exists())
            found = self.lines(file)
            self.assertRegex(found[0]["message"], "^twistd .* starting up")
            self.assertEqual([event["event"] for event in found].count("connected"), 1)

    def test_in_the_background_without_a_file(self) -> None:
        place = new_path(".d")
        process = self.run_in(place, "--logfile", "-")
        output, _ = process.communicate(timeout=TIMEOUT)
        self.assertNotEqual(process.returncode, 0)
        self.assertEqual(output, "tcpjson: --logfile -: what runs in the background cannot log to stdout\n")

    def test_nobody_reads_it(self) -> None:
        """Neither what is gone nor what is full stops the server."""
        with open("/dev/full", "w") as full:
            for words in ({"stdout": full}, {}):
                place = new_path(".d")
                process = self.run_in(place, "-n", "--pidfile=", **words)
                if process.stdout is not None:
                    process.stdout.close()
                for _ in range(50):
                    peer = self.dial_in(place)
                    self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
                    peer.close()
                process.terminate()
                self.assertEqual(process.wait(TIMEOUT), -signal.SIGTERM)

    def test_it_was_closed(self) -> None:
        """What comes to have its number, a client perhaps, hears nothing of it."""
        place = new_path(".d")
        place.mkdir()
        line, environment = command("-n", "--pidfile=", "tcpjson", *SHORT, "--port", f"unix:{place}/s")
        with subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *line], cwd=place, env=environment
        ) as process:
            try:
                peers = [self.dial_in(place) for _ in range(5)]
                for peer in peers:
                    self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
                    peer.nothing_for(0.02)
            finally:
                process.terminate()


class FloodTests(Case):
    """What happens again and again."""

    def told(self, found: list[dict[str, Any]]) -> int:
        """How many events lines tell of."""
        return sum(1 + event.get("unsaid", 0) for event in found)

    def test_a_handler_that_fails(self) -> None:
        for format in ("json", "text"):
            server = self.begin("--handlers", "app:router", cwd=handlers(), format=format)
            peer = self.connect(server)
            for start in range(0, 2000, 100):
                peer.send(*({"type": "move", "x": number} for number in range(start, start + 100)))
                answers = [peer.receive()["code"] for _ in range(100)]
                self.assertEqual(set(answers), {"internal"})
            lines = len(server.log)
            server.stop()
            self.assertTrue(lines < 60, lines)
            if format == "text":
                self.assertEqual(sum("Traceback" in line for line in server.log), 2)
                self.assertEqual(sum(" (and 1998 more in " in line for line in server.log), 1)
                continue
            found = server.of("handler_failed")
            self.assertEqual((len(found), self.told(found)), (2, 2000))
            for number, event in enumerate(found):
                self.assertEqual((event["client"], event["level"]), (peer.client_id, "critical"))
                self.assertIn(f"ValueError: no such field: {number}\n", event["failure"])

    def test_refused_connections(self) -> None:
        server = self.begin("--max-connections", "1")
        first = self.connect(server)
        for _ in range(200):
            refused = self.connect(server, greet=False)
            refused.rest()
            refused.close()
        self.assertEqual(len(server.of("refused")), 1)
        reasons = Counter(first.stats()["details"]["disconnects"])
        server.stop()
        found = server.of("refused")
        self.assertEqual((len(found), self.told(found)), (2, 200))
        for event in found:
            self.assertEqual((event["code"], event["level"]), (next(iter(reasons)), "warn"))
            self.assertTrue(event["client"].startswith("127.0.0.1:"))

    def test_failed_logins(self) -> None:
        """No address hides behind another that fails more often."""
        server = self.authenticated()
        often, once = new_source(), new_source()
        for source in (often, often, often, once):
            peer = self.connect(server, source=source)
            self.assertEqual(token(peer, "hunter-wrong")["status"], "authentication_failed")
            peer.close()
        server.stop()
        found = server.of("login_failed")
        self.assertEqual((len(found), self.told(found)), (3, 4))
        self.assertEqual({event["client"].rpartition(":")[0] for event in found}, {often, once})
        self.assertNotIn(MARK, "\n".join(server.log))


class MessageTests(Case):
    """`--log-messages`."""

    def of_messages(self, server: JSONServer, direction: str) -> list[dict[str, Any]]:
        return [event for event in server.of("message") if event["direction"] == direction]

    def test_types_sizes_and_ids(self) -> None:
        server = self.begin("--log-messages")
        peer, other = self.connect(server), self.connect(server)
        payloads = [
            b'{"type":"echo","content":"hello","id":7}',
            b'{"type":"broadcast","content":"all"}',
            b'{"type":"move","id":"x"}',
            b"hello",
            b'{"type":',
        ]
        peer.write(b"".join(map(frame, payloads)))
        for _ in payloads:
            peer.receive()
        self.assertEqual(other.receive()["type"], "broadcast")
        server.stop()
        came = self.of_messages(server, "in")
        self.assertEqual([event["size"] for event in came], list(map(len, payloads)))
        self.assertEqual([event["type"] for event in came], ["echo", "broadcast", "move", None, None])
        self.assertEqual([event.get("id") for event in came], [7, None, "x", None, None])
        self.assertEqual({event["client"] for event in came}, {peer.client_id})
        left = Counter((event["client"], event["type"]) for event in self.of_messages(server, "out"))
        answers = ["welcome", "echo_response", "broadcast_sent", "response", "echo", "error", "going_away"]
        expected = Counter((peer.client_id, kind) for kind in answers[:-1])
        expected.update((other.client_id, kind) for kind in ("welcome", "broadcast"))
        self.assertEqual(expected - left, Counter())
        self.assertNotIn("contents", "".join(server.log))

    def test_the_last_word(self) -> None:
        """An error with which a connection ends is a message, too."""
        server = self.begin("--log-messages", "--max-length", "1000")
        peer = self.connect(server)
        peer.write(frame(b"x" * 2000))
        self.assertEqual(peer.ending()["code"], "too_large")
        server.stop()
        self.assertEqual([event["type"] for event in self.of_messages(server, "out")], ["welcome", "error"])

    def test_samples(self) -> None:
        server = self.begin("--log-messages", "--log-sample", "10")
        peer = self.connect(server)
        peer.send(*({"type": "ping", "id": number} for number in range(95)))
        for _ in range(95):
            peer.receive()
        server.stop()
        self.assertEqual([event["id"] for event in self.of_messages(server, "in")], list(range(0, 95, 10)))

    def test_contents(self) -> None:
        server = self.begin("--log-messages", "--log-contents")
        peer = self.connect(server)
        payload = b'{"type":"echo","content":"%s"}' % (b"x" * 3000)
        peer.write(frame(payload) + encode({"type": FORGED, "content": FORGED}))
        peer.receive(), peer.receive()
        server.stop()
        long, forged = self.of_messages(server, "in")
        self.assertEqual(long["contents"], payload[:1024].decode())
        self.assertEqual(forged["type"], FORGED[:128])
        self.assertEqual(json.loads(forged["contents"])["content"], FORGED)
        self.assertEqual(server.of("forged"), [])

    def test_options_that_do_nothing(self) -> None:
        server = self.begin("--log-contents", "--log-sample", "3")
        server.stop()
        warnings = [event["message"] for event in server.events if event["level"] == "warn"]
        self.assertEqual(
            sorted(warnings),
            [f"--{name} does nothing without --log-messages" for name in ("log-contents", "log-sample")],
        )

    def test_secrets(self) -> None:
        """However they come: right or wrong, broken, in pieces, or from somebody who is known."""
        for format in ("json", "text"):
            server = self.authenticated("--log-messages", "--log-contents", format=format)
            for login in (
                lambda peer: scram(peer, "alice", ALICE),
                lambda peer: scram(peer, "alice", "hunter-wrong"),
                lambda peer: plain(peer, "alice", ALICE),
                lambda peer: plain(peer, "hunter-nobody", ALICE),
                lambda peer: token(peer, SENSOR),
                lambda peer: token(peer, "hunter-wrong"),
                lambda peer: peer.ask({"type": "auth", "mechanism": "hunter", "password": ALICE}),
                lambda peer: peer.ask({"type": "aut", "password": ALICE, "pass": ALICE}),
                lambda peer: peer.ask({"type": "hello", "client": ALICE}),
            ):
                # Nobody waits for the failures of another.
                peer = self.connect(server, source=new_source())
                login(peer)
                self.assertEqual(peer.ask({"type": "ping", "id": 1})["type"], "pong")
                peer.close()
            for payload in (
                b'{"type":"auth","mechanism":"plain","username":"alice","password":"hunter2-alice",}',
                b"{'type':'auth','password':'hunter2-alice'}",
                b"AUTH alice hunter2-alice",
                b'{"type":"auth","token":"hunter\xff"}',
                b'["auth","hunter2-alice"]',
                b'{"type":"auth","password":{"hunter":["hunter"]}}',
                rb'{"type":"\u0061uth","password":"hunter2-alice"}',
                rb'{"type":"\u0061uth","password":"hunter2-alice",}',
            ):
                # Of a guest; in one read with the login; of one who is known.
                guest, coming = (self.connect(server, source=new_source()) for _ in range(2))
                guest.write(frame(payload))
                coming.write(frame(payload) + encode(token_message(SENSOR)) + frame(payload))
                for peer in (guest, coming):
                    for _ in range(1 if peer is guest else 3):
                        with contextlib.suppress(Ended):
                            peer.receive()
                    peer.close()
            started = Scram("alice", ALICE)
            peer = self.connect(server, source=new_source())
            self.assertEqual(peer.ask(started.first())["type"], "auth_challenge")
            peer.ask(plain_message("alice", "hunter-late"))
            peer.close()
            server.stop()
            text = "\n".join(server.log)
            self.assertIn("(hidden)", text)
            self.assertNotIn(MARK, text)
            # That it is a log of messages with their contents.
            self.assertIn("message in", text)
            self.assertNotIn("Traceback", text)

    def test_of_those_who_are_known(self) -> None:
        server = self.authenticated("--log-messages", "--log-contents")
        peer = self.connect(server)
        self.assertEqual(peer.ask({"type": "echo", "content": "said before"})["type"], "error")
        self.assertEqual(token(peer, SENSOR)["status"], "authenticated")
        self.assertEqual(peer.ask({"type": "echo", "content": "said after"})["type"], "echo_response")
        server.stop()
        text = "\n".join(server.log)
        self.assertNotIn("said before", text)
        shown = [event for event in server.of("message") if "said after" in event["contents"]]
        self.assertEqual([event["direction"] for event in shown], ["in", "out"])
        self.assertEqual({event["user"] for event in shown}, {"sensor-7"})


class NameTests(Case):
    """Users with names that are not nice."""

    def test_in_the_log(self) -> None:
        odd = ['x" level="y', "J\xfcrgen \N{SNOWMAN}", "x user=root", "{client}"]
        names = {f"hunter-token-{number:030}": name for number, name in enumerate(odd)}
        file = write(new_path(".tokens"), tokens(names))
        for format in ("json", "text"):
            server = self.begin(
                "--auth", f"token:{file}", "--allow-plain-auth", "--log-messages", format=format
            )
            for secret in names:
                peer = self.connect(server)
                self.assertEqual(token(peer, secret)["user"], names[secret])
                self.assertEqual(peer.ask({"type": "ping"})["type"], "pong")
                peer.close()
            server.stop()
            self.assertTrue(all(map(str.isprintable, server.log)))
            if format == "json":
                users_of = [event["user"] for event in server.of("connected")]
                self.assertEqual(users_of, list(names.values()))
                self.assertEqual({e["user"] for e in server.of("disconnected")}, set(names.values()))
