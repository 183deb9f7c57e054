"""Checkpoints made once a session, and the decoder that the tests compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import checkpoints_moe
import pytest
import torch
from transformers import PreTrainedModel

from orcinus.kernels import KernelSet, cpu
from orcinus.kernels.reference import ReferenceKernels
from orcinus.models.config import ModelConfig, load_config
from orcinus.models.decoder import Decoder

Saved = tuple[Path, PreTrainedModel]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """A case's folder and the model that wrote it."""
    made: dict[str, Saved] = {}

    def get(case: str) -> Saved:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            kind = checkpoints_moe if case in checkpoints_moe.CASES else checkpoints
            made[case] = folder, kind.save(case, folder)
        return made[case]

    return get


@pytest.fixture(scope="session", params=["reference", *(["cpu"] if cpu.available() else [])])
def load(request: pytest.FixtureRequest) -> Callable[..., Decoder]:
    """Loads a folder with some configuration fields changed; once for each kernel set that this machine runs."""
    default_kernels: KernelSet = cpu.CpuKernels() if request.param == "cpu" else ReferenceKernels()

    def load(
        folder: Path,
        dtype: torch.dtype = torch.float32,
        config: ModelConfig | None = None,
        kernels: KernelSet | None = None,
        **changes: object,
    ) -> Decoder:
        return Decoder.load(
            folder,
            replace(config or load_config(folder), **changes),
            dtype=dtype,
            device=torch.device("cpu"),
            kernels=kernels or default_kernels,
        )

    return load


@pytest.fixture
def one_thread() -> object:
    """Tests that don't vary threads leave the other core alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
