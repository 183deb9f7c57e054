"""How checkpoints store weights of integers: which tensors make one up, and what they mean.

A layout goes by the tensors that are there and by their shapes, not by the lists of modules in config.json: what isn't
stored as integers is read as floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.kernels.quantized import Bits, QuantizedWeight, Scheme, quantize
from orcinus.models.fields import ConfigFields
from orcinus.models.quantized.gguf import GgufLayout
from orcinus.models.stored import StoredTensor

# How AWQ orders the eight columns of a word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# Where inputs of a group don't lie together: as 8 bits, whose error is a twentieth of that of 4.
_REGROUPED = Scheme(8, 32)


class Layout(Protocol):
    """Reads one way of storing weights of integers."""

    def parts(self, name: str, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """The stored tensors that make up weight `name`; none if it is stored as floats."""
        ...

    def unused(self, name: str) -> bool:
        """Tensor `name` says nothing that is needed here."""
        ...

    def weight(
        self, shape: tuple[int, int], parts: tuple[Tensor, ...], stored: tuple[StoredTensor, ...]
    ) -> QuantizedWeight | Tensor:
        """The weight of `shape` [out, in] from its parts, as they are stored; floats where it turns out to be of them.

        Raises:
            CheckpointError: parts that contradict each other.
        """
        ...


class CompressedTensors:
    """compressed-tensors: int-quantized and pack-quantized, by channel or group, with zeros or without."""

    def parts(self, name: str, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """See `Layout.parts`."""
        if f"{name}.weight_scale" not in tensors:
            return ()
        codes = f"{name}.weight_packed" if f"{name}.weight_packed" in tensors else f"{name}.weight"
        optional = (f"{name}.weight_zero_point", f"{name}.weight_g_idx")
        return (codes, f"{name}.weight_scale", *(part for part in optional if part in tensors))

    def unused(self, name: str) -> bool:
        """The shape is config.json's; scales of activations are found for each row."""
        return name.endswith((".weight_shape", ".input_scale", ".input_zero_point"))

    def weight(
        self, shape: tuple[int, int], parts: tuple[Tensor, ...], stored: tuple[StoredTensor, ...] = ()
    ) -> QuantizedWeight:
        """See `Layout.weight`."""
        packed, scales, *rest = parts
        zeros = next((part for part in rest if part.dim() == 2), None)
        index = next((part for part in rest if part.dim() == 1), None)
        bits = 8 if packed.dtype is torch.int8 else _bits_of(packed, shape[1])
        codes = _unsigned(packed) if packed.dtype is torch.int8 else _unpacked(packed, bits)[:, : shape[1]]
        if zeros is not None:
            zeros = _unsigned(zeros) if zeros.dtype is torch.int8 else _unpacked(zeros.t().contiguous(), bits).t()
            zeros = zeros[: shape[0]]
        return _checked(shape, codes, scales, zeros, bits, index)


