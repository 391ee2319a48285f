"""Faults of many peers at once."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

from twisted.trial.unittest import SkipTest

from tcpjson.verifiers import ITERATIONS
from tests.faults.arena import MEBIBYTE, PING, TOKEN, Arena, Stage, context
from tests.faults.catalogue import fault
from tests.faults.witnesses import COUNT, Witnesses
from tests.harness import TIMEOUT, Message, Peer, Server, encode, until
from tests.identities import (
    Scram,
    authority,
    new_path,
    new_source,
    plain,
    plain_message,
    scram,
    token_message,
    users,
    write,
)
from tests.test_shutdown import Flood

_SWARM = Path(__file__).with_name("swarm.py")

# Seconds in which a swarm does what it is asked for; the longest takes 15 where nothing else runs.
_PATIENCE = 180.0


class Swarm:
    """
    The process of a crowd, as tests/faults/swarm.py says; a context manager that ends it.

    Args:
        stage: where to.
        kind: what each does, of `swarm.KINDS`.
        count: how many.
        tls: over TLS; as the stage when None.
        login: each logs in; as the stage when None.
        sources: addresses to come from, in turn; that of the stage when empty.
        parameters: what the kind wants to know.
    """

    def __init__(
        self,
        stage: Stage,
        kind: str,
        count: int,
        *,
        tls: bool | None = None,
        login: bool | None = None,
        sources: Sequence[str] = (),
        **parameters: Any,
    ) -> None:
        private = stage.tls if tls is None else tls
        entering = not stage.before if login is None else login
        host, port = stage.server.tcp_address(private)
        plan = {
            "kind": kind,
            "host": host,
            "port": port,
            "count": count,
            "tls": private,
            "messages": [token_message(TOKEN)] if entering and stage.arena.login else [],
            "sources": list(sources) or [stage.source],
            "parameters": parameters,
        }
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, str(_SWARM), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            end.close()

    def wait_for(self, event: str, timeout: float = _PATIENCE) -> Message:
        """
        The next event of a name.

        Raises:
            AssertionError: it did not come in time.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                message: Message = json.loads(line)
                if message["event"] == event:
                    return message
                continue
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            data = self._process.stdout.read(65536) if ready else b""
            if not data:
                raise AssertionError(f"the crowd did not tell {event!r} in {timeout:g} seconds")
            self._buffer += data

    def ready(self) -> Message:
        """Wait until all have come as far as they are to come, or were ended."""
        return self.wait_for("ready")

    def tell(self, word: str) -> None:
        """Write a word to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")

    def counts(self) -> Message:
        """What was counted up to now."""
        self.tell("counts")
        return self.wait_for("counts")

    def leave(self) -> Counter[str]:
        """Have all close; returns how each had ended, `stayed` if it had not."""
        self.tell("leave")
        return Counter(self.wait_for("done")["outcomes"])


def _grew(stage: Stage, before: int, count: int, each: float) -> None:
    """See that the server's peak of memory grew by no more than so many KiB for each of so many peers."""
    grown = stage.server.peak() - before
    assert grown < 1024 * each * count + 3 * MEBIBYTE, f"{grown / count / 1024:.0f} KiB for each of {count}"


def _expect(found: object, expected: object) -> None:
    assert found == expected, f"{found} and not {expected}"


def _reasons(stage: Stage, count: int, log: int) -> str:
    """Wait for the ends of so many, from a line of the log on; returns their reasons."""
    ends = stage.server.wait_for(r"\] disconnected \S+ (?:user=.* )?reason=(\S+) ", count, log)
    return ", ".join(sorted({end[1] for end in ends}))


def _alone(stage: Stage) -> None:
    """Wait until none but the witnesses are there."""

    def others() -> int:
        details = stage.arena.witnesses.stats()["details"]
        return int(details["connections"] - sum(details["disconnects"].values()) - COUNT)

    until(lambda: not others(), "the others left")


# Storms.

_PATIENT = ("--auth-timeout", "60")
_HASTY = ("--auth-timeout", "2")


