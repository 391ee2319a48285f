"""The three applications of docs/examples: chat.py, game.py, jobs.py, in memory and by twistd."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import signal
import tracemalloc
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.trial.unittest import SynchronousTestCase

import tcpjson
from tcpjson import Limits
from tcpjson.core.values import MAX_DEPTH
from tcpjson.test import hypo  # noqa: F401  # it has Hypothesis keep its files out of the checkout
from tcpjson.testing import MemoryServer
from tests.documents import EXAMPLES
from tests.harness import Message, ServerTestCase

APPLICATIONS = ("chat", "game", "jobs")


def load(name: str) -> Any:
    """A module of docs/examples, new, with tables of its own."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Guest:
    """A client of a server in memory. What it sends has an `id`, and only the reply to it has the same."""

    def __init__(self, server: MemoryServer) -> None:
        self.peer = server.connect()
        self.peer.receive()
        self._heard: list[Message] = []
        self._numbers = itertools.count(1)

    def ask(self, kind: str, **fields: object) -> Message:
        """The reply to a request, without what all replies have."""
        [reply] = self.ask_all((kind, fields))
        return reply

    def ask_all(self, *requests: tuple[str, dict[str, Any]]) -> list[Message]:
        """The replies to requests that are sent at once."""
        numbers = [next(self._numbers) for _ in requests]
        self.peer.send(
            *(
                {"type": kind, **fields, "id": number}
                for (kind, fields), number in zip(requests, numbers, strict=True)
            )
        )
        self._listen()
        replies = {message["id"]: message for message in self._heard if "id" in message}
        self._heard = [message for message in self._heard if "id" not in message]
        if sorted(replies) != numbers:
            raise AssertionError(f"{numbers} were answered with {replies}")
        return [_bare(replies[number]) for number in numbers]

    def told(self) -> list[Message]:
        """What came unasked since the last call."""
        self._listen()
        heard, self._heard = self._heard, []
        return [_bare(message) for message in heard]

    def _listen(self) -> None:
        self._heard += self.peer.receive()


def _bare(message: Message) -> Message:
    return {name: value for name, value in message.items() if name not in ("id", "timestamp")}


def problem(code: str, text: str, **more: object) -> Message:
    """The error that a request is answered with."""
    return {"type": "error", "code": code, "message": text, "fatal": False, **more}


class Case(SynchronousTestCase):
    """Tests of one application, on a server of its own."""

    name: str

    def setUp(self) -> None:
        self.module = load(self.name)
        self.server = self.serve()

    def serve(self, **options: Any) -> MemoryServer:
        return MemoryServer(routers=[self.module.router], **options)

    def guests(self, count: int) -> list[Guest]:
        return [Guest(self.server) for _ in range(count)]

    def login(self, name: str) -> Guest:
        """A client of a server that asks who it is."""
        guest = Guest(self.server)
        self.assertEqual(
            guest.ask("auth", mechanism="plain", username=name, password="secret")["status"], "authenticated"
        )
        return guest

    def assert_holds(self, machine: type[RuleBasedStateMachine], examples: int = 100) -> None:
        run = settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            run_machine(machine, settings=run)
        except Exception as error:
            # Trial leaves the notes out, and they tell what happened.
            notes = getattr(error, "__notes__", ())
            raise AssertionError("\n".join([f"{type(error).__name__}: {error}", *notes])) from None


def checkers() -> list[Any]:
    people = ("alice", "bob", "worker-1")
    return [InMemoryUsernamePasswordDatabaseDontUse(**dict.fromkeys(people, b"secret"))]


class SourceTests(SynchronousTestCase):
    """They are copied: they are short, and use nothing but what is there to be used."""

    def test_nothing_private(self) -> None:
        for name in APPLICATIONS:
            source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
            self.assertLess(len(source.splitlines()), 150, name)
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    self.assertEqual([alias.name for alias in node.names if "tcpjson" in alias.name], [])
                elif isinstance(node, ast.ImportFrom):
                    module = str(node.module)
                    package = module.partition(".")[0]
                    self.assertIn(
                        package,
                        ("tcpjson", "msgspec", "twisted", "collections", "itertools", "math", "typing"),
                    )
                    if package == "tcpjson":
                        self.assertEqual(module, "tcpjson")
                        self.assertEqual({alias.name for alias in node.names} - set(tcpjson.__all__), set())
                    self.assertFalse([alias.name for alias in node.names if alias.name.startswith("_")])
                elif isinstance(node, ast.Attribute):
                    self.assertFalse(node.attr.startswith("_"), f"{name}: {node.attr}")
                elif isinstance(node, ast.Name):
                    self.assertFalse(node.id.startswith("_"), f"{name}: {node.id}")


