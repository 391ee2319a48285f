"""What one peer may ask of the other, and the constants of the protocol."""

from __future__ import annotations

import msgspec

#: Bytes of answers that may wait for a peer before its requests wait too (section 10).
HIGH_WATER = 64 * 1024
#: Seconds from a fatal error to the abort of the connection (section 9).
CLOSE_TIMEOUT = 2.0
#: The largest `max_length` a server can be given, in bytes (section 1).
LARGEST_FRAME = 256 * 1024 * 1024
#: Bytes of a frame that buy its sender one second more (section 1).
BYTES_PER_SECOND = 16 * 1024


#: Bytes that a frame may have before its sender has authenticated (section 6).
PRE_AUTH_MAX_LENGTH = 4096
#: What is done with a client that is over its rate (section 9, `rate_limited`).
RATE_POLICIES = ("throttle", "close", "observe")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """
    The limits that a server enforces. Sizes are in bytes, times in seconds; None: no limit.

    Raises:
        ValueError: one line that names the limit, when a value is out of its bounds.
    """

    #: The longest payload that is taken, 1 to 268,435,456.
    max_length: int = 1024 * 1024
    #: What may wait for one client. A single longer frame is taken when nothing else waits.
    max_queue: int = 8 * 1024 * 1024
    #: How long a frame may take from its first byte to its last, before the allowance for its length.
    frame_timeout: float = 30.0
    #: How long a client may take nothing of what waits for it.
    write_timeout: float = 10.0
    #: How long a handler may take.
    handler_timeout: float = 30.0
    #: How many unfinished handlers one connection may have.
    max_handlers: int = 64
    #: How many connections there may be, and how many from one address.
    max_connections: int | None = None
    max_connections_per_ip: int | None = None
    #: How many messages, and bytes of frames, one client may send in a second.
    messages_per_second: float | None = None
    bytes_per_second: float | None = None
    #: How many it may send at once after a pause; a second's worth when None.
    message_burst: float | None = None
    byte_burst: float | None = None
    #: What is done with one that sends more: it is read slower ("throttle"), cut ("close"), or counted only
    #: ("observe").
    rate_policy: str = "throttle"
    #: How long a client may neither send nor take anything.
    idle_timeout: float | None = None
    #: How long it may take from the connection to the authentication, or where none is asked for, to the end
    #: of the TLS handshake and the PROXY header.
    auth_timeout: float = 5.0
    #: How long a client that asked for pings may be silent before it gets one.
    heartbeat: float | None = 25.0
    #: How long the clients may take to finish when the server shuts down.
    grace: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be greater than 0")
        if self.max_length > LARGEST_FRAME:
            raise ValueError(f"max_length must be at most {LARGEST_FRAME}")
        for name in ("message_burst", "byte_burst"):
            if (getattr(self, name) or 1) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.rate_policy not in RATE_POLICIES:
            raise ValueError(f"rate_policy must be one of {', '.join(RATE_POLICIES)}")

    def frame_allowance(self, length: int) -> float:
        """Seconds within which a frame of `length` payload bytes must be complete (section 1)."""
        return self.frame_timeout + length / BYTES_PER_SECOND

    def announced(self, auth: bool) -> dict[str, float]:
        """The `limits` of `welcome` (section 4); `auth`: whether authentication is asked for."""
        limits: dict[str, float | None] = {
            "max_queue": self.max_queue,
            "frame_timeout": self.frame_timeout,
            "write_timeout": self.write_timeout,
            "idle_timeout": self.idle_timeout,
        }
        if self.rate_policy != "observe":
            limits["messages_per_second"] = self.messages_per_second
            limits["bytes_per_second"] = self.bytes_per_second
        if auth:
            limits["auth_timeout"] = self.auth_timeout
            limits["pre_auth_max_length"] = min(self.max_length, PRE_AUTH_MAX_LENGTH)
        return {name: value for name, value in limits.items() if value is not None}
