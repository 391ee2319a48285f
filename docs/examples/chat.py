"""A chat with rooms, kept in memory while somebody is in them: twistd -n tcpjson --handlers chat:router"""

from collections import deque
from typing import Annotated

from msgspec import Meta

from tcpjson import Forbidden, Message, ProtocolError, Router

MAX_ROOMS = 200
MAX_MEMBERS = 100  # of a room
MAX_JOINED = 10  # rooms that one client is in
HISTORY = 20  # lines that a room keeps for those who join

# A pattern's `$` alone lets a line feed at the end by.
Name = Annotated[str, Meta(min_length=1, max_length=20, pattern=r"^[\w-]+$(?!\n)")]


class Nick(Message, tag="nick"):
    name: Name


class Join(Message, tag="join"):
    room: Name


class Leave(Message, tag="leave"):
    room: Name


class Say(Message, tag="say"):
    room: Name
    text: Annotated[str, Meta(min_length=1, max_length=500)]


class Who(Message, tag="who"):
    room: Name


class Rooms(Message, tag="rooms"):
    pass


class Full(ProtocolError):
    code = "full"


class Client:
    """Who a client is: its `session.state`, once it has said so."""

    def __init__(self, name):
        self.name = name
        self.rooms = set()  # names


class Room:
    def __init__(self):
        self.members = {}  # sessions by name
        self.history = deque(maxlen=HISTORY)


router = Router()
sessions = {}  # by name
rooms = {}  # by name; none is empty


def room_of(session, name):
    """The room of that name, which the client must be in."""
    if session.state is None or name not in session.state.rooms:
        raise Forbidden(f"join {name} first")
    return rooms[name]


def part(session, name):
    room, client = rooms[name], session.state
    client.rooms.remove(name)
    del room.members[client.name]
    if not room.members:
        del rooms[name]
    session.broadcast({"type": "left", "room": name, "name": client.name}, to=room.members.values())


@router.on_disconnect
def gone(session):
    if session.state is not None:
        del sessions[session.state.name]
        for name in tuple(session.state.rooms):
            part(session, name)


@router.handler
def nick(session, message: Nick):
    if session.user not in (None, message.name):
        raise Forbidden(f"you have logged in as {session.user}")
    if sessions.get(message.name, session) is not session:
        raise Forbidden("somebody else has this name: choose another")
    if session.state is not None:
        if session.state.rooms:
            raise Forbidden("leave your rooms first")
        del sessions[session.state.name]
    sessions[message.name] = session
    session.state = Client(message.name)
    return {"type": "nick_ok"}


@router.handler
def join(session, message: Join):
    client, name = session.state, message.room
    if client is None:
        raise Forbidden("say who you are first, with nick")
    room = rooms.get(name) or Room()
    if name not in client.rooms:
        if len(client.rooms) >= MAX_JOINED:
            raise Full("you are in too many rooms: leave one")
        if len(room.members) >= MAX_MEMBERS or (not room.members and len(rooms) >= MAX_ROOMS):
            raise Full("there is no room left", retry_after=60)
        session.broadcast({"type": "joined", "room": name, "name": client.name}, to=room.members.values())
        client.rooms.add(name)
        room.members[client.name] = session
        rooms[name] = room
    return {"type": "join_ok", "who": list(room.members), "history": list(room.history)}


@router.handler
def leave(session, message: Leave):
    room_of(session, message.room)
    part(session, message.room)
    return {"type": "leave_ok"}


@router.handler
def say(session, message: Say):
    room, name = room_of(session, message.room), session.state.name
    said = {"type": "said", "room": message.room, "name": name, "text": message.text}
    said["timestamp"] = session.timestamp
    room.history.append(said)
    return {"type": "say_ok", "recipients": session.broadcast(said, to=room.members.values())}


@router.handler
def who(session, message: Who):
    return {"type": "who_ok", "who": list(room_of(session, message.room).members)}


@router.handler
def list_rooms(session, message: Rooms):
    return {"type": "rooms_ok", "rooms": {name: len(room.members) for name, room in rooms.items()}}
