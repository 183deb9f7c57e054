"""The noise against a generator written again in numpy and plain integers, and the draw against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orcinus.worker.gumbel import GumbelNoise, row_keys

CPU = torch.device("cpu")
WIDTH = 1024


def splitmix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def key_words(seed: int, index: int, position: int) -> list[int]:
    """The four 32-bit words of a row's key, in plain integers."""
    state = splitmix64((splitmix64((splitmix64(seed % 2**64) + index) % 2**64) + position) % 2**64)
    halves = [splitmix64(state), splitmix64((state + 0x9E3779B97F4A7C15) % 2**64)]
    return [word for half in halves for word in (half % 2**32, half >> 32)]


def stirred(h: NDArray[np.uint32], middle: int = 0) -> NDArray[np.uint32]:
    """lowbias32 up to its last shift."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D) + np.uint32(middle)
    return (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)


def reference_noise(seed: int, index: int, position: int, width: int) -> NDArray[np.float32]:
    """The noise of all tokens of one row, in numpy's unsigned integers."""
    k = [np.uint32(word) for word in key_words(seed, index, position)]
    hashes = stirred(np.arange(width, dtype=np.uint32))
    hashes ^= hashes >> np.uint32(16)
    high = (stirred(hashes ^ k[0], int(k[1])) >> np.uint32(1)).astype(np.float64)
    low = (stirred(hashes ^ k[2], int(k[3])) >> np.uint32(11)).astype(np.float64)
    u = 1 - (high * 2**21 + low + 0.5) / 2**52
    return (-np.log(-np.log(u))).astype(np.float32)


def keys_of(seeds: list[int], indices: list[int], positions: list[int]) -> torch.Tensor:
    return torch.from_numpy(row_keys(seeds, indices, positions))


def draw(noise: GumbelNoise, scaled: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor | None = None) -> list[int]:
    found = noise.contestants(scaled, torch.arange(len(scaled)), keys, tokens)
    return noise.draw([found], keys).tolist()


def brute_force(noise: GumbelNoise, scaled: torch.Tensor, keys: torch.Tensor) -> list[int]:
    """argmax(log p + g) with the exact noise of every token."""
    rows, width = scaled.shape
    pairs = keys.repeat_interleave(width, dim=0), torch.arange(width).repeat(rows)
    return (scaled.double() + noise.at(*pairs).view(rows, width)).argmax(dim=1).tolist()


def chi_square_is_plausible(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> bool:
    """Pearson's statistic within 4 standard deviations above its mean."""
    assert expected.min() >= 5
    freedom = len(expected) - 1
    return float(((observed - expected) ** 2 / expected).sum()) < freedom + 4 * math.sqrt(2 * freedom)


def test_noise_equals_an_independent_implementation_bit_for_bit() -> None:
    cases = [(0, 0, 0), (1, 0, 7), (2**64 - 1, 127, 200_000), (-5, 3, 1), (123456789, 1, 4096)]
    noise = GumbelNoise(WIDTH, CPU)
    keys = keys_of(*(list(part) for part in zip(*cases, strict=True)))
    for row, case in enumerate(cases):
        ours = noise.at(keys[row].expand(WIDTH, 4), torch.arange(WIDTH)).numpy()
        assert np.array_equal(ours, reference_noise(*case, WIDTH))


def test_a_token_has_the_same_noise_whatever_is_asked_for_beside_it() -> None:
    noise = GumbelNoise(WIDTH, CPU)
    keys = keys_of([5] * 200, [0] * 200, list(range(200)))
    tokens = torch.randint(0, WIDTH, (200,), generator=torch.Generator().manual_seed(0))
    together = noise.at(keys, tokens)
    alone = torch.cat([noise.at(keys[i : i + 1], tokens[i : i + 1]) for i in range(200)])
    assert torch.equal(together, alone)


def test_noise_has_the_gumbel_distribution() -> None:
    noise = GumbelNoise(WIDTH, CPU)
    keys = keys_of([11] * 400, [0] * 400, list(range(400)))
    g = noise.at(keys.repeat_interleave(WIDTH, dim=0), torch.arange(WIDTH).repeat(400)).double()
    cells = torch.exp(-torch.exp(-g)).mul(100).long().clamp(0, 99).bincount(minlength=100).numpy()
    assert chi_square_is_plausible(cells, np.full(100, len(g) / 100))
    assert abs(g.mean().item() - 0.5772156649) < 0.01
    assert abs(g.var().item() - math.pi**2 / 6) < 0.02


@pytest.mark.parametrize("pair", ["positions", "indices", "seeds", "tokens"])
def test_noise_of_neighbours_is_uncorrelated(pair: str) -> None:
    n = 40_000
    seeds, indices, positions = [3] * n, [0] * n, list(range(n))
    first = keys_of(seeds, indices, positions)
    second = {
        "positions": keys_of(seeds, indices, [p + 1 for p in positions]),
        "indices": keys_of(seeds, [1] * n, positions),
        "seeds": keys_of([4] * n, indices, positions),
        "tokens": first,
    }[pair]
    noise = GumbelNoise(WIDTH, CPU)
    token = torch.full((n,), 17)
    cells = [
        torch.exp(-torch.exp(-g.double())).mul(10).long().clamp(0, 9)
        for g in (noise.at(first, token), noise.at(second, token + 1 if pair == "tokens" else token))
    ]
    table = (cells[0] * 10 + cells[1]).bincount(minlength=100).numpy()
    assert chi_square_is_plausible(table, np.full(100, n / 100))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 100.0])
