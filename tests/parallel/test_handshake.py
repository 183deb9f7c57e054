"""Who holds no certificate of the run learns nothing and changes nothing, whatever he sends; the oracle is the standard
library's TLS, used by hand, and what is seen on the wire."""

from __future__ import annotations

import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from orcinus.errors import ConfigurationError
from orcinus.parallel import PeerLost, handshake
from orcinus.parallel.credentials import Credentials, issue, name_of
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all, dial

HOST = "127.0.0.1"
HELLO = Hello(Channel.STATES, 3, 1)
PACKED = b"ORC2" + bytes([Channel.STATES, 3, 0, 1, 0])
RUN = issue([1, 2, 3])
OTHER_RUN = issue([1, 3])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_both_sides_prove_themselves_and_then_talk(pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, RUN[1], 1)
    others = [HELLO, Hello(Channel.RANKS, 2, 1)]
    dialed = [pool.submit(dial, listener.address, hello, RUN[hello.dialer]) for hello in others]
    found = listener.accept(others, 10)
    for hello, future in zip(others, dialed, strict=True):
        future.result().sendall(bytes([hello.dialer]))
        assert found[hello].recv(9) == bytes([hello.dialer])
        for end in (future.result(), found[hello]):
            assert end.version() == "TLSv1.3"
        future.result().close()
    close_all(found.values())
    assert listener.rejected == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address, 1)


def knock(address: Address, context: ssl.SSLContext, said: bytes, listener: int = 1) -> bytes:
    """What a client of the standard library is answered."""
    try:
        with (
            closing(socket.create_connection(address, 10)) as plain,
            closing(context.wrap_socket(plain, server_hostname=name_of(listener))) as end,
        ):
            end.sendall(said)
            return end.recv(1000)
    except OSError:
        # Sent away before all was said.
        return b""


def knock_plainly(address: Address, what: bytes) -> bytes:
    """Likewise, without TLS."""
    try:
        with closing(socket.create_connection(address, 10)) as end:
            end.sendall(what)
            end.shutdown(socket.SHUT_WR)
            answer = b""
            while read := end.recv(1000):
                answer += read
            return answer
    except OSError:
        return b""


def without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=RUN[1].authority)
    return context


def of_another_run() -> ssl.SSLContext:
    """It believes anybody, and shows the right name, from the wrong authority."""
    context = OTHER_RUN[3].to_dial()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def of_old() -> ssl.SSLContext:
    context = RUN[3].to_dial()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def test_who_shows_no_certificate_of_this_run_under_his_own_name_is_sent_away(pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 60)
    strangers = [without_certificate(), of_another_run(), of_old(), RUN[2].to_dial()]
    assert [knock(listener.address, stranger, PACKED) for stranger in strangers] == [b""] * 4
    for said in (b"HTTP/1.1 GET", PACKED[1:], b"ORC1" + PACKED[4:], bytes(9), os.urandom(9)):
        assert knock(listener.address, RUN[3].to_dial(), said + bytes(9)) == b""
    wait_for_rejections(listener, 9)
    assert knock(listener.address, RUN[3].to_dial(), PACKED) == b"."
    assert list(accepted.result()) == [HELLO]
    close_all(accepted.result().values())


