"""Writes a quantised copy of a checkpoint, in the layout of compressed-tensors, which other engines read too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orcinus.errors import ConfigurationError
from orcinus.kernels.quantized import QuantizedWeight, Scheme, quantize
from orcinus.models.config import ModelConfig, load_config
from orcinus.models.fields import ConfigFields
from orcinus.models.loader import INDEX_FILE, Checkpoint
from orcinus.models.quantized.recipes import Recipe


def save_quantized(source: Path, recipe: Recipe, target: Path) -> int:
    """Quantise the checkpoint in `source` as `recipe` says and write it to the new folder `target`; its bytes.

    One of the source's files is in memory at a time. A head stays as it is if it shares the embedding's weights, or
    if the file has it under an older name.

    Raises:
        CheckpointError: nothing that can be served.
        ConfigurationError: a checkpoint that this layout can't hold, or a target that exists.
    """
    config = load_config(source)
    if config.layout is not None:
        raise ConfigurationError(f"{source} is quantised already; give the checkpoint of floats")
    if config.family.transposed:
        raise ConfigurationError(f"{config.architecture} stores weights turned, which this layout doesn't know")
    checkpoint = Checkpoint.open(source)
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"{target} exists; give a folder that doesn't") from None
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    weight_map: dict[str, str] = {}
    for file in files:
        tensors = dict(_converted(load_file(file), config, recipe))
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    _copy_others(source, target, files)
    if len(files) > 1:
        (target / INDEX_FILE).write_bytes(msgspec.json.encode({"metadata": {}, "weight_map": weight_map}))
    values = ConfigFields.read(source / "config.json").values
    written = {**values, "quantization_config": _description(config, recipe)}
    (target / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(written), indent=2))
    return sum(path.stat().st_size for path in target.iterdir())


def _copy_others(source: Path, target: Path, files: list[Path]) -> None:
    for path in source.iterdir():
        if path.is_file() and path not in files and path.name not in ("config.json", INDEX_FILE):
            shutil.copyfile(path, target / path.name)


def _converted(tensors: dict[str, Tensor], config: ModelConfig, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        scheme = _scheme(name.removesuffix(".weight"), config, recipe) if name.endswith(".weight") else None
        if scheme is None:
            yield name, tensor
        else:
            yield from _stored(name, quantize(tensor, scheme), scheme)


def _scheme(module: str, config: ModelConfig, recipe: Recipe) -> Scheme | None:
    names, experts = config.family.names, config.family.experts
    if module == names.head:
        return None if config.tie_embeddings else recipe.head
    expert = () if experts is None else (*experts.input, experts.output)
    inner = (*names.qkv, names.attention_output, *names.mlp_input, names.mlp_output, *expert)
    pattern = "|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in inner)
    layer = re.escape(names.layer).replace(r"\{\}", r"\d+")
    return recipe.layers if re.search(rf"(^|\.){layer}({pattern})$", module) else None


def _stored(name: str, weight: QuantizedWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    # What `quantize` chose fits into bfloat16.
    yield f"{name}_scale", weight.scales.bfloat16()
    if scheme.group is None:
        yield name, (weight.codes.short() - weight.middle).to(torch.int8)
        return
    inputs, per_word = weight.codes.shape[1], 32 // weight.bits
    codes = torch.nn.functional.pad(weight.codes, (0, -inputs % per_word))
    octets = codes if weight.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    yield f"{name}_packed", octets.contiguous().view(torch.int32)
    yield f"{name}_shape", torch.tensor(weight.codes.shape)


def _description(config: ModelConfig, recipe: Recipe) -> dict[str, object]:
    """`quantization_config`."""
    head = config.family.names.head
    groups = {"group_0": _group("Linear", recipe.layers)}
    if not config.tie_embeddings:
        groups["group_1"] = _group(f"re:.*{re.escape(head)}$", recipe.head)
    return {
        "quant_method": "compressed-tensors",
        "format": _format(recipe.layers) if recipe.layers == recipe.head else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [head] if config.tie_embeddings else [],
    }


def _format(scheme: Scheme) -> str:
    return "int-quantized" if scheme.group is None else "pack-quantized"


def _group(target: str, scheme: Scheme) -> dict[str, object]:
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
    }
    rows = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    activations = rows if scheme.group is None else None
    return {"targets": [target], "weights": weights, "input_activations": activations, "format": _format(scheme)}