def test_the_draw_that_looks_at_few_tokens_finds_the_winner_among_all(temperature: float) -> None:
    generator = torch.Generator().manual_seed(int(temperature * 100))
    noise = GumbelNoise(WIDTH, CPU)
    logits = torch.randn(300, WIDTH, generator=generator) * 4 / temperature
    logits[::7, 3:900] = -torch.inf
    scaled = logits - logits.amax(dim=1, keepdim=True)
    keys = keys_of([1] * 300, [0] * 300, list(range(300)))
    assert draw(noise, scaled.clone(), keys) == brute_force(noise, scaled, keys)


def test_few_contestants_are_looked_at() -> None:
    noise = GumbelNoise(WIDTH, CPU)
    scaled = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    keys = keys_of([1] * 500, [0] * 500, list(range(500)))
    assert len(noise.contestants(scaled, torch.arange(500), keys).row) < 10 * 500


def test_a_shortlist_draws_what_the_whole_row_draws() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = GumbelNoise(WIDTH, CPU)
    keys = keys_of([9] * 100, [0] * 100, list(range(100)))
    tokens = torch.stack([torch.randperm(WIDTH, generator=generator)[:64] for _ in range(100)])
    short = torch.randn(100, 64, generator=generator)
    whole = torch.full((100, WIDTH), -torch.inf).scatter_(1, tokens, short)
    assert draw(noise, short, keys, tokens) == draw(noise, whole, keys)


def test_a_single_possible_token_always_wins() -> None:
    noise = GumbelNoise(WIDTH, CPU)
    scaled = torch.full((1000, WIDTH), -torch.inf)
    winners = torch.arange(1000) % WIDTH
    scaled[torch.arange(1000), winners] = 0.0
    assert draw(noise, scaled, keys_of([0] * 1000, [0] * 1000, list(range(1000)))) == winners.tolist()


def test_draws_follow_softmax() -> None:
    draws, width = 60_000, 64
    noise = GumbelNoise(width, CPU)
    logits = torch.randn(width, generator=torch.Generator().manual_seed(2)) * 1.5
    keys = keys_of([1, 2, 3] * (draws // 3), [0] * draws, list(range(draws)))
    counts = np.bincount(draw(noise, logits.expand(draws, width).contiguous(), keys), minlength=width)
    expected = torch.softmax(logits.double(), dim=0).numpy() * draws
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    assert chi_square_is_plausible(observed, np.append(expected[common], max(expected[~common].sum(), 5)))


def test_a_row_without_contestants_gives_token_0() -> None:
    noise = GumbelNoise(WIDTH, CPU)
    assert draw(noise, torch.full((2, WIDTH), torch.nan), keys_of([0, 1], [0, 0], [1, 1])) == [0, 0]
