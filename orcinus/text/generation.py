"""What a checkpoint's authors recommend for sampling."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orcinus.core.request import SamplingParams
from orcinus.errors import CheckpointError, InvalidRequest


class GenerationDefaults(msgspec.Struct, frozen=True):
    """What a checkpoint's generation_config.json recommends; a request's own values win."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def load(cls, folder: Path) -> GenerationDefaults:
        """Of a checkpoint; without the file nothing is recommended.

        Raises:
            CheckpointError: a file that can't be read, or recommends what can't be served.
        """
        file = folder / "generation_config.json"
        if not file.is_file():
            return cls()
        try:
            defaults = msgspec.json.decode(file.read_bytes(), type=cls)
            defaults.params()
        except (OSError, ValueError, RecursionError, InvalidRequest) as error:
            raise CheckpointError(f"{file} is not a generation configuration that can be used: {error}") from error
        return defaults

    def as_params(self) -> dict[str, object]:
        """The values that are there, under their names in SamplingParams."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}

    def params(self) -> SamplingParams:
        """The values that are there, and our own defaults for the rest."""
        return msgspec.convert(self.as_params(), SamplingParams)
