"""What a good answer is: targets of `--goodput` (DistServe's word; DESIGN.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from orcinus.bench.asks import Observation
from orcinus.errors import ConfigurationError, nearest


@dataclass(frozen=True, slots=True)
class Goal:
    """Targets in seconds, met at or below; None asks nothing."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def parse(cls, targets: Sequence[str]) -> Self:
        """From `ttft:200 tpot:50`, in milliseconds.

        Raises:
            ConfigurationError: another name, or no positive number.
        """
        seconds: dict[str, float] = {}
        for target in targets:
            name, _, value = target.partition(":")
            if name not in cls.__slots__:
                known = ", ".join(cls.__slots__)
                raise ConfigurationError(
                    f"--goodput {target!r}: {name!r} is none of {known}{nearest(name, cls.__slots__)}"
                )
            seconds[name] = _milliseconds(target, value) / 1000
        return cls(**seconds)

    def __str__(self) -> str:
        targets = ((name, getattr(self, name)) for name in self.__slots__)
        return ", ".join(f"{name} ≤ {value * 1000:g} ms" for name, value in targets if value is not None)

    def __bool__(self) -> bool:
        return any(target is not None for target in (self.ttft, self.tpot, self.e2el))

    def met_by(self, observation: Observation) -> bool:
        """Whether a request that succeeded met every target; an answer of one token has no TPOT to miss."""
        measured = ((self.ttft, observation.ttft), (self.tpot, observation.tpot), (self.e2el, observation.e2el))
        return all(target is None or value is None or value <= target for target, value in measured)


def _milliseconds(target: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise ConfigurationError(f"--goodput {target!r}: write ttft:200, in milliseconds") from error
    if not number > 0:
        raise ConfigurationError(f"--goodput {target!r}: must be above 0")
    return number
