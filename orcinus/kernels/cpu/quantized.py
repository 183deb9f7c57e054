"""Weights of 8 and 4 bits in the form that the compiled library reads."""

from __future__ import annotations

import ctypes
from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from orcinus.errors import ConfigurationError
from orcinus.kernels import PackedLinear
from orcinus.kernels.quantized import QuantizedWeight


class CodeForm(ctypes.Structure):
    """As in linear_quantized.h."""

    _fields_ = (
        ("bits", c_int64),
        ("group", c_int64),
        ("zeros", c_int64),
        ("out_features", c_int64),
        ("in_features", c_int64),
    )


@dataclass(frozen=True, slots=True)
class PackedCodes:
    """A quantised weight as the product reads it; the structure must outlive every call, so it is kept here."""

    form: CodeForm
    data: Tensor

    @property
    def nbytes(self) -> int:
        """Codes, scales and zeros, padded to whole panels."""
        return self.data.nbytes

    @property
    def form_address(self) -> int:
        """Of the structure."""
        return ctypes.addressof(self.form)


def pack_codes(library: ctypes.CDLL, weight: QuantizedWeight, bias: Tensor | None) -> PackedLinear:
    """Prepare a quantised weight: panels of output columns in the order in which the product reads them."""
    out_features, in_features = weight.codes.shape
    group = in_features if weight.scales.shape[1] == 1 else weight.group
    if group % 8 and group != in_features:
        raise ConfigurationError(f"a weight with a scale for each {group} inputs can't be served; 8, 16, 24, ... can")
    codes, scales = weight.codes.contiguous(), weight.scales.contiguous()
    zeros = None if weight.zeros is None else weight.zeros.contiguous()
    form = CodeForm(weight.bits, group, zeros is not None, out_features, in_features)
    data = torch.empty(library.orcinus_code_bytes(ctypes.addressof(form)), dtype=torch.uint8)
    library.orcinus_pack_codes(
        ctypes.addressof(form), codes.data_ptr(), scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(),
        data.data_ptr(),
    )  # fmt: skip
    packed_bias = None if bias is None else bias.float().contiguous()
    return PackedLinear(out_features, in_features, PackedCodes(form, data), packed_bias, weight.bits)
