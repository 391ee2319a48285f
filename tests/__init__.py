"""End to end: the built package, real processes, real sockets. Run ``python -m twisted.trial tests``."""
