import sys

from twisted.internet import task

from tcpjson import Client, Disconnected


async def main(reactor, where="localhost:9999"):
    alice = Client(reactor, where, on_retry=print)
    bob = Client(reactor, where, on_message=print)
    try:
        async with alice, bob:
            print(await alice.echo({"x": 1, "y": [2, 3]}))
            print(await alice.broadcast("Hello all clients!"), "client got it")
            print(f"{await bob.ping() * 1000:.1f} ms")
    except Disconnected as error:
        sys.exit(f"{where}: {error}")


task.react(main, sys.argv[1:])
