"""Many simulated lives of core with planned trouble, each told by one number (docs/correctness.md).

    python tools/simulation_test.py --seeds 1000000 --start 0 --jobs 2 --resume lives.json

Stops at the first life that breaks an invariant, cuts it down to what matters, and prints the line that makes it happen
again. With `--resume` it goes on where it was stopped. Exit code 1 if a life failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "core"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "simulation"))

from lives import Life
from shrink import Shrunk, failure_of, made_plainer, shrink
from sim_world import World

CHUNK = 200


def first_failing(first: int, end: int) -> int | None:
    """The first of these seeds whose life fails."""
    return next((seed for seed in range(first, end) if failure_of(Life.of(seed)) is not None), None)


def run_many(start: int, seeds: int, jobs: int, resume: Path | None) -> int:
    """All of them, in order; the exit code."""
    begin = max(start, _resumed(resume, start))
    with (
        ProcessPoolExecutor(jobs) as pool,
        tqdm(total=seeds, initial=begin - start, unit="life", smoothing=0.01, mininterval=2.0) as bar,
    ):
        for end, failing in _in_order(pool, begin, start + seeds, 2 * jobs):
            if failing is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                bar.close()
                return explain(Life.of(failing))
            bar.update(end - begin)
            begin = end
            if resume is not None:
                resume.write_text(json.dumps({"start": start, "next": end}))
    print(f"{seeds} lives from {start}: none broke an invariant")
    return 0


def _resumed(resume: Path | None, start: int) -> int:
    """Where an earlier run with the same start stood."""
    if resume is None or not resume.exists():
        return start
    state = json.loads(resume.read_text())
    return int(state["next"]) if state["start"] == start else start


def _in_order(pool: ProcessPoolExecutor, begin: int, end: int, ahead: int) -> Iterator[tuple[int, int | None]]:
    """The end of each chunk and who failed in it. Few chunks wait at a time, however many there are."""
    chunks = ((first, min(first + CHUNK, end)) for first in range(begin, end, CHUNK))
    pending: list[tuple[int, Future[int | None]]] = []
    while True:
        for first, last in islice(chunks, ahead - len(pending)):
            pending.append((last, pool.submit(first_failing, first, last)))
        if not pending:
            return
        last, future = pending.pop(0)
        yield last, future.result()


def explain(life: Life, shrunk: Shrunk | None = None) -> int:
    """What fails, and how to see it again with as little as possible; the exit code."""
    failure = failure_of(life)
    if failure is None:
        print(f"seed {life.seed}: no invariant is broken; trace {_trace(life)}")
        return 0
    print(f"seed {life.seed}: {failure.kind}\ncutting it down ...", flush=True)
    shrunk = shrink(life, failure.kind) if shrunk is None else shrunk
    last = failure_of(shrunk.life)
    print("" if last is None else last.text, shrunk.life.config, *shrunk.life.events, sep="\n  ")
    print(f"again: {shrunk.command()}")
    return 1


def _trace(life: Life) -> str:
    world = World(life)
    world.live()
    return world.trace


def run_cut(seed: int, keep: str | None, plainer: str | None) -> int:
    """One life, or what is left of it."""
    whole, names = Life.of(seed), plainer.split(",") if plainer else []
    places = [int(place) for place in keep.split(",")] if keep not in (None, "none") else []
    life = made_plainer(whole, names)
    if keep is None:
        return explain(life)
    return explain(life.cut(places), Shrunk(life.cut(places), places, names))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="a file that remembers how far it came")
    parser.add_argument("--keep", help="one seed: the events that are left, by number")
    parser.add_argument("--plainer", help="one seed: what is made plainer")
    args = parser.parse_args()
    if args.seeds == 1:
        return run_cut(args.start, args.keep, args.plainer)
    return run_many(args.start, args.seeds, args.jobs, args.resume)


if __name__ == "__main__":
    sys.exit(main())
