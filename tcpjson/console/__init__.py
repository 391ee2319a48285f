"""`python -m tcpjson.console`: talks to a server, for who types and for scripts (docs/console.rst)."""
