"""A JSON object from a file, read key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orcinus.errors import CheckpointError, nearest

# Keys whose null says that the model does without, not that the family's default holds.
_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """A JSON object from a file, read key by key; every complaint names the file. A null counts as missing."""

    path: Path
    values: Mapping[str, object]

    @classmethod
    def read(cls, path: Path) -> ConfigFields:
        """The object in `path`.

        Raises:
            CheckpointError: missing or malformed.
        """
        try:
            values = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: a checkpoint folder holds config.json and .safetensors files. Point to the folder "
                "that `save_pretrained` wrote, or complete the download."
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{path} can't be read ({error}); write or download it again.") from error
        return cls(path, values)

    def error(self, complaint: str) -> CheckpointError:
        """To be raised: the complaint, after the file's name."""
        return CheckpointError(f"{self.path}: {complaint}")

    def with_defaults(self, defaults: Mapping[str, object]) -> ConfigFields:
        """The same with missing keys filled in."""
        given = {key: value for key, value in self.values.items() if value is not None or key in _NULLABLE}
        return ConfigFields(self.path, {**defaults, **given})

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{key} is {value!r}; a positive integer is needed.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Any number."""
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; a number is needed.")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self.error(f"{key} is {value}; a number above 0 is needed.")
        return value

    def optional_positive(self, key: str) -> float | None:
        """Likewise, or None for null and for no key."""
        return None if self.values.get(key) is None else self.positive(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}; true or false is needed.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(f"{key} is {value!r}; a string is needed.")
        return value

    def inner(self, key: str) -> ConfigFields:
        """An object within the object; empty if missing."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.error(f"{key} is {value!r}; an object is needed.")
        return ConfigFields(self.path, value)

    def _get(self, key: str, default: object) -> object:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self.error(f"{key} is missing{nearest(key, self.values)}; write it as the model's authors do.")
        return value
