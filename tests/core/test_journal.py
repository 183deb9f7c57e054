"""The journal: a plan is stored packed, read as triples, and a full journal stays small."""

from __future__ import annotations

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.core.config import SchedulerConfig
from orcinus.core.core import Core
from orcinus.core.journal import Blocked, Journal, Scheduled
from orcinus.core.request import Request, SamplingParams

PARTS = st.tuples(st.integers(2**40, 2**40 + 2**31), st.integers(0, 2**31), st.integers(1, 2**20))


@settings(derandomize=True)
@given(work=st.lists(PARTS, min_size=1, max_size=70))
def test_what_was_packed_comes_out_again(work):
    event = Scheduled.of(1.5, 2, 3, work)
    assert event.work == tuple(work)
    assert event.tokens == sum(count for _, _, count in work)
    journal = Journal()
    journal.write(event)
    line = json.loads(journal.encode())
    assert line == {
        "type": "scheduled",
        "at": 1.5,
        "epoch": 2,
        "iteration": 3,
        "tokens": event.tokens,
        "work": [list(part) for part in work],
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Scheduled) == event


@pytest.mark.slow
def test_a_full_journal_of_plans_of_64_stays_below_64_mib():
    tracemalloc.start()
    journal = Journal()
    for iteration in range(65_536 + 100):
        work = [(10_000 + seq, 1_000_000 + iteration, 1) for seq in range(64)]
        journal.write(Scheduled.of(iteration * 0.013, 0, 1000 + iteration, work))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(journal) == 65_536
    assert held < 64 * 2**20


def test_who_waits_for_a_slot_is_said_to_once():
    """Two of a batch of one in each of two stages decode: the third in line has room nowhere."""
    core = Core(SchedulerConfig(num_blocks=64, max_batch_size=1, max_batch_tokens=8, num_stages=2))
    for number in range(3):
        params = SamplingParams(max_tokens=4, seed=1)
        core.add(Request(request_id=f"r{number}", prompt=bytes(8), params=params), 0.0)
    for at in range(1, 6):
        core.advance(float(at))
    blocked = [(event.request_id, event.reason) for event in core.journal if isinstance(event, Blocked)]
    assert blocked == [("r1", "batch_size"), ("r2", "batch_size")]
