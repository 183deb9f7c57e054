"""How often orcinus-tiny is right: greedy answers of `transformers` to exercises whose operands were held out."""

import random
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from tiny.text import TASKS, Exercise, Split, exercise

MAX_NEW_TOKENS = 200
BATCH_SIZE = 100
MISTAKES_SHOWN = 3


@dataclass(frozen=True)
class Score:
    """Of `asked` exercises of one task, `right` were answered exactly; `mistakes` shows some that weren't."""

    task: str
    asked: int
    right: int
    mistakes: tuple[tuple[Exercise, str], ...]


def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
    """Greedy answers to single questions, one batch through the chat template."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def is_right(asked: Exercise, answer: str) -> bool:
    """Exact match; a story is right when it has the shape of one, about the animal asked for."""
    if asked.task != "story":
        return answer == asked.answer
    animals = [word for word in asked.prompt.rstrip(".?").split() if f"a {word} named" in asked.answer]
    return answer.startswith("Once upon a time") and answer.endswith("The end.") and all(a in answer for a in animals)


def score_task(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, task: str, count: int, seed: int) -> Score:
    """Ask `count` held-out exercises of a task."""
    rng = random.Random(f"{seed}:{task}")
    asked = [exercise(rng, task, Split.HELD_OUT) for _ in range(count)]
    mistakes: list[tuple[Exercise, str]] = []
    for start in range(0, count, BATCH_SIZE):
        part = asked[start : start + BATCH_SIZE]
        replies = answers(model, tokenizer, [each.prompt for each in part])
        mistakes += [pair for pair in zip(part, replies, strict=True) if not is_right(*pair)]
    return Score(task, count, count - len(mistakes), tuple(mistakes[:MISTAKES_SHOWN]))


def score_all(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[Score]:
    """Scores of every task, `count` exercises each."""
    model.eval()
    return [score_task(model, tokenizer, task, count, seed) for task in tqdm(TASKS, desc="evaluation")]
