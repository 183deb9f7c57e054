"""Incremental detokenising and stop strings, against decoding and searching the whole text at once."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_files import write_byte_fallback_tokenizer, write_tokenizer

from orcinus.core.progress import Progress
from orcinus.core.request import FinishReason, SamplingParams
from orcinus.text.stream import TextStream, text_tokens
from orcinus.text.tokenizer import REPLACEMENT, Tokenizer

HARD_TEXT = "the fox 🦊🦊 says 你好，世界! naïve façade 👩‍👩‍👧 é\u0301 ﷽ \U0001f1e9\U0001f1ea end"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("byte_level")))
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    tokenizer = Tokenizer.load(write_byte_fallback_tokenizer(tmp_path_factory.mktemp("byte_fallback")))
    assert tokenizer is not None
    return tokenizer


def streamed(stream: TextStream, tokens: list[int], cuts: list[int]) -> tuple[str, bool, int]:
    """Text, whether stopped, and tokens used, with the tokens pushed in pieces that end at `cuts`."""
    text, used = "", 0
    edges = [0, *sorted(cut % (len(tokens) + 1) for cut in cuts), len(tokens)]
    for start, end in pairwise(edges):
        delta = stream.push(tokens[start:end])
        text += delta.text
        used += delta.num_tokens_used
    return text + stream.finish(), stream.stopped, used


def whole_text_with_stops(text: str, params: SamplingParams) -> tuple[str, bool]:
    """The oracle: search the finished text for the stop string that ends earliest, the longest of them."""
    for end in range(len(text) + 1):
        found = [stop for stop in params.stop_strings if text[:end].endswith(stop)]
        if found:
            return (text[:end] if params.include_stop_str_in_output else text[: end - max(map(len, found))]), True
    return text, False


tokens_of_any_kind = st.lists(st.integers(0, 410), max_size=40)
cuts_anywhere = st.lists(st.integers(0, 1000), max_size=6)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(tokens=tokens_of_any_kind, prompt=st.text(st.sampled_from("ab é🦊")), cuts=cuts_anywhere, skip=st.booleans())
@example(tokens=[97, 97, 159, 97, 97], prompt="", cuts=[], skip=False).via("a character behind bytes that are none")
def test_byte_level_text_equals_decoding_everything_at_once_also_where_bytes_are_no_characters(
    byte_level: Tokenizer, tokens: list[int], prompt: str, cuts: list[int], skip: bool
) -> None:
    params = SamplingParams(skip_special_tokens=skip)
    prompt_tokens = byte_level.encode(prompt, add_special_tokens=False)
    text, stopped, used = streamed(TextStream(byte_level, prompt_tokens, params), tokens, cuts)
    assert text == byte_level.decode(tokens, skip_special_tokens=skip)
    assert (stopped, used) == (False, len(tokens))


@settings(deadline=None, max_examples=400, derandomize=True)
@given(
    text=st.text(st.sampled_from("ab🦊é "), max_size=30),
    stops=st.lists(st.text(st.sampled_from("ab🦊é "), min_size=1, max_size=4), min_size=1, max_size=4),
    include=st.booleans(),
    cuts=cuts_anywhere,
)
def test_a_stop_string_cuts_where_a_search_of_the_whole_text_cuts(
    byte_level: Tokenizer, text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    tokens = byte_level.encode(text, add_special_tokens=False)
    result, stopped, used = streamed(TextStream(byte_level, [], params), tokens, cuts)
    assert (result, stopped) == whole_text_with_stops(text, params)
    if stopped:
        assert not whole_text_with_stops(byte_level.decode(tokens[: used - 1], skip_special_tokens=True), params)[1]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(text=st.text(st.sampled_from("the sum is a你🦊é."), max_size=30), cuts=cuts_anywhere)
def test_byte_fallback_text_goes_on_after_the_prompt_with_its_spaces(
    byte_fallback: Tokenizer, text: str, cuts: list[int]
) -> None:
    prompt = byte_fallback.encode("the sum", add_special_tokens=False)
    tokens = byte_fallback.encode(text, add_special_tokens=False)
    whole = byte_fallback.decode(prompt + tokens, skip_special_tokens=True)
    result, _, _ = streamed(TextStream(byte_fallback, prompt, SamplingParams()), tokens, cuts)
    assert "the sum" + result == whole


@settings(deadline=None, max_examples=300, derandomize=True)
@given(tokens=st.lists(st.integers(0, 300), max_size=40), cuts=cuts_anywhere)
def test_byte_fallback_text_is_the_same_however_invalid_bytes_are_split(
    byte_fallback: Tokenizer, tokens: list[int], cuts: list[int]
) -> None:
    at_once = streamed(TextStream(byte_fallback, [], SamplingParams()), tokens, [])
    assert streamed(TextStream(byte_fallback, [], SamplingParams()), tokens, cuts) == at_once


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_characters_split_over_tokens_never_show_a_replacement_sign(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    stream = TextStream(tokenizer, [], SamplingParams())
    pieces = [stream.push([token]).text for token in tokenizer.encode(HARD_TEXT, add_special_tokens=False)]
    pieces.append(stream.finish())
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces).strip() == HARD_TEXT


def test_an_answer_completes_the_character_that_the_prompt_began(byte_level: Tokenizer) -> None:
    fox = byte_level.encode("🦊", add_special_tokens=False)
    stream = TextStream(byte_level, fox[:2], SamplingParams())
    assert stream.push(fox[2:]).text == "🦊"


def test_invalid_bytes_without_end_keep_the_window_short_and_the_text_flowing(byte_level: Tokenizer) -> None:
    continuation = byte_level.encode("é", add_special_tokens=False)[-1]
    assert byte_level.token_bytes(continuation) in (b"\xa9", b"\xc3\xa9")
    lone = next(t for t in range(byte_level.vocab_size) if byte_level.token_bytes(t) == b"\x80")
    stream = TextStream(byte_level, [], SamplingParams())
    texts = [stream.push([lone]).text for _ in range(500)]
    assert len("".join(texts)) >= 500 - 4
    assert len(stream._detokenizer._window) <= 8


def test_skipped_special_tokens_have_no_text_and_hold_nothing_back(byte_level: Tokenizer) -> None:
    end = byte_level.eos_id
    assert end is not None
    stream = TextStream(byte_level, [], SamplingParams(skip_special_tokens=True))
    assert stream.push([end] * 300).text == ""
    assert stream.push(byte_level.encode("the fox", add_special_tokens=False)).text == "the fox"
    spelled = TextStream(byte_level, [], SamplingParams(skip_special_tokens=False))
    assert spelled.push([end]).text == "<|im_end|>"


def test_text_that_may_begin_a_stop_string_waits_until_it_is_decided(byte_level: Tokenizer) -> None:
    params = SamplingParams(stop=["STOP!"])
    stream = TextStream(byte_level, [], params)
    assert stream.push(byte_level.encode("a STO", add_special_tokens=False)).text == "a "
    assert stream.push(byte_level.encode("P.", add_special_tokens=False)).text == "STOP."
    assert stream.push(byte_level.encode("ST", add_special_tokens=False)).text == ""
    assert stream.finish() == "ST"


def test_tokens_after_the_stop_string_are_not_used(byte_level: Tokenizer) -> None:
    stream = TextStream(byte_level, [], SamplingParams(stop="."))
    one = byte_level.encode("one.", add_special_tokens=False)
    delta = stream.push(one + byte_level.encode(" two.", add_special_tokens=False))
    assert delta == ("one", True, len(one))
    assert stream.push(one) == ("", True, 0)
    assert stream.finish() == ""


def test_a_stop_string_within_min_tokens_is_ignored(byte_level: Tokenizer) -> None:
    tokens = byte_level.encode("a.b.c", add_special_tokens=False)
    first_stop = next(
        i for i in range(len(tokens)) if "." in byte_level.decode(tokens[: i + 1], skip_special_tokens=True)
    )
    stream = TextStream(byte_level, [], SamplingParams(stop=".", min_tokens=first_stop + 1))
    assert stream.push(tokens).text == "a.b"
    assert stream.stopped


def test_many_long_stop_strings_cost_one_pass_over_the_text(byte_level: Tokenizer) -> None:
    stops = ["a" * length + "b" for length in range(496, 512)]
    stream = TextStream(byte_level, [], SamplingParams(stop=stops))
    letter = byte_level.encode("a", add_special_tokens=False)
    text = "".join(stream.push(letter).text for _ in range(3000)) + stream.finish()
    assert text == "a" * 3000


def test_the_token_that_ended_an_answer_has_no_text_unless_asked_for() -> None:
    ended = Progress("r", 0, tokens=(5, 6, 7), finish_reason=FinishReason.STOP, stop_token=7)
    assert text_tokens(ended, SamplingParams()) == (5, 6)
    assert text_tokens(ended, SamplingParams(include_stop_str_in_output=True)) == (5, 6, 7)
    assert text_tokens(Progress("r", 0, tokens=(5, 6, 7)), SamplingParams()) == (5, 6, 7)


def test_random_text_in_random_pieces_is_itself(byte_level: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(50):
        text = "".join(rng.choice(HARD_TEXT) for _ in range(rng.randrange(40)))
        tokens = byte_level.encode(text, add_special_tokens=False)
        cuts = [rng.randrange(1000) for _ in range(5)]
        assert streamed(TextStream(byte_level, [], SamplingParams()), tokens, cuts)[0] == text


def test_token_bytes_joined_are_the_bytes_of_the_text(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    for tokenizer, lead in ((byte_level, ""), (byte_fallback, " ")):
        tokens = tokenizer.encode("the 🦊 is é", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, tokens)) == (lead + "the 🦊 is é").encode()


@pytest.mark.parametrize("broken", ["{", '{"version": "1.0"}', "\xff"])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, broken: str) -> None:
    from orcinus.errors import CheckpointError

    (tmp_path / "tokenizer.json").write_text(broken, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
