"""Surrogate token ids: nobody reads them, but equal ones must mean equal prefixes to a prefix cache."""

from __future__ import annotations

import hashlib
import random

import numpy as np

from orcinus.bench.traces import MOONCAKE_BLOCK

# Ids of special tokens stay below.
_LEAST_ID = 16


def drawn_tokens(rng: random.Random, count: int) -> bytes:
    """`count` packed ids that nobody else has."""
    return _as_ids(rng.randbytes(4 * count))


def named_tokens(name: str, count: int) -> bytes:
    """The packed ids that go by this name: the same in every run and on every machine."""
    return _as_ids(hashlib.shake_128(name.encode()).digest(4 * count))


def block_tokens(block_ids: tuple[int, ...], num_prompt: int, seed: int, own: random.Random) -> bytes:
    """A prompt of a Mooncake trace: what its blocks stand for, then ids of its own."""
    shared = b"".join(named_tokens(f"{seed}:block:{block}", MOONCAKE_BLOCK) for block in block_ids)[: 4 * num_prompt]
    return shared + drawn_tokens(own, num_prompt - len(shared) // 4)


def _as_ids(raw: bytes) -> bytes:
    """Packed uint32 below 2^31, none of them special."""
    return (np.frombuffer(raw, dtype=np.uint32) >> np.uint32(1) | np.uint32(_LEAST_ID)).tobytes()
