"""What the policies do under load, on the † model of SYSTEMS.md: its accepts of §3, §4, §12 and §15, and I20."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from twin_loads import fastserve_load, simulate

from orcinus.core.config import SchedulerConfig
from orcinus.core.journal import Added, CacheHit, Journal, Scheduled
from orcinus.core.policy.mlfq import Mlfq
from orcinus.core.request import ServiceClass
from orcinus.simulate.cost import CALIBRATION, LinearCost, Machine
from orcinus.simulate.executor import Modelled
from orcinus.simulate.jobs import Job
from orcinus.simulate.run import Outcome, Simulation
from orcinus.simulate.tokens import drawn_tokens

pytestmark = pytest.mark.slow


def run(jobs: list[Job], cost: LinearCost = CALIBRATION, **config: object) -> Outcome:
    """With every event kept."""
    fields: dict[str, object] = {"max_batch_size": 16, "max_batch_tokens": 512, "num_blocks": 100_000} | config
    scheduler = SchedulerConfig(**fields)  # type: ignore[arg-type]
    return Simulation(scheduler, Modelled(Machine(cost=cost)), journal=Journal(1 << 20)).run(jobs)


def seconds(outcome: Outcome, column: str = "ended_at") -> np.ndarray:
    return outcome.ledger.column(column) - outcome.ledger.column("arrived_at")


def test_mlfq_past_saturation_has_far_less_latency_a_token_at_a_price_that_ageing_bounds():
    """§4, arrivals 7 % past FCFS saturation. Measured against fcfs, without ageing and with 10 s of it:

    latency a token 14 x and 7 x less, mean completion 1.8 x and 1.4 x less, p99 completion 6.4 x and 2.8 x worse.
    Another draw of the same load: 17 x and 10 x; 2.4 x and 1.7 x; 4.1 x and 2.5 x. So 10 x a token holds without
    ageing, 2 x completion and 2.6 x of p99 are on the edge.
    """
    common = {"max_batch_size": 16, "max_batch_tokens": 2048, "num_blocks": 200_000}
    results = {}
    for name, policy, wait in (("fcfs", "fcfs", 10.0), ("aged", "mlfq", 10.0), ("plain", "mlfq", 1e6)):
        outcome = simulate(fastserve_load(8.0, 4000), policy=policy, max_wait_seconds=wait, **common)
        ended = seconds(outcome)
        a_token = (ended / outcome.ledger.column("num_output")).mean()
        results[name] = (a_token, ended.mean(), np.percentile(ended, 99))
    fcfs, aged, plain = results["fcfs"], results["aged"], results["plain"]
    assert fcfs[0] / plain[0] >= 10
    assert fcfs[0] / aged[0] >= 7
    assert fcfs[1] / plain[1] >= 1.7
    assert fcfs[1] / aged[1] >= 1.3
    assert aged[2] <= 3 * fcfs[2] < plain[2]


def test_skip_join_saves_demotions(monkeypatch):
    """§4, against a queue that everybody enters at the top. Measured: 20 % fewer."""

    def demotions() -> int:
        config = SchedulerConfig(max_batch_size=16, max_batch_tokens=2048, num_blocks=200_000, policy="mlfq")
        simulation = Simulation(config, Modelled(Machine(cost=CALIBRATION)))
        simulation.run(fastserve_load(8.0, 600))
        policy = simulation.core.scheduler.state.queues.policy
        assert isinstance(policy, Mlfq)
        return policy.num_demotions

    skipping = demotions()
    monkeypatch.setattr(Mlfq, "entry_level", lambda self, seconds: 0)
    plain = demotions()
    assert skipping <= 0.85 * plain


def backlog() -> list[Job]:
    """Two equal tenants that always want more."""
    rng = random.Random(3)
    return [
        Job(0.001 * n, drawn_tokens(rng, rng.randint(20, 400)), rng.randint(10, 200), 200, tenant="ab"[n % 2])
        for n in range(1200)
    ]


def worst_difference(outcome: Outcome, window: int = 10_000) -> float:
    """Of two tenants' shares, over any `window` tokens while both have a backlog: the first three fifths."""
    owners: dict[int, bool] = {}
    history = []
    for event in outcome.journal:
        if isinstance(event, Added):
            owners[event.first_seq_id] = int(event.request_id) % 2 == 0
        elif isinstance(event, Scheduled):
            history.append((sum(count for seq, _, count in event.work if owners[seq]), event.tokens))
    both = np.cumsum(np.array(history[len(history) // 20 : len(history) * 3 // 5]), axis=0)
    differences = []
    for begin in range(0, len(both), 7):
        end = int(np.searchsorted(both[:, 1], both[begin, 1] + window))
        if end < len(both):
            mine, total = both[end] - both[begin]
            differences.append(abs(2 * mine - total) / total)
    assert len(differences) > 100
    return max(differences)


def test_two_equal_tenants_with_a_backlog_get_equal_shares():
    """I20. Measured: 9 %; first come, first served gives 16 %."""
    assert worst_difference(run(backlog(), policy="fair")) <= 0.10
    assert worst_difference(run(backlog())) > 0.10, "then the load would show nothing"


def polite_and_hostile() -> list[Job]:
    rng, jobs = random.Random(4), []
    for tenant, count, rate in (("polite", 150, 0.5), ("hostile", 2000, 8.0)):
        at = 0.0
        for _ in range(count):
            at += rng.expovariate(rate)
            hostile = tenant == "hostile"
            prompt, output = (rng.randint(101, 400), rng.randint(41, 200)) if hostile else (100, 40)
            jobs.append(Job(at, drawn_tokens(rng, prompt), output, output, tenant=tenant))
    return sorted(jobs, key=lambda job: job.at)


def test_a_polite_tenant_hardly_notices_a_hostile_one():
    """p99 of its TTFT ≤ alone + what three full iterations take, beside more than ten times its tokens."""

    def ttft(jobs: list[Job], policy: str) -> float:
        outcome = run(jobs, policy=policy)
        mine = outcome.ledger.column("num_prompt") == 100
        return float(np.percentile(seconds(outcome, "first_at")[mine], 99))

    alone = ttft([job for job in polite_and_hostile() if job.tenant == "polite"], "fair")
    full = 0.020 + 512 * 40e-6
    assert ttft(polite_and_hostile(), "fair") <= alone + 3 * full
    assert ttft(polite_and_hostile(), "fcfs") > 10.0


@pytest.mark.parametrize("pair", [0.0, 1e-8])
def test_a_long_prompt_beside_streams_keeps_the_gap_within_two_iterations(pair):
    """§12, with a target of 40 ms in place of a chosen budget. Measured: 42 ms; 351 ms unchunked.

    With a price of pairs the prompt's last tokens cost three times what its first ones do.
    """
    cost = msgspec.structs.replace(CALIBRATION, pair=pair)

    def worst_gap(**config: object) -> float:
        streams = [Job(0.0, drawn_tokens(random.Random(n), 32), 400, 400) for n in range(16)]
        long = Job(2.0, drawn_tokens(random.Random(99), 8192), 4, 4)
        return run([*streams, long], cost, max_batch_size=32, max_batch_tokens=8300, **config).ledger.gaps.maximum

    assert worst_gap(target_iteration_seconds=0.040) <= 2 * 0.0232
    assert worst_gap() > 0.3


def questions() -> list[Job]:
    """§3: eight prefixes of 400 tokens, 50 questions of 60 to each, in random order, 64 at a time."""
    rng = random.Random(1)
    prefixes = [drawn_tokens(rng, 400) for _ in range(8)]
    order = [number for number in range(8) for _ in range(50)]
    rng.shuffle(order)
    return [
        Job(max(0, place - 64) * 0.018, prefixes[number] + drawn_tokens(rng, 60), 4, 4)
        for place, number in enumerate(order)
    ]


def test_longest_prefix_first_reaches_the_depth_first_optimum():
    """§3. Measured of the optimum's 0.85: fcfs 0.34, at most 8 overtakes 0.65, 64 0.80, 256 or more 0.81."""

    def hit_rate(policy: str, overtakes: int) -> float:
        outcome = run(
            questions(),
            policy=policy,
            max_overtakes=overtakes,
            max_wait_seconds=1e6,
            num_blocks=1500 // 4,
            block_size=4,
            max_batch_size=1,
            enable_prefix_caching=True,
        )
        return sum(event.tokens for event in outcome.journal if isinstance(event, CacheHit)) / (400 * 460)

    assert hit_rate("fcfs", 8) < 0.4
    assert hit_rate("prefix", 8) > 0.6
    assert hit_rate("prefix", SchedulerConfig(num_blocks=1).max_overtakes) >= 0.95 * 0.85


def test_realtime_beside_best_effort_and_the_work_that_is_done_besides():
    """§8. Measured: end to end p99 1.03 x alone, five times the tokens."""

    def classes(*, with_best_effort: bool) -> list[Job]:
        rng, at, jobs = random.Random(5), 0.0, []
        for _ in range(400):
            at += rng.expovariate(1.5)
            jobs.append(Job(at, drawn_tokens(rng, 200), 30, 30, service_class=ServiceClass.REALTIME))
        for number in range(3000 * with_best_effort):
            prompt = drawn_tokens(rng, 300)
            jobs.append(Job(0.001 * number, prompt, 150, 150, service_class=ServiceClass.BESTEFFORT))
        return sorted(jobs, key=lambda job: job.at)

    alone = run(classes(with_best_effort=False), num_blocks=2000)
    beside = run(classes(with_best_effort=True), num_blocks=2000)
    mine = beside.ledger.column("num_prompt") == 200
    assert np.percentile(seconds(beside)[mine], 99) <= 1.05 * np.percentile(seconds(alone), 99)
    assert beside.tokens_run / beside.span >= 2 * alone.tokens_run / alone.span


@pytest.mark.parametrize("policy", ["fcfs", "priority", "mlfq", "fair", "deadline"])
def test_what_is_computed_is_what_was_needed(policy):
    """§15: no padding, and where nobody is preempted nothing is computed twice: prompt + answer - 1 tokens each."""
    jobs = list(fastserve_load(6.0, 300))
    outcome = run(jobs, policy=policy)
    assert not outcome.journal.counts["Preempted"]
    assert outcome.tokens_run == sum(job.num_prompt + min(job.output, job.max_tokens) - 1 for job in jobs)
