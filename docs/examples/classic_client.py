import json
import socket
import struct
import sys

port = sys.argv[1] if len(sys.argv) > 1 else 9999
server = socket.create_connection(("localhost", port)).makefile("rwb")


def send(message):
    payload = json.dumps(message).encode()
    server.write(struct.pack(">I", len(payload)) + payload)
    server.flush()


def receive():
    (length,) = struct.unpack(">I", server.read(4))
    return json.loads(server.read(length))


print(receive()["type"])
send({"type": "echo", "content": {"x": 1, "y": [2, 3]}, "id": 7})
print(receive())
