"""The proof at load that a foreign model computes over our KV what it computes with its own attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orcinus.errors import CheckpointError
from orcinus.models import ModelShape
from orcinus.models.foreign.check import ATTENTION_NAME, CHECKED_ATTENTION_NAME, EXPERTS_NAME
from orcinus.models.foreign.masks import is_causal_window, rule_of
from orcinus.models.foreign.plug import TILE, Call, Plug, batch_of, fresh_kv, padded, run_tile, tiles

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# More than a tile, so that a sequence reads what an earlier one wrote.
PROBE_TOKENS = 40
# Of states and logits, as `_difference` measures it. Rounding in bfloat16 came to 0.004 .. 0.08 over 80 small random
# models and to 0.04 in a trained one; there, positions off by one came to 0.3 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model with its plug in."""

    model: PreTrainedModel
    plug: Plug

    @property
    def name(self) -> str:
        """The class, as config.json names it."""
        return type(self.model).__name__

    def logits(self, states: Tensor) -> Tensor:
        """The model's own head on up to TILE rows, float32."""
        with torch.inference_mode():
            self.plug.states = padded(states)[None]
            try:
                ids = torch.zeros(1, TILE, dtype=torch.int64, device=states.device)
                logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
            finally:
                self.plug.states = None
        return logits[0, : len(states)].float()


def probe(foreign: Foreign, config: PretrainedConfig) -> ModelShape:
    """Run a prompt through our attention and through the model's own; the sizes that came to light.

    Raises:
        CheckpointError: it can't be served this way, and why.
    """
    text = config.get_text_config()
    longest: int = text.max_position_embeddings
    tokens = _prompt(text, min(PROBE_TOKENS, longest)).to(foreign.model.device)
    with torch.inference_mode():
        hidden_size = _note_calls(foreign, tokens)
        for problem in _problems(foreign.plug.calls, text, longest):
            raise CheckpointError(f"{foreign.name} can't run over a paged KV: {problem}.")
        num_kv_heads, head_dim = foreign.plug.calls[0].kv_shape
        shape = ModelShape(
            architecture=foreign.name,
            vocab_size=text.vocab_size,
            hidden_size=hidden_size,
            num_layers=len(foreign.plug.calls),
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            # Not known of foreign modules; what most of them have at most.
            widest=12 * text.hidden_size,
            max_positions=longest,
        )
        foreign.plug.calls.clear()
        _compare(foreign, shape, tokens)
    return shape


def _prompt(config: Any, length: int) -> Tensor:
    """No token for padding: some models count positions without those."""
    pads = torch.tensor([config.pad_token_id if isinstance(config.pad_token_id, int) else -1])
    tokens = torch.arange(config.vocab_size)
    tokens = tokens[~torch.isin(tokens, pads)]
    return tokens[(torch.arange(length) * 11 + 3) % len(tokens)]


def _note_calls(foreign: Foreign, tokens: Tensor) -> int:
    """One tile without KV: only who calls attention, and with what, counts. The width of the states."""
    ids, positions = padded(tokens[:TILE])[None], torch.arange(TILE, device=tokens.device)[None]
    foreign.model.set_attn_implementation(CHECKED_ATTENTION_NAME)
    try:
        out = foreign.plug.body(input_ids=ids, position_ids=positions, use_cache=False)
        foreign.plug.output = type(out)
        size: int = out.last_hidden_state.shape[-1]
    except Exception as error:  # foreign code: whatever it raises, it can't be served
        raise CheckpointError(
            f"{foreign.name} can't run over a paged KV: {type(error).__name__}: {str(error)[:200]}."
        ) from error
    finally:
        foreign.model.set_attn_implementation(ATTENTION_NAME)
    return size


def _problems(calls: list[Call], config: Any, longest: int) -> Iterator[str]:
    """What shows that our attention would leave something out, or that not all of the model went through it."""
    for call in calls:
        if call.objection:
            yield f"its attention takes {call.objection}"
    layers = [call.layer for call in calls]
    if len(layers) > len(set(layers)):
        yield "a layer calls its attention more than once"
    # Of decoders that once had an encoder, the general name means the encoder's.
    num_layers = getattr(config, "decoder_layers", config.num_hidden_layers)
    if sorted(layers) != list(range(num_layers)):
        yield f"{len(layers)} of its {num_layers} layers call an attention that can be replaced"
    if len({call.kv_shape for call in calls}) > 1:
        yield "its layers differ in heads"
    # Layers share masks, and a rule is read over all positions.
    seen = {(id(call.mask), call.window): call for call in calls}
    for call in seen.values():
        yield from _mask_problems(call, longest)


def _mask_problems(call: Call, longest: int) -> Iterator[str]:
    if call.mask is None:
        return
    rule = rule_of(call.mask)
    if rule is None:
        yield "it gives attention a mask of its own"
    elif not is_causal_window(rule, call.window, longest):
        window = "no window" if call.window is None else f"a window of {call.window}"
        yield f"the mask of layer {call.layer} hides other keys than its attention is told ({window})"


def _compare(foreign: Foreign, shape: ModelShape, tokens: Tensor) -> None:
    kv, tables = fresh_kv(foreign.model, shape, 1)
    batch = batch_of([(tokens, 0)], tables)
    states = [run_tile(foreign.plug, tokens, tile) for tile in tiles(batch, kv)]
    logits = [foreign.logits(part) for part in states]
    for what, ours, theirs in zip(("states", "logits"), (states, logits), _own(foreign, tokens), strict=True):
        error, dtype = _difference(torch.cat(ours), theirs), states[0].dtype
        if not error <= _TOLERANCE[dtype]:
            remedy = "" if dtype == torch.float32 else " If it is mere rounding, dtype float32 is served."
            raise CheckpointError(
                f"{foreign.name} gives other {what} over a paged KV than with its own attention (off by {error:.2g} of "
                f"their size), so it isn't served.{remedy}"
            )


def _own(foreign: Foreign, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """States and logits of the model as it came."""
    foreign.model.set_attn_implementation("eager")
    foreign.model.set_experts_implementation("eager")
    try:
        states: Tensor = foreign.plug.body(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
        logits: Tensor = foreign.model(input_ids=tokens[None], use_cache=False).logits[0]
    finally:
        foreign.model.set_attn_implementation(ATTENTION_NAME)
        foreign.model.set_experts_implementation(EXPERTS_NAME)
    return states, logits


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Of the row that is furthest off, in root mean squares: single values of right models stray far in bfloat16."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.float(), theirs.float()
    return ((ours - theirs).square().mean(dim=-1) / theirs.square().mean(dim=-1)).max().sqrt().item()
