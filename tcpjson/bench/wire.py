"""Frames, as the benchmark needs them: one at a time, from a buffer that may hold many."""

from __future__ import annotations

#: Bytes of a payload that no server sends in answer to ours.
LONGEST = 64 * 1024 * 1024


def frame(payload: bytes) -> bytes:
    """The payload behind its length (docs/protocol.rst, section 1)."""
    return len(payload).to_bytes(4, "big") + payload


def take(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    """
    The payload of the frame that begins at `at`, and where it ends; None while it is not whole.

    Raises:
        ValueError: it is announced to be longer than any answer.
    """
    begin = at + 4
    if len(data) < begin:
        return None
    length = int.from_bytes(data[at:begin], "big")
    if length > LONGEST:
        raise ValueError(f"no frames of tcpjson come, but {bytes(data[at : at + 40])!r}")
    end = begin + length
    if len(data) < end:
        return None
    return bytes(data[begin:end]), end
