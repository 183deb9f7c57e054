"""What `--quantization` means: which products become integers at load, and of what form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orcinus.kernels.quantized import Scheme

RecipeName = Literal["int8", "int4"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What becomes of a model's products. Routers of experts and classifiers are small and stay as they are.

    Args:
        layers: the products within layers.
        head: the vocabulary head, which is read once a token too and whose errors nothing evens out afterwards.
    """

    name: RecipeName
    layers: Scheme
    head: Scheme


RECIPES: Mapping[RecipeName, Recipe] = {
    "int8": Recipe("int8", Scheme(8, None), Scheme(8, None)),
    "int4": Recipe("int4", Scheme(4, 32), Scheme(8, 32)),
}
