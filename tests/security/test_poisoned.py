"""One request of 32 whose logits are no numbers ends alone; the other 31 keep their bits, and so does what comes after
(S18, S19)."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orcinus.core.clock import VirtualClock
from orcinus.core.plan import TokenLogprobs
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine

pytestmark = pytest.mark.slow
POISON = 7
Answer = list[tuple[int, TokenLogprobs | None]]


@pytest.fixture
def poisoned(random_llama: Path, tmp_path: Path) -> EngineConfig:
    """One row of the embedding table is NaN: whoever reads that token has no numbers from there on."""
    folder = Path(shutil.copytree(random_llama, tmp_path / "poisoned"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return EngineConfig(str(folder), max_batch_tokens=128, kv_cache_gib=0.02, max_model_len=128, threads=1)


def request(number: int, *, is_bad: bool) -> Request:
    """Greedy or drawn, with log-probabilities; the good ones can't come upon the token by themselves."""
    rng = random.Random(number)
    prompt = [rng.randrange(POISON + 1, 1003) for _ in range(rng.randint(20, 40))]
    if is_bad:
        # After a whole block that others may share.
        prompt[18] = POISON
    params = SamplingParams(temperature=number % 2, max_tokens=12, seed=number, logprobs=2, banned_token_ids=(POISON,))
    return Request(request_id=f"r{number}", prompt=pack_tokens(prompt), params=params)


def run(engine: Engine, batch: list[Request]) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers, and the errors of those that failed; afterwards nothing may be taken."""
    answers: dict[str, Answer] = {}
    errors: dict[str, str] = {}
    for one in batch:
        assert engine.add(one) == []
    while (progress := engine.step()) is not None:
        for one in progress:
            answers.setdefault(one.request_id, []).extend(
                zip(one.tokens, one.logprobs or [None] * len(one.tokens), strict=True)
            )
            if one.error_code:
                errors[one.request_id] = one.error_code
    engine.scheduler.check()
    assert engine.scheduler.num_running == 0
    return answers, errors


@pytest.mark.parametrize("bad", [0, 17, 31])
def test_one_bad_request_of_32_leaves_the_others_their_bits(poisoned: EngineConfig, bad: int) -> None:
    good = [request(number, is_bad=False) for number in range(32)]
    expected, none = run(build_engine(poisoned, VirtualClock())[0], [one for n, one in enumerate(good) if n != bad])
    assert none == {}
    engine = build_engine(poisoned, VirtualClock())[0]
    answers, errors = run(engine, [request(n, is_bad=n == bad) for n in range(32)])
    assert errors == {f"r{bad}": "numerical_error"}
    assert answers.pop(f"r{bad}") == []
    assert answers == expected
    # Not one block of the failed request serves those that begin like it.
    assert run(engine, good[bad : bad + 1]) == run(build_engine(poisoned, VirtualClock())[0], good[bad : bad + 1])
