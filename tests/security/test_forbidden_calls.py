"""Nothing in the package may run code that came as data (S1): every source is read, and a server that can't unpickle
serves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from guarded import House

PACKAGE = Path(__file__).parents[2] / "orcinus"
# Reading them back runs whatever they hold.
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle", "code"}
NAMES = {"eval", "exec", "compile"}
# Of any object: what is called so is pickle or a shell underneath, whatever it hangs on.
METHODS = {
    "recv_pyobj",
    "send_pyobj",
    "recv_serialized",
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
CALLS = {
    "torch.load",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "time.time",
}
# The time of day is for people who read an answer; whatever decides reads a monotonic clock.
TELLS_TIME = {"server/app.py", "server/vector_api.py"}
# The names that `orcinus` exports are looked up in a table that stands in the same file.
LOOKS_UP_OWN = {"__init__.py"}


def complaints(source: str, path: str = "x.py") -> list[str]:
    """What is forbidden in a source, with its line."""
    tree = ast.parse(source)
    return [f"{path}:{node.lineno}: {what}" for node in ast.walk(tree) for what in _wrong(node, path)]  # type: ignore[attr-defined]


def _wrong(node: ast.AST, path: str) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (f"import {each.name}" for each in names if each.name.partition(".")[0] in MODULES)
        case ast.ImportFrom(module=module, names=names):
            yield from _wrong_names(module or "", [each.name for each in names])
        case ast.Name(id=name) if name in NAMES:
            yield name
        case ast.Attribute(attr=name) if name in METHODS:
            yield name
        case ast.Attribute() if ast.unparse(node) in CALLS and not (_tells_time(node) and path in TELLS_TIME):
            yield ast.unparse(node)
        case ast.Call():
            yield from _wrong_call(node, path)


def _wrong_names(module: str, names: list[str]) -> Iterator[str]:
    if module.partition(".")[0] in MODULES:
        yield f"import {module}"
    yield from (f"from {module} import {name}" for name in names if f"{module}.{name}" in CALLS or name in METHODS)


def _tells_time(node: ast.Attribute) -> bool:
    return ast.unparse(node) == "time.time"


def _wrong_call(node: ast.Call, path: str) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in {"__import__", "importlib.import_module", "import_module"} and not (
        _is_constant(node) or path in LOOKS_UP_OWN
    ):
        yield f"{name} of what isn't written here"
    for keyword in node.keywords:
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            yield "shell"
        if keyword.arg == "allow_pickle":
            yield "allow_pickle"


def _is_constant(node: ast.Call) -> bool:
    return bool(node.args) and isinstance(node.args[0], ast.Constant)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_source_runs_what_came_as_data(file: Path) -> None:
    assert complaints(file.read_text(encoding="utf-8"), str(file.relative_to(PACKAGE))) == []


def test_no_exception_is_stale() -> None:
    assert {path for path in LOOKS_UP_OWN if "import_module(_HOMES[" in (PACKAGE / path).read_text()} == LOOKS_UP_OWN
    assert {path for path in TELLS_TIME if "time.time()" in (PACKAGE / path).read_text()} == TELLS_TIME


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import os, marshal",
        "import cloudpickle as innocent",
        "from pickle import loads",
        "from dill.source import x",
        "def f():\n    import shelve",
        "socket.recv_pyobj()",
        "self._socket.send_pyobj(x)",
        "f = socket.recv_pyobj",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "numpy.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval('1')",
        "f = eval",
        "exec(text)",
        "builtins.exec(text)",
        "compile(text, '', 'exec')",
        "yaml.load(text)",
        "from yaml import unsafe_load",
        "subprocess.run(line, shell=True)",
        "subprocess.run(line, shell=flag)",
        "os.system(line)",
        "from os import system",
        "__import__(name)",
        "importlib.import_module(f'x.{name}')",
        "torch.distributed.broadcast_object_list([x])",
        "from torch.distributed import all_gather_object",
        "now = time.time()",
        "clock = time.time",
        "from time import time",
    ],
)
def test_what_is_planted_is_found(planted: str) -> None:
    assert len(complaints(planted)) >= 1


@pytest.mark.parametrize(
    "fine",
    [
        "re.compile('x')",
        "__import__('json')",
        "import_module('orcinus.server')",
        "subprocess.run(['ls'], shell=False)",
        "model.eval()",
        "safetensors.torch.load_file(path)",
        "json.load(file)",
        "time.monotonic()",
        "torch.compile(f)",
    ],
)
def test_what_is_fine_passes(fine: str) -> None:
    assert complaints(fine) == []


REQUESTS: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What is 12 + 7?"}], "max_tokens": 12}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "n": 2, "logprobs": 2, "seed": 1}),
    ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 3, "stream": True}),
    ("/v1/completions", {"prompt": "a" * 3000, "max_tokens": 1, "truncate_prompt_tokens": 9}),
    ("/v1/embeddings", {"input": ["some text", "and more"]}),
    ("/tokenize", {"prompt": "some text"}),
    ("/detokenize", {"tokens": [5, 6, 7]}),
    ("/rerank", {"query": "a fox", "documents": ["a fox", "a whale"]}),
    ("/v1/completions", {"prompt": None}),
]


@pytest.mark.slow
def test_a_server_that_cant_unpickle_serves(house: House) -> None:
    statuses = []
    with httpx.Client(base_url=house.url, headers=house.headers, timeout=60) as client:
        for path, body in REQUESTS * 2:
            statuses.append(client.post(path, json=body).status_code)
    assert statuses == [200] * 9 + [400] + [200] * 9 + [400]
    noted = house.poison_log.read_text().splitlines()
    assert {f"poisoned {pid}" for pid in house.pids()} <= set(noted)
    assert "unpickled" not in noted


@pytest.mark.slow
def test_a_poisoned_process_would_say_so(house: House) -> None:
    """The poison itself: what it replaces is what everybody calls."""
    log = house.poison_log.with_name("proof")
    environment = {"PYTHONPATH": str(house.poison_log.parent), "POISON_LOG": str(log)}
    code = "import pickle; pickle.loads(pickle.dumps(1))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "must not unpickle" in done.stderr
    assert "unpickled" in log.read_text().split("\n")
