"""A short run of the fault script: kills, stops and hang-ups under load, every client's history checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
SCRIPT = Path(__file__).parents[2] / "tools" / "faults.py"


def test_no_stream_is_lost_doubled_or_altered_and_nothing_is_left_behind() -> None:
    arguments = ["--streams", "100", "--faults", "25", "--kinds", "8", "--seed", "3"]
    ended = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "complaints: 0" in ended.stdout
