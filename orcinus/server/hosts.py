"""Whom a request meant: the `Host` allow-list of a server that only this machine can reach (RELIABILITY.md, S27)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

# What may stand in `Host`: a name or an IPv4 address, or an IPv6 address in brackets; and a port.
_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII
)


def is_allowed(hosts: Sequence[str], address: str, name: str = "") -> bool:
    """Whether a request was meant for this server, and not for a stranger's name that points to it.

    A page at evil.example whose name is made to resolve to 127.0.0.1 is of one origin with a server there: its scripts
    could read every answer. What they can't choose is the `Host` that the browser sends.

    Args:
        hosts: every value of the header. Without any no browser sent it; with several nobody knows which counts.
        address: where the server listens. Only a loopback address is guarded: others have names we can't know.
        name: what the user calls this address, if it is a name.
    """
    if not is_loopback(address) or not hosts:
        return True
    return len(hosts) == 1 and _is_ours(hosts[0], name)


def is_loopback(address: str) -> bool:
    """Whether it is an IP address, and one that only this machine reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_ours(host: str, name: str) -> bool:
    """Any port is fine: it may be forwarded."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    called = (found["v6"] or found["name"]).lower()
    # A browser looks `localhost` up nowhere, and an address is no name that could be made to point elsewhere.
    return is_loopback(called) or called in {"localhost", name.lower()}
