"""Faults of those who log in, or do not."""

from __future__ import annotations

import time

from tests.faults.arena import BY_PASSWORD, PASSWORD, PING, TOKEN, USER, Arena, Stage
from tests.faults.catalogue import fault
from tests.harness import encode, frame
from tests.identities import plain_message, token_message

#: Short times for all that has one, and small queues.
HASTY = (
    *("--frame-timeout", "0.5", "--auth-timeout", "1", "--write-timeout", "1"),
    *("--max-queue", "1048576", "--send-buffer", "65536"),
)

# As `HASTY`, but for the time of a frame.
ONE_SECOND = ("--auth-timeout", "1")
#: Passwords, whose check takes its time in another thread.
PASSWORDS = ("--auth", BY_PASSWORD)

_IS_IN = {"after": "it has logged in"}


@fault("requests before the login", section="6", expected="unauthenticated, goes on", never=_IS_IN)
def requests_before_the_login(stage: Stage) -> None:
    """All but hello, auth and ping: a guest uses what is for users."""
    guest = stage.peer()
    kinds = ("echo", "broadcast", "get_stats", "move", "pong")
    guest.send(*({"type": kind} for kind in kinds), {}, [1], "text")
    guest.write(frame(b"text"))
    answers = [guest.receive() for _ in range(len(kinds) + 4)]
    assert {answer["type"] for answer in answers} == {"error"}, answers
    stage.goes_on(guest, answers)


@fault(
    "a failed auth and a command in one segment",
    section="6",
    expected="unauthenticated, goes on",
    never=_IS_IN,
    options=PASSWORDS,
)
def failed_login_and_a_command(stage: Stage) -> None:
    """The command must not run, however early it came."""
    listener = stage.peer(login=True)
    guest = stage.peer()
    command = {"type": "broadcast", "content": "not to be relayed"}
    guest.send(plain_message(USER, "wrong"), command, {"type": "get_stats"}, {"type": "echo"})
    result = guest.receive()
    assert result["status"] == "authentication_failed", result
    answers = [guest.receive() for _ in range(3)]
    assert {answer["type"] for answer in answers} == {"error"}, answers
    listener.send(PING)
    while not (payload := listener.payload()).startswith(b'{"type":"pong"'):
        assert b"not to be relayed" not in payload
    stage.goes_on(guest, answers)


@fault("auth with 100 requests behind it", section="6", expected="goes on", never=_IS_IN, options=PASSWORDS)
def requests_behind_a_login(stage: Stage) -> None:
    """They wait for the answer to the first, and are served then, in order and without a loss."""
    guest = stage.peer()
    guest.send(plain_message(USER, PASSWORD), *({"type": "echo", "content": n} for n in range(100)))
    assert guest.receive()["status"] == "authenticated"
    assert [guest.receive().get("content") for _ in range(100)] == [*range(100)]
    stage.goes_on(guest)


@fault("three failed logins", section="6", expected="auth_failed", seconds=3, never=_IS_IN)
def three_failures(stage: Stage) -> None:
    """Guesses: the third ends the connection, and each waits longer for its answer."""
    guest = stage.peer()
    for _ in range(2):
        assert guest.ask(token_message("wrong"))["status"] == "authentication_failed"
    stage.complete()
    guest.send(token_message("wrong"))
    assert [answer["status"] for answer in stage.ends(guest)] == ["authentication_failed"]


@fault("100 guesses in one segment", section="6", expected="auth_failed", seconds=4, never=_IS_IN, slow=True)
def guesses_in_one_segment(stage: Stage) -> None:
    """All at once: no more than three are looked at, and the right one behind them is not."""
    guest = stage.peer()
    stage.complete()
    guest.send(*(token_message("wrong") for _ in range(100)), token_message(TOKEN))
    answers = stage.ends(guest)
    assert [answer["status"] for answer in answers] == ["authentication_failed"] * 3, answers


@fault("broken logins", section="6", expected="bad_message, goes on", never=_IS_IN)
def broken_logins(stage: Stage) -> None:
    """Mechanisms and fields that are wrong: each is told, none is a failure, and no secret comes back."""
    guest = stage.peer()
    secret = "a-secret-of-mine"
    bad: list[dict[str, object]] = [
        {"mechanism": "token"},
        {"mechanism": "no-such", "token": secret},
        {"mechanism": "plain", "username": "x", "password": secret},
        {"mechanism": ["token"], "token": secret},
        {"mechanism": "token", "token": [secret]},
    ]
    answers = [guest.ask({"type": "auth", **each}) for each in bad]
    assert secret not in str(answers), answers
    assert not any(secret in line for line in stage.server.log)
    assert {answer["type"] for answer in answers} == {"error"}, answers
    stage.goes_on(guest, answers)


@fault(
    "auth where none is asked for",
    section="6",
    expected="bad_message, goes on",
    never={"before": "there is no login"},
    make=lambda *options: Arena(*options, login=False),
    slow=True,
)
def needless_login(stage: Stage) -> None:
    """A client that logs in wherever it is: what it says is not sent back or logged."""
    guest = stage.peer()
    assert guest.welcome["auth"] == []
    secret = "a-secret-of-mine"
    answer = guest.ask({"type": "auth", "mechanism": "plain", "username": secret, "password": secret})
    assert secret not in str(answer), answer
    assert not any(secret in line for line in stage.server.log)
    stage.goes_on(guest, [answer])


@fault(
    "a second login",
    section="6",
    expected="bad_message, goes on",
    never={"before": "there it would be the first"},
)
def second_login(stage: Stage) -> None:
    """Who somebody is must not change."""
    guest = stage.peer()
    stage.goes_on(guest, [guest.ask(token_message(each)) for each in (TOKEN, "wrong")])


@fault("no login", section="6", expected="auth_timeout", seconds=1.6, options=HASTY, never=_IS_IN)
def silent_guest(stage: Stage) -> None:
    """It holds a place, and says nothing."""
    stage.complete()
    guest = stage.peer()
    stage.ends(guest)
    stage.lasted(0.95)


@fault(
    "no login, but a ping every tenth of a second",
    section="6",
    expected="auth_timeout",
    seconds=1.6,
    options=HASTY,
    never=_IS_IN,
    slow=True,
)
def busy_guest(stage: Stage) -> None:
    """Signs of life must not put it off."""
    stage.complete()
    guest = stage.peer()
    for _ in range(8):
        guest.ask(PING)
        time.sleep(0.1)
    stage.ends(guest)
    stage.lasted(0.95)


@fault(
    "a login that is sent byte by byte",
    section="6",
    expected="auth_timeout",
    seconds=1.6,
    options=ONE_SECOND,
    never=_IS_IN,
    slow=True,
)
def dribbled_login(stage: Stage) -> None:
    """Nor must a frame that is not complete yet."""
    stage.complete()
    guest = stage.peer()
    stage.dribbles(guest, encode(token_message(TOKEN)), 0.1)
    stage.ends(guest)
    stage.lasted(0.95)
