"""How many connections there may be (docs/protocol.rst, section 9)."""

from __future__ import annotations

from collections import Counter

from tcpjson.core.errors import ProtocolError, ServerFull, TooManyConnections
from tcpjson.core.limits import Limits


class Admission:
    """Counts connections, all of them and those of one network, and says which are too many."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_connections
        self._most_each = limits.max_connections_per_ip
        self.admitted = 0
        self._by_network: Counter[str] = Counter()

    def enter(self) -> ProtocolError | None:
        """Count a connection, or say why it cannot be taken."""
        if self._most is not None and self.admitted >= self._most:
            return ServerFull()
        self.admitted += 1
        return None

    def leave(self) -> None:
        """A connection that had entered is gone."""
        self.admitted -= 1

    def claim(self, network: str) -> ProtocolError | None:
        """Count one more for a network, or say why that cannot be."""
        if self._most_each is not None:
            if self._by_network[network] >= self._most_each:
                return TooManyConnections()
            self._by_network[network] += 1
        return None

    def release(self, network: str) -> None:
        """One that a network had claimed is gone."""
        if self._most_each is not None:
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]
