"""The libraries of the `bench` extra, which serving doesn't need."""

from __future__ import annotations

from importlib.util import find_spec

from orcinus.errors import ConfigurationError


def require(library: str) -> None:
    """Say what to install before anything else happens.

    Raises:
        ConfigurationError: the library isn't there.
    """
    if find_spec(library) is None:
        raise ConfigurationError(f"this needs {library}: pip install 'orcinus-llm[bench]'")
