"""How a checkpoint's states become one vector, as Sentence Transformers write it beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from orcinus.core.request import PoolingType
from orcinus.errors import CheckpointError, nearest
from orcinus.models.fields import ConfigFields

_POOLINGS: Mapping[str, PoolingType] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
# What Sentence Transformers may run after the model and be served all the same; vectors have length 1 here anyway.
_MODULES = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> PoolingType | None:
    """From `folder`/1_Pooling/config.json, or None without that file.

    Raises:
        CheckpointError: malformed, several at once, or one that isn't served; a further step in `folder`/modules.json
            that isn't, whose neglect would give other vectors.
    """
    _refuse_further_steps(folder / "modules.json")
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    fields = ConfigFields.read(path)
    chosen = [key for key in fields.values if key.startswith("pooling_mode_") and fields.flag(key)]
    if len(chosen) != 1:
        raise fields.error(f"{' and '.join(chosen) or 'no pooling mode'} is true; one of them is needed.")
    if chosen[0] not in _POOLINGS:
        served = ", ".join(_POOLINGS)
        raise fields.error(f"{chosen[0]} is not served{nearest(chosen[0], _POOLINGS)}; {served} are.")
    return _POOLINGS[chosen[0]]


def _refuse_further_steps(path: Path) -> None:
    try:
        modules = msgspec.json.decode(path.read_bytes(), type=list[dict[str, object]])
    except FileNotFoundError:
        return
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); write or download it again.") from error
    for module in modules:
        if (name := str(module.get("type")).rpartition(".")[2]) not in _MODULES:
            raise CheckpointError(f"{path}: the step {name} after the model isn't served; {', '.join(_MODULES)} are.")
