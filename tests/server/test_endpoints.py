"""The OpenAI SDK against the real server. The fake engine repeats the prompt, so every answer is known beforehand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest
from served import Served, serve_fake
from tokenizer_files import write_tokenizer

pytestmark = pytest.mark.slow
PROMPT = "The lazy 🦊 says 你好. "
FOREVER = 3000


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def repeated(served: Served, prompt: str, num_tokens: int) -> str:
    """What the fake engine answers."""
    ids = served.tokenizer.encode(prompt, add_special_tokens=False)
    return served.tokenizer.decode([ids[i % len(ids)] for i in range(num_tokens)], skip_special_tokens=True)


def num_tokens(served: Served, text: str) -> int:
    return len(served.tokenizer.encode(text, add_special_tokens=False))


def test_a_completion_has_text_usage_and_reason(served: Served, client: openai.OpenAI) -> None:
    size = num_tokens(served, PROMPT)
    answer = client.completions.create(model="fake", prompt=PROMPT, max_tokens=size, seed=1)
    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        size,
        size,
        2 * size,
    )
    assert (answer.object, answer.model) == ("text_completion", "fake")


def test_a_completion_stops_after_16_tokens_unless_told_otherwise(served: Served, client: openai.OpenAI) -> None:
    assert client.completions.create(model="fake", prompt=PROMPT).choices[0].text == repeated(served, PROMPT, 16)


def test_streamed_text_is_the_same_text_without_broken_characters(served: Served, client: openai.OpenAI) -> None:
    size = num_tokens(served, PROMPT)
    chunks = list(client.completions.create(model="fake", prompt=PROMPT, max_tokens=size, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == PROMPT
    assert not any("\ufffd" in chunk.choices[0].text for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert len(chunks) > 5


@pytest.mark.parametrize("stream", [False, True])
def test_lists_of_prompts_and_n_answers_are_numbered_prompt_by_prompt(
    served: Served, client: openai.OpenAI, stream: bool
) -> None:
    texts = ["one two", "the fox"]
    ids = [served.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model="fake", prompt=prompt, n=2, max_tokens=9, stream=stream)
        choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
        found = ["".join(choice.text for choice in choices if choice.index == index) for index in range(4)]
        assert found == [repeated(served, text, 9) for text in texts for _ in range(2)]
        assert sorted(choice.index for choice in choices if choice.finish_reason == "length") == [0, 1, 2, 3]


def test_one_prompt_of_token_ids_is_one_prompt(served: Served, client: openai.OpenAI) -> None:
    ids = served.tokenizer.encode("one two", add_special_tokens=False)
    answer = client.completions.create(model="fake", prompt=ids, max_tokens=4, extra_body={"return_token_ids": True})
    assert len(answer.choices) == 1
    extra = answer.choices[0].model_extra
    assert extra is not None
    assert (extra["token_ids"], extra["prompt_token_ids"]) == ([ids[i % len(ids)] for i in range(4)], ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it_and_the_engine_hears_of_it(
    served: Served, client: openai.OpenAI, stream: bool
) -> None:
    answer = client.completions.create(
        model="fake", prompt="one two three ", stop=["two th"], max_tokens=FOREVER, stream=stream
    )
    chunks = list(answer) if stream else [answer]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == "one "
    assert choices[-1].finish_reason == "stop"
    assert served.next_event("abort", f"{chunks[0].id}-0")[2:] == ["0", "stop"]


def test_the_stop_string_can_be_kept(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="fake", prompt="one two ", stop="tw", max_tokens=50, extra_body={"include_stop_str_in_output": True}
    )
    assert answer.choices[0].text == "one tw"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 50


def test_stop_tokens_end_the_answer_without_their_text(served: Served, client: openai.OpenAI) -> None:
    first, second = served.tokenizer.encode("ab", add_special_tokens=False)
    answer = client.completions.create(model="fake", prompt=[first, second], extra_body={"stop_token_ids": [second]})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a", "stop")


def test_completion_logprobs_have_one_entry_a_token(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="the fox", max_tokens=6, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs == [-0.5 * i for i in range(1, 7)]
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(6)]
    assert [len(top) for top in logprobs.top_logprobs or ()] == [3] * 6


def test_a_chat_answers_through_the_template(served: Served, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alias",
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi 🦊"}, {"type": "text", "text": "you"}]},
        ],
        max_completion_tokens=300,
        extra_body={"skip_special_tokens": False, "ignore_eos": True},
    )
    text = answer.choices[0].message.content
    assert text is not None
    rendered = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi 🦊\nyou<|im_end|>\n<|im_start|>assistant\n"
    assert text.startswith(rendered)
    assert answer.choices[0].message.role == "assistant"
    assert answer.model == "alias"


def test_a_chat_ends_at_the_end_of_turn_token(served: Served, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("user\nhi", "stop")


def test_a_streamed_chat_says_who_speaks_first_and_counts_tokens_last(served: Served, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hi"}],
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
            top_logprobs=1,
        )
    )
    *body, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in body)
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in body if chunk.choices[0].index == index]
        assert [choice.delta.role for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(choice.delta.content or "" for choice in own) == "user\nhi"
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + ["stop"]
        entries = [entry for choice in own for entry in (choice.logprobs.content or () if choice.logprobs else ())]
        assert [entry.logprob for entry in entries] == [-0.5 * i for i in range(1, 7)]
        assert bytes(b for entry in entries for b in entry.bytes or ()) == b"<|im_start|>user\nhi<|im_end|>"
        assert [len(entry.top_logprobs) for entry in entries] == [1] * 6


def test_the_seed_reaches_the_engine_and_a_missing_one_is_drawn(served: Served, client: openai.OpenAI) -> None:
    def seed_of(reply_id: str) -> str:
        return served.next_event("add", f"{reply_id}-0")[2]

    assert seed_of(client.completions.create(model="fake", prompt="a", seed=123).id) == "123"
    drawn = {seed_of(client.completions.create(model="fake", prompt="a").id) for _ in range(2)}
    assert len(drawn) == 2


def test_the_async_client_gets_many_answers_at_once(served: Served) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            texts = [f"{word} fox" for word in ("one", "two", "three", "four", "five", "six")]
            answers = await asyncio.gather(
                *(client.completions.create(model="fake", prompt=text, max_tokens=40) for text in texts)
            )
        assert [answer.choices[0].text for answer in answers] == [repeated(served, text, 40) for text in texts]

    asyncio.run(main())


@pytest.mark.parametrize(("stream", "max_tokens"), [(False, 3001), (True, 3002)])
def test_when_the_client_goes_the_engine_hears_of_it(served: Served, stream: bool, max_tokens: int) -> None:
    async def main() -> str:
        body = {"prompt": "gone ", "max_tokens": max_tokens, "stream": stream, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            if stream:
                async with client.stream("POST", "/v1/completions", json=body) as response:
                    await anext(response.aiter_lines())
                return served.next_event("add", str(max_tokens))[1]
            waiting = asyncio.create_task(client.post("/v1/completions", json=body))
            added = await asyncio.to_thread(served.next_event, "add", str(max_tokens))
            waiting.cancel()
            await asyncio.wait({waiting})
            return added[1]

    request_id = asyncio.run(main())
    assert served.next_event("abort", request_id)[2:] == ["None", "abort"]


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake", "alias"]
    assert client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("unknown/model")


def test_health_version_and_metrics(served: Served, client: openai.OpenAI) -> None:
    client.completions.create(model="fake", prompt="count me", max_tokens=3)
    assert httpx.get(f"{served.url}/health").status_code == 200
    assert httpx.get(f"{served.url}/version").json()["version"]
    text = httpx.get(f"{served.url}/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values['orcinus:kv_cache_usage_perc{model_name="fake"}'] == 0.25
    assert values['orcinus:num_requests_running{model_name="fake"}'] == 0
    assert values['orcinus:generation_tokens_total{model_name="fake"}'] >= 3
    assert values['orcinus:prompt_tokens_total{model_name="fake"}'] >= 1
    assert values['orcinus:time_to_first_token_seconds_count{model_name="fake"}'] >= 1
    assert values['orcinus:request_success_total{finished_reason="length",model_name="fake"}'] >= 1


def test_a_checkpoint_without_a_tokenizer_serves_token_ids(tmp_path: Path) -> None:
    with serve_fake(tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        answer = client.completions.create(model="fake", prompt=[5, 6, 8], max_tokens=4, logprobs=0)
        choice = answer.choices[0]
        assert choice.text == ""
        assert choice.model_extra is not None
        assert choice.model_extra["token_ids"] == [5, 6, 8, 5]
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["token_id:5", "token_id:6", "token_id:8", "token_id:5"]
        for refused in (
            lambda: client.completions.create(model="fake", prompt="text"),
            lambda: client.completions.create(model="fake", prompt=[5], stop="x"),
            lambda: client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}]),
        ):
            with pytest.raises(openai.BadRequestError, match="tokenizer"):
                refused()


def test_a_checkpoint_without_a_chat_template_serves_completions_only(tmp_path: Path) -> None:
    with serve_fake(write_tokenizer(tmp_path, chat_template=None)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
        assert client.completions.create(model="fake", prompt="hi", max_tokens=1).choices[0].text == "h"
