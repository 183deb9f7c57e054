"""What `pip install orcinus-llm` alone brings is enough to serve: no part of it asks for an extra's packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# Import names that differ from the packages' names.
NAMES = {
    "compressed-tensors": "compressed_tensors",
    "import-linter": "importlinter",
    "pytest-timeout": "pytest_timeout",
}


def extra_modules() -> list[str]:
    """Those of packages that only extras name."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    packages = {each.split("==")[0] for packages in extras.values() for each in packages}
    return sorted(NAMES.get(each, each) for each in packages)


@pytest.mark.parametrize(
    "module",
    ["orcinus", "orcinus.cli", "orcinus.engine.process", "orcinus.executor.worker_process", "orcinus.server.front"],
)
def test_a_part_of_the_server_loads_without_any_extra(module: str) -> None:
    # None in `sys.modules` makes an import fail as if the package weren't there.
    code = f"import sys; sys.modules.update(dict.fromkeys({extra_modules()!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
