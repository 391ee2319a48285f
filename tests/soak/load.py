"""The load of the soak test: clients that come, do all there is to do, and go in all ways."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.harness import CUT, TIMEOUT, Ended, Server, encode
from tests.identities import Scram, plain, plain_message, scram, shown, token
from tests.soak.guests import (
    CLOSED,
    KINDS,
    LEAVINGS,
    LOST,
    NAMES,
    NO_HANDSHAKE,
    TCP,
    TLS,
    TOKEN,
    UNIX,
    Gate,
    Guest,
    Plan,
    Site,
    Tally,
    Witness,
    close,
    deeds,
    end_code,
    expect,
    half_close,
    reset,
)

# Bytes of a socket's buffer of a client that reads nothing.
_SMALL = 8192
# Broadcasts of 16 KiB that are more than the sockets between take, compressed too.
_FILLERS = 32
# Of so many connections, one that was reset may be taken for one that was closed.
_SELDOM = 2000


@dataclass
class Special:
    """A visit that is paid once a minute: when, in parts of it, and how many seconds it takes at the most."""

    name: str
    when: float
    seconds: float
    pay: Callable[[], None]
    #: How many minutes it has been paid in.
    paid: int = field(default=0)


class Load:
    """
    Clients of one server, from `start` on for a time.

    Args:
        plan: what they do.
        site: whose files the server reads.
        server: started with the options of both.
        tally: counts what they do.
        seed: of the dice.
    """

    def __init__(self, plan: Plan, site: Site, server: Server, tally: Tally, seed: int) -> None:
        self.plan, self.site, self.server, self.tally = plan, site, server, tally
        self._seed = seed
        self._gate = Gate()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._until = 0.0

    # Coming.

    def _dial(self, kind: str, source: str | None = None, small: bool = False) -> socket.socket:
        """A connected socket, without TLS."""
        self.tally.count("connections")
        connection = socket.socket(socket.AF_UNIX if kind == UNIX else socket.AF_INET)
        connection.settimeout(TIMEOUT)
        try:
            if small:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            if kind == UNIX:
                connection.connect(self.server.addresses[KINDS.index(kind)])
            else:
                if source is not None:
                    connection.bind((source, 0))
                connection.connect(self.server.tcp_address(KINDS.index(kind)))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _raw(self, kind: str, deed: str, codes: frozenset[str]) -> Iterator[Guest]:
        """A connection that hears of no `welcome`; `codes`: of its end."""
        with self._gate.entering():
            connection = self._dial(kind)
        host, port = connection.getsockname()
        with connection:
            yield Guest(kind, connection, f"{host}:{port}")
        self.tally.end(f"{host}:{port}", f"{deed}, {kind}", codes)

    def _secure(self, connection: socket.socket, dice: random.Random) -> ssl.SSLSocket:
        context = dice.choice(self.site.contexts)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")

    @contextlib.contextmanager
    def _welcomed(
        self,
        kind: str,
        dice: random.Random,
        make: Callable[[str, socket.socket], Guest] = Guest,
        source: str | None = None,
        small: bool = False,
    ) -> Iterator[Guest]:
        """A client that has read `welcome`."""
        with self._gate.entering():
            connection = self._dial(kind, source, small)
            try:
                if kind == TLS:
                    connection = self._secure(connection, dice)
                guest = make(kind, connection)
                guest.welcome = guest.receive()
                expect(guest.welcome["type"] == "welcome", guest.welcome)
            except BaseException:
                connection.close()
                raise
        with connection:
            yield guest

    def _source(self, dice: random.Random) -> str:
        """An address of this machine from which few others come: failures there delay nobody else."""
        return f"127.{dice.randrange(2, 250)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"

    def _log_in(self, guest: Guest, dice: random.Random) -> None:
        """Say who it is, and perhaps `hello`."""
        greeting = dice.random()
        if greeting < 0.5:
            self._hello(guest, dice.random() < 0.5)
        name = dice.choice(NAMES)
        way = dice.random()
        if way < 0.5:
            result = scram(guest, name, self.site.password(name))
        elif way < 0.75 or guest.kind == TCP:
            result = token(guest, TOKEN)
        else:
            result = plain(guest, name, self.site.password(name))
        expect(result.get("status") == "authenticated", result)
        self.tally.count("logins")
        if greeting > 0.75:
            self._hello(guest, dice.random() < 0.5)

    def _hello(self, guest: Guest, compress: bool, pings: bool = True) -> None:
        names = ["zlib"] if compress else []
        reply = guest.ask({"type": "hello", "client": "soak/1", "heartbeat": pings, "compression": names})
        expect(reply["type"] == "hello_response" and reply["heartbeat"] is pings, reply)
        expect(reply["compression"] == ("zlib" if compress else None), reply)
        guest.compresses = compress
        self.tally.count("compressed", compress)

    # Visits.

    def _visit(self, dice: random.Random) -> None:
        """Come, do something, go."""
        if dice.random() < 0.35:
            dice.choice(
                [
                    self._no_login,
                    self._reset_at_once,
                    self._cut_handshake,
                    self._no_tls,
                    self._gone_after_handshake,
                    self._too_large_before_login,
                    self._login_begun,
                    self._wrong_logins,
                ]
            )(dice)
            return
        kind = dice.choice(KINDS)
        possible = deeds(self.plan, dice)
        with self._welcomed(kind, dice) as guest:
            self._log_in(guest, dice)
            for deed in dice.choices([*possible], [*possible.values()], k=dice.randrange(5)):
                deed(guest)
            [leave] = dice.choices([*LEAVINGS], [*LEAVINGS.values()])
            self._ends(guest, leave(guest), leave.__name__)

    def _ends(self, guest: Guest, codes: frozenset[str], deed: str) -> None:
        self.tally.end(guest.client_id, f"{deed.replace('_', ' ').strip()}, {guest.kind}", codes)

    def _no_login(self, dice: random.Random) -> None:
        """Ask for what only those get who have logged in, and go."""
        with self._welcomed(dice.choice(KINDS), dice) as guest:
            for kind in dice.sample(["echo", "broadcast", "get_stats"], dice.randrange(3)):
                guest.send({"type": kind, "content": "x"})
                guest.error("unauthenticated")
            leave = dice.choice([half_close, close, reset])
            self._ends(guest, leave(guest), "no login")

    def _reset_at_once(self, dice: random.Random) -> None:
        with self._raw(TCP, "reset at once", LOST) as guest:
            guest.reset()

    def _cut_handshake(self, dice: random.Random) -> None:
        """Send a part of what begins TLS."""
        outgoing = ssl.MemoryBIO()
        tls = dice.choice(self.site.contexts).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = outgoing.read()
        with self._raw(TLS, "within the handshake", NO_HANDSHAKE) as guest:
            # All of it gets an answer that is never read.
            guest.write(hello[: dice.choice([1, len(hello) // 2, len(hello)])])
            dice.choice([guest.close, guest.reset])()

    def _no_tls(self, dice: random.Random) -> None:
        with self._raw(TLS, "no TLS", NO_HANDSHAKE) as guest:
            guest.write(encode({"type": "ping"}))
            guest.drain()

    def _gone_after_handshake(self, dice: random.Random) -> None:
        """Go when one's own side of the handshake is done: in TLS 1.3 the server's need not be."""
        with self._raw(TLS, "after the handshake", NO_HANDSHAKE | LOST) as guest:
            Guest(TLS, self._secure(guest.socket, dice)).reset()

    def _too_large_before_login(self, dice: random.Random) -> None:
        with self._welcomed(dice.choice(KINDS), dice) as guest:
            guest.write(struct.pack(">I", 4097) + b"x" * 1000)
            guest.ended("too_large")
            self._ends(guest, end_code("too_large"), "too large before login")

    def _login_begun(self, dice: random.Random) -> None:
        """Go in the midst of a login."""
        with self._welcomed(dice.choice(KINDS), dice) as guest:
            if guest.kind == TCP or dice.random() < 0.5:
                challenge = guest.ask(Scram("alice", "secret").first())
                expect(challenge["type"] == "auth_challenge", challenge)
            else:
                # Its hash is still computed when it goes, or waits to be.
                guest.send(plain_message("alice", self.site.password("alice")))
            leave = dice.choice([close, reset])
            self._ends(guest, leave(guest), "login begun")

    def _wrong_logins(self, dice: random.Random) -> None:
        """Fail once and log in, or fail until it is enough."""
        kind = dice.choice(KINDS)
        with self._welcomed(kind, dice, source=None if kind == UNIX else self._source(dice)) as guest:
            enough = dice.random() < 0.5
            for _ in range(3 if enough else 1):
                way = dice.randrange(3)
                if way == 0:
                    result = scram(guest, dice.choice([*NAMES, "nobody"]), "wrong")
                elif way == 1:
                    result = token(guest, "wrong")
                else:
                    result = plain(guest, dice.choice([*NAMES, "nobody"]), "wrong")
                expect(result.get("status") == "authentication_failed", result)
                self.tally.count("wrong logins")
            if enough:
                guest.ended("auth_failed")
                self._ends(guest, end_code("auth_failed"), "wrong logins")
            else:
                self._log_in(guest, dice)
                self._ends(guest, half_close(guest), "wrong login, then right")

    # Special visits.

    def _specials(self, dice: random.Random) -> list[Special]:
        plan = self.plan
        # It is looked at four times in a `write_timeout`; 2 seconds later it is aborted.
        patient = 1.25 * plan.write_timeout + 4
        rows: list[tuple[str, float, Callable[[], None]]] = [
            ("reread", 2.0, self._reread),
            ("full", 2.0, self._full),
            ("stuck handshake", plan.auth_timeout + 1, self._stuck_handshake),
            ("heartbeat", plan.heartbeat + 13, partial(self._silent, dice)),
        ]
        for kind in KINDS:
            rows += [
                ("slow reader", patient, partial(self._slow_reader, kind, dice)),
                ("stuck login", plan.auth_timeout + 1, partial(self._stuck_login, kind, dice)),
                ("slow frame", plan.frame_timeout + 2, partial(self._slow_frame, kind, dice)),
            ]
        rows = [row for row in rows if row[0] not in plan.without]
        return [
            Special(name, index / len(rows), seconds, pay)
            for index, (name, seconds, pay) in enumerate(sorted(rows, key=lambda row: -row[1]))
        ]

    def _slow_reader(self, kind: str, dice: random.Random) -> None:
        """Log in and read nothing more, while somebody else sends more than the sockets take."""
        with self._welcomed(kind, dice, small=True) as guest:
            # Who asks for pings and reads none may end for that.
            self._hello(guest, dice.random() < 0.5, pings=False)
            expect(scram(guest, "bob", self.site.password("bob")).get("status") == "authenticated", kind)
            self.tally.count("logins")
            since = len(self.server.log)
            with self._welcomed(UNIX, dice) as other:
                self._log_in(other, dice)
                for _ in range(_FILLERS):
                    # What cannot be compressed to much less.
                    reply = other.request(type="broadcast", content=dice.randbytes(8192).hex())
                    expect(reply["type"] == "broadcast_sent", reply)
                self._ends(other, half_close(other), "half close")
            # A client of another port of the server may have the same address meanwhile.
            self.server.wait_for(rf"\] disconnected {guest.client_id} .*reason=slow_consumer ", since=since)
            self._ends(guest, end_code("slow_consumer"), "slow reader")
        self.tally.count("slow readers")

    def _stuck_login(self, kind: str, dice: random.Random) -> None:
        with self._welcomed(kind, dice) as guest:
            guest.ended("auth_timeout")
            self._ends(guest, end_code("auth_timeout"), "stuck login")

    def _stuck_handshake(self) -> None:
        with self._raw(TLS, "stuck handshake", NO_HANDSHAKE) as guest:
            guest.drain()

    def _slow_frame(self, kind: str, dice: random.Random) -> None:
        with self._welcomed(kind, dice) as guest:
            self._log_in(guest, dice)
            guest.write(struct.pack(">I", 1000) + b"{")
            guest.ended("frame_timeout")
            self._ends(guest, end_code("frame_timeout"), "slow frame")

    def _silent(self, dice: random.Random) -> None:
        """Ask for pings and answer none."""
        kind = dice.choice(KINDS)
        with self._welcomed(kind, dice) as guest:
            self._hello(guest, dice.random() < 0.5)
            expect(token(guest, TOKEN).get("status") == "authenticated", guest.client_id)
            self.tally.count("logins")
            guest.alive = False
            guest.ended("heartbeat_timeout")
            self._ends(guest, end_code("heartbeat_timeout"), "silent")

    def _reread(self) -> None:
        """Have the server read its files anew; see that it did."""
        dice = random.Random(self._seed)
        self.site.renew()
        since = len(self.server.log)
        self.server.signal(signal.SIGHUP)
        self.server.wait_for(r"\] read anew: ", since=since)
        for ago, status in ((0, "authenticated"), (1, "authentication_failed")):
            with self._welcomed(TLS, dice, source=self._source(random.Random(os.urandom(8)))) as guest:
                assert isinstance(guest.socket, ssl.SSLSocket)
                expect(shown(guest.socket) == self.site.serial, "an old certificate")
                result = token(guest, self.site.token(ago))
                expect(result.get("status") == status, result)
                self.tally.count("wrong logins" if ago else "logins")
                self._ends(guest, half_close(guest), "files read anew")
        self.tally.count("read anew")

    def _full(self) -> None:
        """Take all connections that there may be, and some that are refused; then leave."""
        dice = random.Random(self._seed)
        guests: list[Guest] = []
        refused = 0
        with self._gate.shut(), contextlib.ExitStack() as stack:
            for kind in itertools.cycle(KINDS):
                # Others leave meanwhile, and make room again.
                if guest := self._refused(kind, dice, stack):
                    guests.append(guest)
                    continue
                self.tally.count("refused")
                refused += 1
                if refused == 12:
                    break
            for guest in guests:
                # On a machine that is busy the first ones may be too late.
                self._ends(guest, half_close(guest) | end_code("auth_timeout"), "full")

    def _refused(self, kind: str, dice: random.Random, stack: contextlib.ExitStack) -> Guest | None:
        """Come where there may be no room; returns the client if there is."""
        try:
            connection = stack.enter_context(self._dial(kind))
            if kind == TLS:
                connection = stack.enter_context(self._secure(connection, dice))
        # Where there would be TLS, it is refused without a word.
        except CUT:
            expect(kind == TLS, kind)
            return None
        guest = Guest(kind, connection)
        guest.welcome = guest.receive()
        if guest.welcome["type"] == "welcome":
            return guest
        expect(guest.welcome.get("code") == "server_full", guest.welcome)
        guest.drain()
        return None

    # Those that stay.

    def _stay(self) -> None:
        """Numbered broadcasts, round by round."""
        plan = self.plan
        dice = random.Random(self._seed)
        with contextlib.ExitStack() as stack:
            witnesses: list[Witness] = []
            # The last one only listens, and is sent pings.
            for index in range(plan.senders + 1):
                guest = stack.enter_context(
                    self._welcomed(KINDS[index % len(KINDS)], dice, partial(Witness, tally=self.tally))
                )
                assert isinstance(guest, Witness)
                self._hello(guest, index % 2 == 1)
                expect(token(guest, TOKEN).get("status") == "authenticated", guest.client_id)
                self.tally.count("logins")
                witnesses.append(guest)
            for index, witness in enumerate(witnesses):
                witness.next = {sender: 0 for sender in range(plan.senders) if sender != index}
            number = 0
            while not self._stop.wait(plan.pause):
                for index, witness in enumerate(witnesses[:-1]):
                    filler = "w" * int(10 * (plan.longest_broadcast / 10) ** dice.random())
                    witness.send({"type": "broadcast", "content": [index, number, filler]})
                for witness in witnesses:
                    witness.wait_for(number)
                number += 1
            for witness in witnesses:
                self._ends(witness, half_close(witness), "stayed")

    # The run.

    def start(self, seconds: float) -> None:
        """Begin, for so many seconds; `join` waits for the end."""
        self._until = time.monotonic() + seconds
        works: list[tuple[str, Callable[[], None]]] = [("those that stay", self._stay)]
        works += [
            (f"visitor {number}", partial(self._visits, number)) for number in range(self.plan.visitors)
        ]
        works.append(("special visits", self._pay_specials))
        for what, work in works:
            self._go(what, work)

    def _go(self, what: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except (AssertionError, Ended, OSError, LookupError, ValueError) as error:
                self.tally.problem(f"{what}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, name=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _visits(self, number: int) -> None:
        plan = self.plan
        dice = random.Random(f"{self._seed} {number}")
        interval = plan.visitors / plan.rate
        due = time.monotonic() + interval * number / plan.visitors
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # Whoever is late pays no more visits at once for that.
            due = max(due + interval, time.monotonic())
            try:
                self._visit(dice)
            except (AssertionError, Ended, OSError, LookupError) as error:
                self.tally.problem(f"a visit: {type(error).__name__}: {error}")

    def _pay_specials(self) -> None:
        plan = self.plan
        specials = self._specials(random.Random(self._seed))
        began = time.monotonic()
        while not self._stop.wait(0.05):
            now = time.monotonic()
            for special in specials:
                due = began + (special.paid + special.when) * plan.minute
                if due <= now and now + special.seconds <= self._until:
                    special.paid += 1
                    self.tally.count(f"special: {special.name}")
                    self._go(special.name, special.pay)

    def ended(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._until

    def join(self) -> None:
        """Have all leave, and wait until they have."""
        self._stop.set()
        # The last ones may have begun others.
        for thread in iter(lambda: self._threads.pop() if self._threads else None, None):
            thread.join(2 * TIMEOUT)
            if thread.is_alive():
                self.tally.problem(f"{thread.name}: does not end")


def ended_as_done(
    ends: dict[str, list[tuple[str, frozenset[str]]]], found: Sequence[tuple[str, str]]
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """
    Compare what clients did with how the log says they ended.

    Args:
        ends: by client id, in order: the deed, and the codes one of which must be found.
        found: client ids and codes, in the order of the log.

    Returns:
        How often which deed ended how, and what does not fit.
    """
    left = {client_id: list(rows) for client_id, rows in ends.items()}
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    seldom: list[str] = []
    for client_id, code in found:
        rows = left.get(client_id)
        if not rows:
            wrong.append(f"{client_id} ended as {code}, and did nothing that is known")
            continue
        # Clients of two ports of the server can have one address at a time: either may end first.
        index = next((index for index, (_, codes) in enumerate(rows) if code in codes), 0)
        deed, codes = rows.pop(index)
        counts[deed, code] += 1
        if code not in codes:
            row = f"{client_id} ({deed}) ended as {code}, not as {' or '.join(sorted(codes))}"
            (seldom if codes == LOST and {code} == CLOSED else wrong).append(row)
    # The system tells of a reset in two steps; if Twisted sees the first alone, it takes that for an end in
    # order: 1 of 10,946 that were tried.
    if len(seldom) > max(1, counts.total() // _SELDOM):
        wrong += seldom
    wrong += [
        f"{client_id} ({deed}): the log tells of no end"
        for client_id, rows in left.items()
        for deed, _ in rows
    ]
    return counts, wrong
