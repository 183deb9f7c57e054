"""What isn't HTTP, or is HTTP that two readers would cut differently: refused or hung up on, never answered twice."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from door import FrontDoor
from wire import Heard, Wire, listen, message, reset

pytestmark = pytest.mark.slow

POST = b"POST /v1/completions HTTP/1.1"
GET = b"GET /v1/models HTTP/1.1"
HOST, JSON, CLOSE = b"Host: localhost", b"Content-Type: application/json", b"Connection: close"
BODY = b'{"prompt": "hi", "max_tokens": 2}'
STREAMED = b'{"prompt": "What is 12 + 7?", "max_tokens": 1500, "ignore_eos": true, "stream": true}'
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
# What a smuggler hides behind the end that only one of two readers sees.
HIDDEN = message(b"GET /v1/models HTTP/1.1", HOST)
MAX_HEADER_BYTES, MAX_FIELDS = 16 * 1024, 100


def posted(*fields: bytes, body: bytes = BODY) -> bytes:
    return message(POST, HOST, JSON, *fields, body=body)


def numbered(count: int) -> list[bytes]:
    return [b"X-Field-%d: x" % number for number in range(count)]


# Where a body ends can be read in two ways; what follows is the second reading's next request.
AMBIGUOUS = {
    "length-and-chunks": posted(LENGTH, CHUNKED, body=CHUNKS + HIDDEN),
    "chunks-and-length": posted(CHUNKED, LENGTH, body=CHUNKS + HIDDEN),
    "length-0-and-chunks": posted(b"Content-Length: 0", CHUNKED, body=CHUNKS + HIDDEN),
    "two-lengths": posted(b"Content-Length: 0", LENGTH, body=BODY + HIDDEN),
    "two-lengths-in-one": posted(b"Content-Length: 0, %d" % len(BODY), body=BODY + HIDDEN),
    "negative-length": posted(b"Content-Length: -1", body=BODY + HIDDEN),
    "plus-length": posted(b"Content-Length: +%d" % len(BODY), body=BODY + HIDDEN),
    "word-length": posted(b"Content-Length: nine", body=BODY + HIDDEN),
    "hex-length": posted(b"Content-Length: 0x21", body=BODY + HIDDEN),
    "fraction-length": posted(b"Content-Length: 33.0", body=BODY + HIDDEN),
    "empty-length": posted(b"Content-Length:", body=BODY + HIDDEN),
    "spaced-length": posted(b"Content-Length: 3 3", body=BODY + HIDDEN),
    "overflowing-length": posted(b"Content-Length: %d" % (2**64 + len(BODY)), body=BODY + HIDDEN),
    "endless-length": posted(b"Content-Length: " + b"9" * 1000, body=BODY + HIDDEN),
    "gzip-coding": posted(b"Transfer-Encoding: gzip", body=CHUNKS + HIDDEN),
    "gzip-after-chunked": posted(b"Transfer-Encoding: chunked, gzip", body=CHUNKS + HIDDEN),
    "xchunked": posted(b"Transfer-Encoding: xchunked", body=CHUNKS + HIDDEN),
    "identity-coding": posted(b"Transfer-Encoding: identity", LENGTH, body=BODY + HIDDEN),
    "quoted-chunked": posted(b'Transfer-Encoding: "chunked"', body=CHUNKS + HIDDEN),
    "vertical-tab-chunked": posted(b"Transfer-Encoding: \x0bchunked", body=CHUNKS + HIDDEN),
    "coding-twice": posted(CHUNKED, b"Transfer-Encoding: identity", body=CHUNKS + HIDDEN),
    "space-before-colon": posted(b"Content-Length : %d" % len(BODY), body=BODY + HIDDEN),
    "space-before-coding-colon": posted(b"Transfer-Encoding : chunked", LENGTH, body=BODY + HIDDEN),
    "folded-length": posted(b"Content-Length:\r\n %d" % len(BODY), body=BODY + HIDDEN),
    "folded-coding": posted(b"Transfer-Encoding:\r\n chunked", body=CHUNKS + HIDDEN),
    "http-1.0-chunks": message(b"POST /v1/completions HTTP/1.0", HOST, JSON, CHUNKED, body=CHUNKS + HIDDEN),
}
BAD_CHUNKS = {
    "word-size": b"xyz\r\nhello\r\n0\r\n\r\n",
    "negative-size": b"-5\r\nhello\r\n0\r\n\r\n",
    "hex-prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "empty-size": b"\r\nhello\r\n0\r\n\r\n",
    "space-before-size": b" 5\r\nhello\r\n0\r\n\r\n",
    "overflowing-size": b"1" + b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n",
    "endless-size": b"f" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "underscore-size": b"0_5\r\nhello\r\n0\r\n\r\n",
    "too-short": b"3\r\nhello\r\n0\r\n\r\n",
    "bare-line-feeds": b"5\nhello\n0\n\n",
    "no-end-of-data": b"5\r\nhello0\r\n\r\n",
}
BROKEN = {
    "garbage": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n",
    "words": b"HELO there\r\n\r\n",
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "http-0.9": b"GET /v1/models\r\n\r\n",
    "version-9.9": message(b"GET /v1/models HTTP/9.9", HOST),
    "version-1": message(b"GET /v1/models HTTP/1", HOST),
    "version-lower": message(b"GET /v1/models http/1.1", HOST),
    "version-long": message(b"GET /v1/models HTTP/1.1111111111", HOST),
    "version-of-others": message(b"GET /v1/models ICY/1.1", HOST),
    "method-of-signs": message(b"G@T /v1/models HTTP/1.1", HOST),
    "method-lower": message(b"get /v1/models HTTP/1.1", HOST),
    "method-4000": message(b"G" * 4000 + b" /v1/models HTTP/1.1", HOST),
    "nul-in-target": message(b"GET /v1/mod\0els HTTP/1.1", HOST),
    "space-in-target": message(b"GET /v1/ models HTTP/1.1", HOST),
    "no-slash": message(b"GET v1/models HTTP/1.1", HOST),
    "line-of-64-kib": message(b"GET /" + b"a" * 65_536 + b" HTTP/1.1", HOST),
    "nul-in-value": message(GET, HOST, b"X-Field: a\0b"),
    "nul-in-name": message(GET, HOST, b"X-Fi\0eld: a"),
    "bare-carriage-return": message(GET, HOST, b"X-Field: a\rX-Other: b"),
    "space-in-name": message(GET, HOST, b"X Field: a"),
    "no-colon": message(GET, HOST, b"XField"),
    "no-name": message(GET, HOST, b": a"),
    "folded": message(GET, HOST, b"X-Field: a", b" b"),
    "folded-first": message(GET, b" Host: localhost"),
    "value-of-64-kib": message(GET, HOST, b"X-Field: " + b"a" * 65_536),
    "value-over-16-kib": message(GET, HOST, b"X-Field: " + b"a" * MAX_HEADER_BYTES),
    "name-of-64-kib": message(GET, HOST, b"X" * 65_536 + b": a"),
    "fields-101": message(GET, HOST, *numbered(MAX_FIELDS)),
    "fields-10000": message(GET, HOST, *numbered(10_000)),
}
GOOD = {
    "length": posted(LENGTH, CLOSE),
    "chunks": posted(CHUNKED, CLOSE, body=CHUNKS),
    "one-byte-chunks": posted(CHUNKED, CLOSE, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    "trailers": posted(CHUNKED, CLOSE, body=CHUNKS[:-2] + b"X-Checksum: 1\r\n\r\n"),
    "upper-case-coding": posted(b"TRANSFER-ENCODING: CHUNKED", CLOSE, body=CHUNKS),
    "fields-90": posted(LENGTH, CLOSE, *numbered(80)),
    "value-8-kib": posted(LENGTH, CLOSE, b"X-Field: " + b"a" * 8192),
    "http-1.0": message(b"POST /v1/completions HTTP/1.0", HOST, JSON, LENGTH, body=BODY),
    "line-feed-before": b"\r\n" + posted(LENGTH, CLOSE),
}


def check_refused(heard: Heard) -> None:
    """At most one answer, of the 4xx kind; and the connection is over, so nothing else is read from it."""
    assert heard.closed
    assert len(heard.statuses) <= 1, heard.data[:500]
    assert all(400 <= status < 500 for status in heard.statuses), heard.data[:500]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_body_with_two_ends_is_refused_and_nothing_behind_it_is_read(door: FrontDoor, name: str) -> None:
    check_refused(door.wire.say(AMBIGUOUS[name], half_close=True))
    door.check_unharmed()


@pytest.mark.parametrize("name", BAD_CHUNKS)
def test_bad_chunks_are_refused_and_nothing_behind_them_is_read(door: FrontDoor, name: str) -> None:
    check_refused(door.wire.say(posted(CHUNKED, body=b""), BAD_CHUNKS[name] + HIDDEN, half_close=True))
    door.check_unharmed()


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_http_is_refused(door: FrontDoor, name: str) -> None:
    check_refused(door.wire.say(BROKEN[name], half_close=True))
    door.check_unharmed()


@pytest.mark.parametrize("name", GOOD)
def test_unusual_but_right_messages_are_served(door: FrontDoor, name: str) -> None:
    heard = door.wire.say(GOOD[name])
    assert heard.statuses == [200], heard.data[:500]
    assert heard.closed


def test_a_flood_of_chunk_extensions_costs_only_its_sender(door: FrontDoor) -> None:
    flood = b"".join(b"1;%b\r\n \r\n" % (b"x" * 1000) for _ in range(2000))
    heard = door.wire.say(posted(CHUNKED, CLOSE, body=b""), flood + CHUNKS)
    assert heard.statuses in ([], [200], [400], [413])
    door.check_unharmed()


def test_a_flood_of_trailers_is_refused(door: FrontDoor) -> None:
    trailers = b"".join(b"X-Field-%d: %b\r\n" % (number, b"x" * 100) for number in range(10_000))
    heard = door.wire.say(posted(CHUNKED, CLOSE, body=b""), CHUNKS[:-2] + trailers + b"\r\n")
    assert len(heard.statuses) <= 1
    assert all(status < 500 for status in heard.statuses)
    door.check_unharmed()


def test_bare_line_feeds_end_no_message_for_us_that_another_would_read_on(door: FrontDoor) -> None:
    heard = door.wire.say(message(GET, HOST, CLOSE).replace(b"\r\n", b"\n") + HIDDEN, half_close=True)
    check_refused(heard)


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_sent(door: FrontDoor) -> None:
    heard = door.wire.say(posted(b"Content-Length: %d" % 2**26, CLOSE, body=b'{"prompt": "'))
    assert heard.statuses == [413]
    assert heard.closed


def test_an_unannounced_body_is_refused_once_it_is_too_large(door: FrontDoor) -> None:
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    heard = door.wire.say(posted(CHUNKED, CLOSE, body=b""), *[chunk] * 17, b"0\r\n\r\n")
    # Whoever goes on sending into a closed connection may lose the answer.
    assert heard.statuses in ([413], [])
    assert heard.closed
    door.check_unharmed()


def test_requests_in_one_write_are_answered_in_order(door: FrontDoor) -> None:
    models, nothing = message(GET, HOST), message(b"GET /nothing HTTP/1.1", HOST)
    heard = door.wire.say(models + nothing + models + message(GET, HOST, CLOSE))
    assert heard.statuses == [200, 404, 200, 200]


def test_a_hundred_requests_in_one_write(door: FrontDoor) -> None:
    heard = door.wire.say(message(GET, HOST) * 99 + message(GET, HOST, CLOSE))
    assert heard.statuses == [200] * 100


def test_a_client_that_has_said_all_and_half_closed_is_answered_or_left_in_peace(door: FrontDoor) -> None:
    heard = door.wire.say(posted(LENGTH), half_close=True)
    assert heard.closed
    assert heard.statuses in ([200], [])


def test_a_client_may_ask_before_it_sends_its_body(door: FrontDoor) -> None:
    with door.wire.connection() as connection:
        connection.sendall(posted(LENGTH, CLOSE, b"Expect: 100-continue", body=b""))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert listen(connection).statuses == [200]


def test_an_expectation_that_nobody_knows_is_refused_or_ignored(door: FrontDoor) -> None:
    heard = door.wire.say(posted(LENGTH, CLOSE, b"Expect: a-miracle"))
    assert heard.statuses in ([200], [417])


@pytest.mark.parametrize("cut", [1, 20, 60, len(posted(LENGTH)) - 1])
@pytest.mark.parametrize("hang_up", [reset, socket.socket.close], ids=["rst", "fin"])
def test_a_client_that_leaves_in_mid_request_leaves_nothing(
    door: FrontDoor, cut: int, hang_up: Callable[[socket.socket], None]
) -> None:
    with door.wire.connection() as connection:
        connection.sendall(posted(LENGTH)[:cut])
        hang_up(connection)
    door.check_unharmed()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("hang_up", [reset, socket.socket.close], ids=["rst", "fin"])
def test_a_client_that_leaves_in_mid_answer_leaves_nothing(
    door: FrontDoor, streamed: bool, hang_up: Callable[[socket.socket], None]
) -> None:
    body = json.dumps(json.loads(STREAMED) | {"stream": streamed}).encode()
    with door.wire.connection() as connection:
        connection.sendall(posted(b"Content-Length: %d" % len(body), body=body))
        if streamed:
            assert connection.recv(1).startswith(b"H")
        hang_up(connection)
    door.check_unharmed()
    door.check_idle()


def test_a_client_of_one_byte_at_a_time_is_served(door: FrontDoor) -> None:
    pieces = [bytes([byte]) for byte in posted(LENGTH, CLOSE)]
    assert door.wire.say(*pieces).statuses == [200]


def test_many_slow_clients_hold_nobody_up(door: FrontDoor) -> None:
    with _slow_clients(door.wire, 200) as clients:
        for byte in message(GET, HOST)[:20]:
            for client in clients:
                client.sendall(bytes([byte]))
        door.check_unharmed()
    door.check_unharmed()


@contextmanager
def _slow_clients(wire: Wire, count: int) -> Iterator[list[socket.socket]]:
    """Connections that will begin a request and never get to its end."""
    with ExitStack() as stack:
        clients = [stack.enter_context(wire.connection()) for _ in range(count)]
        yield clients
        for client in clients:
            reset(client)


@pytest.fixture(scope="session")
def dawdlers(door: FrontDoor) -> Iterator[dict[str, socket.socket]]:
    """Clients that stop in mid-request and wait; they begin before anything else here."""
    beginnings = {"header": posted(LENGTH)[:40], "body": posted(LENGTH)[:-5]}
    with ExitStack() as stack:
        connections = {name: stack.enter_context(door.wire.connection(patience=30)) for name in beginnings}
        for name, beginning in beginnings.items():
            connections[name].sendall(beginning)
        yield connections


@pytest.fixture(autouse=True)
def _begin_early(dawdlers: dict[str, socket.socket]) -> None:
    """See `dawdlers`."""


def test_whoever_stops_in_mid_header_is_hung_up_on(dawdlers: dict[str, socket.socket]) -> None:
    """RELIABILITY.md S22: 10 s for the header."""
    check_refused(listen(dawdlers["header"]))


def test_whoever_stops_in_mid_body_is_hung_up_on(dawdlers: dict[str, socket.socket]) -> None:
    """RELIABILITY.md S22: after 10 s less than 1 kB/s is too slow."""
    check_refused(listen(dawdlers["body"]))
