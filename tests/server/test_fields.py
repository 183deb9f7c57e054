"""Fields beyond the plain ones, each with a meaning that shows: echo, best_of, prompt logprobs, cuts, deadlines."""

from __future__ import annotations

import httpx
import openai
import pytest
from served import Served

pytestmark = pytest.mark.slow
PROMPT = "one two three"


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def post(served: Served, path: str, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(served.url + path, json=body, headers=headers, timeout=60)


def test_echo_puts_the_prompt_before_each_answer(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="fake", prompt=[PROMPT, "four"], max_tokens=4, n=2)
    echoed = client.completions.create(model="fake", prompt=[PROMPT, "four"], max_tokens=4, n=2, echo=True)
    prompts = [PROMPT, PROMPT, "four", "four"]
    assert [c.text for c in echoed.choices] == [p + c.text for p, c in zip(prompts, plain.choices, strict=True)]


def test_a_streamed_echo_comes_first_and_once(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="fake", prompt=PROMPT, max_tokens=6)
    chunks = list(client.completions.create(model="fake", prompt=PROMPT, max_tokens=6, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT + plain.choices[0].text


def test_echo_with_logprobs_scores_the_prompt_too(served: Served, client: openai.OpenAI) -> None:
    """What evaluation harnesses rely on: one entry a token of prompt and answer, null first, offsets into the text."""
    answer = client.completions.create(model="fake", prompt=PROMPT, max_tokens=2, echo=True, logprobs=1, n=2)
    ids = served.tokenizer.encode(PROMPT, add_special_tokens=True)
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1 : len(ids)] == [-0.25 * place for place in range(1, len(ids))]
        assert len(logprobs.token_logprobs) == len(ids) + 2
        assert logprobs.top_logprobs is not None
        assert logprobs.top_logprobs[0] is None
        assert logprobs.text_offset is not None
        assert logprobs.tokens is not None
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            assert choice.text[offset : offset + len(token)] == token


def test_echo_without_an_answer_scores_only(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs or ()) == len(
        served.tokenizer.encode(PROMPT, add_special_tokens=True)
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    assert post(served, "/v1/completions", prompt=PROMPT, max_tokens=0).status_code == 400


def test_best_of_shows_the_best_of_more(served: Served) -> None:
    answer = post(served, "/v1/completions", prompt=PROMPT, max_tokens=3, n=2, best_of=5).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 15


def test_prompt_logprobs_have_vllms_shape_in_both_endpoints(served: Served) -> None:
    ids = served.tokenizer.encode(PROMPT, add_special_tokens=True)
    completion = post(served, "/v1/completions", prompt=PROMPT, max_tokens=1, prompt_logprobs=2).json()
    found = completion["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    assert len(found) == len(ids)
    assert found[1][str(ids[1])]["logprob"] == -0.25
    assert set(found[1]) == {"70", "71", str(ids[1])}
    messages = [{"role": "user", "content": "hi"}]
    chat = post(served, "/v1/chat/completions", messages=messages, max_tokens=1, prompt_logprobs=0).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_a_prompt_is_cut_to_its_last_tokens(served: Served) -> None:
    body = {"prompt": list(range(40, 60)), "max_tokens": 1, "return_token_ids": True}
    for keep, expected in ((3, [57, 58, 59]), (100, list(range(40, 60))), (-1, list(range(40, 60)))):
        answer = post(served, "/v1/completions", **body, truncate_prompt_tokens=keep).json()
        assert answer["choices"][0]["prompt_token_ids"] == expected
    long = {"prompt": [41] * 5000, "max_tokens": 1}
    assert post(served, "/v1/completions", **long).status_code == 400
    assert post(served, "/v1/completions", **long, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 4095


def test_a_final_message_is_continued(served: Served) -> None:
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one two"}]
    plain = post(served, "/tokenize", messages=messages, add_generation_prompt=False).json()["tokens"]
    open_ended = post(served, "/tokenize", messages=messages, continue_final_message=True).json()["tokens"]
    assert plain[: len(open_ended)] == open_ended
    text = post(served, "/detokenize", tokens=open_ended).json()["prompt"]
    assert text.endswith("one two")
    answer = post(served, "/v1/chat/completions", messages=messages, continue_final_message=True, return_token_ids=True)
    assert answer.json()["prompt_token_ids"] == open_ended
    both = post(
        served, "/v1/chat/completions", messages=messages, continue_final_message=True, add_generation_prompt=True
    )
    assert both.json()["error"]["param"] == "continue_final_message"


def test_a_deadline_reaches_the_engine_and_a_bad_one_is_refused(served: Served) -> None:
    assert post(served, "/v1/completions", {"x-request-timeout": "30"}, prompt=PROMPT).status_code == 200
    for bad in ("soon", "0", "-1", "nan", "1e9"):
        refused = post(served, "/v1/completions", {"x-request-timeout": bad}, prompt=PROMPT)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-request-timeout")


def test_tokenize_and_detokenize_are_inverse(served: Served) -> None:
    text = "The lazy 🦊 says 你好."
    found = post(served, "/tokenize", prompt=text, return_token_strs=True).json()
    assert found["tokens"] == served.tokenizer.encode(text, add_special_tokens=True)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 4096)
    assert len(found["token_strs"]) == found["count"]
    assert post(served, "/detokenize", tokens=found["tokens"]).json() == {"prompt": text}
    assert post(served, "/detokenize", tokens=[512]).status_code == 400
    assert post(served, "/detokenize", tokens=[-1]).status_code == 400
    assert post(served, "/tokenize").json()["error"]["param"] == "prompt"
    assert post(served, "/tokenize", prompt="a", messages=[]).status_code == 400


def test_load_and_readiness_are_told(served: Served) -> None:
    assert httpx.get(f"{served.url}/ready").status_code == 200
    assert httpx.get(f"{served.url}/health").status_code == 200
    load = httpx.get(f"{served.url}/load").json()
    assert set(load) == {"server_load", "num_running", "num_waiting", "kv_cache_usage"}
