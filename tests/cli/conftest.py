"""`orcinus` in this process: its arguments, environment and file go in, its exit code and words come out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from said import MODEL, Check, Said

from orcinus.cli import run


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    for variable in [name for name in os.environ if name.startswith("ORCINUS_")]:
        monkeypatch.delenv(variable)

    def check(*flags: str, toml: str | None = None, environment: Mapping[str, str] | None = None) -> Said:
        arguments = list(flags)
        if toml is not None:
            file = tmp_path / "orcinus.toml"
            file.touch(mode=0o600)
            file.write_text(toml)
            arguments += ["--config", str(file)]
        with monkeypatch.context() as patch:
            # The program never loads it; where another test has, the command line would check texts as other types.
            patch.delitem(sys.modules, "pydantic", raising=False)
            # A port that nobody uses, and a model, unless the test says otherwise.
            for variable, value in {"ORCINUS_MODEL": str(MODEL), "ORCINUS_PORT": "0", **(environment or {})}.items():
                patch.setenv(variable, value)
            code = run(["serve", "--check", *arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return check
