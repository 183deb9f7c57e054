"""A real Chromium, and the program as a user starts it, over the model in the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from house import MODEL, House

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Debian's Chromium, driven by Playwright, which downloads nothing. Its event loop must end before other modules'
    tests start theirs."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with playwright.sync_playwright() as driver:
        # In a container there are no namespaces for a sandbox, and little shared memory.
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """A server with the keys that the test module names in KEYS."""
    key = getattr(request.module, "KEY", "")
    command = [sys.executable, "-m", "orcinus.cli", "serve", str(MODEL), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "ORCINUS_API_KEY": key}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"Serving on (\S+)", line):
                break
        else:
            raise AssertionError("".join(said))
        try:
            yield House(process, found[1])
        finally:
            process.terminate()
            process.stderr.read()
