"""Handlers of an application: `twistd tcpjson --handlers`, with modules in the folder where it is started."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from tests.harness import TIMEOUT, Peer, Server, ServerTestCase, certificates, command, shared
from tests.identities import new_path, token, tokens, write

PING = {"type": "ping"}

GAME = """
from typing import Annotated

from msgspec import Meta
from tcpjson import Forbidden, Message, Router, Text
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

router = Router()


class Move(Message, tag="move"):
    x: int
    y: Annotated[int, Meta(ge=0)] = 0


@router.handler
async def move(session, message: Move):
    await session.broadcast({"type": "moved", "x": message.x, "y": message.y})
    return {"type": "move_ok"}


class Wait(Message, tag="wait"):
    seconds: float = 1000
    how: str = "async"


@router.handler
def wait(session, message: Wait):
    clock = session.server.clock
    if message.how == "deferred":
        return deferLater(clock, message.seconds, lambda: {"type": "waited"})
    return waits(session, clock, message.seconds)


async def waits(session, clock, seconds):
    try:
        await deferLater(clock, seconds)
    except BaseException as error:
        print("cancelled", session.client_id, type(error).__name__, flush=True)
        raise
    return {"type": "waited"}


class Subscribe(Message, tag="subscribe"):
    room: str


@router.handler
def subscribe(session, message: Subscribe):
    if message.room == "closed":
        raise Forbidden("that room is closed")
    return {"type": "subscribed", "room": message.room}


@router.handler
def text(session, message: Text):
    return {"type": "heard", "text": message.original}
"""

HOOKS = """
from tcpjson import Forbidden, Router
from twisted.internet.task import deferLater

router = Router()
clock = None
SECONDS = 0.0


def say(*words):
    print("own:", *words, flush=True)


@router.on_start
def start(server):
    global clock
    clock = server.clock
    say("start", len(server.sessions))


@router.on_connect
async def connect(session):
    await deferLater(clock, 0.05)
    say("connect", session.client_id, session.user)
    session.send({"type": "you_are", "who": session.client_id})
    session.broadcast({"type": "joined", "who": session.client_id})


@router.on_disconnect
async def disconnect(session):
    session.broadcast({"type": "left", "who": session.client_id})
    await deferLater(clock, SECONDS)
    say("disconnect", session.client_id, session.reason)


@router.on_stop
async def stop(server):
    await deferLater(clock, SECONDS)
    say("stop", len(server.sessions))


@router.middleware
async def guard(session, message, handle):
    if type(message).__name__ == "Broadcast" and session.user is None:
        raise Forbidden("log in to broadcast")
    return await handle(session, message)
