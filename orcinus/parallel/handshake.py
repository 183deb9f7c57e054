"""Connections between hosts, each proven by both sides before it is used: whoever doesn't hold the run's secret gets
nothing, and nothing that he says is read but one message of fixed size.

A proof is an HMAC over both sides' fresh nonces and over what the connection is for, so one that was captured fits no
other connection. It holds for the beginning of a stream: what follows is neither sealed nor encrypted.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import IntEnum

from orcinus.errors import ConfigurationError
from orcinus.parallel import PeerLost

# Of the driver, who is no worker.
DRIVER = 0xFFFF
SECRET_BYTES = 32
# Somebody who connects and says nothing is sent away, and keeps nobody waiting meanwhile.
PROOF_SECONDS = 5.0
_MAX_STRANGERS = 64
_LOOK_SECONDS = 0.2
# A host that is cut off says no farewell: after about ten silent seconds a connection counts as ended.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 4), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_HELLO = struct.Struct("<4sBHH")
_MAGIC = b"ORC1"

Address = tuple[str, int]


class Channel(IntEnum):
    """What a connection is for."""

    REPORTS = 0
    PLANS = 1
    RANKS = 2
    STATES = 3
    TOKENS = 4


@dataclass(frozen=True, slots=True, order=True)
class Hello:
    """A connection from one worker, by index, to another or to the driver."""

    channel: Channel
    dialer: int
    listener: int

    def pack(self) -> bytes:
        """On the wire."""
        return _HELLO.pack(_MAGIC, self.channel, self.dialer, self.listener)


def make_secret() -> bytes:
    """A new one, for one run."""
    return secrets.token_bytes(SECRET_BYTES)


def dial(address: Address, hello: Hello, secret: bytes) -> socket.socket:
    """A proven connection.

    Raises:
        PeerLost: nobody is there, or he doesn't know the secret.
    """
    try:
        end = socket.create_connection(address, PROOF_SECONDS)
    except OSError as error:
        raise PeerLost(f"can't reach {address[0]} port {address[1]}: {error}") from error
    try:
        _prove_as_dialer(end, hello, secret)
    except (OSError, _NotProven) as error:
        end.close()
        raise PeerLost(f"{address[0]} port {address[1]} is not of this run, or gone: {error}") from error
    return _ready(end)


class Listener:
    """Takes the connections that are expected, each once, and no others.

    Args:
        host: this machine's address between the workers, never a wildcard.
        me: this side's index.

    Raises:
        ConfigurationError: `host` is no single address of this machine.
    """

    def __init__(self, host: str, secret: bytes, me: int) -> None:
        self._secret = secret
        self._me = me
        self._socket = _listen(host)
        name = self._socket.getsockname()
        self.address: Address = (name[0], name[1])
        self.rejected = 0

    def accept(
        self, expected: Collection[Hello], seconds: float, look: Callable[[], None] = lambda: None
    ) -> dict[Hello, socket.socket]:
        """All of them, then nobody any more: the port is closed, whatever happens.

        Args:
            look: called now and then; raises where there is nobody to wait for.

        Raises:
            PeerLost: somebody has not come in time.
        """
        arrivals = _Arrivals(set(expected))
        deadline = time.monotonic() + seconds
        try:
            while not arrivals.complete:
                look()
                if time.monotonic() > deadline:
                    raise PeerLost(f"of {len(expected)} connections {len(arrivals.found)} have come")
                self._take_one(arrivals)
        except BaseException:
            arrivals.close()
            raise
        finally:
            self.close()
        return arrivals.found

    def close(self) -> None:
        """Nobody can connect any more."""
        self._socket.close()

    def _take_one(self, arrivals: _Arrivals) -> None:
        self._socket.settimeout(_LOOK_SECONDS)
        try:
            end, _ = self._socket.accept()
        except TimeoutError:
            return
        if not arrivals.admit():
            self._reject(end)
            return
        threading.Thread(target=self._prove, args=(end, arrivals), name="handshake", daemon=True).start()

    def _prove(self, end: socket.socket, arrivals: _Arrivals) -> None:
        try:
            end.settimeout(PROOF_SECONDS)
            hello = _prove_as_listener(end, self._me, self._secret, arrivals)
            if not arrivals.add(hello, _ready(end)):
                self._reject(end)
        except (OSError, _NotProven):
            self._reject(end)
        finally:
            arrivals.leave()

    def _reject(self, end: socket.socket) -> None:
        self.rejected += 1
        end.close()


class _NotProven(Exception):
    """The other side isn't who it should be."""


