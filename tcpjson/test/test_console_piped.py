"""Commands from a pipe: which answer is whose, in which order, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.protocols.basic import Int32StringReceiver
from twisted.trial.unittest import SynchronousTestCase

from tcpjson import Message, Router, Session
from tcpjson.client import Client
from tcpjson.console.piped import MAX_UNREAD, WINDOW, WINDOW_BYTES, Piped
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Ping
from tcpjson.test.hypo import given
from tcpjson.testing import MemoryClient, MemoryServer

Json = dict[str, Any]


class Later(Message, tag="later"):
    n: int = 0


class Silent(Message, tag="silent"):
    pass


class News(Message, tag="news"):
    """Has the server send something unasked, and answer or not."""

    answer: bool = True


def later_router(waiting: list[tuple[int, Deferred[Any]]]) -> Router:
    """Handlers that answer when they are told to, or not at all."""
    router = Router()

    @router.handler
    def later(session: Any, message: Later) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        waiting.append((message.n, deferred))
        return deferred

    @router.handler
    def silent(session: Any, message: Silent) -> None:
        return None

    @router.handler
    def news(session: Any, message: News) -> dict[str, Any] | None:
        session.send({"type": "headline", "text": "extra"})
        return {"type": "response", "original_message": {"n": 1}} if message.answer else None

    return router


class StrangerProtocol(Int32StringReceiver):
    """The other end of a connection to a server that is not ours."""

    def __init__(self, answer: Callable[[bytes], Iterable[Json]], welcome: Json) -> None:
        self._answer = answer
        self._welcome = welcome

    def connectionMade(self) -> None:
        self.sendString(json.dumps(self._welcome).encode())

    def stringReceived(self, string: bytes) -> None:
        for message in self._answer(string):
            self.sendString(json.dumps(message).encode())


class StrangerFactory(Factory):
    """A server that is not ours; what it got is in `received`."""

    draining = False

    def __init__(self, answer: Callable[[bytes], Iterable[Json]], welcome: Json | None = None) -> None:
        self._answer = answer
        self._welcome = {"type": "welcome", "client_id": "h:1"} if welcome is None else welcome
        self.received: list[bytes] = []
        self.numPorts = 1

    def buildProtocol(self, addr: object) -> StrangerProtocol:
        return StrangerProtocol(self._heard, self._welcome)

    def _heard(self, payload: bytes) -> Iterable[Json]:
        self.received.append(payload)
        return self._answer(payload)


def classic(payload: bytes) -> list[Json]:
    """What a classic server answers."""
    try:
        message = json.loads(payload)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        return [{"type": "echo", "original_text": payload.decode(), "from_server": True}]
    match message.get("type"):
        case "ping":
            return [{"type": "pong", "ping_timestamp": message.get("timestamp")}]
        case "echo":
            return [{"type": "echo_response", "content": message.get("content")}]
        case "broadcast":
            return [{"type": "broadcast_sent", "recipients": 0}]
        case "get_stats":
            return [{"type": "server_stats", "connected_clients": 1}]
    return [{"type": "response", "original_message": message, "from_server": True}]


class PipedTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        #: What handlers are to answer.
        self.waiting: list[tuple[int, Deferred[Any]]] = []
        self.server = MemoryServer(routers=[later_router(self.waiting)], limits=Limits(handler_timeout=300))
        #: Lines on the standard output, and on standard error.
        self.out: list[str] = []
        self.told: list[str] = []
        #: Exit statuses: one at most.
        self.statuses: list[int] = []
        self.clients: list[MemoryClient] = []
        self.places: list[str] = []

    def stranger(self, answer: Callable[[bytes], Iterable[Json]], welcome: Json | None = None) -> list[bytes]:
        """Have another server in the place of ours; returns the list of what it gets."""
        factory = StrangerFactory(answer, welcome)
        self.server.factory = factory  # type: ignore[assignment]  # as far as clients see
        return factory.received

    def make(self, where: str, **callbacks: Any) -> Client:
        if where == "nowhere":
            raise ValueError("nowhere: no such place")
        client = self.server.client(retries=0, timeout=10, **callbacks)
        self.places.append(where)
        self.clients.append(client)
        return client

    def piped(self, *lines: str, end: bool = True, start: bool = True, **options: Any) -> Piped:
        """One that is connected, and was given lines."""
        options = {"timeout": 10, **options}
        piped = Piped(
            self.server.clock,
            self.make,
            "here",
            write=self.out.append,
            complain=self.told.append,
            **options,
        )
        piped.done.addCallback(self.statuses.append)
        if start:
            self.assertTrue(self.server.result(piped.start()))
        for line in lines:
            piped.line(line)
        if end:
            piped.end()
        self.server.settle()
        return piped

    def answer(self, number: int) -> None:
        """Have a handler answer."""
        [(index, deferred)] = [
            (index, deferred) for index, (n, deferred) in enumerate(self.waiting) if n == number
        ]
        del self.waiting[index]
        deferred.callback({"type": "done", "n": number})
        self.server.settle()

    def ended(self, status: int) -> None:
        """It has ended, and nothing is left behind."""
        self.server.settle()
        self.assertEqual(self.statuses, [status])
        self.server.advance(3)
        self.assertEqual(self.server.factory.numPorts, 1)


class AnswerTests(PipedTestCase):
    def test_each_command(self) -> None:
        self.piped(
            "/ping",
            "/echo hi",
            '/echo {"a": 1}',
            "/broadcast all",
            "hello",
            '/custom move {"x": 1}',
            '/raw {"type":"echo","content":5}',
            "/json off",
            "/help",
            "",
            "/connect",
            "/connect there",
            "//slash",
        )
        self.assertEqual(
            self.out,
            [
                "pong: 0.00 ms",
                "echo: hi",
                'echo: {"a":1}',
                "broadcast: 0 recipients",
                "echo: hello",
                'response: {"type":"move","x":1,"id":-7}',
                "echo: 5",
                "json: off",
                "commands: /ping /echo /broadcast /stats /custom /raw /json /connect /help /exit",
                "welcome: Welcome to the tcpjson server",
                "welcome: Welcome to the tcpjson server",
                "echo: /slash",
            ],
        )
        self.assertEqual((self.told, self.places), ([], ["here", "here", "there"]))
        self.ended(0)

    def test_text_that_looks_like_json(self) -> None:
        """It is a text all the same; `/raw` sends it as it is."""
        self.piped('{"type":"ping"}', "{broken", "5", '/raw {"type":"echo","content":1}')
        self.assertEqual(self.out, ['echo: {"type":"ping"}', "echo: {broken", "echo: 5", "echo: 1"])
        self.ended(0)

    def test_stats_in_a_line(self) -> None:
        self.piped("/stats")
        self.assertRegex(self.out[0], r"^stats: connected_clients=1, .*, \d+ figures in details$")
        self.assertEqual(len(self.out), 1)

    def test_in_the_order_of_the_commands(self) -> None:
        self.piped('/custom later {"n": 1}', "/ping", '/custom later {"n": 2}', "text", "/pnig", "/ping")
        self.assertEqual((self.out, self.told, self.statuses), ([], [], []))
        self.answer(2)
        self.assertEqual(self.out, [])
        self.answer(1)
        self.assertEqual(
            self.out, ['done: {"n":1}', "pong: 0.00 ms", 'done: {"n":2}', "echo: text", "pong: 0.00 ms"]
        )
        self.assertEqual(self.told, ["line 5: there is no command /pnig: did you mean /ping?"])
        self.ended(1)

    def test_errors(self) -> None:
        """Each is told with the number of its line, blank ones counted."""
        self.piped("", "/raw {", "/raw", "/custom x [", "\udcff", "x" * 2000000)
        self.assertEqual(self.out, [])
        [first, second, third, fourth, fifth] = self.told
        self.assertRegex(first, r"^line 2: /raw: bad_json: ")
        self.assertRegex(second, r"^line 3: /raw: bad_frame: ")
        self.assertRegex(third, r"^line 4: /custom: bad JSON")
        self.assertEqual(fourth, "line 5: the line is not UTF-8")
        self.assertRegex(fifth, r"^line 6: too_large: ")
        self.ended(1)

    def test_an_error_of_a_handler(self) -> None:
        self.piped('/custom later {"n": "x"}')
        self.assertRegex(self.told[0], r"^line 1: /custom: bad_message: .*\$\.n")
        self.ended(1)

    def test_a_line_that_is_too_long(self) -> None:
        piped = self.piped("/ping", end=False)
        piped.line(None)
        piped.end()
        self.server.settle()
        self.assertEqual((self.out, self.told), (["pong: 0.00 ms"], ["line 2: the line is too long"]))
        self.ended(1)

    def test_json_in_its_turn(self) -> None:
        """What is asked before it, and answered after it was read, is shown as it was asked for."""
        self.piped('/custom later {"n": 1}', "/json on", "/ping", "/echo x", "hi", "/json off", "/echo y")
        self.answer(1)
        self.assertEqual(self.out[0], 'done: {"n":1}')
        self.assertEqual(self.out[1], "json: on")
        self.assertEqual(json.loads(self.out[2])["type"], "pong")
        self.assertEqual(json.loads(self.out[3])["content"], "x")
        self.assertEqual(json.loads(self.out[4])["original_text"], "hi")
        self.assertEqual(self.out[5:], ["json: off", "echo: y"])

    def test_escaped_and_cut(self) -> None:
        self.piped("\x1b[31m\u202e", "/json on", "/echo \x9bx", limit=20)
        self.assertEqual(self.out[0], "echo: \\x1b[31m\\u202e")
        self.assertRegex(
            self.out[2], r'^\{"type":"echo_respon\N{HORIZONTAL ELLIPSIS} \([\d]+ more characters\)$'
        )
        self.out.clear()
        self.piped("/echo " + "x" * 100000, "/raw {\x1b")
        self.assertEqual(len(self.out[0]), 100006)
        self.assertNotIn("\x1b", self.told[0])

    def test_exit(self) -> None:
        """What comes behind it is not read; what stands before it is answered."""
        piped = self.piped('/custom later {"n": 1}', "/exit", "/ping", end=False)
        self.assertEqual(self.statuses, [])
        self.answer(1)
        self.assertEqual((self.out, self.told), (['done: {"n":1}'], []))
        self.ended(0)
        piped.line("/ping")
        self.assertEqual(len(self.out), 1)

    def test_no_answer_in_time(self) -> None:
        self.piped('/custom later {"n": 1}', '/raw {"type":"later","n":2}', "/ping", "behind")
        self.assertEqual(len(self.waiting), 2)
        self.server.advance(11)
        self.assertEqual(
            self.told,
            [
                "line 1: /custom: no reply in time",
                "line 2: /raw: no reply in time",
                "line 4: no reply in time",
            ],
        )
        self.assertEqual(self.out, ["pong: 0.00 ms"])
        self.ended(1)

    def test_late_answers_are_nobody_elses(self) -> None:
        piped = self.piped('/raw {"type":"later","n":2}', end=False)
        self.server.advance(11)
        self.assertEqual(self.told, ["line 1: /raw: no reply in time"])
        piped.line("text")
        piped.line("/echo 1")
        self.server.settle()
        self.assertEqual(self.out, [])
        self.answer(2)
        self.assertEqual(self.out, ["echo: text", "echo: 1"])

    def test_nothing(self) -> None:
        self.piped()
        self.assertEqual((self.out, self.told), ([], []))
        self.ended(0)


class OwnPingTests(PipedTestCase):
    def test_another_answer_to_a_ping(self) -> None:
        """As of a handler of the server's own: it is shown as what it is."""
        router = Router()

        @router.handler
        def ping(session: Session, message: Ping) -> dict[str, Any]:
            return {"type": "busy"}

        self.server = MemoryServer(routers=[router])
        self.piped("/ping")
        self.assertRegex(self.out[0], "^busy: ")


