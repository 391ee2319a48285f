"""The wire protocol without Twisted, clock, randomness or I/O: bytes and numbers in, bytes and events out."""
