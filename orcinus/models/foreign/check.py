"""Which foreign models can be served; and the proof at load that over our KV they compute what they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.models import ModelShape
from orcinus.models.config import find_folder
from orcinus.models.foreign.plug import TILE, Plug, attend, batch_of, fresh_kv, padded, run_tile, tiles

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ATTENTION_NAME = "orcinus_paged"
PROBE_TOKENS = 40
# Of the probe's states against the model's own attention: largest difference over their standard deviation.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
# Rotations that look at the longest sequence of a batch.
_LOOKING_ROTATIONS = frozenset({"dynamic", "longrope"})


def can_be_foreign(folder: Path) -> bool:
    """Whether `transformers` is there and knows the folder's model as a causal one."""
    try:
        checked_config(folder)
    except CheckpointError:
        return False
    return True


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


def read_model(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with our attention asked for by name.

    Raises:
        CheckpointError: it can't be had so.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.utils import logging

    # Registered once for the process, as a name; the state it works on hangs on each model's own modules.
    AttentionInterface.register(ATTENTION_NAME, attend)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (ValueError, OSError, RuntimeError, ImportError, TypeError, LookupError, AttributeError) as error:
        # A model that doesn't ask for its attention by name, weights that don't fit, a library that is missing.
        raise CheckpointError(
            f"{folder}: transformers can't load it with another attention ({type(error).__name__}: {str(error)[:300]})."
        ) from error
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model


def probe(model: PreTrainedModel, config: PretrainedConfig, plug: Plug) -> ModelShape:
    """Run a prompt through our attention and through the model's own; the sizes that came to light.

    Raises:
        CheckpointError: it can't be served this way, and why.
    """
    name = type(model).__name__
    text = config.get_text_config()
    _refuse_rotations(name, text)
    tokens = torch.arange(PROBE_TOKENS, device=model.device) * 11 % text.vocab_size
    with torch.inference_mode():
        _find_shapes(model, plug, tokens)
        problems = [*plug.objections, *_unseen(text, plug)]
        if problems:
            raise CheckpointError(f"{name} can't run over a paged KV: {problems[0]}.")
        ((num_kv_heads, head_dim),) = plug.key_shapes
        shape = ModelShape(
            architecture=name,
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            num_layers=len(plug.seen),
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            # Not known of foreign modules; what most of them have at most.
            widest=12 * text.hidden_size,
            max_positions=text.max_position_embeddings,
        )
        _compare(model, plug, shape, tokens)
    return shape


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


def _find_shapes(model: PreTrainedModel, plug: Plug, tokens: Tensor) -> None:
    """One tile without KV: only who calls attention, and with what, counts."""
    ids, positions = padded(tokens[:TILE])[None], torch.arange(TILE, device=tokens.device)[None]
    try:
        model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    except Exception as error:  # foreign code: whatever it raises, it can't be served
        raise CheckpointError(
            f"{type(model).__name__} can't run over a paged KV: {type(error).__name__}: {str(error)[:200]}."
        ) from error


def _unseen(config: Any, plug: Plug) -> Iterator[str]:
    """What shows that not all of the model went through our attention."""
    if sorted(plug.seen) != list(range(config.num_hidden_layers)):
        yield f"{len(plug.seen)} of its {config.num_hidden_layers} layers call an attention that can be replaced"
    if len(plug.key_shapes) > 1:
        yield "its layers differ in heads"
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        if kind not in ("full_attention", "sliding_attention"):
            yield f"layer {layer} is of the type {kind}"
        elif kind == "sliding_attention" and plug.seen.get(layer) is None:
            yield f"layer {layer} has a window that it doesn't tell its attention"


def _compare(model: PreTrainedModel, plug: Plug, shape: ModelShape, tokens: Tensor) -> None:
    kv, tables = fresh_kv(model, shape, 1)
    batch = batch_of([(tokens, 0)], tables)
    ours = torch.cat([run_tile(model, plug, tokens, tile) for tile in tiles(batch, kv)])
    model.set_attn_implementation("eager")
    theirs = model.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
    model.set_attn_implementation(ATTENTION_NAME)
    error = ((ours.float() - theirs.float()).abs().max() / theirs.float().std()).item()
    if not error <= _TOLERANCE[ours.dtype]:
        raise CheckpointError(
            f"{shape.architecture} gives other states over a paged KV than with its own attention (off by {error:.2g} "
            "standard deviations), so it isn't served."
        )
