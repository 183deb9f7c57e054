"""Weights stored as integers: read as those who wrote them do, and written so that others read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_harness import teacher_forced
from safetensors.torch import load_file, save_file
from test_model_company import LENGTHS, alone, assert_same_bits, crowd, random_chunks, random_tokens
from torch import Tensor
from transformers import AutoModelForCausalLM

from orcinus.errors import CheckpointError, ConfigurationError
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.cpu.library import supported
from orcinus.kernels.quantized import QuantizedWeight
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder
from orcinus.models.fields import ConfigFields
from orcinus.models.quantized.layouts import CompressedTensors, layout_of
from orcinus.models.quantized.recipes import RECIPES
from orcinus.models.quantized.save import save_quantized
from orcinus.parallel import Place

native = pytest.mark.skipif(not supported(), reason="no native CPU kernels for this processor")
KINDS = ["int8", "int4"]
OUTPUTS, INPUTS, GROUP = 24, 64, 16


def decoder_of(folder: Path, kind: str | None = None, place: Place | None = None, reference: bool = False) -> Decoder:
    return Decoder.load(
        folder,
        load_config(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        kernels=ReferenceKernels() if reference else CpuKernels(),
        place=place,
        recipe=None if kind is None else RECIPES[kind],  # type: ignore[index]
    )


def drawn(high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def layout(**config: object) -> object:
    return layout_of(ConfigFields(Path("config.json"), {"quantization_config": config}))


# --- what is written


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "phi3"])
def test_what_is_saved_and_loaded_has_the_bits_of_what_is_quantised_at_load(
    case: str, kind: str, saved: Callable, tmp_path: Path
) -> None:
    folder = saved(case)[0]
    save_quantized(folder, RECIPES[kind], tmp_path / "copy")
    tokens = random_tokens((40,), load_config(folder).vocab_size)
    found, expected = decoder_of(tmp_path / "copy"), decoder_of(folder, kind)
    assert_same_bits(alone(found, tokens), alone(expected, tokens))
    assert found.weight_bytes == expected.weight_bytes < 0.6 * decoder_of(folder).weight_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_by_transformers_as_by_us(kind: str, saved: Callable, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    save_quantized(saved("llama")[0], RECIPES[kind], tmp_path / "copy")
    # They would round activations, by another rule: it is the weights that are compared.
    values = json.loads((tmp_path / "copy" / "config.json").read_text())
    for group in values["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32).eval()
    tokens = random_tokens((40,), theirs.config.vocab_size)
    with torch.inference_mode():
        expected = theirs(torch.tensor(tokens)).logits[0]
    # The reference computes with what the codes stand for, as they do.
    assert torch.allclose(alone(decoder_of(tmp_path / "copy", reference=True), tokens)[0], expected, atol=1e-4)
    exact = alone(decoder_of(saved("llama")[0], reference=True), tokens)[0]
    assert not torch.allclose(exact, expected, atol=1e-3)


def test_a_copy_is_not_made_of_a_copy_nor_over_one(saved: Callable, tmp_path: Path) -> None:
    save_quantized(saved("llama")[0], RECIPES["int8"], tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="quantised already"):
        save_quantized(tmp_path / "copy", RECIPES["int4"], tmp_path / "other")
    with pytest.raises(ConfigurationError, match="exists"):
        save_quantized(saved("llama")[0], RECIPES["int8"], tmp_path / "copy")


# --- what is read


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, GROUP])
@pytest.mark.parametrize("form", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_are_read_as_their_library_does(
    bits: int, form: str, group: int | None, symmetric: bool
) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "channel" if group is None else "group"
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    groups, half = 1 if group is None else INPUTS // GROUP, 1 << (bits - 1)
    state = {
        "weight": torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1)),
        "weight_scale": torch.rand(OUTPUTS, groups, generator=torch.Generator().manual_seed(2)) / half + 1e-3,
        "weight_zero_point": (drawn(half, OUTPUTS, groups) - half // 2).to(torch.int8) * (not symmetric),
    }
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    if form == "int-quantized" and bits == 4:
        bits = 8  # 4 bits in a byte each
    names = {f"m.{name}": tensor for name, tensor in stored.items()}
    parts = CompressedTensors().parts("m", names)
    assert all(part in parts or CompressedTensors().unused(part) for part in names)
    weight = CompressedTensors().weight((OUTPUTS, INPUTS), tuple(names[part] for part in parts))
    assert weight.bits == bits
    assert torch.equal(weight.dequantised(), compressor.decompress(stored, scheme)["weight"])


def packed_words(codes: Tensor, bits: int, order: tuple[int, ...]) -> Tensor:
    """int32 [rows, words] of codes [rows, columns]: place i of a word holds its column order[i]."""
    per_word = 32 // bits
    words = torch.zeros(len(codes), codes.shape[1] // per_word, dtype=torch.int64)
    for column in range(codes.shape[1]):
        place = order.index(column % per_word)
        words[:, column // per_word] |= codes[:, column].long() << bits * place
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_is_read_by_its_formula(bits: int, version: str) -> None:
    codes, zeros = drawn(1 << bits, INPUTS, OUTPUTS), drawn((1 << bits) - 1, INPUTS // GROUP, OUTPUTS)
    scales = torch.rand(INPUTS // GROUP, OUTPUTS).half()
    order = tuple(range(32 // bits))
    words, zero_words = packed_words(codes.t(), bits, order).t(), packed_words(zeros, bits, order)
    index = torch.arange(INPUTS, dtype=torch.int32) // GROUP
    shift = 1 if version == "gptq" else 0
    floats = (codes - zeros[index] - shift).float() * scales[index].float()
    gptq = layout(quant_method="gptq", bits=bits, checkpoint_format=version)
    weight = gptq.weight((OUTPUTS, INPUTS), (words, scales, zero_words, index))  # type: ignore[attr-defined]
    assert torch.equal(weight.dequantised(), floats.t())


def test_gptq_with_inputs_in_order_of_activation_is_regrouped_in_8_bits() -> None:
    codes, zeros = drawn(16, INPUTS, OUTPUTS), drawn(15, INPUTS // GROUP, OUTPUTS)
    scales, order = torch.rand(INPUTS // GROUP, OUTPUTS).half() + 0.1, tuple(range(8))
    index = torch.arange(INPUTS, dtype=torch.int32).flip(0) * 5 % INPUTS // GROUP
    floats = ((codes - zeros[index.long()] - 1).float() * scales[index.long()].float()).t()
    parts = (packed_words(codes.t(), 4, order).t(), scales, packed_words(zeros, 4, order), index)
    weight = layout(quant_method="gptq", bits=4).weight((OUTPUTS, INPUTS), parts)  # type: ignore[attr-defined]
    assert weight.bits == 8
    assert float((weight.dequantised() - floats).norm() / floats.norm()) < 0.006


def test_awq_is_read_by_its_formula() -> None:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    codes, zeros = drawn(16, INPUTS, OUTPUTS), drawn(16, INPUTS // GROUP, OUTPUTS)
    scales, index = torch.rand(INPUTS // GROUP, OUTPUTS).half(), torch.arange(INPUTS) // GROUP
    parts = (packed_words(codes, 4, order), scales, packed_words(zeros, 4, order))
    weight = layout(quant_method="awq", bits=4, version="gemm").weight((OUTPUTS, INPUTS), parts)  # type: ignore[attr-defined]
    assert torch.equal(weight.dequantised(), ((codes - zeros[index]).float() * scales[index].float()).t())


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
    ],
)
def test_other_ways_of_quantising_are_refused_by_name(config: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=str(config["quant_method"])):
        layout(**config)


def test_parts_that_contradict_each_other_are_refused(saved: Callable, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    save_quantized(saved("llama")[0], RECIPES["int4"], copy)
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight_scale"))
    save_file({**tensors, name: tensors[name][1:].contiguous()}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match="don't belong together"):
        decoder_of(copy, reference=True)


def test_integers_without_a_word_about_them_are_refused(saved: Callable, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    save_quantized(saved("llama")[0], RECIPES["int8"], copy)
    values = json.loads((copy / "config.json").read_text())
    del values["quantization_config"]
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="stored as I8 where floats are needed"):
        decoder_of(copy, reference=True)


# --- promise 2, and who holds what


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["llama", "gpt2", "phi3"])
def test_quantised_logits_have_the_same_bits_alone_crowded_and_in_chunks(case: str, kind: str, saved: Callable) -> None:
    decoder = decoder_of(saved(case)[0], kind)
    decoder.check_batch_invariance()
    sequences = random_tokens(LENGTHS, decoder.config.vocab_size)
    expected = alone(decoder, sequences)
    assert_same_bits(teacher_forced(decoder, sequences, crowd(sequences)), expected)
    assert_same_bits(teacher_forced(decoder, sequences, random_chunks(sequences, 3, 40)), expected)


@native
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_hold_their_part_of_stored_codes(kind: str, saved: Callable, tmp_path: Path) -> None:
    save_quantized(saved("llama")[0], RECIPES[kind], tmp_path / "copy")
    whole = decoder_of(tmp_path / "copy", reference=True)
    parts = [decoder_of(tmp_path / "copy", place=Place(rank, 2, 0, 1), reference=True) for rank in (0, 1)]
    outputs = [part.body.layers[0].mlp.products[1] for part in parts]
    x = torch.randn(3, whole.body.layers[0].mlp.products[1].in_features)
    halves = x.split([output.in_features for output in outputs], 1)
    kernels = ReferenceKernels()
    found = sum(kernels.linear(half, output) for half, output in zip(halves, outputs, strict=True))
    assert torch.allclose(found, kernels.linear(x, whole.body.layers[0].mlp.products[1]), atol=1e-5)


def test_a_weight_can_be_cut_where_eight_inputs_stay_together() -> None:
    codes = drawn(16, 4, 64).to(torch.uint8)
    weight = QuantizedWeight(codes, torch.rand(4, 2), None, 4, 32)
    assert weight.part(slice(None), slice(0, 44)) is None
    for first, last in ((0, 48), (32, 64), (8, 64)):
        part = weight.part(slice(None), slice(first, last))
        assert part is not None
        assert torch.equal(part.dequantised(), weight.dequantised()[:, first:last])
