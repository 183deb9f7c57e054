"""Core is pure: no clock, no chance, no I/O, no hidden state, and no order that a hash decides."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orcinus.core

CORE = Path(orcinus.core.__file__).parent
# Everything else is banned by not being here: time, random, os, sys, sockets, threads, asyncio, numpy, torch ...
ALLOWED_IMPORTS = {
    "__future__",
    "array",
    "bisect",
    "heapq",
    "itertools",
    "collections",
    "collections.abc",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "math",
    "msgspec",
    "msgspec.inspect",
    "orcinus.core",
    "orcinus.errors",
    "typing",
}
# `hash` and `id` differ from run to run; the others read, write, or run what isn't written down.
BANNED_CALLS = {"open", "print", "input", "eval", "exec", "compile", "__import__", "globals", "vars", "hash", "id"}
MUTATORS = {"append", "add", "update", "pop", "popitem", "clear", "setdefault", "extend", "insert", "remove", "discard"}
MUTABLE_CALLS = {"list", "dict", "set", "deque", "Counter", "defaultdict", "count", "bytearray", "array"}
ORDERED_USES = {
    "list",
    "tuple",
    "sum",
    "iter",
    "next",
    "enumerate",
    "zip",
    "map",
    "filter",
    "reversed",
    "deque",
    "array",
}
ORDERED_USES |= {"Counter", "join", "extend", "fromkeys", "extendleft"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference", "keys"}
SET_TYPES = {"set", "frozenset", "Set", "AbstractSet", "MutableSet"}
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def called_name(node: ast.expr) -> str:
    """`f` of f(...) and of x.f(...)."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def is_set_annotation(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.BinOp):
        return is_set_annotation(node.left) or is_set_annotation(node.right)
    return node is not None and called_name(node) in SET_TYPES


class SetNames(ast.NodeVisitor):
    """What is a set by annotation or by assignment: variables; and attributes, properties and functions."""

    def __init__(self, members: frozenset[str] = frozenset()) -> None:
        self.variables: set[str] = set()
        self.members: set[str] = set(members)

    def _note(self, target: ast.expr) -> None:
        (self.members if isinstance(target, ast.Attribute) else self.variables).add(called_name(target))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and is_set_annotation(field.annotation):
                self.members.add(called_name(field.target))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if is_set_annotation(node.annotation):
            self._note(node.target)
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        if is_set_annotation(node.annotation):
            self.variables.add(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if is_set_annotation(node.returns):
            self.members.add(node.name)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if is_set(node.value, self):
            for target in node.targets:
                self._note(target)
        self.generic_visit(node)


def is_set(node: ast.expr, names: SetNames) -> bool:
    """Whether an expression is a set, as far as syntax and the names known to be sets can tell."""
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name(id=name):
            return name in names.variables
        case ast.Attribute(attr=name):
            return name in names.members
        case ast.Call(func=ast.Attribute(attr="keys")):
            return False
        case ast.Call(func=func):
            name = called_name(func)
            return name in SET_TYPES | SET_METHODS | names.members
        case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), right=right):
            return any(is_set(side, names) or is_keys(side) for side in (left, right))
        case ast.IfExp(body=body, orelse=orelse):
            return is_set(body, names) or is_set(orelse, names)
        case ast.NamedExpr(value=value) | ast.Starred(value=value):
            return is_set(value, names)
    return False


def is_keys(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"keys", "items"}


def offences(source: str, set_members: frozenset[str] = frozenset()) -> list[str]:
    """What a file of core may not do, each as `line: what`."""
    tree = ast.parse(source)
    names = SetNames(set_members)
    names.visit(tree)
    found = [*imports(tree), *calls(tree), *hidden_state(tree), *set_orders(tree, names)]
    return [f"{line}: {what}" for line, what in sorted(found)]


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "."]
        else:
            continue
        for module in modules:
            if module not in ALLOWED_IMPORTS and not module.startswith("orcinus.core."):
                yield node.lineno, f"imports {module}"


def calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            yield node.lineno, f"calls {node.func.id}"


