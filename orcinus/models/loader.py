"""Weights from a folder of safetensors files. Nothing is ever downloaded, unpickled or run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec
import torch

from orcinus.errors import CheckpointError, nearest
from orcinus.models.fields import ConfigFields
from orcinus.models.quantized.gguf import gguf_tensors
from orcinus.models.stored import StoredTensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# By the format's rule; a larger header means a damaged length.
MAX_HEADER_BYTES = 100_000_000
# Of each tensor, for the revision.
SAMPLE_BYTES = 256
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
# Of quantised weights.
_INTEGERS = {"I64": 8, "I32": 4, "I8": 1, "U8": 1}
_SERVED_DTYPES = _FLOATS | _INTEGERS
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_REQUESTED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_dtype(requested: str, stored: str, device: torch.device) -> tuple[torch.dtype, str | None]:
    """The dtype to compute in, and a notice for the user where it isn't the checkpoint's own.

    Args:
        requested: `auto`, `float32` or `bfloat16`.
        stored: as the checkpoint names its own.

    Raises:
        CheckpointError: a dtype that can't be served.
    """
    if requested != "auto":
        if requested not in _REQUESTED:
            known = ("auto", *_REQUESTED)
            raise CheckpointError(f"dtype is {requested!r}{nearest(requested, known)}; use one of {', '.join(known)}.")
        dtype = _REQUESTED[requested]
    elif stored == "float16":
        dtype = torch.bfloat16
    elif stored in _REQUESTED:
        dtype = _REQUESTED[stored]
    else:
        raise CheckpointError(f"the checkpoint's dtype is {stored!r}; choose dtype float32 or bfloat16.")
    if stored != "float16":
        return dtype, None
    name = str(dtype).removeprefix("torch.")
    choice = "" if requested != "auto" else " (dtype float32 keeps every bit of the weights and takes twice the memory)"
    return dtype, f"float16 checkpoint: computing in {name} on {device.type}{choice}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder, by name, all headers checked and no weight read yet.

    Args:
        revision: hash of config.json, and of every file's size, header and first bytes of each tensor. Cheap, so not
            of all bytes: it tells checkpoints apart, a fine-tune from its base too, but is no proof of integrity.
    """

    folder: Path
    tensors: Mapping[str, StoredTensor]
    revision: str

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read every header.

        Raises:
            CheckpointError: a file missing, truncated or corrupt; it names file and remedy.
        """
        digest = blake2b((folder / "config.json").read_bytes(), digest_size=16)
        tensors: dict[str, StoredTensor] = {}
        for path in _weight_files(folder):
            if path.suffix == ".gguf":
                stored, identity = gguf_tensors(path)
                digest.update(identity)
                tensors.update(stored)
                continue
            header = _header(path)
            stored = _stored_tensors(path, header)
            digest.update(path.stat().st_size.to_bytes(8, "little") + header)
            for sample in _samples(path, stored.values()):
                digest.update(sample)
            tensors.update(stored)
        return cls(folder, tensors, digest.hexdigest())

    def with_names(self, older: Mapping[str, str]) -> Checkpoint:
        """The same with today's names, by the ends of `older` ones."""
        tensors = {_current(name, older): tensor for name, tensor in self.tensors.items()}
        return Checkpoint(self.folder, tensors, self.revision)

    def stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Where `name` lies, which must have `shape` and be of floats.

        Raises:
            CheckpointError: missing, misshapen or quantised.
        """
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self.folder}: tensor {name} is missing{nearest(name, self.tensors)}. Either config.json belongs to "
                "another model or the weights are incomplete; download or save the checkpoint again."
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}, config.json asks for {list(shape)}. "
                "The two belong to different models; download or save the checkpoint again."
            )
        if stored.dtype in _INTEGERS:
            raise CheckpointError(
                f"{stored.file}: tensor {name} is stored as {stored.dtype} where floats are needed, and config.json's "
                "quantization_config doesn't say how to read it. Use the checkpoint before quantisation."
            )
        return stored

    def refuse_unused(
        self, used: Collection[str], ignored: tuple[str, ...], needless: Callable[[str], bool] = lambda _: False
    ) -> None:
        """A tensor that nobody reads belongs to a mechanism that would be missing from the answers.

        Raises:
            CheckpointError: a tensor neither `used` nor ending in one of `ignored` nor `needless`.
        """
        unused = sorted(n for n in self.tensors.keys() - used if not n.endswith(ignored) and not needless(n))
        if unused:
            raise CheckpointError(
                f"{self.tensors[unused[0]].file}: {len(unused)} tensors have no place in the model that config.json "
                f"describes, among them {unused[0]}. Use the config.json that belongs to these weights."
            )


def _current(name: str, older: Mapping[str, str]) -> str:
    ends = [end for end in older if name.endswith(end)]
    return name.removesuffix(ends[0]) + older[ends[0]] if ends else name


def damaged(path: Path, reason: str) -> CheckpointError:
    """To be raised for a file whose bytes can't be right."""
    return CheckpointError(f"{path} is damaged ({reason}); download or copy it again.")


def _weight_files(folder: Path) -> list[Path]:
    """The single file, or the shards that the index names."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return list(_shards(folder / INDEX_FILE))
    if gguf := sorted(folder.glob("*.gguf")):
        return gguf[:1]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} holds weights only as pickle ({pickled[0]}), which can run code and is never loaded. "
            "Convert them where you trust them: load with Transformers and `save_pretrained` writes safetensors."
        )
    raise CheckpointError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; complete the download.")


def _shards(index: Path) -> Iterator[Path]:
    weight_map = ConfigFields.read(index).inner("weight_map").values
    if not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty; download the file again.")
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names the shard {name!r} outside its folder; refusing to read it.")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name} is missing, though {index.name} names it; download it.")
        yield index.parent / name


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file: 8 bytes of length, then as many of JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise damaged(path, f"its header claims {length} bytes of a file of {path.stat().st_size}")
        return file.read(length)


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _stored_tensors(path: Path, header: bytes) -> dict[str, StoredTensor]:
    """The tensors of one file, checked against its size."""
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries = {
            name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items() if name != "__metadata__"
        }
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, f"its header is no table of tensors: {error}") from error
    expected = 8 + len(header) + max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if path.stat().st_size != expected:
        raise damaged(path, f"it has {path.stat().st_size} bytes where its header asks for {expected}")
    return {name: _stored(path, 8 + len(header), name, entry) for name, entry in entries.items()}


def _samples(path: Path, tensors: Iterable[StoredTensor]) -> Iterator[bytes]:
    """The first bytes of each tensor of one file."""
    with path.open("rb") as file:
        for tensor in tensors:
            file.seek(tensor.offset)
            yield file.read(min(SAMPLE_BYTES, tensor.num_bytes))


def _stored(path: Path, start: int, name: str, entry: _Entry) -> StoredTensor:
    num_bytes = entry.data_offsets[1] - entry.data_offsets[0]
    if entry.dtype not in _SERVED_DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} is stored as {entry.dtype}; floats of 16 to 64 bits and integers are read. "
            "Use the checkpoint before quantisation."
        )
    if entry.data_offsets[0] < 0 or num_bytes != math.prod(entry.shape) * _SERVED_DTYPES[entry.dtype]:
        raise damaged(path, f"tensor {name} has {num_bytes} bytes for the shape {list(entry.shape)}")
    return StoredTensor(path, name, start + entry.data_offsets[0], entry.shape, num_bytes, entry.dtype)
