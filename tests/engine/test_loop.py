"""The loop carries out what core says; a scripted executor stands in for workers."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import msgspec
import pytest

from orcinus.core.clock import VirtualClock
from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.plan import IterationPlan, IterationResult, Output, SequenceOutput
from orcinus.core.recording import Recorder, replay
from orcinus.core.request import FinishReason, Request, SamplingParams, pack_tokens
from orcinus.engine import build
from orcinus.engine.config import EngineConfig, engine_command, engine_config
from orcinus.engine.loop import Engine
from orcinus.errors import ConfigurationError
from orcinus.worker import build as worker_build


class CountingExecutor:
    """Answers every plan with one more than the iteration's number."""

    def __init__(self) -> None:
        self.plans: deque[IterationPlan] = deque()
        self.closed = False

    def submit(self, plan: IterationPlan) -> None:
        self.plans.append(plan)

    def collect(self) -> IterationResult:
        plan = self.plans.popleft()
        sampled = [work.seq_id for work in plan.work if work.output & Output.SAMPLE]
        return IterationResult(
            plan.epoch, plan.iteration, tuple(SequenceOutput(seq_id, (plan.iteration + 1,)) for seq_id in sampled)
        )

    def close(self) -> None:
        self.closed = True


def request(request_id: str, n: int = 1, max_tokens: int = 3) -> Request:
    return Request(
        request_id=request_id, prompt=pack_tokens([1, 2]), params=SamplingParams(n=n, max_tokens=max_tokens, seed=0)
    )


def engine() -> Engine:
    return Engine(Core(SchedulerConfig(num_blocks=8)), CountingExecutor(), VirtualClock())


def test_a_request_is_answered_and_then_there_is_nothing_to_do() -> None:
    one = engine()
    assert one.step() is None
    assert one.add(request("a")) == []
    tokens: list[int] = []
    while (progress := one.step()) is not None:
        tokens += [token for part in progress for token in part.tokens]
    assert tokens == [1, 2, 3]


def test_a_refused_request_ends_with_its_reason_for_each_answer_and_touches_no_other() -> None:
    one = engine()
    one.add(request("a"))
    refused = one.add(request("a", n=2))
    assert [(part.index, part.finish_reason) for part in refused] == [(0, FinishReason.ERROR), (1, FinishReason.ERROR)]
    assert "in use" in refused[0].error_message
    too_long = one.add(request("b", max_tokens=1000))
    assert too_long[0].error_code == "context_length_exceeded"
    assert [part.finish_reason for part in one.abort("a")] == [FinishReason.ABORT]
    assert one.step() is None


def test_a_recorded_engine_replays_to_the_same_decisions() -> None:
    lines: list[bytes] = []
    core = Core(SchedulerConfig(num_blocks=8))
    one = Engine(Recorder(core, b"key", lines.append), CountingExecutor(), VirtualClock())
    for name in "abc":
        one.add(request(name))
        one.step()
    while one.step() is not None:
        continue
    assert one.scheduler is core.scheduler
    replayed, difference = replay(lines)
    assert difference is None
    assert replayed.journal.encode() == core.journal.encode()


def test_closing_lets_the_executor_go() -> None:
    executor = CountingExecutor()
    Engine(Core(SchedulerConfig(num_blocks=8)), executor, VirtualClock()).close()
    assert executor.closed


def test_an_engine_process_gets_its_whole_configuration() -> None:
    config = EngineConfig("folder", max_batch_size=3, admission="reserve", kv_cache_gib=0.5)
    command = engine_command(config)
    assert msgspec.json.decode(command[command.index("--config") + 1], type=EngineConfig) == config


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_batchsize": 3}, "did you mean 'max_batch_size'"),
        ({"max_batch_size": "3"}, "Expected `int`"),
        ({"block_size": 24}, "multiple of 16"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"max_batch_tokens": 8}, "is below max_batch_size"),
        ({"policy": "fcsf"}, "did you mean 'fcfs'"),
        ({"dtype": "float16"}, "Invalid enum value 'float16'"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        engine_config({"model": "folder", **options})


def test_building_says_what_is_loaded_and_how_far(random_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_build, "LOAD_PROGRESS_SECONDS", 0.0)
    said: list[str] = []
    config = EngineConfig(str(random_llama), max_model_len=64, kv_cache_gib=0.01)
    built, description = build.build_engine(config, VirtualClock(), said.append)
    built.close()
    assert any("LlamaForCausalLM" in line for line in said)
    assert any("GiB" in line and line.startswith("loaded") for line in said)
    assert any("tokens an iteration" in line for line in said)
    assert description.max_sequence_tokens == 64


def test_more_positions_than_the_checkpoint_has_are_refused(random_llama: Path) -> None:
    with pytest.raises(ConfigurationError, match="made for 2048 positions"):
        build.build_engine(EngineConfig(str(random_llama), max_model_len=4096), VirtualClock())
