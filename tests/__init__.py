"""End to end: the built package, real processes, real sockets. Run ``python -m twisted.trial tests``."""

import signal

# A shell has its background processes ignore SIGINT, and so would theirs; some of ours are sent it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
