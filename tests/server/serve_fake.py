"""The real server over the fake engine: `serve_fake.py MODEL_FOLDER [fake engine options]`; prints its URL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orcinus.errors import OrcinusError
from orcinus.server.app import Limits
from orcinus.server.run import ServeSettings, serve

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


def main() -> None:
    """Settings come from the environment, as tests set it."""
    folder, *options = sys.argv[1:]
    try:
        serve(
            settings_of(folder),
            lambda known: [sys.executable, str(FAKE_ENGINE), *options],
            on_progress=lambda text: None,
            on_ready=lambda description, url: print(url, flush=True),
        )
    except OrcinusError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    assert "torch" not in sys.modules


def settings_of(folder: str) -> ServeSettings:
    """From the environment."""
    return ServeSettings(
        model=Path(folder),
        host=os.environ.get("TEST_HOST", "127.0.0.1"),
        port=int(os.environ.get("TEST_PORT", "0")),
        api_keys=tuple(filter(None, os.environ.get("TEST_KEYS", "").split(","))),
        served_model_names=("fake", "alias"),
        drain_seconds=float(os.environ.get("TEST_DRAIN", "20")),
        drain_delay_seconds=float(os.environ.get("TEST_DRAIN_DELAY", "0")),
        front_ends=int(os.environ.get("TEST_FRONT_ENDS", "1")),
        limits=Limits(max_body_bytes=200_000, max_live=8),
    )


if __name__ == "__main__":
    main()
