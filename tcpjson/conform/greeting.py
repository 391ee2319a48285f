"""Section 4: what `welcome` says."""

from __future__ import annotations

import re
from collections.abc import Callable

from tcpjson.conform.checks import check
from tcpjson.conform.pace import LEAST
from tcpjson.conform.scene import Scene
from tcpjson.conform.verdicts import Failed
from tcpjson.conform.wire import shown

# The most that max_length may be.
_MOST = 256 * 1024 * 1024
_LIMITS = frozenset(
    {
        *("max_queue", "messages_per_second", "bytes_per_second", "frame_timeout", "write_timeout"),
        *("idle_timeout", "auth_timeout", "pre_auth_max_length"),
    }
)
_MISSING = object()


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _field(scene: Scene, name: str, fits: Callable[[object], object], due: str) -> None:
    """See that a field of welcome is as it must be."""
    value = scene.greet().welcome.get(name, _MISSING)
    if value is _MISSING:
        raise Failed(f"{name}: expected {due}, but it is missing")
    if not fits(value):
        raise Failed(f"{name}: expected {due}, got {shown(value)}")


@check("R4.1")
def welcome_protocol(scene: Scene) -> None:
    """protocol is 1."""
    _field(scene, "protocol", lambda value: value == 1 and value is not True, "1")


@check("R4.1")
def welcome_server(scene: Scene) -> None:
    """server is name/version."""
    _field(
        scene,
        "server",
        lambda value: isinstance(value, str) and re.fullmatch(r"[^/]+/.+", value),
        '"name/version"',
    )


@check("R4.1")
def welcome_max_length(scene: Scene) -> None:
    """max_length is a whole number of bytes, up to 256 MiB."""
    _field(
        scene,
        "max_length",
        lambda value: isinstance(value, int) and value is not True and 0 < value <= _MOST,
        f"a whole number from 1 to {_MOST}",
    )


@check("R4.1")
def welcome_heartbeat(scene: Scene) -> None:
    """heartbeat is a number of seconds, or null."""
    _field(scene, "heartbeat", lambda value: value is None or _number(value), "seconds, or null")


@check("R4.1")
def welcome_compression(scene: Scene) -> None:
    """compression is a list of names."""
    _field(scene, "compression", _names, "a list of names")


@check("R4.1")
def welcome_features(scene: Scene) -> None:
    """features is a list of names."""
    _field(scene, "features", _names, "a list of names")


@check("R4.1")
def welcome_auth(scene: Scene) -> None:
    """auth is a list of mechanisms."""
    _field(scene, "auth", _names, "a list of names")


@check("R4.1")
def welcome_limits(scene: Scene) -> None:
    """limits is an object of numbers greater than 0, and its rates let a client answer a ping in time."""
    _field(
        scene,
        "limits",
        lambda value: isinstance(value, dict) and all(map(_number, value.values())),
        "an object of numbers greater than 0",
    )
    limits = scene.facts.limits
    for name, least in zip(("messages_per_second", "bytes_per_second"), LEAST, strict=True):
        if limits.get(name, least) < least:
            raise Failed(f"{name}: expected {least:g} or more, got {limits[name]:g}")


@check("R4.1", must=False)
def welcome_limits_are_known(scene: Scene) -> None:
    """limits has the names of section 4, and no others."""
    limits = scene.greet().welcome.get("limits")
    unknown = sorted(set(limits) - _LIMITS) if isinstance(limits, dict) else []
    if unknown:
        raise Failed(f"limits: expected names of section 4, got {shown(unknown)}")


@check("R4.1", must=False)
def welcome_says_the_same_to_all(scene: Scene) -> None:
    """Two clients are told the same, but for who they are and when."""
    first, second = (scene.greet(name).welcome for name in ("first", "second"))
    for name in sorted({*first, *second} - {"client_id", "timestamp", "message"}):
        if first.get(name) != second.get(name):
            raise Failed(f"{name}: {shown(first.get(name))} to one, {shown(second.get(name))} to the next")


@check("R4.1")
def limits_of_those_who_log_in(scene: Scene) -> None:
    """Where a login is asked for, limits says auth_timeout and pre_auth_max_length, which is 4,096."""
    scene.need(scene.facts.auth, "the server asks for no login")
    limits = scene.facts.limits
    longest = min(4096, scene.facts.max_length)
    if "auth_timeout" not in limits or limits.get("pre_auth_max_length") not in (4096, longest):
        raise Failed(f"limits: expected auth_timeout and pre_auth_max_length 4096, got {shown(limits)}")
