"""The kernels' own threads: any caller, several at once, and the child of a fork get the bits of one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orcinus.kernels import PackedLinear
from orcinus.kernels.cpu import CpuKernels
from orcinus.kernels.cpu.library import supported

pytestmark = pytest.mark.skipif(not supported(), reason="no native CPU kernels for this processor")

# Some run on one thread, some on several, and none takes long.
ROWS = (1, 2, 7, 40, 130)


@pytest.fixture(scope="module")
def kernels() -> CpuKernels:
    return CpuKernels()


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(kernels: CpuKernels) -> PackedLinear:
    weight = torch.randn(1003, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    return kernels.pack(weight, None)


def inputs(rows: int) -> Tensor:
    return torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16()


@pytest.fixture(scope="module")
def expected(kernels: CpuKernels, packed: PackedLinear) -> dict[int, Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {rows: kernels.linear(inputs(rows), packed) for rows in ROWS}
    torch.set_num_threads(before)
    return results


def test_many_calls_one_after_another_give_the_bits_of_one_thread(
    kernels: CpuKernels, packed: PackedLinear, expected: dict[int, Tensor], several_threads: None
) -> None:
    # More threads than processors, so that helpers come late, early and not at all.
    for turn in range(300):
        rows = ROWS[turn % len(ROWS)]
        assert torch.equal(kernels.linear(inputs(rows), packed), expected[rows])


def test_callers_at_the_same_time_give_the_bits_of_one_thread(
    kernels: CpuKernels, packed: PackedLinear, expected: dict[int, Tensor], several_threads: None
) -> None:
    def call(turn: int) -> bool:
        rows = ROWS[turn % len(ROWS)]
        return torch.equal(kernels.linear(inputs(rows), packed), expected[rows])

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(200)))


def _child(packed: PackedLinear, kernels: CpuKernels, answer: Connection) -> None:
    answer.send_bytes(kernels.linear(inputs(40), packed).view(torch.uint8).numpy().tobytes())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_child_of_a_fork_has_helpers_of_its_own(
    kernels: CpuKernels, packed: PackedLinear, expected: dict[int, Tensor], several_threads: None
) -> None:
    kernels.linear(inputs(40), packed)  # the parent has its own by now
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(packed, kernels, there))
    child.start()
    try:
        assert here.poll(60), "the child waits for threads that it doesn't have"
        assert here.recv_bytes() == expected[40].view(torch.uint8).numpy().tobytes()
    finally:
        child.kill()
        child.join()


_INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background passes on that it is ignored
import torch
from orcinus.kernels.cpu import CpuKernels
torch.set_num_threads(4)
kernels = CpuKernels()
packed, x = kernels.pack(torch.ones(4096, 1024), None), torch.ones(64, 1024)
print("ready", flush=True)
while True:
    kernels.linear(x, packed)
"""


@pytest.mark.slow
def test_signals_go_to_python_and_not_to_helpers() -> None:
    folder = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": folder},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in errors
