"""`orcinus serve`: an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orcinus.engine.config import EngineConfig, engine_command
from orcinus.engine.messages import EngineDescription
from orcinus.server.run import ServeSettings
from orcinus.server.run import serve as run_server

API_KEY_VARIABLE = "ORCINUS_API_KEY"


def serve(
    engine: Annotated[EngineConfig, Parameter(name="*")],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: list[str] | None = None,
    served_model_name: list[str] | None = None,
    insecure_no_auth: bool = False,
    api_server_count: int = 1,
    max_queue_seconds: float = 60.0,
) -> int:
    """Serve a checkpoint behind the OpenAI API: /v1/chat/completions, /v1/completions, /v1/models.

    Args:
        host: address to listen on; one that other machines reach needs --api-key.
        port: port to listen on; 0 takes any free one.
        api_key: key that clients must send; may be given several times. Better given as ORCINUS_API_KEY, since
            everybody on this machine can read a command line.
        served_model_name: what clients call the model; the folder's name if not given.
        insecure_no_auth: listen beyond this machine without a key.
        api_server_count: HTTP processes.
        max_queue_seconds: a request that would have to wait longer than this is refused with 429.
    """
    keys = [*(api_key or ()), *filter(None, [os.environ.get(API_KEY_VARIABLE)])]
    settings = ServeSettings(
        model=Path(engine.model),
        host=host,
        port=port,
        api_keys=tuple(keys),
        insecure_no_auth=insecure_no_auth,
        served_model_names=tuple(served_model_name or ()),
        front_ends=api_server_count,
        max_queue_seconds=max_queue_seconds,
    )
    run_server(
        settings,
        lambda known: engine_command(engine, known),
        on_progress=_say,
        on_ready=lambda description, url: _say(_banner(description, url, settings.model_names[0], bool(keys))),
    )
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