@dataclass
class _Arrivals:
    """Who has come; shared by the threads that look into papers."""

    expected: set[Hello]
    found: dict[Hello, socket.socket] = field(default_factory=dict)
    _strangers: int = 0
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def complete(self) -> bool:
        with self._lock:
            return len(self.found) == len(self.expected)

    def admit(self) -> bool:
        """Whether one more may show his papers now."""
        with self._lock:
            has_room = self._strangers < _MAX_STRANGERS
            self._strangers += has_room
            return has_room

    def leave(self) -> None:
        with self._lock:
            self._strangers -= 1

    def awaits(self, hello: Hello) -> bool:
        with self._lock:
            return hello in self.expected and hello not in self.found

    def add(self, hello: Hello, end: socket.socket) -> bool:
        """False if it has come already, or too late."""
        with self._lock:
            if self._closed or hello in self.found:
                return False
            self.found[hello] = end
            return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for end in self.found.values():
                end.close()


def _listen(host: str) -> socket.socket:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ConfigurationError(f"workers listen on one address of a machine, and {host!r} is none") from error
    if address.is_unspecified or address.is_multicast:
        raise ConfigurationError(f"workers listen on one address of a machine; {host} would be all of them")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    end = socket.socket(family, socket.SOCK_STREAM)
    try:
        end.bind((host, 0))
        end.listen(128)
    except OSError as error:
        end.close()
        raise ConfigurationError(f"can't listen on {host}: {error.strerror}") from error
    return end


def _prove_as_listener(end: socket.socket, me: int, secret: bytes, arrivals: _Arrivals) -> Hello:
    """The dialer proves himself first: to a stranger we say nothing but a random number."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    end.sendall(nonce)
    packed = _read(end, _HELLO.size)
    theirs = _read(end, _NONCE_BYTES)
    proof = _read(end, _PROOF_BYTES)
    spoken = nonce + theirs + packed
    if not hmac.compare_digest(proof, _proof(secret, b"dialer", spoken)):
        raise _NotProven("wrong proof")
    hello = _unpack(packed)
    if hello.listener != me or not arrivals.awaits(hello):
        raise _NotProven("not expected here")
    end.sendall(_proof(secret, b"listener", spoken))
    return hello


def _prove_as_dialer(end: socket.socket, hello: Hello, secret: bytes) -> None:
    theirs = _read(end, _NONCE_BYTES)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    spoken = theirs + nonce + hello.pack()
    end.sendall(hello.pack() + nonce + _proof(secret, b"dialer", spoken))
    if not hmac.compare_digest(_read(end, _PROOF_BYTES), _proof(secret, b"listener", spoken)):
        raise _NotProven("wrong proof")


def _proof(secret: bytes, role: bytes, spoken: bytes) -> bytes:
    return hmac.digest(secret, role + spoken, "sha256")


def _unpack(packed: bytes) -> Hello:
    magic, channel, dialer, listener = _HELLO.unpack(packed)
    if magic != _MAGIC or channel not in Channel.__members__.values():
        raise _NotProven("another version")
    return Hello(Channel(channel), dialer, listener)


def _read(end: socket.socket, size: int) -> bytes:
    """Exactly that much."""
    deadline = time.monotonic() + PROOF_SECONDS
    read = b""
    while len(read) < size:
        # A byte every few seconds isn't an answer either.
        end.settimeout(max(1e-3, deadline - time.monotonic()))
        more = end.recv(size - len(read))
        if not more:
            raise _NotProven("it hung up")
        read += more
    return read


def _ready(end: socket.socket) -> socket.socket:
    """Blocking, without delay, and noticing that the other host is gone."""
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        end.setsockopt(socket.IPPROTO_TCP, option, value)
    return end


def close_all(ends: Collection[socket.socket]) -> None:
    """Each of them, even if one is broken."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.close()
