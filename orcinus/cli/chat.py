"""`orcinus chat`: talk to a server in the terminal."""

from __future__ import annotations

import os
import sys

from orcinus.chat.display import one_line
from orcinus.errors import ConfigurationError, nearest

# As shells number the signals SIGINT and SIGPIPE.
_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141


def chat(
    *,
    url: str = "http://127.0.0.1:8000",
    model: str | None = None,
    api_key: str | None = None,
    system: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int | None = None,
) -> int:
    """Talk to a server. What comes through a pipe is one question: its answer is printed, and nothing else.

    Args:
        url: of the server; any OpenAI endpoint will do.
        model: by the server's name for it; the first that it lists if not given.
        api_key: the server's key. Better given as ORCINUS_API_KEY, since everybody on this machine can read a
            command line.
        system: what the model is told before the conversation.
        temperature: 0 always takes the likeliest token; without it, the model's own default holds.
        max_tokens: longest answer.
        seed: of the draws.
    """
    from orcinus.chat.conversation import Conversation, Manner
    from orcinus.chat.endpoint import API_KEY_VARIABLE, Endpoint
    from orcinus.chat.terminal import Chat, answer_once

    endpoint = Endpoint(url, api_key or os.environ.get(API_KEY_VARIABLE))
    try:
        name = _chosen(model, endpoint.models())
        manner = Manner(model=name, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed)
        conversation = Conversation(endpoint, manner)
        if sys.stdin.isatty() and sys.stdout.isatty():
            Chat(conversation).run(f"{one_line(name)} at {url}. /help lists the commands, Ctrl-D leaves.")
        else:
            answer_once(conversation, _piped_question())
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has read enough. What Python still flushes at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE
    return 0


def _chosen(model: str | None, listed: list[str]) -> str:
    """The model to ask for.

    Raises:
        ConfigurationError: the server doesn't list it.
    """
    if not listed:
        raise ConfigurationError("the server lists no model")
    if model is not None and model not in listed:
        names = one_line(", ".join(listed))
        raise ConfigurationError(f"--model is {model!r}{nearest(model, names.split(', '))}; the server lists {names}")
    return model or listed[0]


def _piped_question() -> str:
    """Standard input as one question.

    Raises:
        ConfigurationError: there is none.
    """
    question = sys.stdin.buffer.read().decode(errors="replace").strip()
    if not question:
        raise ConfigurationError('standard input is empty; try: echo "What is 12 + 7?" | orcinus chat')
    return question
