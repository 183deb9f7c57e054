"""Layers on tape: what one calls of the library is written down once, and from then on played in one native call.

At small batches Python costs as much as the kernels that it calls. A tape holds the same calls with the same constants
in the same order, so it changes no bit; only how many rows there are and where the batch lies is filled in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_int64
from typing import Any

from torch import Tensor

from orcinus.kernels import AttentionBatch, LayerCall
from orcinus.kernels.cpu.recording import INPUT, MAX_ROWS, Arena, Notes, Recording, Tape, Unrecordable, Watch, fields_of

CallThrough = Callable[[ctypes.CDLL | Notes], None]


class _Fields:
    """What differs between iterations, as the library reads it: one for all layers."""

    def __init__(self) -> None:
        self.values = (c_int64 * (INPUT + 1))()
        self._batch: AttentionBatch | None = None

    def of(self, x: Tensor, batch: AttentionBatch) -> Any:
        """Filled in for one layer."""
        if batch is not self._batch:
            for index, value in enumerate(fields_of(len(x), batch)):
                self.values[index] = value
            self._batch = batch
        self.values[INPUT] = x.data_ptr()
        return self.values


class TapedLayer:
    """A layer that is recorded when it first runs, alone and in company, and played whenever that comes again.

    The result is valid until the next layer but one runs.

    Args:
        call_through: makes the kernels call the library, or what stands in for it.
        arena: of every other layer.
        fields: of all layers.
    """

    def __init__(
        self, layer: LayerCall, library: ctypes.CDLL, call_through: CallThrough, arena: Arena, fields: _Fields
    ) -> None:
        self._layer = layer
        self._library = library
        self._call_through = call_through
        self._arena = arena
        self._fields = fields
        # By whether there are several rows: what a single one's strides say holds for no other. None: can't be.
        self._tapes: dict[bool, Tape | None] = {}

    def __call__(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        """As the layer itself."""
        rows = len(x)
        several = rows > 1
        if rows > MAX_ROWS or not x.is_contiguous():
            return self._layer(x, batch, kv)
        if several not in self._tapes:
            return self._record(x, batch, kv)
        tape = self._tapes[several]
        if tape is None or tape.kv is not kv:
            return self._layer(x, batch, kv)
        fields = self._fields.of(x, batch)
        status = self._library.orcinus_replay(tape.calls, len(tape.calls), tape.changes, len(tape.changes), fields)
        # The layer itself says what is wrong.
        return tape.result[:rows] if status == 0 else self._layer(x, batch, kv)

    def _record(self, x: Tensor, batch: AttentionBatch, kv: tuple[Tensor, Tensor]) -> Tensor:
        notes, watch = Notes(self._library), Watch()
        self._call_through(notes)
        try:
            with watch:
                result = self._layer(x, batch, kv)
        finally:
            self._call_through(self._library)
        try:
            tape = Recording(notes, watch, x, batch).tape(result, kv, self._arena)
        except Unrecordable:
            tape = None
        self._tapes[len(x) > 1] = tape
        return result


def taped(layers: Sequence[LayerCall], library: ctypes.CDLL, call_through: CallThrough) -> tuple[LayerCall, ...]:
    """Layers that run one after the other; see `TapedLayer`."""
    arenas, fields = (Arena(), Arena()), _Fields()
    return tuple(TapedLayer(layer, library, call_through, arenas[i % 2], fields) for i, layer in enumerate(layers))
