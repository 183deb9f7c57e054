"""The configuration of `orcinus serve`: defaults, then a TOML file, the environment and flags, as one typed record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from orcinus.cli.options import ENGINE_OPTIONS, OPTIONS, SERVER_OPTIONS, Given, Option, ServerFlags, typed
from orcinus.cli.sources import CONFIG_VARIABLE, from_environment, from_toml, keys_of_file
from orcinus.engine.config import EngineConfig
from orcinus.errors import ConfigurationError, SystemFault

if TYPE_CHECKING:
    from orcinus.server.run import ServeSettings

DEFAULT = "default"

Record = TypeVar("Record")
Fault = TypeVar("Fault", bound=SystemFault)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A value that counts, and where it comes from."""

    value: object = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a user chose, checked as far as that goes without looking at the checkpoint and the machine.

    Args:
        chosen: every option by its key.
    """

    engine: EngineConfig
    server: ServeSettings
    chosen: Mapping[str, Chosen]


def configure(flags: Mapping[str, Given], file: Path | None, environment: Mapping[str, str]) -> Configuration:
    """Put the sources together; what is said later in their order wins, key by key.

    Args:
        flags: as the command line has them.
        file: of --config; without it, ORCINUS_CONFIG names one.

    Raises:
        ConfigurationError: naming the place, the key and what is allowed.
    """
    file = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    chosen = {name: Chosen(option.default, DEFAULT) for name, option in OPTIONS.items()}
    for source in (from_toml(file) if file else {}, from_environment(environment), flags):
        # All of a source is checked, also what a later one replaces: a mistake there would show up another day.
        chosen |= {name: Chosen(typed(OPTIONS[name], given), given.origin) for name, given in source.items()}
    if chosen["model"].origin == DEFAULT:
        raise ConfigurationError(
            "model is missing; give the folder of a checkpoint, as in `orcinus serve FOLDER`, ORCINUS_MODEL, or a line "
            '`model = "FOLDER"` in the file of --config'
        )
    engine = _checked(chosen, lambda: _record(ENGINE_OPTIONS, chosen, EngineConfig))
    flags_of_server = _record(SERVER_OPTIONS, chosen, ServerFlags)
    server = _checked(chosen, lambda: _server(engine, flags_of_server, chosen["api_key_file"].origin))
    return Configuration(engine, server, chosen)


def _record(options: Mapping[str, Option], chosen: Mapping[str, Chosen], kind: type[Record]) -> Record:
    return msgspec.convert({name: chosen[name].value for name in options}, kind)


def _server(engine: EngineConfig, flags: ServerFlags, key_file_origin: str) -> ServeSettings:
    # The HTTP side takes as long to import as everything else together; other mistakes don't wait for it.
    from orcinus.server.run import ServeSettings

    from_file = keys_of_file(flags.api_key_file, key_file_origin) if flags.api_key_file is not None else ()
    return ServeSettings(
        model=Path(engine.model),
        host=flags.host,
        port=flags.port,
        api_keys=(*flags.api_key, *from_file),
        insecure_no_auth=flags.insecure_no_auth,
        served_model_names=flags.served_model_name,
        front_ends=flags.api_server_count,
        max_queue_seconds=flags.max_queue_seconds,
        drain_seconds=flags.drain_seconds,
        drain_delay_seconds=flags.drain_delay_seconds,
    )


def _checked(chosen: Mapping[str, Chosen], make: Callable[[], Record]) -> Record:
    """What `make` returns; where it refuses, the complaint says where the values come from."""
    try:
        return make()
    except ConfigurationError as error:
        raise located(error, chosen) from error


def located(error: Fault, chosen: Mapping[str, Chosen]) -> Fault:
    """The same complaint with the places of the keys that it names: the first key's in front, others' behind."""
    complaint = str(error)
    named = [name for name in _named(complaint) if chosen[name].origin != DEFAULT]
    if not named or complaint.startswith(chosen[named[0]].origin):
        return error
    others = ", ".join(f"{name} is from {chosen[name].origin}" for name in named[1:])
    return type(error)(f"{chosen[named[0]].origin}: {complaint}{f' ({others})' if others else ''}")


def _named(complaint: str) -> list[str]:
    """Keys in the order in which a complaint names them. A key that is also an English word counts only in front."""
    words = dict.fromkeys(re.findall(r"[a-z_]+", complaint.replace("--", "").replace("-", "_")))
    return [word for number, word in enumerate(words) if word in OPTIONS and (number == 0 or "_" in word)]
