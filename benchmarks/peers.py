"""Orcinus and the engines that a user would pick instead, in turns on this machine; one table with ratios.

    python benchmarks/peers.py --scripts PEERS --rounds 5 --results peers.jsonl
    python benchmarks/peers.py --results peers.jsonl --table-only --write README.md

PEERS is the folder of the peers' scripts (one `peer_*.py` an engine, `setup.sh` installs them); a peer that isn't
installed is left out, and named. One line of JSON a run goes to the results as it ends, with what the machine could do
just before; a second start skips what is there. A round runs every engine on a workload before the next workload
begins, each in a process of its own: a warm-up, then one measured repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peers_table
from tqdm import tqdm

RUN_SECONDS = 1800
OURS = "orcinus"
WORKLOADS = ("W1", "W2", "W3", "W4")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine at one precision. `python` is under the peers' root; None is ours."""

    name: str
    dtype: str
    python: str | None
    options: tuple[str, ...]
    workloads: tuple[str, ...] = WORKLOADS


ENGINES = (
    Engine(OURS, "bf16", None, ("--dtype", "bfloat16")),
    Engine(OURS, "int8", None, ("--dtype", "bfloat16", "--quantization", "int8")),
    Engine(OURS, "int4", None, ("--dtype", "bfloat16", "--quantization", "int4")),
    Engine("openvino", "bf16", "ov", ("--dtype", "bf16")),
    Engine("openvino", "int8", "ov", ("--dtype", "int8")),
    Engine("llamacpp", "q8_0", "lcpp", ("--dtype", "q8_0"), ("W1", "W2", "W4")),
    Engine("vllm", "bf16", "vllm", ()),
    Engine("ctranslate2", "int8", "ct2", ("--dtype", "int8"), ("W2", "W4")),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to make."""

    round: int
    model: str
    workload: str
    engine: Engine

    @property
    def key(self) -> tuple[int, str, str, str, str]:
        """What tells it from the others in the results."""
        return self.round, self.model, self.workload, self.engine.name, self.engine.dtype


class Bench:
    """Where everything is."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._scripts: Path = arguments.scripts
        self._root: Path = arguments.root
        self._models: Path = arguments.models
        self._threads: int = arguments.threads
        self._results: Path = arguments.results

    def interpreter(self, engine: Engine) -> Path:
        """Its own, or ours."""
        return Path(sys.executable) if engine.python is None else self._root / engine.python / "bin" / "python"

    def run(self, cell: Cell) -> None:
        """Append what came of it; an engine that fails is noted as such and not tried again."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command, environment = self._command(cell, out)
            limits = self._limits()
            try:
                ended = _run(command, os.environ | environment, folder)
                error = ended.stderr[-400:] if ended.returncode else ""
                figures = {} if error else _figures(cell, ended.stdout, out)
            except subprocess.TimeoutExpired:
                error, figures = f"not done after {RUN_SECONDS} s", {}
        line = dict(zip(("round", "model", "workload", "engine", "dtype"), cell.key, strict=True))
        line |= {"figures": figures, "limits": limits, "load": os.getloadavg()[0], "error": error, "at": time.time()}
        with self._results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _command(self, cell: Cell, out: Path) -> tuple[list[str], dict[str, str]]:
        engine, python = cell.engine, str(self.interpreter(cell.engine))
        threads = ["--threads", str(self._threads)]
        if engine.python is None:
            command = [python, "-m", "orcinus.cli", "bench", "offline", str(self._models / cell.model), *threads]
            options = ["--workloads", cell.workload, "--repeats", "1", "--json", "--kv-cache-gib", "1.0"]
            return [*command, *options, *engine.options], {}
        script = str(self._scripts / f"peer_{engine.name}.py")
        command = [python, script, "--models", cell.model, "--workloads", cell.workload, *threads, *engine.options]
        environment = {"PEER_REPEATS": "1", "PEER_RESULTS": str(out), "PEER_MODELS": str(self._models)}
        environment["LLAMA_BIN"] = str(self._root / "lcpp_build" / "bin")
        if engine.name == "vllm":
            environment["LD_PRELOAD"] = str(self._root / "vllm" / "lib" / "libiomp5.so")
            environment["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{self._threads - 1}"
        return command, environment

    def _limits(self) -> dict[str, float]:
        """What the machine can do at this moment: read bandwidth and a bf16 product through torch."""
        command = [sys.executable, str(HERE / "limits.py"), "--threads", str(self._threads)]
        measured: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return measured


def _run(command: list[str], environment: dict[str, str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS)


def _figures(cell: Cell, printed: str, out: Path) -> dict[str, float]:
    """By the names that ours and the peers' scripts share."""
    if cell.engine.python is None:
        measured: dict[str, float] = json.loads(printed)["workloads"][cell.workload]["median"]
    else:
        measured = json.loads(out.read_text().splitlines()[-1])["median"]
    return {name: value for name, value in measured.items() if name in peers_table.FIGURES}


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """In their order."""
    for number in range(arguments.rounds):
        for model in arguments.model:
            for workload in arguments.workloads:
                for engine in ENGINES:
                    if workload in engine.workloads and f"{engine.name}-{engine.dtype}" not in arguments.without:
                        yield Cell(number, model, workload, engine)


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, help="folder of the peers' scripts")
    parser.add_argument("--root", type=Path, default=Path("/tmp/pv"), help="where the peers are installed")
    parser.add_argument("--models", type=Path, default=Path("/tmp/peer_models"), help="folder of the checkpoints")
    parser.add_argument("--model", nargs="+", default=["bench-160m"])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--without", nargs="+", default=[], help="engines to leave out, as openvino-int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; what is there is not run again")
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--write", type=Path, help="put the table between the markers of this file")
    arguments = parser.parse_args()
    if not arguments.table_only:
        _run_missing(arguments, parser)
    lines = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    table = peers_table.markdown(lines)
    print(table)
    if arguments.write:
        peers_table.write_between_markers(arguments.write, table)


def _run_missing(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if arguments.scripts is None:
        parser.error("--scripts: give the folder of the peers' scripts")
    arguments.scripts, arguments.results = arguments.scripts.resolve(), arguments.results.resolve()
    bench = Bench(arguments)
    missing = {engine.name for engine in ENGINES if not bench.interpreter(engine).exists()}
    if missing:
        print(f"not installed, so left out: {', '.join(sorted(missing))} (see setup.sh)", file=sys.stderr)
    arguments.results.touch()
    seen = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    done = {tuple(line[name] for name in ("round", "model", "workload", "engine", "dtype")) for line in seen}
    todo = [cell for cell in cells(arguments) if cell.engine.name not in missing and cell.key not in done]
    for cell in tqdm(todo, unit="run", dynamic_ncols=True):
        bench.run(cell)


if __name__ == "__main__":
    main()
