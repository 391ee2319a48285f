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


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """
    The limits that a server enforces. Sizes are in bytes, times in seconds.

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

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be greater than 0")
        if self.max_length > LARGEST_FRAME:
            raise ValueError(f"max_length must be at most {LARGEST_FRAME}")

    def frame_allowance(self, length: int) -> float:
        """Seconds within which a frame of `length` payload bytes must be complete (section 1)."""
        return self.frame_timeout + length / BYTES_PER_SECOND

    def announced(self) -> dict[str, float]:
        """The `limits` of `welcome` (section 4)."""
        return {
            "max_queue": self.max_queue,
            "frame_timeout": self.frame_timeout,
            "write_timeout": self.write_timeout,
        }
