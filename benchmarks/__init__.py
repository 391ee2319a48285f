"""Side-by-side measurements of tcpjson and of what others would write by hand.

Run them from the root of the repository, on a machine that does nothing else (Linux only; a C compiler
is needed for the load generator, ``uvloop`` and ``orjson`` for the expert's peer, ``trustme`` for TLS)::

    python -m benchmarks.compare     CPU time of the server a message, against the peers
    python -m benchmarks.revisions   the same, against another revision of tcpjson
    python -m benchmarks.memory      resident bytes of an idle connection
    python -m benchmarks.refusals    CPU time of a connection that is refused
    python -m benchmarks.bigframe    CPU time of one 16 MiB frame that arrives in small pieces
    python -m benchmarks.stuck       what readers that never read cost
    python -m benchmarks.compression what compression saves, and what it costs
    python -m benchmarks.requests    CPU time of our client a request, against clients written by hand

Each says with ``--help`` what it takes.
"""
