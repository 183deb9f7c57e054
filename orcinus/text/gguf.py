"""A GGUF file as a checkpoint folder: config and tokenizer are unpacked once, the weights stay where they are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from orcinus.errors import CheckpointError

UNPACK_TIMEOUT = 300.0


def with_folder(model: str) -> str:
    """The folder that stands for a GGUF file; any other `model` as it is.

    Raises:
        CheckpointError: a file that can't be unpacked, or no package to do it with.
    """
    path = Path(model)
    if path.suffix != ".gguf" or not path.is_file():
        return model
    path = path.resolve()
    facts = path.stat()
    key = hashlib.sha256(f"{path} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:16]
    # The last part is what clients call the model.
    folder = Path.home() / ".cache" / "orcinus" / "gguf" / key / path.stem
    if not folder.exists():
        _unpack(path, folder)
    return str(folder)


def _unpack(path: Path, folder: Path) -> None:
    """The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        made = Path(unfinished) / folder.name
        made.mkdir()
        command = [sys.executable, "-m", "orcinus.models.quantized.gguf_folder", str(path), str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=UNPACK_TIMEOUT, check=False)
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CheckpointError(
                f"{path} can't be unpacked ({why}); it needs `pip install 'orcinus-llm[gguf]'` and a whole file"
            )
        (made / "model.gguf").symlink_to(path)
        if not folder.exists():
            made.rename(folder)