class ObjectTests(PipedTestCase):
    """--json."""

    def objects(self) -> list[Json]:
        found = [json.loads(line) for line in self.out]
        for each in found:
            self.assertEqual(list(each), ["line", "command", "ok", "seconds", "message", "error"])
        return found

    def test_answers(self) -> None:
        piped = self.piped(
            "/ping", "", "hi", "/raw {", "/help", "/json on", "/connect", "/oops", as_json=True, end=False
        )
        piped.line('/custom later {"n": 1}')
        self.server.settle()
        self.server.advance(2)
        self.answer(1)
        piped.end()
        ping, text, raw, helped, on, connected, oops, later = self.objects()
        self.assertEqual((ping["line"], ping["command"], ping["ok"], ping["error"]), (1, "ping", True, None))
        self.assertEqual((ping["seconds"], ping["message"]["type"]), (0.0, "pong"))
        self.assertEqual((text["line"], text["command"], text["ok"]), (3, "text", True))
        self.assertEqual(text["message"]["original_text"], "hi")
        self.assertEqual((raw["line"], raw["command"], raw["ok"], raw["message"]), (4, "raw", False, None))
        self.assertEqual(list(raw["error"]), ["code", "message", "retry_after"])
        self.assertEqual((raw["error"]["code"], raw["error"]["retry_after"]), ("bad_json", None))
        self.assertEqual((helped["ok"], helped["seconds"], helped["message"]), (True, None, None))
        self.assertEqual((on["command"], on["ok"], on["message"]), ("json", True, None))
        self.assertEqual((connected["seconds"], connected["message"]["type"]), (0.0, "welcome"))
        self.assertEqual((oops["command"], oops["error"]["code"]), (None, "bad_command"))
        self.assertEqual((later["seconds"], later["message"]["n"]), (2.0, 1))
        # Errors are told on standard error, too.
        self.assertEqual(len(self.told), 2)
        self.ended(1)

    def test_retry_after(self) -> None:
        self.stranger(
            lambda payload: (
                [{"type": "error", "code": "busy", "retry_after": 2.5}]
                if payload == b"hi"
                else classic(payload)
            )
        )
        self.piped("hi", as_json=True)
        [shown] = self.objects()
        self.assertEqual(shown["error"], {"code": "busy", "message": "busy", "retry_after": 2.5})

    def test_nothing_to_obey(self) -> None:
        self.piped("/echo \x9b\x1b\u2028", as_json=True)
        self.assertTrue(self.out[0].isprintable())
        self.assertEqual(self.objects()[0]["message"]["content"], "\x9b\x1b\u2028")

    def test_what_others_send(self) -> None:
        self.piped(end=False, as_json=True, listen=True)
        self.server.connect().send({"type": "broadcast", "content": "x"})
        [heard] = self.objects()
        self.assertEqual(
            (heard["line"], heard["command"], heard["ok"], heard["error"]), (None, None, True, None)
        )
        self.assertEqual(heard["message"]["content"], "x")


