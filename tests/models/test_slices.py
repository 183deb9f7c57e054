"""What each worker reads of a checkpoint: its own part, once, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orcinus.errors import ConfigurationError
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models import sources
from orcinus.models.config import load_config
from orcinus.models.decoder import Decoder
from orcinus.models.slices import Slices
from orcinus.models.stored import StoredTensor
from orcinus.parallel import Alone, Place, Span, places


class Ranks(Alone):
    """A group whose members never meet: loading needs none of them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(
    "case", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3", "gemma2", "mixtral", "qwen3-moe", "olmoe"]
)
@pytest.mark.parametrize("layout", [(1, 2), (2, 1), (2, 2)])
def test_the_parts_that_workers_read_make_up_the_checkpoint(
    case: str, layout: tuple[int, int], saved: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(case)[0]
    read: Counter[str] = Counter()
    stored_part = sources.FileSource._stored_part

    def counted(self: sources.FileSource, stored: StoredTensor, axes: tuple[Span, ...]) -> torch.Tensor:
        part = stored_part(self, stored, axes)
        assert part.shape == tuple(len(axis) for axis in axes)
        read[stored.name] += part.numel()
        return part

    monkeypatch.setattr(sources.FileSource, "_stored_part", counted)
    config = load_config(folder)
    for place in places(*layout):
        load(folder, place)
    for name, tensor in load_file(folder / "model.safetensors").items():
        copies = read[name] / tensor.numel()
        # A matrix of a layer is read once by all ranks together, everything small by each of its stage.
        is_table = any(part in name for part in ("wpe", "norm", "ln_", "mlp.gate.", "sparse_moe.gate."))
        tied = config.tie_embeddings and any(part in name for part in ("embed", "wte"))
        expected = {1, layout[0]} if tensor.dim() == 1 or is_table else {1, 1 + (tied and layout[1] > 1)}
        assert copies in expected, name


def load(folder: Path, place: Place) -> Decoder:
    return Decoder.load(
        folder,
        load_config(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        kernels=ReferenceKernels(),
        place=place,
        group=Ranks(place.tensor_rank, place.tensor_size),
    )


def test_ranks_that_outnumber_the_kv_heads_share_them(saved: Callable) -> None:
    config = load_config(saved("llama")[0])
    found = [Slices.of(config, Place(rank, 4)) for rank in range(4)]
    assert [(each.heads.start, len(each.heads)) for each in found] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [(each.kv_heads.start, len(each.kv_heads)) for each in found] == [(0, 1), (0, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({}, Place(0, 3), "4 attention heads over 2 key-value heads don't divide among 3 ranks; 1, 2, 4 would do"),
        ({"num_heads": 12, "num_kv_heads": 4}, Place(0, 6), "1, 2, 4, 12 would do"),
        ({}, Place(0, 1, 0, 4), "pipeline_parallel_size is 4, but the model has only 3 layers"),
    ],
)
def test_what_can_not_be_cut_is_refused_with_what_can(
    changes: dict[str, object], place: Place, words: str, saved: Callable
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Slices.of(replace(load_config(saved("llama")[0]), **changes), place)


def test_earlier_stages_take_the_odd_layer(saved: Callable) -> None:
    config = load_config(saved("llama")[0])
    assert [list(Slices.of(config, Place(0, 1, stage, 2)).layers) for stage in range(2)] == [[0, 1], [2]]
