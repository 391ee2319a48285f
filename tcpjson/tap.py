"""What `twistd tcpjson` reads: the options, and the service they make."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python import usage

from tcpjson._version import __version__
from tcpjson.connection import client_id_of
from tcpjson.core.limits import Limits
from tcpjson.proxied import HeaderFirst, ProxiedEndpoint
from tcpjson.server import TCPJSONServerFactory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
    from twisted.python.failure import Failure

log = Logger()

DEFAULT_PORT = "tcp:9999:interface=127.0.0.1"

# Connections that the system completes while we are busy: enough for all clients of a server that restarts.
_BACKLOG = 4096
_TAKE_BACKLOG = frozenset({"tcp", "tcp6", "ssl", "unix"})

_DEFAULTS = Limits()


def _bytes(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise ValueError(f"{text!r} must be a whole number of bytes, 1 or more")
    return int(text)


def _buffer(text: str) -> int:
    size = _bytes(text)
    if size >= 1 << 31:
        raise ValueError("no socket takes 2147483648 bytes or more")
    return size


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or float(text) == 0:
        raise ValueError(f"{text!r} must be a number of seconds greater than 0")
    return float(text)


def _parameter(
    name: str, help_text: str, parse: Callable[[str], Any], default: float | None = None
) -> list[Any]:
    """A row of `optParameters` whose errors name the option."""

    def coerce(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None

    return [name, None, default, help_text, coerce]


class Options(usage.Options):
    """The command line of `twistd tcpjson`."""

    synopsis = "[options]"
    longdesc = "Serves JSON messages, each behind a 4-byte length, over TCP, TLS or Unix sockets."

    optFlags = [["strict", None, "Refuse plain text and message types that nobody handles."]]
    optParameters = [
        _parameter(
            "max-length",
            "The longest message, in bytes, up to 268435456.",
            _bytes,
            _DEFAULTS.max_length,
        ),
        _parameter("max-queue", "What may wait for one client, in bytes.", _bytes, _DEFAULTS.max_queue),
        _parameter(
            "write-timeout",
            "How long a client may read nothing of what waits for it, in seconds.",
            _seconds,
            _DEFAULTS.write_timeout,
        ),
        _parameter(
            "frame-timeout",
            "How long a message may take to come in, in seconds; one more is given for each 16 KiB.",
            _seconds,
            _DEFAULTS.frame_timeout,
        ),
        _parameter(
            "handler-timeout", "How long a handler may take, in seconds.", _seconds, _DEFAULTS.handler_timeout
        ),
        _parameter("send-buffer", "The sockets' send buffers, in bytes; the system's by default.", _buffer),
        _parameter(
            "receive-buffer", "The sockets' receive buffers, in bytes; the system's by default.", _buffer
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self["ports"] = []

    def opt_port(self, endpoint: str) -> None:
        """
        Where to listen: a Twisted server endpoint, as tcp:9999 (on all addresses),
        ssl:9999:privateKey=key.pem:certKey=cert.pem, unix:/run/tcpjson.sock, tcp6:9999, or haproxy: before
        one of these. Repeatable. [default: tcp:9999:interface=127.0.0.1]
        """
        self["ports"].append(endpoint)

    opt_p = opt_port

    def opt_version(self) -> None:
        """Display the version and exit."""
        print(f"tcpjson {__version__}")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        # twistd would print all its help before the line that says what is wrong.
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            fail(str(error).replace("Parameter type enforcement failed: ", ""))

    def postOptions(self) -> None:
        try:
            self["limits"] = Limits(**{name: self[name.replace("_", "-")] for name in _OPTIONAL_LIMITS})
        except ValueError as error:
            raise usage.UsageError(f"--{str(error).replace('_', '-')}") from None


_OPTIONAL_LIMITS = ("max_length", "max_queue", "write_timeout", "frame_timeout", "handler_timeout")


class Refusal(SystemExit, Exception):
    """
    Ends the program with one line and status 1. An `Exception`, too: twistd then removes its pid file, and
    tells the terminal that waits for a server in the background.
    """


def fail(reason: str) -> None:
    """Refuse to start."""
    raise Refusal(f"tcpjson: {reason}")


def endpoint_from(description: str, reactor: object) -> IStreamServerEndpoint:
    """
    The endpoint of a `--port`, with a backlog of 4,096 unless it names one.

    Raises:
        Exception: whatever Twisted's parsers of endpoint strings raise.
    """
    kind, _, rest = description.partition(":")
    if kind == "haproxy" and rest.startswith("ssl:"):
        return endpoint_from(rest, HeaderFirst(reactor))
    if kind == "haproxy":
        return ProxiedEndpoint(endpoint_from(rest, reactor))
    if kind in _TAKE_BACKLOG and not re.search(r"(?<!\\):backlog=", description):
        description += f":backlog={_BACKLOG}"
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    return endpoint


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each client is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warn("the limit of open files stays at {soft}: {error}", soft=soft, error=error)


class ServerService(Service):
    """
    Listens on all endpoints or on none.

    Args:
        endpoints: each with the `--port` it came from.
        factory: the server.
    """

    def __init__(
        self, endpoints: Sequence[tuple[str, IStreamServerEndpoint]], factory: TCPJSONServerFactory
    ) -> None:
        self.factory = factory
        self._endpoints = endpoints
        self._ports: list[IListeningPort] = []

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        # twistd has listened already, while it had the right to; other runners start here.
        if not self._ports:
            self._listen()

    def _listen(self) -> None:
        for description, endpoint in self._endpoints:
            listening = endpoint.listen(self.factory)
            listening.addCallback(self._listens)
            listening.addErrback(self._cannot_listen, description)
            failures: list[Failure] = []
            listening.addErrback(failures.append)
            if failures:
                # Out of here, twistd ends with the line and nothing has been served.
                failures[0].raiseException()

    def _listens(self, port: IListeningPort) -> None:
        self._ports.append(port)
        address = port.getHost()
        where = address.name if isinstance(address, UNIXAddress) else client_id_of(address)
        if isinstance(where, bytes):
            where = where.decode(errors="replace")
        log.info("listening on {where}", where=where)

    def _cannot_listen(self, failure: Failure, description: str) -> None:
        from twisted.internet import reactor

        for port in self._ports:
            port.stopListening()
        # A Unix socket's file goes in the next turn of the reactor, which is not to run.
        reactor.iterate(0)
        fail(f"cannot listen on {description}: {_reason(failure.value)}")

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        ports, self._ports = self._ports, []
        return DeferredList([Deferred.fromCoroutine(_stop(port)) for port in ports])


async def _stop(port: IListeningPort) -> None:
    stopped = port.stopListening()
    if stopped is not None:
        await stopped


def _reason(error: BaseException | None) -> str:
    """An error in one line."""
    socket_error = getattr(error, "socketError", None)
    text = str(socket_error or error).strip().splitlines()
    return text[0] if text else type(error).__name__


def makeService(options: Options) -> ServerService:
    """The service of `twistd tcpjson`."""
    from twisted.internet import reactor

    # Twisted's timers go by the time of day; ours must not stand still, or all fire, when that is set.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]  # see above
    raise_file_limit()
    endpoints = []
    for description in options["ports"] or [DEFAULT_PORT]:
        try:
            endpoints.append((description, endpoint_from(description, reactor)))
        except Exception as error:
            hint = f" (did you mean tcp:{description}?)" if description.isdecimal() else ""
            fail(f"--port {description}: {_reason(error)}{hint}")
    limits: Limits = options["limits"]
    if limits.max_queue < limits.max_length:
        log.warn("--max-queue is less than --max-length: one long message can fill a client's queue")
    factory = TCPJSONServerFactory(
        reactor,
        limits=limits,
        strict=bool(options["strict"]),
        send_buffer=options["send-buffer"],
        receive_buffer=options["receive-buffer"],
    )
    return ServerService(endpoints, factory)
