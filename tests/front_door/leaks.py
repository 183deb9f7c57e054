"""What an answer may never tell a stranger (RELIABILITY.md S20): where we run, what we are made of, how far we got."""

from __future__ import annotations

import re

MAX_ANSWER_BYTES = 8192
MAX_ECHO_CHARACTERS = 100

LEAK = re.compile(
    r"""
      (?i: 0x[0-9a-f]{6,} | \b7f[0-9a-f]{10}\b )                   # an address
    | /(?: tmp | usr | home | root | work | proc | var | etc | opt | run | dev | lib )\b
    | \b(?: ipc | tcp | unix )://
    | \.(?: py | so | cpp | sock | toml | safetensors )\b
    | (?i: site-packages | traceback | \bself\. | \bline\ \d+,\ in\b )
    | \borcinus\.\w | \b__\w+__
    | (?i: \b(?: msgspec | starlette | uvicorn | uvloop | httptools | pydantic | jinja2? | torch | numpy | zmq )\b )
    | (?i: \b(?: python | cuda | linux | gcc | tokenizers | transformers )\b )
    | \b[A-Z]\w+(?: Error | Exception | Warning | Request | Params | Struct | Message | Part | Call )\b
    | \b\d+\.\d+\.\d+\b                                         # a version
    """,
    re.VERBOSE,
)


def leaks_in(answer: str, sent: str) -> list[str]:
    """What an answer tells that the client didn't say itself."""
    return [found[0] for found in LEAK.finditer(answer) if found[0].lower() not in sent.lower()]


def echoes_too_much(answer: str, sent: str) -> bool:
    """Whether a longer run of what was sent comes back than may."""
    size = MAX_ECHO_CHARACTERS + 1
    return any(answer[start : start + size] in sent for start in range(len(answer) - size + 1))
