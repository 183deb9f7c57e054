"""Sampled tokens, at the workers that embed but don't sample: their logs must hold what the next plan feeds back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orcinus.core.plan import IterationPlan
from orcinus.errors import PlanError
from orcinus.parallel.stages import TokenReceiver
from orcinus.worker.sequences import Sequences


class FedBack:
    """Takes tokens from the worker that samples. They come in the order of plans, and each says where it belongs."""

    def __init__(self, receiver: TokenReceiver, sequences: Sequences) -> None:
        self._receiver = receiver
        self._sequences = sequences
        # Plans that sample, whose tokens have not come.
        self._owed = 0

    def expect(self) -> None:
        """A plan samples."""
        self._owed += 1

    def catch_up(self, plan: IterationPlan) -> None:
        """Take what has come, and wait for what `plan` needs. What nobody owes is left to be found missing.

        Raises:
            PeerLost: the worker that samples isn't there.
        """
        while self._owed and (come := self._receiver.take()) is not None:
            self._learn(plan.epoch, *come)
        for item in plan.work:
            log = self._sequences[item.seq_id]
            while self._owed and log.length < item.start + item.num_tokens:
                self._learn(plan.epoch, *self._receiver.wait())

    def _learn(self, current_epoch: int, epoch: int, tokens: NDArray[np.uint32]) -> None:
        self._owed -= 1
        # An older epoch's sequences may be known again by the same numbers.
        if epoch != current_epoch:
            return
        for seq_id, position, token in tokens.tolist():
            log = self._sequences.find(seq_id)
            # Forgotten since, or told in full by a plan made after this token was known.
            if log is None or position < log.length:
                continue
            if position > log.length:
                raise PlanError(f"sequence {seq_id}: token {position} came, but only {log.length} are known")
            log.append(token)
