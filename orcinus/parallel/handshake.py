"""Connections between hosts, each proven by both sides before it is used, and encrypted from then on.

TLS 1.3, in which either side shows a certificate of this run: a stranger gets no further, and nothing else that he says
is read. Inside, the dialer says what the connection is for. He must be who he says, and be expected for just that.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import IntEnum

from orcinus.errors import ConfigurationError
from orcinus.parallel import LinkLost, PeerLost, missed
from orcinus.parallel.credentials import Credentials, name_of
from orcinus.parallel.silence import KEEPALIVE

# Of the driver, who is no worker.
DRIVER = 0xFFFF
# Somebody who connects and says nothing is sent away, and keeps nobody waiting meanwhile.
PROOF_SECONDS = 5.0
_MAX_STRANGERS = 64
_LOOK_SECONDS = 0.2
_HELLO = struct.Struct("<4sBHH")
_MAGIC = b"ORC2"
_WELCOME = b"."

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


def dial(address: Address, hello: Hello, own: Credentials) -> ssl.SSLSocket:
    """A proven connection.

    Raises:
        PeerLost: nobody is there, or he is another, or doesn't expect us.
    """
    try:
        plain = socket.create_connection(address, PROOF_SECONDS)
    except TimeoutError as error:
        raise LinkLost(f"{address[0]} doesn't answer") from error
    except OSError as error:
        raise missed(f"can't reach {address[0]} port {address[1]}", error) from error
    end = own.to_dial().wrap_socket(plain, do_handshake_on_connect=False, server_hostname=name_of(hello.listener))
    try:
        end.do_handshake()
        end.sendall(hello.pack())
        # The other side judges us after our half of the handshake is done.
        _read(end, len(_WELCOME))
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

    def __init__(self, host: str, own: Credentials, me: int) -> None:
        self._context = own.to_listen()
        self._me = me
        self._socket = _listen(host)
        name = self._socket.getsockname()
        self.address: Address = (name[0], name[1])
        self.rejected = 0

    def accept(
        self, expected: Collection[Hello], seconds: float, look: Callable[[], None] = lambda: None
    ) -> dict[Hello, ssl.SSLSocket]:
        """All of them, then nobody any more: the port is closed, whatever happens.

        Args:
            look: called now and then; raises where there is nobody to wait for.

        Raises:
            LinkLost: somebody has not come in time.
        """
        arrivals = _Arrivals(set(expected))
        deadline = time.monotonic() + seconds
        try:
            while not arrivals.complete:
                look()
                if time.monotonic() > deadline:
                    raise LinkLost(f"of {len(expected)} connections {len(arrivals.found)} have come")
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

    def _prove(self, plain: socket.socket, arrivals: _Arrivals) -> None:
        end = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        try:
            hello = _prove_as_listener(end, self._me, arrivals)
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
    found: dict[Hello, ssl.SSLSocket] = field(default_factory=dict)
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

    def add(self, hello: Hello, end: ssl.SSLSocket) -> bool:
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


def _prove_as_listener(end: ssl.SSLSocket, me: int, arrivals: _Arrivals) -> Hello:
    """Who comes shows his certificate, and is told nothing before he has said what for."""
    # For the whole of it: a byte every few seconds is no answer.
    end.settimeout(PROOF_SECONDS)
    end.do_handshake()
    hello = _unpack(_read(end, _HELLO.size))
    shown = end.getpeercert() or {}
    if ("DNS", name_of(hello.dialer)) not in shown.get("subjectAltName", ()):
        raise _NotProven("another's name")
    if hello.listener != me or not arrivals.awaits(hello):
        raise _NotProven("not expected here")
    end.sendall(_WELCOME)
    return hello


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


def _ready(end: ssl.SSLSocket) -> ssl.SSLSocket:
    """Blocking, without delay, and noticing that the other host is gone."""
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        end.setsockopt(socket.IPPROTO_TCP, option, value)
    return end


def close_all(ends: Collection[socket.socket]) -> None:
    """Each of them, even if one is broken."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.close()
