"""Small changes to Python source, each of which ought to be a bug: made from its syntax tree, drawn by a fixed seed."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator

SEED = 20
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mult: ast.FloorDiv,
    ast.Mod: ast.FloorDiv,
}
# Checks are the net, not the fish; what is only shown or typed is never run by a life.
SKIPPED_FUNCTIONS = ("check", "_check", "paths", "__repr__", "__str__")
Change = tuple[str, ast.AST]


def machine_made(files: dict[str, str], count: int) -> list[tuple[str, str, str]]:
    """Name, file and source of `count` mutants, drawn from all that there are in `files`."""
    sites = [(file, *site) for file, source in files.items() for site in _sites(source)]
    random.Random(SEED).shuffle(sites)
    return [(f"{file}:{line} {what}", file, _mutant(files[file], *which)) for file, line, what, which in sites[:count]]


def _sites(source: str) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Every line, the changes that can be made there, and their numbers."""
    for number, node in enumerate(_places(ast.parse(source))):
        for variant, (what, _) in enumerate(_changes(node)):
            yield node.lineno, what, (number, variant)


def _mutant(source: str, number: int, variant: int) -> str:
    tree = ast.parse(source)
    node = _places(tree)[number]
    _, changed = list(_changes(node))[variant]
    _replace(tree, node, changed)
    return ast.unparse(ast.fix_missing_locations(tree))


def _places(tree: ast.AST) -> list[ast.stmt | ast.expr]:
    return [node for node in _code(tree) if isinstance(node, ast.stmt | ast.expr)]


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are run, in order; no annotation, no message, no check, no import."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in (
            "annotation",
            "returns",
            "decorator_list",
            "type_params",
            "bases",
            "keywords" * isinstance(tree, ast.ClassDef),
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_skipped(child):
                yield from _code(child)


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name.startswith(SKIPPED_FUNCTIONS)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.ClassDef):
        return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)
    return isinstance(node, ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Raise)


def _changes(node: ast.AST) -> Iterator[Change]:
    """What can be made of one node."""
    match node:
        case ast.Compare(ops=[op]):
            for other in COMPARISONS[type(op)]:
                yield _said(node, ast.Compare(node.left, [other()], node.comparators))
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield _said(node, ast.BinOp(node.left, OPERATORS[type(op)](), node.right))
        case ast.BoolOp():
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield _said(node, ast.BoolOp(other_op, node.values))
        case ast.UnaryOp(op=ast.Not()):
            yield _said(node, node.operand)
        case ast.Constant(value=bool(value)):
            yield _said(node, ast.Constant(not value))
        case ast.Constant(value=int(value)):
            yield _said(node, ast.Constant(value + 1))
            yield _said(node, ast.Constant(value - 1))
        case ast.Call(func=func, args=[first, second, *rest]) if ast.unparse(func) not in ("min", "max"):
            yield _said(node, ast.Call(node.func, [second, first, *rest], node.keywords))
        case ast.If() | ast.While() | ast.IfExp():
            changed = copy.copy(node)
            changed.test = ast.UnaryOp(ast.Not(), node.test)
            yield f"not {ast.unparse(node.test)}", changed
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield _said(node, ast.AugAssign(node.target, OPERATORS[type(op)](), node.value))
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Assign | ast.Continue | ast.Break):
        yield f"drop {ast.unparse(node)}", ast.Pass()


def _said(old: ast.AST, new: ast.AST) -> Change:
    return f"{ast.unparse(old)} -> {ast.unparse(ast.fix_missing_locations(new))}", new


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if each is old else each for each in value]
