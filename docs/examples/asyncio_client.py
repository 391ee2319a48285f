import asyncio
import sys

from twisted.internet import asyncioreactor

from tcpjson import Client


async def main(where="localhost:9999"):
    loop = asyncio.get_running_loop()
    asyncioreactor.install(loop)
    from twisted.internet import reactor

    reactor.startRunning(installSignalHandlers=False)
    try:
        client = Client(reactor, where)
        await client.connect().asFuture(loop)
        print(await asyncio.gather(*(client.echo(number).asFuture(loop) for number in range(5))))
        async with asyncio.timeout(2):
            print((await client.stats().asFuture(loop))["connected_clients"], "client is there")
        await client.close().asFuture(loop)
    finally:
        reactor.getThreadPool().stop()


asyncio.run(main(*sys.argv[1:]))
