"""Section 6: authentication, where the server asks for it."""

from __future__ import annotations

from collections.abc import Callable

from tcpjson.conform.checks import check
from tcpjson.conform.scene import AUTH_DELAY, Scene
from tcpjson.conform.verdicts import Failed, Skip
from tcpjson.conform.wire import Message, Peer, encode, shown
from tcpjson.core.framing import frame
from tcpjson.vectors import Matcher

# Bytes of a frame before the login.
_LONGEST = 4096
# Seconds by which a deadline may be late, and in which a connection has to be gone.
_LATE = 4.0
_ONE_STEP = ("plain", "token")
_REFUSED = Matcher(fields={"type": "error", "code": "bad_message", "fatal": False})
_FAILED = Matcher(fields={"type": "auth_result", "status": "authentication_failed"}, absent=["user"])
_DONE = Matcher(
    fields={"type": "auth_result", "status": "authenticated"},
    forms={"user": "nonempty", "timestamp": "timestamp"},
    absent=["token", "password", "username", "mechanism"],
)


def _asked(scene: Scene) -> None:
    scene.need(scene.facts.auth, "the server asks for no login")


def _unauthenticated(name: object) -> Matcher:
    return Matcher(fields={"type": "error", "code": "unauthenticated", "fatal": False, "id": name})


@check("R6.6", "R6.7", "R6.8", "R6.10")
def login_by_each_mechanism(scene: Scene) -> None:
    """Each mechanism of welcome that our secret is for lets us in, and is told who we are."""
    _asked(scene)
    tried = []
    for mechanism in scene.facts.auth:
        peer = scene.greet(mechanism)
        try:
            result = scene.log_in(peer, [mechanism])
        except Skip:
            peer.close()
            continue
        tried.append(mechanism)
        if not isinstance(result.get("user"), str):
            raise Failed(f"user: expected a string, got {shown(result)}")
        scene.sync(peer)
        peer.send({"type": "echo", "content": mechanism})
        peer.expect(Matcher(fields={"type": "echo_response", "content": mechanism}))
    scene.need(
        tried, "none of the server's mechanisms is one that our secret is for, and may be sent by here"
    )


@check("R6.2")
def before_the_login(scene: Scene) -> None:
    """Before the login ping and hello are served, and all else gets unauthenticated."""
    _asked(scene)
    peer = scene.greet()
    kinds = ("echo", "broadcast", "get_stats", "x-conform", "pong", "auth_result")
    peer.send(*({"type": kind, "content": "x", "id": kind} for kind in kinds))
    for kind in kinds:
        peer.expect(_unauthenticated(kind))
    peer.send_payload(b"plain text", b"[1]")
    for _ in range(2):
        peer.expect(Matcher(fields={"type": "error", "code": "unauthenticated", "fatal": False}))
    scene.sync(peer)
    peer.send({"type": "hello", "client": "conform/1", "id": 1})
    peer.expect(Matcher(fields={"type": "hello_response", "id": 1}))
    peer.send({"type": "echo", "id": 2})
    peer.expect(_unauthenticated(2))


@check("R6.3")
def frames_before_the_login(scene: Scene) -> None:
    """Before the login a frame of 4,096 bytes is taken, and one of 4,097 gets too_large, fatal."""
    _asked(scene)
    peer = scene.greet()
    start = b'{"type":"ping","timestamp":"'
    peer.send_payload(start + b"x" * (_LONGEST - len(start) - 2) + b'"}')
    peer.expect(Matcher(fields={"type": "pong"}))
    peer.write((_LONGEST + 1).to_bytes(4, "big"))
    peer.expect(Matcher(fields={"type": "error", "code": "too_large", "fatal": True}))
    peer.end(_LATE)


