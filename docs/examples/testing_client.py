from tcpjson import RequestTimeout
from tcpjson.testing import MemoryServer

heard = []
server = MemoryServer()
alice, bob = server.client(), server.client(on_message=heard.append)
server.result(alice.connect())
server.result(bob.connect())

print(server.result(alice.broadcast("Hello")), heard[0]["content"])

alice.wire.cut()  # the connection is lost
print(alice.connected, alice.error)
server.advance(0.5)  # half a second later
print(alice.connected)

alice.wire.stall()  # nothing goes through any more
try:
    server.result(alice.ping(timeout=5), within=6)
except RequestTimeout as error:
    print(error)
