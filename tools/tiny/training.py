"""Training orcinus-tiny: conversations packed into rows, AdamW, a schedule that ends when steps or minutes do."""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny.text import training_text
from tiny.tokenizer import Encoder

IGNORED = -100  # the label that cross_entropy leaves out
WARMUP = 0.02  # shares of the run
DECAY_FROM = 0.6


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how to train: whichever of `steps` and `minutes` ends first ends the run."""

    steps: int
    minutes: float
    seed: int = 0
    rows: int = 8
    row_tokens: int = 192
    learning_rate: float = 2e-3
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Batch:
    """Packed rows, all `[rows, row_tokens]`; positions restart in each conversation, labels are the next tokens."""

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def packed_rows(encoder: Encoder, plan: TrainingPlan, pad: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Rows of ids, positions and labels; a conversation that no longer fits opens the next row."""
    ids: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    for document in training_text(plan.seed):
        tokens, learnt = encoder.encode(document)
        if len(tokens) > plan.row_tokens:
            continue
        if len(ids) + len(tokens) > plan.row_tokens:
            gap = plan.row_tokens - len(ids)
            # The padding is a conversation of its own, so that nothing attends across it.
            yield ids + [pad] * gap, positions + list(range(gap)), labels + [IGNORED] * gap
            ids, positions, labels = [], [], []
        ids += tokens
        positions += range(len(tokens))
        labels += [token if is_learnt else IGNORED for token, is_learnt in zip(tokens[1:], learnt[1:], strict=True)]
        labels.append(IGNORED)


def batches(encoder: Encoder, plan: TrainingPlan, pad: int) -> Iterator[Batch]:
    """The training text as packed batches, without end."""
    rows = packed_rows(encoder, plan, pad)
    while True:
        ids, positions, labels = zip(*itertools.islice(rows, plan.rows), strict=True)
        yield Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels))


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over the answers' tokens.

    Positions that restart make `transformers` mask attention between the conversations of a row.
    """
    hidden = model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
    learnt = batch.labels != IGNORED
    # Only the answers' states, [learnt, hidden], go through the vocabulary.
    return functional.cross_entropy(model.lm_head(hidden[learnt]).float(), batch.labels[learnt])


def rate_at(done: float) -> float:
    """Share of the peak learning rate when `done` of the run (0 to 1) has passed: warm up, stay, fall to 0."""
    if done < WARMUP:
        return done / WARMUP
    if done < DECAY_FROM:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (done - DECAY_FROM) / (1 - DECAY_FROM)))


def optimizer_for(model: LlamaForCausalLM, plan: TrainingPlan) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms don't."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, plan: TrainingPlan) -> int:
    """Train in place, matrix products in bfloat16; returns the number of steps made."""
    optimizer = optimizer_for(model, plan)
    for layer in model.model.layers:
        layer.compile(dynamic=False)  # fuses the elementwise work, a quarter less time a step
    feed = batches(Encoder(tokenizer), plan, tokenizer.pad_token_id)
    started_at = time.monotonic()
    smoothed = 0.0
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:
        for step in range(plan.steps):
            minutes = (time.monotonic() - started_at) / 60
            done = max(step / plan.steps, minutes / plan.minutes)
            if done >= 1:
                return step
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * max(rate_at(done), 1e-4)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, next(feed))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            smoothed = loss.item() if step == 0 else 0.95 * smoothed + 0.05 * loss.item()
            bar.update(100 * done - bar.n)
            bar.set_postfix(step=step, loss=f"{smoothed:.4f}")
    return plan.steps
