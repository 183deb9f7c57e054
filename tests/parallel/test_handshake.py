"""Who doesn't hold the secret learns nothing and changes nothing, whatever he sends; the oracle is HMAC by hand."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from orcinus.errors import ConfigurationError
from orcinus.parallel import PeerLost, handshake
from orcinus.parallel.handshake import DRIVER, Address, Channel, Hello, Listener, close_all, dial, make_secret

HOST = "127.0.0.1"
HELLO = Hello(Channel.STATES, 3, 1)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_both_sides_prove_themselves_and_then_talk(pool: ThreadPoolExecutor) -> None:
    secret = make_secret()
    listener = Listener(HOST, secret, 1)
    others = [HELLO, Hello(Channel.RANKS, 2, 1)]
    dialed = [pool.submit(dial, listener.address, hello, secret) for hello in others]
    found = listener.accept(others, 10)
    for hello, future in zip(others, dialed, strict=True):
        future.result().sendall(bytes([hello.dialer]))
        assert found[hello].recv(9) == bytes([hello.dialer])
        future.result().close()
    close_all(found.values())
    assert listener.rejected == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address, 1)


def test_the_proof_is_an_hmac_over_both_nonces_and_the_purpose(pool: ThreadPoolExecutor) -> None:
    secret = make_secret()
    listener = Listener(HOST, secret, 1)
    accepted = pool.submit(listener.accept, [HELLO], 10)
    hello = b"ORC1" + bytes([Channel.STATES, 3, 0, 1, 0])
    with closing(socket.create_connection(listener.address)) as end:
        theirs, mine = end.recv(32), os.urandom(32)
        end.sendall(hello + mine + hmac.new(secret, b"dialer" + theirs + mine + hello, hashlib.sha256).digest())
        assert end.recv(32) == hmac.new(secret, b"listener" + theirs + mine + hello, hashlib.sha256).digest()
    close_all(accepted.result().values())


def attack(address: Address, what: bytes) -> bytes:
    """Whatever is answered beyond the nonce."""
    with closing(socket.create_connection(address, 10)) as end:
        assert len(end.recv(32)) == 32
        try:
            end.sendall(what)
            end.shutdown(socket.SHUT_WR)
            return end.recv(1000)
        except OSError:
            # Sent away before all was said.
            return b""


def test_strangers_get_nothing_and_keep_nobody_out(pool: ThreadPoolExecutor) -> None:
    secret, rng = make_secret(), random.Random(0)
    captured: list[bytes] = []
    # A true connection, listened to; and its proof bent in every way that fits into a second.
    first = Listener(HOST, secret, 1)
    accepted = pool.submit(first.accept, [HELLO], 10)
    with closing(Recording(first.address)) as between:
        dial(between.address, HELLO, secret).close()
        captured.append(bytes(between.sent))
    close_all(accepted.result().values())
    assert len(captured[0]) == 9 + 32 + 32

    listener = Listener(HOST, secret, 1)
    accepted = pool.submit(listener.accept, [HELLO], 60)
    frames = [captured[0], b"", bytes(73), rng.randbytes(10_000), captured[0][:-1]]
    for _ in range(100):
        bent = bytearray(captured[0])
        bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        frames.append(bytes(bent))
    assert [attack(listener.address, frame) for frame in frames] == [b""] * len(frames)
    # One that says nothing at all is no reason to wait either.
    silent = socket.create_connection(listener.address)
    end = dial(listener.address, HELLO, secret)
    found = accepted.result()
    assert list(found) == [HELLO]
    assert listener.rejected == len(frames)
    close_all([silent, end, *found.values()])


class Recording:
    """Stands between two sides and keeps what the dialer says."""

    def __init__(self, target: Address) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.address: Address = self._listener.getsockname()
        self.sent = bytearray()
        self._target = target
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        dialer, _ = self._listener.accept()
        with closing(dialer), closing(socket.create_connection(self._target)) as target:
            dialer.sendall(target.recv(32))
            while len(self.sent) < 73:
                self.sent += dialer.recv(100)
            target.sendall(self.sent)
            dialer.sendall(target.recv(32))

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


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
    secret = make_secret()
    listener = Listener(HOST, secret, 1)
    accepted = pool.submit(listener.accept, [HELLO], 10)
    with pytest.raises(PeerLost, match="not of this run"):
        dial(listener.address, wrong, secret)
    end = dial(listener.address, HELLO, secret)
    # Once all have come the door is shut.
    taken = accepted.result()
    with pytest.raises(PeerLost):
        dial(listener.address, HELLO, secret)
    close_all([end, *taken.values()])


def test_a_false_listener_is_found_out(pool: ThreadPoolExecutor) -> None:
    listener = Listener(HOST, make_secret(), 1)
    accepted = pool.submit(listener.accept, [HELLO], 0.5)
    with pytest.raises(PeerLost, match="not of this run"):
        dial(listener.address, HELLO, make_secret())
    with pytest.raises(PeerLost, match="of 1 connections 0 have come"):
        accepted.result()

    # It repeats the dialer's own proof, and can't do better.
    with closing(socket.create_server((HOST, 0))) as parrot:
        answered = pool.submit(answer_like_a_parrot, parrot)
        with pytest.raises(PeerLost, match="wrong proof"):
            dial(parrot.getsockname(), HELLO, make_secret())
        answered.result()


def answer_like_a_parrot(parrot: socket.socket) -> None:
    end, _ = parrot.accept()
    with closing(end):
        end.sendall(bytes(32))
        said = b""
        while len(said) < 73:
            said += end.recv(100)
        end.sendall(said[-32:])


def test_one_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor) -> None:
    monkeypatch.setattr(handshake, "PROOF_SECONDS", 0.2)
    listener = Listener(HOST, make_secret(), 1)
    accepted = pool.submit(listener.accept, [HELLO], 2)
    with closing(socket.create_connection(listener.address, 10)) as end:
        assert len(end.recv(32)) == 32
        end.sendall(b"O")
        assert end.recv(1) == b""
    with pytest.raises(PeerLost):
        accepted.result()
    assert listener.rejected == 1


def test_a_crowd_of_strangers_is_sent_away_and_leaves_the_door_free(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    monkeypatch.setattr(handshake, "_MAX_STRANGERS", 2)
    secret = make_secret()
    listener = Listener(HOST, secret, 1)
    accepted = pool.submit(listener.accept, [HELLO], 60)
    for _ in range(5):
        crowd = [socket.create_connection(listener.address, 10) for _ in range(4)]
        # Two are asked who they are, two find the door shut.
        assert sorted(len(end.recv(32)) for end in crowd) == [0, 0, 32, 32]
        for end in crowd:
            end.shutdown(socket.SHUT_WR)
            assert end.recv(1) == b""
            end.close()
        wait_for_rejections(listener, 4)
    end = dial(listener.address, HELLO, secret)
    close_all([end, *accepted.result().values()])


def wait_for_rejections(listener: Listener, number: int) -> None:
    """And for those who looked into their papers to be free again."""
    while listener.rejected % number or any(each.name == "handshake" for each in threading.enumerate()):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("host", "words"),
    [("0.0.0.0", "all of them"), ("::", "all of them"), ("", "is none"), ("192.0.2.77", "can't listen")],
)
def test_it_listens_on_one_address_only(host: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Listener(host, make_secret(), 0)
