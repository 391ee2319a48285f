import sys
from concurrent.futures import ThreadPoolExecutor

from tcpjson import ConnectionPool, TCPClient

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999

with TCPClient("localhost", port) as client:
    print(client.request("echo", content={"x": 1}, timeout=5)["content"])

pool = ConnectionPool("localhost", port, pool_size=4)


def ask(number):
    with pool.connection() as client:
        return client.request("echo", content=number)["content"]


with pool, ThreadPoolExecutor(8) as threads:
    print(list(threads.map(ask, range(10))))
