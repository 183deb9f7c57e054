"""Who can reach the server's processes: one port, on loopback; sockets and memory that are nobody else's (S2)."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from guarded import MODEL, House

pytestmark = pytest.mark.slow
LISTENING = "0A"
TABLES = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")


def sockets_of(pid: int) -> set[str]:
    """Inodes of all sockets that a process holds."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}


def address(field: str) -> tuple[str, int]:
    """As /proc/net/tcp writes it: 32-bit words in the machine's order."""
    packed, port = bytes.fromhex(field.partition(":")[0]), int(field.partition(":")[2], 16)
    words = [packed[at : at + 4][:: -1 if sys.byteorder == "little" else 1] for at in range(0, len(packed), 4)]
    return str(ipaddress.ip_address(b"".join(words))), port


def listeners(pid: int) -> set[tuple[str, str, int]]:
    """Where anybody could send something to a process: protocol, address, port."""
    inodes = sockets_of(pid)
    found = set()
    for table in TABLES:
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes and (table[:3] != "tcp" or fields[3] == LISTENING):
                found.add((table, *address(fields[1])))
    return found


def test_the_processes_listen_at_the_api_port_on_loopback_and_nowhere_else(house: House) -> None:
    found = set().union(*(listeners(pid) for pid in house.pids()))
    assert found == {("tcp", "127.0.0.1", house.port)}
    assert len(house.pids()) >= 4, "supervisor, two front ends, engine"


def test_a_listener_that_nobody_asked_for_would_be_seen() -> None:
    code = (
        "import socket; s = socket.create_server(('0.0.0.0', 0)); u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)"
    )
    code += "; u.bind(('::1', 0)); print(s.getsockname()[1], u.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        tcp, udp = map(int, process.stdout.readline().split())
        assert listeners(process.pid) == {("tcp", "0.0.0.0", tcp), ("udp6", "::1", udp)}
        process.communicate("\n")


def unix_paths(pid: int) -> set[Path]:
    """Files of the Unix sockets that a process holds."""
    inodes = sockets_of(pid)
    lines = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return {Path(fields[7]) for fields in lines if len(fields) > 7 and fields[6] in inodes}


def test_sockets_lie_in_a_directory_that_nobody_else_may_enter(house: House) -> None:
    paths = set().union(*(unix_paths(pid) for pid in house.pids()))
    assert paths
    assert not [path for path in paths if str(path).startswith("@")], "abstract sockets have no permissions"
    for folder in {path.parent for path in paths}:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
        assert folder.stat().st_uid == os.getuid()


def shared_files(pid: int) -> set[Path]:
    """Files that a process maps to share with others, and can write."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {Path(fields[5]) for fields in lines if len(fields) > 5 and fields[1] == "rw-s"}


def test_shared_memory_is_readable_by_its_owner_only(house: House) -> None:
    files = {path for pid in house.pids() for path in shared_files(pid) if path.exists()}
    assert files, "the engine's beat is shared"
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_that_others_can_reach_needs_a_key(host: str) -> None:
    command = [sys.executable, "-m", "orcinus.cli", "serve", str(MODEL), "--host", host, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "ORCINUS_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert "--api-key" in done.stderr
    assert "--insecure-no-auth" in done.stderr
    assert "engine process" not in done.stderr
