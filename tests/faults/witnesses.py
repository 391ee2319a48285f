"""Clients in a process of their own that exchange numbered broadcasts, and count what does not come."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import TIMEOUT, Message, Server, command, encode
from tests.identities import token_message

#: How many there are; every other one speaks TLS where there is a port for it.
COUNT = 20
# Seconds between two broadcasts of one witness, and between two pings while there is nothing to witness.
_PACE = 0.1
_REST = 0.25
# Seconds in which all must have come when no more is sent.
_PATIENCE = 10.0
# What only their own broadcasts hold.
_MARK = b'"witness"'


@dataclass(frozen=True)
class Report:
    """
    What the witnesses saw of a fault.

    Args:
        sent: broadcasts that they sent.
        lost: deliveries that did not come, of 19 for each broadcast.
        disordered: deliveries that came twice or behind a later one.
        unconfirmed: broadcasts that were not confirmed.
        closed: witnesses whose connection ended.
        errors: what else they got: the codes of errors.
        worst: the longest from a broadcast to its confirmation or to its arrival, in seconds.
    """

    sent: int
    lost: int
    disordered: int
    unconfirmed: int
    closed: int
    errors: list[str]
    worst: float

    @property
    def problem(self) -> str:
        """What was not as it should be; empty when all was."""
        names = ("lost", "disordered", "unconfirmed", "closed")
        counts = [f"{getattr(self, name)} {name}" for name in names if getattr(self, name)]
        return ", ".join([*counts, *self.errors])


class _Witness(asyncio.Protocol):
    """One client."""

    def __init__(self, number: int, crowd: _Crowd, token: str | None) -> None:
        self.number = number
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stats: asyncio.Future[Message] | None = None
        self.closed = False
        self._crowd = crowd
        self._token = token
        self._buffer = bytearray()
        self._transport: Any = None
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self.sent: dict[int, float] = {}
        self.unconfirmed: set[int] = set()
        self.last = dict.fromkeys(range(self._crowd.count), -1)
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for waiting in (self.ready, self.stats):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ConnectionError(f"witness {self.number} was cut: {exc}"))

    def write(self, message: object) -> None:
        """Send a message."""
        if not self.closed:
            self._transport.write(encode(message))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position, size = 0, len(buffer)
        while size >= position + 4:
            end = position + 4 + int.from_bytes(buffer[position : position + 4], "big")
            if size < end:
                break
            self._take(bytes(buffer[position + 4 : end]))
            position = end
        del buffer[:position]

    def _take(self, payload: bytes) -> None:
        # What faults broadcast is much, and matters to nobody.
        if payload.startswith(b'{"type":"broadcast"') and _MARK not in payload:
            return
        message = json.loads(payload)
        kind = message["type"]
        if kind == "broadcast":
            self._arrived(message["content"])
        elif kind == "broadcast_sent":
            number = message["id"]
            if number in self.unconfirmed:
                self.unconfirmed.discard(number)
                self._crowd.waited(self.sent[number])
        elif kind == "welcome" and message["auth"]:
            self.write(token_message(self._token or ""))
        elif kind == "welcome" or message.get("status") == "authenticated":
            self.ready.set_result(None)
        elif kind == "server_stats" and self.stats is not None:
            self.stats.set_result(message)
        elif kind != "pong":
            self._crowd.errors.add(message.get("code", kind))

    def _arrived(self, content: Any) -> None:
        crowd = self._crowd
        if not isinstance(content, dict) or content.get("run") != crowd.run:
            return
        sender, number = content["witness"], content["number"]
        if sender == self.number or number <= self.last[sender]:
            crowd.disordered += 1
            return
        self.last[sender] = number
        self.received += 1
        crowd.waited(crowd.witnesses[sender].sent[number])

    def broadcast(self) -> None:
        """Send the next number."""
        if self.closed:
            return
        number = len(self.sent)
        self.sent[number] = time.monotonic()
        self.unconfirmed.add(number)
        content = {"witness": self.number, "number": number, "run": self._crowd.run, "filler": "x" * 100}
        self.write({"type": "broadcast", "content": content, "id": number})


class _Crowd:
    """All of them, and what they saw."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.witnesses: list[_Witness] = []
        self.run = 0
        self.disordered = 0
        self.errors: set[str] = set()
        self.worst = 0.0
        self._pacing: asyncio.Task[None] | None = None

    async def come(self, plain: list[Any], private: list[Any] | None, ca: str, token: str | None) -> None:
        """Connect, each from an address of its own."""
        loop = asyncio.get_running_loop()
        context = None
        if private is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(ca)
        for number in range(self.count):
            tls = private is not None and number % 2 == 1
            host, port = private if private is not None and tls else plain
            _, witness = await loop.create_connection(
                lambda number=number: _Witness(number, self, token),
                host,
                port,
                ssl=context if tls else None,
                server_hostname="127.0.0.1" if tls else None,
                local_addr=(f"127.0.1.{number + 1}", 0),
            )
            await asyncio.wait_for(witness.ready, TIMEOUT)
            self.witnesses.append(witness)
        self._pacing = loop.create_task(self._rest())

    def waited(self, since: float) -> None:
        """Something came that was sent at a time."""
        self.worst = max(self.worst, time.monotonic() - since)

    async def _rest(self) -> None:
        """Stay alive."""
        while True:
            for witness in self.witnesses:
                witness.write({"type": "ping"})
            await asyncio.sleep(_REST)

    async def _pace(self) -> None:
        while True:
            for witness in self.witnesses:
                witness.broadcast()
                await asyncio.sleep(_PACE / self.count)

    def _instead(self, pacing: Any) -> None:
        if self._pacing is not None:
            self._pacing.cancel()
        self._pacing = asyncio.get_running_loop().create_task(pacing)

    async def begin(self) -> dict[str, Any]:
        """Begin to exchange broadcasts; one round has been when it returns."""
        self.run += 1
        self.disordered, self.worst = 0, 0.0
        self.errors.clear()
        for witness in self.witnesses:
            witness.begin()
        await self._round()
        self._instead(self._pace())
        return {}

    def _missing(self) -> int:
        sent = sum(len(witness.sent) for witness in self.witnesses)
        return sum(sent - len(witness.sent) - witness.received for witness in self.witnesses)

    async def _round(self) -> None:
        for witness in self.witnesses:
            witness.broadcast()
        end = time.monotonic() + _PATIENCE
        while self._missing() or any(witness.unconfirmed for witness in self.witnesses):
            if time.monotonic() > end or any(witness.closed for witness in self.witnesses):
                break
            await asyncio.sleep(0.002)

    async def end(self) -> dict[str, Any]:
        """Send one round more, wait until all has come, and report."""
        self._instead(self._rest())
        await self._round()
        return {
            "sent": sum(len(witness.sent) for witness in self.witnesses),
            "lost": self._missing(),
            "disordered": self.disordered,
            "unconfirmed": sum(len(witness.unconfirmed) for witness in self.witnesses),
            "closed": sum(witness.closed for witness in self.witnesses),
            "errors": sorted(self.errors),
            "worst": self.worst,
        }

    async def stats(self) -> Message:
        """The server's statistics."""
        witness = self.witnesses[0]
        witness.stats = asyncio.get_running_loop().create_future()
        witness.write({"type": "get_stats"})
        if witness.closed:
            raise ConnectionError("witness 0 was cut")
        return await asyncio.wait_for(witness.stats, TIMEOUT)