"""


def module(place: Path, name: str, text: str) -> Path:
    """A module in a folder."""
    path = place / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@functools.cache
def game() -> Path:
    """The folder of the game, which is a package."""
    place = new_path("")
    place.mkdir()
    module(place, "game/__init__", "")
    module(place, "game/moves", GAME)
    return place


class HandlersTestCase(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        # A short name: it may hold that of a socket.
        self.place = new_path("")
        self.place.mkdir()

    def module(self, name: str, text: str) -> Path:
        """A module in the folder where the server is started."""
        return module(self.place, name, text)

    def serve(self, *wheres: str, options: Iterable[str] = (), ports: Iterable[str] | None = None) -> Server:
        """A server with handlers."""
        words = [word for where in wheres for word in ("--handlers", where)]
        return self.start(*words, *options, ports=ports, cwd=self.place)

    def own(self, server: Server) -> list[str]:
        """What the hooks have said."""
        lines = [line.partition("] own: ") for line in server.log]
        return [said for _, found, said in lines if found]


class MessageTests(HandlersTestCase):
    """Requests of an application's own types."""

    def setUp(self) -> None:
        super().setUp()
        self.place = game()

    @property
    def server(self) -> Server:
        return self.watch(shared("--handlers", "game.moves:router", ports=(self.port,), cwd=self.place))

    def test_a_type_in_five_lines(self) -> None:
        server = self.server
        peer, other = self.connect(server), self.connect(server)
        reply = peer.ask({"type": "move", "x": 3, "y": 4, "id": "first", "more": True})
        self.assertEqual((reply["type"], reply["id"]), ("move_ok", "first"))
        moved = other.receive()
        self.assertEqual((moved["type"], moved["x"], moved["y"]), ("moved", 3, 4))
        self.assertNotIn("id", moved)
        for fields, place in (({"x": "3"}, "$.x"), ({}, "`x`"), ({"x": 1, "y": -1}, "$.y")):
            error = peer.ask({"type": "move", "id": 7, **fields})
            self.assertEqual((error["code"], error["id"], error["fatal"]), ("bad_message", 7, False))
            self.assertIn(place, error["message"])
        # What is there anyhow is still there.
        self.assertEqual(peer.ask(PING)["type"], "pong")
        self.assertEqual(peer.ask({"type": "nobody"})["type"], "response")
        self.assertEqual(peer.stats()["details"]["messages_by_type"]["move"], 1)

    def test_a_type_that_others_might_mean_otherwise(self) -> None:
        """It is the application's, also behind `hello`."""
        server = self.server
        peer = self.connect(server)
        self.assertEqual(peer.ask({"type": "hello", "heartbeat": True})["type"], "hello_response")
        reply = peer.ask({"type": "subscribe", "room": "a", "id": 1})
        self.assertEqual((reply["type"], reply["room"]), ("subscribed", "a"))
        error = peer.ask({"type": "subscribe", "room": "closed", "id": 2})
        self.assertEqual((error["code"], error["id"]), ("forbidden", 2))
        self.assertEqual(error["message"], "that room is closed")
        peer.write(b"\0\0\0\5hello")
        self.assertEqual(peer.receive()["text"], "hello")

    def test_strict(self) -> None:
        peer = self.connect(self.serve("game.moves:router", options=["--strict"]))
        self.assertEqual(peer.ask({"type": "move", "x": 1})["type"], "move_ok")
        self.assertEqual(peer.ask({"type": "nobody"})["code"], "unknown_type")

    def test_slow_ones(self) -> None:
        """They hold up nobody, not even themselves; each kind is waited for."""
        server = self.server
        peer, other = self.connect(server), self.connect(server)
        for number, how in enumerate(("async", "deferred")):
            peer.send({"type": "wait", "seconds": 0.2, "how": how, "id": number})
        self.assertEqual(peer.ask({**PING, "id": "p"})["id"], "p")
        self.assertEqual(other.ask(PING)["type"], "pong")
        self.assertEqual(sorted(peer.receive()["id"] for _ in range(2)), [0, 1])
        # Without an id they come in order.
        peer.send({"type": "wait", "seconds": 0.1}, PING)
        self.assertEqual([peer.receive()["type"] for _ in range(2)], ["waited", "pong"])

    def test_too_slow(self) -> None:
        server = self.serve("game.moves:router", options=["--handler-timeout", "0.3"])
        peer = self.connect(server)
        for how in ("async", "deferred"):
            error = peer.ask({"type": "wait", "how": how, "id": how})
            self.assertEqual((error["code"], error["id"], error["fatal"]), ("timeout", how, False))
        server.wait_for(rf"cancelled {peer.client_id} CancelledError")
        self.assertEqual(peer.ask(PING)["type"], "pong")

    def test_the_bound(self) -> None:
        """What comes behind so many waits, and nothing is lost."""
        server = self.serve("game.moves:router", options=["--max-handlers", "3"])
        peer, other = self.connect(server), self.connect(server)
        waits = [{"type": "wait", "seconds": 0.2, "id": number} for number in range(6)]
        began = time.monotonic()
        peer.send(*waits, {**PING, "id": "p"})
        self.assertEqual(other.ask(PING)["type"], "pong")
        came = [peer.receive()["id"] for _ in range(7)]
        self.assertEqual(set(came), {0, 1, 2, 3, 4, 5, "p"})
        self.assertLess(set(came[:2]), {0, 1, 2})
        self.assertGreater(time.monotonic() - began, 0.39)

    def test_cancelled_when_the_client_goes(self) -> None:
        """One that closes in order may still read: that it does not, the next answers to it find out."""
        server = self.server
        for end in (Peer.reset, Peer.close):
            peer = self.connect(server)
            peer.send({"type": "wait", "id": 1}, {"type": "wait", "id": 2})
            peer.ask({**PING, "id": 3})
            if end is Peer.close:
                peer.send(*({"type": "wait", "seconds": n / 10, "id": n} for n in range(1, 6)))
            end(peer)
            began = time.monotonic()
            server.wait_for(f"cancelled {peer.client_id} CancelledError", 2)
            self.assertLess(time.monotonic() - began, 15)

    def test_over_tls(self) -> None:
        self.tls = True
        server = self.server
        peer, other = self.connect(server), self.connect(server)
        self.assertEqual(peer.ask({"type": "move", "x": 3})["type"], "move_ok")
        self.assertEqual(other.receive()["type"], "moved")

    def test_several_routers(self) -> None:
        self.module(
            "second",
            GAME.replace('tag="', 'tag="second_')
            .replace("def text", "def _")
            .replace("@router.handler\ndef _", "def _"),
        )
        peer = self.connect(self.serve("second:router", "game.moves:router"))
        for tag in ("move", "second_move"):
            self.assertEqual(peer.ask({"type": tag, "x": 1})["type"], "move_ok")

    def test_the_folder_comes_first(self) -> None:
        """Before a module of the same name that is installed."""
        self.module("cProfile", GAME)
        peer = self.connect(self.serve("cProfile:router"))
        self.assertEqual(peer.ask({"type": "move", "x": 1})["type"], "move_ok")


