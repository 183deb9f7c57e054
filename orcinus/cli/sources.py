"""Where a configuration comes from besides the command line: one TOML file, the environment, a file of keys."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from orcinus.cli.options import OPTIONS, PREFIX, Given, meant
from orcinus.errors import ConfigurationError

CONFIG_VARIABLE = PREFIX + "CONFIG"
_FLAGS_ONLY = ("config", "check", "help")
# A variable of somebody else may begin as ours do, so it must be closer to be called a slip.
_VARIABLE_CUTOFF = 0.7
_MAX_KEY_FILE_BYTES = 2**16
_HELP = "`orcinus serve --help` lists what there is"


def from_toml(path: Path) -> dict[str, Given]:
    """The keys of a flat TOML file, spelled with - or _.

    Raises:
        ConfigurationError: unreadable, no TOML, a key that doesn't exist or stands there twice, a table.
    """
    source, shared = _read_toml(path)
    given: dict[str, Given] = {}
    for key, value in _parse(path, source).items():
        origin = _place(path, source, key)
        name = key.replace("-", "_")
        if isinstance(value, dict) or name not in OPTIONS:
            raise _unknown_key(origin, key, isinstance(value, dict))
        if name in given:
            raise ConfigurationError(f"{origin}: {key} is given a second time, after {given[name].origin}")
        if OPTIONS[name].is_secret and shared:
            raise ConfigurationError(f"{origin}: {name} stands in a file that {shared}")
        given[name] = Given(value, origin, is_text=False)
    return given


def from_environment(environment: Mapping[str, str]) -> dict[str, Given]:
    """What our variables say; an empty one counts as unset.

    Raises:
        ConfigurationError: a variable that looks like a slip of the pen.
    """
    known = {option.variable: name for name, option in OPTIONS.items()}
    given: dict[str, Given] = {}
    for variable, value in sorted(environment.items()):
        if not variable.startswith(PREFIX) or not value or variable == CONFIG_VARIABLE:
            continue
        if variable not in known:
            _refuse_slip(variable)
            continue
        _refuse_link(variable, value)
        given[known[variable]] = Given(value, variable, is_text=True)
    return given


def keys_of_file(path: str, origin: str) -> tuple[str, ...]:
    """API keys, one a line.

    Raises:
        ConfigurationError: unreadable, others may read it, or there is no key in it.
    """
    try:
        with open(path, "rb") as file:
            shared = _shared(file)
            content = file.read(_MAX_KEY_FILE_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{origin}: api_key_file {path} can't be read: {_reason(error)}") from error
    if shared:
        raise ConfigurationError(f"{origin}: api_key_file {path} is a file that {shared}")
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise ConfigurationError(f"{origin}: api_key_file {path} is too long for a list of keys, one a line")
    keys = tuple(line.strip() for line in content.splitlines() if line.strip())
    if not keys:
        raise ConfigurationError(f"{origin}: api_key_file {path} holds no key; write one on a line of its own")
    return keys


def _shared(file: BinaryIO) -> str:
    """Who else gets at a file that holds secrets, and the remedy; empty if nobody."""
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
        return f"other users may read or change (mode {stat.S_IMODE(mode):03o}); `chmod 600` it"
    return ""


def _read_toml(path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            return file.read().decode(), _shared(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--config {path} can't be read: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"


def _parse(path: Path, source: str) -> dict[str, object]:
    try:
        return tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = found[1] if found else str(source.rstrip("\n").count("\n") + 1)
        raise ConfigurationError(f"{path}:{line}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path} is nested too deeply; its keys stand at the top") from error


def _place(path: Path, source: str, key: str) -> str:
    """`file:line` of a key or table at the top level.

    What stands before a key is TOML by itself, which tells a key from a line of a longer string.
    """
    begins = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    # `splitlines` would count characters that end no line in TOML.
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if begins.match(line) and _is_toml("\n".join(lines[:number]) + "\n"):
            return f"{path}:{number + 1}"
    return str(path)


def _is_toml(source: str) -> bool:
    try:
        tomllib.loads(source)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _unknown_key(origin: str, key: str, is_table: bool) -> ConfigurationError:
    if is_table:
        return ConfigurationError(f"{origin}: {key} is a table; all keys stand at the top, without tables")
    if key in _FLAGS_ONLY:
        return ConfigurationError(f"{origin}: {key} is for the command line only")
    option = meant(key)
    guess = f" (did you mean {option.name!r}?)" if option else ""
    return ConfigurationError(f"{origin}: unknown key {key!r}{guess}; {_HELP}")


def _refuse_slip(variable: str) -> None:
    name = variable.removeprefix(PREFIX)
    if name.lower() in _FLAGS_ONLY:
        raise ConfigurationError(f"{variable}: {name.lower()} is for the command line only; unset the variable")
    option = meant(name, _VARIABLE_CUTOFF)
    if option:
        raise ConfigurationError(
            f"unknown variable {variable} (did you mean {option.variable!r}?); rename or unset it. {_HELP}"
        )


def _refuse_link(variable: str, value: str) -> None:
    if value.startswith("tcp://"):
        raise ConfigurationError(
            f"{variable} is {value!r}, which Kubernetes writes for a service called orcinus; give the service another "
            "name, or set enableServiceLinks: false"
        )