@check("R6.4")
def nobody_hears_before_the_login(scene: Scene) -> None:
    """A client that has yet to log in gets no broadcast, and is counted nowhere."""
    _asked(scene)
    sender, other = scene.connect("sender"), scene.connect("other")
    waiting = scene.greet("waiting")
    word = scene.nonce()
    sender.send({"type": "broadcast", "content": word})
    recipients = sender.receive().get("recipients")
    other.expect(Matcher(fields={"type": "broadcast", "content": word}))
    scene.sync(waiting, "a client before its login")
    if not scene.strangers:
        if recipients != 1:
            raise Failed(f"recipients: expected 1, without who has yet to log in, got {shown(recipients)}")
        came = scene.count(sender)
        if came != 2:
            raise Failed(f"connected_clients: expected 2, without who has yet to log in, got {came}")


@check("R3.4", "R3.9", section="6")
def broadcasts_tell_the_user(scene: Scene) -> None:
    """A broadcast of a client that has logged in has from_user, whatever else the client says."""
    _asked(scene)
    scene.begin_login(scene.facts.auth)
    sender, receiver = scene.greet("sender"), scene.connect("receiver")
    user = scene.log_in(sender).get("user")
    sender.send({"type": "broadcast", "content": 1, "from_user": "somebody else", "from_client": "1.2.3.4:5"})
    receiver.expect(
        Matcher(
            fields={"type": "broadcast", "from_user": user, "from_client": sender.client_id, "content": 1}
        )
    )


@check("R6.5")
def requests_behind_the_proof(scene: Scene) -> None:
    """What is sent behind a proof, without waiting, is served when the proof was good."""
    _asked(scene)
    mechanisms = [name for name in scene.facts.auth if name in _ONE_STEP]
    scene.need(mechanisms, "the server has no mechanism of a single step")
    login = scene.begin_login(mechanisms)
    scene.patience.extend(AUTH_DELAY)
    peer = scene.greet()
    peer.write(encode({"type": "auth", **login.first, "id": 1}) + encode({"type": "echo", "content": [1]}))
    peer.expect(_DONE, scene.patience.seconds + AUTH_DELAY)
    peer.expect(Matcher(fields={"type": "echo_response", "content": [1]}))


@check("R6.11")
def auth_behind_the_login(scene: Scene) -> None:
    """auth behind a login gets bad_message, and the client stays who it is."""
    _asked(scene)
    peer = scene.connect()
    for mechanism in (*scene.facts.auth, "x-conform"):
        peer.send({"type": "auth", "mechanism": mechanism, "token": "x-secret", "data": "n,,"})
        peer.expect(_REFUSED)
    scene.sync(peer)


@check("R6.11")
def auth_that_is_none(scene: Scene) -> None:
    """An auth of an unknown mechanism, or without its fields, gets bad_message, and is no failure."""
    _asked(scene)
    peer = scene.greet()
    for message in (
        {"type": "auth"},
        {"type": "auth", "mechanism": "x-conform"},
        *({"type": "auth", "mechanism": name} for name in scene.facts.auth),
        {"type": "auth", "mechanism": 7},
        {"type": "auth", "mechanism": None},
    ):
        peer.send(message)
        peer.expect(_REFUSED)
    scene.sync(peer)


@check("R6.14")
def secrets_do_not_come_back(scene: Scene) -> None:
    """A token or a password is in nothing that the server sends, whatever becomes of it."""
    _asked(scene)
    word = scene.nonce()
    peer, other = scene.greet(), scene.greet("other")
    peer.send(
        {"type": "auth", "mechanism": "x-conform", "token": word, "password": word},
        {"type": "auth", "mechanism": word, "token": word},
        {"type": "auth", "token": [word]},
        {"type": "auth", "mechanism": "token", "token": {"x": word}, "id": [word]},
    )
    for _ in range(4):
        payload = peer.payload()
        if word.encode() in payload:
            raise Failed(f"expected nowhere {word}, got {payload.decode(errors='replace')}")
    for secret in scene.secrets():
        login = scene.begin_login([name for name in scene.facts.auth if name in _ONE_STEP])
        scene.patience.extend(AUTH_DELAY)
        other.send({"type": "auth", **login.first})
        if secret.encode() in other.payload(scene.patience.seconds + AUTH_DELAY):
            raise Failed("expected the secret nowhere, and it is in the answer to auth")
        break


