"""The escape hatch: any causal language model of `transformers`, through its own modelling code over our paged KV.

Slower, because the modules run in tiles of a fixed number of rows: their libraries give a row other bits at other
numbers of rows (ECOSYSTEM.md, section 2.1), and promise 2 holds only if the number never changes. Correct, because that
is checked at load: the same prompt through the model's own attention must give the same states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orcinus.errors import BatchVarianceError
from orcinus.kernels import AttentionBatch, KernelSet
from orcinus.models import ModelShape
from orcinus.models.foreign.check import checked_config, probe, read_model
from orcinus.models.foreign.plug import TILE, Plug, batch_of, fresh_kv, padded, plug_in, run_tile, tiles
from orcinus.models.loader import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ForeignDecoder:
    """Implements `Model` over a `transformers` model."""

    shape: ModelShape
    num_parameters: int
    weight_bytes: int
    weights_revision: str
    _model: PreTrainedModel
    _plug: Plug

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, kernels: KernelSet) -> ForeignDecoder:
        """Read, plug in, and compare with the model as it came.

        Raises:
            CheckpointError: not safetensors, or a model that can't be run this way; the reason is named.
        """
        checkpoint = Checkpoint.open(folder)
        config = checked_config(folder)
        model = read_model(folder, dtype, device)
        plug = plug_in(model, kernels)
        shape = probe(model, config, plug)
        size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        return cls(shape, model.num_parameters(), size, checkpoint.revision, model, plug)

    @property
    def implementation(self) -> str:
        """See `Model.implementation`."""
        from transformers import __version__

        return f"transformers-{__version__}"

    @property
    def notice(self) -> str:
        """For people, at start."""
        return (
            f"{self.shape.architecture} has no entry in our table, so it runs through transformers' own modelling "
            "code: slower, and just as right"
        )

    def forward(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        kv: Sequence[tuple[Tensor, Tensor]],
        segments: Tensor | None = None,
    ) -> Tensor:
        """See `Model.forward`; states come normed. Waits for the device."""
        return torch.cat([run_tile(self._model, self._plug, tokens, tile) for tile in tiles(batch, kv)])

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`: the model's own head, whatever it does beyond a product."""
        parts = [self._head(hidden[start : start + TILE]) for start in range(0, len(hidden), TILE)]
        return torch.cat(parts) if parts else hidden.new_empty((0, self.shape.vocab_size), dtype=torch.float32)

    def states(self, hidden: Tensor) -> Tensor:
        """See `Model.states`."""
        return hidden

    def class_scores(self, pooled: Tensor) -> Tensor:
        """There are no labels, so nobody asks."""
        raise AssertionError("a causal language model has no classifier")

    def check_batch_invariance(self) -> None:
        """Run one sequence alone, behind another, and in pieces; the bits must be the same.

        Raises:
            BatchVarianceError: they aren't, as with modules that sort rows by content (mixtures of experts).
        """
        device = next(self._model.parameters()).device
        tokens = torch.arange(2 * TILE + 6, device=device) * 7 % self.shape.vocab_size
        others = torch.arange(5, device=device) % self.shape.vocab_size
        alone = self._run_fresh([(tokens, 0)])[0]
        behind = self._run_fresh([(others, 0), (tokens, 0)])[1]
        pieces = self._run_fresh([(tokens[:9], 0)], [(tokens[9:], 9)])[0]
        if not (torch.equal(alone, behind) and torch.equal(alone, pieces)):
            raise BatchVarianceError(
                f"the modules of {self.shape.architecture} give a row other bits beside other rows, so answers would "
                "depend on the requests beside them. Accept it with --allow-batch-variance."
            )

    def _head(self, hidden: Tensor) -> Tensor:
        with torch.inference_mode():
            self._plug.states = padded(hidden)[None]
            try:
                ids = torch.zeros(1, TILE, dtype=torch.int64, device=hidden.device)
                logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
            finally:
                self._plug.states = None
        return logits[0, : len(hidden)].float()

    def _run_fresh(self, *iterations: list[tuple[Tensor, int]]) -> list[Tensor]:
        """States of sequences over a fresh KV; each iteration holds (tokens, first position) of every sequence."""
        kv, tables = fresh_kv(self._model, self.shape, len(iterations[0]))
        parts: list[list[Tensor]] = [[] for _ in iterations[0]]
        for work in iterations:
            states = self.forward(torch.cat([tokens for tokens, _ in work]), batch_of(work, tables), kv)
            for i, piece in enumerate(torch.split(states, [len(tokens) for tokens, _ in work])):
                parts[i].append(piece)
        return [torch.cat(pieces) for pieces in parts]