class FenceTests(PipedTestCase):
    """Which answer without an `id` is whose."""

    def test_slow_handlers(self) -> None:
        """A text waits for the message before it, a request with an `id` for none."""
        self.piped('/raw {"type":"later","n":1}', "text", "/ping", '/raw {"type":"ping"}')
        self.assertEqual(self.out, [])
        self.answer(1)
        self.assertEqual(self.out[:3], ['done: {"n":1}', "echo: text", "pong: 0.00 ms"])
        self.assertRegex(self.out[3], r"^pong: .*client_id")
        self.ended(0)

    def test_ids_of_ones_own(self) -> None:
        """The fence overtakes such a message; the answer carries its `id`."""
        self.piped(
            '/raw {"type":"later","n":1,"id":"a"}',
            '/raw {"type":"later","n":2,"id":5}',
            '/raw {"type":"ping","id":5}',
            '/raw {"type":"ping","id":5}',
            '/raw {"type":"ping","id":null}',
            "text",
        )
        self.answer(2)
        self.answer(1)
        self.assertEqual(self.out[:2], ['done: {"n":1}', 'done: {"n":2}'])
        for line in self.out[2:5]:
            self.assertRegex(line, r"^pong: ")
        self.assertEqual(self.out[5:], ["echo: text"])
        self.ended(0)

    def test_an_id_that_is_not_answered(self) -> None:
        self.piped('/raw {"type":"silent","id":"a"}', '/raw {"type":"ping","id":-9}', "text")
        self.assertEqual(self.out, [])
        self.server.advance(11)
        # The client takes numbers below 0 for its own.
        self.assertEqual(self.out, ["raw: no answer", "echo: text"])
        self.assertEqual(self.told, ["line 1: /raw: no reply in time"])

    def test_no_answer(self) -> None:
        self.piped('/raw {"type":"silent"}', '/raw {"type":"pong"}', "text")
        self.assertEqual(self.out[0], "raw: no answer")
        self.assertEqual(self.out[2], "echo: text")
        self.ended(0)

    def test_what_comes_unasked(self) -> None:
        """It is taken for an answer only where no answer comes."""
        self.piped('/raw {"type":"news"}', "text", '/raw {"type":"news","answer":false}', "more")
        self.assertEqual(
            self.out, ['response: {"n":1}', "echo: text", 'headline: {"text":"extra"}', "echo: more"]
        )

    def test_it_is_listened_to_all_the_same(self) -> None:
        piped = self.piped('/raw {"type":"news"}', listen=True)
        self.assertEqual(self.out, ['headline: {"text":"extra"}', 'response: {"n":1}'])
        piped.stop(130)

    def test_only_one_answer(self) -> None:
        self.stranger(lambda payload: [*classic(payload), {"type": "echo", "original_text": "again"}])
        piped = self.piped("a", listen=True)
        # That behind the fence, too.
        self.assertEqual(self.out, ["echo: again", "echo: a", "echo: again"])
        piped.stop(130)

    def test_odd_types(self) -> None:
        odd: list[Json] = [{"type": {}}, {"type": ["echo"]}, {"type": None, "id": {}}, {}]
        self.stranger(lambda payload: [*odd, *classic(payload)])
        self.piped("a", "b")
        self.assertEqual(self.out, ["echo: a", "echo: b"])

    def test_broadcasts_are_no_answers(self) -> None:
        self.piped('/raw {"type":"later","n":1}')
        self.server.connect().send({"type": "broadcast", "content": "x"})
        self.answer(1)
        self.assertEqual(self.out, ['done: {"n":1}'])

    def test_a_pong_without_a_mark(self) -> None:
        """From a server that does not say which ping it answers."""
        self.stranger(
            lambda payload: (
                [{"type": "pong"}] if b'"ping"' in payload else [{"type": "echo", "original_text": "x"}]
            )
        )
        self.piped("x", "y")
        self.assertEqual(self.out, ["echo: x", "echo: x"])
        self.ended(0)

    def test_a_classic_server(self) -> None:
        received = self.stranger(classic)
        self.piped(
            "/ping",
            "text",
            '/raw {"type":"ping"}',
            "/ping",
            "/raw {broken",
            '/raw {"type":"get_stats","id":5}',
            '/custom move {"x":1}',
            "/echo 5",
            "/stats",
            "/broadcast x",
        )
        self.assertEqual(self.out[0], "pong: 0.00 ms")
        self.assertEqual(self.out[1], "echo: text")
        self.assertEqual(self.out[2], 'pong: {"ping_timestamp":null}')
        self.assertEqual(self.out[3], "pong: 0.00 ms")
        self.assertEqual(self.out[4], "echo: {broken")
        self.assertEqual(self.out[5], "stats: connected_clients=1")
        self.assertRegex(self.out[6], r'^response: \{"type":"move","x":1,')
        self.assertEqual(self.out[7:], ["echo: 5", "stats: connected_clients=1", "broadcast: 0 recipients"])
        self.assertNotIn(b'"id":-', b"".join(received))
        self.ended(0)

    def test_a_classic_server_is_asked_one_thing_at_a_time(self) -> None:
        received = self.stranger(lambda payload: [])
        self.piped("/echo 1", "/echo 2", "/echo 3", end=False)

        def asked() -> list[Any]:
            messages = map(json.loads, received)
            return [message["content"] for message in messages if message["type"] == "echo"]

        self.assertEqual(asked(), [1])
        self.server.advance(11)
        self.assertEqual(asked(), [1, 2])

    @given(st.data())
    def test_whatever_is_slow(self, data: Any) -> None:
        """Each command gets its own answer, in order, whenever handlers answer."""
        self.setUp()
        lines, expected, slow = [], [], []
        for number in range(data.draw(st.integers(0, 12))):
            kind = data.draw(
                st.sampled_from(["ping", "echo", "text", "raw", "later", "slow", "own", "bad", "none"])
            )
            line, answer = {
                "ping": ("/ping", "pong: "),
                "echo": (f"/echo {number}", f"echo: {number}"),
                "text": (f"text {number}", f"echo: text {number}"),
                "raw": (f'/raw {{"type":"echo","content":{number}}}', f"echo: {number}"),
                "later": (f'/custom later {{"n":{number}}}', f'done: {{"n":{number}}}'),
                "slow": (f'/raw {{"type":"later","n":{number}}}', f'done: {{"n":{number}}}'),
                "own": (f'/raw {{"type":"later","n":{number},"id":{number}}}', f'done: {{"n":{number}}}'),
                "bad": (f"/raw {{{number}", f"line {number + 1}: /raw: bad_json: "),
                "none": ('/raw {"type":"silent"}', "raw: no answer"),
            }[kind]
            lines.append(line)
            expected.append((kind == "bad", answer))
            if kind in ("later", "slow", "own"):
                slow.append(number)
        self.piped(*lines)
        for number in data.draw(st.permutations(slow)):
            self.answer(number)
        for failed, shown in ((False, self.out), (True, self.told)):
            wanted = [answer for bad, answer in expected if bad == failed]
            self.assertEqual(len(shown), len(wanted), (lines, self.out, self.told))
            for line, answer in zip(shown, wanted, strict=True):
                self.assertTrue(line.startswith(answer), (line, answer))
        self.ended(int(any(bad for bad, _ in expected)))


