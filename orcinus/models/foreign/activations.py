"""Somebody else's activations, row by row: torch cuts a large tensor among threads at places that cut rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Elements up to which torch computes a tensor in one piece. Of a larger one, the ends of each thread's share go through
# scalar code, whose last bits are others: silu and gelu in float32 from three threads on, at most widths.
_ONE_PIECE = 32_768
_TORCH_ACTIVATIONS = (
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Sigmoid,
    nn.Tanh,
)


def run_by_rows(model: nn.Module) -> None:
    """Let every activation of `model` treat all rows alike, wherever threads meet."""
    for module in model.modules():
        if isinstance(module, _TORCH_ACTIVATIONS) or type(module).__module__ == "transformers.activations":
            module.forward = _by_rows(module.forward)


def _by_rows(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        """[..., rows, width] → the same."""
        if x.numel() <= _ONE_PIECE:
            return run(x)
        return torch.cat([run(row) for row in torch.split(x, 1, dim=-2)], dim=-2)

    return forward
