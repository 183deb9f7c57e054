"""`orcinus quantize`: write a quantised copy of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def quantize(model: Path, /, *, to: Literal["int8", "int4"] = "int8", output: Path) -> int:
    """Write a copy of a checkpoint with weights of integers, which loads without being quantised again.

    The layout is that of compressed-tensors: int8 by output channel, int4 by groups of 32 inputs. Others read it.

    Args:
        model: folder of a checkpoint of floats.
        to: int8 or int4.
        output: folder to write; it must not exist.
    """
    # Loads torch, which no other command should pay for.
    from orcinus.models.quantized.recipes import RECIPES
    from orcinus.models.quantized.save import save_quantized

    written = save_quantized(model, RECIPES[to], output)
    print(f"{output}: {written / 1e6:.1f} MB; serve it with `orcinus serve {output}`")
    return 0
