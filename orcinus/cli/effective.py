"""A configuration as TOML for `--config`, every line with the place that its value comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from orcinus.cli.options import OPTIONS
from orcinus.cli.settings import DEFAULT, Chosen, Configuration


def effective_toml(configuration: Configuration) -> str:
    """All that counts but the keys, which are told by their number: a file is passed around more easily."""
    lines = [_line(name, configuration) for name in OPTIONS]
    width = min(60, max(len(text) for text, _ in lines))
    return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in lines)


def _line(name: str, configuration: Configuration) -> tuple[str, str]:
    chosen = configuration.chosen[name]
    if OPTIONS[name].is_secret:
        return f"# {name}: {_number(chosen)}", chosen.origin
    if chosen.value is None or chosen.value == ():
        return f"# {name} is not set", chosen.origin
    return f"{name} = {_value(chosen.value)}", chosen.origin


def _number(chosen: Chosen) -> str:
    assert isinstance(chosen.value, tuple)
    return f"{len(chosen.value)}, not shown" if chosen.origin != DEFAULT else "none"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _string(value) if isinstance(value, str) else repr(value)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which JSON leaves alone."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def comments(*remarks: str) -> Iterator[str]:
    """Remarks as lines of TOML, longer ones folded."""
    for remark in remarks:
        yield textwrap.fill(remark, width=118, initial_indent="# ", subsequent_indent="#   ")
