"""What every client asks, and where. Standard library only: the scripts run in another environment."""

from __future__ import annotations

import sys

MODEL = "orcinus-tiny"
QUESTION = "What is 12 + 7?"
STORY = "Tell me a story."
STORY_TOKENS = 40
PROMPT = "Once upon a time"
PROMPT_TOKENS = 24
SYSTEM = "Be brief."
QUESTIONS = ("What is 40 + 25?", "What is 63 + 18?", "What is 5 + 4?")
MISSING_MODEL = "no-such-model"
# Seeded sampling: the seed fixes the answer, whoever asks.
SAMPLED = {"temperature": 0.8, "top_p": 0.9, "seed": 11}


def base_url() -> str:
    """Where the server is, as the test says on the command line."""
    return sys.argv[1] + "/v1"


def messages(question: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation's beginning."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": question}]


def answer(text: str, finish: str | None, usage: object) -> dict[str, object]:
    """What must be equal between clients: the text, why it ended, and the token counts of an OpenAI usage object."""
    counts = [getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    return {"text": text, "finish": finish, "usage": counts}
