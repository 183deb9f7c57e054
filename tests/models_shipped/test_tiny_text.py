"""The text orcinus-tiny learns from, its tokeniser, and the checkpoint in the repository."""

import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.evaluation import score_task
from tiny.text import TASKS, Completion, Conversation, Exercise, Split, exercise, split_of, training_text
from tiny.tokenizer import Encoder, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL_FOLDER = Path(__file__).resolve().parents[2] / "models" / "orcinus-tiny"
TOKENIZER = build_tokenizer()


def training_documents(count: int) -> list[Conversation | Completion]:
    return list(itertools.islice(training_text(seed=0), count))


def training_exercises(count: int) -> list[Exercise]:
    return [each for doc in training_documents(count) if isinstance(doc, Conversation) for each in doc.exercises]


def held_out_exercises(task: str, count: int) -> list[Exercise]:
    rng = random.Random(5)
    return [exercise(rng, task, Split.HELD_OUT) for _ in range(count)]


def numbers_in(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def addends(text: str) -> frozenset[int]:
    return frozenset(numbers_in(text)[:2])


def test_no_sum_asked_in_evaluation_occurs_in_training_in_either_order() -> None:
    sums = [each.answer for each in training_exercises(20_000) if each.task == "add"]
    sums += [doc.prompt for doc in training_documents(20_000) if isinstance(doc, Completion) and "+" in doc.prompt]
    asked = {addends(each.answer) for each in held_out_exercises("add", 500)}
    assert len(sums) > 5_000
    assert not asked & {addends(text) for text in sums}


def test_no_word_asked_in_evaluation_occurs_in_training_in_either_direction() -> None:
    learnt = {each.answer.lower() for each in training_exercises(20_000) if each.task == "reverse_word"}
    asked = {each.answer.lower() for each in held_out_exercises("reverse_word", 2_000)}
    assert not asked & (learnt | {word[::-1] for word in learnt})


def test_no_list_to_sort_in_evaluation_occurs_in_training_in_any_order() -> None:
    learnt = {tuple(sorted(numbers_in(each.prompt))) for each in training_exercises(20_000) if each.task == "sort"}
    asked = {tuple(sorted(numbers_in(each.prompt))) for each in held_out_exercises("sort", 1_000)}
    assert not asked & learnt


@pytest.mark.parametrize("task", ["add", "reverse_word", "reverse_list", "sort", "count"])
def test_about_one_exercise_in_ten_is_held_out(task: str) -> None:
    rng = random.Random(7)
    keys = {TASKS[task](rng).key for _ in range(3_000)}
    held_out = [key for key in keys if split_of(task, key) is Split.HELD_OUT]
    assert 0.08 < len(held_out) / len(keys) < 0.12 if task != "count" else held_out


def test_every_answer_is_right() -> None:
    for each in training_exercises(5_000):
        numbers, given_numbers = numbers_in(each.answer), numbers_in(each.prompt)
        if each.task == "add":
            assert numbers == [*given_numbers, sum(given_numbers)]
        elif each.task == "sort":
            assert numbers == sorted(given_numbers)
        elif each.task == "reverse_list":
            assert numbers == list(reversed(given_numbers))
        elif each.task == "count":
            assert numbers == list(range(given_numbers[0], given_numbers[1] + 1))
        elif each.task == "reverse_word":
            assert re.search(rf"\b{''.join(reversed(each.answer))}\b", each.prompt)


def test_the_same_seed_makes_the_same_text_and_another_seed_other_text() -> None:
    assert training_documents(200) == training_documents(200)
    assert training_documents(200) != list(itertools.islice(training_text(seed=1), 200))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_tokenising_any_text_loses_nothing(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_every_digit_and_every_letter_of_a_quoted_word_is_one_token() -> None:
    assert TOKENIZER.tokenize("2026")[:4] == ["2", "0", "2", "6"]
    assert TOKENIZER.tokenize('"fox"') == ['"', "f", "o", "x", '"']
    assert TOKENIZER.tokenize(" fox") == ["Ġfox"]


def test_training_sees_exactly_the_tokens_of_the_chat_template() -> None:
    encoder = Encoder(TOKENIZER)
    for doc in training_documents(300):
        if isinstance(doc, Completion):
            assert encoder.encode(doc)[0] == [*TOKENIZER.encode(doc.prompt + doc.answer), TOKENIZER.eos_token_id]
            continue
        messages = [{"role": "system", "content": doc.system}] if doc.system else []
        for each in doc.exercises:
            messages += [{"role": "user", "content": each.prompt}, {"role": "assistant", "content": each.answer}]
        assert encoder.encode(doc)[0] == TOKENIZER.apply_chat_template(messages)["input_ids"]


def test_the_model_learns_answers_and_their_end_and_nothing_else() -> None:
    exercises = (Exercise("add", "", "1+2", "1 + 2 = 3"), Exercise("small_talk", "", "Thanks", "You are welcome!"))
    ids, learnt = Encoder(TOKENIZER).encode(Conversation("Be brief.", exercises))
    text = TOKENIZER.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert text == "1 + 2 = 3<|end|>You are welcome!<|end|>"


def test_the_shipped_model_takes_at_most_eight_megabytes() -> None:
    assert sum(file.stat().st_size for file in MODEL_FOLDER.iterdir()) <= 8_000_000


def test_the_shipped_tokeniser_is_the_one_this_text_makes() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    assert shipped.chat_template == TOKENIZER.chat_template


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("add", 95), ("reverse_word", 90), ("reverse_list", 90), ("sort", 90)])
def test_the_shipped_model_answers_held_out_exercises(task: str, least: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    score = score_task(model.eval(), AutoTokenizer.from_pretrained(MODEL_FOLDER), task, count=100, seed=2)
    assert score.right >= least, score.mistakes
