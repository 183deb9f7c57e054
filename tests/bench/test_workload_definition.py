"""W1 to W4 are what the peers were measured on: digests made by the peers' own script, from which nothing is copied."""

from __future__ import annotations

import hashlib
import json

import pytest

from orcinus.bench.workloads import LARGE_MODEL_REQUESTS, WORKLOADS, warm_up, workload

# (model, workload, seed): sha256 of the JSON of [[ids, number of tokens to generate], ...], requests, tokens in, out.
PEERS = {
    ("bench-160m", "W1", 0): ("10255958def8a6fd", 64, 8571, 5280),
    ("bench-160m", "W1", 1234): ("acd0afe55bd7518d", 64, 8571, 5280),
    ("bench-160m", "W2", 1234): ("8f450ec42e7d7e1d", 1, 128, 128),
    ("bench-160m", "W3", 1001): ("29df6451698b4ec2", 32, 12800, 1024),
    ("bench-160m", "W4", 1001): ("55e992d953fdbb39", 1, 2048, 1),
    ("bench-1b", "W1", 1234): ("dc2b10539a206171", 32, 4770, 2132),
    ("bench-1b", "W3", 1001): ("29df6451698b4ec2", 32, 12800, 1024),
}
VOCABULARIES = {"bench-160m": 32_000, "bench-1b": 128_256}


@pytest.mark.parametrize(("model", "name", "seed"), PEERS)
def test_requests_are_those_of_the_peers_token_by_token(model: str, name: str, seed: int) -> None:
    limit = LARGE_MODEL_REQUESTS if model == "bench-1b" else None
    jobs = workload(name, seed, VOCABULARIES[model])[:limit]
    digest, count, tokens_in, tokens_out = PEERS[model, name, seed]
    assert [len(jobs), sum(len(j.prompt) for j in jobs), sum(j.num_output for j in jobs)] == [
        count,
        tokens_in,
        tokens_out,
    ]
    content = json.dumps([[job.prompt, job.num_output] for job in jobs])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == digest


def test_lengths_are_the_same_in_every_repeat_and_ids_are_not() -> None:
    for name in WORKLOADS:
        first, second = workload(name, 1000), workload(name, 1001)
        assert [(len(j.prompt), j.num_output) for j in first] == [(len(j.prompt), j.num_output) for j in second]
        assert all(one.prompt != other.prompt for one, other in zip(first, second, strict=True))


def test_w3_shares_its_first_384_tokens_and_no_more() -> None:
    prompts = [job.prompt for job in workload("W3", 5)]
    assert len({tuple(prompt[:384]) for prompt in prompts}) == 1
    assert len({tuple(prompt[384:]) for prompt in prompts}) == 32


def test_ids_stay_inside_a_small_vocabulary() -> None:
    assert {token for job in workload("W3", 0, 641) for token in job.prompt} <= set(range(10, 641))


def test_a_warm_up_has_the_shapes_and_fewer_steps() -> None:
    assert [(len(j.prompt), j.num_output) for j in warm_up("W1", 0)] == [
        (len(j.prompt), 8) for j in workload("W1", 0)[:8]
    ]
    assert warm_up("W4", 0) == workload("W4", 0)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="W9 is none of W1, W2, W3, W4"):
        workload("W9", 0)