@check("R6.1")
def auth_timeout(scene: Scene) -> None:
    """Who does not log in within auth_timeout gets auth_timeout, fatal."""
    _asked(scene)
    limit = scene.facts.limits.get("auth_timeout", 5.0)
    scene.wait_long(limit + 1, f"auth_timeout is {limit:g} s")
    began = scene.patience.now()
    peer = scene.greet()
    peer.expect(Matcher(fields={"type": "error", "code": "auth_timeout", "fatal": True}), limit + _LATE)
    passed = scene.patience.now() - began
    if passed < 0.8 * limit:
        raise Failed(f"auth_timeout came after {passed:.1f} s, not after {limit:g}")
    peer.end(_LATE)


def _wrong_token(scene: Scene, peer: Peer) -> None:
    peer.send({"type": "auth", "mechanism": "token", "token": scene.nonce()})


def _wrong_password(scene: Scene, peer: Peer) -> None:
    peer.send({"type": "auth", "mechanism": "plain", "username": scene.nonce(), "password": scene.nonce()})


def _wrong_proof(scene: Scene, peer: Peer) -> None:
    nonce = scene.nonce()
    auth: Message = {"type": "auth", "mechanism": "scram-sha-256"}
    peer.send({**auth, "data": f"n,,n={scene.nonce()},r={nonce}"})
    answer = peer.receive(scene.patience.seconds + AUTH_DELAY)
    challenge = answer.get("data")
    if answer.get("type") != "auth_challenge" or not isinstance(challenge, str):
        raise Failed(
            f"expected an auth_challenge with data, also for a user that is none, got {shown(answer)}"
        )
    parts = dict(part.partition("=")[::2] for part in challenge.split(","))
    if not parts.get("r", "").startswith(nonce) or not {"s", "i"} <= parts.keys():
        raise Failed(f"data: expected r= with our nonce in front, s= and i=, got {shown(challenge)}")
    proof = "A" * 43 + "="
    peer.send({**auth, "data": f"c=biws,r={parts['r']},p={proof}"})


_WRONG: dict[str, Callable[[Scene, Peer], None]] = {
    "token": _wrong_token,
    "plain": _wrong_password,
    "scram-sha-256": _wrong_proof,
}


@check("R6.12", last=True)
def three_failures(scene: Scene) -> None:
    """A wrong secret gets authentication_failed; the third one auth_failed, fatal, too."""
    _asked(scene)
    scene.need(not scene.plays_tokens, "the vector auth-bad-token-three-times sees to it")
    mechanisms = [name for name in _WRONG if name in scene.facts.auth]
    scene.need(mechanisms, "the server has none of the mechanisms of section 6")
    peer = scene.greet()
    for _ in range(3):
        scene.patience.extend(AUTH_DELAY)
        _WRONG[mechanisms[0]](scene, peer)
        peer.expect(_FAILED, scene.patience.seconds + AUTH_DELAY)
    peer.expect(Matcher(fields={"type": "error", "code": "auth_failed", "fatal": True}))
    peer.end(_LATE)


@check("R6.13", last=True)
def failures_lock_nobody_out(scene: Scene) -> None:
    """Who failed twice may log in the third time, and failures delay an answer by 2 s at the most."""
    _asked(scene)
    scene.begin_login(scene.facts.auth)
    mechanisms = [name for name in _WRONG if name in scene.facts.auth]
    scene.need(mechanisms, "the server has none of the mechanisms of section 6")
    peer = scene.greet()
    for _ in range(2):
        scene.patience.extend(AUTH_DELAY)
        _WRONG[mechanisms[0]](scene, peer)
        peer.expect(_FAILED, scene.patience.seconds + AUTH_DELAY)
    scene.log_in(peer)
    scene.sync(peer)


@check("R6.2")
def broken_frames_before_the_login(scene: Scene) -> None:
    """Section 1 holds before the login: bad_frame, bad_json, and the connection goes on."""
    _asked(scene)
    peer = scene.greet()
    peer.write(frame(b"") + frame(b'{"type":') + frame(b"\xff"))
    for code in ("bad_frame", "bad_json", "bad_json"):
        peer.expect(Matcher(fields={"type": "error", "code": code, "fatal": False}))
    scene.sync(peer)