class HookTests(HandlersTestCase):
    """What is called when the server and its clients come and go."""

    def hooks(self, seconds: float = 0.0) -> str:
        self.module("hooks", HOOKS.replace("SECONDS = 0.0", f"SECONDS = {seconds}"))
        return "hooks:router"

    def test_a_life(self) -> None:
        server = self.serve(self.hooks())
        first = self.connect(server)
        # What it sends at once waits for the hook.
        first.send({**PING, "id": 1})
        self.assertEqual([first.receive()["type"] for _ in range(2)], ["you_are", "pong"])
        second = self.connect(server)
        self.assertEqual(second.receive()["who"], second.client_id)
        joined = first.receive()
        self.assertEqual((joined["type"], joined["who"]), ("joined", second.client_id))
        second.close()
        left = first.receive()
        self.assertEqual((left["type"], left["who"]), ("left", second.client_id))
        server.signal(signal.SIGTERM)
        self.assertEqual([message.get("code") for message in first.rest()], ["going_away"])
        first.close()
        self.assertEqual(server.wait(), -signal.SIGTERM)
        self.assertEqual(
            self.own(server),
            [
                "start 0",
                f"connect {first.client_id} None",
                f"connect {second.client_id} None",
                f"disconnect {second.client_id} client_closed",
                f"disconnect {first.client_id} going_away",
                "stop 0",
            ],
        )

    def test_it_starts_before_it_listens(self) -> None:
        server = self.serve(self.hooks())
        lines = [line for line in server.log if "own: start" in line or "listening on" in line]
        self.assertEqual(["own: start" in line for line in lines], [True, False])

    def test_all_ways_in(self) -> None:
        """TLS, a Unix socket, a balancer, a login: each is known for what it is."""
        secrets = write(new_path(".tokens"), tokens({"s3cret": "ann"}))
        socket_path = new_path(".sock")
        server = self.serve(
            self.hooks(),
            options=["--auth", f"token:{secrets}", "--allow-plain-auth"],
            ports=["haproxy:tcp:0:interface=127.0.0.1", certificates().port, f"unix:{socket_path}"],
        )
        balanced = self.connect(server, greet=False)
        balanced.write(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 9999\r\n")
        balanced.welcome = balanced.receive()
        self.tls = True
        secure = self.connect(server, index=1)
        self.tls = False
        peers = [balanced, secure]
        local = Peer(self.unix(socket_path))
        local.welcome = local.receive()
        peers.append(local)
        for peer in peers:
            self.assertEqual(token(peer, "s3cret")["status"], "authenticated")
            said = peer.receive()
            self.assertEqual((said["type"], said["who"]), ("you_are", peer.client_id))
            server.wait_for(f"own: connect {peer.client_id} ann")
        self.assertEqual(balanced.client_id, "192.0.2.7:4711")

    def unix(self, path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        return connection

    def test_those_who_were_no_clients(self) -> None:
        secrets = write(new_path(".tokens"), tokens({"s3cret": "ann"}))
        server = self.serve(
            self.hooks(),
            options=["--auth", f"token:{secrets}", "--allow-plain-auth", "--max-connections", "1"],
        )
        guest = self.connect(server)
        refused = self.connect(server, greet=False)
        self.assertEqual(refused.ending()["code"], "server_full")
        self.assertEqual(token(guest, "wrong")["status"], "authentication_failed")
        guest.close()
        server.disconnects(guest.client_id)
        self.assertEqual(self.own(server), ["start 0"])

    def test_middleware(self) -> None:
        secrets = write(new_path(".tokens"), tokens({"s3cret": "ann"}))
        server = self.serve(self.hooks())
        peer = self.connect(server)
        peer.receive()
        error = peer.ask({"type": "broadcast", "content": "x", "id": 3})
        self.assertEqual((error["code"], error["id"]), ("forbidden", 3))
        self.assertEqual(peer.ask({"type": "echo", "content": [1.50]})["content"], [1.5])
        server = self.serve(self.hooks(), options=["--auth", f"token:{secrets}", "--allow-plain-auth"])
        peer = self.connect(server)
        token(peer, "s3cret")
        peer.receive()
        self.assertEqual(peer.ask({"type": "broadcast", "content": "x"})["type"], "broadcast_sent")

    def test_the_end_waits_for_them(self) -> None:
        server = self.serve(self.hooks(0.5))
        peers = [self.connect(server) for _ in range(3)]
        server.wait_for("own: connect", 3)
        server.signal(signal.SIGTERM)
        for peer in peers:
            deque(peer.until_end(), maxlen=0)
            peer.close()
        self.assertEqual(server.wait(), -signal.SIGTERM)
        said = self.own(server)
        self.assertEqual(said[-1], "stop 0")
        self.assertEqual(set(said[-4:-1]), {f"disconnect {peer.client_id} going_away" for peer in peers})

    def test_the_end_waits_for_nothing_at_a_second_signal(self) -> None:
        server = self.serve(self.hooks(1000.0))
        peer = self.connect(server)
        peer.receive()
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        self.assertEqual([message.get("code") for message in peer.rest()], ["going_away"])
        peer.close()
        server.disconnects(peer.client_id)
        self.assertIsNone(server.process.poll())
        server.signal(signal.SIGTERM)
        self.assertEqual(server.wait(), -signal.SIGTERM)
        self.assertLess(time.monotonic() - began, 15)
        server.wait_for("on_disconnect was not done in time")

    def test_the_end_waits_no_longer_than_a_handler_may_take(self) -> None:
        server = self.serve(self.hooks(1000.0), options=["--handler-timeout", "0.5"])
        peer = self.connect(server)
        peer.receive()
        peer.close()
        server.wait_for("on_disconnect was not done in time")
        server.signal(signal.SIGTERM)
        self.assertEqual(server.wait(), -signal.SIGTERM)
        server.wait_for("on_stop was not done in time")


class RefusalTests(HandlersTestCase):
    """What is wrong is said in one line, and the status is 1."""

    def run_it(self, *options: str) -> subprocess.CompletedProcess[str]:
        words, environment = command("-n", "--pidfile=", "tcpjson", *options)
        return subprocess.run(
            words,
            cwd=self.place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def refused(self, *wheres: str) -> str:
        """The line, which is all that is printed."""
        ended = self.run_it(*(word for where in wheres for word in ("--handlers", where)))
        self.assertEqual(ended.returncode, 1, ended.stdout)
        [line] = ended.stdout.splitlines()
        self.assertTrue(line.startswith("tcpjson: --handlers"), line)
        return line

    def test_modules(self) -> None:
        broken = self.module("broken", "import json\n\n\njson.nothing\n")
        self.module("syntax", "x = 1\ndef (:\n")
        for where, expected in (
            ("nothing:router", "no module nothing"),
            ("broken", "MODULE:NAME"),
            ("broken:router", f"{os.path.realpath(broken)}, line 4: AttributeError: "),
            ("syntax:router", "SyntaxError: invalid syntax (syntax.py, line 2)"),
            ("json:dumps", "not a tcpjson.Router: it is a function"),
            ("json:nothing", "not a tcpjson.Router: there is none of that name"),
        ):
            self.assertIn(f"--handlers {where}: ", line := self.refused(where))
            self.assertIn(expected, line)

    def test_handlers(self) -> None:
        begin = "from tcpjson import Message, Router\nrouter = Router()\n"
        own = begin + 'class Own(Message, tag="own"):\n    x: {}\n@router.handler\n{}\n'
        handler = "def own(session, message: Own): pass"
        for name, text in (
            ("one", own.format("int", handler)),
            ("two", own.format("int", handler)),
            ("untyped", own.format("int", "def own(session, message): pass")),
            ("misspelt", own.format("int", "def own(session, message: 'Onw'): pass")),
            ("field", own.format("list[Router]", handler)),
            ("hello", own.format("int", handler).replace('"own"', '"hello"')),
        ):
            self.module(name, text)
        for names, expected in (
            (("one", "two"), "--handlers: two.own: own has a handler already, one.own"),
            (("untyped",), "annotate message with a subclass of tcpjson.Message"),
            (("misspelt",), "annotation of message: name 'Onw' is not defined"),
            (("field",), "--handlers: field.Own.x: no JSON value is a Router"),
            (("hello",), "--handlers: hello.own: hello belongs to the protocol"),
        ):
            self.assertIn(expected, self.refused(*(f"{name}:router" for name in names)))

    def test_a_start_that_fails(self) -> None:
        """Nothing listens, and nothing is left behind."""
        self.module(
            "starts",
            "from tcpjson import Router\nrouter = Router()\n"
            "@router.on_start\ndef start(server):\n    open('/no/such/file')\n",
        )
        path = self.place / "x.sock"
        for ports in (["tcp:0:interface=127.0.0.1"], [certificates().port], [f"unix:{path}"]):
            ended = self.run_it(
                "--handlers", "starts:router", *(word for port in ports for word in ("--port", port))
            )
            self.assertEqual(ended.returncode, 1, ended.stdout)
            [line] = [line for line in ended.stdout.splitlines() if "tcpjson: " in line]
            self.assertIn("--handlers: on_start: starts.start: FileNotFoundError: ", line)
            # The place, for the author.
            self.assertIn("open('/no/such/file')", ended.stdout)
            self.assertNotIn("listening on", ended.stdout)
        self.assertFalse(path.exists())