@fault(
    "storm of connects", section="9", expected="all served", growth=200, wait=3, options=_PATIENT, slow=True
)
def storm(stage: Stage) -> None:
    """
    Thousands connect at once, and ping: some are forgotten, or all others wait. Those who log in leave then:
    each broadcast to thousands is a load of its own.
    """
    count = stage.many(500, 5000)
    before = stage.server.resident()
    with Swarm(stage, "ping" if stage.before else "call", count) as swarm:
        ready = swarm.ready()
        if stage.before:
            _expect(ready["ended"], {})
            assert stage.server.open_files() > count
            _grew(stage, before, count, 60 if stage.tls else 8)
            _expect(swarm.leave(), {"stayed": count})
        else:
            _expect(swarm.leave(), {"done": count})
    _alone(stage)
    stage.came = "all served"
    stage.note = f"{count} in {ready['seconds']:.1f} s, the slowest took {ready['worst']:.1f} s"


@fault(
    "storm of silent connects",
    section="6",
    expected={"tcp": "auth_timeout", "tls": "handshake_failed"},
    seconds=8,
    growth=250,
    wait=3,
    options=_HASTY,
    never={"after": "who has logged in was not silent"},
    slow=True,
)
def silent_storm(stage: Stage) -> None:
    """Thousands connect at once and say nothing, over TLS not even for a handshake: they stay for ever."""
    _silent(stage, stage.many(500, 5000), b"", 50 if stage.tls else 10)


@fault(
    "silent amid the handshake",
    section="6",
    expected="handshake_failed",
    seconds=4,
    growth=60,
    options=_HASTY,
    never={"tcp": "there is no handshake", "after": "who has logged in has shaken hands"},
)
def half_handshakes(stage: Stage) -> None:
    """Hundreds begin a TLS handshake and do not go on: each keeps what it cost."""
    outgoing = ssl.MemoryBIO()
    handshake = context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    _silent(stage, stage.many(100, 500), outgoing.read(), 100)


def _silent(stage: Stage, count: int, data: bytes, each: float) -> None:
    """So many connect, send the data and nothing more; the server grows by so many KiB for each."""
    before, log = stage.server.resident(), len(stage.server.log)
    with Swarm(stage, "silent", count, bytes=data.hex()) as swarm:
        ready = swarm.ready()
        _expect(ready["ended"], {})
        stage.complete()
        stage.came = _reasons(stage, count, log)
        stage.closed()
        _grew(stage, before, count, each)
        # The server's log may know of an end before the crowd does.
        until(lambda: sum(swarm.counts()["ended"].values()) == count, "all are closed")
        swarm.leave()
    stage.note = f"{count} there after {ready['seconds']:.1f} s"


# Room.

# Of these the server keeps 64 for itself.
_FILES = 200
_ROOM = _FILES - 64 - COUNT


@fault(
    "descriptors exhausted",
    section="9",
    expected="server_full, then room again",
    growth=10,
    wait=3,
    # Those who have not logged in are to stay for as long as it takes.
    options=("--auth-timeout", "30"),
    make=lambda *options: Arena(*options, files=_FILES),
    slow=True,
)
def descriptors(stage: Stage) -> None:
    """More come than the server may open files: it spins, stops to listen, or cuts those who are there."""
    server, count = stage.server, stage.many(400, 2000)
    log = len(server.log)
    with Swarm(stage, "stay", count) as swarm:
        ended = swarm.ready()["ended"]
        _turned_away(ended, count - _ROOM, "server_full", stage.tls)
        # What the witnesses broadcast can keep a slow processor busy; only a server that spins never rests.
        before, rests, start = server.cpu(), server.rests(), time.monotonic()
        time.sleep(stage.many(0.7, 2.0))
        seconds = time.monotonic() - start
        busy = (server.cpu() - before) / seconds
        rested = (server.rests() - rests) / seconds
        assert busy < 0.8 or rested > 20, f"busy for {busy:.0%} of the time, {rested:.0f} rests a second"
        _expect(swarm.leave(), {**ended, "stayed": _ROOM})
    _alone(stage)
    with Swarm(stage, "ping", _ROOM) as swarm:
        _expect(swarm.ready()["ended"], {})
    for line in server.log[log:]:
        assert "EMFILE" not in line and "Too many open files" not in line, line
    stage.came = "server_full, then room again"
    stage.note = f"busy for {busy:.0%} of the time when full"


_EACH = 20


