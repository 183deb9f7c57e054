"""What a real server decided is decided again: recorded traffic with aborts and several answers replays exactly."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from real_server import MODEL, start, url_of

pytestmark = pytest.mark.slow


def test_a_recorded_hour_in_small_replays_to_the_same_decisions(tmp_path: Path) -> None:
    recording = tmp_path / "run.jsonl"
    # However slow the machine, nobody is turned away: all must be on the record.
    options = ["--threads", "1", "--record", str(recording), "--kv-cache-gib", "0.01", "--max-queue-seconds", "600"]
    server = start(str(MODEL), "--port", "0", *options)
    url = url_of(server)
    threads = [threading.Thread(target=ask, args=(url, number)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=60) == 0
    assert server.stderr is not None
    server.stderr.close()
    assert recording.stat().st_mode & 0o077 == 0
    content = recording.read_bytes()
    assert b"dragon" not in content
    replayed = replay(recording)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    # One decision changed by hand is found.
    lines = content.splitlines()
    place = next(index for index in range(len(lines)) if b'"type":"abort"' in lines[index])
    forged = tmp_path / "forged.jsonl"
    forged.write_bytes(b"\n".join(lines[:place] + lines[place + 1 :]) + b"\n")
    assert replay(forged).returncode == 1


def ask(url: str, number: int) -> None:
    """Streams, some of which are left, with shared prompts and several answers."""
    body = {
        "prompt": "Once upon a time there was a dragon. " * (1 + number % 3 * 8),
        "max_tokens": 16 + 8 * (number % 5),
        "n": 1 + number % 2,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as stream:
        assert stream.status_code == 200
        for line_number, _ in enumerate(stream.iter_lines()):
            if number % 4 == 3 and line_number == 8:
                return


def replay(recording: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orcinus.cli", "replay", str(recording)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
