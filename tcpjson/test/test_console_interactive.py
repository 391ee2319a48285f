"""The console for who types, without the terminal: what is shown, and when."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Router, Session
from tcpjson.client import Client
from tcpjson.console.board import INTERVAL, MOST, Board
from tcpjson.console.history import MAX_LINE, MAX_LINES, History, history_path, is_secret
from tcpjson.console.interactive import Interactive
from tcpjson.console.plain import Plain
from tcpjson.console.rendering import Line
from tcpjson.console.stdio import LineIO, Lines, write_all
from tcpjson.core.errors import ProtocolMismatch
from tcpjson.core.messages import Ping
from tcpjson.credentials import Password
from tcpjson.test.hypo import given
from tcpjson.testing import MemoryClient, MemoryServer

USERS = InMemoryUsernamePasswordDatabaseDontUse(ann=b"pw")


class BoardTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        #: What was written together.
        self.written: list[list[str]] = []
        self.busy: Deferred[None] | None = None
        self.board = Board(self.clock, self.write)

    def write(self, lines: list[Line]) -> Deferred[None] | None:
        self.written.append([line.text for line in lines])
        return self.busy

    def hear(self, count: int) -> None:
        for number in range(count):
            self.board.hear(lambda number=number: Line("heard", str(number)))  # type: ignore[misc]

    def test_together_and_at_once(self) -> None:
        self.board.say([Line("answer", "a")])
        self.board.say([Line("answer", "b"), Line("answer", "c")])
        self.assertEqual(self.written, [])
        self.clock.advance(0)
        self.assertEqual(self.written, [["a", "b", "c"]])

    def test_not_too_often(self) -> None:
        self.board.say([Line("answer", "a")])
        self.clock.advance(0)
        self.board.say([Line("answer", "b")])
        self.clock.advance(INTERVAL * 0.9)
        self.assertEqual(len(self.written), 1)
        self.clock.advance(INTERVAL * 0.2)
        self.assertEqual(self.written, [["a"], ["b"]])
        self.clock.advance(INTERVAL)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_flood(self) -> None:
        """As much as can be read is shown, and how much there was; answers are all shown."""
        self.hear(5000)
        self.board.say([Line("answer", "mine")])
        self.clock.advance(0)
        ten = [str(number) for number in range(MOST)]
        rest = "\N{HORIZONTAL ELLIPSIS} 4,990 more messages came, too many to show"
        self.assertEqual(self.written, [[*ten, "mine", rest]])
        self.hear(MOST + 1)
        self.clock.advance(INTERVAL)
        one = "\N{HORIZONTAL ELLIPSIS} 1 more message came, too many to show"
        self.assertEqual(self.written[1], [*ten, one])
        self.hear(1)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.written[2], ["0"])

    def test_what_is_not_shown_is_not_made(self) -> None:
        made: list[None] = []

        def line() -> Line:
            made.append(None)
            return Line("heard", "x")

        for _ in range(1000):
            self.board.hear(line)
        self.assertEqual(len(made), MOST)

    def test_a_slow_terminal(self) -> None:
        self.busy = Deferred()
        self.board.say([Line("answer", "a")])
        self.clock.advance(0)
        self.hear(1000)
        self.clock.pump([INTERVAL] * 10)
        self.assertEqual(len(self.written), 1)
        busy, self.busy = self.busy, None
        busy.callback(None)
        self.clock.advance(0)
        self.assertEqual(len(self.written), 2)
        self.assertEqual(len(self.written[1]), MOST + 1)

    def test_slow_with_nothing_to_say(self) -> None:
        self.busy = Deferred()
        self.board.say([Line("answer", "a")])
        self.clock.advance(0)
        self.busy.callback(None)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ready_within_the_interval(self) -> None:
        self.busy = Deferred()
        self.board.say([Line("answer", "a")])
        self.clock.advance(0)
        self.board.say([Line("answer", "b")])
        busy, self.busy = self.busy, None
        busy.callback(None)
        self.assertEqual(len(self.written), 1)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.written, [["a"], ["b"]])

    def test_stop(self) -> None:
        self.board.stop()
        self.assertEqual(self.written, [])
        self.board = Board(self.clock, self.write)
        self.board.say([Line("answer", "a")])
        self.board.stop()
        self.assertEqual(self.written, [["a"]])
        self.board.say([Line("answer", "b")])
        self.clock.advance(1)
        self.assertEqual(self.written, [["a"]])


class ConsoleTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()
        self.credentials: Password | None = None
        self.clients: list[MemoryClient] = []

    def make(self, where: str, **callbacks: Any) -> Client:
        if where == "nowhere":
            raise ValueError("nowhere: no such place")
        self.clients.append(self.server.client(credentials=self.credentials, **callbacks))
        if where == "broken":
            # As the name of a host that is none fails.
            self.patch(self.clients[-1].wire, "connect", lambda factory: fail(ValueError("no name")))
        return self.clients[-1]


class InteractiveTests(ConsoleTestCase):
    def setUp(self) -> None:
        super().setUp()
        #: What is shown, each with its style.
        self.shown: list[tuple[str, str]] = []
        self.changes: list[tuple[str, str]] = []

    def write(self, lines: list[Line]) -> None:
        self.shown += [(line.style, line.plain()) for line in lines]

    def console(self, start: bool = True, **options: Any) -> Interactive:
        """One that is connected; nothing is shown yet."""
        board = Board(self.server.clock, self.write)
        console = Interactive(self.server.clock, self.make, "here", board, **options)
        console.changed = lambda: self.changes.append(console.state)
        if start:
            console.start()
            self.server.settle()
            self.server.advance(INTERVAL)
            self.shown.clear()
        return console

    def enter(self, console: Interactive, *lines: str) -> list[tuple[str, str]]:
        """What is shown when lines are typed."""
        self.shown.clear()
        for line in lines:
            command = console.read(line)
            if command is not None:
                console.do(command)
        self.server.settle()
        self.server.advance(2 * INTERVAL)
        return self.shown

    def test_start(self) -> None:
        console = self.console(start=False)
        self.assertEqual(console.state, ("waiting", "connecting to here"))
        console.start()
        self.server.settle()
        self.server.advance(INTERVAL)
        text = "connected to here as 127.0.0.1:50000"
        self.assertEqual(console.state, ("connected", text))
        self.assertEqual(self.changes[-1], console.state)
        self.assertEqual(self.shown, [("notice", text)])

    def test_answers(self) -> None:
        console = self.console()
        for line, shown in (
            ("/ping", ("answer", "pong: 0.00 ms")),
            ("/echo hi", ("answer", "echo: hi")),
            ("/broadcast x", ("answer", "broadcast: 0 recipients")),
            ('/custom move {"x":1}', ("answer", 'response: {"type":"move","x":1,"id":-6}')),
            ("hello", ("heard", "echo: hello")),
            ('/raw {"type":"echo"}', ("heard", 'echo: ""')),
        ):
            self.assertEqual(self.enter(console, line), [shown])
        [(style, text)] = self.enter(console, "/raw {")
        self.assertEqual((style, text[:16]), ("error", "error: bad_json:"))
        self.assertEqual(self.enter(console, ""), [])

    def test_another_answer_to_a_ping(self) -> None:
        """As of a handler of the server's own."""
        router = Router()

        @router.handler
        def ping(session: Session, message: Ping) -> dict[str, Any]:
            return {"type": "busy"}

        self.server = MemoryServer(routers=[router])
        [(style, text)] = self.enter(self.console(), "/ping")
        self.assertEqual((style, text[:6]), ("answer", "busy: "))

    def test_stats(self) -> None:
        console = self.console()
        shown = self.enter(console, "/stats")
        self.assertEqual(shown[0], ("answer", "stats: "))
        self.assertEqual(shown[1], ("answer", "connected clients   1"))

    def test_help(self) -> None:
        shown = self.enter(self.console(), "/help")
        self.assertIn("/ping", shown[0][1])
        for key in ("Ctrl-C", "Ctrl-D"):
            self.assertIn(key, " ".join(text for _, text in shown))
        self.assertEqual({style for style, _ in shown}, {"notice"})

    def test_json(self) -> None:
        console = self.console()
        shown = self.enter(console, "/json on", "/ping", "/stats", "text")
        self.assertEqual(shown[0], ("notice", "messages are shown as JSON"))
        for style, text in shown[1:]:
            self.assertEqual((style in ("answer", "heard"), text[:9]), (True, '{"type":"'))
        self.assertEqual(self.enter(console, "/json off")[0], ("notice", "messages are shown in words"))
        shown = self.enter(self.console(as_json=True), "/ping")
        self.assertEqual(shown[0][1][:9], '{"type":"')

    def test_errors(self) -> None:
        console = self.console()
        for line, text in (
            ("/pnig", "there is no command /pnig: did you mean /ping?"),
            ("/connect nowhere", "/connect: nowhere: no such place"),
        ):
            self.assertEqual(self.enter(console, line), [("error", text)])
        [(style, text)] = self.enter(console, "x" * 2000000)
        self.assertEqual((style, text[:26]), ("error", "error: too_large: 2000000 "))
        self.assertEqual(console.state[0], "connected")

    def test_not_connected(self) -> None:
        self.server.stop()
        console = self.console()
        for line in ("/ping", "text", "/raw x"):
            [(style, text)] = self.enter(console, line)
            self.assertEqual(style, "error")
            self.assertIn("not connected", text)

    def test_what_others_send(self) -> None:
        self.console()
        self.server.connect().send({"type": "broadcast", "content": "a\x1b\u202eb\r"})
        self.server.advance(INTERVAL)
        [(style, text)] = self.shown
        self.assertEqual(style, "heard")
        self.assertRegex(text, r"^broadcast from \S+: a\\x1b\\u202eb\\r$")

    def test_in_a_flood(self) -> None:
        """What was asked for is shown, whatever else comes."""
        console = self.console()
        command = console.read("text")
        assert command is not None
        for _ in range(3):
            console.do(command)
        for _ in range(100):
            console.heard({"type": {}})
            console.heard({"type": "news"})
        self.server.settle()
        self.server.advance(INTERVAL)
        shown = [text for style, text in self.shown if style == "heard"]
        self.assertEqual((len(shown), shown[MOST:]), (MOST + 3, ["echo: text"] * 3))
        self.assertIn("190 more messages", " ".join(text for _, text in self.shown))
        # More than was asked for are not.
        self.shown.clear()
        for _ in range(100):
            console.heard({"type": "echo", "original_text": "x"})
        self.server.advance(INTERVAL)
        self.assertEqual(len(self.shown), MOST + 1)
        # Nor what was asked for on another connection.
        self.clients[0].wire.stall()
        console.do(command)
        self.clients[0].wire.stalled = False
        self.clients[0].wire.cut()
        self.server.advance(30)
        self.assertEqual(console.state[0], "connected")
        self.shown.clear()
        for _ in range(100):
            console.heard({"type": "echo", "original_text": "x"})
        self.server.advance(INTERVAL)
        self.assertEqual(len(self.shown), MOST + 1)

    def test_reconnecting(self) -> None:
        console = self.console()
        self.clients[0].wire.refuses = True
        self.clients[0].wire.cut()
        self.assertEqual(console.state[0], "waiting")
        self.assertRegex(console.state[1], r"^reconnecting in 1 s: .*lost")
        self.server.advance(0.25)
        self.assertEqual(len(self.shown), 1)
        self.assertEqual(self.shown[0][0], "error")
        self.assertRegex(self.shown[0][1], r"^disconnected: .*lost")
        self.server.advance(10)
        # Attempts that fail are told by the state alone.
        self.assertEqual(len(self.shown), 1)
        self.clients[0].wire.refuses = False
        self.server.advance(30)
        self.assertEqual(console.state[0], "connected")
        self.assertEqual(self.shown[1][0], "notice")
        self.assertEqual(len(self.clients), 1)

    def test_the_wait_is_counted_down(self) -> None:
        self.server.stop()
        console = self.console(start=False)
        console.start()
        self.server.settle()
        console.retrying(Exception("no\x1b"), 12.3)
        counted = []
        for _ in range(14):
            counted.append(console.state[1])
            self.server.clock.rightNow += 1
        self.assertEqual(counted[0], "reconnecting in 13 s: no\\x1b")
        self.assertEqual(counted[12], "reconnecting in 1 s: no\\x1b")
        self.assertEqual(counted[13], "reconnecting: no\\x1b")

    def test_it_cannot_connect(self) -> None:
        """That is told once, whatever the terminal."""
        self.server.stop()
        for talkative in (False, True):
            console = self.console(start=False, talkative=talkative)
            for line, where in (("", "here"), ("/connect there", "there"), ("/connect", "there")):
                self.shown.clear()
                if line:
                    self.enter(console, line)
                else:
                    console.start()
                self.server.advance(60)
                shown = [(style, text) for style, text in self.shown if "onnect" in text]
                self.assertEqual(len(shown), 1, shown)
                self.assertEqual(shown[0][0], "error")
                self.assertRegex(shown[0][1], rf"^cannot connect to {where}: .*refused.*; trying again$")
                # A place that is none changes nothing.
                self.assertEqual(len(self.enter(console, "/connect nowhere")), 1)
                self.server.advance(60)
                self.assertEqual(len(self.shown), 1)

    def test_talkative(self) -> None:
        """Where no state is to be seen, it is told once, too, that it reconnects."""
        self.console(talkative=True)
        for _ in range(2):
            self.shown.clear()
            self.clients[0].wire.refuses = True
            self.clients[0].wire.cut()
            self.server.advance(60)
            self.assertEqual([style for style, _ in self.shown], ["error", "notice"])
            self.assertRegex(self.shown[0][1], r"^disconnected: .*lost")
            self.assertRegex(self.shown[1][1], r"^reconnecting in \d+ s: .*lost")
            self.clients[0].wire.refuses = False
            self.server.advance(60)
            self.assertEqual(len(self.shown), 3)

    def test_a_login_that_failed(self) -> None:
        """The name and the secret stay those that were given at the start."""
        self.server = MemoryServer(checkers=[USERS])
        self.credentials = Password("ann", "wrong", allow_plain=True)
        console = self.console(start=False)
        console.start()
        self.server.advance(1)
        reason = "not connected: the server does not know the name, or not with this secret"
        self.assertEqual(console.state, ("stopped", f"{reason}; start the console anew"))
        hint = "start the console anew to log in with another password (--user, --token-file)"
        self.assertEqual(self.shown, [("error", f"{reason}; {hint}")])

    def test_what_no_retry_heals(self) -> None:
        console = self.console()
        console.failed(ProtocolMismatch("no welcome"))
        self.server.advance(INTERVAL)
        self.assertEqual(console.state, ("stopped", "not connected: no welcome; /connect tries again"))
        self.assertEqual(self.shown[0], ("error", "not connected: no welcome"))
        # Another attempt is another matter.
        self.enter(console, "/connect there")
        self.assertRegex(console.state[1], "^connected to there as ")

    def test_connect(self) -> None:
        """The client of before is gone, and not heard any more."""
        console = self.console()
        console.read("/ping")
        shown = self.enter(console, "/connect there")
        self.assertEqual(shown, [("notice", "connected to there as 127.0.0.1:50001")])
        self.assertEqual((self.clients[0].connected, self.clients[1].connected), (False, True))
        self.enter(console, "/connect")
        self.assertRegex(console.state[1], "^connected to there as ")
        self.clients[1].wire.cut()
        self.assertEqual(console.state[0], "connected")

    def test_connecting_elsewhere_is_told(self) -> None:
        console = self.console()
        command = console.read("/connect there")
        assert command is not None
        console.do(command)
        self.assertEqual(console.state, ("waiting", "connecting to there"))

    def test_failing_at_once(self) -> None:
        console = self.console()
        command = console.read("/connect broken")
        assert command is not None
        console.do(command)
        self.assertEqual(console.state, ("waiting", "reconnecting in 1 s: no name"))

    def test_who_we_are(self) -> None:
        self.server = MemoryServer(checkers=[USERS])
        self.credentials = Password("ann", "pw", allow_plain=True)
        console = self.console()
        self.assertEqual(console.state[1], "connected to here as 127.0.0.1:50000 (ann)")

    def test_odd_welcomes(self) -> None:
        console = self.console()
        console.connected({"client_id": "x" * 10000})
        self.assertLess(len(console.state[1]), 200)
        console.close()
        console.connected({})
        self.assertEqual(console.state[1], "connected to here")

    def test_types_that_were_seen(self) -> None:
        """But for what a client has no use for."""
        console = self.console()
        asked = {"broadcast", "echo", "get_stats", "ping"}
        self.assertEqual(console.types, asked)
        self.enter(console, '/custom move {"x": 1}', "/ping", "/broadcast 1", "/stats", "/raw {", "text")
        self.assertEqual(console.types, {*asked, "move"})
        console.heard({"type": "news"})
        console.heard({"type": "welcome"})
        self.assertEqual(console.types, {*asked, "move", "news"})
        odd: list[Any] = [5, "", "a b", "\x1b", "x" * 65, None, {}]
        for kind in odd:
            console.heard({"type": kind})
        console.heard({"original_message": 5, "type": "response"})
        self.assertEqual(console.types, {*asked, "move", "news"})
        for number in range(1000):
            console.heard({"type": f"t{number}"})
        self.assertEqual(len(console.types), 200)

    def test_close(self) -> None:
        """What there is to be shown is shown, and nothing after that."""
        console = self.console()
        console.read("/pnig")
        self.server.result(console.close())
        self.assertEqual(len(self.shown), 1)
        console.read("/pnig")
        self.server.advance(INTERVAL)
        self.assertEqual(len(self.shown), 1)

    def test_closed(self) -> None:
        console = self.console()
        self.server.result(console.close())
        self.assertFalse(self.clients[0].connected)
        self.server.advance(5)
        self.assertEqual(self.clients[0].wire.connections, [])