@fault(
    "too many from one address",
    section="9",
    expected="too_many_connections, others get in",
    options=("--max-connections-per-ip", str(_EACH)),
    slow=True,
)
def one_address(stage: Stage) -> None:
    """One address takes all the room there is."""
    count = stage.many(100, 1000)
    with Swarm(stage, "stay", count) as swarm:
        ended = swarm.ready()["ended"]
        _turned_away(ended, count - _EACH, "too_many_connections", stage.tls)
        for _ in range(5):
            other = stage.peer(source=new_source())
            _expect(other.ask(PING)["type"], "pong")
            stage.leaves(other)
        _expect(swarm.leave(), {**ended, "stayed": _EACH})
    _alone(stage)
    with Swarm(stage, "ping", _EACH) as swarm:
        _expect(swarm.ready()["ended"], {})
    stage.came = "too_many_connections, others get in"


def _turned_away(ended: Message, count: int, code: str, tls: bool) -> None:
    """See that so many were refused, and told why; over TLS they meet the end alone."""
    assert sum(ended.values()) == count, f"{ended}, not {count}"
    if not tls:
        _expect(ended, {code: count})


# Those who do not read.

_LAZY = ("--max-queue", "262144", "--send-buffer", "65536")
# Bytes of a socket's buffer where little is to wait in the system.
_SMALL = 8192
_NOTHING_YET = {"before": "no broadcast comes before the login"}


@fault(
    "200 readers that never read",
    section="9",
    expected="slow_consumer",
    growth=40,
    options=_LAZY,
    never=_NOTHING_YET,
    slow=True,
)
def stuck(stage: Stage) -> None:
    """Many never read what is broadcast: it is kept for each of them, and the others wait."""
    count = stage.many(50, 200)
    before, log = stage.server.resident(), len(stage.server.log)
    peers = [stage.peer(receive_buffer=_SMALL) for _ in range(count)]
    sender = stage.peer()
    for _ in range(400):
        recipients = sender.ask({"type": "broadcast", "content": "x" * 20_000})["recipients"]
        if recipients == COUNT:
            break
        time.sleep(0.01)
    _expect(recipients, COUNT)
    stage.came = _reasons(stage, count, log)
    _grew(stage, before, count, 180 if stage.tls else 20)
    del peers


@fault(
    "200 slow readers",
    section="9",
    expected="slow_consumer for those who fall behind",
    growth=60,
    options=_LAZY,
    never=_NOTHING_YET,
    slow=True,
)
def slow_readers(stage: Stage) -> None:
    """Many read slowly: it is kept for ever for those who fall behind, or those who keep up are cut, too."""
    half = stage.many(25, 100)
    log = len(stage.server.log)
    slow = [stage.peer(receive_buffer=_SMALL) for _ in range(half)]
    steady = [stage.peer() for _ in range(half)]
    sender = stage.peer()
    for peer in (*slow, *steady):
        peer.socket.setblocking(False)
    filler = "x" * 20_000
    number = 0
    while (
        sender.ask({"type": "broadcast", "content": {"steady": number, "filler": filler}})["recipients"]
        > COUNT + half
    ):
        number += 1
        assert number < 400, "those who fall behind are still there"
        time.sleep(0.05)
        for peer in slow:
            # Less than half of what comes.
            _take(peer, 8000)
        for peer in steady:
            while _take(peer, 262_144):
                pass
    _expect(_reasons(stage, half, log), "slow_consumer")
    for peer in steady:
        peer.socket.settimeout(TIMEOUT)
        peer.send(PING)
        found = []
        while not (payload := peer.payload()).startswith(b'{"type":"pong"'):
            if b'"steady"' in payload[:60]:
                found.append(json.loads(payload)["content"]["steady"])
        _expect(found, [*range(number + 1)])
        stage.leaves(peer)
    stage.came = "slow_consumer for those who fall behind"


def _answers(peer: Peer, count: int) -> list[bytes]:
    """The next payloads, so many, that are no broadcasts: of these there are many."""
    found: list[bytes] = []
    while len(found) < count:
        found += [each for each in peer.payloads(1) if not each.startswith(b'{"type":"broadcast"')]
    return found


def _take(peer: Peer, size: int) -> bool:
    """Read so many bytes if they are there; False if they are not."""
    try:
        data = peer.socket.recv(size)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        # It was ended, as is to be seen.
        return False
    peer.buffer += data
    return bool(data)


