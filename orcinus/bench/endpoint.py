"""Anybody's OpenAI endpoint: requests in standard fields and, where asked, `ignore_eos`; what its refusals mean."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec

from orcinus.bench.asks import Ask, EndpointKind, Failure, FailureKind, is_ids
from orcinus.errors import ConfigurationError

_PATHS: dict[EndpointKind, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_DETAIL_CHARACTERS = 300
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to ask, and how.

    Args:
        base_url: with or without the final /v1.
    """

    base_url: str
    model: str
    kind: EndpointKind
    temperature: float = 0.0
    ignore_eos: bool = False

    @property
    def url(self) -> str:
        """Where requests go."""
        return root_of(self.base_url) + _PATHS[self.kind]

    def body(self, ask: Ask, *, stream: bool) -> bytes:
        """The request as JSON.

        Raises:
            ConfigurationError: a conversation for /v1/completions, or token ids for chat.
        """
        fields: dict[str, object] = {"model": self.model, "temperature": self.temperature} | self._content(ask)
        if ask.max_tokens is not None:
            fields["max_tokens"] = ask.max_tokens
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(fields)

    def _content(self, ask: Ask) -> dict[str, object]:
        if self.kind == "completions":
            if ask.prompt and isinstance(ask.prompt[0], dict):
                raise ConfigurationError("these prompts are conversations; ask them of --endpoint chat")
            return {"prompt": ask.prompt}
        if isinstance(ask.prompt, str):
            return {"messages": [{"role": "user", "content": ask.prompt}]}
        if is_ids(ask.prompt):
            raise ConfigurationError("these prompts are token ids; ask them of --endpoint completions")
        return {"messages": ask.prompt}


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class ErrorObject(msgspec.Struct):
    """What OpenAI's servers say of an error."""

    message: str = ""


class _ErrorEnvelope(msgspec.Struct):
    """OpenAI's shape, or a bare text as some servers send."""

    error: ErrorObject | str


def root_of(base_url: str) -> str:
    """The address without /v1.

    Raises:
        ConfigurationError: not an address.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--base-url is {base_url!r}; it must begin with http:// or https://")
    return base_url.rstrip("/").removesuffix("/v1")


@asynccontextmanager
async def connections(api_key: str | None, timeout: float) -> AsyncIterator[aiohttp.ClientSession]:
    """As many connections as there are requests: a limit would turn open loop into closed."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_SECONDS)
    # Answers come in small writes; nothing here needs the proxies of the environment.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=limits, auto_decompress=True
    ) as session:
        yield session


async def served_model(session: aiohttp.ClientSession, base_url: str) -> str:
    """The first model that the endpoint lists.

    Raises:
        ConfigurationError: nobody listens there, or it lists nothing.
    """
    url = root_of(base_url) + "/v1/models"
    try:
        async with session.get(url) as response:
            content = await response.read()
            if response.status != 200:
                raise ConfigurationError(f"{url}: {status_failure(response.status, content)}")
            models = msgspec.json.decode(content, type=_Models).data
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ConfigurationError(f"{url}: {failure_of(error)}") from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{url} doesn't answer as OpenAI's does ({error}); give --model") from error
    if not models:
        raise ConfigurationError(f"{url} lists no model; give --model")
    return models[0].id


def failure_of(error: Exception) -> Failure:
    """What an exception of the client library means."""
    detail = str(error) or type(error).__name__
    match error:
        case TimeoutError():
            return Failure(FailureKind.TIMEOUT, detail)
        case aiohttp.ClientPayloadError():
            return Failure(FailureKind.CUT, detail)
        case aiohttp.ClientConnectorError() | aiohttp.ServerDisconnectedError() | OSError():
            return Failure(FailureKind.CONNECTION, detail)
        case _:
            return Failure(FailureKind.FOREIGN, detail)


def status_failure(status: int, content: bytes) -> Failure:
    """A refusal, in the server's words."""
    return Failure(FailureKind.STATUS, error_message(content), status)


def error_message(content: bytes) -> str:
    """The message of an error body or event; its beginning where it isn't OpenAI's shape."""
    try:
        error = msgspec.json.decode(content, type=_ErrorEnvelope).error
    except msgspec.DecodeError:
        error = ""
    message = error if isinstance(error, str) else error.message
    return (message or content.decode(errors="replace"))[:_DETAIL_CHARACTERS]
