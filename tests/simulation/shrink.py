"""A failing life made as short and as plain as it can be while it fails in the same way. Deterministic.

First events are left out, in ever smaller runs (Zeller's delta debugging); then requests and configuration are made
plainer, one property at a time; then events once more.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
from lives import Arrive, Hold, Life, Step
from sim_world import World

from orcinus.core.request import ServiceClass


@dataclass(frozen=True, slots=True)
class Failure:
    """How a life failed: two lives that fail alike have equal `kind`."""

    kind: str
    text: str


def failure_of(life: Life) -> Failure | None:
    """Live it."""
    try:
        World(life).live()
    except Exception as error:  # noqa: BLE001  core may fail in any way
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(f"{type(error).__name__} in {last.name}: {error}", "".join(traceback.format_exception(error)))
    return None


def _is_like(failure: Failure | None, kind: str) -> bool:
    """The same complaint; numbers in it may differ."""
    return failure is not None and _letters(failure.kind) == _letters(kind)


def _letters(text: str) -> str:
    return "".join(c for c in text if not c.isdigit())[:80]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """`keep`: places of the events that matter; `plainer`: names of what was made plainer."""

    life: Life
    keep: list[int]
    plainer: list[str]

    def command(self) -> str:
        """One line that makes it happen again."""
        kept = ",".join(map(str, self.keep)) or "none"
        plainer = f" --plainer {','.join(self.plainer)}" if self.plainer else ""
        return f"python tools/simulation_test.py --start {self.life.seed} --seeds 1 --keep {kept}{plainer}"


def shrink(life: Life, kind: str) -> Shrunk:
    """The shortest life found that fails like `kind`."""

    def fails(keep: list[int], plainer: list[str]) -> bool:
        return _is_like(failure_of(made_plainer(life, plainer).cut(keep)), kind)

    keep, plainer = _fewest(list(range(len(life.events))), lambda kept: fails(kept, [])), list[str]()
    for name in PLAINER:
        if made_plainer(life, [*plainer, name]) != made_plainer(life, plainer) and fails(keep, [*plainer, name]):
            plainer.append(name)
    keep = _fewest(keep, lambda kept: fails(kept, plainer))
    return Shrunk(made_plainer(life, plainer).cut(keep), keep, plainer)


def _fewest(keep: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Leave out runs of events as long as it goes on failing."""
    size = max(1, len(keep) // 2)
    while size:
        shorter = next((kept for kept in _without(keep, size) if fails(kept)), None)
        if shorter is None:
            size //= 2
        else:
            keep = shorter
            size = min(size, max(1, len(keep) // 2)) if keep else 0
    return keep


def _without(keep: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(keep), size):
        yield keep[:start] + keep[start + size :]


def _arrivals(**changes: object) -> Callable[[Life], Life]:
    def change(life: Life) -> Life:
        events = (replace(e, **changes) if isinstance(e, Arrive) else e for e in life.events)  # type: ignore[arg-type]
        return replace(life, events=tuple(events))

    return change


def _config(**changes: object) -> Callable[[Life], Life]:
    return lambda life: replace(life, config=msgspec.structs.replace(life.config, **changes))


def _halved(life: Life) -> Life:
    """Shorter prompts and answers, fewer steps."""
    events = []
    for event in life.events:
        match event:
            case Arrive():
                shared, own, made = event.shared // 2, (event.own + 1) // 2, (event.max_tokens + 1) // 2
                event = replace(event, shared=shared, own=own, max_tokens=made, min_tokens=min(event.min_tokens, made))
            case Step():
                event = replace(event, times=event.times // 2)
            case Hold():
                event = replace(event, events=event.events // 2)
        events.append(event)
    return replace(life, events=tuple(events))


# Tried in this order; each is a name on the command line.
PLAINER: dict[str, Callable[[Life], Life]] = {
    "no_search": _arrivals(width=0),
    "one_answer": _arrivals(n=1),
    "no_pooling": _arrivals(pooling=""),
    "no_logprobs": _arrivals(logprobs=False, prompt_logprobs=False),
    "one_class": _arrivals(service_class=ServiceClass.NORMAL, priority=0),
    "one_owner": _arrivals(tenant="", cache_salt="", adapter=""),
    "no_deadline": _arrivals(patience=None),
    "no_ends": _arrivals(ignore_eos=True, stop_token=None, min_tokens=0),
    "no_turns": _arrivals(follows=None),
    "no_disk": _config(num_disk_blocks=0),
    "no_tiers": _config(num_disk_blocks=0, num_host_blocks=0),
    "no_cache": _config(enable_prefix_caching=False, num_disk_blocks=0, num_host_blocks=0),
    "no_lookahead": _config(lookahead=0),
    "no_shares": _config(even_plans=False),
    "one_stage": _config(num_stages=1),
    "halved": _halved,
    "halved_again": _halved,
}


def made_plainer(life: Life, names: list[str]) -> Life:
    """`life` after these changes."""
    for name in names:
        life = PLAINER[name](life)
    return life
