"""Does the net hold? Core with a bug in it, planted by hand or made by machine, must be caught by some simulated life.

    python tools/mutants.py planted
    python tools/mutants.py machine --count 260 --minutes 25 --out mutants.json

Each bug goes into a copy of orcinus/core in a temporary folder. A tenth of `--seeds` lives run until one fails; if none
does, tests/core and the twin's leaps have a try; then all of the lives. What is left are holes in the net, or changes
that change nothing.
With `--out` it goes on where it was stopped, and with `--again` it tries once more what nobody has caught.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mutator import machine_made
from planted_bugs import BUGS
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
# They have tests of their own and no part in a life, or nothing but declarations and checks.
LEFT_OUT = {
    *("bounds.py", "credit.py", "quarantine.py", "recording.py", "explain.py"),
    *("clock.py", "journal.py", "check.py", "plan.py", "progress.py", "request.py"),
}
# A life takes milliseconds of a processor; one that takes so long has no end.
LIFE_SECONDS, MEMORY = 3, 3 << 30
# For a net, on a machine that has other things to do.
WALL_SECONDS = 900
SLOW_TESTS = ("test_credit.py", "test_credit_under_load.py", "test_quarantine.py")
# Random lives of the tests' own would only repeat the ones here.
RANDOM_TESTS = "not lives and not Machine and not algorithm_1 and not surrogates and not is_pure"
# The fixtures that all rooms share load torch; core has no use for them.
PYTEST = ("-x", "--tb=no", "-rf", "--noconftest")
# Who most likely notices comes first: by the beginning of a file's name.
NEAREST = {
    "kv/": ["kv", "test_prefix.py"],
    "policy/": ["test_policies.py", "test_deadline.py"],
    "victims": ["test_policies.py", "test_beams.py"],
    "pace": ["test_pace.py", "test_deadline.py"],
    "shares": ["test_shares.py"],
    "draft": ["test_shares.py", "test_scheduler.py"],
    "beams": ["test_beams.py"],
    "gang": ["test_beams.py"],
    "planner": ["test_policies.py", "test_beams.py", "test_scheduler.py"],
    "results": ["test_pace.py", "test_scheduler.py"],
    "s": ["test_scheduler.py", "test_deadline.py"],
}
# No life leaps: the twin's own runs do, and are compared with those that don't.
LEAPS, LEAP_TESTS = "leap.py", "tests/simulate/test_leaps.py"
# In this order: quick ones first.
NETS = ("few", "tests", "leaps", "all")
Planted = tuple[str, str, str]
LIVES = """
import resource, signal, sys
sys.path[:0] = sys.argv[1].split(":")
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]),) * 2)
def stop(*_):
    raise TimeoutError("no end")
signal.signal(signal.SIGVTALRM, stop)
from lives import Life
from shrink import failure_of
for seed in range(int(sys.argv[2])):
    signal.setitimer(signal.ITIMER_VIRTUAL, int(sys.argv[3]))
    failure = failure_of(Life.of(seed))
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if failure is not None:
        print("KILLED", seed, failure.kind[:110].replace(chr(10), " "))
        break
else:
    print("SURVIVED")
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went with one bug. `by`: seeds, tests, leaps, or nothing of the first `tried` nets."""

    name: str
    by: str
    detail: str
    seconds: float
    tried: int

    def may_survive(self, number: int) -> bool:
        """The net of this number hasn't tried it, and none before has caught it."""
        return self.by == "nothing" and self.tried <= number


