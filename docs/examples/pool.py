import sys

from twisted.internet import task
from twisted.internet.defer import Deferred, gatherResults

from tcpjson.client import CircuitBreaker, Pool


async def square(pool, number):
    async with pool.client() as client:
        return await client.echo(number * number)


async def main(reactor, *servers):
    servers = servers or ["localhost:9999"]
    async with Pool(reactor, servers, size=2, breaker=lambda: CircuitBreaker(reactor)) as pool:
        squares = [Deferred.fromCoroutine(square(pool, number)) for number in range(5)]
        print(await gatherResults(squares))
        for server, breaker in pool.breakers.items():
            print(server, breaker.state.value, breaker.figures().failures, "failures")


task.react(main, sys.argv[1:])