def test_nothing_is_read_off_the_wire_and_nothing_captured_or_bent_gets_in(pool: ThreadPoolExecutor) -> None:
    rng, said = random.Random(0), b"the quick brown plan " * 40
    first = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(first.accept, [HELLO], 10)
    with closing(Between(first.address)) as between:
        end = dial(between.address, HELLO, RUN[3])
        end.sendall(said)
        taken = accepted.result()[HELLO]
        assert read(taken, len(said)) == said
        close_all([end, taken])
    wire = bytes(between.sent + between.answered)
    assert len(wire) > len(said)
    # Neither what was said, nor what for, nor who the dialer is.
    for word in (b"plan", b"quick", PACKED, name_of(3).encode(), RUN[3].key.encode()):
        assert word not in wire

    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 60)
    captured = bytes(between.sent)
    frames = [captured, b"", bytes(73), rng.randbytes(10_000), captured[: len(captured) // 2]]
    for _ in range(50):
        bent = bytearray(captured)
        bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        frames.append(bytes(bent))
    for frame in frames:
        knock_plainly(listener.address, frame)
    # One that says nothing at all is no reason to wait either.
    silent = socket.create_connection(listener.address)
    end = dial(listener.address, HELLO, RUN[3])
    found = accepted.result()
    assert list(found) == [HELLO]
    assert listener.rejected == len(frames)
    close_all([silent, end, *found.values()])


def test_one_bit_changed_on_the_way_ends_the_connection(pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 10)
    with closing(Between(listener.address)) as between:
        end = dial(between.address, HELLO, RUN[3])
        taken = accepted.result()[HELLO]
        end.sendall(b"one")
        assert taken.recv(10) == b"one"
        between.bends = True
        end.sendall(b"two")
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            taken.recv(10)
        close_all([end, taken])


class Between:
    """Stands between two sides, keeps what they say, and bends it when it is told to."""

    def __init__(self, target: Address) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.address: Address = self._listener.getsockname()
        self.sent, self.answered = bytearray(), bytearray()
        self.bends = False
        self._target = target
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        dialer, _ = self._listener.accept()
        target = socket.create_connection(self._target)
        back = threading.Thread(target=self._pass, args=(target, dialer, self.answered))
        back.start()
        self._pass(dialer, target, self.sent)
        back.join()
        close_all([dialer, target])

    def _pass(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while read := bytearray(source.recv(65536)):
                read[-1] ^= self.bends
                kept += read
                target.sendall(read)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            # One side has hung up amid a word.
            target.close()

    def close(self) -> None:
        self._threads[0].join(10)
        self._listener.close()


def read(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := end.recv(size)):
        found += more
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        Hello(Channel.STATES, 3, 2),
        Hello(Channel.TOKENS, 3, 1),
        Hello(Channel.STATES, 2, 1),
        Hello(Channel.REPORTS, 3, DRIVER),
    ],
)
def test_a_worker_at_the_wrong_door_is_sent_away(wrong: Hello, pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 10)
    with pytest.raises(PeerLost, match="not of this run"):
        dial(listener.address, wrong, RUN[wrong.dialer])
    end = dial(listener.address, HELLO, RUN[3])
    # Once all have come the door is shut.
    taken = accepted.result()
    with pytest.raises(PeerLost):
        dial(listener.address, HELLO, RUN[3])
    close_all([end, *taken.values()])


@pytest.mark.parametrize(("false", "words"), [(OTHER_RUN[1], "CERTIFICATE_VERIFY"), (RUN[2], "Hostname mismatch")])
def test_a_false_listener_is_found_out(false: Credentials, words: str, pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, false, 1)
    accepted = pool.submit(listener.accept, [HELLO], 0.5)
    with pytest.raises(PeerLost, match=words):
        dial(listener.address, HELLO, RUN[3])
    with pytest.raises(PeerLost, match="of 1 connections 0 have come"):
        accepted.result()


def test_one_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    monkeypatch.setattr(handshake, "PROOF_SECONDS", 0.2)
    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 2)
    with closing(socket.create_connection(listener.address, 10)) as end:
        # The beginning of TLS, and the beginning of a word inside.
        end.sendall(b"\x16")
        assert end.recv(1) == b""
    with (
        closing(socket.create_connection(listener.address, 10)) as plain,
        closing(RUN[3].to_dial().wrap_socket(plain, server_hostname=name_of(1))) as sealed,
    ):
        sealed.sendall(b"O")
        assert sealed.recv(1) == b""
    with pytest.raises(PeerLost):
        accepted.result()
    assert listener.rejected == 2


def test_a_crowd_of_strangers_is_sent_away_and_leaves_the_door_free(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr(handshake, "_MAX_STRANGERS", 2)
    listener = Listener(HOST, RUN[1], 1)
    accepted = pool.submit(listener.accept, [HELLO], 60)
    for _ in range(5):
        crowd = [socket.create_connection(listener.address, 10) for _ in range(4)]
        # Two are waited for, two find the door shut.
        while listener.rejected % 4 < 2:
            time.sleep(0.01)
        close_all(crowd)
        wait_for_rejections(listener, 4)
    end = dial(listener.address, HELLO, RUN[3])
    close_all([end, *accepted.result().values()])


def wait_for_rejections(listener: Listener, number: int) -> None:
    """And for those who looked into their papers to be free again."""
    while listener.rejected % number or any(each.name == "handshake" for each in threading.enumerate()):
        time.sleep(0.01)


def test_a_member_keeps_what_it_proves_itself_with_off_the_disk_and_out_of_sight() -> None:
    before = set(os.listdir("/proc/self/fd"))
    RUN[3].to_dial()
    RUN[3].to_listen()
    assert set(os.listdir("/proc/self/fd")) == before
    assert "PRIVATE" not in repr(RUN[3])
    assert len({member.key for member in RUN.values()}) == len(RUN)


@pytest.mark.parametrize(
    ("host", "words"),
    [("0.0.0.0", "all of them"), ("::", "all of them"), ("", "is none"), ("192.0.2.77", "can't listen")],
)
def test_it_listens_on_one_address_only(host: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Listener(host, RUN[1], 0)
