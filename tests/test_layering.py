"""Imports go one way: ops, annealing <- modules <- models <- tasks; the others stand beside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fairseq_hmrnn"

# A part of the package (a folder or a file) -> the other parts that it may import.
ALLOWED = {
    "ops": set(),
    "annealing": set(),
    "compat": set(),
    "archive": {"compat"},
    "checkpoints": {"archive", "compat", "resumption"},
    "resumption": {"compat"},
    "analysis": set(),
    "options": set(),
    "trace": set(),
    "cli": {"archive", "data", "options"},
    "modules": {"ops"},
    "models": {"ops", "modules", "annealing", "checkpoints", "compat", "options", "trace"},
    "criterions": {"compat", "data", "options", "trace"},
    "data": {"compat"},
    "generation": {"compat"},
    "lr_scheduler": {"options"},
    "reader": {"data", "models", "ops"},
    "tasks": {
        "generation", "ops", "modules", "models", "annealing", "checkpoints", "data", "compat", "options", "resumption",
    },
    "__init__": {"checkpoints", "cli", "criterions", "data", "lr_scheduler", "models", "resumption", "tasks"},
    "__main__": {"cli", "criterions", "lr_scheduler", "models", "options", "tasks"},
}
FORBIDDEN = {
    "ops": {"fairseq", "omegaconf", "hydra"},
    "modules": {"fairseq", "omegaconf", "hydra"},
    "annealing": {"fairseq", "omegaconf", "hydra"},
    "analysis": {"fairseq", "omegaconf", "hydra", "torch"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """The part of the package that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path):
    """Absolute dotted names of everything that a file imports, inside functions too."""
    package = ["fairseq_hmrnn", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_go_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "fairseq_hmrnn":
            exports = rest[0] if rest and rest[0] in ALLOWED else "__init__"  # a name that the package itself exports
            allowed = {part, *ALLOWED[part]}
            assert exports in allowed or part == exports, f"{part} imports {name}; it may import {sorted(allowed)}"
        else:
            assert top not in FORBIDDEN.get(part, ()), f"{part} must not import {name}"


@pytest.mark.parametrize("part", ["ops", "modules", "annealing"])
def test_core_imports_without_fairseq(part):
    """With the package's own __init__, which registers everything, left out."""
    code = (
        "import importlib, sys, types\n"
        "for name in ('fairseq', 'omegaconf', 'hydra'): sys.modules[name] = None\n"
        f"package = types.ModuleType('fairseq_hmrnn'); package.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['fairseq_hmrnn'] = package\n"
        f"importlib.import_module('fairseq_hmrnn.{part}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
