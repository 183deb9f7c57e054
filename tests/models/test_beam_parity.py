"""Beam search through `LLM` finds the sequences and scores of `transformers`, whatever the company and the pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import save
from transformers import PreTrainedModel

from orcinus import LLM
from orcinus.errors import InvalidRequest
from orcinus.outputs import RequestOutput

pytestmark = pytest.mark.slow
# So many that answers end by them in a vocabulary of a thousand.
ENDS = list(range(3, 1003, 7))
PROMPTS = [[5, 9, 30, 77, 4, 8, 21], [60] * 18 + [7], [2]]
TOKENS = 20
SEARCHES = [(1.0, False), (0.0, "never"), (2.0, True), (-0.5, False), (1.5, "never")]
Opened = tuple[PreTrainedModel, Callable[..., LLM]]


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2", "opt", "gpt_neox"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("beams")
    model = save(request.param, folder)
    return model, lambda **options: open_llm(folder, **options)


def open_llm(folder: Path, **options: object) -> LLM:
    return LLM(folder, **{"dtype": "float32", "max_model_len": 64, "kv_cache_gib": 0.01, "threads": 1, **options})


def by_transformers(model: PreTrainedModel, prompt: list[int], width: int, **search: object) -> list[tuple]:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=TOKENS,
        eos_token_id=ENDS,
        pad_token_id=ENDS[0],
        return_dict_in_generate=True,
        output_scores=True,
        **search,
    )
    answers = [cut(line[len(prompt) :]) for line in found.sequences.tolist()]
    return list(zip(answers, found.sequences_scores.tolist(), strict=True))


def cut(tokens: list[int]) -> list[int]:
    ends = [at for at, token in enumerate(tokens) if token in ENDS]
    return tokens[: ends[0] + 1] if ends else tokens


def search_with(llm: LLM, width: int, **search: object) -> list[RequestOutput]:
    return llm.beam_search(PROMPTS, width, TOKENS, stop_token_ids=ENDS, ignore_eos=True, use_tqdm=False, **search)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_sequences_and_scores_are_those_of_transformers(opened: Opened, width: int) -> None:
    model, open_with = opened
    reasons = set()
    with open_with() as llm:
        for length_penalty, early_stopping in SEARCHES:
            search = {"length_penalty": length_penalty, "early_stopping": early_stopping}
            for output in search_with(llm, width, **search):
                expected = by_transformers(model, output.prompt_token_ids, width, **search)
                assert [answer.token_ids for answer in output.outputs] == [tokens for tokens, _ in expected], search
                scores = [answer.score for answer in output.outputs]
                assert scores == pytest.approx([score for _, score in expected], abs=1e-4, rel=1e-5), search
                reasons |= {answer.finish_reason for answer in output.outputs}
    assert "stop" in reasons, "no answer ever ended by a token"


def test_a_search_is_the_same_alone_chunked_preempted_and_without_a_cache(random_llama: Path) -> None:
    """To the last bit of its scores; iterations of 32 tokens, and blocks for just the largest search alone."""
    prompts = [*PROMPTS, *([seed, 9 * seed, 77] for seed in range(1, 5))]
    options = {"max_tokens": 40, "stop_token_ids": ENDS[::9], "early_stopping": "never", "use_tqdm": False}
    with open_llm(random_llama) as llm:
        gib = 0.01 * 16 * 16 / llm.engine_description.max_request_tokens
        alone = [llm.beam_search(prompt, 4, **options)[0] for prompt in prompts]
    tight = {"max_batch_size": 32, "max_batch_tokens": 32, "kv_cache_gib": gib}
    num_preempted = []
    for engine in ({}, tight, {**tight, "enable_prefix_caching": False}):
        with open_llm(random_llama, **engine) as llm:
            found = llm.beam_search(prompts, 4, **options)
            num_preempted.append(llm._engine.scheduler.journal.counts["Preempted"])
        for here, there in zip(found, alone, strict=True):
            assert [(o.token_ids, o.score) for o in here.outputs] == [(o.token_ids, o.score) for o in there.outputs]
    assert num_preempted[0] == 0
    assert all(num_preempted[1:]), "the pool was roomy enough"


def test_what_a_search_can_not_do_is_refused_before_anything_runs(random_llama: Path) -> None:
    with open_llm(random_llama, max_batch_size=8) as llm:
        for width, options, param in (
            (0, {}, "width"),
            (9, {}, "n"),
            (4, {"n": 5}, "n"),
            (9, {"n": 5}, "best_of"),
            (4, {"length_penalty": 9.0}, "length_penalty"),
            (4, {"early_stopping": "always"}, "early_stopping"),
            (4, {"max_tokens": 500}, "max_tokens"),
        ):
            with pytest.raises(InvalidRequest) as refusal:
                llm.beam_search([5, 6], width, **options)
            assert refusal.value.param == param