@fault(
    "200 that do not read their answers",
    section="10",
    expected={"before": "auth_timeout", "after": "all answered"},
    growth=80,
    # The system, too, ends who takes nothing for --write-timeout and 30 seconds.
    options=("--send-buffer", "65536", "--write-timeout", "150", "--auth-timeout", "2"),
    slow=True,
)
def unread_answers(stage: Stage) -> None:
    """Many ask and never read the answers: these are made all the same, and kept."""
    count = stage.many(50, 200)
    before, log = stage.server.resident(), len(stage.server.log)
    # With a small buffer for what comes, broadcasts would be dropped there, and sent again ever later.
    peers = [stage.peer(send_buffer=_SMALL) for _ in range(count)]
    requests = b"".join(encode({"type": "ping", "timestamp": f"{n:0900}", "id": n}) for n in range(2000))
    size = len(requests) // 2000
    sent = dict.fromkeys(peers, 0)
    if stage.before:
        for peer in peers:
            sent[peer] = peer.write_what_fits(requests)
        stage.came = _reasons(stage, count, log)
        _grew(stage, before, count, 350)
        return
    idle = 0
    while idle < 3:
        more = 0
        for peer in peers:
            more += (now := peer.write_what_fits(requests[sent[peer] :]))
            sent[peer] += now
        idle = 0 if more else idle + 1
        time.sleep(0.05)
    assert max(sent.values()) < len(requests), "all was taken"
    _grew(stage, before, count, 350)
    for peer in peers:
        # What the system dropped here for want of room is sent again after up to two minutes.
        peer.socket.settimeout(130)
        whole = sent[peer] // size
        _expect([json.loads(payload)["id"] for payload in _answers(peer, whole)], [*range(whole)])
        # The rest of a request; TLS wants no less again than it could not send before.
        rest = requests[sent[peer] : -(-(sent[peer] + 65536) // size) * size]
        peer.write(rest)
        _answers(peer, -(-len(rest) // size))
        stage.leaves(peer)
    stage.came = "all answered"


# Those who send much.


@fault("50 flooders", section="9", expected="goes on", growth=30, wait=2, slow=True)
def flooders(stage: Stage) -> None:
    """Fifty send as fast as they can: nobody else gets a turn."""
    count, seconds = 50, stage.many(1.0, 3.0)
    payloads = (b'{"type":"ping"}', b'{"type":"get_stats"}', b'{"type":', b"x")
    before = stage.arena.witnesses.stats()["total_messages"]
    with Swarm(stage, "flood", count, payloads=[each.hex() for each in payloads]) as swarm:
        _expect(swarm.ready()["ended"], {})
        start = time.monotonic()
        time.sleep(seconds)
        handled = stage.arena.witnesses.stats()["total_messages"] - before
        rate = handled / (time.monotonic() - start)
        _expect(swarm.leave(), {"stayed": count})
    # It was a flood.
    assert rate > 2_000, f"{rate:.0f} messages a second"
    _alone(stage)
    stage.came = "goes on"
    stage.note = f"{rate:,.0f} messages a second"


@fault(
    "bombs of 50 at once",
    section="7",
    expected="too_large",
    seconds=5,
    growth=60,
    wait=2,
    slow=True,
)
def bombs(stage: Stage) -> None:
    """Fifty send little that is much when inflated: memory for all, and nobody else gets a turn."""
    deflate = zlib.compressobj(9)
    payload = b"".join(deflate.compress(bytes(MEBIBYTE)) for _ in range(64)) + deflate.flush()
    if stage.before:
        # 4,096 bytes is the most before the login, compressed as well.
        payload = zlib.compress(bytes(4 * 1000 * 1000), 9)[:4096]
    bomb = (len(payload) | 1 << 31).to_bytes(4, "big") + payload
    peers = []
    for _ in range(50):
        peer = stage.peer()
        _expect(peer.ask({"type": "hello", "compression": ["zlib"]})["compression"], "zlib")
        peers.append(peer)
    stage.complete()
    for peer in peers:
        peer.write(bomb)
    for peer in peers:
        stage.ended = None
        stage.ends(peer)


# Logins.

_USER, _PASSWORD = "right", "the right password"


@functools.cache
def _users(iterations: int = ITERATIONS) -> Path:
    return write(new_path(".users"), users({_USER: _PASSWORD}, iterations))


def _with_users(*options: str) -> Arena:
    """An arena where passwords are taken, too, hashed as often as by default."""
    return Arena("--auth", f"scram:{_users()}", *options)


def _let_in(stage: Stage, sources: Sequence[str], wait: float) -> None:
    """Somebody logs in, each way in so many seconds, while wrong passwords come from the sources."""
    count = 50
    taken: dict[str, float] = {}
    cores = os.cpu_count() or 1
    with Swarm(
        stage, "guess", count, login=False, sources=sources, user=_USER, mechanisms=["plain", "scram-sha-256"]
    ) as swarm:
        swarm.wait_for("begun")
        time.sleep(stage.many(0.3, 3.0))
        before, start = stage.server.cpu(), time.monotonic()
        for name, login in (("scram", scram), ("plain", plain)):
            peer = stage.peer(login=False, source=new_source())
            begun = time.monotonic()
            _expect(login(peer, _USER, _PASSWORD).get("status"), "authenticated")
            taken[name] = time.monotonic() - begun
            assert taken[name] < wait, f"{name} took {taken[name]:.1f} s"
            stage.leaves(peer)
        time.sleep(stage.many(0.3, 3.0))
        busy = (stage.server.cpu() - before) / (time.monotonic() - start)
        # Half of the processors hash; one thread does all else.
        assert busy < max(1, cores // 2) + 0.9, f"{busy:.1f} processors"
        counts = swarm.counts()["counts"]
        swarm.leave()
    assert "authenticated" not in counts, counts
    _alone(stage)
    stage.came = "let in"
    stage.note = (
        f"by scram in {taken['scram']:.2f} s, by plain in {taken['plain']:.2f} s; {busy:.1f} processors"
    )


_ONCE = {"after": "who has logged in cannot do so again"}


@fault(
    "wrong passwords from one address",
    section="6",
    expected="let in",
    growth=10,
    never=_ONCE,
    make=_with_users,
    slow=True,
)
def guesses(stage: Stage) -> None:
    """Fifty guess passwords from one address: whoever else logs in waits for all of them."""
    _let_in(stage, [stage.source], 2)


@fault(
    "wrong passwords from 50 addresses",
    section="6",
    expected="let in",
    growth=10,
    never=_ONCE,
    make=_with_users,
    slow=True,
)
def many_guesses(stage: Stage) -> None:
    """Fifty guess passwords, each from an address of its own, which no limit for one address stops."""
    _let_in(stage, [new_source() for _ in range(50)], 15)


# Restarts.


def _restart(stage: Stage, number: signal.Signals) -> float:
    """
    End the server by a signal, and start it on the same ports; the witnesses, who lost nothing, come again.

    Returns:
        How long there was no server, in seconds.
    """
    arena, server = stage.arena, stage.server
    report = arena.witnesses.end()
    assert not report.problem, report.problem
    arena.witnesses.stop()
    args = server.process.args
    assert isinstance(args, list)
    options = args[args.index("--port") + 2 * len(server.addresses) :]
    ports = [
        args[args.index("--port") + 1 + 2 * index].replace(":0:", f":{server.tcp_address(index)[1]}:")
        for index in range(len(server.addresses))
    ]
    server.signal(number)
    _expect(server.wait(), -number)
    start = time.monotonic()
    assert "Traceback" not in "\n".join(server.log)
    # The same in all but the process: who measures it need not know.
    Server.__init__(server, *options, ports=ports)
    down = time.monotonic() - start
    arena.witnesses = Witnesses(server, private=1, ca=str(authority().file), token=TOKEN)
    arena.witnesses.begin()
    return down


def _back(stage: Stage, number: signal.Signals) -> Message:
    """Thousands are there, the server ends by a signal and begins anew: all come back."""
    count = stage.many(500, 5000)
    with Swarm(stage, "come_back", count, pause=0.5) as swarm:
        _expect(swarm.ready()["ended"], {})
        down = _restart(stage, number)
        back = swarm.wait_for("back")
        assert stage.server.open_files() > count
        _expect(swarm.leave(), {"stayed": count})
    _alone(stage)
    stage.came = "all back"
    stage.note = (
        f"{count} back {back['away']:.1f} s after their end at the latest, the server {down:.1f} s;"
        f" the slowest welcome took {back['worst']:.1f} s, {max(map(int, back['tries']))} tries at most"
    )
    return back


_AS_STORM = {"after": "a login comes behind the welcome: see the storm of connects"}


@fault(
    "storm after SIGTERM",
    section="11",
    expected="all back",
    growth=250,
    wait=3,
    options=_PATIENT,
    never=_AS_STORM,
    slow=True,
)
def after_sigterm(stage: Stage) -> None:
    """The server is started anew and thousands come back at once: some are left out."""
    back = _back(stage, signal.SIGTERM)
    count = sum(back["tries"].values())
    _expect(back["counts"]["going_away"], count)
    _expect(back["counts"]["ended: closed"], count)
    least, most = back["pauses"]
    assert least >= 1 and most >= 2.9, f"told to come back after {least} to {most} seconds"


@fault(
    "storm after SIGKILL",
    section="11",
    expected="all back",
    growth=250,
    wait=3,
    options=_PATIENT,
    never=_AS_STORM,
    slow=True,
)
def after_sigkill(stage: Stage) -> None:
    """The server dies without a word and thousands come back, each after a random pause."""
    _expect(_back(stage, signal.SIGKILL)["counts"].get("going_away", 0), 0)


# The clock.

_HOURS = 7200


@functools.cache
def _shim() -> Path | None:
    """What shifts the time of day of a process, compiled; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    made = new_path(".so")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source], check=True)
    return made


def shifted(file: Path) -> dict[str, str]:
    """
    The environment of a process whose time of day is shifted by the seconds in a file: 8 bytes, signed, in
    the machine's order. Empty without a C compiler.
    """
    shim = _shim()
    return {} if shim is None else {"LD_PRELOAD": str(shim), "TCPJSON_CLOCK": str(file)}


class _Shifted(Arena):
    """An arena whose processes have a time of day of their own."""

    def __init__(self, *options: str) -> None:
        self._file = write(new_path(".clock"), bytes(8))
        with patch.dict(os.environ, shifted(self._file)):
            super().__init__(*options)

    def shift(self, seconds: int) -> None:
        """
        Set the clock by so many seconds from the right time.

        Raises:
            AssertionError: the server did not notice.
        """
        # In place: the server has mapped the file into its memory.
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", seconds))
        now = datetime.fromisoformat(self.witnesses.stats()["current_time"]).timestamp()
        assert abs(now - time.time() - seconds) < 60, f"its clock is off by {now - time.time():.0f} seconds"


def _ended(figures: dict[str, str], code: str, least: float, most: float) -> None:
    """See that a connection ended for a reason, and at an age between two numbers of seconds."""
    _expect(figures["reason"], code)
    assert least < float(figures["seconds"]) < most, f"{code} after {figures['seconds']} seconds"


@fault(
    "clock moved by two hours",
    section="design",
    expected="each end in its time",
    growth=40,
    options=(
        *("--heartbeat", "1", "--frame-timeout", "2", "--auth-timeout", "2"),
        *("--write-timeout", "2", "--send-buffer", "65536"),
    ),
    never={"before": "who has not logged in is among them"},
    make=_Shifted,
    slow=True,
)
def clock(stage: Stage) -> None:
    """The time of day is set, forward and then back: all deadlines are over at once, or none ever is."""
    if _shim() is None:
        raise SkipTest("there is no C compiler for the clock")
    arena, server = stage.arena, stage.server
    assert isinstance(arena, _Shifted)
    count = stage.many(3, 20)
    log = len(server.log)
    with Swarm(stage, "beat", count) as swarm, Swarm(stage, "mute", 1) as mute:
        for each in (swarm, mute):
            _expect(each.ready()["ended"], {})
        stuck = [stage.peer(receive_buffer=_SMALL) for _ in range(count)]
        sender = stage.peer()
        for _ in range(10):
            sender.ask({"type": "broadcast", "content": "x" * 100_000})
        sender.close()
        begun = [stage.peer() for _ in range(count)]
        for peer in begun:
            peer.write(encode(PING)[:-1])
        guests = [stage.peer(login=False) for _ in range(count)]
        server.disconnects(sender.name, log)
        arena.shift(_HOURS)
        time.sleep(0.3)
        arena.shift(-_HOURS)
        time.sleep(0.3)
        _expect(len([line for line in server.log[log:] if "] disconnected" in line]), 1)
        pings = swarm.counts()["counts"].get("pings", 0)
        for code, peers, most in (
            ("frame_timeout", begun, 3.5),
            ("auth_timeout", guests, 3.5),
            # Those who read nothing are aborted 2 seconds later.
            ("slow_consumer", stuck, 6.0),
        ):
            for peer in peers:
                if peers is not stuck:
                    stage.ends(peer)
                _ended(server.disconnects(peer.name, log), code, 1.9, most)
        until(lambda: swarm.counts()["counts"].get("pings", 0) >= pings + count, "pings go on", 5)
        if not stage.short:
            found = server.wait_for(r"\] disconnected (\S+) (?:user=.* )?reason=heartbeat", since=log)
            _ended(server.disconnects(found[0][1], log), "heartbeat_timeout", 10.9, 14)
        _expect(swarm.leave(), {"stayed": count})
    arena.shift(0)
    stage.came = "each end in its time"


# The end.

_GRACE = 2.0


class _Asking(Flood):
    """One with more requests in flight than are handled in a turn."""

    flight = 2000


@fault(
    "drain amid all of them",
    section="11",
    expected="no answer lost",
    seconds=_GRACE + 1.5,
    growth=150,
    # They are all to be there still, however long it takes until the last has come.
    options=(
        *("--grace", str(_GRACE), "--send-buffer", "65536"),
        *("--auth-timeout", "60", "--write-timeout", "60"),
    ),
    never={"before": "who has not logged in is among them"},
    make=_with_users,
    ends=True,
    slow=True,
)
def drain(stage: Stage) -> None:
    """The server is to end while all of these are there: it does not, or others lose their answers."""
    server = stage.server
    count = stage.many(5, 20)
    with contextlib.ExitStack() as stack:
        # Whatever goes wrong before: it is to end.
        stack.callback(server.stop)

        def swarm(kind: str, number: int, **more: Any) -> Swarm:
            return stack.enter_context(Swarm(stage, kind, number, **more))

        stuck = [stage.peer(receive_buffer=_SMALL) for _ in range(count)]
        greedy = [stage.peer(receive_buffer=_SMALL, send_buffer=_SMALL) for _ in range(count)]
        sender = stage.peer()
        for _ in range(20):
            sender.ask({"type": "broadcast", "content": "x" * 50_000})
        for peer in greedy:
            peer.write_what_fits(encode({"type": "echo", "content": "x" * 1000}) * 2000)
        halves = [stage.peer(login=False) for _ in range(count)]
        for peer in halves:
            _expect(peer.ask(Scram(_USER, _PASSWORD).first())["type"], "auth_challenge")
        swarms = [
            swarm("silent", 2 * count, tls=True),
            swarm("dribble", count),
            swarm("flood", count, payloads=[b'{"type":"ping"}'.hex(), b"x".hex()]),
        ]
        healthy = swarm("come_back", 20, pause=60)
        for each in (*swarms, healthy):
            _expect(each.ready()["ended"], {})
        report = stage.arena.witnesses.end()
        assert not report.problem, report.problem
        floods = [_Asking(stage.peer()) for _ in range(3)]
        for flood in floods:
            flood.start()
        until(lambda: all(flood.answered > 500 or flood.outcome for flood in floods), "they ask")
        for peer in [stage.peer(login=False, source=new_source()) for _ in range(count)]:
            peer.send(plain_message(_USER, "wrong"))
        stage.complete()
        server.signal(signal.SIGTERM)
        for flood in floods:
            flood.join(TIMEOUT)
            flood.peer.close()
        status = server.wait()
        stage.closed()
        _expect(status, -signal.SIGTERM)
        counts = healthy.counts()["counts"]
        del stuck
    for flood in floods:
        _expect(flood.outcome, "the end")
        figures = server.disconnects(flood.peer.client_id)
        # `welcome`, the login, the goodbye.
        _expect(int(figures["messages_out"]), flood.answered + flood.refused + 3)
    _expect((counts["going_away"], counts["ended: closed"]), (20, 20))
    answers = sum(flood.answered for flood in floods)
    stage.came = "no answer lost"
    stage.note = f"{answers} answers to those who went on, none missing"
