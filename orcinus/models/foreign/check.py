"""Which foreign models can be served, and reading one with our attention and experts asked for by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from orcinus.errors import CheckpointError
from orcinus.models.config import find_folder
from orcinus.models.foreign.experts import run_experts
from orcinus.models.foreign.masks import name_rule
from orcinus.models.foreign.plug import attend

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION_NAME = "orcinus_paged"
# The same attention, but for it `transformers` makes masks: of no size, to be read at load.
CHECKED_ATTENTION_NAME = "orcinus_checked"
EXPERTS_NAME = "orcinus_tiles"
# Rotations that look at the longest sequence of a batch.
_LOOKING_ROTATIONS = frozenset({"dynamic", "longrope"})
_SERVED_LAYERS = ("full_attention", "sliding_attention")
# Tensors that older versions stored and that newer ones compute.
_COMPUTED = re.compile(r"\.(inv_freq|masked_bias|attn\.bias|attention\.bias)$")


def foreign_dtype(folder: Path) -> str:
    """The dtype that the checkpoint names, `float32` if it doesn't."""
    dtype = getattr(checked_config(folder), "dtype", None)
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def checked_config(folder: Path) -> PretrainedConfig:
    """Never downloads, never runs code from the folder.

    Raises:
        CheckpointError: no such model, or one that this way can't serve.
    """
    path = find_folder(folder) / "config.json"
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise CheckpointError(
            f"{path}: not a model of our own table, and transformers isn't installed; `pip install "
            "'orcinus-llm[transformers]'` serves any causal model that it knows."
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        known = type(config) in AutoModelForCausalLM._model_mapping
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(f"{path}: transformers can't read it either: {str(error)[:300]}") from error
    if not known or config.is_encoder_decoder:
        raise CheckpointError(f"{path}: {config.model_type} is no causal language model that transformers knows.")
    return cast("PretrainedConfig", config)


def refuse_unservable(config: PretrainedConfig) -> None:
    """What can be told before any weight is read.

    Raises:
        CheckpointError: it names the model and the reason.
    """
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    text = config.get_text_config()
    for layer, layer_type in enumerate(getattr(text, "layer_types", None) or ()):
        if layer_type not in _SERVED_LAYERS:
            raise CheckpointError(
                f"{kind.__name__} can't run over a paged KV: layer {layer} is of the type {layer_type}."
            )
    if kind._is_stateful:
        raise CheckpointError(f"{kind.__name__} can't run over a paged KV: it carries a recurrent state.")
    if not kind._can_set_attn_implementation():
        raise CheckpointError(f"{kind.__name__} can't run over a paged KV: its attention can't be replaced.")
    if not getattr(text, "max_position_embeddings", None):
        raise CheckpointError(f"{kind.__name__} doesn't say how long a sequence it was made for.")
    _refuse_rotations(kind.__name__, text)


def _refuse_rotations(name: str, config: Any) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = {parameters.get("rope_type")} | {
        inner.get("rope_type") for inner in parameters.values() if isinstance(inner, dict)
    }
    if looking := kinds & _LOOKING_ROTATIONS:
        raise CheckpointError(
            f"{name} rotates by the longest sequence of a batch (rope type {min(map(str, looking))}), so answers would "
            "depend on the requests beside them."
        )


def read_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with our attention asked for by name, all of its weights from the files and all of the files' used.

    Raises:
        CheckpointError: it can't be had so.
    """
    try:
        model, found = _read(folder, dtype)
    except (ValueError, OSError, RuntimeError, ImportError, TypeError, LookupError, AttributeError) as error:
        # A model that doesn't ask for its attention by name, weights that don't fit, a library that is missing.
        raise CheckpointError(
            f"{folder}: transformers can't load it with another attention ({type(error).__name__}: {str(error)[:300]})."
        ) from error
    # Transformers warns, and goes on with random numbers or without the tensor.
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, among them {missing[0]}. Either config.json belongs to "
            "another model or the weights are incomplete; download or save the checkpoint again."
        )
    if unused := sorted(name for name in found["unexpected_keys"] if not _COMPUTED.search(name)):
        raise CheckpointError(
            f"{folder}: {len(unused)} tensors have no place in the model that config.json describes, among them "
            f"{unused[0]}. Use the config.json that belongs to these weights."
        )
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model


def _read(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
    from transformers.integrations.moe import ExpertsInterface
    from transformers.utils import logging

    # Registered for the process, as names; the state they work on hangs on each model's own modules.
    AttentionInterface.register(ATTENTION_NAME, attend)
    AttentionInterface.register(CHECKED_ATTENTION_NAME, attend)
    AttentionMaskInterface.register(CHECKED_ATTENTION_NAME, name_rule)
    ExpertsInterface.register(EXPERTS_NAME, run_experts)
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        # Typed as if it never gave more than the model.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            experts_implementation=EXPERTS_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    model, found = loaded
    return model, found
