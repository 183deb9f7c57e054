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
class YarnScaling:
    """YaRN (ICLR '24): dimensions that turn often within the trained context are kept, slow ones stretched by `factor`.

    Args:
        attention_factor: cosines and sines are multiplied by it, which makes attention more or less sharp.
        beta_fast: dimensions with more turns than this within `original_positions` are kept.
        beta_slow: those with fewer turns are stretched; a ramp between.
        truncate: the ramp's ends are whole dimensions.
    """

    factor: float
    attention_factor: float
    beta_fast: float
    beta_slow: float
    original_positions: int
    truncate: bool


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """Dynamic NTK: beyond the trained context the base grows with the length of the sequence.

    Elsewhere that is the longest sequence that a model has seen so far, so that a token's rotation depends on its
    neighbours and on how much of the prompt ran at once. Here position p has the rotation of a sequence that ends
    there, of length p + 1. That is what others give a sequence that grows token by token, and it is the same in any
    company, chunking and preemption.
    """

    factor: float
    original_positions: int


Scaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling


@dataclass(frozen=True, slots=True)
class Rotary:
    """Which rotation a model was trained with: of a head's first `dim` dimensions, and one more if that is odd."""

    dim: int
    theta: float
    scaling: Scaling | None = None

    def table(self, num_positions: int, device: torch.device) -> Tensor:
        """Cosines and sines, float32 [num_positions, 2, (dim + 1) // 2]."""
        positions = torch.arange(num_positions, dtype=torch.float32)[:, None]
        angles = positions * self._scaled(positions)
        table = torch.stack((angles.cos(), angles.sin()), dim=1)
        if isinstance(self.scaling, YarnScaling):
            table *= self.scaling.attention_factor
        return table.to(device)

    def _scaled(self, positions: Tensor) -> Tensor:
        """Frequencies, [half] or, where positions [positions, 1] have their own, [positions, half]."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.int64).to(torch.float32) / self.dim
        periods, scaling = self.theta**exponents, self.scaling
        if isinstance(scaling, LinearScaling):
            return 1.0 / periods / scaling.factor
        if isinstance(scaling, Llama3Scaling):
            return _llama3(1.0 / periods, scaling)
        if isinstance(scaling, YarnScaling):
            return _yarn(periods, self.theta, self.dim, scaling)
        if isinstance(scaling, DynamicScaling):
            return 1.0 / (_grown(self.theta, positions + 1, self.dim, scaling) ** exponents)
        return 1.0 / periods


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = (scaling.original_positions / f for f in (scaling.low_freq_factor, scaling.high_freq_factor))
    stretched = frequencies / scaling.factor
    share = scaling.original_positions / wavelengths - scaling.low_freq_factor
    share = share / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - share) * stretched + share * frequencies
    far = torch.where(wavelengths > longest, stretched, between)
    return torch.where(wavelengths < shortest, frequencies, far)


def _yarn(periods: Tensor, theta: float, dim: int, scaling: YarnScaling) -> Tensor:
    def dimension(turns: float) -> float:
        """The one that turns so often within the trained context."""
        return dim * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = last - first if last != first else 0.001
    kept = 1 - ((torch.arange(len(periods), dtype=torch.float32) - first) / width).clamp(0, 1)
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _grown(theta: float, lengths: Tensor, dim: int, scaling: DynamicScaling) -> Tensor:
    """The base for each length."""
    factor, original = scaling.factor, scaling.original_positions
    growth = factor * lengths.clamp(min=original) / original - (factor - 1)
    return theta * growth ** (dim / (dim - 2))
