"""What can be said against a checkpoint within milliseconds: without torch, and without reading a weight.

It refuses only what the engine would refuse too. The engine's own checks go further, and say so themselves.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from orcinus.engine.config import EngineConfig
from orcinus.errors import CheckpointError, ConfigurationError, MemoryPlanError
from orcinus.text.chat import ChatTemplate
from orcinus.text.generation import GenerationDefaults
from orcinus.text.tokenizer import Tokenizer

GIB = 2**30
_SINGLE_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_POSITION_KEYS = ("max_position_embeddings", "n_positions")
_UNSTRETCHED = (None, "default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What config.json and the headers of the weights say.

    Args:
        longest: most tokens of a sequence; None where that takes more than a glance.
    """

    architecture: str
    num_tensors: int
    num_elements: int
    longest: int | None

    def __str__(self) -> str:
        longest = "" if self.longest is None else f", sequences of up to {self.longest} tokens"
        return f"{self.architecture}, {self.num_elements / 1e6:.1f} M weights in {self.num_tensors} tensors{longest}"


def check_checkpoint(config: EngineConfig) -> CheckpointFacts:
    """Look at the folder, and at what was chosen in its light.

    Raises:
        CheckpointError: no such folder, or one without a readable config.json or whole weights.
        ConfigurationError: choices that this checkpoint or this installation doesn't allow.
        MemoryPlanError: more than the machine's whole memory.
    """
    folder = _folder(config.model)
    values = _config_values(folder / "config.json")
    shapes = [shape for path in _weight_files(folder) for shape in _shapes(path)]
    facts = CheckpointFacts(
        architecture=_architecture(folder / "config.json", values),
        num_tensors=len(shapes),
        num_elements=sum(map(math.prod, shapes)),
        longest=longest_sequence(values),
    )
    _check_installation(config)
    _check_length(config, facts)
    _check_memory(config, facts)
    return facts


def check_text_side(folder: Path) -> str:
    """Read tokenizer, chat template and sampling defaults as a front end will; what is there, in words.

    Raises:
        CheckpointError: a file that can't be used.
    """
    tokenizer = Tokenizer.load(folder)
    GenerationDefaults.load(folder)
    if tokenizer is None:
        return "none, so that only token ids can be sent and are answered"
    chat = "a chat template" if ChatTemplate.of(tokenizer) else "no chat template, so no /v1/chat/completions"
    return f"{tokenizer.vocab_size} tokens, {chat}"


def longest_sequence(values: Mapping[str, object]) -> int | None:
    """Positions that a config.json allows, never fewer than the engine finds; None where only that can tell."""
    trained = next((value for key in _POSITION_KEYS if isinstance(value := values.get(key), int)), None)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if trained is None or not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        return None
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1.0)
    if kind in _UNSTRETCHED:
        return trained
    return max(trained, int(trained * factor)) if isinstance(factor, int | float) and math.isfinite(factor) else None


def _folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"model {name} is a file; give the folder that holds config.json and the weights")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"model {name} is no folder here. If it is a hub's name: Orcinus never downloads. Fetch it first, for "
            f"example `hf download {name} --local-dir {name.rsplit('/', 1)[1]}`, and give that folder."
        )
    raise CheckpointError(f"model {name} doesn't exist; give the folder that holds config.json and the weights")


def _config_values(path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; give the folder that `save_pretrained` wrote, or complete the download"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read ({error}); write or download it again") from error


def _architecture(path: Path, values: Mapping[str, object]) -> str:
    named = values.get("architectures") or [values.get("model_type")]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise CheckpointError(f"{path} names neither an architecture nor a model_type; is it that of a model?")
    return named[0]


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    if (folder / _INDEX_FILE).is_file():
        return list(_shards(folder / _INDEX_FILE))
    if any(folder.glob("*.gguf")):
        # The engine looks at it: reading its index would take the package that does.
        return []
    raise CheckpointError(
        f"{folder} holds neither {_SINGLE_FILE} nor {_INDEX_FILE}; complete the download, or convert weights of "
        "another format where you trust them: load with Transformers and `save_pretrained`"
    )


def _shards(index: Path) -> Iterator[Path]:
    shards = _config_values(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: weight_map is missing or empty; download the file again")
    for name in sorted(set(map(str, shards.values()))):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"{index} names {name}, which isn't beside it; complete the download")
        yield index.parent / name


def _shapes(path: Path) -> list[list[int]]:
    try:
        with safe_open(path, framework="np") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download or copy it again") from error


def _check_installation(config: EngineConfig) -> None:
    if config.device == "cuda" and _torch_is_cpu_only():
        raise ConfigurationError(
            "device is cuda, but the torch installed here is a CPU build; use device=cpu, or install a CUDA build"
        )
    if config.model_impl == "transformers" and importlib.util.find_spec("transformers") is None:
        raise ConfigurationError(
            "model_impl is transformers, which isn't installed; `pip install 'orcinus-llm[transformers]'`"
        )


def _torch_is_cpu_only() -> bool:
    """By its version's name: asking torch would load it."""
    return importlib.metadata.version("torch").endswith("+cpu")


def _check_length(config: EngineConfig, facts: CheckpointFacts) -> None:
    if config.max_model_len is not None and facts.longest is not None and config.max_model_len > facts.longest:
        raise ConfigurationError(
            f"max_model_len is {config.max_model_len}, but the checkpoint was made for {facts.longest} positions; "
            f"give {facts.longest} or less"
        )


def _check_memory(config: EngineConfig, facts: CheckpointFacts) -> None:
    """Against all memory there is: what of it is free, the engine sees when it gets there."""
    if config.device == "cuda" or not (config.device == "cpu" or _torch_is_cpu_only()):
        return
    shrunk = 1.0 if config.quantization is None else 0.5 if config.quantization == "int8" else 0.3
    weights = int(facts.num_elements * (4 if config.dtype == "float32" else 2) * shrunk)
    granted, memory = (config.kv_cache_gib or 0.0) * GIB, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if weights + granted > memory:
        raise MemoryPlanError(
            f"model and kv_cache_gib need {weights / GIB:.2f} GiB for weights and {granted / GIB:.2f} GiB for KV "
            f"blocks, more than the {memory / GIB:.2f} GiB of this machine; lower kv_cache_gib, or take a smaller model"
        )
