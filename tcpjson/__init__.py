"""JSON messages over one TCP or TLS port."""

from tcpjson._version import __version__
from tcpjson.core.limits import Limits
from tcpjson.core.messages import Message
from tcpjson.handlers import Router, Session
from tcpjson.server import TCPJSONServerFactory

__all__ = ["Limits", "Message", "Router", "Session", "TCPJSONServerFactory", "__version__"]
