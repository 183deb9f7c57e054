"""Sampling parameters: what is out of range is refused by name, value and bound."""

from __future__ import annotations

import math

import pytest

from orcinus.core.kv.pool import BlockPool
from orcinus.core.request import Request, SamplingParams, pack_tokens, unpack_tokens
from orcinus.errors import InvalidRequest


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 10**400}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"seed": 2**64}, "seed"),
        ({"stop_token_ids": list(range(1025))}, "stop_token_ids"),
        ({"banned_token_ids": [-1]}, "banned_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logit_bias": {1: 101.0}}, "logit_bias"),
        ({"logit_bias": {2**31: 1.0}}, "logit_bias"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 513}, "stop"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(params: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        SamplingParams(**params)
    assert refusal.value.param == param


def test_stop_is_one_string_or_several() -> None:
    assert SamplingParams(stop="x").stop_strings == ("x",)
    assert SamplingParams(stop=["x", "y"]).stop_strings == ("x", "y")
    assert SamplingParams().stop_strings == ()


def test_ignoring_the_end_of_sequence_leaves_the_stop_tokens() -> None:
    def ends(**params: object) -> frozenset[int]:
        request = Request(
            request_id="r", prompt=b"1234", params=SamplingParams(max_tokens=1, **params), eos_token_ids=(1, 2)
        )
        return request.end_token_ids

    assert ends(stop_token_ids=[7]) == {1, 2, 7}
    assert ends(stop_token_ids=[7], ignore_eos=True) == {7}


def test_packing_keeps_every_token() -> None:
    tokens = [0, 1, 2**31 - 1, 128_255]
    assert unpack_tokens(pack_tokens(tokens)).tolist() == tokens


def test_no_blocks_are_no_blocks() -> None:
    pool = BlockPool(3)
    assert pool.allocate(0) == []
    assert pool.num_free == 3