class Bench:
    """A folder in which orcinus is the working tree's but for core."""

    def __init__(self, folder: Path, package: Path, seeds: int) -> None:
        self._seeds = seeds
        self._package = package
        self.core = folder / "orcinus" / "core"
        self._folder = folder
        self.core.parent.mkdir()
        for entry in package.iterdir():
            if entry.name not in ("core", "__pycache__"):
                (self.core.parent / entry.name).symlink_to(entry)

    def verdict(self, bug: Planted, number: int) -> Verdict:
        """Whether the net of this number catches it."""
        name, file, source = bug
        shutil.rmtree(self.core, ignore_errors=True)
        shutil.copytree(self._package / "core", self.core, ignore=shutil.ignore_patterns("__pycache__"))
        (self.core / file).write_text(source)
        begin = time.monotonic()
        by, detail = self._look(file, number)
        return Verdict(name, by, detail, round(time.monotonic() - begin, 1), number + 1)

    def _look(self, file: str, number: int) -> tuple[str, str]:
        match NETS[number]:
            case "leaps":
                return self._by_pytest("leaps", [LEAP_TESTS])
            case "tests" if file != LEAPS:
                return self._by_tests(file)
            case _ if file == LEAPS:
                return "nothing", ""
            case "few":
                return self._by_seeds(self._seeds // 10)
        return self._by_seeds(self._seeds)

    def _by_seeds(self, seeds: int) -> tuple[str, str]:
        rooms = [str(ROOT / "tests" / room) for room in ("simulation", "core")]
        code = [sys.executable, "-c", LIVES, ":".join(rooms)]
        try:
            run = self._run([*code, str(seeds), str(LIFE_SECONDS), str(MEMORY)], WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return "seeds", "no end"
        if "SURVIVED" in run.stdout:
            return "nothing", ""
        # It can't even be imported, or ran out of memory.
        return "seeds", (run.stdout.strip() or run.stderr.strip()[-200:]).removeprefix("KILLED ")

    def _by_tests(self, file: str) -> tuple[str, str]:
        first = next((names for start, names in NEAREST.items() if file.startswith(start)), [])
        paths = [*(f"tests/core/{name}" for name in first), "tests/core"]
        ignored = [f"--ignore=tests/core/{name}" for name in SLOW_TESTS]
        return self._by_pytest("tests", [*paths, "-m", "not slow", "-k", RANDOM_TESTS, *ignored])

    def _by_pytest(self, by: str, chosen: list[str]) -> tuple[str, str]:
        try:
            run = self._run([sys.executable, "-m", "pytest", *PYTEST, *chosen], WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return by, "no end"
        if run.returncode == 0:
            return "nothing", ""
        return by, next((line for line in run.stdout.splitlines() if line.startswith("FAILED")), "error")[:160]

    def _run(self, command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        # The current folder must not come before the one with the bug.
        paths = {"PYTHONPATH": str(self._folder), "PYTHONSAFEPATH": "1"}
        environment = os.environ | paths | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
        )


def planted(package: Path) -> Iterator[Planted]:
    """Name, file and changed source of each bug planted by hand."""
    everything = sources(package)
    for bug in BUGS:
        name = f"{bug.file}: {bug.why} ({bug.old.strip().splitlines()[0][:50]})"
        # Code moves from file to file; a bug stays the same as long as its text is there once.
        found = {file: source for file, source in everything.items() if bug.old in source}
        if bug.file in found:
            found = {bug.file: found[bug.file]}
        file, source = next(iter(found.items()), ("", ""))
        if len(found) != 1 or source.count(bug.old) != 1:
            raise SystemExit(f"the code has moved on, and this isn't there once: {name}")
        yield name, file, source.replace(bug.old, bug.new)


def sources(package: Path) -> dict[str, str]:
    """The files that lives run through."""
    core = package / "core"
    paths = [path for path in sorted(core.rglob("*.py")) if path.name not in LEFT_OUT]
    return {str(path.relative_to(core)): path.read_text() for path in paths}


def main() -> int:
    """The command line; exit code 1 if fewer than nine in ten were noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["planted", "machine"])
    parser.add_argument("--count", type=int, default=250, help="of the mutants that a machine makes")
    parser.add_argument("--seeds", type=int, default=500, help="lives that each has to survive")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no more after so long")
    parser.add_argument("--out", type=Path, help="the verdicts as JSON, and those of earlier runs")
    parser.add_argument("--again", action="store_true", help="try what survived an earlier run")
    parser.add_argument("--package", type=Path, default=ROOT / "orcinus", help="the package to break a copy of")
    args = parser.parse_args()
    bugs = list(planted(args.package) if args.kind == "planted" else machine_made(sources(args.package), args.count))
    end, verdicts = time.monotonic() + 60 * args.minutes, resumed(args.out)
    if args.again:
        verdicts = {name: each for name, each in verdicts.items() if each.by != "nothing"}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.package.resolve(), args.seeds)
        for number in range(len(NETS)):
            left = [bug for bug in bugs if bug[0] not in verdicts or verdicts[bug[0]].may_survive(number)]
            for bug in tqdm(left, unit="bug", mininterval=5.0):
                if time.monotonic() > end:
                    break
                verdicts[bug[0]] = bench.verdict(bug, number)
                if args.out is not None:
                    args.out.write_text(json.dumps([asdict(verdict) for verdict in verdicts.values()], indent=1))
    return report(list(verdicts.values()))


def resumed(out: Path | None) -> dict[str, Verdict]:
    """By name, what an earlier run has found out."""
    if out is None or not out.exists():
        return {}
    return {each["name"]: Verdict(**each) for each in json.loads(out.read_text())}


def report(verdicts: list[Verdict]) -> int:
    """A table; the exit code."""
    counts = Counter(verdict.by for verdict in verdicts)
    caught, by_tests = len(verdicts) - counts["nothing"], counts["tests"] + counts["leaps"]
    print(f"{len(verdicts)} bugs, {caught} caught: {counts['seeds']} by seeds, {by_tests} by tests")
    for verdict in verdicts:
        if verdict.by != "seeds":
            print(f"{verdict.by:8}{verdict.name}  {verdict.detail}")
    return int(10 * counts["nothing"] > len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
