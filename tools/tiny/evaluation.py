"""How often orcinus-tiny is right: greedy answers of `transformers` to exercises whose operands were held out."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiny.exercise import Check, Exercise, Split
from tiny.text import TASKS, exercise
from tiny.tokenizer import system_text

MAX_NEW_TOKENS = 400
BATCH_SIZE = 50
EVALUATION_SEED = 1


@dataclass(frozen=True)
class Question:
    """A held-out exercise as a conversation; `answer` is a pattern where `check` says so."""

    task: str
    messages: tuple[dict[str, str], ...]
    answer: str
    check: Check


def question_of(asked: Exercise) -> Question:
    """The conversation that asks an exercise; tools are described in the system message as the template would."""
    system = system_text("", asked.tools)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": asked.prompt})
    return Question(asked.task, tuple(messages), asked.pattern or asked.answer, asked.check)


def held_out_exercises(per_task: int, seed: int = EVALUATION_SEED) -> list[Exercise]:
    """The same number of every task."""
    exercises = []
    for task in TASKS:
        rng = random.Random(f"{seed}:{task}")
        exercises += [exercise(rng, task, Split.HELD_OUT) for _ in range(per_task)]
    return exercises


def write_questions(questions: list[Question], path: Path) -> None:
    """One JSON object a line: task, messages, answer, check."""
    lines = (
        {"task": each.task, "messages": each.messages, "answer": each.answer, "check": each.check.value}
        for each in questions
    )
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_questions(path: Path) -> list[Question]:
    """What `write_questions` wrote."""
    rows = map(json.loads, path.read_text().splitlines())
    return [Question(row["task"], tuple(row["messages"]), row["answer"], Check(row["check"])) for row in rows]


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer passes the question's check."""
    match question.check:
        case Check.EXACT:
            return answer.strip() == question.answer
        case Check.PATTERN:
            return re.fullmatch(question.answer, answer.strip(), re.DOTALL) is not None
        case Check.JSON:
            try:
                return json.loads(answer) == json.loads(question.answer)
            except json.JSONDecodeError:
                return False


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[str]:
    """Greedy answers, one batch through the chat template."""
    chats = [list(question.messages) for question in questions]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@dataclass(frozen=True)
class Score:
    """Of `asked` questions of one task, `right` passed; `mistakes` shows some that didn't, with the answer given."""

    task: str
    asked: int
    right: int
    mistakes: tuple[tuple[Question, str], ...]


def score_task(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> Score:
    """Ask questions of one task."""
    mistakes: list[tuple[Question, str]] = []
    for start in range(0, len(questions), BATCH_SIZE):
        part = questions[start : start + BATCH_SIZE]
        replies = answers(model, tokenizer, part)
        mistakes += [pair for pair in zip(part, replies, strict=True) if not is_right(*pair)]
    return Score(questions[0].task, len(questions), len(questions) - len(mistakes), tuple(mistakes))


def score_all(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[Score]:
    """Scores of every task among the questions."""
    model.eval()
    tasks = dict.fromkeys(question.task for question in questions)
    return [
        score_task(model, tokenizer, [question for question in questions if question.task == task])
        for task in tqdm(tasks, desc="evaluation")
    ]


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    """Of texts each by itself after the opening token, over all their tokens."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].float()
        total += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return float(torch.tensor(total / count).exp())


def agreement(
    model: PreTrainedModel, draft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> float:
    """Share of the tokens of the model's greedy answers that are the draft's first choice in the same place."""
    agreed, count = 0, 0
    for question in tqdm(questions, desc="draft"):
        batch = tokenizer.apply_chat_template(
            list(question.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            guesses = draft(ids).logits[0, batch["input_ids"].shape[1] - 1 : -1].argmax(dim=-1)
        answered = ids[0, batch["input_ids"].shape[1] :]
        agreed += int((guesses == answered).sum())
        count += len(answered)
    return agreed / count
