"""Where the time of a response went, drawn in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orcinus.chat.display import one_line
from orcinus.server.explanations import Explanation, RequestStory

_BAR_WIDTH = 60
_COLOURS = (
    "green",
    "blue",
    "yellow",
    "magenta",
    "cyan",
    "red",
    "bright_green",
    "bright_blue",
    "bright_yellow",
    "white",
)


def show_explanation(explanation: Explanation) -> None:
    """A bar from the first byte to the last, and a table of causes, for each prompt."""
    console = Console(highlight=False)
    state = "" if explanation.is_over else ", not over yet"
    console.print(f"{one_line(explanation.id)}: {_time(explanation.wall_seconds)}{state}", markup=False)
    for story in explanation.requests:
        console.print(_bar(story, explanation.wall_seconds))
        console.print(_table(story))
        console.print(_remarks(story), style="dim")


def _table(story: RequestStory) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    table.add_column("iterations", justify="right")
    table.add_column("")
    for share in story.causes:
        count = str(share.iterations) if share.iterations else ""
        mark = Text("■", style=_colours(story)[share.cause])
        table.add_row(mark, _time(share.seconds), f"{share.share:.1%}", count, one_line(share.text))
    return table


def _bar(story: RequestStory, wall: float) -> Text:
    """The request's life from left to right."""
    colours = _colours(story)
    cells = (next(cause for cause in _causes_at(story, wall, cell)) for cell in range(_BAR_WIDTH))
    return Text.assemble(*(("█", colours[cause]) for cause in cells))


def _causes_at(story: RequestStory, wall: float, cell: int) -> Iterator[str]:
    """What went on in the middle of a cell; the last span, should rounding lead past it."""
    at = wall * (cell + 0.5) / _BAR_WIDTH
    yield from (span.cause for span in story.spans if span.began <= at < span.began + span.seconds)
    yield story.spans[-1].cause


def _colours(story: RequestStory) -> dict[str, str]:
    return {share.cause: _COLOURS[index % len(_COLOURS)] for index, share in enumerate(story.causes)}


def _remarks(story: RequestStory) -> str:
    remarks = [f"{story.cached_tokens} prompt tokens came from the prefix cache"] if story.cached_tokens else []
    remarks += [f"preempted {story.num_preemptions} times"] if story.num_preemptions else []
    return "; ".join(remarks)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
