"""What an expert would write by hand: ``asyncio.Protocol`` on uvloop, orjson, one write for each turn."""

from __future__ import annotations

import asyncio
import itertools
import struct
import sys
from typing import Any, cast

import orjson
import uvloop

from benchmarks.requesters import TIMEOUT, serve

LENGTH = struct.Struct(">I")
pack = LENGTH.pack
unpack_from = LENGTH.unpack_from


class Client(asyncio.Protocol):
    """A connection, and who waits for which reply."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], asyncio.TimerHandle]] = {}
        self._buffer = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        position = 0
        end = len(buffer)
        while end - position >= 4:
            (length,) = unpack_from(buffer, position)
            if end - position - 4 < length:
                break
            message = orjson.loads(buffer[position + 4 : position + 4 + length])
            position += 4 + length
            waiting = self._waiting.pop(message.get("id"), None)
            if waiting is not None:
                future, timer = waiting
                timer.cancel()
                if future.done():
                    continue
                if message["type"] == "error":
                    future.set_exception(RuntimeError(message["message"]))
                else:
                    future.set_result(message)
        self._buffer = buffer[position:]

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def _expire(self, number: int) -> None:
        future, _ = self._waiting.pop(number)
        if not future.done():
            future.set_exception(TimeoutError())

    def request(self, message: dict[str, Any], timeout: float) -> asyncio.Future[dict[str, Any]]:
        number = next(self._ids)
        message["id"] = number
        payload = orjson.dumps(message)
        future = self._loop.create_future()
        self._waiting[number] = future, self._loop.call_later(timeout, self._expire, number)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (pack(len(payload)), payload)
        return future

    async def echo(self, content: str) -> object:
        return (await self.request({"type": "echo", "content": content}, TIMEOUT))["content"]


async def main(port: int) -> None:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    await serve(client.echo, lambda coroutines: asyncio.gather(*coroutines))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
