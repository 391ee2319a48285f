"""A real server with witnesses, and the stage on which one fault is played and measured."""

from __future__ import annotations

import contextlib
import functools
import json
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.faults.witnesses import COUNT, Witnesses
from tests.harness import CUT, LOOPBACK, TIMEOUT, Ended, Message, Peer, Server, until
from tests.identities import Identity, authority, new_path, new_source, token, tokens, users, write

_Number = TypeVar("_Number", int, float)

MEBIBYTE = 1024 * 1024

#: What the peers of a fault log in with, and the witnesses.
TOKEN = "fault-token"
_WITNESS_TOKEN = "witness-token"

#: In the options of a server: `--auth` with a file of one user, who logs in by this name and password.
BY_PASSWORD = "scram:"
USER, PASSWORD = "user", "fault-password"

PING = {"type": "ping"}


@functools.cache
def _tokens_file() -> Path:
    return write(new_path(".tokens"), tokens({TOKEN: "fault", _WITNESS_TOKEN: "witness"}))


@functools.cache
def _users_file() -> Path:
    return write(new_path(".users"), users({USER: PASSWORD}))


@functools.cache
def _identity() -> Identity:
    return authority().issue()


@functools.cache
def context() -> ssl.SSLContext:
    """What a peer needs for TLS with a server of these; to be used and not changed."""
    return authority().context()


def ports() -> list[str]:
    """The endpoints of an arena: TCP, TLS, and both behind a PROXY header."""
    private = _identity().port
    return [LOOPBACK, private, f"haproxy:{LOOPBACK}", f"haproxy:{private}"]