class ChatTests(Case):
    name = "chat"

    def here(self, count: int, room: str = "tea") -> list[Guest]:
        """Clients in a room, called a, b, c..."""
        guests = self.guests(count)
        for guest, name in zip(guests, "abcdefghij", strict=False):
            self.assertEqual(guest.ask("nick", name=name), {"type": "nick_ok"})
            self.assertEqual(guest.ask("join", room=room)["type"], "join_ok")
        for guest in guests:
            guest.told()
        return guests

    def test_a_talk(self) -> None:
        alice, bob, carol = self.guests(3)
        alice.ask("nick", name="alice")
        bob.ask("nick", name="bob")
        self.assertEqual(alice.ask("rooms"), {"type": "rooms_ok", "rooms": {}})
        self.assertEqual(alice.ask("join", room="tea"), {"type": "join_ok", "who": ["alice"], "history": []})
        self.assertEqual(alice.ask("say", room="tea", text="hm"), {"type": "say_ok", "recipients": 0})
        reply = bob.ask("join", room="tea")
        self.assertEqual(reply["who"], ["alice", "bob"])
        self.assertEqual([_bare(line) for line in reply["history"]], [said("tea", "alice", "hm")])
        self.assertRegex(reply["history"][0]["timestamp"], r"^2024-01-01T12:00:00")
        self.assertEqual(bob.ask("say", room="tea", text="oh"), {"type": "say_ok", "recipients": 1})
        self.assertEqual(
            alice.told(), [{"type": "joined", "room": "tea", "name": "bob"}, said("tea", "bob", "oh")]
        )
        self.assertEqual(bob.ask("who", room="tea"), {"type": "who_ok", "who": ["alice", "bob"]})
        self.assertEqual(carol.ask("rooms"), {"type": "rooms_ok", "rooms": {"tea": 2}})
        self.assertEqual(alice.ask("leave", room="tea"), {"type": "leave_ok"})
        self.assertEqual(bob.told(), [{"type": "left", "room": "tea", "name": "alice"}])
        self.assertEqual((alice.told(), carol.told()), ([], []))

    def test_all_at_once(self) -> None:
        """What came in one read is answered in its order."""
        guest = Guest(self.server)
        replies = guest.ask_all(
            ("nick", {"name": "a"}), ("join", {"room": "tea"}), ("say", {"room": "tea", "text": "x"})
        )
        self.assertEqual([reply["type"] for reply in replies], ["nick_ok", "join_ok", "say_ok"])

    def test_written_once(self) -> None:
        guests = self.here(5)
        before = self.server.factory.stats.broadcasts
        guests[0].ask("say", room="tea", text="x")
        self.assertEqual(self.server.factory.stats.broadcasts, before + 1)
        payloads = {payload for guest in guests[1:] for payload in guest.peer.receive_payloads()}
        self.assertEqual(len(payloads), 1)

    def test_names(self) -> None:
        alice, bob = self.guests(2)
        taken = problem("forbidden", "somebody else has this name: choose another")
        self.assertEqual(
            bob.ask("join", room="tea"), problem("forbidden", "say who you are first, with nick")
        )
        self.assertEqual(alice.ask("nick", name="a"), {"type": "nick_ok"})
        self.assertEqual(bob.ask("nick", name="a"), taken)
        # The same again, another, and then the first is free.
        self.assertEqual(alice.ask("nick", name="a"), {"type": "nick_ok"})
        self.assertEqual(alice.ask("nick", name="b"), {"type": "nick_ok"})
        self.assertEqual(bob.ask("nick", name="b"), taken)
        self.assertEqual(bob.ask("nick", name="a"), {"type": "nick_ok"})
        alice.ask("join", room="tea")
        self.assertEqual(alice.ask("nick", name="c"), problem("forbidden", "leave your rooms first"))
        alice.peer.close()
        self.assertEqual(bob.ask("nick", name="b"), {"type": "nick_ok"})

    def test_wrong_names(self) -> None:
        [guest] = self.here(1)
        for name in ("", "x" * 21, "a b", "a\n", "\n", "a\u202eb", "\x1b", "a\x00", None, 7, ["a"]):
            for kind, fields in (("nick", {"name": name}), ("join", {"room": name})):
                self.assertEqual(guest.ask(kind, **fields)["code"], "bad_message", (kind, name))
        for text in ("", "x" * 501, None):
            self.assertEqual(guest.ask("say", room="tea", text=text)["code"], "bad_message")
        for name in ("x" * 20, "Zoë", "a-b_c", "7"):
            self.assertEqual(guest.ask("join", room=name)["type"], "join_ok")
        self.assertEqual(guest.ask("say", room="tea", text="\U0001f600" * 500)["type"], "say_ok")

    def test_who_has_logged_in(self) -> None:
        self.server = self.serve(checkers=checkers())
        alice = self.login("alice")
        self.assertEqual(alice.ask("nick", name="bob"), problem("forbidden", "you have logged in as alice"))
        self.assertEqual(alice.ask("nick", name="alice"), {"type": "nick_ok"})

    def test_not_in_the_room(self) -> None:
        alice, bob = self.guests(2)
        bob.ask("nick", name="b")
        alice.ask("nick", name="a")
        alice.ask("join", room="tea")
        for guest in (bob, Guest(self.server)):
            for kind, more in (("say", {"text": "x"}), ("leave", {}), ("who", {})):
                for room in ("tea", "nowhere"):
                    reply = guest.ask(kind, room=room, **more)
                    self.assertEqual(reply, problem("forbidden", f"join {room} first"))
        self.assertEqual(alice.told(), [])
        self.assertEqual(list(self.module.rooms), ["tea"])

    def test_join_twice(self) -> None:
        alice, bob = self.here(2)
        self.assertEqual(alice.ask("join", room="tea")["who"], ["a", "b"])
        self.assertEqual(bob.told(), [])

    def test_bounds(self) -> None:
        module = self.module
        module.MAX_MEMBERS, module.MAX_ROOMS, module.MAX_JOINED = 2, 3, 2
        alice, bob, carol = self.guests(3)
        for guest, name in ((alice, "a"), (bob, "b"), (carol, "c")):
            guest.ask("nick", name=name)
        full = problem("full", "there is no room left", retry_after=60)
        alice.ask("join", room="1")
        bob.ask("join", room="1")
        self.assertEqual(carol.ask("join", room="1"), full)
        alice.ask("join", room="2")
        self.assertEqual(alice.ask("join", room="3"), problem("full", "you are in too many rooms: leave one"))
        carol.ask("join", room="3")
        self.assertEqual(carol.ask("join", room="4"), full)
        self.assertEqual(sorted(module.rooms), ["1", "2", "3"])
        carol.ask("leave", room="3")
        self.assertEqual(carol.ask("join", room="4")["type"], "join_ok")

    def test_history(self) -> None:
        [alice] = self.here(1)
        for number in range(30):
            alice.ask("say", room="tea", text=str(number))
        bob = Guest(self.server)
        bob.ask("nick", name="bob")
        history = bob.ask("join", room="tea")["history"]
        self.assertEqual([line["text"] for line in history], [str(number) for number in range(10, 30)])

    def test_gone(self) -> None:
        """Who goes, however, has left all rooms; and of an empty one nothing is left."""
        alice, bob, carol = self.here(3)
        alice.ask("join", room="two")
        bob.ask("join", room="two")
        alice.told()
        bob.peer.reset()
        self.assertEqual(
            sorted(message["room"] for message in alice.told() if message["type"] == "left"), ["tea", "two"]
        )
        self.assertEqual(carol.told(), [{"type": "left", "room": "tea", "name": "b"}])
        alice.peer.close()
        carol.peer.close()
        self.assertEqual((self.module.rooms, self.module.sessions), ({}, {}))

    def test_a_slow_client(self) -> None:
        """It loses its connection when too much waits for it; the others go on, and are told."""
        self.server = self.serve(limits=Limits(max_queue=100_000))
        alice, bob, slow = self.here(3)
        slow.peer.stop_reading()
        for _ in range(100):
            self.assertEqual(alice.ask("say", room="tea", text="\U0001f600" * 500)["type"], "say_ok")
        self.assertEqual(alice.ask("say", room="tea", text="x")["recipients"], 1)
        self.server.advance(5)
        self.assertTrue(slow.peer.aborted)
        slow.peer.reset()
        self.assertEqual([message["type"] for message in bob.told()][-2:], ["said", "left"])
        self.assertEqual(alice.ask("who", room="tea")["who"], ["a", "b"])

    def test_whoever_comes_and_goes(self) -> None:
        self.assert_holds(Talk)


