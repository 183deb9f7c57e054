"""Whether the host at the other end of a TCP connection is still heard."""

from __future__ import annotations

import socket
import struct

# A host that is cut off says no farewell: after four silent seconds a connection counts as ended, before an engine that
# waits for a plan counts as hung. Hosts answer for processes that are busy.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 2), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2))
# Nobody is asked while words of ours are under way to him. (TCP_USER_TIMEOUT would do, but ends connections to a host
# that answers, too, if the process there is too busy to read.)
_UNANSWERED_MS = 4000
# An answer is never older than this while they come, and always when they have ceased.
_SILENCE_MS = 3000
_TCP_CLOSE = 7
# Offsets in Linux's struct tcp_info: the state, and the milliseconds since the last acknowledgement;
# between them the segments that wait for one.
_STATE, _UNDER_WAY, _LAST_ACK = struct.Struct("B"), struct.Struct("=24xI"), struct.Struct("=56xI")


def is_unanswered(end: socket.socket) -> bool:
    """Words are under way to another host, which has acknowledged nothing for four seconds."""
    found = _info(end)
    return bool(_UNDER_WAY.unpack_from(found)[0]) and bool(_LAST_ACK.unpack(found)[0] >= _UNANSWERED_MS)


def ended_in_silence(end: socket.socket) -> bool:
    """The connection is over because nothing came any more, not because the other side has closed it."""
    found = _info(end)
    return bool(_STATE.unpack_from(found)[0] == _TCP_CLOSE and _LAST_ACK.unpack(found)[0] >= _SILENCE_MS)


def _info(end: socket.socket) -> bytes:
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK.size)
