"""The lives that golden journals tell, and the command that writes them again.

python tests/golden/scenes.py     # after a change that is meant to decide differently; the commit says which and why
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "core"))

from core_harness import EOS, World, expected_answer, make_request

from orcinus.core.config import SchedulerConfig
from orcinus.core.request import unpack_tokens


def _world(lines: list[bytes], **config: object) -> World:
    return World(SchedulerConfig(**{"num_blocks": 24, "block_size": 4, "max_batch_size": 4, **config}), lines)


def chunks_beside_decodes(lines: list[bytes]) -> None:
    """Long prompts in chunks beside decoding sequences; ends by limit and by end token."""
    world = _world(lines, max_batch_tokens=8)
    for number in range(5):
        world.add(make_request(f"r{number}", 3 + 5 * number, 6, seed=number, arrived_at=world.now, eos=(EOS,)))
        world.step()
    world.drain()


def preemption_and_forks(lines: list[bytes]) -> None:
    """A pool too small for all: the latest are preempted and return; several answers share a prompt; an abort."""
    world = _world(lines, num_blocks=9, max_batch_tokens=32)
    for number in range(4):
        n = 1 + (number == 3)
        world.add(make_request(f"r{number}", 6, 10, seed=number, arrived_at=float(number), n=n))
    while not world.journal.counts["Preempted"]:
        world.step()
    world.abort("r2")
    world.drain()


def stages_and_epochs(lines: list[bytes]) -> None:
    """Orca's reservation with two stages and look-ahead; the plans in flight are abandoned, then the KV is lost."""
    world = _world(lines, num_stages=2, lookahead=1, admission="reserve")
    for number in range(6):
        world.add(make_request(f"r{number}", 5, 7, seed=number, arrived_at=float(number)))
        world.step()
    world.new_epoch(kv_lost=False)
    for _ in range(5):
        world.step()
    world.new_epoch(kv_lost=True)
    world.drain()


def shared_prefixes(lines: list[bytes]) -> None:
    """The prefix cache: prompts in common, one of them twice, a chat's next turn, evictions, a failed row, lost KV."""
    world = _world(lines, num_blocks=10, max_batch_tokens=16, lookahead=1, enable_prefix_caching=True)
    first = make_request("turn1", 13, 6, seed=1)
    world.add(first)
    for number in range(3):
        world.add(make_request(f"r{number}", 10, 5, seed=1 + number % 2, arrived_at=world.now))
        world.step()
    world.drain()
    prompt = [*unpack_tokens(first.prompt), *expected_answer(first, 0)[0], 3]
    world.add(make_request("turn2", prompt, 4, seed=7, arrived_at=world.now))
    world.add(make_request("branches", prompt[:12], 6, seed=8, n=2, arrived_at=world.now))
    world.add(make_request("stranger", prompt, 4, seed=7, tenant="t", arrived_at=world.now))
    for _ in range(4):
        world.step()
    world.run_next(frozenset(work.seq_id for work in world.in_flight[0].plan.work[:1]))
    for _ in range(4):
        world.step()
    world.new_epoch(kv_lost=True)
    world.drain()


SCENES: tuple[Callable[[list[bytes]], None], ...] = (
    chunks_beside_decodes,
    preemption_and_forks,
    stages_and_epochs,
    shared_prefixes,
)


def recording_of(scene: Callable[[list[bytes]], None]) -> list[bytes]:
    """The scene's recording, played now."""
    lines: list[bytes] = []
    scene(lines)
    return lines


def main() -> None:
    """Write each scene's recording and journal."""
    from orcinus.core.recording import replay

    for scene in SCENES:
        lines = recording_of(scene)
        core, difference = replay(lines)
        assert difference is None
        (HERE / f"{scene.__name__}.recording.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        (HERE / f"{scene.__name__}.journal.jsonl").write_bytes(core.journal.encode() + b"\n")
        print(f"{scene.__name__}: {len(lines)} inputs, {len(core.journal)} decisions")


if __name__ == "__main__":
    main()
