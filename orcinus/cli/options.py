"""What `orcinus serve` lets a user choose, one option a key, and how a value from any source becomes a typed one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from orcinus.engine.config import EngineConfig
from orcinus.errors import ConfigurationError, nearest

PREFIX = "ORCINUS_"
# What people know from elsewhere under another name.
_ELSEWHERE = {
    "max_num_seqs": "max_batch_size",
    "max_num_batched_tokens": "max_batch_tokens",
    "kv_cache_memory_bytes": "kv_cache_gib",
    "gpu_memory_utilization": "kv_cache_gib",
    "swap_space": "swap_space_gib",
    "scheduling_policy": "policy",
    "max_seq_len": "max_model_len",
    "context_length": "max_model_len",
    "model_path": "model",
}
_KINDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple[str, ...]: "a string or a list of strings",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFlags:
    """The options that concern the HTTP side.

    Args:
        host: address to listen on; one that other machines reach needs a key.
        port: port to listen on; 0 takes any free one.
        api_key: key that clients must send; may be given several times. Better given as ORCINUS_API_KEY or in a file,
            since everybody on this machine can read a command line.
        api_key_file: file with more keys, one a line, that only its owner may read.
        served_model_name: what clients call the model; the folder's name if not given.
        insecure_no_auth: listen beyond this machine without a key.
        api_server_count: HTTP processes.
        max_queue_seconds: a request that would have to wait longer than this is refused with 429.
        drain_seconds: time that running streams may take to finish after SIGTERM.
        drain_delay_seconds: after SIGTERM /ready says no for so long before connections are refused too, so that a load
            balancer notices.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: tuple[str, ...] = ()
    api_key_file: str | None = None
    served_model_name: tuple[str, ...] = ()
    insecure_no_auth: bool = False
    api_server_count: int = 1
    max_queue_seconds: float = 5.0
    drain_seconds: float = 30.0
    drain_delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Option:
    """One key. `kind` is its type, without None."""

    name: str
    kind: object
    default: object

    @property
    def flag(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """In the environment."""
        return PREFIX + self.name.upper()

    @property
    def is_list(self) -> bool:
        """It takes several values."""
        return self.kind == tuple[str, ...]

    @property
    def is_secret(self) -> bool:
        """Its value is never shown."""
        return self.name == "api_key"

    @property
    def in_words(self) -> str:
        """What it takes."""
        if get_origin(self.kind) is Literal:
            return "one of " + ", ".join(map(str, get_args(self.kind)))
        return _KINDS[self.kind]


@dataclass(frozen=True, slots=True)
class Given:
    """A value as a source has it.

    Args:
        origin: the place, in words for people.
        is_text: the source knows only text, as the environment and the command line do.
    """

    value: object
    origin: str
    is_text: bool


def _options(record: type) -> dict[str, Option]:
    hints = get_type_hints(record)
    return {
        field.name: Option(
            field.name, _without_none(hints[field.name]), None if field.default is MISSING else field.default
        )
        for field in fields(record)
    }


def _without_none(hint: object) -> object:
    if get_origin(hint) not in (Union, UnionType):
        return hint
    (kind,) = (choice for choice in get_args(hint) if choice is not type(None))
    return kind


ENGINE_OPTIONS: Mapping[str, Option] = _options(EngineConfig)
SERVER_OPTIONS: Mapping[str, Option] = _options(ServerFlags)
OPTIONS: Mapping[str, Option] = {**ENGINE_OPTIONS, **SERVER_OPTIONS}


def meant(name: str, cutoff: float = 0.6) -> Option | None:
    """The option that somebody who wrote `name` may have meant."""
    name = name.lower().replace("-", "_")
    if name in _ELSEWHERE:
        return OPTIONS[_ELSEWHERE[name]]
    close = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=cutoff)
    return OPTIONS[close[0]] if close else None


def typed(option: Option, given: Given) -> object:
    """The value in the option's own type.

    Raises:
        ConfigurationError: it has another; the message names place, key and value, and what is allowed.
    """
    value = _listed(option, given) if option.is_list else given.value
    try:
        converted: object = msgspec.convert(value, option.kind, strict=not given.is_text)
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{given.origin}: {option.name} is not UTF-8 text") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{given.origin}: {_complaint(option, given.value)}") from error
    return converted


def _listed(option: Option, given: Given) -> object:
    """One string stands for a list of one. A key may hold a comma, so that only names are divided there."""
    if not isinstance(given.value, str):
        return given.value
    divided = given.is_text and not option.is_secret
    return [part.strip() for part in given.value.split(",")] if divided else [given.value]


def _complaint(option: Option, value: object) -> str:
    if option.is_secret:
        return f"{option.name} must be {option.in_words}"
    choices = map(str, get_args(option.kind)) if get_origin(option.kind) is Literal else ()
    return f"{option.name} is {value!r}; it must be {option.in_words}{nearest(str(value), choices)}"