class PlainTests(ConsoleTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.transport = StringTransport()
        self.plain = Plain(self.server.clock, self.make, "here", [Line("notice", "mind this")])
        self.plain.io.makeConnection(self.transport)
        self.statuses: list[int] = []
        self.plain.done.addCallback(self.statuses.append)
        self.plain.start()
        self.server.advance(3 * INTERVAL)

    def type(self, data: bytes) -> list[str]:
        """What is shown when something is typed."""
        self.transport.clear()
        self.plain.io.dataReceived(data)
        self.server.settle()
        self.server.advance(INTERVAL)
        return self.lines()

    def lines(self) -> list[str]:
        """What is shown."""
        shown: bytes = self.transport.value()
        return shown.decode().splitlines()

    def test_start(self) -> None:
        self.assertEqual(self.lines(), ["mind this", "connected to here as 127.0.0.1:50000"])

    def test_tell(self) -> None:
        self.plain.tell("mind that")
        self.assertEqual(self.type(b""), ["mind that"])

    def test_lines(self) -> None:
        self.assertEqual(self.type(b"/ping\n"), ["pong: 0.00 ms"])
        self.assertEqual(self.type(b"hel"), [])
        self.assertEqual(self.type(b"lo\n/pnig\n\n")[0][:8], "there is")
        self.plain.line(None)
        self.assertEqual(self.type(b""), ["the line is too long"])

    def test_exit(self) -> None:
        self.type(b"/exit\n")
        self.assertEqual(self.statuses, [0])
        self.assertFalse(self.clients[0].connected)
        self.plain.stop(1)
        self.assertEqual(self.statuses, [0])

    def test_end_of_input(self) -> None:
        self.plain.io.readConnectionLost()
        self.server.settle()
        self.assertEqual(self.statuses, [0])

    def test_interrupt_twice(self) -> None:
        self.plain.interrupt()
        self.assertEqual(self.type(b""), ["Ctrl-C again, or /exit, to leave"])
        self.type(b"x\n")
        self.plain.interrupt()
        self.server.settle()
        self.assertEqual(self.statuses, [])
        self.plain.interrupt()
        self.server.settle()
        self.assertEqual(self.statuses, [0])

    def test_held(self) -> None:
        """Ctrl-S: what others send does not pile up."""
        self.plain.io.pauseProducing()
        other = self.server.connect()
        for _ in range(100):
            other.send({"type": "broadcast", "content": "x"})
            self.server.advance(INTERVAL)
        count = self.transport.value().count(b"broadcast from")
        self.assertLessEqual(count, MOST)
        self.plain.io.resumeProducing()
        self.plain.io.resumeProducing()
        self.server.advance(INTERVAL)
        self.assertLessEqual(self.transport.value().count(b"broadcast from"), 2 * MOST)
        self.assertIn(b"more messages", self.transport.value())

    def test_the_terminal_is_gone(self) -> None:
        self.plain.io.connectionLost()
        self.server.settle()
        self.assertEqual(self.statuses, [0])


class Taker:
    """Takes lines."""

    def __init__(self) -> None:
        self.full = False
        self.taken: list[str | None] = []
        self.calls: list[str] = []

    def line(self, text: str | None) -> None:
        self.taken.append(text)

    def end(self) -> None:
        self.calls.append("end")

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")


class LinesTests(SynchronousTestCase):
    def test_ends(self) -> None:
        lines = Lines()
        self.assertEqual(lines.feed(b"a\nb\r\n\nc"), ["a", "b", ""])
        self.assertEqual(lines.end(), ["c"])
        self.assertEqual(lines.end(), [])

    def test_too_long(self) -> None:
        lines = Lines(5)
        self.assertEqual(lines.feed(b"123456\n12345\n123"), [None, "12345"])
        self.assertEqual(lines.feed(b"456"), [])
        self.assertEqual(lines.feed(b"7\nx\n123456"), [None, "x"])
        self.assertEqual(lines.end(), [None])

    def test_no_utf8(self) -> None:
        self.assertEqual(Lines().feed(b"\xff\n"), ["\udcff"])

    @given(st.lists(st.binary()), st.integers(0, 10))
    def test_any_pieces(self, pieces: list[bytes], limit: int) -> None:
        """As if it had come at once, and as `split` does it."""
        lines = Lines(limit)
        found = [line for piece in pieces for line in lines.feed(piece)] + lines.end()
        *whole, rest = b"".join(pieces).split(b"\n")
        expected = [*whole, rest] if rest else whole
        self.assertEqual(
            found,
            [
                None if len(line) > limit else line.removesuffix(b"\r").decode(errors="surrogateescape")
                for line in expected
            ],
        )


class LineIOTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.taker = Taker()
        self.io = LineIO(self.taker)
        self.transport = StringTransport()
        self.io.makeConnection(self.transport)

    def test_paused_while_full(self) -> None:
        self.io.dataReceived(b"a\n")
        self.assertEqual(self.transport.producerState, "producing")
        self.io.room()
        self.taker.full = True
        self.io.dataReceived(b"b\n")
        self.assertEqual(self.transport.producerState, "paused")
        self.io.dataReceived(b"c\n")
        self.taker.full = False
        self.io.room()
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.taker.taken, ["a", "b", "c"])

    def test_the_last_line(self) -> None:
        self.io.dataReceived(b"a\nb")
        self.io.readConnectionLost()
        self.assertEqual((self.taker.taken, self.taker.calls), (["a", "b"], ["end"]))

    def test_output_that_is_not_read(self) -> None:
        self.assertIs(self.transport.producer, self.io)
        self.io.pauseProducing()
        self.io.resumeProducing()
        self.io.stopProducing()
        self.assertEqual(self.taker.calls, ["hold", "release"])

    def test_write(self) -> None:
        self.io.write("\xe4\udcff")
        self.assertEqual(self.transport.value(), b"\xc3\xa4\\udcff\n")

    def test_close(self) -> None:
        closed = self.io.close()
        self.assertNoResult(closed)
        self.assertTrue(self.transport.disconnecting)
        self.assertIsNone(self.transport.producer)
        self.assertIs(self.io.close(), closed)
        self.io.room()
        self.io.connectionLost(Failure(ConnectionDone()))
        self.successResultOf(closed)
        self.io.connectionLost(Failure(ConnectionDone()))

    def test_no_reader(self) -> None:
        self.assertNoResult(self.io.broken)
        self.io.writeConnectionLost()
        self.successResultOf(self.io.broken)
        self.io.write("x")
        self.assertEqual(self.transport.value(), b"")
        self.successResultOf(self.io.close())

    def test_write_all(self) -> None:
        ours, theirs = os.pipe()
        self.addCleanup(os.close, ours)
        write_all(theirs, b"hello")
        self.assertEqual(os.read(ours, 100), b"hello")
        os.close(theirs)
        write_all(theirs, b"nobody")

    def test_write_all_waits(self) -> None:
        """For a reader, where writing does not."""
        import threading

        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        data = b"x" * 1000000
        thread = threading.Thread(target=write_all, args=(theirs, data))
        thread.start()
        count = 0
        while count < len(data):
            count += len(os.read(ours, 65536))
        thread.join()
        os.close(ours)
        os.close(theirs)


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "deep" / "history"
        self.history = History(self.path)

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def test_kept(self) -> None:
        self.assertEqual(self.history.load(), [])
        self.history.add("/ping")
        self.history.add("h\xe4llo")
        self.assertEqual(History(self.path).load(), ["/ping", "h\xe4llo"])
        self.assertEqual((self.mode(self.path), self.mode(self.path.parent)), (0o600, 0o700))

    def test_for_its_owner_alone(self) -> None:
        self.path.parent.mkdir(parents=True)
        self.path.write_text("old\n")
        self.path.chmod(0o644)
        self.history.add("new")
        self.assertEqual(self.mode(self.path), 0o600)
        self.assertEqual(self.history.load(), ["old", "new"])

    def test_what_is_not_kept(self) -> None:
        for line in (
            "",
            "  ",
            "a\nb",
            "x" * (MAX_LINE + 1),
            '/raw {"type":"auth"}',
            "my PASSWORD",
            "\\u0061",
        ):
            self.history.add(line)
        self.assertEqual(self.history.load(), [])
        self.history.add("x" * MAX_LINE)
        self.assertEqual(len(self.history.load()), 1)

    def test_secrets(self) -> None:
        for line in ('/custom auth {"token":"x"}', "token", '{"type": "\\u0061uth"}', "a Secret", "passwd"):
            self.assertTrue(is_secret(line), line)
        for line in ("/ping", "hello", '/custom move {"x":1}', "C:\\x"):
            self.assertFalse(is_secret(line), line)

    def test_bounded(self) -> None:
        self.path.parent.mkdir(parents=True)
        lines = [f"line {number}" for number in range(2 * MAX_LINES)]
        self.path.write_text("\n".join(lines) + "\n")
        self.assertEqual(self.history.load(), lines[-MAX_LINES:])
        self.assertEqual(len(self.path.read_text().splitlines()), 2 * MAX_LINES)
        self.history.add("one more")
        self.assertEqual(self.history.load(), [*lines[-MAX_LINES + 1 :], "one more"])
        self.assertEqual(self.path.read_text().splitlines(), [*lines[-MAX_LINES + 1 :], "one more"])
        self.assertEqual(self.mode(self.path), 0o600)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_a_huge_line(self) -> None:
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"\xff" * (5 * MAX_LINES * MAX_LINE) + b"\nx\n")
        self.assertEqual(self.history.load(), ["x"])
        self.assertLess(self.path.stat().st_size, 100)

    def test_no_place(self) -> None:
        """It is as if there were none."""
        for path in (None, Path("/dev/null/x/history"), self.path.parent.parent):
            history = History(path)
            history.add("x")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.assertEqual(history.load(), [])

    def test_where(self) -> None:
        for environment, path in (
            ({"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/tcpjson/history"),
            ({"XDG_STATE_HOME": "s", "HOME": "/h"}, "/h/.local/state/tcpjson/history"),
            ({"HOME": "/h"}, "/h/.local/state/tcpjson/history"),
        ):
            self.assertEqual(history_path(environment), Path(path))
        for environment in ({}, {"HOME": "h"}, {"XDG_STATE_HOME": ""}):
            self.assertIsNone(history_path(environment))
