"""Asks through litellm's `openai/` provider; prints the answers as JSON."""

from __future__ import annotations

import asyncio
import json
import os

# Its table of prices comes with it; the newest one would come over the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import asks
import litellm
import openai

COMMON = {"model": f"openai/{asks.MODEL}", "api_base": asks.base_url(), "api_key": "none", "temperature": 0}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
STORY = COMMON | {"messages": asks.messages(asks.STORY), "max_tokens": asks.STORY_TOKENS}


def whole(reply: litellm.ModelResponse) -> dict[str, object]:
    """Of an answer in one piece."""
    choice = reply.choices[0]
    return asks.answer(choice.message.content, choice.finish_reason, reply.usage)


def joined(chunks: list[litellm.ModelResponse]) -> dict[str, object]:
    """Of a streamed one, put together by litellm itself."""
    return whole(litellm.stream_chunk_builder(chunks))


def refusal(**fields: object) -> dict[str, object]:
    """litellm's class for a refused request; all of them are kinds of the SDK's."""
    try:
        litellm.completion(**COMMON | {"messages": asks.messages(asks.QUESTION)} | fields)
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "status": error.status_code, "said": str(error)}
    return {}


async def concurrent() -> dict[str, object]:
    """Everything at once."""

    async def read() -> list[litellm.ModelResponse]:
        return [chunk async for chunk in await litellm.acompletion(**STORY, **STREAMED)]

    replies = [litellm.acompletion(**COMMON, messages=asks.messages(question)) for question in asks.QUESTIONS]
    chunks, story, *sums = await asyncio.gather(read(), litellm.acompletion(**STORY), *replies)
    return {
        "async_story": whole(story),
        "async_story_stream": joined(chunks),
        "async_sums": [whole(reply) for reply in sums],
    }


def text_completion() -> dict[str, object]:
    """The older endpoint; litellm names it by another provider."""
    options = COMMON | {"model": f"text-completion-openai/{asks.MODEL}"}
    reply = litellm.text_completion(**options, prompt=asks.PROMPT, max_tokens=asks.PROMPT_TOKENS)
    return asks.answer(reply.choices[0].text, reply.choices[0].finish_reason, reply.usage)


if __name__ == "__main__":
    answers = {
        "chat": whole(litellm.completion(**COMMON, messages=asks.messages(asks.QUESTION))),
        "chat_system": whole(litellm.completion(**COMMON, messages=asks.messages(asks.QUESTION, asks.SYSTEM))),
        "chat_sampled": whole(litellm.completion(**STORY | asks.SAMPLED)),
        "story": whole(litellm.completion(**STORY)),
        "story_stream": joined(list(litellm.completion(**STORY, **STREAMED))),
        "completion": text_completion(),
        **asyncio.run(concurrent()),
        "errors": {
            "missing_model": refusal(model=f"openai/{asks.MISSING_MODEL}"),
            "temperature": refusal(temperature=9.0),
            "too_long": refusal(messages=asks.messages("word " * 30_000)),
        },
    }
    print(json.dumps({"answers": answers}))
