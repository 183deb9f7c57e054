"""The escape hatch: any causal language model of `transformers`, through its own modelling code over our paged KV.

Slower, because the modules run in tiles of a fixed number of rows: their libraries give a row other bits at other
numbers of rows (ECOSYSTEM.md, section 2.1), and promise 2 holds only if the number never changes. Correct, because that
is checked at load: the same prompt through the model's own attention must give the same states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orcinus.errors import BatchVarianceError
from orcinus.kernels import AttentionBatch, KernelSet
from orcinus.models import ModelShape
from orcinus.models.foreign.activations import run_by_rows
from orcinus.models.foreign.check import checked_config, read_model, refuse_unservable
from orcinus.models.foreign.plug import TILE, batch_of, fresh_kv, plug_in, run_tile, tiles
from orcinus.models.foreign.probe import Foreign, probe
from orcinus.models.loader import Checkpoint


@dataclass(frozen=True, slots=True)
class ForeignDecoder:
    """Implements `Model` over a `transformers` model."""

    shape: ModelShape
    num_parameters: int
    weight_bytes: int
    weights_revision: str
    _foreign: Foreign

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, kernels: KernelSet) -> ForeignDecoder:
        """Read, plug in, and compare with the model as it came.

        Raises:
            CheckpointError: not safetensors, or a model that can't be run this way; the reason is named.
        """
        checkpoint = Checkpoint.open(folder)
        config = checked_config(folder)
        refuse_unservable(config)
        model = read_model(folder, dtype, device)
        foreign = Foreign(model, plug_in(model, kernels))
        run_by_rows(model)
        shape = probe(foreign, config)
        size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        return cls(shape, model.num_parameters(), size, checkpoint.revision, foreign)

    @property
    def implementation(self) -> str:
        """See `Model.implementation`. With the number of threads: float32 products of libraries depend on it."""
        from transformers import __version__

        return f"transformers-{__version__}-threads{torch.get_num_threads()}"

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
        hidden: Tensor | None = None,
        on_progress: Callable[[], None] | None = None,
    ) -> Tensor:
        """See `Model.forward`; states come normed. Waits for the device."""
        assert hidden is None, "a foreign model runs in one piece"
        states = []
        for tile in tiles(batch, kv):
            states.append(run_tile(self._foreign.plug, tokens, tile))
            if on_progress is not None:
                on_progress()
        return torch.cat(states)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`: the model's own head, whatever it does beyond a product."""
        parts = [self._foreign.logits(hidden[start : start + TILE]) for start in range(0, len(hidden), TILE)]
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
            BatchVarianceError: they aren't, as with experts that `transformers` doesn't let others run.
        """
        device, longest = self._foreign.model.device, self.shape.max_positions
        tokens = torch.arange(min(2 * TILE + 6, longest), device=device) * 7 % self.shape.vocab_size
        others = torch.arange(min(5, longest), device=device) % self.shape.vocab_size
        alone = self._run_fresh([(tokens, 0)])[0]
        behind = self._run_fresh([(others, 0), (tokens, 0)])[1]
        pieces = self._run_fresh([(tokens[:9], 0)], [(tokens[9:], 9)])[0]
        heads = self.logits(alone), torch.cat((self.logits(alone[:7]), self.logits(alone[7:])))
        if not (torch.equal(alone, behind) and torch.equal(alone, pieces) and torch.equal(*heads)):
            raise BatchVarianceError(
                f"the modules of {self.shape.architecture} give a row other bits beside other rows, so answers would "
                "depend on the requests beside them. With fewer threads (1 or 2) they may not; else accept it with "
                "--allow-batch-variance."
            )

    def _run_fresh(self, *iterations: list[tuple[Tensor, int]]) -> list[Tensor]:
        """States of sequences over a fresh KV; each iteration holds (tokens, first position) of every sequence."""
        kv, tables = fresh_kv(self._foreign.model, self.shape, len(iterations[0]))
        parts: list[list[Tensor]] = [[] for _ in iterations[0]]
        for work in iterations:
            states = self.forward(torch.cat([tokens for tokens, _ in work]), batch_of(work, tables), kv)
            for i, piece in enumerate(torch.split(states, [len(tokens) for tokens, _ in work])):
                parts[i].append(piece)
        return [torch.cat(pieces) for pieces in parts]
