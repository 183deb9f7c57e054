"""Tensors of a GGUF file, read where it lies; the `gguf` package says what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.kernels.quantized import QuantizedWeight, Scheme, quantize
from orcinus.models.fields import ConfigFields
from orcinus.models.stored import StoredTensor

if TYPE_CHECKING:
    from gguf import GGUFReader

# Our families' names of llama.cpp's tensors. Families whose tensors llama.cpp alters otherwise are refused.
_AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Types whose blocks our product reads; the others become 8 bits.
_BLOCK = 32
_OTHERS = Scheme(8, 32)
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Rotary factors, which config.json has; nothing is lost with them.
_NEEDLESS = ("rope_freqs.weight",)


def gguf_tensors(path: Path) -> tuple[dict[str, StoredTensor], bytes]:
    """The tensors by our names, and what identifies them.

    Raises:
        CheckpointError: damaged, or not a file of a llama-like model.
    """
    stored = {tensor.name: tensor for tensor in _read_index(path) if tensor.name not in _NEEDLESS}
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        for tensor in stored.values():
            file.seek(tensor.offset)
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode() + file.read(256))
    return {_our_name(path, name): tensor for name, tensor in stored.items()}, digest.digest()


def read_bytes(stored: StoredTensor) -> Tensor:
    """uint8, in place: the file stays mapped as long as it is in use."""
    mapped = np.memmap(stored.file, np.uint8, "c", stored.offset, (stored.num_bytes,))
    return torch.from_numpy(mapped)


def read_floats(stored: StoredTensor) -> Tensor:
    """What is stored, or what it stands for by the `gguf` package's own rule."""
    raw = read_bytes(stored)
    if stored.dtype in _FLOATS:
        return raw.view(_FLOATS[stored.dtype]).view(stored.shape)
    from gguf import GGMLQuantizationType, dequantize

    floats = dequantize(raw.numpy().reshape(stored.shape[0], -1), GGMLQuantizationType[stored.dtype])
    return torch.from_numpy(np.ascontiguousarray(floats)).view(stored.shape)


class GgufLayout:
    """Blocks of 32 codes with a scale each (Q8_0, Q4_0); other types are turned into such of 8 bits."""

    def __init__(self, fields: ConfigFields) -> None:
        heads = fields.integer("num_attention_heads")
        kv_heads = fields.integer("num_key_value_heads", default=heads)
        # llama.cpp turns neighbouring pairs where we turn halves, so it stores these rows in another order.
        turned = fields.text("model_type") in ("llama", "mistral")
        self._turned_heads = {"attn_q": heads, "attn_k": kv_heads} if turned else {}

    def parts(self, name: str, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
        """See `Layout.parts`. What has rows in another order comes this way too, floats as well."""
        stored = tensors.get(f"{name}.weight")
        if stored is None or (stored.dtype in _FLOATS and self._heads(stored) is None):
            return ()
        return (f"{name}.weight",)

    def unused(self, name: str) -> bool:
        """All are needed."""
        return False

    def weight(
        self, shape: tuple[int, int], parts: tuple[Tensor, ...], stored: tuple[StoredTensor, ...]
    ) -> QuantizedWeight | Tensor:
        """See `Layout.weight`."""
        (raw,), (tensor,) = parts, stored
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name} is {list(tensor.shape)}, not {list(shape)}")
        heads = self._heads(tensor)
        if tensor.dtype in _FLOATS:
            return _in_halves(read_floats(tensor), heads or 1)
        weight = _codes(raw, shape, tensor)
        return weight if heads is None else weight.map_rows(lambda each: _in_halves(each, heads))

    def _heads(self, stored: StoredTensor) -> int | None:
        """Of a tensor whose rows are in llama.cpp's order."""
        return next((n for name, n in self._turned_heads.items() if f".{name}.weight" in stored.name), None)


def _codes(raw: Tensor, shape: tuple[int, int], stored: StoredTensor) -> QuantizedWeight:
    blocks = (shape[0], shape[1] // _BLOCK)
    if stored.dtype == "Q8_0":
        data = raw.view(*blocks, 2 + _BLOCK)
        codes = (data[..., 2:].view(torch.int8).short() + 128).to(torch.uint8)
        return QuantizedWeight(codes.view(shape), _scales(data), None, 8, _BLOCK)
    if stored.dtype == "Q4_0":
        data = raw.view(*blocks, 2 + _BLOCK // 2)
        # The first half of a block is in the low nibbles.
        codes = torch.cat((data[..., 2:] & 15, data[..., 2:] >> 4), -1)
        return QuantizedWeight(codes.view(shape), _scales(data), None, 4, _BLOCK)
    return quantize(read_floats(stored), _OTHERS)


def _scales(data: Tensor) -> Tensor:
    return data[..., :2].contiguous().view(torch.float16).squeeze(-1).float()


def _in_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows [head, pair, half] in the order [head, half, pair]."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _read_index(path: Path) -> Iterator[StoredTensor]:
    for tensor in open_gguf(path).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        kind = str(tensor.tensor_type.name)
        yield StoredTensor(path, tensor.name, int(tensor.data_offset), shape, int(tensor.n_bytes), kind)


def open_gguf(path: Path) -> GGUFReader:
    """The file's index.

    Raises:
        CheckpointError: damaged, or the package isn't installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(f"{path}: reading GGUF needs `pip install 'orcinus-llm[gguf]'`") from error
    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download or copy it again.") from error


def _our_name(path: Path, name: str) -> str:
    around = re.fullmatch(r"(\w+)\.(weight)", name)
    if around and around[1] in _AROUND:
        return f"{_AROUND[around[1]]}.weight"
    inner = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if inner and inner[2] in _IN_LAYER:
        return f"model.layers.{inner[1]}.{_IN_LAYER[inner[2]]}.{inner[3]}"
    raise CheckpointError(f"{path}: tensor {name} is none of a llama, mistral, qwen2 or qwen3; use the safetensors")
