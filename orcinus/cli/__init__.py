"""The `orcinus` program: one thin file a command. The only room that reads argv and the environment."""

from __future__ import annotations

import sys

from cyclopts import App

from orcinus import __version__
from orcinus.cli.bench import bench
from orcinus.cli.eval import evaluate
from orcinus.cli.generate import generate
from orcinus.cli.serve import serve
from orcinus.errors import OrcinusError

EXIT_FAULT = 2


def main() -> None:
    """Run the command that argv names; a fault that we foresaw is one line and exit code 2."""
    app = App(
        name="orcinus",
        help="Serve large language models: many requests share each pass of the model, and short answers don't wait "
        "for long ones.",
        version=__version__,
        result_action="return_value",
    )
    app.command(serve)
    app.command(generate)
    app.command(bench)
    app.command(evaluate, name="eval")
    try:
        sys.exit(app())
    except OrcinusError as error:
        print(f"orcinus: {error}", file=sys.stderr)
        sys.exit(EXIT_FAULT)
