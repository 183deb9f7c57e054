"""Hundreds of wrong configurations, made from right ones: each is refused in one line that names place and key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_origin

import pytest
from said import Check

from orcinus.cli.options import OPTIONS, Option

SOURCES: tuple[Literal["toml", "environment", "flag"], ...] = ("toml", "environment", "flag")
# A right value for each key, so that nothing but the mistake is wrong.
RIGHT: dict[str, object] = {
    "model": "models/orcinus-tiny",
    "dtype": "float32",
    "device": "cpu",
    "max_model_len": 64,
    "max_batch_tokens": 64,
    "max_batch_size": 8,
    "kv_cache_gib": 0.5,
    "swap_space_gib": 0.5,
    "kv_disk_path": "kept",
    "kv_disk_gib": 2.0,
    "block_size": 32,
    "admission": "reserve",
    "policy": "fcfs",
    "lookahead": 1,
    "enable_prefix_caching": False,
    "target_iteration_seconds": 0.05,
    "max_wait_seconds": 3.0,
    "max_overtakes": 4,
    "kernels": "reference",
    "model_impl": "orcinus",
    "quantization": "int8",
    "threads": 1,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "executor": "processes",
    "ray_spread": "spread",
    "insecure_ray": True,
    "allow_batch_variance": True,
    "record": "journal.jsonl",
    "host": "localhost",
    "port": 0,
    "api_key": "secret",
    "api_key_file": "keys",
    "served_model_name": "tiny",
    "insecure_no_auth": True,
    "api_server_count": 2,
    "max_queue_seconds": 1.5,
    "drain_seconds": 3.5,
    "drain_delay_seconds": 0.5,
}
OUT_OF_RANGE: dict[str, tuple[object, ...]] = {
    "max_model_len": (0, -1, 2**24 + 1),
    "max_batch_tokens": (0, 2**20 + 1),
    "max_batch_size": (0, 4097),
    "swap_space_gib": (-1.0, float("nan"), float("inf")),
    "kv_disk_gib": (0.0, -1.0, float("nan"), float("inf")),
    "kv_cache_gib": (0.0, -1.0, float("nan"), float("inf")),
    "block_size": (0, 8, 24, 1040),
    "target_iteration_seconds": (0.0, -1.0, float("nan"), float("inf")),
    "max_wait_seconds": (0.0, -1.0, float("nan"), float("inf")),
    "max_overtakes": (-1, 2**20 + 1),
    "threads": (0, 4 * (os.cpu_count() or 1) + 1),
    "tensor_parallel_size": (0, 65),
    "pipeline_parallel_size": (-1, 65),
    "port": (-1, 2**16, 2**70),
    "api_server_count": (0, -1, 257),
    "max_queue_seconds": (-0.5, float("nan"), float("inf")),
    "drain_seconds": (-1.0, float("nan"), float("inf")),
    "drain_delay_seconds": (-1.0, float("nan"), float("inf")),
}


@dataclass(frozen=True)
class Mistake:
    """`key` as written, of the option `name`, where it is put, and with which value."""

    source: Literal["toml", "environment", "flag"]
    name: str
    key: str
    value: object

    def __str__(self) -> str:
        return f"{self.source}-{self.key}={self.value!r:.20}"


def typos(name: str) -> dict[str, str]:
    """A letter lost, two exchanged, one wrong, all in the middle."""
    middle = len(name) // 2
    return {
        "deletion": name[:middle] + name[middle + 1 :],
        "transposition": name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :],
        "substitution": name[:middle] + "x" + name[middle + 1 :],
    }


def all_typos() -> Iterator[Mistake]:
    for name, value in RIGHT.items():
        for key in typos(name).values():
            assert key != name
            yield from (Mistake(source, name, key, value) for source in SOURCES)


def wrong_types() -> Iterator[Mistake]:
    for option in OPTIONS.values():
        for value in wrong_values(option):
            yield Mistake("toml", option.name, option.name, value)
        if option.kind not in (str, tuple[str, ...]):
            # Text is a string by nature; everything else can be the wrong text.
            yield from (Mistake(source, option.name, option.name, "banana") for source in SOURCES[1:])


def wrong_values(option: Option) -> tuple[object, ...]:
    """Of another TOML type, the likeliest slip first."""
    if option.kind is bool:
        return "true", 1
    if option.kind in (int, float):
        return "12", True, [12]
    if get_origin(option.kind) is Literal:
        return "banana", 7, True
    return 12, True, [["x"]]


def out_of_range() -> Iterator[Mistake]:
    for name, values in OUT_OF_RANGE.items():
        yield from (Mistake(source, name, name, value) for value in values for source in SOURCES)


def refused(check: Check, mistake: Mistake) -> str:
    """The one line that is said."""
    text = str(mistake.value).lower() if isinstance(mistake.value, bool) else str(mistake.value)
    if mistake.source == "toml":
        value = repr(mistake.value) if isinstance(mistake.value, float) else json.dumps(mistake.value)
        said = check(toml=f"# a remark\n\n{mistake.key} = {value}\n", environment=unset(mistake.name))
    elif mistake.source == "environment":
        said = check(environment=unset(mistake.name) | {f"ORCINUS_{mistake.key.upper()}": text})
    else:
        said = check(f"--{mistake.key.replace('_', '-')}={text}", environment=unset(mistake.name))
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("orcinus: ")
    assert said.err.count("\n") == 1
    return said.err


def unset(name: str) -> dict[str, str]:
    """The fixture's own value would hide the file's."""
    return {f"ORCINUS_{name.upper()}": ""}


def place(mistake: Mistake) -> str:
    if mistake.source == "toml":
        return "orcinus.toml:3: "
    spelled = mistake.key.upper() if mistake.source == "environment" else mistake.key.replace("_", "-")
    return f"ORCINUS_{spelled}" if mistake.source == "environment" else f"--{spelled}"


def test_the_corpus_is_of_every_key_and_large() -> None:
    assert RIGHT.keys() == OPTIONS.keys()
    numbers = {option.name for option in OPTIONS.values() if option.kind in (int, float)}
    assert OUT_OF_RANGE.keys() == numbers
    assert len([*all_typos(), *wrong_types(), *out_of_range()]) >= 200


@pytest.mark.parametrize("mistake", list(all_typos()), ids=str)
def test_a_typo_is_refused_with_the_key_that_was_meant(check: Check, mistake: Mistake) -> None:
    line = refused(check, mistake)
    assert place(mistake) in line
    meant = {
        "toml": mistake.name,
        "environment": f"ORCINUS_{mistake.name.upper()}",
        "flag": f"--{mistake.name.replace('_', '-')}",
    }[mistake.source]
    assert f"did you mean '{meant}'?" in line


@pytest.mark.parametrize("mistake", list(wrong_types()), ids=str)
def test_a_wrong_type_is_refused_with_place_key_and_what_is_allowed(check: Check, mistake: Mistake) -> None:
    line = refused(check, mistake)
    assert place(mistake) in line
    if mistake.source == "flag" and OPTIONS[mistake.name].kind is bool:
        assert 'unable to convert "banana" into bool' in line
    else:
        assert f"{mistake.name} " in line
        assert f"must be {OPTIONS[mistake.name].in_words}" in line


@pytest.mark.parametrize("mistake", list(out_of_range()), ids=str)
def test_a_value_out_of_range_is_refused_with_place_key_and_bound(check: Check, mistake: Mistake) -> None:
    line = refused(check, mistake)
    assert place(mistake) in line
    assert f"{mistake.name} is {mistake.value}; it must be " in line
