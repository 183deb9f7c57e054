"""openai 3.x against the program and the model as they ship: every field that its users set, and its error classes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import httpx
import openai
import pytest
from asks import MISSING_MODEL, MODEL, PROMPT, PROMPT_TOKENS, QUESTION, QUESTIONS, SAMPLED, STORY, messages
from openai.types.chat import ChatCompletionMessageParam
from real_server import RealServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tiny: RealServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question}]


def test_models_can_be_listed_and_looked_up(client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(MISSING_MODEL)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


class TestCompletions:
    def complete(self, client: openai.OpenAI, **fields: object) -> openai.types.Completion:
        fields = {"model": MODEL, "prompt": PROMPT, "max_tokens": PROMPT_TOKENS, "temperature": 0} | fields
        return client.completions.create(**fields)

    def test_token_ids_and_text_are_the_same_prompt(self, tiny: RealServer, client: openai.OpenAI) -> None:
        ids = httpx.post(f"{tiny.url}/tokenize", json={"prompt": PROMPT}).json()["tokens"]
        by_text, by_ids = self.complete(client), self.complete(client, prompt=ids)
        assert by_ids.choices == by_text.choices
        assert by_ids.usage == by_text.usage
        assert by_text.usage is not None
        assert by_text.usage.prompt_tokens == len(ids)

    def test_a_list_of_prompts_answers_each_as_if_alone(self, client: openai.OpenAI) -> None:
        prompts = [PROMPT, *QUESTIONS]
        together = self.complete(client, prompt=prompts)
        alone = [self.complete(client, prompt=prompt) for prompt in prompts]
        assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in together.choices] == [reply.choices[0].text for reply in alone]
        assert together.usage is not None
        assert together.usage.total_tokens == sum(reply.usage.total_tokens for reply in alone if reply.usage)

    def test_n_answers_are_drawn_apart_and_a_seed_draws_them_again(self, client: openai.OpenAI) -> None:
        first, again = (self.complete(client, n=3, **SAMPLED) for _ in range(2))
        texts = [choice.text for choice in first.choices]
        assert len(set(texts)) == 3
        assert texts == [choice.text for choice in again.choices]

    def test_echo_with_logprobs_scores_the_prompt_and_the_answer(self, client: openai.OpenAI) -> None:
        plain, echoed = self.complete(client), self.complete(client, echo=True, logprobs=2)
        choice = echoed.choices[0]
        assert choice.text == PROMPT + plain.choices[0].text
        assert choice.logprobs is not None
        assert echoed.usage is not None
        tokens, logprobs = choice.logprobs.tokens or [], choice.logprobs.token_logprobs or []
        # The prompt's first token stands for no text.
        assert "".join(tokens[1:]) == choice.text
        assert len(tokens) == len(logprobs) == echoed.usage.total_tokens
        # Nothing comes before the first token that could make it likely.
        assert logprobs[0] is None
        assert all(logprob <= 0 for logprob in logprobs[1:])
        starts = (choice.logprobs.text_offset or [])[1:]
        assert [choice.text[start:][: len(token)] for start, token in zip(starts, tokens[1:], strict=True)] == tokens[
            1:
        ]

    def test_greedy_takes_the_likeliest_of_the_top_logprobs(self, client: openai.OpenAI) -> None:
        logprobs = self.complete(client, logprobs=3).choices[0].logprobs
        assert logprobs is not None
        for token, logprob, top in zip(
            logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True
        ):
            assert top[token] == logprob == max(top.values())
            assert sum(map(math.exp, top.values())) <= 1 + 1e-6

    def test_streams_of_several_answers_come_apart_by_index(self, client: openai.OpenAI) -> None:
        whole = self.complete(client, n=2, **SAMPLED)
        texts = {0: "", 1: ""}
        for chunk in self.complete(client, n=2, stream=True, **SAMPLED):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == {choice.index: choice.text for choice in whole.choices}

    def test_suffix_is_refused_by_name(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            self.complete(client, suffix="The end.")
        assert caught.value.param == "suffix"


class TestChat:
    def test_a_stream_ends_with_its_usage(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model=MODEL, messages=ask(QUESTION), temperature=0)
        chunks = list(
            client.chat.completions.create(
                model=MODEL,
                messages=ask(QUESTION),
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == whole.choices[0].message.content
        assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)

    def test_the_sdk_itself_puts_a_stream_together(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(model=MODEL, messages=ask(QUESTION), temperature=0) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        whole = client.chat.completions.create(model=MODEL, messages=ask(QUESTION), temperature=0)
        assert final.choices[0].message.content == whole.choices[0].message.content
        assert final.choices[0].finish_reason == "stop"

    def test_n_logprobs_and_a_seed(self, client: openai.OpenAI) -> None:
        def draw() -> openai.types.chat.ChatCompletion:
            return client.chat.completions.create(
                model=MODEL,
                messages=ask(STORY),
                n=2,
                max_completion_tokens=10,
                logprobs=True,
                top_logprobs=2,
                seed=5,
                temperature=1.0,
                top_p=1.0,
            )

        first, again = draw(), draw()
        assert first.choices == again.choices
        assert first.choices[0].message.content != first.choices[1].message.content
        assert first.usage is not None
        assert first.usage.completion_tokens == 20
        for choice in first.choices:
            assert choice.logprobs is not None
            entries = choice.logprobs.content or []
            assert "".join(entry.token for entry in entries) == choice.message.content
            for entry in entries:
                assert bytes(entry.bytes or []) == entry.token.encode()
                assert len(entry.top_logprobs) == 2
                assert entry.logprob <= entry.top_logprobs[0].logprob
                assert entry.top_logprobs[1].logprob <= entry.top_logprobs[0].logprob <= 0

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_stop_string_ends_the_answer_before_it(self, client: openai.OpenAI, stream: bool) -> None:
        whole = client.chat.completions.create(model=MODEL, messages=ask(STORY), temperature=0, max_tokens=60)
        expected = (whole.choices[0].message.content or "").partition(", ")[0]
        fields = {"model": MODEL, "messages": messages(STORY), "temperature": 0, "stop": [", ", "never said"]}
        reply = client.chat.completions.create(**fields, stream=stream)
        if not stream:
            assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected, "stop")
            return
        choices = [chunk.choices[0] for chunk in reply]
        assert "".join(choice.delta.content or "" for choice in choices) == expected
        assert choices[-1].finish_reason == "stop"

    def test_many_asynchronous_askers_get_their_own_answers(self, tiny: RealServer, client: openai.OpenAI) -> None:
        questions = [f"What is {left} + {right}?" for left in range(3, 11) for right in (4, 9)]

        async def read(other: openai.AsyncOpenAI, question: str) -> str:
            stream = await other.chat.completions.create(
                model=MODEL, messages=ask(question), temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def everybody() -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none") as other:
                return await asyncio.gather(*(read(other, question) for question in questions))

        together = asyncio.run(everybody())
        for question, text in zip(questions, together, strict=True):
            alone = client.chat.completions.create(model=MODEL, messages=ask(question), temperature=0)
            assert text == alone.choices[0].message.content


def test_embeddings_are_the_same_numbers_as_floats_and_as_the_sdk_asks_for_them(client: openai.OpenAI) -> None:
    """The SDK asks for base64 where its user says nothing."""
    by_default = client.embeddings.create(model=MODEL, input=[PROMPT, STORY])
    as_floats = client.embeddings.create(model=MODEL, input=[PROMPT, STORY], encoding_format="float")
    assert [entry.index for entry in by_default.data] == [0, 1]
    for coded, plain in zip(by_default.data, as_floats.data, strict=True):
        assert coded.embedding == pytest.approx(plain.embedding, abs=1e-7)
        assert math.fsum(number**2 for number in coded.embedding) == pytest.approx(1, abs=1e-3)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=PROMPT, dimensions=100_000)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 9.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"extra_body": {"n": "two"}}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stop": ["fine", ""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_a_bad_request_error_that_names_it(
    client: openai.OpenAI, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": messages(QUESTION)} | fields)
    # The element of a list may be named too.
    assert (caught.value.param or "").startswith(param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None


def test_a_prompt_that_is_too_long_has_openais_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ask("word " * 30_000))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "maximum context length" in str(caught.value)


def test_unknown_fields_are_ignored(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=ask(QUESTION),
        temperature=0,
        store=False,
        metadata={"who": "a test"},
        service_tier="auto",
        safety_identifier="nobody",
        extra_body={"of_next_year": {"deep": [1, 2]}},
    )
    assert "19" in (reply.choices[0].message.content or "")
