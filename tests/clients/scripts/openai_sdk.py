"""Asks through the `openai` package, of whichever major version this environment has; prints the answers as JSON."""

from __future__ import annotations

import asyncio
import json

import asks
import openai

COMMON = {"model": asks.MODEL, "temperature": 0}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
STORY = COMMON | {"messages": asks.messages(asks.STORY), "max_tokens": asks.STORY_TOKENS}
PROMPT = COMMON | {"prompt": asks.PROMPT, "max_tokens": asks.PROMPT_TOKENS}


def whole(reply: object) -> dict[str, object]:
    """Of a chat or a completion in one piece."""
    choice = reply.choices[0]
    text = choice.text if hasattr(choice, "text") else choice.message.content
    return asks.answer(text, choice.finish_reason, reply.usage)


def joined(chunks: list[object]) -> dict[str, object]:
    """Of a streamed one."""
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    texts = [choice.text if hasattr(choice, "text") else choice.delta.content for choice in choices]
    (finish,) = [choice.finish_reason for choice in choices if choice.finish_reason]
    (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
    return asks.answer("".join(text or "" for text in texts), finish, usage)


def sync(client: openai.OpenAI) -> dict[str, object]:
    """One request after another."""
    chat, completions = client.chat.completions, client.completions
    return {
        "models": [model.id for model in client.models.list()],
        "chat": whole(chat.create(**COMMON, messages=asks.messages(asks.QUESTION))),
        "chat_system": whole(chat.create(**COMMON, messages=asks.messages(asks.QUESTION, asks.SYSTEM))),
        "chat_sampled": whole(chat.create(**STORY | asks.SAMPLED)),
        "story": whole(chat.create(**STORY)),
        "story_stream": joined(list(chat.create(**STORY, **STREAMED))),
        "completion": whole(completions.create(**PROMPT)),
        "completion_stream": joined(list(completions.create(**PROMPT, **STREAMED))),
        "embedding": client.embeddings.create(model=asks.MODEL, input=asks.PROMPT).data[0].embedding[:4],
        "errors": {name: refusal(client, **fields) for name, fields in WRONG.items()},
    }


async def concurrent(url: str) -> dict[str, object]:
    """Everything at once, through the asynchronous client."""

    async def read(client: openai.AsyncOpenAI) -> list[object]:
        return [chunk async for chunk in await client.chat.completions.create(**STORY, **STREAMED)]

    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        create = client.chat.completions.create
        replies = [create(**COMMON, messages=asks.messages(question)) for question in asks.QUESTIONS]
        chunks, story, *sums = await asyncio.gather(read(client), create(**STORY), *replies)
    return {
        "async_story": whole(story),
        "async_story_stream": joined(chunks),
        "async_sums": [whole(reply) for reply in sums],
    }


WRONG = {
    "missing_model": {"model": asks.MISSING_MODEL},
    "temperature": {"temperature": 9.0},
    "max_tokens": {"max_tokens": -1},
    "n_type": {"extra_body": {"n": "two"}},
    "too_long": {"messages": asks.messages("word " * 30_000)},
}


def refusal(client: openai.OpenAI, **fields: object) -> dict[str, object]:
    """The SDK's class for a refused request, and what it read of the body."""
    try:
        client.chat.completions.create(**COMMON | {"messages": asks.messages(asks.QUESTION)} | fields)
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "status": error.status_code, "param": error.param, "code": error.code}
    return {}


if __name__ == "__main__":
    with openai.OpenAI(base_url=asks.base_url(), api_key="none") as one:
        answers = sync(one)
    answers |= asyncio.run(concurrent(asks.base_url()))
    print(json.dumps({"version": openai.__version__, "answers": answers}))
