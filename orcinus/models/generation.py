"""What a checkpoint's authors recommend for sampling, and where its answers end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orcinus.models.config import ConfigFields


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """From generation_config.json; None where it says nothing.

    Args:
        eos_token_ids: tokens that end an answer, the likeliest first named; empty if the checkpoint names none.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """Read generation_config.json; config.json stands in for missing end-of-sequence tokens.

    Raises:
        CheckpointError: a malformed file.
    """
    path = folder / "generation_config.json"
    fields = ConfigFields.read(path) if path.is_file() else ConfigFields(path, {})
    top_k = _number(fields, "top_k")
    return GenerationDefaults(
        eos_token_ids=_token_ids(fields) or _token_ids(ConfigFields.read(folder / "config.json")),
        temperature=_number(fields, "temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=_number(fields, "top_p"),
        min_p=_number(fields, "min_p"),
        repetition_penalty=_number(fields, "repetition_penalty"),
    )


def _number(fields: ConfigFields, key: str) -> float | None:
    return None if fields.values.get(key) is None else fields.number(key)


def _token_ids(fields: ConfigFields) -> tuple[int, ...]:
    """`eos_token_id`, one or a list; -1 stands for none in some old files."""
    value = fields.values.get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [token for token in listed if isinstance(token, int) and not isinstance(token, bool)]
    if len(ids) < len(listed):
        raise fields.error(f"eos_token_id is {value!r}; a token id or a list of them is needed.")
    return tuple(token for token in ids if token >= 0)
