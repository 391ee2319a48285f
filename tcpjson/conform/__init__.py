"""`python -m tcpjson.conform`: plays the contract of docs/protocol.rst against a server, in any language."""
