"""Rotary position embedding: the frequencies of each known scaling, as one table of cosines and sines.

Computed in float32 in the order of the reference implementation, whose rounding of large angles a checkpoint was
trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's: wavelengths beyond the trained context are stretched by `factor`, short ones kept, a ramp between.

    `original_positions` is the context that the unscaled frequencies were trained for.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class Rotary:
    """Which rotation a model was trained with. `dim` leading dimensions of a head are rotated."""

    dim: int
    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None

    def table(self, num_positions: int, device: torch.device) -> Tensor:
        """Cosines and sines, float32 [num_positions, 2, dim / 2]."""
        frequencies = _scaled(self._frequencies(), self.scaling)
        angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies
        return torch.stack((angles.cos(), angles.sin()), dim=1).to(device)

    def _frequencies(self) -> Tensor:
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64).to(torch.float32) / self.dim
        return 1.0 / (self.theta**exponents)


def _scaled(frequencies: Tensor, scaling: LinearScaling | Llama3Scaling | None) -> Tensor:
    if scaling is None:
        return frequencies
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = (scaling.original_positions / f for f in (scaling.low_freq_factor, scaling.high_freq_factor))
    stretched = frequencies / scaling.factor
    share = scaling.original_positions / wavelengths - scaling.low_freq_factor
    share = share / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - share) * stretched + share * frequencies
    far = torch.where(wavelengths > longest, stretched, between)
    return torch.where(wavelengths < shortest, frequencies, far)
