"""A family is a short entry of a table, and nobody else knows its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import orcinus.layers
import orcinus.models
from orcinus.models import families
from orcinus.models.families import FAMILIES

MAX_LINES = 60
MODELS, LAYERS = (Path(package.__path__[0]) for package in (orcinus.models, orcinus.layers))


def entries() -> Iterator[tuple[str, int]]:
    """Each family's variable, and the lines of its entry."""
    for path in Path(families.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                called = node.value.func
                if isinstance(called, ast.Name) and called.id == "Family":
                    assert node.end_lineno is not None
                    yield ast.unparse(node.targets[0]), node.end_lineno - node.lineno + 1


def test_a_family_is_an_entry_of_at_most_60_lines() -> None:
    lines = dict(entries())
    assert len(lines) == len(FAMILIES)
    assert {name: number for name, number in lines.items() if number > MAX_LINES} == {}


def test_names_of_families_are_unique() -> None:
    architectures = [name for family in FAMILIES for name in family.architectures]
    assert len(set(architectures)) == len(architectures)
    assert len({family.model_type for family in FAMILIES}) == len(FAMILIES)


def strings(path: Path) -> set[str]:
    """All string constants of a file but its docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str)} - docs


def test_no_other_file_knows_a_family_s_name() -> None:
    known = {name.lower() for family in FAMILIES for name in (family.model_type, *family.architectures)}
    # The rotary scaling that Llama 3 brought is called after it everywhere.
    allowed = {"llama3"}
    for path in [*MODELS.glob("*.py"), *LAYERS.glob("*.py")]:
        for text in strings(path) - allowed:
            assert not any(name in text.lower() for name in known), f"{path.name} says {text!r}"
