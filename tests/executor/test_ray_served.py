"""`orcinus serve --executor ray` from end to end: OpenAI's own client gets what one worker would say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray", exc_type=ModuleNotFoundError)
sys.path.append(str(Path(__file__).parents[1] / "clients"))
sys.path.append(str(Path(__file__).parents[2] / "tools"))

from openai import OpenAI
from ray_cluster import ray_cluster
from real_server import serve_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MESSAGES = [{"role": "user", "content": "What is 12 + 7?"}]


def answers(url: str) -> list[str | None]:
    """Whole and streamed."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    asked = {"model": "orcinus-tiny", "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)]
    return [whole, "".join(pieces)]


def test_a_server_over_two_nodes_says_what_one_worker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_tiny("--dtype", "float32") as alone:
        expected = answers(alone.url)
    assert expected[0]
    with ray_cluster() as environment, monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        layout = ("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--ray-spread", "spread")
        with serve_tiny("--dtype", "float32", "--executor", "ray", *layout) as spread:
            assert answers(spread.url) == expected
