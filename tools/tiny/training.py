"""Training orcinus-tiny: two processes of one thread, Muon, a schedule that ends when steps or minutes do."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny.network import Weights, compiled_loss
from tiny.packing import RowShape, batches
from tiny.text import Conversation, Plain
from tiny.tokenizer import VOCABULARY, Encoder

WARMUP = 0.02  # share of the run
CHECKPOINT_MINUTES = 5.0
WIDEST_ADAPTER = 16
PAIRED = 0.9  # correlation at the start of a word's two embeddings
BARRIER_TIMEOUT = 600.0  # compiling takes minutes where everyone wants the cores
SHORT_ROWS = RowShape(rows=16, tokens=128)
LONG_ROWS = RowShape(rows=4, tokens=384)


@dataclass(frozen=True)
class Size:
    """Shape of a model; heads of 64."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


TINY = Size(hidden=320, intermediate=896, layers=6, heads=4, kv_heads=2)
DRAFT = Size(hidden=160, intermediate=384, layers=2, heads=2, kv_heads=2)


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how to train: whichever of `steps` and `minutes` ends first ends the run.

    Most documents are short, and attention over long rows is slow, so there are rows of two lengths; `short` and `long`
    are what one process packs.
    """

    steps: int
    minutes: float
    seed: int = 0
    processes: int = 2
    short: RowShape = SHORT_ROWS
    long: RowShape = LONG_ROWS
    learning_rate: float = 2e-3
    weight_decay: float = 0.05


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size, seed: int) -> LlamaForCausalLM:
    """An untrained model, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _pair_words(model.model.embed_tokens.weight.data, tokenizer.get_vocab())
    return model


def _pair_words(embedding: torch.Tensor, id_by_token: dict[str, int]) -> None:
    """Start a word and the same word after a space close together.

    Else copying a word into JSON is learnt word by word, and names were not after half an hour.
    """
    pairs = [
        (id_by_token[f"Ġ{token}"], index)
        for token, index in id_by_token.items()
        if len(token) > 1 and f"Ġ{token}" in id_by_token
    ]
    spaced, plain = torch.tensor(pairs).T
    embedding[plain] = PAIRED * embedding[spaced] + (1 - PAIRED**2) ** 0.5 * embedding[plain]


def rate_at(done: float) -> float:
    """Share of the peak learning rate when `done` of the run has passed: up during `WARMUP`, then straight to 0."""
    return min(done / WARMUP, 1 - done)


def _is_layer_matrix(weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and min(weight.shape) > WIDEST_ADAPTER and max(weight.shape) < VOCABULARY


def optimizers_for(parameters: list[torch.nn.Parameter], plan: TrainingPlan) -> list[torch.optim.Optimizer]:
    """Muon for large matrices, AdamW for the rest: embedding, norms, and the thin matrices of adapters.

    After 800 steps of a smaller model Muon sorted 86 % of held-out lists where AdamW alone sorted 30 %.
    """
    matrices = [weight for weight in parameters if _is_layer_matrix(weight)]
    others = [weight for weight in parameters if all(weight is not matrix for matrix in matrices)]
    rate = plan.learning_rate
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))
    return optimizers


def named_weights(model: torch.nn.Module) -> Weights:
    """A model's own parameters."""
    return dict(model.named_parameters())


@dataclass(frozen=True)
class Job:
    """One training run, as each of its processes gets it; model and tensors lie in shared memory.

    Processes of one thread each, not one of many threads: threads meet at the end of every operation, processes once a
    step, so that no core waits for another that also serves someone else. Twice as fast on two busy cores.

    `weights_of` gives the weights to run with, by their names in the base model. Of the arrays, `gradients` is
    `[processes, parameters]`, `learnt` and `losses` are `[processes]`, and `done` is the share of the run that has
    passed, which process 0 decides.
    """

    model: torch.nn.Module
    weights_of: Callable[[torch.nn.Module], Weights]
    documents: Callable[[], Iterator[Conversation | Plain]]
    tokenizer: PreTrainedTokenizerFast
    plan: TrainingPlan
    gradients: torch.Tensor
    learnt: torch.Tensor
    losses: torch.Tensor
    done: torch.Tensor
    barrier: Barrier


