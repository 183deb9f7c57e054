"""The tokeniser of orcinus-tiny and its chat template: what becomes one token, and what training sees."""

import itertools
import json
import random

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.calls import CALL_CLOSE, CALL_OPEN
from tiny.evaluation import question_of
from tiny.exercise import Exercise, Split
from tiny.text import Conversation, Plain, exercise, training_text
from tiny.tokenizer import VOCABULARY, Encoder, build_tokenizer

TOKENIZER = build_tokenizer()
ENCODER = Encoder(TOKENIZER)
Message = dict[str, object]


def messages_of(exercises: tuple[Exercise, ...]) -> list[Message]:
    """The exercises as an OpenAI client would send them, tool calls as objects."""
    messages: list[Message] = []
    for each in exercises:
        messages.append({"role": "user", "content": each.prompt})
        if each.task == "tool":
            call = json.loads(each.answer.removeprefix(CALL_OPEN).removesuffix(CALL_CLOSE))
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"function": call}]})
        else:
            messages.append({"role": "assistant", "content": each.answer})
        if each.result is not None:
            result, said = each.result
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": said}]
    return messages


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_tokenising_any_text_loses_nothing(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False)) == text


def test_the_vocabulary_has_learnt_merges_up_to_its_size() -> None:
    merges = json.loads(TOKENIZER.backend_tokenizer.to_str())["model"]["merges"]
    assert len(TOKENIZER) == VOCABULARY
    assert len(merges) > 3_500


def test_training_the_tokeniser_again_makes_the_same_one() -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_no_token_has_two_digits_or_a_digit_beside_a_letter() -> None:
    for token in TOKENIZER.get_vocab():
        assert not any(character.isdigit() for character in token) or len(token) == 1
    assert TOKENIZER.tokenize("2026") == ["2", "0", "2", "6"]


def test_quoted_words_fall_into_letters_and_words_of_sentences_do_not() -> None:
    assert TOKENIZER.tokenize('"whale"') == ['"', "w", "h", "a", "l", "e", '"']
    assert TOKENIZER.tokenize('Reverse the word "whale".')[-7:] == ["w", "h", "a", "l", "e", '"', "."]
    assert TOKENIZER.tokenize(" whale") == ["Ġwhale"]
    assert TOKENIZER.tokenize("elahw") == ["e", "l", "a", "h", "w"]


def test_json_keys_and_values_are_words_but_an_answer_is_letters() -> None:
    assert TOKENIZER.tokenize('{"city": "Paris"}') == ['{"', "city", '":Ġ"', "Paris", '"}']
    assert TOKENIZER.tokenize('{"answer": "elahw"}')[-6:] == ["e", "l", "a", "h", "w", '"}']


def test_training_sees_exactly_the_tokens_of_the_chat_template() -> None:
    for doc in itertools.islice(training_text(seed=0), 500):
        if isinstance(doc, Plain):
            assert ENCODER.encode(doc)[0] == [*TOKENIZER.encode(doc.text), TOKENIZER.eos_token_id]
            continue
        system: list[Message] = [{"role": "system", "content": doc.system}] if doc.system else []
        tools = [json.loads(tool) for tool in doc.tools] or None
        rendered = TOKENIZER.apply_chat_template(system + messages_of(doc.exercises), tools=tools)["input_ids"]
        assert ENCODER.encode(doc)[0] == rendered


def test_a_tool_question_says_in_its_system_message_what_the_template_renders_for_its_tools() -> None:
    for seed in range(20):
        asked = exercise(random.Random(seed), "tool", Split.HELD_OUT)
        tools = [json.loads(tool) for tool in asked.tools]
        user = [{"role": "user", "content": asked.prompt}]
        with_tools = TOKENIZER.apply_chat_template(user, tools=tools, add_generation_prompt=True, tokenize=False)
        spelled = list(question_of(asked).messages)
        assert TOKENIZER.apply_chat_template(spelled, add_generation_prompt=True, tokenize=False) == with_tools


def test_arguments_of_a_call_may_be_a_string_as_openai_sends_them() -> None:
    arguments = {"city": "Paris"}
    rendered = [
        TOKENIZER.apply_chat_template(
            [{"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": form}}]}],
            tokenize=False,
        )
        for form in (arguments, json.dumps(arguments))
    ]
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert rendered == [f"<|bos|><|assistant|>{call}<|end|>"] * 2


def test_an_unknown_role_is_refused_by_name() -> None:
    with pytest.raises(jinja2.TemplateError, match="not narrator"):
        TOKENIZER.apply_chat_template([{"role": "narrator", "content": "Hello"}])


def test_the_model_learns_answers_and_their_end_and_nothing_else() -> None:
    exercises = (Exercise("add", "", "1+2", "1 + 2 = 3"), Exercise("small_talk", "", "Thanks", "You are welcome!"))
    ids, learnt = ENCODER.encode(Conversation("Be brief.", (), exercises))
    text = TOKENIZER.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert text == "1 + 2 = 3<|end|>You are welcome!<|end|>"


def test_a_tool_result_is_given_and_what_is_said_about_it_is_learnt() -> None:
    called = Exercise("tool", "", "Call Ada.", CALL_OPEN + "{}" + CALL_CLOSE, result=('{"ok": true}', "Done."))
    ids, learnt = ENCODER.encode(Conversation("", (), (called,)))
    text = TOKENIZER.decode([token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert text == "<tool_call>{}</tool_call><|end|>Done.<|end|>"