async def _serve(task: dict[str, Any]) -> None:
    """Do what the lines of standard input ask for, one answer each, up to its end."""
    loop = asyncio.get_running_loop()
    crowd = _Crowd(task["count"])
    await crowd.come(task["plain"], task["private"], task["ca"], task["token"])
    print(json.dumps({}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name = line.strip()
        try:
            answer = await {"begin": crowd.begin, "end": crowd.end, "stats": crowd.stats}[name]()
        except (ConnectionError, TimeoutError) as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


class Witnesses:
    """
    The process of the witnesses, connected.

    Args:
        server: where to.
        plain: the endpoint of the server in the clear.
        private: that with TLS, if there is one.
        ca: the file of the authority of its certificate.
        token: what they log in with, if they must.
        count: how many.
    """

    def __init__(
        self,
        server: Server,
        *,
        plain: int = 0,
        private: int | None = None,
        ca: str = "",
        token: str | None = None,
        count: int = COUNT,
    ) -> None:
        task = {
            "plain": server.tcp_address(plain),
            "private": None if private is None else server.tcp_address(private),
            "ca": ca,
            "token": token,
            "count": count,
        }
        _, environment = command()
        # Where this package was imported from, which need not be the checkout that its files are in.
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[2]), *filter(None, [environment.get("PYTHONPATH")])]
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(task)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            self._answer()
        except BaseException:  # at Ctrl-C, too: nobody else knows of the process
            self.stop()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError("the witnesses ended")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise AssertionError(answer["failed"])
        return answer

    def _ask(self, name: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return self._answer()

    def begin(self) -> None:
        """Have them exchange broadcasts; each has sent one, and all have got it, when it returns."""
        self._ask("begin")

    def end(self) -> Report:
        """Have them end it; waits until all has come, 10 seconds at most."""
        return Report(**self._ask("end"))

    def stats(self) -> Message:
        """The server's statistics."""
        return self._ask("stats")

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
