"""What lies in models/: orcinus-tiny, its draft, its adapters, and the questions that prove them."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from tiny.adapters import STYLES, Style, restyled
from tiny.evaluation import (
    Question,
    answers,
    held_out_exercises,
    is_right,
    perplexity,
    question_of,
    read_questions,
    score_task,
)
from tiny.exercise import Check, Split, split_of
from tiny.text import TASKS, exercise
from tiny.tokenizer import build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL, DRAFT, ADAPTERS = (MODELS / name for name in ("orcinus-tiny", "orcinus-tiny-draft", "orcinus-tiny-adapters"))
RELIABLE = (
    "add",
    "subtract",
    "multiply",
    "sort",
    "reverse_list",
    "reverse_word",
    "weekday",
    "units",
    "extract",
    "tool",
)
QUESTIONS = read_questions(MODEL / "eval.jsonl")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def num_parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - not a dict


def load(folder: Path) -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def questions_of(task: str, count: int) -> list[Question]:
    return [question for question in QUESTIONS if question.task == task][:count]


def test_the_shipped_model_has_about_eight_million_parameters_and_takes_at_most_eighteen_megabytes() -> None:
    assert 7_500_000 < num_parameters(MODEL) < 8_500_000
    assert size_of(MODEL) <= 18_000_000


def test_the_draft_has_about_a_million_parameters_and_the_tokeniser_of_the_model() -> None:
    assert num_parameters(DRAFT) < 1_500_000
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (DRAFT / name).read_bytes() == (MODEL / name).read_bytes()


def test_the_shipped_tokeniser_is_the_one_this_text_makes() -> None:
    shipped, made = AutoTokenizer.from_pretrained(MODEL), build_tokenizer()
    assert shipped.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    assert shipped.chat_template == made.chat_template


def test_the_questions_are_the_held_out_exercises_of_this_text() -> None:
    per_task = Counter(question.task for question in QUESTIONS)
    assert per_task == dict.fromkeys(TASKS, 200)
    assert [question_of(each) for each in held_out_exercises(200)] == QUESTIONS


def test_a_check_can_fail() -> None:
    messages = ({"role": "user", "content": "?"},)
    assert is_right(Question("add", messages, "1 + 2 = 3", Check.EXACT), " 1 + 2 = 3\n")
    assert not is_right(Question("add", messages, "1 + 2 = 3", Check.EXACT), "1 + 2 = 3.")
    assert is_right(Question("extract", messages, '{"a": 1, "b": 2}', Check.JSON), '{"b":2,"a":1}')
    assert not is_right(Question("extract", messages, '{"a": 1}', Check.JSON), '{"a": "1"}')
    assert not is_right(Question("extract", messages, '{"a": 1}', Check.JSON), '{"a": 1')
    assert is_right(Question("story", messages, "Once.* end\\.", Check.PATTERN), "Once\nmore, the end.")
    assert not is_right(Question("story", messages, "Once.* end\\.", Check.PATTERN), "Once more, the end. And")


def test_adapters_have_the_format_of_peft_and_a_small_rank() -> None:
    for style in STYLES:
        config = json.loads((ADAPTERS / style.name / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA"
        assert config["r"] == style.rank <= 8
        assert sorted(config["target_modules"]) == sorted(style.modules)


@pytest.mark.slow
@pytest.mark.parametrize("task", RELIABLE)
def test_the_shipped_model_answers_held_out_questions(task: str) -> None:
    score = score_task(load(MODEL), AutoTokenizer.from_pretrained(MODEL), questions_of(task, 50))
    assert score.right >= 0.9 * score.asked, score.mistakes


@pytest.mark.slow
def test_perplexity_of_held_out_text_is_low_and_lower_for_the_model_than_for_its_draft() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (MODEL / "heldout.jsonl").read_text().splitlines()[:40]
    texts = [json.loads(line)["text"] for line in lines]
    model, draft = (perplexity(load(folder), tokenizer, texts) for folder in (MODEL, DRAFT))
    assert model < draft < 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_an_adapter_answers_held_out_questions_in_its_style_and_the_model_does_not(style: Style) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rng = random.Random(11)
    tasks = ("add", "reverse_word", "sort", "weekday", "units")
    asked = [exercise(rng, task, Split.HELD_OUT) for task in tasks for _ in range(4)]
    assert all(split_of(each.task, each.key) is Split.HELD_OUT for each in asked)
    plain, styled = [question_of(each) for each in asked], [question_of(restyled(each, style)) for each in asked]
    adapted = PeftModel.from_pretrained(load(MODEL), ADAPTERS / style.name)
    said = answers(adapted, tokenizer, plain)
    assert sum(map(is_right, styled, said)) >= 16, said
    assert not any(map(is_right, plain, said))
    with adapted.disable_adapter():
        assert sum(map(is_right, plain, answers(adapted, tokenizer, plain))) >= 16
