"""All functions of a server, one after another: `python -m tcpjson.demo [HOST[:PORT] | ENDPOINT]`."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from tcpjson.client import Client
from tcpjson.client.endpoints import client_endpoint
from tcpjson.console.rendering import MAX_LINE, Line
from tcpjson.core.errors import (
    AuthenticationFailed,
    BadJSON,
    BadMessage,
    Disconnected,
    RequestTimeout,
    UnknownType,
)
from tcpjson.core.handshake import Json, ServerInfo
from tcpjson.server import TCPJSONServerFactory

#: Where a server is looked for.
DEFAULT = "localhost:9999"
#: Seconds that all of it may take, once the program has started.
SECONDS = 4.0

# Where nobody listens on this machine, a server of our own can stand for the one that is missing; for one on
# another machine it would show nothing.
_HERE = re.compile(r"(tcp:)?(localhost|127\.[\d.]+|\[::1\])(:|$)")
# Characters of a value that are shown.
_SHOWN = 70
# Characters of the long text.
_LONG = 100_000

_TEXT = "Hello Server!"
_OBJECT = {"x": 1, "y": [2, 3], "z": None, "deep": {"yes": True}}
_UNICODE = "Grüße, 你好, \N{WAVING HAND SIGN}"
_NUMBERS = [18446744073709551615, -9223372036854775808, 0.30000000000000004]
_NO_LOGIN = (
    "the server wants a login, which the demo cannot do: try python -m tcpjson.console --user NAME"
    " (or --token-file FILE)"
)
_SENTENCE = "The same words again and again take little room when they are compressed. "


class Wrong(Exception):
    """A step did not come back right; the text has the step, what was expected and what came."""


def shown(value: object) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def expect(expected: object, came: object) -> None:
    """Raise `Wrong` unless both are the same."""
    if came != expected:
        raise Wrong(f"expected {shown(expected)}, came {shown(came)}")


def expect_least(name: str, least: float, came: object) -> float:
    """The number that came. Raises `Wrong` unless it is one, and large enough."""
    if not isinstance(came, (int, float)) or came < least:
        raise Wrong(f"expected {name} of at least {least:g}, came {shown(came)}")
    return came


class Inbox:
    """What a client got that is no reply."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self._changed: Deferred[None] = Deferred()

    def take(self, message: Json) -> None:
        """A message has come."""
        self._messages.append(message)
        changed, self._changed = self._changed, Deferred()
        changed.callback(None)

    def all(self, **fields: object) -> list[Json]:
        """The messages so far that have these fields."""
        return [message for message in self._messages if fields.items() <= message.items()]

    async def first(self, **fields: object) -> Json:
        """The first message that has these fields, when it is there."""
        while not (found := self.all(**fields)):
            await self._changed
        return found[0]


