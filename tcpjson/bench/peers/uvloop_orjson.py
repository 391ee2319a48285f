"""What an expert would write by hand: ``asyncio.Protocol`` on uvloop, orjson, one write for each read.

Usage: ``python -m tcpjson.bench.peers.uvloop_orjson PORT [asyncio]``; with a second argument it runs on
asyncio's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import struct
import sys
from typing import cast

# What reads all modules can read this one where they are not installed.
with contextlib.suppress(ImportError):
    import orjson
    import uvloop

LENGTH = struct.Struct(">I")
pack = LENGTH.pack
unpack_from = LENGTH.unpack_from
clients: set[Peer] = set()


def now() -> str:
    return datetime.datetime.now().isoformat()


class Peer(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""
        host, port = transport.get_extra_info("peername")[:2]
        self.peer = f"{host}:{port}"
        clients.add(self)
        payload = orjson.dumps(
            {"type": "welcome", "client_id": self.peer, "message": "hi", "timestamp": now()}
        )
        self.transport.write(pack(len(payload)) + payload)

    def connection_lost(self, exc: Exception | None) -> None:
        clients.discard(self)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        position = 0
        end = len(buffer)
        out = []
        while end - position >= 4:
            (length,) = unpack_from(buffer, position)
            if end - position - 4 < length:
                break
            message = orjson.loads(buffer[position + 4 : position + 4 + length])
            position += 4 + length
            kind = message["type"]
            if kind == "echo":
                reply = {
                    "type": "echo_response",
                    "content": message.get("content"),
                    "timestamp": now(),
                    "echoed_by": "TCP Server",
                }
                if "id" in message:
                    reply["id"] = message["id"]
                payload = orjson.dumps(reply)
                out.append(pack(len(payload)))
                out.append(payload)
            elif kind == "broadcast":
                payload = orjson.dumps(
                    {
                        "type": "broadcast",
                        "from_client": self.peer,
                        "content": message.get("content"),
                        "timestamp": now(),
                    }
                )
                frame = pack(len(payload)) + payload
                for client in clients:
                    if client is not self:
                        client.transport.write(frame)
                reply = {"type": "broadcast_sent", "recipients": len(clients) - 1, "timestamp": now()}
                if "id" in message:
                    reply["id"] = message["id"]
                payload = orjson.dumps(reply)
                out.append(pack(len(payload)))
                out.append(payload)
            elif kind == "ping":
                reply = {
                    "type": "pong",
                    "ping_timestamp": message.get("timestamp"),
                    "pong_timestamp": now(),
                    "client_id": self.peer,
                }
                if "id" in message:
                    reply["id"] = message["id"]
                payload = orjson.dumps(reply)
                out.append(pack(len(payload)))
                out.append(payload)
        self.buffer = buffer[position:]
        if out:
            self.transport.write(b"".join(out))


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Peer, "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        asyncio.run(main(int(sys.argv[1])))
    else:
        uvloop.run(main(int(sys.argv[1])))
