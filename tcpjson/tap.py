"""What `twistd tcpjson` reads: the options, and the service they make."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.cred import strcred
from twisted.cred.checkers import FilePasswordDB
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.threadpool import ThreadPool

from tcpjson._version import __version__
from tcpjson.auth import SUPPORTED, Authenticator
from tcpjson.core.compression import COMPRESS_OVER
from tcpjson.core.limits import RATE_POLICIES, Limits
from tcpjson.fairqueue import FairQueue
from tcpjson.loading import load_router
from tcpjson.logs import FORMATS, LogSetup
from tcpjson.messagelog import MessageLog
from tcpjson.proxied import ProxiedEndpoint
from tcpjson.server import TCPJSONServerFactory
from tcpjson.service import ServerService, blame, fail, reason_of
from tcpjson.systemd import ActivatedEndpoint, Notifier
from tcpjson.tls import ServerTLS, split_tls
from tcpjson.tlstransport import TLSEndpoint

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamServerEndpoint
    from twisted.web.server import Site

log = Logger()

DEFAULT_PORT = "tcp:9999:interface=127.0.0.1"

# Connections that the system completes while we are busy: enough for all clients of a server that restarts.
_BACKLOG = 4096
_TAKE_BACKLOG = frozenset({"tcp", "tcp6", "unix"})
# Where --metrics listens unless told otherwise.
_LOOPBACK = {"tcp": "127.0.0.1", "tcp6": r"\:\:1", "ssl": "127.0.0.1", "tls": "127.0.0.1"}

_DEFAULTS = Limits()

# Files that are not clients: what listens, logs, and connections that are refused.
_RESERVED_FILES = 64
# Threads that hash passwords: half of the processors are left for all else.
_HASHERS = max(1, (os.cpu_count() or 1) // 2)


# What no number reaches: more seconds than this would be too long for some timers.
_MAX_SECONDS = 10**9
_MAX_NUMBER = 10**15


def _below(text: str, bound: int) -> float:
    number = float(text)
    if number >= bound:
        raise ValueError(f"{text!r} must be less than {bound}")
    return number


def _whole(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or not text.strip("0"):
        raise ValueError(f"{text!r} must be a whole number{what}, 1 or more")
    return int(_below(text, _MAX_NUMBER))


def _bytes(text: str) -> int:
    return _whole(text, " of bytes")


def _buffer(text: str) -> int:
    size = _bytes(text)
    if size >= 1 << 31:
        raise ValueError("no socket takes 2147483648 bytes or more")
    return size


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) == 0:
        raise ValueError(f"{text!r} must be a number of seconds greater than 0")
    return _below(text, _MAX_SECONDS)


def _count(text: str) -> int:
    return _whole(text, "")


def _rate(text: str) -> tuple[float, float | None]:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?::([0-9]+))?", text)
    if not match or float(match[1]) == 0 or (match[2] and float(match[2]) == 0):
        raise ValueError(f"{text!r} must be a number greater than 0, or two with a colon between, as 100:500")
    return _below(match[1], _MAX_NUMBER), None if match[2] is None else _below(match[2], _MAX_NUMBER)


def _policy(text: str) -> str:
    if text not in RATE_POLICIES:
        raise ValueError(f"{text!r} must be one of {', '.join(RATE_POLICIES)}")
    return text


def _format(text: str) -> str:
    if text not in FORMATS:
        raise ValueError(f"{text!r} must be one of {', '.join(FORMATS)}")
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("the path of a file must follow")
    # A server in the background changes its working folder.
    return os.path.abspath(text)


def _or_off(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser for which 0 is None: switched off."""

    def parse_or_off(text: str) -> Any:
        try:
            return None if text == "0" else parse(text)
        except ValueError as error:
            raise ValueError(f"{error}, or 0 for off") from None

    return parse_or_off


