"""Orcinus serves large language models: iteration-level scheduling and selective batching over a paged KV cache.

Names are loaded when they are used, so that the server never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orcinus.async_llm import AsyncLLM as AsyncLLM
    from orcinus.core.request import SamplingParams as SamplingParams
    from orcinus.llm import LLM as LLM
    from orcinus.outputs import CompletionOutput as CompletionOutput
    from orcinus.outputs import RequestOutput as RequestOutput

_HOMES = {
    "LLM": "orcinus.llm",
    "AsyncLLM": "orcinus.async_llm",
    "SamplingParams": "orcinus.core.request",
    "CompletionOutput": "orcinus.outputs",
    "RequestOutput": "orcinus.outputs",
}
__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput", "SamplingParams"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'orcinus' has no attribute {name!r}")