class Demo:
    """
    The steps, taken by three clients.

    Args:
        make: makes a client, from the options of `tcpjson.client.Client`.
        write: is given each line.
        nonce: a word that no other client sends.
    """

    def __init__(self, make: Callable[..., Client], write: Callable[[str], object], nonce: str) -> None:
        self._write = write
        self._nonce = nonce
        self._step = ""
        self._inboxes = [Inbox() for _ in range(3)]
        self._clients = [make(on_message=inbox.take, retries=0) for inbox in self._inboxes]
        self._alice = self._clients[0]

    @property
    def steps(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """All steps by their names, in order."""
        return [
            ("welcome", self._welcome),
            ("ping", self._ping),
            ("text", lambda: self._echo(_TEXT)),
            ("object", lambda: self._echo(_OBJECT)),
            ("unicode", lambda: self._echo(_UNICODE)),
            ("numbers", lambda: self._echo(_NUMBERS)),
            ("broadcast", self._broadcast),
            ("statistics", self._statistics),
            ("other type", self._other_type),
            ("plain text", self._plain_text),
            ("error", self._error),
            ("compression", self._compression),
            ("timeout", self._timeout),
            ("end", self._end),
        ]

    async def run(self) -> None:
        """
        Take all steps. What is open then is closed.

        Raises:
            Wrong: a step did not come back right. The steps behind it were not taken.
        """
        try:
            for name, step in self.steps:
                self._step = name
                try:
                    await step()
                except Wrong as error:
                    raise Wrong(f"{name}: {error}") from None
                except CancelledError:
                    raise Wrong(f"{name}: expected an answer, none came in time") from None
                except AuthenticationFailed:
                    raise Wrong(f"{name}: {_NO_LOGIN}") from None
                except Exception as error:
                    raise Wrong(f"{name}: expected no error, came {type(error).__name__}: {error}") from error
        finally:
            for client in self._clients:
                client.close()

    def _say(self, mark: str, text: str) -> None:
        self._write(f"{self._step:11} {mark} {text}")
        self._step = ""

    def _sent(self, value: object) -> None:
        self._say(">", shown(value))

    def _came(self, value: object) -> None:
        self._say("<", shown(value))

    def _told(self, text: str) -> None:
        self._say("<", text)

    def _note(self, text: str) -> None:
        self._say("*", text)

    @property
    def _server(self) -> ServerInfo:
        server = self._alice.server
        assert server is not None
        return server

    # The steps.

    async def _welcome(self) -> None:
        ids = []
        for client in self._clients:
            welcome = await client.connect(timeout=SECONDS)
            ids.append(str(welcome.get("client_id")))
        self._note(f"the server is {self._server.server or 'a classic one'}, our three clients are")
        self._note(", ".join(ids))

    async def _ping(self) -> None:
        request = {"type": "ping", "timestamp": self._nonce}
        self._sent(request)
        reply = await self._alice.request(request)
        expect("pong", reply.get("type"))
        expect(self._nonce, reply.get("ping_timestamp"))
        seconds = await self._alice.ping()
        self._told(f"pong, after {seconds * 1000:.1f} ms")

    async def _echo(self, content: object) -> None:
        self._sent(content)
        answer = await self._alice.echo(content)
        expect(content, answer)
        self._came(answer)

    async def _broadcast(self) -> None:
        content = {"text": "Hello all clients!", "nonce": self._nonce}
        self._sent(content)
        count = await self._alice.broadcast(content)
        expect_least("a number of recipients", 2, count)
        self._told(f"{count} recipients")
        for inbox, client in zip(self._inboxes[1:], self._clients[1:], strict=True):
            message = await inbox.first(type="broadcast", content=content)
            self._told(f"from {message.get('from_client')}: {content['text']}")
            # Behind its reply nothing of before can come.
            await client.ping()
            expect(1, len(inbox.all(content=content)))
        await self._alice.ping()
        expect([], self._inboxes[0].all(content=content))

    async def _statistics(self) -> None:
        self._sent({"type": "get_stats"})
        before, after = await self._alice.stats(), await self._alice.stats()
        expect_least("connected_clients", 3, after.get("connected_clients"))
        expect_least("uptime_seconds", 0, after.get("uptime_seconds"))
        total = expect_least("total_messages", 0, before.get("total_messages"))
        expect_least("total_messages", total + 1, after.get("total_messages"))
        names = ("connected_clients", "total_messages", "uptime_seconds")
        self._came({name: after[name] for name in names})

    async def _other_type(self) -> None:
        request = {"type": "demo", "nonce": self._nonce}
        self._sent(request)
        try:
            reply = await self._alice.request(request)
        except UnknownType as error:
            self._told(f"{error.code}: {error}")
            self._note("the server is strict")
            return
        expect("response", reply.get("type"))
        original = reply.get("original_message")
        expect(
            request,
            {name: original.get(name) for name in request} if isinstance(original, dict) else original,
        )
        self._told("response, with that message inside")

    async def _plain_text(self) -> None:
        text = f"This is no JSON. {self._nonce}"
        self._sent(text)
        self._alice.send(text)
        # Behind its reply, that to the text must have come.
        await self._alice.ping()
        inbox = self._inboxes[0]
        if inbox.all(type="error", code=BadJSON.code):
            self._told(BadJSON.code)
            self._note("the server is strict")
            return
        expect([text], [message.get("original_text") for message in inbox.all(type="echo")])
        self._came({"type": "echo", "original_text": text})

    async def _error(self) -> None:
        if self._server.classic:
            self._note("left out: a classic server tells of no errors")
            return
        request = {"type": "hello", "client": "too late"}
        self._sent(request)
        try:
            reply = await self._alice.request(request)
        except BadMessage as error:
            self._told(f"{error.code}: {error}")
        else:
            raise Wrong(f"expected {BadMessage.code}, came {shown(reply)}")

    async def _compression(self) -> None:
        if not self._server.compression:
            self._note("left out: the server offers none")
            return
        expect(self._server.compression[0], self._alice.compression)
        size = min(_LONG, (self._server.max_length or _LONG) // 2)
        text = (_SENTENCE * (size // len(_SENTENCE) + 1))[:size]
        self._sent(text)
        before = await self._bytes()
        answer = await self._alice.echo(text)
        if answer != text:
            raise Wrong(f"expected {shown(text)}, came {shown(answer)}")
        after = await self._bytes()
        self._came(answer)
        counted = "" if before is None or after is None else f"; the server counted {after - before} bytes"
        self._note(f"{size} characters each way{counted}")

    async def _bytes(self) -> int | None:
        """All that the server has received and sent so far; None where it does not tell."""
        details: Any = (await self._alice.stats()).get("details")
        try:
            return int(details["bytes_in"]) + int(details["bytes_out"])
        except (KeyError, TypeError, ValueError):
            return None

    async def _timeout(self) -> None:
        self._sent({"type": "ping"})
        try:
            # No reply comes in the same turn of the reactor.
            await self._alice.ping(timeout=0)
        except RequestTimeout as error:
            self._note(f"RequestTimeout: {error}")
        else:
            raise Wrong("expected no reply so soon, came one")
        await self._alice.ping()
        self._note("the next ping is answered")

    async def _end(self) -> None:
        for client in self._clients:
            await client.close()
            expect(False, client.connected)
        try:
            await self._alice.ping()
        except Disconnected as error:
            self._note(f"all are closed; a request now fails with Disconnected: {error}")
        else:
            raise Wrong("expected Disconnected, came a pong")


class Output:
    """
    Prints lines to a file, and nothing more once nobody reads them.

    What a terminal would obey, and what the file cannot write, is written as an escape: much of it is from
    the server.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        # There is none where the program was started with it closed.
        if file is not None:
            file.reconfigure(errors="backslashreplace")

    def __call__(self, line: str) -> None:
        """Print a line."""
        if self._file is None:
            return
        try:
            print(Line("", line).plain(MAX_LINE), file=self._file, flush=True)
        except OSError:
            # What is left in the buffer has to go somewhere when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)


async def answers(endpoint: IStreamClientEndpoint, where: str, may_start: bool) -> bool:
    """
    Whether somebody listens.

    Args:
        endpoint: who is asked.
        where: how to name it.
        may_start: where it refuses the connection, a server may be started in its place.

    Raises:
        Wrong: it cannot be reached, and no server may be started.
    """
    try:
        probe: Any = await endpoint.connect(Factory.forProtocol(Protocol))
    except Exception as error:
        if may_start and isinstance(error, Refused):
            return False
        raise Wrong(f"nobody answers at {where}: {error}") from None
    probe.transport.loseConnection()
    return True


async def serve(reactor: Any) -> str:
    """
    Serve on a free port of loopback; returns where.

    It is in this process, and so ends with it, however that ends.
    """
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = await endpoint.listen(TCPJSONServerFactory(reactor))
    return f"127.0.0.1:{port.getHost().port}"


async def show(
    reactor: Any, endpoint: IStreamClientEndpoint, where: str, may_start: bool, write: Callable[[str], object]
) -> None:
    """
    Find a server, or start one, and show it.

    Args:
        endpoint, where, may_start: as `answers` takes them.
        write: is given each line.

    Raises:
        Wrong: the server is not there, or not as it should be.
    """
    begin = reactor.seconds()
    if await answers(endpoint, where, may_start):
        write(f"a server listens at {where}")
    else:
        own = await serve(reactor)
        write(f"nobody listens at {where}: this is a server of the demo's own, {own}")
        endpoint = client_endpoint(reactor, own)
    demo = Demo(partial(Client, reactor, endpoint), write, uuid4().hex[:8])
    await demo.run()
    seconds = reactor.seconds() - begin
    write(f"all {len(demo.steps)} steps came back right, in {seconds:.2f} seconds")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tcpjson.demo",
        description="Show all functions of a server, one after another; of one that is started for it where"
        " nobody listens on this machine.",
        epilog="The status is 0 if every step came back right, and else 1.",
    )
    parser.add_argument(
        "where",
        nargs="?",
        default=DEFAULT,
        metavar="HOST[:PORT] | ENDPOINT",
        help=f"the server (default {DEFAULT}), or an endpoint of Twisted's: tls:HOST:PORT, unix:PATH",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="speak TLS, with a server that a certificate in this PEM file vouches for",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the program; returns its exit status: 1 when a step went wrong, which a line on standard error tells.

    Raises:
        SystemExit: with 2, the command line is wrong; with 0, help was asked for.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    from twisted.internet import reactor as installed

    # What Twisted gives as the reactor depends on the system.
    reactor: Any = installed
    try:
        endpoint = client_endpoint(reactor, options.where, options.ca)
    except ValueError as error:
        parser.error(str(error))
    may_start = options.ca is None and _HERE.match(options.where) is not None
    write, complain = Output(sys.stdout), Output(sys.stderr)
    statuses: list[int] = []

    def end(status: int) -> None:
        if not statuses:
            statuses.append(status)
            reactor.stop()

    def failed(failure: Failure) -> int:
        # Once it is interrupted all goes wrong.
        if not statuses:
            complain(f"tcpjson.demo: {failure.getErrorMessage()}")
        return 1

    def begin() -> None:
        # In place of Twisted's handlers, which do not tell what ended the reactor.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: reactor.callFromThread(end, 128 + number))
        showing = Deferred.fromCoroutine(show(reactor, endpoint, options.where, may_start, write))
        showing.addTimeout(SECONDS, reactor).addCallbacks(lambda _: 0, failed).addCallback(end)

    reactor.callWhenRunning(begin)
    reactor.run()
    return statuses[0]


if __name__ == "__main__":
    sys.exit(main())