class Trainer:
    """One process's share of the work: gradients of its documents, updates of its parameters."""

    def __init__(self, job: Job, rank: int) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self._job, self._rank = job, rank
        self._parameters = trained(job.model)
        self._loss = compiled_loss(job.model.config)
        num_processes = len(job.learnt)
        self._own = range(rank, len(self._parameters), num_processes)
        self._optimizers = optimizers_for([self._parameters[index] for index in self._own], job.plan)
        mine = itertools.islice(job.documents(), rank, None, num_processes)
        self._feed = batches(
            map(Encoder(job.tokenizer).encode, mine), job.plan.short, job.plan.long, job.tokenizer.pad_token_id
        )

    def step(self, done: float) -> bool:
        """One update together with the other processes; whether the run goes on."""
        job, rank = self._job, self._rank
        job.learnt[rank], job.losses[rank] = 0, 0
        for part in next(self._feed):
            loss = self._loss(job.weights_of(job.model), part)
            loss.backward()
            job.losses[rank] += loss.item()
            job.learnt[rank] += part.num_learnt
        for parameter, place in zip(self._parameters, self._places(job.gradients[rank]), strict=True):
            place.copy_(parameter.grad)
            parameter.grad = None
        if rank == 0:
            job.done[0] = done
        job.barrier.wait(BARRIER_TIMEOUT)
        goes_on = job.done.item() <= 1
        if goes_on:
            self._update()
        job.barrier.wait(BARRIER_TIMEOUT)
        return goes_on

    def _update(self) -> None:
        gradient = self._job.gradients.sum(dim=0) / self._job.learnt.sum()
        gradient /= max(1.0, gradient.norm().item())
        places = self._places(gradient)
        for index in self._own:
            self._parameters[index].grad = places[index]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._job.plan.learning_rate * rate_at(self._job.done.item())
            optimizer.step()
            optimizer.zero_grad()

    def _places(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector of all parameters' numbers, as views in their shapes."""
        parts = flat.split([parameter.numel() for parameter in self._parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._parameters, strict=True)]


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training changes, in an order that all processes share."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _follow(job: Job, rank: int) -> None:
    """The life of every process but the first."""
    trainer = Trainer(job, rank)
    while trainer.step(done=0.0):
        pass


def _lead(job: Job, checkpoint: Callable[[int], None]) -> int:
    """The first process: keeps the time, shows progress, saves now and then; returns the number of steps made."""
    trainer = Trainer(job, rank=0)
    started_at = saved_at = time.monotonic()
    smoothed: float | None = None
    steps = 0

    def share() -> float:
        return max((steps + 1) / job.plan.steps, (time.monotonic() - started_at) / 60 / job.plan.minutes)

    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}", mininterval=1) as bar:
        while trainer.step(share()):
            # The first step compiles, which takes a minute or two and is no part of the schedule.
            started_at = time.monotonic() if steps == 0 else started_at
            steps += 1
            loss = (job.losses.sum() / job.learnt.sum()).item()
            smoothed = loss if smoothed is None else 0.95 * smoothed + 0.05 * loss
            bar.set_postfix(step=steps, loss=f"{smoothed:.4f}", refresh=False)
            bar.update(100 * job.done.item() - bar.n)
            if time.monotonic() - saved_at > 60 * CHECKPOINT_MINUTES:
                checkpoint(steps)
                saved_at = time.monotonic()
    return steps


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    plan: TrainingPlan,
    documents: Callable[[], Iterator[Conversation | Plain]],
    weights_of: Callable[[torch.nn.Module], Weights] = named_weights,
    checkpoint: Callable[[int], None] = lambda step: None,
) -> int:
    """Train a model in place with `plan.processes` processes; returns the number of steps made.

    `documents` and `weights_of` are called in each process, so they must be picklable.
    """
    context = torch.multiprocessing.get_context("spawn")
    size = sum(parameter.numel() for parameter in trained(model))
    job = Job(
        model=model.share_memory(),
        weights_of=weights_of,
        documents=documents,
        tokenizer=tokenizer,
        plan=plan,
        gradients=torch.zeros(plan.processes, size).share_memory_(),
        learnt=torch.zeros(plan.processes).share_memory_(),
        losses=torch.zeros(plan.processes).share_memory_(),
        done=torch.zeros(1).share_memory_(),
        barrier=context.Barrier(plan.processes),
    )
    followers = [context.Process(target=_follow, args=(job, rank), daemon=True) for rank in range(1, plan.processes)]
    for follower in followers:
        follower.start()
    steps = _lead(job, checkpoint)
    for follower in followers:
        follower.join()
    return steps
