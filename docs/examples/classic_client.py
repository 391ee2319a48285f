"""A client of sockets and JSON alone: python classic_client.py [HOST [PORT]]"""

import json
import socket
import struct
import sys

TIMEOUT = 10  # seconds, to connect and for each wait
WRAP = 4096  # what stands around the max_length bytes that a server takes, when they come back


class Client:
    def __init__(self, host="localhost", port="9999"):
        self.max_length = 1048576  # until the welcome says it
        self.socket = socket.create_connection((host, port), TIMEOUT)
        self.welcome = self.wait_for("welcome")
        length = self.welcome.get("max_length")
        if type(length) is int and length > 0:
            self.max_length = min(length, 1 << 28)

    def send(self, message):
        payload = json.dumps(message, ensure_ascii=False).encode()  # bytes, not characters
        if len(payload) > self.max_length:
            raise ValueError(f"the server takes no message of {len(payload)} bytes")
        # ">" is network byte order. sendall goes on until all is sent, which send does not.
        self.socket.sendall(struct.pack(">I", len(payload)) + payload)

    def read(self, size):
        """So many bytes: recv gives what is there, be it a part of them."""
        pieces = []
        while size:
            piece = self.socket.recv(min(size, 65536))
            if not piece:
                raise EOFError("the connection ended before a whole message was there")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def receive(self):
        (length,) = struct.unpack(">I", self.read(4))
        if length > self.max_length + WRAP:
            raise ValueError(f"a message of {length} bytes is too long")
        payload = self.read(length)
        try:
            message = json.loads(payload.decode())
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ValueError("what came is no JSON object")
        return message

    def wait_for(self, kind):
        """The next message of a type. Others come at any time: somebody's broadcast, or an error."""
        while (message := self.receive()).get("type") != kind:
            if message.get("type") == "error":
                raise ValueError(f"error {show(message, 'code')}: {show(message, 'message')}")
            print("meanwhile:", show(message, "type"))
        return message

    def ask(self, message, kind):
        self.send(message)
        return self.wait_for(kind)


def show(message, name):
    """A field as JSON: one line, whatever it holds."""
    return json.dumps(message.get(name))


def main(arguments):
    client = Client(*arguments)
    print("welcome: client_id", show(client.welcome, "client_id"))
    client.ask({"type": "ping"}, "pong")
    print("pong")
    content = {"text": "тест"}
    if client.ask({"type": "echo", "content": content}, "echo_response").get("content") != content:
        raise ValueError("the echo is another")
    print("echo_response: the same content")
    sent = client.ask({"type": "broadcast", "content": content}, "broadcast_sent")
    print("broadcast_sent: recipients", show(sent, "recipients"))
    stats = client.ask({"type": "get_stats"}, "server_stats")
    print("server_stats: connected_clients", show(stats, "connected_clients"))
    client.ask({"type": "move", "x": 1, "y": 2}, "response")
    print("response")
    client.socket.close()  # every answer is here: nothing is lost


try:
    main(sys.argv[1:3])
except TimeoutError:
    sys.exit(f"classic_client: nothing came for {TIMEOUT} seconds")
except (OSError, EOFError, ValueError) as error:
    sys.exit(f"classic_client: {error}")
