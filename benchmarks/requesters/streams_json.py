"""What a tutorial teaches: asyncio streams, ``json``, a future for each id, ``wait_for`` for the timeouts."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import sys
from typing import Any

from benchmarks.requesters import TIMEOUT, serve


class Client:
    """A connection, and who waits for which reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        while True:
            (length,) = struct.unpack(">I", await self._reader.readexactly(4))
            message = json.loads(await self._reader.readexactly(length))
            future = self._waiting.pop(message.get("id"), None)
            if future is not None and not future.done():
                future.set_result(message)

    async def request(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        number = next(self._ids)
        payload = json.dumps({**message, "id": number}).encode()
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(struct.pack(">I", len(payload)) + payload)
            await self._writer.drain()
            reply: dict[str, Any] = await asyncio.wait_for(future, timeout)
        finally:
            self._waiting.pop(number, None)
        if reply["type"] == "error":
            raise RuntimeError(reply["message"])
        return reply

    async def echo(self, content: str) -> object:
        return (await self.request({"type": "echo", "content": content}, TIMEOUT))["content"]


async def main(port: int) -> None:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    reading = asyncio.create_task(client.read())
    await serve(client.echo, lambda coroutines: asyncio.gather(*coroutines))
    reading.cancel()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
