"""What does it cost to hold a model in several worker processes on one host? Nothing here is faster on two cores.

    python benchmarks/parallel.py --repeats 3

Decoding on bench-160m (bf16, one thread a worker) in each layout, plans of the same number of sequences: milliseconds
an iteration by the wall, and of CPU over all processes, which neighbours on the machine disturb less; the size of plans
on the wire; the memory of each worker. Before that the sums over ranks alone, against gloo, and what a 20 ms delay in
the data plane does to plans.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import torch
import torch.distributed as dist
from workloads import VOCAB_SIZE, bench_160m

from orcinus.core.plan import IterationPlan, IterationResult
from orcinus.core.request import Request, SamplingParams, pack_tokens
from orcinus.engine.build import engine_over, worker_config
from orcinus.engine.clock import MonotonicClock
from orcinus.engine.config import EngineConfig
from orcinus.executor.frames import Frames
from orcinus.executor.inline import InlineWorkers
from orcinus.executor.processes import ProcessWorkers
from orcinus.executor.relay import Relay
from orcinus.executor.workers import Workers
from orcinus.parallel.shared import SPIN_SECONDS, SharedGroup, group_bytes, make_memory

TICKS = os.sysconf("SC_CLK_TCK")
PROMPT, ITERATIONS = 16, 60
MESSAGES = (4, 65_536, 196_608, 2**20)


class Counting:
    """An executor that weighs the plans that go through it."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.sizes: list[float] = []
        self.descriptions = workers.descriptions

    def with_memory(self, memory: object) -> Counting:
        self._executor = self._workers.with_memory(memory)
        return self

    def submit(self, plan: IterationPlan) -> None:
        if not plan.new:
            self.sizes.append(len(msgspec.msgpack.encode(plan)) / len(plan.work))
        self._executor.submit(plan)

    def collect(self) -> IterationResult:
        return self._executor.collect()

    def close(self) -> None:
        self._executor.close()


def cpu_seconds(pids: list[int]) -> float:
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS


def memory_mib(pid: int) -> tuple[float, float]:
    """Own memory now, and the largest resident size so far, which counts pages of mapped files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def decode(folder: Path, tensor_size: int, num_stages: int, batch: int, inline: bool) -> None:
    """One layout, from its start to its end."""
    config = EngineConfig(
        str(folder),
        dtype="bfloat16",
        threads=1,
        max_batch_tokens=512,
        max_batch_size=batch,
        kv_cache_gib=0.1,
        tensor_parallel_size=tensor_size,
        pipeline_parallel_size=num_stages,
    )
    own = worker_config(config)
    started_at = time.perf_counter()
    workers = (
        InlineWorkers(own, print) if inline else ProcessWorkers.start(own, tensor_size, num_stages, lambda _: None)
    )
    counting = Counting(workers)
    engine, _ = engine_over(counting, config, MonotonicClock())
    start_seconds = time.perf_counter() - started_at
    pids = [os.getpid(), *([] if inline else workers.pids)]
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=ITERATIONS + 20, seed=0, ignore_eos=True)
    for number in range(batch * num_stages):
        prompt = pack_tokens([rng.randrange(2, VOCAB_SIZE) for _ in range(PROMPT)])
        engine.add(Request(request_id=f"r{number}", prompt=prompt, params=params))
    while engine.scheduler.num_iterations < 12 * num_stages:
        engine.step()
    begun, cpu, at = engine.scheduler.num_iterations, cpu_seconds(pids), time.perf_counter()
    while engine.scheduler.num_iterations < begun + ITERATIONS * num_stages:
        engine.step()
    done = engine.scheduler.num_iterations - begun
    wall, cpu = time.perf_counter() - at, cpu_seconds(pids) - cpu
    name = "one process" if inline else f"T={tensor_size} P={num_stages}"
    line = f"{name:12} batch {batch:3}: {1e3 * wall / done:6.2f} ms wall, {1e3 * cpu / done:6.2f} ms CPU an iteration"
    line += f", {statistics.median(counting.sizes):.1f} bytes a sequence, start {start_seconds:.1f} s"
    if not inline:
        line += f", idle {' '.join(f'{share:.0%}' for share in workers.idle_shares())}"
        weights = [description.weight_bytes / 2**20 for description in workers.descriptions]
        sizes = [memory_mib(pid) for pid in workers.pids]
        line += ", MiB weights/own/peak " + " ".join(
            f"{w:.0f}/{own:.0f}/{peak:.0f}" for w, (own, peak) in zip(weights, sizes, strict=True)
        )
    print(line, flush=True)
    engine.close()


def forked(call: Callable[[int], None], size: int) -> None:
    """Run on `size` ranks."""
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            call(rank)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def timed(name: str, rank: int, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for size in MESSAGES:
        x = torch.randn(size // 4)
        seconds = []
        for _ in range(400):
            at = time.perf_counter()
            reduce(x)
            seconds.append(time.perf_counter() - at)
        ordered = sorted(seconds[50:])
        if rank == 0:
            median, late = (1e6 * ordered[len(ordered) * share // 10] for share in (5, 9))
            print(f"{name:24} {size:8} bytes: {median:6.0f} us, 90th percentile {late:6.0f}", flush=True)


def sums() -> None:
    """Two ranks that do nothing else."""
    for spin in (0.0, SPIN_SECONDS):
        memory = make_memory(group_bytes(2))
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def shared(rank: int, memory: int = memory, ends: tuple = ends, spin: float = spin) -> None:
            timed(
                f"shared, spinning {1e6 * spin:.0f} us", rank, SharedGroup(rank, memory, [ends[rank]], spin).all_reduce
            )

        forked(shared, 2)
    with tempfile.TemporaryDirectory() as folder:

        def gloo(rank: int) -> None:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            store = dist.FileStore(f"{folder}/store", 2)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=10))

            def reduce(x: torch.Tensor) -> torch.Tensor:
                dist.all_reduce(x)
                return x

            def ordered(x: torch.Tensor) -> torch.Tensor:
                parts = [torch.empty_like(x) for _ in range(2)]
                dist.all_gather(parts, x)
                return parts[0] + parts[1]

            timed("gloo all_reduce", rank, reduce)
            timed("gloo, order fixed", rank, ordered)

        forked(gloo, 2)


def control_under_delay(delay: float) -> None:
    """Plans through a stage whose own work stands still: how late are they at the next one?"""
    (engine_end, first_in), (first_out, second_in) = socket.socketpair(), socket.socketpair()
    first, second, engine = Relay(first_in, first_out), Relay(second_in, None), Frames(engine_end)
    late: list[float] = []

    def busy() -> None:
        while first.next() is not None:
            time.sleep(delay)

    threading.Thread(target=busy, daemon=True).start()
    for _ in range(200):
        at = time.perf_counter()
        engine.send(bytes(900))
        second.next()
        late.append(time.perf_counter() - at)
        time.sleep(0.002)
    engine_end.close()
    ordered = sorted(late)
    print(
        f"a plan reaches stage 2 after {1e3 * ordered[100]:.3f} ms (99th percentile {1e3 * ordered[198]:.3f}) "
        f"while stage 1 works {1e3 * delay:.0f} ms on each",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "orcinus-benchmarks")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = bench_160m(options.folder)
    sums()
    for delay in (0.0, 0.02):
        control_under_delay(delay)
    for _ in range(options.repeats):
        decode(folder, 1, 1, options.batch, inline=True)
        for tensor_size, num_stages in ((1, 1), (1, 2), (2, 1), (2, 2)):
            decode(folder, tensor_size, num_stages, options.batch, inline=False)


if __name__ == "__main__":
    main()