class Guest(Peer):
    """A peer of a fault. What the witnesses broadcast meanwhile is passed over."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        host, port = connection.getsockname()[:2]
        #: The `client_id` that the server will give it, greeted or not.
        self.name = f"{host}:{port}"

    def receive(self) -> Message:
        """
        The next message that is no broadcast.

        Raises:
            AssertionError: there were broadcasts alone for 30 seconds.
        """
        end = time.monotonic() + TIMEOUT
        while (message := super().receive())["type"] == "broadcast":
            assert time.monotonic() < end, f"nothing but broadcasts in {TIMEOUT:g} seconds"
        return message


class Arena:
    """
    One server with witnesses.

    Args:
        options: those of tcpjson, beside the authentication by token.
        login: ask who comes, by token, on ports in the clear too.
        endpoints: the values of `--port`: of these four kinds, in this order, or the first of them.
        witnesses: how many; they begin with the arena and end with it.
        soft_files, files: as of `tests.harness.Server`.
    """

    def __init__(
        self,
        *options: str,
        login: bool = True,
        endpoints: Iterable[str] | None = None,
        witnesses: int = COUNT,
        soft_files: int | None = None,
        files: int | None = None,
    ) -> None:
        self.options = options
        self.login = login
        endpoints = ports() if endpoints is None else list(endpoints)
        options = tuple(f"scram:{_users_file()}" if each == BY_PASSWORD else each for each in options)
        if login:
            options = ("--auth", f"token:{_tokens_file()}", "--allow-plain-auth", *options)
        self.server = Server(*options, ports=endpoints, soft_files=soft_files, files=files)
        try:
            self.witnesses = Witnesses(
                self.server,
                private=1 if len(endpoints) > 1 else None,
                ca=str(authority().file),
                token=_WITNESS_TOKEN if login else None,
                count=witnesses,
            )
        except BaseException:  # at Ctrl-C, too: nobody else knows of the process
            self.server.stop()
            raise

    def stop(self) -> None:
        """End server and witnesses."""
        self.witnesses.stop()
        self.server.stop()

    def agree(self) -> Message:
        """
        See that the server's statistics tell the same reasons of all ends as its log; returns the former.

        Raises:
            AssertionError: they did not within 5 seconds.
        """
        found: Message = {}

        def same() -> bool:
            found.update(self.witnesses.stats())
            return self.server.tells(found["details"]["disconnects"])

        try:
            until(same, "statistics and log tell the same ends", 5)
        except AssertionError as error:
            raise AssertionError(
                f"{error}: {found['details']['disconnects']}, {self.server.reasons()}"
            ) from None
        return found


class Stage:
    """
    Where one fault is played in one combination.

    Args:
        arena: the server.
        tls: whether it is about peers over TLS.
        before: whether these have not logged in.
        short: whether little time is to be spent: the form for each commit.
    """

    def __init__(self, arena: Arena, tls: bool, before: bool, short: bool = False) -> None:
        self.arena = arena
        self.server = arena.server
        self.tls = tls
        self.before = before
        self.short = short
        #: What came of it, in words of the catalogue; the helpers below set it.
        self.came = ""
        #: What was measured beside, for the table.
        self.note = ""
        self.completed: float | None = None
        self.ended: float | None = None
        #: The address that its peers come from: no earlier failure counts for it.
        self.source = new_source()
        self._since = len(self.server.log)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    # Peers.

    def dial(
        self,
        *,
        tls: bool | None = None,
        proxied: bool = False,
        source: str | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
    ) -> socket.socket:
        """
        A bare TCP connection to the port of this stage, closed at its end.

        Args:
            tls: to the port with TLS, whatever the stage is about.
            proxied: to the port for balancers.
            source: the address to come from; that of the stage when None.
            receive_buffer, send_buffer: sizes of its socket's buffers in bytes.
        """
        private = self.tls if tls is None else tls
        connection = socket.socket()
        self._stack.callback(connection.close)
        # Before the connection: the window that a peer is told grows with it.
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        connection.settimeout(TIMEOUT)
        connection.bind((source or self.source, 0))
        connection.connect(self.server.tcp_address(2 * proxied + private))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def secure(self, connection: socket.socket, context_: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """The connection with TLS, handshaken; an end without close_notify is no end in order."""
        private = (context_ or context()).wrap_socket(
            connection, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        )
        self._stack.callback(private.close)
        return private

    def peer(
        self,
        *,
        login: bool | None = None,
        source: str | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        context_: ssl.SSLContext | None = None,
    ) -> Guest:
        """
        A peer that has read `welcome`, and has logged in where the stage, or `login`, says so.

        Args:
            login: log in, whatever the stage is about; False: do not.
            source, receive_buffer, send_buffer: as of `dial`.
            context_: what TLS is made of.
        """
        connection = self.dial(source=source, receive_buffer=receive_buffer, send_buffer=send_buffer)
        guest = Guest(self.secure(connection, context_) if self.tls else connection)
        self.greet(guest)
        if not self.before if login is None else login:
            self.log_in(guest)
        return guest

    def log_in(self, guest: Guest) -> None:
        """Have a peer log in, where the server asks for it."""
        if self.arena.login:
            answer = token(guest, TOKEN)
            assert answer.get("status") == "authenticated", answer

    def greet(self, guest: Guest) -> None:
        """Read `welcome`."""
        guest.welcome = guest.receive()
        assert guest.welcome["type"] == "welcome", guest.welcome

    def converse(self, guest: Guest, requests: Sequence[bytes], sent: int = 0) -> list[Message]:
        """
        Send frames as fast as the server takes them, but for the first `sent` bytes, which were; returns as
        many messages that are no broadcasts.
        """
        data = b"".join(requests)
        answers: list[Message] = []
        while len(answers) < len(requests):
            if sent < len(data):
                sent += guest.write_what_fits(memoryview(data)[sent : sent + MEBIBYTE])
            # Over TLS the socket may be empty and something be there all the same, which comes at once.
            for payload in guest.payloads(1):
                message = json.loads(payload)
                if message["type"] != "broadcast":
                    answers.append(message)
        return answers

    def many(self, short: _Number, long: _Number) -> _Number:
        """A number that depends on how much time is to be spent."""
        return short if self.short else long

    def wait(self, seconds: float) -> None:
        """Let time pass: nothing is awaited."""
        time.sleep(seconds)

    def dribbles(self, guest: Guest, data: bytes, pause: float) -> None:
        """
        Send a byte after each pause of so many seconds, until all are sent, an error or the end comes, or 10
        seconds are over.
        """
        for position in range(min(len(data), int(10 / pause))):
            guest.write(data[position : position + 1])
            end = time.monotonic() + pause
            while (left := end - time.monotonic()) > 0:
                guest.socket.settimeout(left)
                try:
                    if not guest.fill() or b'"type":"error"' in guest.buffer:
                        return
                except TimeoutError:
                    pass
                finally:
                    guest.socket.settimeout(TIMEOUT)

    def nibbles(self, guest: Guest, pause: float, timeout: float = TIMEOUT) -> None:
        """
        Take a byte from the socket, as it comes from the network, after each pause of so many seconds, until
        the server ends the connection; sets `came` as `ends_unread`.

        Raises:
            AssertionError: it did not in time.
        """
        poll = select.poll()
        poll.register(guest.socket, select.POLLRDHUP)
        end = time.monotonic() + timeout
        while not poll.poll(pause * 1000):
            assert time.monotonic() < end, f"no end in {timeout:g} seconds"
            socket.socket.recv(guest.socket, 1)
        self.ends_unread(guest)

    # What comes of it.

    def complete(self) -> None:
        """The fault is complete: the time to the end of the connection counts from now."""
        self.completed = time.monotonic()

    def closed(self) -> None:
        """The peer has seen the end of its connection."""
        if self.ended is None:
            self.ended = time.monotonic()

    def lasted(self, seconds: float) -> None:
        """
        See that the connection did not end before its time.

        Raises:
            AssertionError: it did.
        """
        assert self.completed is not None and self.ended is not None
        lasted = self.ended - self.completed
        assert lasted >= seconds, f"closed after {lasted:.2f} s, before its time"

    def reason(self, guest: Guest) -> str:
        """Why a peer's connection ended, by the server's log."""
        return self.server.disconnects(guest.name, self._since)["reason"]

    def ends(self, guest: Guest) -> list[Message]:
        """
        Read up to the end of the connection, which sets `came`: the code, where a fatal error was the last
        message and the end followed it in order; else the reason in the log, with ", untold" if that
        is one that the peer should have been told.

        Returns:
            The messages before the error.

        Raises:
            AssertionError: an error came, and behind it a reset or part of a frame; or it and the log differ;
                or there was no end for a minute.
        """
        messages: list[Message] = []
        torn = False
        end = time.monotonic() + 2 * TIMEOUT
        try:
            while True:
                messages.append(guest.receive())
                assert time.monotonic() < end, f"no end in {2 * TIMEOUT:g} seconds"
        except Ended as ended:
            torn = ended.reset or bool(guest.buffer)
        self.closed()
        guest.close()
        reason = self.reason(guest)
        if messages and messages[-1].get("fatal"):
            code = messages.pop()["code"]
            assert not torn, f"{code}, and behind it a reset"
            assert code == reason, f"{code} to the peer, {reason} in the log"
            self.came = code
        else:
            self.came = reason if reason in _UNTOLD else f"{reason}, untold"
        return messages

    def ends_unread(self, guest: Guest, timeout: float = TIMEOUT) -> None:
        """
        Wait for the end of the connection of a peer that does not read; `came` is the reason with ", unread".

        Raises:
            AssertionError: it did not come in time.
        """
        self.await_end(guest.socket, timeout)
        guest.close()
        self.came = f"{self.reason(guest)}, unread"

    def await_end(self, connection: socket.socket, timeout: float = TIMEOUT) -> None:
        """
        Wait until the server closes its sending side or resets the connection, and read nothing.

        Raises:
            AssertionError: it did not in time.
        """
        poll = select.poll()
        poll.register(connection, select.POLLRDHUP)
        assert poll.poll(timeout * 1000), f"no end in {timeout:g} seconds"
        self.closed()

    def sends_on(self, guest: Guest, data: bytes, limit: int, timeout: float = TIMEOUT) -> int:
        """
        Send data over and over, and read nothing, until the server closes by force, or `limit` bytes are
        sent.

        Returns:
            How many bytes were sent.

        Raises:
            AssertionError: the server did not close in time.
        """
        sent = 0
        end = time.monotonic() + timeout
        try:
            while sent < limit:
                guest.write(data)
                sent += len(data)
                assert time.monotonic() < end, f"no end in {timeout:g} seconds"
        except (*CUT, TimeoutError):
            self.closed()
        return sent

    def turned_away(self) -> None:
        """
        Come where there is no room, and read up to the end; sets `came` as `ends`.

        Raises:
            AssertionError: the statistics tell of no refusal, or of another than the peer was told; the log
                has none of its kind.
        """
        before = self._refused()
        said: list[Message] = []
        self.complete()
        # Where the server is fast, the connection itself fails.
        with contextlib.suppress(Ended, ConnectionResetError):
            guest = Guest(self.dial())
            while True:
                said.append(guest.receive())
        self.closed()
        [code] = until(lambda: self._refused() - before, "the statistics tell of the refusal", 5)
        # It tells of the first of its kind, and only a minute later of the others.
        until(lambda: any(code in each for each in self.server.refusals()), "the log tells of refusals", 5)
        told = [message["code"] for message in said]
        assert told in ([], [code]), f"{told} to the peer, {code} in the statistics"
        self.came = code if told else f"{code}, untold"

    def _refused(self) -> Counter[str]:
        """How many connections were refused, by the statistics."""
        ends = self.arena.witnesses.stats()["details"]["disconnects"]
        return Counter({code: ends.get(code, 0) for code in _REFUSED})

    def goes_on(self, guest: Guest, answers: Iterable[Message] = ()) -> None:
        """
        See that a peer is served still, and let it leave. Sets `came`: the codes of the errors among the
        answers, and "goes on".

        Raises:
            AssertionError: its ping was not answered; it did not end as `client_closed`.
        """
        codes = dict.fromkeys(each["code"] for each in answers if each["type"] == "error")
        answer = guest.ask(PING | {"id": "goes on"})
        assert (answer["type"], answer.get("id")) == ("pong", "goes on"), answer
        self.leaves(guest)
        self.came = ", ".join([*codes, "goes on"])

    def leaves(self, guest: Guest) -> None:
        """Let a peer close its connection in order, and see that the server takes it so."""
        connection = guest.socket
        with contextlib.suppress(OSError):
            if isinstance(connection, ssl.SSLSocket):
                # Says close_notify, and stumbles where a broadcast comes before the answer.
                connection.settimeout(0.05)
                connection.unwrap()
            else:
                connection.shutdown(socket.SHUT_WR)
        # What is unread when a socket is closed makes a reset of it.
        with contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT)
            while socket.socket.recv(connection, 65536):
                pass
        guest.close()
        reason = self.reason(guest)
        assert reason == "client_closed", f"{reason} of one that closed in order"


# Why there is no room, and ends that no error announces (docs/protocol.rst, section 9).
_REFUSED = ("server_full", "too_many_connections")
_UNTOLD = ("client_closed", "connection_lost", "handshake_failed", "closed_by_handler")
