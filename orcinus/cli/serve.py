"""`orcinus serve`: an OpenAI-compatible endpoint."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, Token

from orcinus.cli.effective import comments, effective_toml
from orcinus.cli.options import OPTIONS, Given, Option, ServerFlags
from orcinus.cli.settings import Configuration, configure, located
from orcinus.engine.config import EngineConfig, engine_command
from orcinus.engine.messages import EngineDescription
from orcinus.errors import CheckpointError, ConfigurationError, MemoryPlanError
from orcinus.text.gguf import with_folder

if TYPE_CHECKING:
    from orcinus.cli.checkpoint import CheckpointFacts

API_KEY_VARIABLE = OPTIONS["api_key"].variable
_NOT_CHECKED = (
    "Not checked: whether tensors fit the architecture, dtype and kernels the processor, and all of it the memory that "
    "is free. The engine sees to that at its start."
)

_SUMMARY = """Serve a checkpoint behind the OpenAI API: /v1/chat/completions, /v1/completions, /v1/models.

Every option can also stand in the TOML file of --config and in the environment, as ORCINUS_PORT; of these, flags count
most and the file least.

Args:
"""
_OWN_OPTIONS = """\
    config: TOML file of options; - or _ in its keys, no tables. Also ORCINUS_CONFIG.
    check: check the configuration, print it with the place that each value comes from, and leave.
"""


def serve(
    *model: object,
    config: Path | None = None,
    check: Annotated[bool, Parameter(negative=())] = False,
    **options: object,
) -> int:
    """Take what the flags say, as `_signature` has them and the other sources complete it, and serve."""
    named = dict(zip(("model",), model, strict=False)) | options
    given = {name: Given(value, OPTIONS[name].flag, is_text=True) for name, value in named.items() if value is not None}
    configuration = configure(given, config, os.environ)
    # Only now: --help and a mistyped flag don't wait for what reads checkpoints and speaks HTTP.
    from orcinus.cli.checkpoint import check_checkpoint

    try:
        configuration = _unpacked(configuration)
        facts = check_checkpoint(configuration.engine)
        return _check(configuration, facts) if check else _serve(configuration)
    except (ConfigurationError, CheckpointError, MemoryPlanError) as error:
        raise located(error, configuration.chosen) from error


def _unpacked(configuration: Configuration) -> Configuration:
    """The same with the folder that stands for a GGUF file."""
    folder = with_folder(configuration.engine.model)
    if folder == configuration.engine.model:
        return configuration
    engine, server = replace(configuration.engine, model=folder), replace(configuration.server, model=Path(folder))
    return replace(configuration, engine=engine, server=server)


def _serve(configuration: Configuration) -> int:
    from orcinus.server.run import serve as run_server

    settings = configuration.server
    run_server(
        settings,
        lambda known: engine_command(configuration.engine, known),
        on_progress=_say,
        on_ready=lambda description, url: _say(
            _banner(description, url, settings.model_names[0], bool(settings.api_keys))
        ),
    )
    return 0


def _check(configuration: Configuration, facts: CheckpointFacts) -> int:
    """Everything that can be checked without starting anything; the port is taken for a moment."""
    from orcinus.cli.checkpoint import check_text_side
    from orcinus.server.run import listen

    text_side = check_text_side(configuration.server.model)
    listen(configuration.server).close()
    remarks = (f"checkpoint: {facts}", f"tokenizer: {text_side}", "address: free", _NOT_CHECKED)
    print("\n".join((effective_toml(configuration), "", *comments(*remarks))))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _banner(engine: EngineDescription, url: str, name: str, needs_key: bool) -> str:
    """What was loaded, where the memory goes, and something to try."""
    header = f" -H 'Authorization: Bearer ${API_KEY_VARIABLE}'" if needs_key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "What is 12 + 7?"}}]}}'
    return "\n".join(
        (
            "",
            f"{name}: {engine.architecture}, {engine.num_parameters / 1e6:.1f} M parameters, {engine.dtype} on "
            f"{engine.device}",
            engine.memory_plan,
            f"  up to {engine.max_sequence_tokens} tokens a request, {engine.max_batch_size} sequences and "
            f"{engine.max_batch_tokens} tokens an iteration",
            f"  numerics fingerprint {engine.fingerprint}",
            "",
            f"Serving on {url}  (Ctrl-C to leave). Try:",
            "",
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} \\",
            f"    -d '{body}'",
            "",
        )
    )


def _signature() -> inspect.Signature:
    """One flag an option. Values stay text, as in the environment, so that one place converts both."""
    flags = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if option.name == "model" else inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(option),
        )
        for option in OPTIONS.values()
    ]
    own = [
        parameter
        for parameter in inspect.signature(serve, eval_str=True).parameters.values()
        if parameter.name in ("config", "check")
    ]
    return inspect.Signature([*flags, *own], return_annotation=int)


def _annotation(option: Option) -> object:
    shown = (lambda _: str(option.default)) if option.default not in (None, ()) else False
    return Annotated[option.kind, Parameter(converter=_as_written(option), show_default=shown, negative_iterable=())]


def _as_written(option: Option) -> Callable[[object, Sequence[Token]], object]:
    def convert(_: object, tokens: Sequence[Token]) -> object:
        values = [token.value for token in tokens]
        return values if option.is_list else values[0]

    return convert


def _doc(record: type) -> str:
    """The lines below `Args:`."""
    return inspect.cleandoc(record.__doc__ or "").partition("Args:\n")[2]


serve.__doc__ = "\n".join((_SUMMARY.rstrip(), _doc(EngineConfig).rstrip(), _doc(ServerFlags).rstrip(), _OWN_OPTIONS))
serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {name: parameter.annotation for name, parameter in _signature().parameters.items()}
