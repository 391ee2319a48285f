"""What a tutorial teaches: asyncio streams and the ``json`` of the standard library.

Usage: ``python -m tcpjson.bench.peers.asyncio_streams PORT``.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import struct
import sys
from typing import Any

writers: set[asyncio.StreamWriter] = set()


def now() -> str:
    return datetime.datetime.now().isoformat()


def frame(message: dict[str, Any]) -> bytes:
    # Compact and unescaped, so that contents come back byte for byte.
    payload = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    return struct.pack(">I", len(payload)) + payload


def answer(message: dict[str, Any], writer: asyncio.StreamWriter, peer: str) -> dict[str, Any] | None:
    kind = message.get("type")
    if kind == "echo":
        return {
            "type": "echo_response",
            "content": message.get("content", ""),
            "timestamp": now(),
            "echoed_by": "TCP Server",
        }
    if kind == "broadcast":
        relayed = frame(
            {"type": "broadcast", "from_client": peer, "content": message.get("content"), "timestamp": now()}
        )
        for other in writers:
            if other is not writer:
                other.write(relayed)
        return {"type": "broadcast_sent", "recipients": len(writers) - 1, "timestamp": now()}
    if kind == "ping":
        return {
            "type": "pong",
            "ping_timestamp": message.get("timestamp"),
            "pong_timestamp": now(),
            "client_id": peer,
        }
    return None


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, port = writer.get_extra_info("peername")[:2]
    peer = f"{host}:{port}"
    writers.add(writer)
    try:
        writer.write(frame({"type": "welcome", "client_id": peer, "message": "hi", "timestamp": now()}))
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            message = json.loads(await reader.readexactly(length))
            reply = answer(message, writer, peer)
            if reply is not None:
                if "id" in message:
                    reply["id"] = message["id"]
                writer.write(frame(reply))
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writers.discard(writer)
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
