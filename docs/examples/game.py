"""
A small game: players on a field see each other move, 20 times a second.

    twistd -n tcpjson --handlers game:router

Who plays says where it steers to; how fast it gets there is the server's to say.
"""

from itertools import count
from math import hypot
from typing import Annotated

from msgspec import Meta
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from tcpjson import Forbidden, Message, ProtocolError, Router

TICKS = 20  # a second
SIZE = 1000.0  # of the field, both ways
SPEED = 200.0  # a second, at most
LONGEST = 0.25  # seconds of a tick: where the machine stood still, so did the players
MAX_PLAYERS = 200
LAG = 64 * 1024  # bytes: who has more to read yet gets no state, as there will be a newer one

Part = Annotated[float, Meta(ge=-1, le=1)]


class Play(Message, tag="play"):
    name: Annotated[str, Meta(min_length=1, max_length=20)]


class Steer(Message, tag="steer"):
    x: Part
    y: Part


class Quit(Message, tag="quit"):
    pass


class Full(ProtocolError):
    code = "full"
    text = "all places are taken"


class Player:
    def __init__(self, number, name):
        self.number = number  # names need not differ
        self.name = name
        self.x = self.y = SIZE / 2
        self.dx = self.dy = 0.0

    def steer(self, x, y):
        # Slantwise is not faster.
        speed = SPEED / max(1.0, hypot(x, y))
        self.dx, self.dy = x * speed, y * speed

    def move(self, seconds):
        self.x = min(SIZE, max(0.0, self.x + self.dx * seconds))
        self.y = min(SIZE, max(0.0, self.y + self.dy * seconds))


class Game:
    """The field, and a clock that runs while somebody plays."""

    def __init__(self):
        self.players = {}  # by session
        self.numbers = count(1)
        self.loop = LoopingCall(self.tick)
        self.server = None
        self.last = 0.0

    def start(self, server):
        self.server = server
        self.loop.clock = server.clock
        self.last = server.clock.seconds()
        self.loop.start(1 / TICKS, now=False)

    def tick(self):
        try:
            now = self.loop.clock.seconds()
            seconds, self.last = min(LONGEST, now - self.last), now
            for player in self.players.values():
                player.move(seconds)
            places = [[each.number, round(each.x, 1), round(each.y, 1)] for each in self.players.values()]
            ready = [session for session in self.players if session.waiting <= LAG]
            self.server.broadcast({"type": "state", "players": places}, to=ready)
        except Exception:
            # It would end the loop.
            log.failure("a tick failed")


log = Logger()
router = Router()
game = Game()


def player_of(session):
    if session not in game.players:
        raise Forbidden("say play first")
    return game.players[session]


@router.handler
def play(session, message: Play):
    if session in game.players:
        raise Forbidden("you play already: say quit first")
    if len(game.players) >= MAX_PLAYERS:
        raise Full(retry_after=10)
    if not game.players:
        game.start(session.server)
    player = game.players[session] = Player(next(game.numbers), message.name)
    session.broadcast({"type": "came", "player": player.number, "name": player.name}, to=game.players)
    names = {str(each.number): each.name for each in game.players.values()}
    return {"type": "play_ok", "player": player.number, "names": names, "size": SIZE, "speed": SPEED}


@router.handler
def steer(session, message: Steer):
    player_of(session).steer(message.x, message.y)


@router.handler
def leave(session, message: Quit):
    player_of(session)
    gone(session)
    return {"type": "quit_ok"}


@router.on_disconnect
def gone(session):
    player = game.players.pop(session, None)
    if player is not None:
        session.server.broadcast({"type": "went", "player": player.number}, to=game.players)
        if not game.players:
            game.loop.stop()