def _parameter(
    name: str, help_text: str, parse: Callable[[str], Any], default: float | str | None = None
) -> list[Any]:
    """A row of `optParameters` whose errors name the option."""

    def coerce(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None

    return [name, None, default, help_text, coerce]


class Options(usage.Options, strcred.AuthOptionMixin):
    """The command line of `twistd tcpjson`."""

    synopsis = "[options]"
    longdesc = "Serves JSON messages, each behind a 4-byte length, over TCP, TLS or Unix sockets."

    supportedInterfaces = SUPPORTED

    optFlags = [
        ["strict", None, "Refuse plain text and message types that nobody handles."],
        ["allow-plain-auth", None, "Take passwords and tokens on ports without TLS, too."],
        ["log-messages", None, "Log each message: its type, its size, its id."],
        ["log-contents", None, "With --log-messages: log what is in them, too, but for logins."],
    ]
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
        _parameter(
            "max-handlers",
            "How many unfinished handlers a client may have before what it sends waits.",
            _count,
            _DEFAULTS.max_handlers,
        ),
        _parameter(
            "auth-timeout",
            "How long a client may take to log in, TLS handshake and PROXY header included, in seconds.",
            _seconds,
            _DEFAULTS.auth_timeout,
        ),
        _parameter(
            "idle-timeout",
            "How long a client may neither send nor take anything, in seconds; 0: off. [default: for ever]",
            _or_off(_seconds),
        ),
        _parameter(
            "heartbeat",
            "How long a client that wants pings may be silent before it gets one, in seconds; 0: off.",
            _or_off(_seconds),
            _DEFAULTS.heartbeat,
        ),
        _parameter(
            "max-connections",
            "How many connections there may be. [default: what the limit of open files allows, less 64]",
            _count,
        ),
        _parameter(
            "max-connections-per-ip",
            "How many connections there may be from one IPv4 address, or IPv6 /64 network; 0: off."
            " [default: any]",
            _or_off(_count),
        ),
        _parameter(
            "rate",
            "How many messages a second a client may send, and after a colon, how many at once after a pause"
            " (as many as in a second if left out); 0: off. [default: any number]",
            _or_off(_rate),
        ),
        _parameter(
            "byte-rate",
            "How many bytes a second a client may send, and after a colon, how many at once after a"
            " pause; 0: off. [default: any number]",
            _or_off(_rate),
        ),
        _parameter(
            "rate-policy",
            "What a client that sends more meets: throttle (it is read slower), close, or observe (count).",
            _policy,
            _DEFAULTS.rate_policy,
        ),
        _parameter(
            "compress-over",
            "Over what length a message is compressed for a client that asks for it, in bytes; 0: off.",
            _or_off(_bytes),
            COMPRESS_OVER,
        ),
        _parameter(
            "grace",
            "How long the clients may take when the server ends, in seconds.",
            _seconds,
            _DEFAULTS.grace,
        ),
        _parameter(
            "client-ca", "Demand of clients on TLS ports a certificate of an authority in this file.", _path
        ),
        _parameter(
            "log-format", "How the log is written: text, or json, an object a line.", _format, FORMATS[0]
        ),
        _parameter("log-sample", "With --log-messages: log one of so many messages. [default: each]", _count),
        _parameter("send-buffer", "The sockets' send buffers, in bytes; the system's by default.", _buffer),
        _parameter(
            "receive-buffer", "The sockets' receive buffers, in bytes; the system's by default.", _buffer
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        # Docstrings are indented.
        self.docs = {name: " ".join((text or "").split()) for name, text in self.docs.items()}
        self["ports"] = []
        self["auth"] = []
        self["handlers"] = []
        self["metrics"] = None
        self["metrics-host"] = []

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            # What stands behind a colon can be a password.
            raise usage.UsageError(f"unexpected argument {arguments[0].partition(':')[0]!r}")

    def opt_port(self, endpoint: str) -> None:
        """
        Where to listen: a Twisted server endpoint, as tcp:9999 (on all addresses),
        ssl:9999:privateKey=key.pem:certKey=cert.pem, tls:FOLDER:port=9999, unix:/run/tcpjson.sock, tcp6:9999,
        systemd:domain=INET:name=NAME, or haproxy: before one of these. Repeatable.
        [default: tcp:9999:interface=127.0.0.1]
        """
        self["ports"].append(endpoint)

    opt_p = opt_port

    def opt_handlers(self, where: str) -> None:
        """
        Handlers of your own: a module, and the name of a tcpjson.Router in it, as game.moves:router. It is
        looked for in the current folder first. Repeatable.
        """
        try:
            self["handlers"].append(load_router(where))
        except ValueError as error:
            raise usage.UsageError(f"--handlers {where}: {error}") from None

    def opt_metrics(self, endpoint: str) -> None:
        """
        Where to show what the server does, to people and to Prometheus: an endpoint as of --port, on loopback
        unless it has interface=. [default: nowhere]
        """
        if not endpoint:
            raise usage.UsageError("--metrics: an endpoint must follow, as tcp:9100")
        if self["metrics"] is not None:
            raise usage.UsageError(f"--metrics {endpoint}: it may stand there once")
        self["metrics"] = endpoint

    def opt_metrics_host(self, name: str) -> None:
        """
        A name by which --metrics may be asked, beside localhost and any IP address: the host of its URL.
        Repeatable.
        """
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", name):
            raise usage.UsageError(f"--metrics-host: {name!r} must be a name alone, as metrics.example.org")
        self["metrics-host"].append(name)

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

    def opt_auth(self, description: str) -> None:
        """
        Who may be a client: scram:FILE or token:FILE, which python -m tcpjson.passwd writes, or another kind
        that --help-auth lists. Repeatable.
        """
        name = description.partition(":")[0]
        # An error must not show what stands behind the name: it can be a password.
        try:
            checker = strcred.makeChecker(description)
            self.addChecker(checker)
        except strcred.InvalidAuthType:
            raise usage.UsageError(f"--auth {name}: there is no such kind; --help-auth lists them") from None
        except strcred.UnsupportedInterfaces:
            raise usage.UsageError(f"--auth {name}: it knows neither passwords nor tokens") from None
        except strcred.InvalidAuthArgumentString as error:
            reason = reason_of(error).removeprefix(f"--auth {name}:").strip()
            raise usage.UsageError(f"--auth {name}: {reason}") from None
        except Exception as error:
            raise usage.UsageError(f"--auth {name}: {type(error).__name__}") from None
        if isinstance(checker, FilePasswordDB):
            try:
                open(checker.filename, "rb").close()
            except OSError as error:
                raise usage.UsageError(f"--auth {name}: {checker.filename}: {error.strerror}") from None
        self["auth"].append(name)

    def postOptions(self) -> None:
        rates = {}
        for option, unit in (("rate", "message"), ("byte-rate", "byte")):
            rates[f"{unit}s_per_second"], rates[f"{unit}_burst"] = self[option] or (None, None)
        try:
            self["limits"] = Limits(
                **{name: self[name.replace("_", "-")] for name in _OPTIONAL_LIMITS}, **rates
            )
        except ValueError as error:
            raise usage.UsageError(f"--{str(error).replace('_', '-')}") from None


_OPTIONAL_LIMITS = (
    "max_length",
    "max_queue",
    "write_timeout",
    "frame_timeout",
    "handler_timeout",
    "max_handlers",
    "auth_timeout",
    "idle_timeout",
    "heartbeat",
    "max_connections",
    "max_connections_per_ip",
    "rate_policy",
    "grace",
)


class Port:
    """
    What a `--port` asks for.

    Args:
        description: the value of the option.
        endpoint: listens there.
        tls: its certificates; None without TLS.
        confidential: whether nobody between reads what is sent: TLS or a Unix socket.
    """

    def __init__(
        self,
        description: str,
        endpoint: IStreamServerEndpoint,
        tls: ServerTLS | None,
        confidential: bool,
    ) -> None:
        self.description = description
        self.endpoint = endpoint
        self.tls = tls
        self.confidential = confidential


def _kind_of(description: str) -> tuple[str, str]:
    """The kind of an endpoint, and its description with the kind as we write it: Twisted takes `TCP:` too."""
    kind, colon, rest = description.partition(":")
    # To Twisted `s\\sl:` is `ssl:`, and what begins with `name=value:` has its kind further on.
    if "\\" in kind or "=" in kind:
        raise ValueError("it must begin with the kind of the endpoint, as tcp:")
    return kind.lower(), f"{kind.lower()}{colon}{rest}"


def port_from(description: str, reactor: object, client_ca: str | None = None) -> Port:
    """
    The endpoint of a `--port`, with a backlog of 4,096 unless it names one.

    Raises:
        Exception: whatever Twisted's parsers of endpoint strings raise; `ValueError` for certificates.
    """
    kind, below = _kind_of(description)
    proxied = kind == "haproxy"
    if proxied:
        kind, below = _kind_of(below.partition(":")[2])
        if kind == "haproxy":
            raise ValueError("haproxy: may stand there once")
    tls = None
    if kind in ("ssl", "tls"):
        below, tls = split_tls(below, client_ca)
        kind, below = _kind_of(below)
    if kind in _TAKE_BACKLOG and not re.search(r"(?<!\\):backlog=", below):
        below += f":backlog={_BACKLOG}"
    endpoint: IStreamServerEndpoint = serverFromString(reactor, below)
    local = kind == "unix"
    if isinstance(endpoint, AdoptedStreamServerEndpoint):
        endpoint = ActivatedEndpoint(reactor, endpoint.fileno)
        local = endpoint.local
    if proxied:
        endpoint = ProxiedEndpoint(endpoint)
    if tls is not None:
        endpoint = TLSEndpoint(tls, endpoint)
    return Port(description, endpoint, tls, tls is not None or (local and not proxied))


def open_port(description: str, reactor: object, client_ca: str | None) -> Port:
    """The port of a `--port`; refuses to start when there can be none."""
    try:
        return port_from(description, reactor, client_ca)
    except Exception as error:
        hint = f" (did you mean tcp:{description}?)" if description.isdecimal() else ""
        fail(blame(f"--port {description}", _plainer(error, description), client_ca) + hint)


def open_metrics_port(description: str, reactor: object) -> Port:
    """The port of `--metrics`, on loopback unless told otherwise; refuses to start when there can be none."""
    try:
        kind, where = _kind_of(description)
        if kind == "haproxy":
            raise ValueError("haproxy: is for clients")
        if kind in _LOOPBACK and not re.search(r"(?<!\\):interface=", where):
            where += f":interface={_LOOPBACK[kind]}"
        port = port_from(where, reactor)
    except Exception as error:
        hint = f" (did you mean tcp:{description}?)" if description.isdecimal() else ""
        fail(f"--metrics {description}: {reason_of(_plainer(error, description))}{hint}")
    port.description = description
    return port


def _site_of(factory: TCPJSONServerFactory, hosts: Sequence[str]) -> Site:
    """What answers on the port of `--metrics`."""
    try:
        from tcpjson.metrics.site import site_of
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        fail("--metrics needs another package: pip install 'tcpjson[metrics]'")
    return site_of(factory, factory.clock, hosts=hosts)


def _plainer(error: Exception, description: str) -> Exception:
    """In place of what Twisted raises without a word of what is wrong."""
    if number := re.fullmatch(r"invalid literal for int\(\) with base \d+: (.*)", str(error)):
        option = re.search(r":(\w+)=" + re.escape(number[1].strip("'")) + "(?::|$)", description)
        return ValueError(f"{number[1]} is no {'port number' if option is None else option[1]}")
    if missing := re.search(r"missing \d+ required positional arguments?: (.*)", str(error)):
        return ValueError(f"it lacks {missing[1]}")
    if unknown := re.search(r"unexpected keyword argument '(.*)'", str(error)):
        return ValueError(f"it takes no {unknown[1]}=")
    if re.search(r"takes .* positional arguments? but|multiple values for argument", str(error)):
        return ValueError("it has too many parts between colons")
    socket = re.search(r":(?:index|name)=([^:]*)", description)
    if isinstance(error, LookupError) and socket is not None:
        return ValueError(f"systemd passed no socket {socket[1]}")
    return error


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us: each client is one. Returns how many may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warn(
                "the limit of open files stays at {soft}: {error}", event="limit", soft=soft, error=error
            )
        else:
            return hard
    return soft


def allowed_connections(files: int) -> int | None:
    """How many connections so many open files allow; None for any number."""
    return None if files == resource.RLIM_INFINITY else max(1, files - _RESERVED_FILES)


def message_log_of(options: Options) -> MessageLog | None:
    """What logs each message, None where nothing does."""
    if options["log-messages"]:
        return MessageLog(log, contents=bool(options["log-contents"]), every=options["log-sample"] or 1)
    for name in ("log-contents", "log-sample"):
        if options[name]:
            log.warn(f"--{name} does nothing without --log-messages", event="option")
    return None


def authenticator_of(options: Options, queue: FairQueue, reactor: Any) -> Authenticator | None:
    """Who checks the clients, None where nobody does."""
    checkers = options.get("credCheckers", [])
    if not checkers:
        return None
    return Authenticator(checkers, reactor, queue.run, allow_plain=bool(options["allow-plain-auth"]))


def check_protection(ports: Sequence[Port], authenticator: Authenticator | None, options: Options) -> None:
    """Refuse to start with what would be no protection."""
    certificates = options["client-ca"] is not None
    if certificates and all(port.tls is None for port in ports):
        fail("--client-ca: no --port has TLS")
    for port in ports:
        if authenticator is None:
            if certificates and port.tls is None:
                fail(f"--client-ca: --port {port.description} has no TLS and asks nobody; give --auth too")
            continue
        if port.confidential:
            continue
        for name, checker in zip(options["auth"], options["credCheckers"], strict=True):
            if not authenticator.usable(checker, confidential=False):
                fail(
                    f"--auth {name}: --port {port.description} is in the clear, and secrets would be too; use"
                    " TLS, or scram, or --allow-plain-auth"
                )


def on_signal(reactor: Any, number: int, function: Callable[[], object]) -> None:
    """Have the reactor call a function at each signal of a number."""

    def install() -> None:
        signal.signal(number, lambda *_: reactor.callFromThread(function))

    install()
    # Twisted, when it begins to run, puts in place handlers that know of no second signal.
    reactor.callWhenRunning(install)


def makeService(options: Options) -> ServerService:
    """The service of `twistd tcpjson`."""
    from twisted.internet import reactor as installed

    # What Twisted gives as the reactor depends on the system.
    reactor: Any = installed
    # Twisted's timers go by the time of day; ours must not stand still, or all fire, when that is set.
    reactor.seconds = time.monotonic
    try:
        logs = LogSetup(options["log-format"], options.parent, reactor)
    except ValueError as error:
        fail(str(error))
    limits: Limits = options["limits"]
    allowed = allowed_connections(raise_file_limit())
    if limits.max_connections is None:
        limits = msgspec.structs.replace(limits, max_connections=allowed)
    elif allowed is not None and limits.max_connections > allowed:
        fail(f"--max-connections: the limit of open files allows {allowed}, not {limits.max_connections}")
    if limits.max_queue < limits.max_length:
        log.warn(
            "--max-queue is less than --max-length: one long message can fill a client's queue",
            event="option",
        )
    if limits.rate_policy != _DEFAULTS.rate_policy and not (options["rate"] or options["byte-rate"]):
        log.warn("--rate-policy does nothing without --rate or --byte-rate", event="option")
    if options["allow-plain-auth"] and not options["auth"]:
        log.warn("--allow-plain-auth does nothing without --auth", event="option")
    ports = [open_port(port, reactor, options["client-ca"]) for port in options["ports"] or [DEFAULT_PORT]]
    pool = ThreadPool(0, _HASHERS, "passwords")
    queue = FairQueue(lambda function: deferToThreadPool(reactor, pool, function), _HASHERS)
    authenticator = authenticator_of(options, queue, reactor)
    check_protection(ports, authenticator, options)
    try:
        factory = TCPJSONServerFactory(
            reactor,
            limits=limits,
            routers=options["handlers"],
            strict=bool(options["strict"]),
            authenticator=authenticator,
            message_log=message_log_of(options),
            compress_over=options["compress-over"],
            send_buffer=options["send-buffer"],
            receive_buffer=options["receive-buffer"],
        )
    except (TypeError, ValueError) as error:
        fail(f"--handlers: {error}")
    if options["handlers"]:
        kinds = [kind for router in options["handlers"] for kind in router.handlers]
        types = sorted(str(kind.__struct_config__.tag or kind.__name__) for kind in kinds)
        log.info("handlers of: {types}", event="handlers", types=", ".join(types))
    certificates = [(f"--port {port.description}", port.tls) for port in ports if port.tls is not None]
    metrics = None
    if options["metrics"] is not None:
        metrics_port = open_metrics_port(options["metrics"], reactor)
        metrics = metrics_port.description, metrics_port.endpoint, _site_of(factory, options["metrics-host"])
        if metrics_port.tls is not None:
            certificates.append((f"--metrics {metrics_port.description}", metrics_port.tls))
    elif options["metrics-host"]:
        log.warn("--metrics-host does nothing without --metrics", event="option")
    checkers = zip(options["auth"], options.get("credCheckers", ()), strict=True)
    return ServerService(
        [(port.description, port.endpoint) for port in ports],
        factory,
        metrics=metrics,
        tls=certificates,
        files=[
            *((f"--auth {name}", each.reload) for name, each in checkers if hasattr(each, "reload")),
            *((option, tls.reload) for option, tls in certificates),
        ],
        client_ca=options["client-ca"],
        pool=None if authenticator is None else pool,
        on_signal=partial(on_signal, reactor),
        notifier=Notifier(os.environ, os.getpid()),
        logs=logs,
        stop=lambda number: (reactor.sigTerm if number == signal.SIGTERM else reactor.sigInt)(number),
    )
