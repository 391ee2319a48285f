"""Clients and a server for programs without a reactor: no callbacks to chain, no coroutines."""

from tcpjson.blocking.client import TCPClient
from tcpjson.blocking.pool import ConnectionPool
from tcpjson.blocking.server import TCPServer

__all__ = ["ConnectionPool", "TCPClient", "TCPServer"]
