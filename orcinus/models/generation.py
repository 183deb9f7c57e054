"""Where a checkpoint's answers end."""

from __future__ import annotations

from pathlib import Path

from orcinus.models.fields import ConfigFields


def load_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer, from generation_config.json, else from config.json; empty if neither names one.

    Raises:
        CheckpointError: a malformed file.
    """
    path = folder / "generation_config.json"
    fields = ConfigFields.read(path) if path.is_file() else ConfigFields(path, {})
    return _token_ids(fields) or _token_ids(ConfigFields.read(folder / "config.json"))


def _token_ids(fields: ConfigFields) -> tuple[int, ...]:
    """`eos_token_id`, one or a list; -1 stands for none in some old files."""
    value = fields.values.get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = [token for token in listed if isinstance(token, int) and not isinstance(token, bool)]
    if len(ids) < len(listed):
        raise fields.error(f"eos_token_id is {value!r}; a token id or a list of them is needed.")
    return tuple(token for token in ids if token >= 0)