def said(room: str, name: str, text: str) -> Message:
    return {"type": "said", "room": room, "name": name, "text": text}


NAMES = st.sampled_from(["a", "b", "c"])
ROOMS = st.sampled_from(["x", "y", "z"])


class Talk(RuleBasedStateMachine):
    """Some people in some rooms: each is told all that happens in its rooms, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.module = load("chat")
        self.module.MAX_MEMBERS, self.module.MAX_ROOMS, self.module.MAX_JOINED = 3, 2, 1
        self.module.HISTORY = 3
        self.server = MemoryServer(routers=[self.module.router])
        self.guests: list[Guest] = []
        self.names: dict[Guest, str] = {}
        self.rooms: dict[str, list[Guest]] = {}
        self.lines: dict[str, list[Message]] = {}
        self.expected: dict[Guest, list[Message]] = {}

    def one(self, data: st.DataObject) -> Guest:
        return self.guests[data.draw(st.integers(0, len(self.guests) - 1))]

    def tell(self, room: str, message: Message, but: Guest) -> None:
        for member in self.rooms.get(room, ()):
            if member is not but:
                self.expected[member].append(message)

    def part(self, guest: Guest, room: str) -> None:
        self.rooms[room].remove(guest)
        self.tell(room, {"type": "left", "room": room, "name": self.names[guest]}, guest)
        if not self.rooms[room]:
            del self.rooms[room], self.lines[room]

    @precondition(lambda self: len(self.guests) < 5)
    @rule()
    def come(self) -> None:
        guest = Guest(self.server)
        self.guests.append(guest)
        self.expected[guest] = []

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), name=NAMES)
    def nick(self, data: st.DataObject, name: str) -> None:
        guest = self.one(data)
        inside = any(guest in members for members in self.rooms.values())
        taken = any(name == other and guest is not owner for owner, other in self.names.items())
        reply = guest.ask("nick", name=name)
        assert (reply["type"] == "error") == (inside or taken), reply
        if not (inside or taken):
            self.names[guest] = name

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), room=ROOMS)
    def join(self, data: st.DataObject, room: str) -> None:
        guest = self.one(data)
        members = self.rooms.get(room, [])
        reply = guest.ask("join", room=room)
        if guest not in members:
            full = len(members) >= 3 or (not members and len(self.rooms) >= 2)
            if guest not in self.names:
                assert reply["code"] == "forbidden"
                return
            if full or any(guest in others for others in self.rooms.values()):
                assert reply["code"] == "full"
                return
            self.tell(room, {"type": "joined", "room": room, "name": self.names[guest]}, guest)
            self.rooms.setdefault(room, []).append(guest)
            self.lines.setdefault(room, [])
        assert reply["who"] == [self.names[member] for member in self.rooms[room]]
        assert [_bare(line) for line in reply["history"]] == self.lines[room]

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), room=ROOMS)
    def leave(self, data: st.DataObject, room: str) -> None:
        guest = self.one(data)
        reply = guest.ask("leave", room=room)
        assert (reply["type"] == "leave_ok") == (guest in self.rooms.get(room, ()))
        if reply["type"] == "leave_ok":
            self.part(guest, room)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), room=ROOMS, text=st.sampled_from(["1", "2"]))
    def say(self, data: st.DataObject, room: str, text: str) -> None:
        guest = self.one(data)
        members = self.rooms.get(room, ())
        reply = guest.ask("say", room=room, text=text)
        if guest not in members:
            assert reply["code"] == "forbidden"
            return
        assert reply == {"type": "say_ok", "recipients": len(members) - 1}
        line = said(room, self.names[guest], text)
        self.lines[room] = [*self.lines[room], line][-3:]
        self.tell(room, line, guest)

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), reset=st.booleans())
    def go(self, data: st.DataObject, reset: bool) -> None:
        guest = self.one(data)
        self.guests.remove(guest)
        for room in [room for room, members in self.rooms.items() if guest in members]:
            self.part(guest, room)
        self.names.pop(guest, None)
        if reset:
            guest.peer.reset()
        else:
            guest.peer.close()

    @invariant()
    def each_is_told(self) -> None:
        for guest in self.guests:
            told = guest.told()
            assert told == self.expected[guest], (told, self.expected[guest])
            self.expected[guest] = []

    @invariant()
    def nothing_else_is_kept(self) -> None:
        assert set(self.module.rooms) == set(self.rooms)
        assert set(self.module.sessions) == set(self.names.values())

    def teardown(self) -> None:
        for guest in self.guests:
            guest.peer.close()
        assert (self.module.rooms, self.module.sessions) == ({}, {})
        self.server.stop()
        assert self.server.clock.getDelayedCalls() == []


class GameTests(Case):
    name = "game"

    def playing(self, count: int) -> list[Guest]:
        guests = self.guests(count)
        for number, guest in enumerate(guests, 1):
            self.assertEqual(guest.ask("play", name="p")["player"], number)
        for guest in guests:
            guest.told()
        return guests

    def states(self, guest: Guest) -> list[dict[int, tuple[float, float]]]:
        """Where all players are, in each state that came; nothing else did."""
        told = guest.told()
        self.assertEqual({message["type"] for message in told} - {"state"}, set())
        return [{number: (x, y) for number, x, y in message["players"]} for message in told]

    def test_who_plays(self) -> None:
        alice, bob, carol = self.guests(3)
        self.assertEqual(
            alice.ask("play", name="alice"),
            {"type": "play_ok", "player": 1, "names": {"1": "alice"}, "size": 1000.0, "speed": 200.0},
        )
        # Names need not differ.
        self.assertEqual(bob.ask("play", name="alice")["names"], {"1": "alice", "2": "alice"})
        self.assertEqual(alice.told(), [{"type": "came", "player": 2, "name": "alice"}])
        self.assertEqual(bob.ask("quit"), {"type": "quit_ok"})
        self.assertEqual(alice.told(), [{"type": "went", "player": 2}])
        self.server.advance(1)
        # Who does not play is told nothing.
        self.assertEqual((bob.told(), carol.told()), ([], []))
        Guest(self.server).peer.close()
        self.assertEqual({message["type"] for message in alice.told()}, {"state"})
        for guest in (bob, carol):
            for request in (("quit", {}), ("steer", {"x": 0, "y": 0})):
                [reply] = guest.ask_all(request)
                self.assertEqual(reply, problem("forbidden", "say play first"))
        self.assertEqual(
            alice.ask("play", name="a"), problem("forbidden", "you play already: say quit first")
        )
        self.assertEqual(bob.ask("play", name="bob")["player"], 3)

    def test_twenty_ticks_a_second(self) -> None:
        """All see the same, written once, at the same time; who joins sees all that are there."""
        alice, bob = self.playing(2)
        alice.peer.send({"type": "steer", "x": 1, "y": 0})
        before = self.server.factory.stats.broadcasts
        self.server.advance(1.01)
        ticks = self.server.factory.stats.broadcasts - before
        # A LoopingCall ticks twice where a sum of fractions is a little less than it should be.
        self.assertIn(ticks, (20, 21))
        payloads = alice.peer.receive_payloads()
        self.assertEqual(payloads, bob.peer.receive_payloads())
        self.assertEqual(len(payloads), ticks)
        carol = Guest(self.server)
        self.assertEqual(set(carol.ask("play", name="c")["names"]), {"1", "2", "3"})
        self.server.advance(0.05)
        self.assertEqual(self.states(carol)[-1], {1: (710.0, 500.0), 2: (500.0, 500.0), 3: (500.0, 500.0)})

    def test_speed(self) -> None:
        """However it steers, nobody is faster than all may be, or leaves the field."""
        [guest] = self.playing(1)
        for x, y in ((1, 1), (-1, 1), (0, -1), (-1, -1), (0.1, 0.1), (0, 0)):
            guest.peer.send(*[{"type": "steer", "x": x, "y": y}] * 10)
            self.server.advance(0.5)
            places = [state[1] for state in self.states(guest)]
            for (x1, y1), (x2, y2) in itertools.pairwise(places):
                self.assertLessEqual(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 10.2)
        self.assertEqual(places[0], places[-1])
        guest.peer.send({"type": "steer", "x": -1, "y": 1})
        self.server.advance(20)
        self.assertEqual(self.states(guest)[-1], {1: (0.0, 1000.0)})
        guest.peer.send({"type": "steer", "x": 1, "y": -1})
        self.server.advance(20)
        self.assertEqual(self.states(guest)[-1], {1: (1000.0, 0.0)})

    def test_wrong_fields(self) -> None:
        [guest] = self.playing(1)
        for x in (1.01, -2, 10**400, "1", None, True):
            self.assertEqual(guest.ask("steer", x=x, y=0)["code"], "bad_message", x)
        guest.peer.send_payload(b'{"type":"steer","x":1e999,"y":0}', b'{"type":"steer","x":NaN,"y":0}')
        self.assertEqual([message["type"] for message in guest.told()], ["error", "error"])
        for name in ("", "x" * 21, 7):
            self.assertEqual(Guest(self.server).ask("play", name=name)["code"], "bad_message")
        self.server.advance(0.05)
        self.assertEqual(self.states(guest), [{1: (500.0, 500.0)}])

    def test_late(self) -> None:
        """Where the machine stood still, nobody jumps, and no tick is made up for."""
        alice, bob = self.playing(2)
        alice.peer.send({"type": "steer", "x": 1, "y": 0})
        self.server.clock.advance(7)
        [state] = self.states(bob)
        self.assertEqual(state[1], (550.0, 500.0))

    def test_a_failure(self) -> None:
        """A tick that fails is logged, and the next ones come."""
        [guest] = self.playing(1)
        player = self.module.game.players[guest.peer.connection]
        player.x = None
        self.server.advance(0.1)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 2)
        self.assertEqual(guest.told(), [])
        player.x = 500.0
        self.server.advance(0.5)
        self.assertGreaterEqual(len(self.states(guest)), 9)

    def test_gone(self) -> None:
        """With the last one the clock stops, and with the next it goes on."""
        alice, bob = self.playing(2)
        bob.peer.send({"type": "steer", "x": 1, "y": 0})
        bob.peer.reset()
        self.assertEqual(alice.told(), [{"type": "went", "player": 2}])
        self.server.advance(0.05)
        self.assertEqual(list(self.states(alice)[0]), [1])
        alice.ask("quit")
        self.assertEqual(self.module.game.players, {})
        self.assertFalse(self.module.game.loop.running)
        self.server.advance(100)
        self.assertEqual(alice.told(), [])
        alice.ask("play", name="a")
        alice.peer.send({"type": "steer", "x": 1, "y": 0})
        self.server.advance(0.05)
        self.assertEqual(self.states(alice), [{3: (510.0, 500.0)}])
        alice.peer.close()
        self.server.stop()
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_full(self) -> None:
        self.module.MAX_PLAYERS = 2
        _, bob = self.playing(2)
        carol = Guest(self.server)
        self.assertEqual(carol.ask("play", name="c"), problem("full", "all places are taken", retry_after=10))
        bob.peer.close()
        self.assertEqual(carol.ask("play", name="c")["player"], 3)

    def test_a_slow_client(self) -> None:
        """It gets no states while it has many to read; the others get theirs, and it is up to date then."""
        self.server = self.serve(limits=Limits(write_timeout=1000))
        alice, slow = self.playing(2)
        slow.peer.stop_reading()
        self.server.advance(300)
        self.assertGreaterEqual(len(self.states(alice)), 5990)
        self.assertLess(slow.peer.connection.waiting, 70_000)
        alice.peer.send({"type": "steer", "x": 1, "y": 0})
        self.server.advance(10)
        slow.peer.start_reading()
        slow.told()
        self.server.advance(0.05)
        self.assertEqual(self.states(slow), [{1: (1000.0, 500.0), 2: (500.0, 500.0)}])


class JobsTests(Case):
    name = "jobs"

    def submit(self, guest: Guest, payload: object = None) -> int:
        reply = guest.ask("submit", payload=payload)
        self.assertEqual(set(reply), {"type", "job"}, reply)
        return int(reply["job"])

    def ready(self, guest: Guest) -> None:
        self.assertEqual(guest.ask("ready"), {"type": "ready_ok"})

    def assert_empty(self) -> None:
        module = self.module
        self.assertEqual((module.waiting, module.ready, module.begun), ({}, {}, {}))

    def test_a_job(self) -> None:
        owner, worker = self.guests(2)
        payload = {"a": [None, 1.5, "x"], "b": {}}
        self.assertEqual(self.submit(owner, payload), 1)
        self.ready(worker)
        self.assertEqual(worker.told(), [{"type": "job", "job": 1, "payload": payload, "attempt": 1}])
        self.assertEqual(worker.ask("done", job=1, result=payload), {"type": "done_ok"})
        self.assertEqual(owner.told(), [{"type": "job_done", "job": 1, "result": payload}])
        # The worker first; and it fails.
        self.ready(worker)
        self.submit(owner, 2)
        self.assertEqual(worker.told(), [{"type": "job", "job": 2, "payload": 2, "attempt": 1}])
        self.assertEqual(worker.ask("failed", job=2, error="no"), {"type": "failed_ok"})
        self.assertEqual(owner.told(), [{"type": "job_failed", "job": 2, "error": "no"}])
        self.assert_empty()
        self.server.advance(100)
        self.assertEqual((owner.told(), worker.told()), ([], []))

    def test_one_at_a_time(self) -> None:
        """However often it says so: a worker gets one job, and the next when it is ready again."""
        owner, worker = self.guests(2)
        self.ready(worker)
        self.ready(worker)
        self.submit(owner)
        self.submit(owner)
        self.assertEqual([message["job"] for message in worker.told()], [1])
        self.assertEqual(worker.ask("ready"), problem("forbidden", "you have job 1"))
        worker.ask("done", job=1)
        self.assertEqual(worker.told(), [])
        self.ready(worker)
        self.assertEqual([message["job"] for message in worker.told()], [2])

    def test_fair(self) -> None:
        """One who submits many holds up nobody; each worker has its turn, too."""
        alice, bob, *workers = self.guests(6)
        for payload in range(4):
            self.submit(alice, payload)
        self.submit(bob, "b")
        self.submit(bob, "c")
        for worker in workers:
            self.ready(worker)
        payloads = [message["payload"] for worker in workers for message in worker.told()]
        self.assertEqual(payloads, [0, "b", 1, "c"])
        for worker, job in zip(workers[::-1], (6, 2, 5, 1), strict=True):
            self.assertEqual(worker.ask("done", job=job)["type"], "done_ok")
        for payload in (2, 3):
            self.ready(workers[payload])
            self.assertEqual([message["payload"] for message in workers[payload].told()], [payload])
        self.ready(workers[1])
        self.ready(workers[0])
        self.submit(alice)
        self.assertEqual([len(worker.told()) for worker in workers[:2]], [0, 1])

    def test_not_its_job(self) -> None:
        owner, worker, other = self.guests(3)
        self.submit(owner)
        self.ready(worker)
        for guest, job in ((other, 1), (owner, 1), (worker, 2)):
            for kind, more in (("done", {}), ("failed", {"error": "x"})):
                reply = guest.ask(kind, job=job, **more)
                self.assertEqual(reply, problem("forbidden", f"job {job} is not yours, or not any more"))
        self.assertEqual(worker.ask("done", job=1), {"type": "done_ok"})
        self.assertEqual(worker.ask("done", job=1)["code"], "forbidden")
        self.assertEqual(len(owner.told()), 1)

    def test_wrong_fields(self) -> None:
        [guest] = self.guests(1)
        for job in (0, -1, 2**53, 10**400, 1.5, "1", None):
            self.assertEqual(guest.ask("done", job=job)["code"], "bad_message", job)
        self.assertEqual(guest.ask("failed", job=1, error="x" * 1001)["code"], "bad_message")
        self.assertEqual(guest.ask("submit")["code"], "bad_message")

    def test_too_slow(self) -> None:
        """Another gets it; what the first says later counts no more."""
        owner, slow, worker = self.guests(3)
        self.submit(owner, "x")
        self.ready(slow)
        self.ready(worker)
        slow.told()
        self.server.advance(59.5)
        self.assertEqual((slow.told(), worker.told()), ([], []))
        self.server.advance(1)
        self.assertEqual(slow.told(), [{"type": "job_taken", "job": 1}])
        self.assertEqual(worker.told(), [{"type": "job", "job": 1, "payload": "x", "attempt": 2}])
        self.assertEqual(slow.ask("done", job=1)["code"], "forbidden")
        self.assertEqual(owner.told(), [])
        self.server.advance(59)
        self.assertEqual(worker.ask("done", job=1), {"type": "done_ok"})
        self.assertEqual(owner.told(), [{"type": "job_done", "job": 1, "result": None}])
        self.ready(slow)

    def test_attempts(self) -> None:
        """A job that ends its workers ends three, by their going or their time, and is reported."""
        owner, first, second, third, fourth = self.guests(5)
        self.submit(owner, "poison")
        self.ready(first)
        first.peer.reset()
        self.ready(second)
        self.server.advance(60)
        self.ready(third)
        self.assertEqual([message["attempt"] for message in third.told()], [3])
        self.assertEqual(owner.told(), [])
        self.ready(fourth)
        third.peer.close()
        self.assertEqual(owner.told(), [{"type": "job_failed", "job": 1, "error": "no worker finished it"}])
        self.assertEqual(fourth.told(), [])

    def test_given_back_first(self) -> None:
        """A job that was begun once comes before those that were not."""
        owner, worker, other = self.guests(3)
        self.submit(owner, 1)
        self.submit(owner, 2)
        self.ready(worker)
        worker.peer.reset()
        self.ready(other)
        self.assertEqual([message["payload"] for message in other.told()], [1])

    def test_bounds(self) -> None:
        module = self.module
        module.MAX_JOBS, module.MAX_OF_ONE = 5, 3
        full = problem("full", "too many jobs wait", retry_after=10)
        alice, bob, worker = self.guests(3)
        for guest, count in ((alice, 3), (bob, 2)):
            for _ in range(count):
                self.submit(guest)
            self.assertEqual(guest.ask("submit", payload=1), full)
        self.ready(worker)
        self.assertEqual(alice.ask("submit", payload=1)["type"], "submit_ok")
        bob.peer.close()
        self.assertEqual(Guest(self.server).ask("submit", payload=1)["type"], "submit_ok")
        fits = "x" * (module.MAX_PAYLOAD - 2)
        self.assertEqual(Guest(self.server).ask("submit", payload=fits)["type"], "submit_ok")
        self.assertEqual(
            Guest(self.server).ask("submit", payload=fits + "x"),
            problem("bad_message", "a payload of 65537 bytes: 65536 are the most"),
        )

    def test_no_more_is_kept(self) -> None:
        """A payload does not keep what was read with it."""
        owner = Guest(self.server)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _ in range(20):
            owner.peer.send({"type": "submit", "payload": 1, "other": "x" * 200_000})
        owner.told()
        self.assertLess(tracemalloc.get_traced_memory()[0], 2_000_000)

    def test_deep(self) -> None:
        """Whatever may be submitted may be handed on."""
        owner, worker = self.guests(2)
        self.ready(worker)
        payload: Any = 1
        # The message is the outermost.
        for _ in range(MAX_DEPTH - 1):
            payload = [payload]
        self.submit(owner, payload)
        self.assertEqual([message["payload"] for message in worker.told()], [payload])
        self.assertEqual(worker.ask("done", job=1, result=payload)["type"], "done_ok")
        self.assertEqual([message["result"] for message in owner.told()], [payload])

    def test_the_owner_has_gone(self) -> None:
        """What it was to be told is dropped; nobody begins what is left of it."""
        owner, worker, other = self.guests(3)
        self.submit(owner, 1)
        self.submit(owner, 2)
        self.ready(worker)
        owner.peer.reset()
        self.assertEqual(worker.ask("done", job=1), {"type": "done_ok"})
        self.ready(other)
        self.assertEqual(other.told(), [])
        owner = Guest(self.server)
        self.submit(owner, 3)
        self.ready(worker)
        self.assertEqual([message["job"] for message in other.told()], [3])
        owner.peer.reset()
        other.peer.reset()
        self.assertEqual(worker.told()[1:], [])
        worker.peer.close()
        self.assert_empty()
        self.server.stop()
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_workers_by_name(self) -> None:
        self.server = self.serve(checkers=checkers())
        self.ready(self.login("worker-1"))
        self.assertEqual(
            self.login("bob").ask("ready"),
            problem("forbidden", "this is for users whose names begin with worker"),
        )
        self.submit(self.login("alice"))

    def test_whatever_happens(self) -> None:
        self.assert_holds(Work)


class Work(RuleBasedStateMachine):
    """
    Some who submit jobs and do them. Each job comes to one end, of which its owner is told if it is there; it
    is never two workers', and each has it for its time; none waits where a worker does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.module = load("jobs")
        self.module.MAX_JOBS, self.module.MAX_OF_ONE, self.module.LEASE = 6, 4, 10.0
        self.server = MemoryServer(routers=[self.module.router])
        self.guests: list[Guest] = []
        #: The jobs that have not ended, with their owners; how often each was given away; whose each is.
        self.owners: dict[int, Guest] = {}
        self.given: Counter[int] = Counter()
        self.held: dict[Guest, int] = {}
        self.since: dict[Guest, float] = {}
        self.idle: list[Guest] = []
        #: What owners must be told, and have not been yet.
        self.due: dict[Guest, Counter[tuple[str, int]]] = {}

    def one(self, data: st.DataObject) -> Guest:
        return self.guests[data.draw(st.integers(0, len(self.guests) - 1))]

    def lost(self, guest: Guest) -> None:
        """A worker has its job no more."""
        job = self.held.pop(guest)
        if job not in self.owners:
            return
        if self.given[job] == 3:
            self.due[self.owners.pop(job)][("job_failed", job)] += 1

    def end(self, guest: Guest, job: int, what: str) -> None:
        """A worker has ended its job."""
        del self.held[guest]
        if job in self.owners:
            self.due[self.owners.pop(job)][(what, job)] += 1

    @precondition(lambda self: len(self.guests) < 5)
    @rule()
    def come(self) -> None:
        guest = Guest(self.server)
        self.guests.append(guest)
        self.due[guest] = Counter()

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        guest = self.one(data)
        waits = [owner for job, owner in self.owners.items() if job not in self.held.values()]
        reply = guest.ask("submit", payload=1)
        if len(waits) >= 6 or waits.count(guest) >= 4:
            assert reply["code"] == "full"
        else:
            assert reply["job"] not in self.given
            self.owners[reply["job"]] = guest

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def get_ready(self, data: st.DataObject) -> None:
        guest = self.one(data)
        if guest not in self.held and guest not in self.idle:
            self.idle.append(guest)
        assert guest.ask("ready")["type"] == ("error" if guest in self.held else "ready_ok")

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), wrong=st.integers(0, 3), done=st.booleans())
    def finish(self, data: st.DataObject, wrong: int, done: bool) -> None:
        guest = self.one(data)
        own = self.held.get(guest)
        job = own if own is not None and wrong else data.draw(st.integers(1, 5))
        reply = guest.ask("done", job=job) if done else guest.ask("failed", job=job, error="x")
        assert (reply["type"] == "error") == (job != own), reply
        if job == own:
            self.end(guest, own, "job_done" if done else "job_failed")

    @precondition(lambda self: self.guests)
    @rule(data=st.data(), reset=st.booleans())
    def go(self, data: st.DataObject, reset: bool) -> None:
        guest = self.one(data)
        self.guests.remove(guest)
        if guest in self.idle:
            self.idle.remove(guest)
        self.owners = {job: owner for job, owner in self.owners.items() if owner is not guest}
        if guest in self.held:
            self.lost(guest)
        del self.due[guest]
        if reset:
            guest.peer.reset()
        else:
            guest.peer.close()

    @rule(seconds=st.sampled_from([1, 4, 10, 30]))
    def wait(self, seconds: int) -> None:
        # So little at once that no job is taken from its worker and from the next one, too.
        for _ in range(seconds):
            self.server.advance(1)
            self.all_is_well()

    @invariant()
    def all_is_well(self) -> None:
        told = [(guest, message) for guest in self.guests for message in guest.told()]
        now = self.server.clock.seconds()
        for guest, message in told:
            if message["type"] == "job_taken":
                assert self.held[guest] == message["job"]
                assert now - self.since[guest] >= 10
                self.lost(guest)
        for guest, message in told:
            if message["type"] == "job":
                self.give(guest, message, now)
        for guest, message in told:
            if message["type"] in ("job_done", "job_failed"):
                fate = message["type"], message["job"]
                assert self.due[guest][fate], (fate, self.due[guest])
                self.due[guest] -= Counter([fate])
        assert not any(self.due.values()), self.due
        assert len(set(self.held.values())) == len(self.held)
        assert not (self.idle and set(self.owners) - set(self.held.values()))
        # What is kept is what is there.
        kept = Counter(job.number for jobs in self.module.waiting.values() for job in jobs)
        assert kept == Counter(set(self.owners) - set(self.held.values()))
        assert {worker: job.number for worker, job in self.module.begun.items()} == {
            guest.peer.connection: job for guest, job in self.held.items()
        }
        assert set(self.module.ready) == {guest.peer.connection for guest in self.idle}

    def give(self, guest: Guest, message: Message, now: float) -> None:
        job = message["job"]
        assert guest in self.idle
        self.idle.remove(guest)
        assert job in self.owners, "it has ended"
        assert job not in self.held.values(), "it is another's"
        self.given[job] += 1
        assert message["attempt"] == self.given[job] <= 3
        self.held[guest] = job
        self.since[guest] = now

    def teardown(self) -> None:
        # Whoever is ready does the rest.
        worker = Guest(self.server)
        self.due[worker] = Counter()
        self.guests.append(worker)
        for _ in range(100):
            if worker in self.held:
                job = self.held[worker]
                assert worker.ask("done", job=job)["type"] == "done_ok"
                self.end(worker, job, "job_done")
            elif self.owners:
                self.server.advance(5)
            if worker not in self.held and worker not in self.idle:
                self.idle.append(worker)
                worker.ask("ready")
            self.all_is_well()
        assert not self.owners
        self.guests.remove(worker)
        for guest in (*self.guests, worker):
            guest.peer.close()
        module = self.module
        assert (module.waiting, module.ready, module.begun) == ({}, {}, {})
        self.server.stop()
        assert self.server.clock.getDelayedCalls() == []