class Gptq:
    """GPTQ of 4 or 8 bits: words along the inputs, a group for each input."""

    def __init__(self, fields: ConfigFields) -> None:
        # The first version stored zeros less one.
        self._zero_shift = 0 if fields.text("checkpoint_format", default="gptq") == "gptq_v2" else 1

    def parts(self, name: str, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """See `Layout.parts`."""
        if f"{name}.qweight" not in tensors:
            return ()
        index = (f"{name}.g_idx",) if f"{name}.g_idx" in tensors else ()
        return (f"{name}.qweight", f"{name}.scales", f"{name}.qzeros", *index)

    def unused(self, name: str) -> bool:
        """See `Layout.unused`."""
        return False

    def weight(
        self, shape: tuple[int, int], parts: tuple[Tensor, ...], stored: tuple[StoredTensor, ...] = ()
    ) -> QuantizedWeight:
        """See `Layout.weight`."""
        words, scales, zero_words, *index = parts
        bits = _bits_of(words.t(), shape[1])
        codes = _unpacked(words.t().contiguous(), bits)
        zeros = _unpacked(zero_words.contiguous(), bits).t() + self._zero_shift
        return _checked(shape, codes, scales.t(), zeros, bits, index[0] if index else None)


class Awq:
    """AWQ's gemm version: words along the outputs, in an order of its own, 4 bits."""

    def parts(self, name: str, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """See `Layout.parts`."""
        return (f"{name}.qweight", f"{name}.scales", f"{name}.qzeros") if f"{name}.qweight" in tensors else ()

    def unused(self, name: str) -> bool:
        """See `Layout.unused`."""
        return False

    def weight(
        self, shape: tuple[int, int], parts: tuple[Tensor, ...], stored: tuple[StoredTensor, ...] = ()
    ) -> QuantizedWeight:
        """See `Layout.weight`."""
        words, scales, zero_words = parts
        return _checked(shape, _in_order(words).t(), scales.t(), _in_order(zero_words).t(), 4, None)


def layout_of(fields: ConfigFields) -> Layout | None:
    """What config.json's quantization_config asks for; None for a checkpoint of floats.

    Raises:
        CheckpointError: a way of quantising that isn't read; it names those that are.
    """
    said = fields.inner("quantization_config")
    if not said.values:
        return None
    method = said.text("quant_method", default="none")
    if method == "compressed-tensors":
        return CompressedTensors()
    if method == "gptq" and said.integer("bits") in (4, 8):
        return Gptq(said)
    if method == "awq" and said.integer("bits") == 4 and said.text("version", default="gemm").lower() == "gemm":
        return Awq()
    if method == "gguf":
        return GgufLayout(fields)
    raise fields.error(
        f"weights quantised by {method!r} in this form (quantization_config) aren't served; compressed-tensors, gptq "
        "of 4 or 8 bits and awq (gemm, 4 bits) are. Use one of them, or the float checkpoint with --quantization."
    )


def _checked(
    shape: tuple[int, int], codes: Tensor, scales: Tensor, zeros: Tensor | None, bits: Bits, index: Tensor | None
) -> QuantizedWeight:
    """The weight, once its parts are known to fit together."""
    outputs, inputs = shape
    groups = scales.shape[-1] if scales.dim() == 2 else 1
    group = -(-inputs // max(groups, 1))
    scales = scales.float().reshape(-1, groups)
    scales = scales.expand(outputs, groups) if len(scales) == 1 else scales
    fits = codes.shape == shape and scales.shape == (outputs, groups) and group * groups == inputs
    if not fits or (zeros is not None and zeros.shape != scales.shape):
        found = [list(part.shape) for part in (codes, scales, zeros) if part is not None]
        raise CheckpointError(
            f"a quantised weight of {list(shape)} is stored with codes, scales and zeros of {found}: they don't belong "
            "together, so config.json is another model's or the file is damaged; download it again."
        )
    weight = QuantizedWeight(
        codes.contiguous(), scales.contiguous(), None if zeros is None else zeros.contiguous(), bits, group
    )
    if index is None or bool((index == torch.arange(inputs) // group).all()) or bool((index < 0).all()):
        return weight
    return _regrouped(weight, index.long())


def _regrouped(weight: QuantizedWeight, index: Tensor) -> QuantizedWeight:
    """A weight whose input k belongs to group index[k], in groups of neighbours."""
    zeros = weight.middle if weight.zeros is None else weight.zeros.short()[:, index]
    return quantize((weight.codes.short() - zeros).float() * weight.scales[:, index], _REGROUPED)


def _bits_of(words: Tensor, inputs: int) -> Bits:
    """Of codes in 32-bit words [out, words]."""
    widths: dict[int, Bits] = {-(-inputs // 8): 4, -(-inputs // 4): 8}
    if words.shape[1] not in widths:
        complaint = f"a quantised weight of {inputs} inputs is stored in {words.shape[1]} words a row"
        raise CheckpointError(f"{complaint}, which is neither 4 nor 8 bits; use such a checkpoint, or one of floats")
    return widths[words.shape[1]]


def _unpacked(words: Tensor, bits: Bits) -> Tensor:
    """uint8 [rows, columns] from 32-bit words [rows, words], the first column in the lowest bits."""
    octets = words.view(torch.uint8)
    return octets if bits == 8 else torch.stack((octets & 15, octets >> 4), -1).flatten(1)


def _unsigned(signed: Tensor) -> Tensor:
    """int8 from -128 as uint8 from 0."""
    return (signed.short() + 128).to(torch.uint8)


def _in_order(words: Tensor) -> Tensor:
    """uint8 [rows, columns] of AWQ's words."""
    return _unpacked(words.contiguous(), 4).view(len(words), -1, 8)[..., _AWQ_ORDER].flatten(1)