class WindowTests(PipedTestCase):
    """How much is under way at once."""

    def test_so_many(self) -> None:
        piped = self.piped(end=False)
        self.clients[0].wire.stall()
        rooms: list[int] = []
        piped.room = lambda: rooms.append(self.clients[0].waiting)
        for _ in range(WINDOW):
            piped.line("/ping")
            self.assertFalse(piped.full)
        rooms.clear()
        piped.line("/ping")
        self.assertTrue(piped.full)
        self.assertEqual((self.clients[0].waiting, rooms), (WINDOW, []))
        self.clients[0].wire.go_on()
        self.assertFalse(piped.full)
        self.assertEqual(len(self.out), WINDOW + 1)
        self.assertTrue(rooms)

    def test_so_many_bytes(self) -> None:
        piped = self.piped(end=False)
        self.clients[0].wire.stall()
        count = 0
        while not piped.full:
            piped.line("/echo " + "x" * 99994)
            count += 1
        self.assertEqual(count, WINDOW_BYTES // 100000 + 1)
        self.clients[0].wire.go_on()
        self.assertEqual(len(self.out), count)

    def test_one_that_is_larger_goes_alone(self) -> None:
        self.server = MemoryServer(limits=Limits(max_length=4 * WINDOW_BYTES))
        self.piped("/ping", "x" * 2 * WINDOW_BYTES, "/ping")
        self.assertEqual([len(line) > 20 for line in self.out], [False, True, False])
        self.ended(0)

    def test_all_is_answered(self) -> None:
        piped = self.piped(end=False)
        for number in range(3 * WINDOW):
            piped.line(f"/echo {number}")
        piped.end()
        self.server.settle()
        self.assertEqual(self.out, [f"echo: {number}" for number in range(3 * WINDOW)])
        self.ended(0)

    def test_held(self) -> None:
        """Nobody reads the output: nothing new is begun."""
        piped = self.piped('/custom later {"n":1}', end=False)
        piped.hold()
        self.assertTrue(piped.full)
        piped.line("/echo 2")
        self.answer(1)
        self.assertEqual(self.out, ['done: {"n":1}'])
        rooms: list[None] = []
        piped.room = lambda: rooms.append(None)
        piped.end()
        self.server.settle()
        self.assertEqual((self.statuses, rooms), ([], []))
        piped.release()
        self.server.settle()
        self.assertEqual(self.out, ['done: {"n":1}', "echo: 2"])
        self.assertEqual(self.told, [])
        self.ended(0)

    def test_held_while_others_send(self) -> None:
        """What they send is kept up to a bound; that the rest is gone is told."""
        self.server = MemoryServer(limits=Limits(max_length=MAX_UNREAD))
        piped = self.piped(listen=True)
        other = self.server.connect()
        piped.hold()
        for _ in range(MAX_UNREAD // 1000000 + 4):
            other.send({"type": "broadcast", "content": "x" * 1000000})
        kept = len(self.out)
        self.assertEqual(kept, MAX_UNREAD // 1000000 + 1)
        piped.release()
        self.assertEqual(self.told, ["3 messages of others were left out: nobody read the output"])
        other.send({"type": "broadcast", "content": "y"})
        self.assertEqual(len(self.out), kept + 1)
        piped.release()
        self.assertEqual(len(self.told), 1)


class EndTests(PipedTestCase):
    """Connections that cannot be made, are lost, and others in their place."""

    def test_nobody_there(self) -> None:
        self.server.stop()
        piped = self.piped(start=False, end=False)
        self.assertFalse(self.server.result(piped.start()))
        self.assertEqual(self.statuses, [1])
        self.assertEqual(len(self.told), 1)
        self.assertRegex(self.told[0], r"^cannot connect to here: .*refused")
        self.server.advance(100)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_nobody_says_anything(self) -> None:
        self.stranger(lambda payload: [], {})
        piped = self.piped(start=False, end=False)
        self.assertFalse(self.server.result(piped.start(), 11))
        self.assertRegex(self.told[0], r"^cannot connect to here: ")
        self.assertEqual(self.statuses, [1])

    def test_no_such_place(self) -> None:
        piped = Piped(
            self.server.clock,
            self.make,
            "nowhere",
            write=self.out.append,
            complain=self.told.append,
            timeout=10,
        )
        self.assertRaises(ValueError, piped.start)

    def test_lost(self) -> None:
        piped = self.piped('/custom later {"n":1}', "/ping", "/raw {}", "/pnig", end=False)
        piped.line('/raw {"type":"later","n":2}')
        self.server.settle()
        self.clients[0].wire.cut()
        self.assertEqual(len(self.out), 2)
        self.assertRegex(self.told[0], r"^line 1: /custom: .*lost")
        self.assertRegex(self.told[1], r"^line 4: there is no command")
        self.assertRegex(self.told[2], r"^line 5: /raw: .*lost")
        self.assertRegex(self.told[3], r"^the rest of the input was not sent: .*lost")
        self.assertEqual(len(self.told), 4)
        self.ended(1)
        self.assertEqual(len(self.clients), 1)

    def test_lost_with_lines_in_hand(self) -> None:
        """They are not tried one by one."""
        piped = self.piped(end=False)
        self.clients[0].wire.stall()
        for _ in range(WINDOW + 100):
            piped.line("/ping")
        piped.end()
        self.clients[0].wire.stalled = False
        self.clients[0].wire.cut()
        self.assertEqual(len(self.told), WINDOW + 1)
        self.assertRegex(self.told[-1], r"^the rest of the input was not sent")
        self.ended(1)

    def test_lost_when_all_else_is_done(self) -> None:
        self.piped('/custom later {"n":1}')
        self.clients[0].wire.cut()
        self.assertEqual(len(self.told), 1)
        self.ended(1)

    def test_lost_with_the_input_open(self) -> None:
        self.piped("/ping", end=False)
        self.clients[0].wire.cut()
        self.assertRegex(self.told[0], r"^the rest of the input was not sent")
        self.ended(1)

    def test_a_fatal_error_is_the_answer(self) -> None:
        self.server = MemoryServer(limits=Limits(max_length=5000))
        self.piped('/raw {"type":"later","n":1}', "x" * 6000)
        self.assertRegex(self.told[0], r"^line 2: too_large: .*max_length")

        def refuse(payload: bytes) -> list[Json]:
            return [{"type": "error", "code": "too_large", "fatal": True}] if payload == b"x" else []

        self.told.clear()
        self.stranger(refuse)
        self.piped("x")
        self.clients[-1].wire.cut()
        self.assertRegex(self.told[0], r"^line 1: too_large$")

    def test_the_server_shuts_down(self) -> None:
        piped = self.piped('/raw {"type":"later","n":1}', end=False)
        self.server.factory.drain()
        self.server.settle()
        piped.line("/ping")
        piped.end()
        self.server.settle()
        self.answer(1)
        self.server.advance(31)
        self.assertEqual(self.statuses, [1])

    def test_connect_waits_for_the_answers(self) -> None:
        self.piped('/custom later {"n":1}', "/connect there", "/echo 2", "/connect", "/echo 3")
        self.assertEqual(self.places, ["here"])
        self.answer(1)
        self.assertEqual(self.places, ["here", "there", "there"])
        welcome = "welcome: Welcome to the tcpjson server"
        self.assertEqual(self.out, ['done: {"n":1}', welcome, "echo: 2", welcome, "echo: 3"])
        self.ended(0)

    def test_connect_to_nowhere(self) -> None:
        self.piped("/ping", "/connect nowhere", "/ping")
        self.assertEqual(self.out, ["pong: 0.00 ms"])
        self.assertEqual(self.told[0], "line 2: /connect: nowhere: no such place")
        self.assertRegex(self.told[1], r"^the rest of the input was not sent")
        self.ended(1)

    def test_connect_in_vain(self) -> None:
        piped = self.piped("/ping", end=False)
        self.server.stop()
        piped.line("/connect")
        self.assertTrue(piped.full)
        piped.line("/ping")
        piped.end()
        self.server.settle()
        self.assertRegex(self.told[0], r"^line 2: /connect: .*refused")
        self.assertRegex(self.told[1], r"^the rest of the input was not sent")
        self.assertEqual((len(self.told), self.statuses), (2, [1]))

    def test_the_last_is_connect_in_vain(self) -> None:
        self.piped("/ping", "/connect nowhere")
        self.assertEqual(len(self.told), 1)
        self.ended(1)

    def test_stopped(self) -> None:
        piped = self.piped('/custom later {"n":1}', "text", end=False)
        piped.stop(130)
        piped.stop(1)
        self.server.settle()
        self.assertEqual((self.out, self.told), ([], []))
        self.ended(130)

    def test_listening_goes_on(self) -> None:
        self.piped("/ping", listen=True)
        self.server.connect().send({"type": "broadcast", "content": "x\x1b"})
        self.assertRegex(self.out[1], r"^broadcast from \S+: x\\x1b$")
        self.assertEqual(self.statuses, [])
        self.clients[0].wire.cut()
        self.assertRegex(self.told[0], r"lost")
        self.ended(1)

    def test_others_are_not_shown_unasked(self) -> None:
        self.piped(end=False)
        self.server.connect().send({"type": "broadcast", "content": "x"})
        self.assertEqual(self.out, [])

    def test_done_before_it_was_lost(self) -> None:
        """The end of the connection is no failure of what was answered before."""
        piped = self.piped("/ping", end=False)
        piped.hold()
        piped.end()
        self.server.settle()
        self.clients[0].wire.cut()
        self.assertEqual(self.told, [])
        self.ended(0)