class ServedTests(ServerTestCase):
    """By twistd, all three at once."""

    def setUp(self) -> None:
        options = [word for name in APPLICATIONS for word in ("--handlers", f"{name}:router")]
        self.own = self.start(*options, cwd=EXAMPLES)
        self.alice, self.bob = self.connect(self.own), self.connect(self.own)

    def test_chat(self) -> None:
        for peer, name in ((self.alice, "alice"), (self.bob, "bob")):
            self.assertEqual(peer.ask({"type": "nick", "name": name})["type"], "nick_ok")
            self.assertEqual(peer.ask({"type": "join", "room": "tea"})["type"], "join_ok")
        self.assertEqual(self.alice.receive()["type"], "joined")
        self.assertEqual(self.bob.ask({"type": "say", "room": "tea", "text": "hello"})["recipients"], 1)
        self.assertEqual(self.alice.receive()["text"], "hello")
        self.bob.reset()
        self.assertEqual(_bare(self.alice.receive()), {"type": "left", "room": "tea", "name": "bob"})

    def test_game(self) -> None:
        self.assertEqual(self.alice.ask({"type": "play", "name": "alice"})["player"], 1)
        self.alice.send({"type": "steer", "x": 0, "y": -1})
        states = [self.alice.receive() for _ in range(10)]
        places = [y for state in states for _, _, y in state["players"]]
        self.assertEqual(places, sorted(places, reverse=True))
        self.assertLess(places[-1], places[0])

    def test_jobs(self) -> None:
        self.assertEqual(self.alice.ask({"type": "submit", "payload": [1, 2]})["job"], 1)
        self.bob.send({"type": "ready"})
        told = [self.bob.receive() for _ in range(2)]
        [job] = [message for message in told if message["type"] == "job"]
        self.assertEqual(job["payload"], [1, 2])
        self.assertEqual(self.bob.ask({"type": "done", "job": 1, "result": 3})["type"], "done_ok")
        self.assertEqual(_bare(self.alice.receive()), {"type": "job_done", "job": 1, "result": 3})

    def test_a_shutdown(self) -> None:
        """Whoever is in the midst of something: it ends in order, and nothing fails."""
        for request in (
            {"type": "nick", "name": "a"},
            {"type": "join", "room": "tea"},
            {"type": "submit", "payload": 1},
            {"type": "play", "name": "a"},
        ):
            self.alice.ask(request)
        self.bob.send({"type": "ready"}, {"type": "play", "name": "b"})
        self.own.signal(signal.SIGTERM)
        for peer in (self.alice, self.bob):
            codes = [message["code"] for message in peer.rest() if message["type"] == "error"]
            self.assertEqual(codes, ["going_away"])
            peer.close()
        self.own.wait()
        self.assertIn("Server Shut Down", self.own.log[-1])
