"""What `orcinus profile` writes and `orcinus simulate` reads: a cost model, its origin and how far it is off."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orcinus.core.config import SchedulerConfig
from orcinus.errors import ConfigurationError
from orcinus.simulate.config import CALIBRATION_NAME
from orcinus.simulate.cost import CALIBRATION, AnyCost
from orcinus.simulate.fit import Residuals
from orcinus.simulate.run import HostCost


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One machine and checkpoint.

    Args:
        scheduler: what the engine's core was told; the twin's defaults.
        fingerprint: numerics fingerprint of the engine that was measured.
        residuals: of iterations left out of the fit.
    """

    cost: AnyCost
    host: HostCost = HostCost()
    scheduler: SchedulerConfig | None = None
    name: str = ""
    fingerprint: str = ""
    num_iterations: int = 0
    residuals: Residuals | None = None


def read_profile(name: str) -> Profile:
    """The named model or file; a file may hold the cost model alone.

    Raises:
        ConfigurationError: what can't be read.
    """
    if name == CALIBRATION_NAME:
        return Profile(cost=CALIBRATION, name=CALIBRATION_NAME)
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"--profile {name} can't be read: {error}; give a file of `orcinus profile`, or {CALIBRATION_NAME}"
        ) from error
    try:
        return msgspec.json.decode(content, type=Profile)
    except msgspec.MsgspecError as error:
        try:
            return Profile(cost=msgspec.json.decode(content, type=AnyCost), name=name)
        except msgspec.MsgspecError:
            raise ConfigurationError(f"--profile {name} is no profile: {error}") from error


def write_profile(file: Path, profile: Profile) -> None:
    """Raises ConfigurationError if it can't be written."""
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error}") from error
