"""What an ordinary Twisted programmer writes: ``Int32StringReceiver`` and ``json`` on the default reactor.

Usage: ``python -m tcpjson.bench.peers.twisted_json PORT``.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any, ClassVar, cast

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory
from twisted.protocols.basic import Int32StringReceiver


def now() -> str:
    return datetime.datetime.now().isoformat()


def encode(message: dict[str, Any]) -> bytes:
    # Compact and unescaped, so that contents come back byte for byte.
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


class Peer(Int32StringReceiver):
    """One connection."""

    MAX_LENGTH = 1_048_576
    clients: ClassVar[set[Peer]] = set()

    def connectionMade(self) -> None:
        address = cast(ITCPTransport, self.transport).getPeer()
        self.peer = f"{address.host}:{address.port}"
        self.clients.add(self)
        self.send({"type": "welcome", "client_id": self.peer, "message": "hi", "timestamp": now()})

    def connectionLost(self, reason: object = None) -> None:
        self.clients.discard(self)

    def send(self, message: dict[str, Any]) -> None:
        self.sendString(encode(message))

    def stringReceived(self, string: bytes) -> None:
        message = json.loads(string)
        kind = message.get("type")
        if kind == "echo":
            reply = self.echo(message)
        elif kind == "broadcast":
            reply = self.broadcast(message)
        elif kind == "ping":
            reply = {
                "type": "pong",
                "ping_timestamp": message.get("timestamp"),
                "pong_timestamp": now(),
                "client_id": self.peer,
            }
        else:
            return
        if "id" in message:
            reply["id"] = message["id"]
        self.send(reply)

    def echo(self, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "echo_response",
            "content": message.get("content", ""),
            "timestamp": now(),
            "echoed_by": "TCP Server",
        }

    def broadcast(self, message: dict[str, Any]) -> dict[str, Any]:
        payload = encode(
            {
                "type": "broadcast",
                "from_client": self.peer,
                "content": message.get("content"),
                "timestamp": now(),
            }
        )
        for client in self.clients:
            if client is not self:
                client.sendString(payload)
        return {"type": "broadcast_sent", "recipients": len(self.clients) - 1, "timestamp": now()}


def main(port: int) -> None:
    from twisted.internet import reactor

    endpoint = TCP4ServerEndpoint(reactor, port, backlog=4096, interface="127.0.0.1")
    listening = endpoint.listen(Factory.forProtocol(Peer))
    listening.addCallback(lambda bound: print(f"listening on 127.0.0.1:{bound.getHost().port}", flush=True))
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
