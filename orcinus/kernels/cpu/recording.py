"""Makes a tape of one run of a layer: which calls of the library, with what memory. See tape.py."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable
from ctypes import c_int64
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orcinus.kernels import AttentionBatch

# More keep the kernels so busy that Python's share is small.
MAX_ROWS = 128

# Each argument, in the order of STEPS in kernels.cpp: k constant; x memory of rows; r a multiple of the number of rows;
# and of the batch p positions, s slots, q query_starts, c context_lengths, t block_tables, n sequences, m blocks.
_STEPS = {
    "orcinus_linear": "kkxkkrkkkx",
    "orcinus_quantized_linear": "kkkxkkrkx",
    "orcinus_rms_norm": "kkxkkrkkx",
    "orcinus_layer_norm": "kkxkkkrkkx",
    "orcinus_add": "kxxrx",
    "orcinus_activate": "kkkxrkkx",
    "orcinus_place": "kxxxkkkkkpkkkskkkkrk",
    "orcinus_attention": "kkxkrkkkqctnmx",
}
_NUMBERS = {name: number for number, name in enumerate(_STEPS)}
_FIELDS = {kind: index for index, kind in enumerate("rpsqctnm")}
INPUT = len(_FIELDS)
_ALIGNMENT = 64

# All that a layer may ask of torch: memory, and views of it.
_ATEN = torch.ops.aten
_ALLOCATIONS = frozenset({_ATEN.empty.memory_format, _ATEN.new_empty.default})
_VIEWS = frozenset({_ATEN.view.default, _ATEN.split_with_sizes.default, _ATEN.detach.default})


class _Call(ctypes.Structure):
    """As in kernels.cpp."""

    _fields_ = (("step", c_int64), ("arguments", c_int64 * 20))


class _Change(ctypes.Structure):
    """As in kernels.cpp."""

    _fields_ = (("call", c_int64), ("argument", c_int64), ("field", c_int64), ("factor", c_int64))


class Notes:
    """Stands in for the library: passes calls on and writes them down."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._library, name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            return function(*arguments)

        return call


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees all that torch does: what memory it gives, and whether it computes, which no tape holds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given: list[Tensor] = []
        self.computes = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.given.append(result)
        elif func not in _VIEWS:
            self.computes = True
        return result


class Unrecordable(Exception):
    """The layer does what a tape can't hold."""


def fields_of(rows: int, batch: AttentionBatch) -> list[int]:
    tensors = batch.positions, batch.slots, batch.query_starts, batch.context_lengths, batch.block_tables
    return [rows, *(tensor.data_ptr() for tensor in tensors), *batch.block_tables.shape]


@dataclass
class _Buffer:
    """Memory that a layer asked for, and the first and the last of its calls that use it. At `place` in the arena."""

    start: int
    num_bytes: int
    row_bytes: int
    used: tuple[int, int] | None = None
    place: int = -1

    @property
    def size(self) -> int:
        """Bytes for as many rows as there may be."""
        return -(-self.row_bytes * MAX_ROWS // _ALIGNMENT) * _ALIGNMENT

    def use(self, call: int) -> None:
        """It is an argument of this call."""
        self.used = (call, call) if self.used is None else (self.used[0], call)

    def meets(self, other: _Buffer) -> bool:
        """Whether both are needed at once."""
        return self.used is not None and other.used is not None and _overlap(self.used, other.used)


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


class Arena:
    """Memory that every other layer shares: a layer's result lies here while the next one reads it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def of(self, num_bytes: int) -> Tensor:
        """At least so many bytes. Who was given less before keeps that."""
        if len(self._memory) < num_bytes + _ALIGNMENT:
            self._memory = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8)
        return self._memory[-self._memory.data_ptr() % _ALIGNMENT :]


@dataclass(frozen=True)
class Tape:
    """A layer's calls, for the keys and values that it was recorded with."""

    calls: Any
    changes: Any
    result: Tensor
    kv: tuple[Tensor, Tensor]


class Recording:
    """Makes a tape of what was seen of one run."""

    def __init__(self, notes: Notes, watch: Watch, x: Tensor, batch: AttentionBatch) -> None:
        rows = len(x)
        if watch.computes or any(len(given) != rows for given in watch.given):
            raise Unrecordable
        if any(name not in _STEPS for name, _ in notes.calls):
            raise Unrecordable
        self._calls = notes.calls
        self._x = x.data_ptr()
        self._known = fields_of(rows, batch)
        self._buffers = [_Buffer(t.data_ptr(), t.nbytes, t.nbytes // rows) for t in watch.given]

    def tape(self, result: Tensor, kv: tuple[Tensor, Tensor], arena: Arena) -> Tape:
        """With all of the layer's memory in `arena`."""
        memory = arena.of(self._placed(result))
        calls, changes = (_Call * len(self._calls))(), []
        for index, (name, arguments) in enumerate(self._calls):
            calls[index].step = _NUMBERS[name]
            for number, (kind, value) in enumerate(zip(_STEPS[name], arguments, strict=True)):
                change = self._change(kind, value)
                if change is not None:
                    changes.append(_Change(index, number, *change))
                else:
                    calls[index].arguments[number] = self._constant(kind, value, memory.data_ptr())
        place = self._buffer_at(result.data_ptr()).place
        width = result.shape[1]
        whole = memory[place : place + MAX_ROWS * width * result.itemsize].view(result.dtype).view(MAX_ROWS, width)
        return Tape(calls, (_Change * len(changes))(*changes), whole, kv)

    def _placed(self, result: Tensor) -> int:
        """Give each buffer the lowest place that nobody needs meanwhile; returns how many bytes that takes."""
        for index, (name, arguments) in enumerate(self._calls):
            for kind, value in zip(_STEPS[name], arguments, strict=True):
                if kind == "x" and value != self._x:
                    self._buffer_at(value).use(index)
        self._buffer_at(result.data_ptr()).use(len(self._calls))
        placed: list[_Buffer] = []
        for buffer in self._buffers:
            buffer.place = _lowest(buffer, [other for other in placed if other.meets(buffer)])
            placed.append(buffer)
        return max(buffer.place + buffer.size for buffer in placed)

    def _buffer_at(self, address: int) -> _Buffer:
        for buffer in self._buffers:
            if buffer.start <= address < buffer.start + buffer.num_bytes:
                return buffer
        raise Unrecordable

    def _change(self, kind: str, value: int) -> tuple[int, int] | None:
        """Field and factor, if the argument isn't the same in each replay."""
        if kind == "x":
            return (INPUT, 1) if value == self._x else None
        if kind == "k":
            return None
        field = _FIELDS[kind]
        factor, rest = divmod(value, self._known[field]) if kind == "r" else (1, value - self._known[field])
        if rest:
            raise Unrecordable
        return field, factor

    def _constant(self, kind: str, value: float, arena: int) -> int:
        if kind == "x":
            buffer = self._buffer_at(int(value))
            return arena + buffer.place + int(value) - buffer.start
        # A float fills the lower half.
        return int.from_bytes(struct.pack("<f", value), "little") if isinstance(value, float) else value


def _lowest(buffer: _Buffer, taken: Iterable[_Buffer]) -> int:
    place = 0
    for other in sorted(taken, key=lambda other: other.place):
        if place + buffer.size <= other.place:
            break
        place = max(place, other.place + other.size)
    return place
