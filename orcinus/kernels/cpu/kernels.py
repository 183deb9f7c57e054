"""`CpuKernels`: the kernel interface over the compiled library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from orcinus.errors import ConfigurationError, PlanError
from orcinus.kernels import Activation, AttentionBatch, AttentionSpec, LayerCall, PackedLinear
from orcinus.kernels.cpu.library import NativeBuildError, load, runnable
from orcinus.kernels.cpu.quantized import PackedCodes, pack_codes
from orcinus.kernels.cpu.recording import Notes
from orcinus.kernels.cpu.tape import taped
from orcinus.kernels.quantized import QuantizedWeight

# Grows with whatever changes a block's layout or a row's bits: fingerprints name it, and nobody reads another's KV.
_REVISION = 2
# As in kernels.cpp.
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
_BAD_POSITION = 3
_ACTIVATION_CODES: dict[Activation, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}

_SIGNATURES: dict[str, tuple[type | None, str]] = {
    # Result, then the arguments: i int64, f float, p pointer.
    "orcinus_packed_elements": (c_int64, "iii"),
    "orcinus_pack": (None, "ipiiipi"),
    "orcinus_linear": (c_int32, "iipppiiiip"),
    "orcinus_code_bytes": (c_int64, "p"),
    "orcinus_pack_codes": (None, "ppppp"),
    "orcinus_quantized_linear": (c_int32, "piipppiip"),
    "orcinus_rms_norm": (None, "iippfiiip"),
    "orcinus_layer_norm": (None, "iipppfiiip"),
    "orcinus_add": (None, "ippip"),
    "orcinus_activate": (None, "iiipiiip"),
    "orcinus_place": (c_int32, "ipppiiiiippiipppiiii"),
    "orcinus_attention": (c_int32, "ippiippipppiip"),
    "orcinus_enable": (c_int32, ""),
    "orcinus_replay": (c_int32, "pipip"),
}
_ARGUMENT_TYPES = {"i": c_int64, "f": c_float, "p": c_void_p}


class _AttentionLayer(ctypes.Structure):
    """As in attention.h."""

    _fields_ = (
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("causal", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("soft_cap", c_float),
    )


# Kept for good: tapes hold their addresses.
@cache
def _attention_layer(spec: AttentionSpec, block_size: int) -> _AttentionLayer:
    return _AttentionLayer(
        spec.num_heads, spec.num_kv_heads, spec.head_dim, block_size, spec.causal, spec.window or 0, spec.scale,
        spec.soft_cap or 0.0,
    )  # fmt: skip


class CpuKernels:
    """Implements `KernelSet` for float32 and bfloat16 on a CPU, plus `linear_float32`.

    Args:
        isa: "amx", "avx512bf16", "avx512" or "avx2"; the best that the processor offers if None. It is part of `name`,
            because the instruction set decides the bits. For tests, "amx-emulated" is AMX's code without its registers.

    Raises:
        NativeBuildError: the processor lacks the instruction set, or the library can't be built.
    """

    def __init__(self, isa: str | None = None) -> None:
        offered = runnable()
        if not offered or (isa is not None and isa not in offered):
            raise NativeBuildError(f"this processor doesn't offer {isa or 'AVX2'}; it offers {list(offered) or 'none'}")
        self.isa = isa or offered[0]
        self.name = f"cpu{_REVISION}-{self.isa}"
        self._library = load(self.isa)
        # What layers call: the library, but while a tape is made of them.
        self._calls: ctypes.CDLL | Notes = self._library
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, [_ARGUMENT_TYPES[a] for a in arguments]
        if self._library.orcinus_enable() != 0:
            raise NativeBuildError("Linux refuses this process the AMX tile registers")

    def pack(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Prepare `weight` [out, in]: panels of output columns in the order in which the product reads them."""
        out_features, in_features = weight.shape
        weight = _unit_stride(weight)
        dtype = _code(weight.dtype)
        elements = self._library.orcinus_packed_elements(dtype, out_features, in_features)
        packed = torch.empty(elements, dtype=weight.dtype)
        self._library.orcinus_pack(
            dtype, weight.data_ptr(), weight.stride(0), out_features, in_features, packed.data_ptr(), packed.nbytes
        )
        return PackedLinear(out_features, in_features, packed, None if bias is None else bias.float().contiguous())

    def pack_codes(self, weight: QuantizedWeight, bias: Tensor | None) -> PackedLinear:
        """Prepare a quantised weight; the product rounds its rows to 8 bits too, each by itself and group by group."""
        return pack_codes(self._library, weight, bias)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → [tokens, out], in x's dtype. Each row's bits are those that it has alone."""
        return self._product(x, packed, x.dtype)

    def linear_float32(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """[tokens, in] → float32 [tokens, out]: the sums before they are rounded, for the vocabulary."""
        return self._product(x, packed, torch.float32)

    def _product(self, x: Tensor, packed: PackedLinear, dtype: torch.dtype) -> Tensor:
        weights = packed.data
        if isinstance(weights, PackedCodes):
            return self._quantized_product(x, packed, weights, dtype)
        if x.dtype is not weights.dtype or x.shape[-1] != packed.in_features:
            weight = f"{weights.dtype} [{packed.out_features}, {packed.in_features}]"
            raise ConfigurationError(f"no product of {x.dtype} {list(x.shape)} with a weight of {weight}")
        x = _unit_stride(x)
        rows = x.shape[0]
        out = torch.empty(rows, packed.out_features, dtype=dtype)
        self._calls.orcinus_linear(
            _code(x.dtype), _code(dtype), x.data_ptr(), weights.data_ptr(), _address(packed.bias), rows,
            packed.in_features, packed.out_features, x.stride(0), out.data_ptr(),
        )  # fmt: skip
        return out

    def _quantized_product(self, x: Tensor, packed: PackedLinear, codes: PackedCodes, dtype: torch.dtype) -> Tensor:
        if x.shape[-1] != packed.in_features:
            weight = f"{codes.form.bits}-bit [{packed.out_features}, {packed.in_features}]"
            raise ConfigurationError(f"no product of {list(x.shape)} with a weight of {weight}")
        x = _unit_stride(x)
        out = torch.empty(x.shape[0], packed.out_features, dtype=dtype)
        self._calls.orcinus_quantized_linear(
            codes.form_address, _code(x.dtype), _code(dtype), x.data_ptr(), codes.data.data_ptr(),
            _address(packed.bias), x.shape[0], x.stride(0), out.data_ptr(),
        )  # fmt: skip
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm over the last axis, computed in float32, in x's dtype. Any leading shape."""
        rows, stride, x = _rows(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        self._calls.orcinus_rms_norm(
            _code(x.dtype), _code(weight.dtype), x.data_ptr(), weight.data_ptr(), eps, rows, x.shape[-1], stride,
            out.data_ptr(),
        )  # fmt: skip
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """Layer norm over the last axis, computed in float32, in x's dtype. `bias` has the weight's dtype."""
        rows, stride, x = _rows(x)
        out = torch.empty(x.shape, dtype=x.dtype)
        shift = None if bias is None else bias.to(weight.dtype)
        self._calls.orcinus_layer_norm(
            _code(x.dtype), _code(weight.dtype), x.data_ptr(), weight.data_ptr(), _address(shift), eps, rows,
            x.shape[-1], stride, out.data_ptr(),
        )  # fmt: skip
        return out

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y of one shape and dtype. Torch's own would wake its threads, which the kernels have no use for."""
        x, y = x.contiguous(), y.contiguous()
        assert (x.shape, x.dtype) == (y.shape, y.dtype), "read as one run of elements"
        out = torch.empty(x.shape, dtype=x.dtype)
        self._calls.orcinus_add(_code(x.dtype), x.data_ptr(), y.data_ptr(), x.numel(), out.data_ptr())
        return out

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        """[tokens, 2 · inner] → act(first half) · second half, [tokens, inner]."""
        return self._activate(x, activation, x.new_empty(*x.shape[:-1], x.shape[-1] // 2), gate=1)

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        """Elementwise activation."""
        return self._activate(x, activation, torch.empty(x.shape, dtype=x.dtype), gate=0)

    def _activate(self, x: Tensor, activation: Activation, out: Tensor, gate: int) -> Tensor:
        rows, stride, x = _rows(x)
        self._calls.orcinus_activate(
            _code(x.dtype), _ACTIVATION_CODES[activation], gate, x.data_ptr(), rows, x.shape[-1], stride, out.data_ptr()
        )
        return out

    def place(
        self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, cos_sin: Tensor | None, kv: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Turn q and k by the rotary embedding, if there is one, store k and v at the batch's slots; returns q.

        Computed in float32. q may be turned where it lies. How a block's bytes are laid out is the kernels' own affair.

        Raises:
            PlanError: a slot outside the KV tensors, or a position outside `cos_sin`; nothing was written.
        """
        q, k, v = _packed_heads(q), _packed_heads(k), _packed_heads(v)
        tokens, heads, head_dim = q.shape
        keys, values = kv
        num_positions, _, half = (0, 0, 0) if cos_sin is None else cos_sin.shape
        status = self._calls.orcinus_place(
            _code(k.dtype), q.data_ptr(), k.data_ptr(), v.data_ptr(), q.stride(0), k.stride(0), v.stride(0), heads,
            k.shape[1], batch.positions.data_ptr(), _address(cos_sin), num_positions, half, batch.slots.data_ptr(),
            keys.data_ptr(), values.data_ptr(), keys.shape[0], keys.shape[2], tokens, head_dim,
        )  # fmt: skip
        if status == _BAD_POSITION:
            raise PlanError(f"a position outside the {num_positions} of the rotary table")
        if status != 0:
            raise PlanError(f"a slot outside the {keys.shape[0]} blocks of {keys.shape[2]}")
        return q

    def attention(self, q: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, spec: AttentionSpec) -> Tensor:
        """Attention of q [tokens, heads, head_dim] over each row's own sequence → [tokens, heads · head_dim].

        Slots past a context are never read.

        Raises:
            PlanError: lengths or block tables that contradict each other or the KV tensors.
        """
        q = _packed_heads(q)
        tokens = q.shape[0]
        out = torch.empty(tokens, spec.num_heads * spec.head_dim, dtype=q.dtype)
        layer = _attention_layer(spec, keys.shape[2])
        tables = batch.block_tables
        status = self._calls.orcinus_attention(
            _code(q.dtype), ctypes.addressof(layer), q.data_ptr(), q.stride(0), tokens, keys.data_ptr(),
            values.data_ptr(), keys.shape[0], batch.query_starts.data_ptr(), batch.context_lengths.data_ptr(),
            tables.data_ptr(), tables.shape[0], tables.shape[1], out.data_ptr(),
        )  # fmt: skip
        if status != 0:
            raise PlanError("attention: lengths or block tables contradict each other or the KV tensors")
        return out

    def taped(self, layers: Sequence[LayerCall]) -> tuple[LayerCall, ...]:
        """The same layers; a small batch goes through each of them in one native call."""

        def call_through(calls: ctypes.CDLL | Notes) -> None:
            self._calls = calls

        return taped(layers, self._library, call_through)


def _code(dtype: torch.dtype) -> int:
    code = _DTYPE_CODES.get(dtype)
    if code is None:
        raise ConfigurationError(f"the CPU kernels compute in float32 and bfloat16, not in {dtype}")
    return code


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> tuple[int, int, Tensor]:
    """Number of rows, elements from one to the next, and x such that these hold."""
    columns = x.shape[-1]
    if x.dim() == 2 and x.stride(1) == 1:
        return x.shape[0], x.stride(0), x
    x = x.contiguous()
    return x.numel() // max(columns, 1), columns, x


def _packed_heads(x: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] with each token's heads in one piece; tokens may lie apart, as in a fused QKV."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
