import sys

from twisted.internet import task

from tcpjson import Client


async def main(reactor, where="localhost:9999"):
    async with Client(reactor, where) as alice, Client(reactor, where, on_message=print) as bob:
        print(await alice.echo({"x": 1, "y": [2, 3]}))
        print(await alice.broadcast("Hello all clients!"), "client got it")
        print(f"{await bob.ping() * 1000:.1f} ms")


task.react(main, sys.argv[1:])
