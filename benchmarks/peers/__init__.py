"""Servers of the classic messages, as others would write them by hand: what tcpjson is measured against.

Each takes a port (0: any free one) and prints ``listening on 127.0.0.1:PORT``. They check nothing of what
they read, bound no queue and know no limits: they do the least work that answers a well-behaved client.
"""
