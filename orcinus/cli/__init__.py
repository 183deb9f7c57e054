"""The `orcinus` program: one thin file a command. The only room that reads argv and the environment."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, UnknownOptionError

from orcinus import __version__
from orcinus.cli.bench import bench
from orcinus.cli.chat import chat
from orcinus.cli.eval import evaluate
from orcinus.cli.explain import explain
from orcinus.cli.generate import generate
from orcinus.cli.options import meant
from orcinus.cli.profile import profile
from orcinus.cli.quantize import quantize
from orcinus.cli.replay import replay
from orcinus.cli.serve import serve
from orcinus.cli.simulate import simulate
from orcinus.errors import OrcinusError

EXIT_FAULT = 2


def main() -> None:
    """The program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name; a fault that we foresaw is one line and exit code 2."""
    app = App(
        name="orcinus",
        help="Serve large language models: many requests share each pass of the model, and short answers don't wait "
        "for long ones.",
        version=__version__,
        result_action="return_value",
    )
    app.command(serve)
    app.command(chat)
    app.command(explain)
    app.command(generate)
    app.command(bench)
    app.command(evaluate, name="eval")
    app.command(quantize)
    app.command(profile)
    app.command(simulate)
    app.command(replay)
    try:
        return int(app(list(arguments), exit_on_error=False, print_error=False) or 0)
    except CycloptsError as error:
        complaint = _in_words(error)
    except OrcinusError as error:
        complaint = str(error)
    print(f"orcinus: {complaint}", file=sys.stderr)
    return EXIT_FAULT


def _in_words(error: CycloptsError) -> str:
    if not isinstance(error, UnknownOptionError):
        return " ".join(str(error).split())
    written = (error.token.keyword or error.token.value).partition("=")[0]
    flags = [flag.lstrip("-") for argument in error.argument_collection for flag in argument.names]
    bare, option = written.lstrip("-"), meant(written.lstrip("-"))
    # A name known from elsewhere first; the dashes would make all flags look alike.
    close = [option.flag] if option and option.flag[2:] in flags else difflib.get_close_matches(bare, flags, n=1)
    guess = f" (did you mean '--{close[0].lstrip('-')}'?)" if close else ""
    return f"unknown option {written}{guess}; --help lists what there is"
