"""What begins with an underscore stays in its file: what other files ask for has a name without one."""

import ast

from collections import defaultdict
from pathlib import Path

import pyro_ar

FILES = {str(p): ast.parse(p.read_text(encoding="utf-8")) for p in Path(pyro_ar.__file__).parent.rglob("*.py")}
OF_TORCH = {"_validate_args"}


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in OF_TORCH


def own(node):
    """`self._x`, `cls._x`, `super()._x`."""
    while isinstance(node, ast.Call):
        node = node.func
    return isinstance(node, ast.Name) and node.id in {"self", "cls", "super"}


def defined(tree):
    """Private names that a file gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id


def asked(tree):
    """Private names that a file asks of something else, or imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not own(node.value):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


OWNERS = defaultdict(set)
for path, tree in FILES.items():
    for name in filter(private, defined(tree)):
        OWNERS[name].add(path)


def borrowed(path, tree):
    return sorted({name for name in filter(private, asked(tree)) if OWNERS[name] and path not in OWNERS[name]})


def test_no_file_asks_for_private_names_of_another():
    assert {path: names for path, tree in FILES.items() if (names := borrowed(path, tree))} == {}


def test_it_would_be_seen():
    assert borrowed("another file", ast.parse("joint._spread(x)")) == ["_spread"]
    assert borrowed("another file", ast.parse("from pyro_ar.queries import _seen")) == ["_seen"]
    assert borrowed("another file", ast.parse("self._spread(x)")) == []
