"""Weights as integers of 8 or 4 bits: their form, and how a weight of floats becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[4, 8]
# Scales that are tried for a group of 4 bits, as shares of the one that cuts nothing off.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
# Elements quantised at a time: bounds the memory beside the weight.
_PIECE = 2**19


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are to be quantised: signed codes of `bits`, a scale for each `group` inputs (None: all of them)."""

    bits: Bits
    group: int | None


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight [out, in] as scale · (code - zero).

    Args:
        codes: uint8 [out, in], from 0 to 2^bits - 1.
        scales: float32 [out, groups].
        zeros: uint8 [out, groups]; None where all are in the middle, 2^(bits - 1).
        group: inputs that share a scale; the last group may have fewer. A multiple of 8 unless there is only one.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: Bits
    group: int

    @property
    def middle(self) -> int:
        """The code of 0 where there are no zeros."""
        return 1 << (self.bits - 1)

    def dequantised(self) -> Tensor:
        """float32 [out, in]: each value is one subtraction of integers and one product."""
        inputs = self.codes.shape[1]
        zeros = self.middle if self.zeros is None else _spread(self.zeros.short(), self.group, inputs)
        return (self.codes.short() - zeros).float().mul_(_spread(self.scales, self.group, inputs))

    def part(self, rows: slice, columns: slice) -> QuantizedWeight | None:
        """Some rows and columns; None where the columns cut a group and eight inputs wouldn't be together."""
        inputs = self.codes.shape[1]
        first, last, _ = columns.indices(inputs)
        if (first, last) == (0, inputs):
            return self.map_rows(lambda each: each[rows])
        if self.scales.shape[1] == 1:
            return replace(self.map_rows(lambda each: each[rows]), codes=self.codes[rows, columns], group=last - first)
        finer = math.gcd(self.group, first, last if last < inputs else 0)
        if finer < self.group:
            return self._finer(finer).part(rows, columns) if finer % 8 == 0 else None
        groups = slice(first // self.group, -(-last // self.group))
        zeros = None if self.zeros is None else self.zeros[rows, groups]
        return replace(self, codes=self.codes[rows, columns], scales=self.scales[rows, groups], zeros=zeros)

    def widened(self) -> QuantizedWeight:
        """The same values in 8 bits."""
        if self.bits == 8:
            return self
        return replace(
            self, codes=self.codes + (128 - 8), zeros=None if self.zeros is None else self.zeros + 120, bits=8
        )

    def _finer(self, group: int) -> QuantizedWeight:
        """The same values in groups of `group` inputs, a divisor of what they are in."""

        def repeated(each: Tensor) -> Tensor:
            return _spread(each, self.group, self.codes.shape[1])[:, ::group]

        zeros = None if self.zeros is None else repeated(self.zeros)
        return replace(self, scales=repeated(self.scales), zeros=zeros, group=group)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on `device`."""
        return self.map_rows(lambda each: each.to(device))

    def map_rows(self, change: Callable[[Tensor], Tensor]) -> QuantizedWeight:
        """The same with `change`, which orders or chooses rows, done to all that has rows."""
        zeros = None if self.zeros is None else change(self.zeros)
        return replace(self, codes=change(self.codes), scales=change(self.scales), zeros=zeros)


def quantize(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """The nearest codes of a weight [out, in]; of several scales for 4 bits, the one with the least squared error."""
    outputs, inputs = weight.shape
    group = inputs if scheme.group is None else scheme.group
    groups = -(-inputs // group)
    codes = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(outputs, groups, device=weight.device)
    rows = max(1, _PIECE // inputs)
    for start in range(0, outputs, rows):
        part = weight[start : start + rows].float()
        grouped = torch.nn.functional.pad(part, (0, groups * group - inputs)).view(len(part), groups, group)
        some_codes, some_scales = _quantize_groups(grouped, scheme.bits)
        codes[start : start + rows] = some_codes.flatten(1)[:, :inputs]
        scales[start : start + rows] = some_scales
    return QuantizedWeight(codes, scales, None, scheme.bits, group)


def join_rows(parts: list[QuantizedWeight]) -> QuantizedWeight | None:
    """Weights below each other, as 8 bits where only some are of 4; None where their groups differ."""
    if len({part.bits for part in parts}) > 1:
        parts = [part.widened() for part in parts]
    first = parts[0]
    if len({(part.bits, part.group, part.zeros is None) for part in parts}) > 1:
        return None
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=None if first.zeros is None else torch.cat([part.zeros for part in parts if part.zeros is not None]),
    )


def _quantize_groups(grouped: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """uint8 codes [rows, groups, group] and scales [rows, groups] of values of that shape."""
    middle = 1 << (bits - 1)
    largest = grouped.abs().amax(-1)
    shares = (1.0,) if bits == 8 else _SHARES
    best_error, best = torch.full_like(largest, torch.inf), torch.ones_like(largest)
    for share in shares:
        # Rounded as it may be stored, so that what is saved and loaded again has the same bits.
        scale = (largest * (share / (middle - 1))).bfloat16().float().where(largest > 0, 1)
        if len(shares) == 1:
            best = scale
            break
        error = _codes(grouped, scale, middle).mul_(scale[..., None]).sub_(grouped).square_().sum(-1)
        better = error < best_error
        best_error, best = error.where(better, best_error), scale.where(better, best)
    return _codes(grouped, best, middle).add_(middle).to(torch.uint8), best


def _codes(grouped: Tensor, scale: Tensor, middle: int) -> Tensor:
    """Signed codes, as floats."""
    return (grouped / scale[..., None]).round_().clamp_(-middle if middle == 8 else 1 - middle, middle - 1)


def _spread(per_group: Tensor, group: int, inputs: int) -> Tensor:
    """[out, groups] → [out, in]."""
    return per_group if per_group.shape[1] == 1 else per_group.repeat_interleave(group, 1)[:, :inputs]
