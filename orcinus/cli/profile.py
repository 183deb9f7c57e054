"""`orcinus profile`: what do iterations cost on this machine?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orcinus.engine.config import EngineConfig


def profile(
    engine: Annotated[EngineConfig, Parameter(name="*")],
    *,
    output: Path = Path("profile.json"),
    seconds: float = 45.0,
    processor_time: bool = False,
) -> int:
    """Run designed batches of a checkpoint here for about a minute and fit the cost model of `orcinus simulate`.

    Args:
        output: file for the profile.
        seconds: time to measure for, loading apart; more time, less noise.
        processor_time: count the processor's time, not the wall's: for a machine with other work, with --threads 1.
    """
    import time

    from orcinus.simulate.measure import measure
    from orcinus.simulate.profile import write_profile

    found = measure(engine, seconds, _say, time.process_time if processor_time else time.perf_counter)
    write_profile(output, found)
    off = found.residuals
    assert off is not None
    print(
        f"{output}: {found.num_iterations} iterations measured; on {off.count} that were left out of the fit the model "
        f"is off by {off.p50:.1%} (median) and {off.p95:.1%} (p95), in sum by {off.bias:+.1%}"
    )
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
