"""How fast a server is, told by replies that were checked: `python -m tcpjson.bench`."""
