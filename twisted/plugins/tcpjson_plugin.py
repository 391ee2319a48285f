"""What ``twistd`` reads to list the command ``tcpjson``: strings only, nothing of tcpjson is imported."""

from twisted.application.service import ServiceMaker

tcpjson = ServiceMaker(
    "tcpjson",
    "tcpjson.tap",
    "A server for JSON messages over TCP and TLS.",
    "tcpjson",
)
