"""Mutated bytes through the core, and through a whole server in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from tcpjson import Limits, Message
from tcpjson.classic import router
from tcpjson.core.codec import Codec
from tcpjson.core.compression import deflate, inflate, pack
from tcpjson.core.encoding import encode_message
from tcpjson.core.errors import CODES, BadJSON, ProtocolError
from tcpjson.core.framing import FrameReader, FrameTooLong
from tcpjson.core.messages import (
    Auth,
    Broadcast,
    BroadcastSent,
    Custom,
    Echo,
    EchoResponse,
    Error,
    GetStats,
    HeartbeatPong,
    Hello,
    HelloResponse,
    Ping,
    Pong,
    Refused,
    Relayed,
    Response,
    Text,
    TextEcho,
)
from tcpjson.core.ordering import AnswerOrder
from tcpjson.core.proxyheader import parse_proxy_header
from tcpjson.core.ratelimit import Meter
from tcpjson.core.session import TRANSITIONS, Event, State, advance
from tcpjson.test.test_vectors import Tokens
from tcpjson.testing import MemoryServer
from tcpjson.vectors import strict_json
from tests.fuzz.mutate import COMPRESSED, Mutator, frame
from tests.fuzz.reference import ANYTHING, FATAL, Conversation, Rules, Wrong, parse
from tests.fuzz.result import Result, resident, smallest

#: Frames of one batch.
BATCH = 64

_MAX_LENGTH = 70_000
_STAMP = "2024-01-01T12:00:00.000Z"
_ADDRESS = "127.0.0.1:5"
# Growth of this process that is none.
_MEMORY = 24 * 2**20

TOKENS = {"sesame": "alice"}
WRONG_LOGIN = b'{"type":"auth","mechanism":"token","token":"wrong"}'
HELLO = b'{"type":"hello","compression":["zlib"]}'

_plain_decode = msgspec.json.Decoder().decode


class Typed(Message, tag="typed"):
    """A message of an application, which sends it on."""

    n: int = 0
    to: str | None = None
    data: Raw = Raw(b"null")
    x: list[int] | dict[str, float] | None = None


class Open(Message, tag="move"):
    """Another, that nothing is left out of."""

    x: Any = None
    content: Raw = Raw(b"null")


_CLASSIC: list[type[Message]] = [kind for kind in router.handlers if kind.__struct_config__.tag]
_READY: list[type[Message]] = [*_CLASSIC, Hello, Auth]
CODECS = {
    "ready": Codec(_READY),
    "strict": Codec(_READY, strict=True),
    "guest": Codec([Hello, Auth, Ping]),
    "beating": Codec([*_READY, HeartbeatPong]),
    "typed": Codec([*_READY, Typed, Open], checked=[Typed, Open, Custom, Text]),
}


def _text_of(message: Message) -> str:
    """What a message is, its raw fields too."""
    fields = msgspec.structs.asdict(message)
    return repr({name: bytes(value) if isinstance(value, Raw) else value for name, value in fields.items()})


def _answers(message: Message) -> list[Message]:
    """What is sent because of a message, one and all."""
    if isinstance(message, Ping):
        return [Pong(message.timestamp, _STAMP, _ADDRESS)]
    if isinstance(message, Echo):
        return [EchoResponse(message.content)]
    if isinstance(message, Broadcast):
        return [Relayed(message.content, _ADDRESS, UNSET), BroadcastSent(1)]
    if isinstance(message, Custom):
        return [Response(message.original)]
    if isinstance(message, Text):
        return [TextEcho(message.original)]
    if isinstance(message, Refused):
        error = message.error
        return [
            Error(code=error.code, message=str(error).encode(errors="replace").decode(), fatal=error.fatal)
        ]
    if isinstance(message, Hello):
        return [HelloResponse(heartbeat=message.heartbeat)]
    if isinstance(message, (Typed, Open)):
        return [message]
    return []


_ANSWERED = (Ping, Echo, Broadcast, GetStats, Custom, Text, Refused, Hello, Auth, HeartbeatPong, Typed, Open)


def split(stream: bytes, max_length: int, compressed: bool) -> tuple[list[bytes], str]:
    """The payloads of a stream, and what ends it, in the simplest way."""
    payloads: list[bytes] = []
    position = 0
    while len(stream) - position >= 4:
        length = int.from_bytes(stream[position : position + 4], "big")
        squeezed = compressed and length >= COMPRESSED
        length -= COMPRESSED * squeezed
        if length > max_length:
            return payloads, "FrameTooLong"
        end = position + 4 + length
        if end > len(stream):
            break
        payload = stream[position + 4 : end]
        if squeezed:
            try:
                payload = inflate(payload, max_length)
            except ProtocolError as error:
                return payloads, error.code
        payloads.append(payload)
        position = end
    return payloads, f"{len(stream) - position} more"


def read(pieces: Sequence[bytes], max_length: int, compressed: bool, most: int) -> tuple[list[bytes], str]:
    """The same by a `FrameReader`, fed piece by piece, that is asked for so many payloads at once."""
    reader = FrameReader()
    if compressed:
        reader.inflate = inflate
    payloads: list[bytes] = []
    left = 0
    for piece in pieces:
        reader.feed(piece)
        left += len(piece)
        try:
            while reader.ready:
                taken = reader.take(most, max_length)
                if not taken and reader.ready:
                    raise Wrong("a FrameReader is ready, and gives nothing")
                payloads += taken
        except FrameTooLong:
            return payloads, "FrameTooLong"
        except ProtocolError as error:
            return payloads, error.code
    rest = bytes(reader._data[reader._position :])
    if reader.begun != bool(rest):
        raise Wrong(f"begun is {reader.begun}, and {len(rest)} bytes are held")
    if reader.announced and reader.announced <= len(rest) - 4:
        raise Wrong(f"{reader.announced} bytes are announced, {len(rest)} are there")
    if reader.count():
        raise Wrong(f"{reader.count()} frames are left")
    return payloads, f"{len(rest)} more"


class CoreFuzz:
    """One batch after another through the core. `seed` and the number of a batch decide what is in it."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.result = Result("core")

    def batch(self, number: int) -> None:
        """Make and check one batch."""
        random = Random(f"{self._seed}:{number}")
        mutator = Mutator(random, _MAX_LENGTH, ["typed", "move"])
        name = list(CODECS)[number % len(CODECS)]
        compressed = number % 4 == 1
        # A length that lies ends most batches.
        frames = mutator.frames(BATCH, 0.03 if number % 5 == 0 else 0.0, name == "guest", compressed)
        detail = number % 16 == 0

        def check(these: list[bytes]) -> int:
            return self._check(these, CODECS[name], compressed, detail, Random(number))

        try:
            self.result.frames += check(frames)
        except Exception as error:
            self._found(f"batch {number} ({name})", frames, error, check)
        try:
            self._small_parts(random, mutator)
        except Exception as error:
            self._found(f"batch {number} (parts)", [], error, None)

    def _found(
        self, what: str, frames: list[bytes], error: Exception, check: Callable[[list[bytes]], int] | None
    ) -> None:
        def fails(fewer: list[bytes]) -> bool:
            assert check is not None
            try:
                check(fewer)
            except Exception as other:
                return type(other) is type(error)
            return False

        counted = self.result.answers.copy(), self.result.errors.copy()
        least = smallest(frames, fails) if check is not None else []
        self.result.answers, self.result.errors = counted
        shown = b"".join(least).hex()
        self.result.findings.append(
            f"core, seed {self._seed}, {what}: {type(error).__name__}: {error}\n  bytes: {shown[:4000]}"
        )

    def _check(
        self, frames: list[bytes], codec: Codec, compressed: bool, detail: bool, random: Random
    ) -> int:
        """Check frames; returns how many payloads there were. Raises `Wrong`, or what the core let escape."""
        stream = b"".join(frames)
        payloads, end = whole = split(stream, _MAX_LENGTH, compressed)
        mutator = Mutator(random, _MAX_LENGTH)
        ways = [[stream], mutator.cuts(stream, 1 + len(frames) // 3) if stream else []]
        if detail and len(stream) < 20_000:
            ways.append([stream[place : place + 1] for place in range(len(stream))])
        for pieces in ways:
            most = 1 + mutator.below(200)
            if (came := read(pieces, _MAX_LENGTH, compressed, most)) != whole:
                raise Wrong(
                    f"cut in {len(pieces)}, taken by {most}: {len(came[0])} payloads and {came[1]},"
                    f" where {len(payloads)} and {end} were due"
                )
        messages = codec.decode(payloads)
        if len(messages) != len(payloads):
            raise Wrong(f"{len(messages)} messages of {len(payloads)} payloads")
        if detail:
            self._compare_alone(codec, payloads, messages)
            self._compare_untaken(payloads, mutator)
        sent = [payload for message in messages for payload in self._send(message)]
        for place, payload in enumerate(sent):
            if detail or place % 16 == 0:
                strict_json(payload)
            else:
                _plain_decode(payload)
        if compressed and sent:
            again, _ = read([pack(sent, 50)], 1 << 28, True, 1000)
            if again != sent:
                raise Wrong("what was packed is not what was sent")
            if detail:
                for payload in sent[:4]:
                    if inflate(deflate(payload), len(payload)) != payload:
                        raise Wrong("what was deflated is not what was sent")
        return len(payloads)

    def _compare_alone(self, codec: Codec, payloads: list[bytes], messages: list[Message]) -> None:
        """A payload is the same message, whatever came with it."""
        for payload, message in zip(payloads, messages, strict=True):
            [alone] = codec.decode([payload])
            if type(alone) is not type(message) or _text_of(alone) != _text_of(message):
                raise Wrong(f"{_text_of(alone)} alone, {_text_of(message)} among others: {payload[:300]!r}")

    def _compare_untaken(self, payloads: list[bytes], mutator: Mutator) -> None:
        """What is put back comes again."""
        reader = FrameReader()
        reader.feed(b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads) + b"\0\0")
        if reader.count() != len(payloads):
            raise Wrong(f"{reader.count()} frames are counted, {len(payloads)} are there")
        came: list[bytes] = []
        while taken := reader.take(1 + mutator.below(20), 1 << 28):
            kept = mutator.below(len(taken) + 1)
            came += taken[:kept]
            if kept < len(taken):
                reader.untake(taken[kept:])
        if came != payloads or not reader.begun:
            raise Wrong("what was put back came otherwise")

    def _send(self, message: Message) -> list[bytes]:
        """The payloads that a message leads to."""
        if type(message) not in _ANSWERED:
            raise Wrong(f"a {type(message).__name__} was decoded")
        if type(message) is Refused:
            error = message.error
            if type(error).code not in FATAL or CODES.get(error.code) is not type(error) or error.fatal:
                raise Wrong(f"refused by {error!r}")
            if error.__traceback__ is not None or error.__context__ is not None:
                raise Wrong("the refusal keeps where it was raised")
        sent = []
        for answer in _answers(message):
            try:
                sent.append(encode_message(answer, _STAMP, message.id))
                self.result.answers[type(answer).__name__] += 1
            except BadJSON:
                if type(answer) in (Typed, Open):
                    raise Wrong("a checked message holds what must not be sent") from None
                self.result.errors["bad_json"] += 1
            if type(message) is Refused:
                self.result.errors[message.error.code] += 1
        return sent

    # The small parts, each a little in every batch.

    def _small_parts(self, random: Random, mutator: Mutator) -> None:
        self._proxy_header(mutator)
        self._meter(random)
        self._order(random)
        self._session(random)

    def _proxy_header(self, mutator: Mutator) -> None:
        header = mutator.any_proxy_header()
        data = header + b"\0\0\0\1x"
        try:
            whole = parse_proxy_header(data)
        except ValueError:
            whole = None
            self.result.errors["(no PROXY header)"] += 1
        for end in range(len(data)):
            try:
                part = parse_proxy_header(data[:end])
            except ValueError:
                if whole is not None:
                    raise Wrong(f"{end} bytes of a good header are refused: {header.hex()}") from None
                break
            if part is not None and part != whole:
                raise Wrong(f"{end} bytes are {part}, and all are {whole}: {header.hex()}")
            if part is None and whole is not None and end >= whole.length:
                raise Wrong(f"{end} bytes are no header of {whole.length}: {header.hex()}")
        if whole is not None:
            self.result.answers["ProxyHeader"] += 1
            if not 0 < whole.length <= len(data):
                raise Wrong(f"a header of {whole.length} bytes: {header.hex()}")

    def _meter(self, random: Random) -> None:
        rate, burst = random.uniform(0.1, 50), random.choice([None, random.uniform(1, 50)])
        byte_rate = random.choice([None, random.uniform(1, 1000)])
        now = start = random.uniform(0, 1e6)
        limits = Limits(messages_per_second=rate, message_burst=burst, bytes_per_second=byte_rate)
        meter = Meter(limits, now)
        granted, size = 0, 0
        for _ in range(6):
            payloads = [bytes(int(random.random() * 50)) for _ in range(int(random.random() * 30))]
            count = meter.grant(payloads, now)
            if not 0 <= count <= len(payloads):
                raise Wrong(f"{count} of {len(payloads)} were granted")
            kept = int(random.random() * (count + 1))
            meter.refund(payloads[kept:count])
            if meter.grant(payloads[kept:count], now) != count - kept:
                raise Wrong(f"what was refunded is not granted again of {limits}")
            meter.refund(payloads[kept:count])
            granted += kept
            size += sum(4 + len(payload) for payload in payloads[:kept])
            if granted > (burst or max(1, rate)) + rate * (now - start) + 1e-3:
                raise Wrong(f"{granted} messages in {now - start} seconds of {limits}")
            if byte_rate is not None and size > 54 + max(1, byte_rate) + byte_rate * (now - start) + 1e-3:
                raise Wrong(f"{size} bytes in {now - start} seconds of {limits}")
            meter.grant([], now)
            wait = meter.wait()
            if not 0 <= wait < 1e4:
                raise Wrong(f"a wait of {wait} seconds of {limits}")
            now += random.choice([wait, wait, random.uniform(0, 2)])
            if wait and now == start:
                raise Wrong("no time passed")
        meter.grant([], now)
        now += meter.wait()
        if meter.grant([b"x"], now) != 1:
            raise Wrong(f"after the wait nothing is granted of {limits}")

    def _order(self, random: Random) -> None:
        order = AnswerOrder()
        slots = []
        due: list[bytes] = []
        came: list[bytes] = []
        for number in range(int(random.random() * 20)):
            answer = b"%d" % number
            if random.random() < 0.5:
                slots.append((order.reserve(ordered=True), answer))
                due.append(answer)
            elif order.queue(answer):
                due.append(answer)
            else:
                came.append(answer)
                due.append(answer)
            while slots and random.random() < 0.4:
                came += order.settle(*slots.pop(int(random.random() * len(slots))))
        while slots:
            came += order.settle(*slots.pop(int(random.random() * len(slots))))
        if came != due or order.held or order.unsettled:
            raise Wrong(f"{came} came, {due} was due, {order.held} are held")

    def _session(self, random: Random) -> None:
        state = State.OPEN
        for _ in range(8):
            event = random.choice(list(Event))
            try:
                state, before = advance(state, event), state
            except RuntimeError as error:
                if (state, event) in TRANSITIONS or state.value not in str(error):
                    raise Wrong(f"{state}, {event}: {error}") from None
                continue
            if before is State.CLOSED or (before is State.DRAINING and state is not State.CLOSED):
                raise Wrong(f"{state} follows on {before}")


# A server in memory.

_RULES = [
    Rules(_MAX_LENGTH, compresses=True, strict=strict, tokens=tokens)
    for tokens in ({}, TOKENS)
    for strict in (False, True)
]

_TIME = 2.5
_CONVERSATIONS = 300


class MemoryFuzz:
    """Conversations with a server in memory, whose time stands still; at the end nothing is left of them."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.result = Result("server in memory")

    def batch(self, number: int) -> None:
        """Talk to a new server, a number of times, and end it."""
        random = Random(f"{self._seed}:{number}")
        rules = _RULES[number % len(_RULES)]
        server = _start(rules)
        listener = _Listener(server, rules)
        mutator = Mutator(random, rules.max_length)
        for talk in range(_CONVERSATIONS):
            frames = _talk(mutator, rules, 20)
            pieces = 1 + mutator.below(8)
            ending = mutator.below(4)
            try:
                self._converse(server, rules, listener, mutator.cuts(b"".join(frames), pieces), ending)
            except Exception as error:
                self._found(f"server {number}, client {talk}", rules, frames, error)
                return
        try:
            self._end(server, listener, drain=number % 3 == 0)
        except Exception as error:
            self._found(f"server {number}, its end", rules, [], error)

    def _converse(
        self, server: MemoryServer, rules: Rules, listener: _Listener, pieces: list[bytes], ending: int
    ) -> None:
        conversation = converse(server, rules, pieces, ending)
        self.result.connections += 1
        self.result.frames += conversation.frames
        self.result.answers += conversation.answers
        self.result.errors += conversation.errors
        listener.check(conversation)

    def _end(self, server: MemoryServer, listener: _Listener, drain: bool) -> None:
        factory = server.factory
        self.result.closes += factory.stats.disconnects
        if drain:
            drained: list[None] = []
            factory.drain().addCallback(drained.append)
            server.advance(20)
            if not listener.peer.closed:
                raise Wrong("the drain closed nobody")
        listener.peer.close()
        if drain and not drained:
            raise Wrong("the drain does not end")
        server.stop()
        if factory.connections or factory.clients or factory.admission.admitted:
            raise Wrong(f"{factory.connections} are left")
        if calls := server.clock.getDelayedCalls():
            raise Wrong(f"{calls} are left")
        if factory.stats.errors["internal"]:
            raise Wrong("internal errors")

    def _found(self, what: str, rules: Rules, frames: list[bytes], error: Exception) -> None:
        def fails(fewer: list[bytes]) -> bool:
            server = _start(rules)
            listener = _Listener(server, rules)
            try:
                listener.check(converse(server, rules, [b"".join(fewer)], 0))
            except Exception as other:
                return type(other) is type(error)
            return False

        least = smallest(frames, fails) if fails(frames) else frames
        self.result.findings.append(
            f"server in memory, seed {self._seed}, {what}, {rules}: {type(error).__name__}: {error}\n"
            f"  bytes: {b''.join(least).hex()[:4000]}"
        )


def _talk(mutator: Mutator, rules: Rules, count: int) -> list[bytes]:
    """The frames of one connection."""
    frames: list[bytes] = []
    chance = mutator.below(100)
    if rules.asks:
        if chance % 7 == 0:
            frames += [frame(WRONG_LOGIN)] * (1 + mutator.below(3))
        frames += mutator.frames(mutator.below(6), 0.01 if chance < 10 else 0.0, guest=True)
        if chance < 90:
            frames.append(frame(b'{"type":"auth","mechanism":"token","token":"sesame"}'))
    compressed = chance % 3 == 0
    if compressed:
        frames.insert(0, frame(HELLO))
    dirt = 0.05 if chance % 4 == 0 else 0.0
    return frames + mutator.frames(1 + mutator.below(2 * count), dirt, compressed=compressed)


def _start(rules: Rules) -> MemoryServer:
    checkers = [Tokens({name: token for token, name in rules.tokens.items()})] if rules.tokens else []
    limits = Limits(max_length=rules.max_length, auth_timeout=1e6, heartbeat=1e6)
    return MemoryServer(limits=limits, strict=rules.strict, checkers=checkers)


class _Listener:
    """Another client, to which all broadcasts come."""

    def __init__(self, server: MemoryServer, rules: Rules) -> None:
        self.peer = server.connect()
        for token in rules.tokens:
            self.peer.send({"type": "auth", "mechanism": "token", "token": token})
        self.peer.receive()

    def check(self, conversation: Conversation) -> None:
        """What came since the last time is what was broadcast in a conversation."""
        came = [relayed_of(payload) for payload in self.peer.receive_payloads()]
        check_relays([content for _, content in came], conversation)


def relayed_of(payload: bytes) -> tuple[str, Any]:
    """Who sent the broadcast that a payload is, and what is in it. Raises `Wrong` when it is none."""
    try:
        strict_json(payload)
        fields = dict(parse(payload.decode()))
        if fields["type"] == "broadcast":
            return fields["from_client"], fields["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise Wrong(f"what the other got is no broadcast, {error!r}: {payload[:300]!r}") from None
    raise Wrong(f"what the other got is no broadcast: {payload[:300]!r}")


def check_relays(came: Sequence[Any], conversation: Conversation) -> None:
    """See that the broadcasts that came to another are those of a conversation."""
    due = conversation.relayed
    if conversation.lost:
        return
    if len(came) != len(due):
        raise Wrong(f"{len(due)} broadcasts were answered, {len(came)} came to the other")
    for sent, got in zip(due, came, strict=False):
        if sent is not ANYTHING and sent != got:
            raise Wrong(f"{str(sent)[:300]} was broadcast, {str(got)[:300]} came to the other")


def converse(server: MemoryServer, rules: Rules, pieces: Sequence[bytes], ending: int) -> Conversation:
    """
    Be a client that sends some pieces and checks all that comes.

    Args:
        server: where.
        rules: its own.
        pieces: what is sent, piece by piece.
        ending: how it goes: 0, 1: it closes; 2: it is lost; 3: it closes its sending side first.
    """
    conversation = Conversation(rules, b"".join(pieces))
    peer = server.connect()
    [welcome] = peer.receive()
    if welcome["type"] != "welcome":
        raise Wrong(f"no welcome: {welcome}")

    def take() -> None:
        for payload in peer.receive_payloads():
            conversation.reply(payload)

    for piece in pieces:
        peer.send_bytes(piece)
        take()
    for _ in range(4):
        if peer.closed or (peer.connection._checking is None and conversation.due() is None):
            break
        # A failed login is answered late.
        server.advance(_TIME)
        take()
    if ending == 3 and not peer.closed:
        peer.connection.readConnectionLost()
        server.settle()
        take()
        if not peer.closed:
            raise Wrong("the end of what is sent does not end the connection")
    due = conversation.due()
    if due is not None and not conversation.lost:
        raise Wrong(f"no answer to {conversation.frame[:300]!r}: {sorted(due.kinds)} was due")
    if conversation.ended and not peer.closed:
        raise Wrong("a fatal error, and no end")
    if peer.closed and not conversation.ended and ending != 3:
        raise Wrong("an end without a reason")
    (peer.reset if ending == 2 else peer.close)()
    return conversation


# The work of one process.


def run_core(seed: str, frames: int, seconds: float) -> list[Result]:
    """
    Frames through the core, a twentieth of them through servers in memory.

    Args:
        seed: decides all that is done.
        frames: how many.
        seconds: how long at the longest.
    """
    core, memory = CoreFuzz(seed), MemoryFuzz(seed)
    whole = core.result, memory.result
    counts = dict.fromkeys(("core", "memory"), 0)
    spent = [0.0, 0.0]
    warm = False
    begun = time.monotonic()
    until = begun + seconds
    while (now := time.monotonic()) < until and sum(result.frames for result in whole) < frames:
        if any(len(result.findings) >= 5 for result in whole):
            break
        used_before = time.process_time()
        if memory.result.frames * 20 < core.result.frames:
            memory.batch(counts["memory"])
            counts["memory"] += 1
            spent[1] += time.monotonic() - now
            memory.result.cpu += time.process_time() - used_before
        else:
            for _ in range(50):
                core.batch(counts["core"])
                counts["core"] += 1
            spent[0] += time.monotonic() - now
            core.result.cpu += time.process_time() - used_before
        if not warm and (core.result.frames > frames // 5 or now - begun > (until - begun) / 5):
            warm = True
            for result in whole:
                result.before["MiB"] = resident()
    for result, used in zip(whole, spent, strict=True):
        result.seconds = used
        result.before.setdefault("MiB", resident())
        result.after["MiB"] = resident()
        result.cut_short = now >= until
    if (grown := core.result.after["MiB"] - core.result.before["MiB"]) > _MEMORY:
        core.result.findings.append(f"core, seed {seed}: memory grew by {grown} bytes")
    return list(whole)
