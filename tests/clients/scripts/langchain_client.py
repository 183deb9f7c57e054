"""Asks through langchain-openai; prints the answers as JSON."""

from __future__ import annotations

import asyncio
import json

import asks
import openai
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI, OpenAI

COMMON = {"model": asks.MODEL, "base_url": asks.base_url(), "api_key": "none", "temperature": 0}


def read(message: AIMessage) -> dict[str, object]:
    """Of an answer, or of the sum of a stream's chunks."""
    counts = message.usage_metadata
    usage = [counts["input_tokens"], counts["output_tokens"], counts["total_tokens"]]
    return {"text": message.content, "finish": message.response_metadata["finish_reason"], "usage": usage}


def joined(chunks: list[AIMessageChunk]) -> dict[str, object]:
    """Chunks add up by langchain's own rule."""
    return read(sum(chunks[1:], chunks[0]))


async def concurrent(story: ChatOpenAI) -> dict[str, object]:
    """The asynchronous half."""
    chunks = [chunk async for chunk in story.astream(asks.STORY)]
    return {"async_story": read(await story.ainvoke(asks.STORY)), "async_story_stream": joined(chunks)}


def refusal(**fields: object) -> dict[str, object]:
    """The SDK's class, through langchain."""
    try:
        ChatOpenAI(**COMMON | fields).invoke(asks.QUESTION)
    except openai.APIStatusError as error:
        return {"status": error.status_code, "param": error.param, "code": error.code}
    return {}


if __name__ == "__main__":
    chat = ChatOpenAI(**COMMON)
    story = ChatOpenAI(**COMMON, max_tokens=asks.STORY_TOKENS, stream_usage=True)
    completion = OpenAI(**COMMON, max_tokens=asks.PROMPT_TOKENS)
    answers = {
        "chat": read(chat.invoke(asks.QUESTION)),
        "chat_system": read(chat.invoke([("system", asks.SYSTEM), ("user", asks.QUESTION)])),
        "chat_sampled": read(ChatOpenAI(**COMMON | asks.SAMPLED, max_tokens=asks.STORY_TOKENS).invoke(asks.STORY)),
        "chat_with_retry": read(chat.with_retry(stop_after_attempt=2).invoke(asks.QUESTION)),
        "story": read(story.invoke(asks.STORY)),
        "story_stream": joined(list(story.stream(asks.STORY))),
        "async_sums": [read(message) for message in chat.batch(list(asks.QUESTIONS))],
        **asyncio.run(concurrent(story)),
        "completion_text": completion.invoke(asks.PROMPT),
        "completion_stream_text": "".join(completion.stream(asks.PROMPT)),
        "errors": {
            "missing_model": refusal(model=asks.MISSING_MODEL),
            "temperature": refusal(temperature=9.0),
        },
    }
    print(json.dumps({"answers": answers}))
