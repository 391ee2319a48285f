"""What a run was limited by, told from who was busy."""

from __future__ import annotations

#: Who is busier than this share of a processor can do no more.
BUSY = 0.9
#: A rate counts as kept from this part of it on.
KEPT = 0.99

#: For each answer of `limited_by`, what it means.
WORDS = {
    "server": "the server took all of a processor that it could get; what else ran beside it, took the rest",
    "generator": "the generator was busy all the time, the server was not: it can do more than this",
    "the given rate": "as much was asked as --rate says, and all of it was answered",
    "the server's rate limit": "the server takes no more than this from a client (limits in its welcome)",
    "unknown": "nobody was seen to be busy all the time: each waited for the other, or it was a server that"
    " cannot be looked at",
}


def limited_by(
    *,
    server_cpu: float | None,
    generator_cpu: float,
    per_second: float,
    rate: float | None = None,
    allowed: float | None = None,
) -> str:
    """
    What kept the figure from being higher: a key of `WORDS`.

    Args:
        server_cpu: share of a processor that the server's process took, or waited for; None: it cannot be
        seen. generator_cpu: that of the generator's busiest process.
        per_second: what was reached.
        rate: what was asked for.
        allowed: messages in a second that the server takes from all clients together.
    """
    if rate is not None and per_second >= KEPT * rate:
        return "the given rate"
    if allowed is not None and per_second >= BUSY * allowed:
        return "the server's rate limit"
    if server_cpu is not None and server_cpu > BUSY:
        return "server"
    if generator_cpu > BUSY:
        return "generator"
    return "unknown"