def hidden_state(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Module and class variables that somebody changes, or that are made to be changed."""
    shared = {called_name(target) for node in tree.body for target in targets(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield node.lineno, "changes an outer variable"
        if isinstance(node, ast.FunctionDef):
            yield from changes(node, shared)
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
                if isinstance(value, ast.Call) and called_name(value.func) in MUTABLE_CALLS:
                    yield statement.lineno, "holds a mutable module or class variable"
                if isinstance(node, ast.ClassDef) and isinstance(value, ast.List | ast.Dict | ast.Set):
                    yield statement.lineno, "holds a mutable class variable"


def targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else []


def changes(function: ast.FunctionDef, shared: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            changed = [node.func.value]
        elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            changed = [node.value]
        else:
            continue
        if any(isinstance(owner, ast.Name) and owner.id in shared for owner in changed):
            yield node.lineno, "changes a module variable"


def set_orders(tree: ast.Module, names: SetNames) -> Iterator[tuple[int, str]]:
    """Places where the order of a set would show."""
    for node in ast.walk(tree):
        match node:
            case ast.For(iter=source) if is_set(source, names):
                yield node.lineno, "iterates over a set"
            case ast.YieldFrom(value=source) if is_set(source, names):
                yield node.lineno, "iterates over a set"
            case ast.Starred(value=source) if is_set(source, names):
                yield node.lineno, "unpacks a set"
            case ast.Assign(targets=[ast.Tuple() | ast.List()], value=source) if is_set(source, names):
                yield node.lineno, "unpacks a set"
            case ast.AugAssign(op=ast.Add(), value=source) if is_set(source, names):
                yield node.lineno, "makes a sequence of a set"
            case ast.Call(func=ast.Attribute(value=owner, attr="pop"), args=[]) if is_set(owner, names):
                yield node.lineno, "pops from a set"
            case ast.Call(func=func, args=arguments, keywords=keywords):
                by_key = called_name(func) in {"min", "max"} and keywords
                ordered = called_name(func) in ORDERED_USES or by_key
                if ordered and any(is_set(argument, names) for argument in arguments):
                    yield node.lineno, "makes a sequence of a set"
        if isinstance(node, COMPREHENSIONS) and any(is_set(part.iter, names) for part in node.generators):
            yield node.lineno, "iterates over a set"


def core_set_members() -> frozenset[str]:
    """Attributes and functions anywhere in core that are declared as sets; a use may be in another file."""
    names = SetNames()
    for path in sorted(CORE.rglob("*.py")):
        names.visit(ast.parse(path.read_text()))
    return frozenset(names.members)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_is_pure(path):
    assert offences(path.read_text(), core_set_members()) == []


OFFENDERS = {
    "import time": "1: imports time",
    "from datetime import datetime": "1: imports datetime",
    "def f():\n    import random": "2: imports random",
    "import os.path": "1: imports os.path",
    "from sys import argv": "1: imports sys",
    "import socket": "1: imports socket",
    "import threading": "1: imports threading",
    "import asyncio": "1: imports asyncio",
    "import numpy as np": "1: imports numpy",
    "import torch": "1: imports torch",
    "from orcinus.engine import door": "1: imports orcinus.engine",
    "from . import plan": "1: imports .",
    "def f():\n    return open('x')": "2: calls open",
    "print(1)": "1: calls print",
    "def f(x):\n    return hash(x)": "2: calls hash",
    "n = 0\ndef f():\n    global n\n    n += 1": "3: changes an outer variable",
    "SEEN = {}\ndef f(x):\n    SEEN[x] = 1": "3: changes a module variable",
    "SEEN = []\ndef f(x):\n    SEEN.append(x)": "3: changes a module variable",
    "from collections import deque\nQUEUE = deque()": "2: holds a mutable module or class variable",
    "class C:\n    seen = []": "2: holds a mutable class variable",
    "class C:\n    ids = count()": "2: holds a mutable module or class variable",
    "for x in {1, 2}:\n    f(x)": "1: iterates over a set",
    "for x in set(y):\n    f(x)": "1: iterates over a set",
    "def f(s: set[int]):\n    for x in s:\n        g(x)": "2: iterates over a set",
    "def f(s: frozenset[int] | None):\n    return [x for x in s]": "2: iterates over a set",
    "def f(a, b):\n    s = set(a)\n    t = s - b\n    return list(t)": "4: makes a sequence of a set",
    "class C:\n    def __init__(self):\n        self.s: set[int] = set()\n"
    "    def f(self):\n        return tuple(self.s)": "5: makes a sequence of a set",
    "class C:\n    @property\n    def ends(self) -> frozenset[int]: ...\ndef f(c):\n    return sum(c.ends)": (
        "5: makes a sequence of a set"
    ),
    "def f(s: set[str]):\n    return ','.join(s)": "2: makes a sequence of a set",
    "def f(s: set[int]):\n    return s.pop()": "2: pops from a set",
    "def f(a, b):\n    return [x for x in a.keys() & b]": "2: iterates over a set",
    "def f(s: set[int]):\n    return [*s]": "2: unpacks a set",
    "def f(s: set[int]):\n    a, b = s\n    return a": "2: unpacks a set",
    "def f(s: set[int], out):\n    out += s": "2: makes a sequence of a set",
    "def f(s: set[int]):\n    yield from s": "2: iterates over a set",
    "def f(s: set[int]):\n    return max(s, key=len)": "2: makes a sequence of a set",
    "def f(a):\n    return [x for x in (set(a) if a else a)]": "2: iterates over a set",
}


@pytest.mark.parametrize("source", OFFENDERS)
def test_the_purity_check_finds(source):
    assert offences(source) == [OFFENDERS[source]]


@pytest.mark.parametrize(
    "source",
    [
        "def f(s: set[int]):\n    return sorted(s), len(s), 3 in s, s | {4}, frozenset(s), max(s)",
        "def f(d: dict[str, int]):\n    return [x for x in d], list(d.keys())",
        "LIMITS = {'a': 1}\ndef f(x):\n    seen = {}\n    seen[x] = LIMITS[x]\n    return seen",
        "import msgspec\nfrom orcinus.core.plan import Work",
        "x: list[int] = [1]\nfor y in x:\n    pass",
    ],
)
def test_the_purity_check_lets_pass(source):
    assert offences(source) == []


@pytest.mark.slow
def test_the_journal_is_the_same_under_every_hash_seed():
    program = (
        "import sys; from test_scheduler_invariants import live_a_life\n"
        "for seed in range(60): sys.stdout.buffer.write(live_a_life(seed).journal.encode())"
    )
    journals = [run_with_hash_seed(program, seed) for seed in ("1", "2", "31337")]
    assert len(journals[0]) > 100_000
    assert journals[0] == journals[1] == journals[2]


def run_with_hash_seed(program: str, hash_seed: str) -> bytes:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(CORE.parent.parent)])
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout
