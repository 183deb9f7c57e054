"""A model held by several workers gives the tokens of one, and keeps every promise within its layout."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "models"))

import checkpoints
import checkpoints_moe
from thread_workers import ThreadWorkers, engine_of_threads

from orcinus.core.clock import VirtualClock
from orcinus.core.plan import IterationPlan, TokenLogprobs
from orcinus.core.request import Pooling, Request, SamplingParams, pack_tokens
from orcinus.engine.build import build_engine, engine_over
from orcinus.engine.config import EngineConfig
from orcinus.engine.loop import Engine

LAYOUTS = [(2, 1), (1, 2), (2, 2)]
# Key-value heads held by two ranks each.
WIDE = [(4, 1), (4, 3)]
CASES = [
    *("llama", "qwen3", "gpt2"),
    # Odd sizes and biases; tied words; a fused projection; heads interleaved; positions, widths and norms of their own.
    *(
        "llama-relu",
        "qwen2",
        "gpt2-untied",
        "phi3",
        "gpt_neox",
        "gpt_neox-sequential",
        "opt",
        "opt-post-norm",
        "gemma2",
        "gemma3",
    ),
    # Experts, beside dense layers; all heads normed as one row.
    *("mixtral", "qwen3-moe", "olmoe"),
]
Answer = list[tuple[int, TokenLogprobs | None]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case)
            save(case, made[case])
        return made[case]

    return get


def save(case: str, folder: Path) -> None:
    """A checkpoint, with experts or without."""
    (checkpoints_moe if case in checkpoints_moe.CASES else checkpoints).save(case, folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config_of(folder: Path, tensor_size: int = 1, num_stages: int = 1, **options: object) -> EngineConfig:
    config = EngineConfig(
        str(folder),
        dtype="float32",
        threads=1,
        max_batch_tokens=64,
        max_batch_size=16,
        kv_cache_gib=0.01,
        tensor_parallel_size=tensor_size,
        pipeline_parallel_size=num_stages,
    )
    return replace(config, **options)


def start(config: EngineConfig) -> Engine:
    alone = config.tensor_parallel_size * config.pipeline_parallel_size == 1
    return build_engine(config, VirtualClock())[0] if alone else engine_of_threads(config)


def prompts(number: int, seed: int = 0, longest: int = 60) -> list[bytes]:
    rng = random.Random(seed)
    return [pack_tokens([rng.randrange(2, 1003) for _ in range(rng.randrange(1, longest))]) for _ in range(number)]


def greedy(number: int, max_tokens: int = 16, longest: int = 60) -> list[Request]:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, seed=0, logprobs=1, ignore_eos=True)
    asked = prompts(number, longest=longest)
    return [Request(request_id=f"r{i}", prompt=prompt, params=params) for i, prompt in enumerate(asked)]


def mixed(number: int) -> list[Request]:
    """Greedy, drawn, penalised and branching ones."""
    kinds = [
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(temperature=1.0, logprobs=0),
        SamplingParams(temperature=0.8, top_k=40, top_p=0.9, logprobs=3),
        SamplingParams(temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.3, logprobs=0),
        SamplingParams(temperature=1.0, n=2, logprobs=0),
    ]
    return [
        Request(
            request_id=f"m{i}",
            prompt=prompt,
            params=replace_params(kinds[i % len(kinds)], seed=i, max_tokens=8 + 7 * i % 40),
        )
        for i, prompt in enumerate(prompts(number, seed=1, longest=40))
    ]


def replace_params(params: SamplingParams, **changes: object) -> SamplingParams:
    return msgspec.structs.replace(params, ignore_eos=True, **changes)


def run(engine: Engine, requests: list[Request]) -> dict[tuple[str, int], Answer]:
    """All at once, to the end."""
    answers: dict[tuple[str, int], Answer] = {}
    for request in requests:
        assert engine.add(request) == []
    while (progress := engine.step()) is not None:
        for part in progress:
            assert not part.error_code, part.error_message
            logprobs = part.logprobs or (None,) * len(part.tokens)
            answers.setdefault((part.request_id, part.index), []).extend(zip(part.tokens, logprobs, strict=True))
    return answers


def tokens_of(answers: dict[tuple[str, int], Answer]) -> dict[tuple[str, int], list[int]]:
    return {key: [token for token, _ in answer] for key, answer in answers.items()}


def answered(config: EngineConfig, requests: list[Request]) -> dict[tuple[str, int], Answer]:
    engine = start(config)
    try:
        return run(engine, requests)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_tokens_of_one_worker(case: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(case)
    expected = answered(config_of(folder), greedy(24))
    assert len({tuple(tokens) for tokens in tokens_of(expected).values()}) > 12, "answers differ"
    for layout in [*LAYOUTS, *(WIDE if case in ("llama", "gemma2", "olmoe") else [])]:
        found = answered(config_of(folder, *layout), greedy(24))
        assert tokens_of(found) == tokens_of(expected), layout
        for key, answer in expected.items():
            for (_, mine), (_, theirs) in zip(found[key], answer, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tensor_size", [1, 2])
@pytest.mark.parametrize("case", ["llama", "qwen3-moe"])
def test_the_number_of_stages_moves_no_bit(
    case: str, tensor_size: int, dtype: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(case)
    expected = answered(config_of(folder, tensor_size, 1, dtype=dtype), mixed(20))
    for num_stages in (2, 3):
        assert answered(config_of(folder, tensor_size, num_stages, dtype=dtype), mixed(20)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "layout"), [("llama", (2, 1)), ("llama", (1, 3)), ("llama", (2, 2)), ("olmoe", (2, 2))]
)
@pytest.mark.parametrize("lookahead", [0, 1])
def test_company_moves_no_bit_within_a_layout(
    case: str, layout: tuple[int, int], lookahead: int, folder_of: Callable[[str], Path]
) -> None:
    config = config_of(folder_of(case), *layout, dtype="bfloat16", lookahead=lookahead)
    engine = start(config)
    alone: dict[tuple[str, int], Answer] = {}
    for request in mixed(10):
        alone |= run(engine, [request])
    crowded = run(engine, mixed(40))
    engine.close()
    assert crowded.items() >= alone.items()
    # Small pieces, and a pool that holds few sequences at a time.
    chunked = start(replace(config, max_batch_tokens=50, max_model_len=128, kv_cache_gib=KV_BYTES_OF_14_BLOCKS / 2**30))
    assert run(chunked, mixed(40)).items() >= alone.items()
    assert chunked.scheduler.journal.counts["Preempted"] > 0
    chunked.close()


# Keys and values of 16 tokens, 3 layers, 2 heads of 16, in bfloat16.
KV_BYTES_OF_14_BLOCKS = 14 * 2 * 16 * 3 * 2 * 16 * 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompt_logprobs_come_from_all_slices_of_the_vocabulary(
    layout: tuple[int, int], folder_of: Callable[[str], Path]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, seed=0, prompt_logprobs=3)
    requests = [Request(request_id=f"r{i}", prompt=p, params=params) for i, p in enumerate(prompts(5))]

    def scores(config: EngineConfig) -> dict[str, list[TokenLogprobs]]:
        engine, found = start(config), {}
        for request in requests:
            engine.add(request)
        while (progress := engine.step()) is not None:
            for part in progress:
                found.setdefault(part.request_id, []).extend(part.prompt_logprobs)
        engine.close()
        return found

    folder = folder_of("gpt2")
    expected, found = scores(config_of(folder)), scores(config_of(folder, *layout))
    for name, row in expected.items():
        assert [each.top_ids for each in found[name]] == [each.top_ids for each in row]
        assert [each.logprob for each in found[name]] == pytest.approx([each.logprob for each in row], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama-classifier", "bert-classifier"])
def test_vectors_and_class_scores_come_from_the_last_stage(case: str, folder_of: Callable[[str], Path]) -> None:
    def vectors(config: EngineConfig) -> dict[str, torch.Tensor]:
        engine, found = start(config), {}
        for classify in (False, True):
            for i, prompt in enumerate(prompts(4, longest=40)):
                pooling = Pooling(type="last" if "llama" in case else "cls", classify=classify)
                request_id = f"{classify}{i}"
                engine.add(
                    Request(request_id=request_id, prompt=prompt, params=SamplingParams(seed=0), pooling=pooling)
                )
        while (progress := engine.step()) is not None:
            for part in progress:
                found[part.request_id] = torch.frombuffer(bytearray(part.pooled), dtype=torch.float32)
        engine.close()
        return found

    folder = folder_of(case)
    expected = vectors(config_of(folder))
    for layout in LAYOUTS:
        found = vectors(config_of(folder, *layout))
        assert len(found) == 8
        for name, vector in expected.items():
            torch.testing.assert_close(found[name], vector, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_every_rank_holds_its_share_of_the_experts(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("mixtral")
    (whole,) = start_descriptions(config_of(folder))
    more, fewer = start_descriptions(config_of(folder, 2, 1))
    # Five experts of three matrices of 64 x 160 in each of three layers, in float32.
    expert_bytes = 3 * 3 * 64 * 160 * 4
    assert more.weight_bytes - fewer.weight_bytes == pytest.approx(expert_bytes, rel=0.05)
    assert whole.weight_bytes - more.weight_bytes > 2 * expert_bytes


@pytest.mark.slow
def test_weights_and_kv_are_shared_out(random_llama: Path) -> None:
    whole = start_descriptions(config_of(random_llama))[0]
    parts = start_descriptions(config_of(random_llama, 2, 2))
    assert sum(part.block_bytes for part in parts) == whole.block_bytes
    # Norms and rotary tables are held by all.
    assert whole.weight_bytes <= sum(part.weight_bytes for part in parts) < 1.5 * whole.weight_bytes
    assert max(part.weight_bytes for part in parts) < 0.45 * whole.weight_bytes
    assert {part.num_parameters for part in parts} == {whole.num_parameters}


def start_descriptions(config: EngineConfig) -> list:
    workers = ThreadWorkers(config)
    workers.close()
    return workers.descriptions


def is_steady(plan: IterationPlan) -> bool:
    """Everybody decodes, and nobody comes or goes."""
    return len(plan.work) >= 8 and not (plan.new or plan.finished) and all(work.num_tokens == 1 for work in plan.work)


@pytest.mark.slow
def test_a_steady_decode_frame_takes_at_most_sixteen_bytes_a_sequence(random_llama: Path) -> None:
    config = config_of(random_llama, 1, 2, max_batch_tokens=256, max_batch_size=64, kv_cache_gib=0.1)
    workers = ThreadWorkers(config)
    engine, _ = engine_over(workers, config, VirtualClock())
    params = SamplingParams(temperature=0, max_tokens=40, seed=0, ignore_eos=True)
    # Numbers of sequences as large as they are after a day's work.
    engine.scheduler._num_sequences = 60_000
    for i, prompt in enumerate(prompts(64)):
        engine.add(Request(request_id=f"r{i}", prompt=prompt, params=params))
    while engine.step() is not None:
        pass
    engine.close()
    decoded = [(frame, msgspec.msgpack.decode(frame, type=IterationPlan)) for frame in workers.frames]
    steady = [frame for frame, plan in decoded if is_steady(plan)]
    assert len(steady) > 20
    # They are plans and nothing else, so no activation hides in them.
    assert steady == [msgspec.msgpack.encode(plan) for _, plan in decoded if is_steady(plan)]
    for frame, plan in decoded:
        assert not is_steady(plan) or len(frame) <= 16 * len(plan.work)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(1, 1), *LAYOUTS])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_request_with_nan_fails_alone_though_its_next_plan_is_under_way(
    layout: tuple[int, int], lookahead: int, random_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    engine = start(config_of(tmp_path, *layout, lookahead=lookahead))
    params = SamplingParams(temperature=0, max_tokens=12, seed=0, ignore_eos=True)
    for name, tokens in (("good", [3, 4, 5]), ("bad", [3, 7, 5]), ("fine", [9])):
        engine.add(Request(request_id=name, prompt=pack_tokens(tokens), params=params))
    ends, lengths = {}, dict.fromkeys(("good", "bad", "fine"), 0)
    while (progress := engine.step()) is not None:
        for part in progress:
            lengths[part.request_id] += len(part.tokens)
            if part.finish_reason is not None:
                ends[part.request_id] = part.error_code
    engine.close()
    assert ends == {"good": "", "bad": "numerical_error", "fine": ""}
    assert lengths == {"good": 12, "bad": 0, "fine": 12}
