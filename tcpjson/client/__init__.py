"""Clients for Twisted programs (docs/clients.rst)."""

from tcpjson.client.awaitable import Client
from tcpjson.client.breaker import CircuitBreaker, CircuitOpen
from tcpjson.client.endpoints import EndpointConnector, client_endpoint
from tcpjson.client.factory import TCPJSONClientFactory
from tcpjson.client.pool import Pool

__all__ = [
    "CircuitBreaker",
    "CircuitOpen",
    "Client",
    "EndpointConnector",
    "Pool",
    "TCPJSONClientFactory",
    "client_endpoint",
]
