"""`orcinus replay`: does the scheduler still decide as it was recorded? And if it had been configured otherwise?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orcinus.errors import ConfigurationError

EXIT_DIFFERENT = 1


def replay(
    recording: Path,
    /,
    *,
    what_if: str = "",
    profile: str | None = None,
    goodput: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    report: Path | None = None,
) -> int:
    """Repeat a recording: every decision is the recorded one, or the first that differs is shown (exit code 1).

    Args:
        recording: file that an engine wrote.
        what_if: changes, as policy=fcfs,max_batch_tokens=256: the recorded requests go through the twin as they were
            served and with the changes, and both are shown.
        profile: of the iterations' cost, for --what-if; without it, fitted to the recording.
        goodput: targets in milliseconds, for --what-if.
        report: .html file, for --what-if.
    """
    from orcinus.simulate.replay import check_replay, explain

    if what_if:
        return _compare(recording, what_if, profile, goodput, report)
    try:
        with recording.open("rb") as lines:
            found = check_replay(lines)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{recording}: {error}") from error
    print(explain(found))
    return EXIT_DIFFERENT if found.difference else 0


def _compare(recording: Path, changes: str, profile: str | None, goodput: tuple[str, ...], report: Path | None) -> int:
    from orcinus.bench.goal import Goal
    from orcinus.bench.output import show
    from orcinus.simulate.profile import read_profile
    from orcinus.simulate.report import tables, write_page
    from orcinus.simulate.twin import parse_changes, what_if

    parsed = parse_changes(changes)
    try:
        with recording.open("rb") as lines:
            runs = what_if(lines, parsed, read_profile(profile) if profile else None, Goal.parse(goodput))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{recording}: {error}") from error
    show(tables(runs))
    if report is not None:
        write_page(report, runs, f"{recording.name}: what if {changes}")
    return 0
