"""``tcpjson.client.Client`` as a program uses it."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Iterable
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from benchmarks.requesters import TIMEOUT, serve
from tcpjson.client import Client


def gather(coroutines: Iterable[Awaitable[None]]) -> Deferred[list[None]]:
    return gatherResults([Deferred.fromCoroutine(cast(Any, coroutine)) for coroutine in coroutines])


async def main(reactor: Any, port: str) -> None:
    async with Client(reactor, f"127.0.0.1:{port}") as client:
        await serve(lambda content: client.echo(content, timeout=TIMEOUT), gather)


if __name__ == "__main__":
    react(main, sys.argv[1:])
