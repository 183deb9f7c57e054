"""`orcinus generate`: answer prompts once, in this process."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from orcinus.core.request import SamplingParams
from orcinus.engine.config import EngineConfig


def generate(
    engine: Annotated[EngineConfig, Parameter(name="*")],
    *prompts: str,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    raw: bool = False,
) -> int:
    """Answer one or more prompts and leave. Prompts go through the checkpoint's chat template if it has one.

    Args:
        prompts: texts to answer; without any, one is read from standard input.
        max_tokens: longest answer; without it, an answer ends where the model ends it.
        temperature: 0 always takes the likeliest token.
        top_p: share of the probability that is drawn from.
        seed: of the draws.
        stop: strings that end an answer.
        raw: continue the prompts as plain text, without the chat template.
    """
    # torch takes seconds to import, so --help and a mistyped flag don't wait for it.
    from orcinus.llm import LLM

    texts = list(prompts) or [sys.stdin.read()]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    with LLM(**asdict(engine)) as llm:
        if raw or llm.tokenizer is None or llm.tokenizer.chat_template is None:
            outputs = llm.generate(texts, params)
        else:
            outputs = llm.chat([[{"role": "user", "content": text}] for text in texts], params)
    for output in outputs:
        print(output.outputs[0].text)
    return 0
