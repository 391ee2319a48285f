"""The guards that no unit test misses, and why."""

from __future__ import annotations

from dataclasses import dataclass

#: Without it all is the same but the time or the memory that it takes.
COST = "cost"
#: Nothing that can come tells the two apart.
SAME = "same"
#: Only a system with real sockets and processes shows it: `test` does.
END_TO_END = "end to end"

KINDS = (COST, SAME, END_TO_END)


@dataclass(frozen=True)
class Known:
    """
    Guards whose loss no unit test notices.

    Args:
        kind: one of `KINDS`.
        why: what makes it so.
        guards: their names (`finder.Guard.name`).
        test: the id of a test in `tests` that is red without any one of them.
    """

    kind: str
    why: str
    guards: tuple[str, ...]
    test: str = ""


KNOWN: tuple[Known, ...] = (
    Known(
        SAME,
        "a later step has no effect on what was answered or cancelled; this lets go of it sooner",
        (
            "auth.py | _Attempt._cancel | self._asks.clear() | not called",
            "auth.py | _Attempt._fire | self._answer = None | not noted",
            "client/protocol.py | ClientProtocol._stepped | self._step = None | not noted",
            "client/protocol.py | ClientProtocol._step_failed | self._step = None | not noted",
        ),
    ),
    Known(
        SAME,
        "scramp takes whatever the look-up raises for an unknown user",
        ("auth.py | _Exchange.__init__.<locals>.look_up | if credentials.verifier is None | never",),
    ),
    Known(
        COST,
        "a meter without rates grants everything",
        (
            "connection.py | Connection.connectionMade"
            " | if limits.messages_per_second is not None or limits.bytes_per_second is not None"
            " | always",
        ),
    ),
    Known(
        COST,
        "a deadline that is set, and cleared in the same call",
        (
            "connection.py | Connection.connectionMade"
            " | if encrypted or proxied or factory.authenticator is not None | always",
        ),
    ),
    Known(
        SAME,
        "it is None already",
        ("connection.py | Connection._identified | if identity is not None | always",),
    ),
    Known(
        SAME,
        "one is never there without the other: it is said for the type checker",
        (
            "client/awaitable.py | Client.__init__ | if where is None | never",
            "client/link.py | Link.ready | kind or '' | without ''",
            "client/pool.py | Pool._connect | lost[0] or self._disconnected() | without self._disconnected()",
            "connection.py | Connection._expect_pongs | not self._answers_pings or interval is None"
            " | without interval is None",
            "connection.py | Connection.authenticate | deadlines.clear(self) or now | without now",
            "connection.py | Connection.look_for_life"
            " | self._idle is not None and timeout is not None | without self._idle is not None",
            "connection.py | Connection.look_for_life"
            " | self._idle is not None and timeout is not None | without timeout is not None",
            "connection.py | Connection._look_again | self._idle is not None and timeout is not None"
            " | without self._idle is not None",
            "connection.py | Connection._look_again | self._idle is not None and timeout is not None"
            " | without timeout is not None",
            "core/framing.py | FrameReader._take_mixed | compressed and inflate is not None"
            " | without inflate is not None",
            "exchange.py | Exchange._settle"
            " | self._running is None or self._order is None or slot not in self._running"
            " | without self._order is None",
            "exchange.py | Exchange._make_room | self._running or () | without ()",
            "outbox.py | Outbox.flush"
            " | self._handed and descriptor is not None and descriptor.connected"
            " | without descriptor is not None",
            "service.py | blame | client_ca is not None and reason.startswith(f'{client_ca}: ')"
            " | without client_ca is not None",
            "tap.py | Options.__init__ | text or '' | without ''",
        ),
    ),
    Known(
        SAME,
        "two readings of a clock are hardly ever the same; then it happens with the next one",
        (
            "connection.py | Connection.look_for_life"
            " | self._idle.seconds(now, self._life()) >= timeout | >= becomes >",
            "protocol.py | TCPJSONProtocol._work | now > until | > becomes >=",
            "turns.py | Turns._run | self._clock.seconds() >= until | >= becomes >",
        ),
    ),
    Known(
        COST,
        "looks at a connection that ends change nothing; they stop with it, 2 s later at the latest",
        (
            "connection.py | Connection.look_for_life | if not self._holds & Hold.ENDING | always",
            "exchange.py | Exchange.look_at_progress"
            " | self._holds & _ENDING or not self._outbox.waiting | without self._holds & _ENDING",
        ),
    ),
    Known(
        COST,
        "a short way for what comes most; the long one leads to the same",
        (
            "client/link.py | Link.waiting | if self._queue | always",
            "client/link.py | Link.ask"
            " | if type(timeout) is not float or not 0 <= timeout <= _LONGEST | always",
            "client/link.py | Link.ask | 0 <= timeout <= _LONGEST | <= becomes <",
            "client/link.py | Link.ask | 0 <= timeout <= _LONGEST | <= becomes < #2",
            "core/codec.py | Codec.decode | if not all(map(_isascii, payloads)) | always",
            "core/codec.py | Codec.decode | if (checked := self._checked) | always",
            "core/compression.py | pack | if max(map(len, payloads), default=0) <= over | never",
            "core/compression.py | pack | max(map(len, payloads), default=0) <= over | <= becomes <",
            "core/encoding.py | _check_own | if payload.find(b'null') >= 0 | always",
            "core/framing.py | join_frames | if len(payloads) == 1 | never",
            "core/framing.py | FrameReader.feed | if not self._data | never",
            "core/framing.py | FrameReader.take | if size - position < self._needed | never",
            "core/requests.py | encode_message | if type(message) is dict | never",
            "core/requests.py | encode_message | if payload.find(b'null') >= 0 | always",
            "core/requests.py | encode_request | if type(message) is dict | never",
            "core/values.py | check_value | if len(text) > 2 * depth and shape.count(b'[') > depth | always",
            "core/values.py | check_value | len(text) > 2 * depth and shape.count(b'[') > depth"
            " | without len(text) > 2 * depth",
            "core/values.py | check_value | len(text) > 2 * depth and shape.count(b'[') > depth"
            " | without shape.count(b'[') > depth",
            "core/values.py | check_value | len(text) > 2 * depth | > becomes >=",
            "core/values.py | check_value | shape.count(b'[') > depth | > becomes >=",
            "core/values.py | check_value | if long or shape.find(_EXPONENT) >= 0 | always",
            "core/values.py | check_value | if long | always",
            "core/values.py | _check_integers | if len(digits) <= 20 | always",
            "dialects.py | Dialects.__init__ | if handler is not classic.router.handlers.get(kind) | always",
            "exchange.py | Exchange._handle | if type(message) is not kind | always",
            "exchange.py | Exchange._handle | if type(answer) is not answer_kind | never",
            "exchange.py | Exchange._handle | if type(answer) is not answer_kind | always",
            "exchange.py | Exchange._handle | if offset is not None | never",
            "exchange.py | Exchange._handle | request_id is UNSET or request_id is None"
            " | without request_id is UNSET",
            "exchange.py | Exchange.timestamp | if factory.turn is None | always",
            "exchange.py | Exchange.send | if turn is None | always",
            "outbox.py | Outbox._send_waiting | if self._offset | always",
            "outbox.py | Outbox._hand_over | if not room | never",
            "testing.py | _agrees_on_compression | if b'\"hello_response\"' not in payload | never",
            "timestamps.py | Timestamps.now | if millisecond != self._millisecond | always",
            "timestamps.py | Timestamps.now | if second != self._second | always",
            "timestamps.py | Timestamps.now | self._second = second | not noted",
            "timestamps.py | Timestamps.now | self._millisecond = millisecond | not noted",
        ),
    ),
    Known(
        COST,
        "what is done for nothing does nothing",
        (
            "client/protocol.py | ClientProtocol.framesReceived | if self._unsent | always",
            "deadlines.py | Deadlines.set | when < self._due | < becomes <=",
            "deadlines.py | Deadlines._check | if when <= now | always",
            "exchange.py | Exchange.framesReceived | if turn.burst or turn.dirty | always",
            "exchange.py | Exchange.framesReceived | if (answers := turn.answers) | always",
            "exchange.py | Exchange.framesReceived"
            " | if self._outbox.answers or self._order is not None | always",
            "exchange.py | Exchange.framesReceived | if limited | always #2",
            "exchange.py | Exchange._handle | if handled < len(messages) | always",
            "exchange.py | Exchange._handle | handled < len(messages) | < becomes <=",
            "exchange.py | Exchange.turnEnded | if self._frame_since is not None | always",
            "exchange.py | Exchange._send_now | if payloads | always",
            "exchange.py | Exchange._make_room"
            " | holds & Hold.ANSWERS and self._answers_waiting() <= _LOW_WATER"
            " | without holds & Hold.ANSWERS",
            "exchange.py | Exchange._make_room | if holds & Hold.HANDLERS | always",
            "exchange.py | Exchange.has_room"
            " | if (queued := (outbox.waiting - outbox.answers)) and queued + size > limit | always",
            "exchange.py | Exchange.has_room"
            " | (queued := (outbox.waiting - outbox.answers)) and queued + size > limit"
            " | without queued + size > limit",
            "outbox.py | Outbox.write | self._open and data | without data",
            "outbox.py | Outbox.flush"
            " | self._handed and descriptor is not None and descriptor.connected"
            " | without self._handed",
            "outbox.py | Outbox.resumeProducing"
            " | not self._wait and self._registered and (self._descriptor is not None)"
            " | without self._registered",
            "outbox.py | Outbox.stopProducing | self._registered = False | not noted",
            "outbox.py | Outbox.close | if not self._open | never",
            "outbox.py | Outbox.close | if self._registered | always",
            "outbox.py | Outbox.close | self._registered = False | not noted",
            "passwd.py | _replace | if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) | always",
            "protocol.py | TCPJSONProtocol._work | if payloads | always",
            "protocol.py | TCPJSONProtocol._work | if self._holds or reader.begun or self._begun | always",
            "protocol.py | TCPJSONProtocol.hold | held or self._working | without held",
            "protocol.py | TCPJSONProtocol.release_now | if self._holds & reason | always",
            "protocol.py | TCPJSONProtocol.end | held and (not self._working) | without held",
            "protocol.py | TCPJSONProtocol.end | if last | always",
            "protocol.py | TCPJSONProtocol.connectionLost"
            " | self._reader.ready and (not self._holds & ~_IN_TIME) | without self._reader.ready",
            "server.py | TCPJSONServerFactory.commit | if turn.dirty | always",
            "server.py | TCPJSONServerFactory._deliver"
            " | outbox.waiting and (not client.has_room(len(chunk))) | without outbox.waiting",
            "server.py | TCPJSONServerFactory._deliver | if chunk is packed | always",
            "testing.py | Peer.receive_payloads | if data | always",
        ),
    ),
    Known(
        COST,
        "the next look finds out the same",
        (
            "core/framing.py | FrameReader.take | self.ready = False | not noted #2",
            "core/framing.py | FrameReader._take_mixed | self.ready = False | not noted",
        ),
    ),
    Known(
        SAME,
        "an object begins with a brace: no null is at 0",
        (
            "core/encoding.py | _check_own | payload.find(b'null') >= 0 | >= becomes >",
            "core/requests.py | encode_message | payload.find(b'null') >= 0 | >= becomes >",
        ),
    ),
    Known(
        SAME,
        "the line begins with PROXY: its end is not at 0",
        ("core/proxyheader.py | _parse_1 | end < 0 | < becomes <=",),
    ),
    Known(
        COST,
        "answers are sent, and counted, a little sooner than at the end of their turn",
        (
            "exchange.py | Exchange.framesReceived | turn.gathered = 0 | not noted",
            "exchange.py | Exchange._handle | if written > room | always",
            "exchange.py | Exchange._handle | written > room | > becomes >=",
            "exchange.py | Exchange._gather | if turn.gathered > HIGH_WATER | always",
            "exchange.py | Exchange._gather | turn.gathered > HIGH_WATER | > becomes >=",
            "exchange.py | Exchange._send_gathered | turn.gathered = 0 | not noted",
        ),
    ),
    Known(
        SAME,
        "the count within the turn has found it already",
        (
            "exchange.py | Exchange.framesReceived | self._outbox.answers or self._order is not None"
            " | without self._outbox.answers",
        ),
    ),
    Known(
        COST,
        "a place is kept for an answer that is none",
        (
            "exchange.py | Exchange._handle"
            " | order is not None and message.id in _NO_ID and payload and order.queue(payload)"
            " | without payload",
        ),
    ),
    Known(
        COST,
        "a frame's deadline is cleared, and set again, once more",
        ("exchange.py | Exchange.hold | if not self._working | always",),
    ),
    Known(
        SAME,
        "it happens at one byte more, or less, than a bound that is a round number of our own",
        (
            "client/protocol.py | ClientProtocol._hear"
            " | self._outbox.waiting + self._unsent_size <= HIGH_WATER | <= becomes <",
            "exchange.py | Exchange._limit_answers | self._answers_waiting() > HIGH_WATER | > becomes >=",
            "exchange.py | Exchange._make_room | self._answers_waiting() <= _LOW_WATER | <= becomes <",
            "server.py | TCPJSONServerFactory.relay"
            " | turn.burst_size + len(payload) > self.limits.max_queue // 4 | > becomes >=",
            "tlstransport.py | BoundedTLS.dataReceived | self._barren > _BARREN | > becomes >=",
            "tlstransport.py | BoundedTLS.dataReceived | self._waiting() > _WAITING | > becomes >=",
        ),
    ),
    Known(
        SAME,
        "the one of the two that is left makes up for it",
        (
            "exchange.py | Exchange.has_room | queued + size > limit | > becomes >=",
            "exchange.py | Exchange.has_room | queued + size > limit | > becomes >= #2",
        ),
    ),
    Known(
        SAME,
        "nothing asks for it any more when the connection is lost",
        (
            "exchange.py | Exchange._lift_rate | self._meter = None | not noted",
            "exchange.py | Exchange._lift_rate | self._throttle_call = None | not noted",
        ),
    ),
    Known(
        COST,
        "a Deferred is awaited as anything else",
        ("exchange.py | Exchange._await | if isinstance(answer, Deferred) | never",),
    ),
    Known(
        SAME,
        "nothing is handled or sent for a connection that ends, whatever holds it or waits for it",
        (
            "exchange.py | Exchange._limit_answers"
            " | self._answers_waiting() > HIGH_WATER and (not self._holds & _ENDING)"
            " | without not self._holds & _ENDING",
            "exchange.py | Exchange.go_away | if self._holds & _ENDING | never",
            "protocol.py | TCPJSONProtocol._work"
            " | done < len(payloads) and (not self._holds & _ENDING)"
            " | without not self._holds & _ENDING",
            "protocol.py | TCPJSONProtocol.end | self._reader.clear() | not called",
            "protocol.py | TCPJSONProtocol.end | held and (not self._working) | without not self._working",
            "protocol.py | TCPJSONProtocol.readConnectionLost | if not self._holds & _ENDING | always",
        ),
    ),
    Known(
        SAME,
        "more was taken since it was noted: it is another value",
        ("exchange.py | Exchange.outboxWaits | self._progress = None | not noted",),
    ),
    Known(
        SAME,
        "the same is done again at the end of the turn",
        ("exchange.py | Exchange._finish | factory.commit(turn) | not called",),
    ),
    Known(
        SAME,
        "what gives a connection its reason beforehand aborts it: nothing ends it in between",
        ("exchange.py | Exchange._finish | self.reason or reason | without self.reason",),
    ),
    Known(
        SAME,
        "when the grace period is over, all that is left is aborted anyway",
        (
            "exchange.py | Exchange._finish | max(CLOSE_TIMEOUT, factory.grace_left())"
            " | only factory.grace_left()",
        ),
    ),
    Known(
        SAME,
        "what loses a connection closes its outbox before anything else is sent",
        (
            "outbox.py | Outbox.flush"
            " | self._handed and descriptor is not None and descriptor.connected"
            " | without descriptor.connected",
        ),
    ),
    Known(
        SAME,
        "an empty piece, of which nothing can be sent",
        (
            "outbox.py | Outbox.drop_unbegun | if end > self._offset | always",
            "outbox.py | Outbox.drop_unbegun | end > self._offset | > becomes >=",
        ),
    ),
    Known(
        SAME,
        "letting go of a transport that was told to close closes it too",
        ("outbox.py | Outbox._fail | self._transport.abortConnection() | not called",),
    ),
    Known(
        COST,
        "the reactor finds once that there is nothing to write",
        ("outbox.py | Outbox._fail | self._descriptor.stopWriting() | not called",),
    ),
    Known(
        COST,
        "the timers of a factory that was started anew stop with its last client, until the next one comes",
        ("server.py | TCPJSONServerFactory.startFactory | self._stopped = False | not noted",),
    ),
    Known(
        COST,
        "what one turn has is let go before it must be",
        (
            "server.py | TCPJSONServerFactory.closed | if self.turn is None | always",
            "server.py | TCPJSONServerFactory.commit | turn.dirty.clear() | not called",
        ),
    ),
    Known(
        SAME,
        "a Deferred takes a Failure for a failure either way",
        ("fairqueue.py | FairQueue._done | if isinstance(outcome, Failure) | never",),
    ),
    Known(
        SAME,
        "nothing more comes of a connection that was aborted",
        ("proxied.py | ProxiedProtocol.dataReceived | self._header = b'' | not noted",),
    ),
    Known(
        SAME,
        "it has no services within it",
        (
            "service.py | ServerService.privilegedStartService | super().privilegedStartService()"
            " | not called",
        ),
    ),
    Known(
        END_TO_END,
        "a file that goes in a turn of the reactor",
        ("service.py | ServerService._cannot_listen | reactor.iterate(0) | not called",),
        "tests.test_options.RefusalTests.test_one_good_port_and_one_taken",
    ),
    Known(
        SAME,
        "it depends on how many processors there are",
        (
            "tap.py |  | max(1, (os.cpu_count() or 1) // 2) | only 1",
            "tap.py |  | max(1, (os.cpu_count() or 1) // 2) | only (os.cpu_count() or 1) // 2",
            "tap.py |  | os.cpu_count() or 1 | without os.cpu_count()",
            "tap.py |  | os.cpu_count() or 1 | without 1",
        ),
    ),
    Known(
        SAME,
        "only a system that forbids memory to be written and executed tells",
        (
            "tls.py | ServerTLS.reload | if len(contexts) > 1 | always",
            "tls.py | ServerTLS.reload | len(contexts) > 1 | > becomes >=",
        ),
    ),
    Known(
        SAME,
        "which of the two is raised is up to pyOpenSSL; nothing is known that brings the other",
        ("tls.py | ServerTLS._context | except (SSL.Error, OpenSSLError) | without OpenSSLError",),
    ),
    Known(
        SAME,
        "OpenSSL takes what cryptography has taken: nothing is known that it refuses",
        (
            "tls.py | ServerTLS._context | except (SSL.Error, OpenSSLError) | not caught #2",
            "tls.py | ServerTLS._context | except (SSL.Error, OpenSSLError) | without SSL.Error #2",
            "tls.py | ServerTLS._context | except (SSL.Error, OpenSSLError) | without OpenSSLError #2",
        ),
    ),
    Known(
        COST,
        "the memory of idle connections (benchmarks/memory.py)",
        ("tls.py | ServerTLS._context | context.set_mode(SSL.MODE_RELEASE_BUFFERS) | not called",),
    ),
    Known(
        SAME,
        "only a loss of power tells",
        ("passwd.py | _replace | file.flush() | not called",),
    ),
    Known(
        COST,
        "the program ends, and its descriptors with it",
        ("passwd.py | _replace | os.close(holder) | not called",),
    ),
    Known(
        END_TO_END,
        "what runs as a program",
        (
            "passwd.py |  | if __name__ == '__main__' | never",
            "passwd.py |  | sys.exit(main()) | not called",
        ),
        "tests.test_passwd.ProgramTests.test_a_life",
    ),
    Known(
        SAME,
        "binascii.Error is a ValueError",
        ("verifiers.py | _base64 | except (binascii.Error, ValueError) | without binascii.Error",),
    ),
    Known(
        SAME,
        "a transport in memory that was aborted says of itself that it is closing",
        (
            "testing.py | Peer.closed | self.transport.disconnecting or self.transport.disconnected"
            " | without self.transport.disconnected",
        ),
    ),
    Known(
        COST,
        "a look that was not needed, at the end of a turn in which nothing was left",
        (
            "protocol.py | TCPJSONProtocol._work | self._holds or reader.begun or self._begun"
            " | without self._holds",
        ),
    ),
    Known(
        COST,
        "one that is gone has its turn at once, and not in its order",
        ("exchange.py | Exchange._throttled | self.hold(Hold.TURN) | not called",),
    ),
    Known(
        SAME,
        "one that is there gets on in its turn; one that is gone is ended, now or when it is read",
        (
            "exchange.py | Exchange.go_on"
            " | self._outbox.lost and self._holds & Hold.TURN and (self.messages_in == before)"
            " | without self._outbox.lost",
            "exchange.py | Exchange.go_on"
            " | self._outbox.lost and self._holds & Hold.TURN and (self.messages_in == before)"
            " | without self._holds & Hold.TURN",
            "exchange.py | Exchange.go_on"
            " | self._outbox.lost and self._holds & Hold.TURN and (self.messages_in == before)"
            " | without self.messages_in == before",
        ),
    ),
)
