"""Imports go one way: ops <- modules <- models <- inference <- tasks; those beside them take what they are given."""

import ast
import subprocess
import sys

import pytest
from running import ROOT

PACKAGE = ROOT / "fairseq_hmrnn"

# A part of the package (a folder or a file) -> the other parts that it may import, from the bottom up: a part imports
# only what stands above it in this table, so that nothing goes round in circles.
ALLOWED = {
    "ops": set(),
    "modules": {"ops"},
    "text": set(),
    "analysis": {"text"},
    "segmentation": {"text"},
    "options": set(),
    "trace": set(),
    "compat": set(),
    "fairseq_hooks": set(),
    "optim": {"options"},
    "resumption": {"fairseq_hooks", "optim"},
    "training_options": {"fairseq_hooks", "options"},
    "checkpoints": {"compat", "fairseq_hooks", "options", "resumption"},
    "data": {"options", "text"},
    "criterions": {"data", "ops", "options", "segmentation", "text", "trace"},
    "models": {"checkpoints", "fairseq_hooks", "modules", "ops", "options", "trace"},
    "inference": {"checkpoints", "criterions", "data", "fairseq_hooks", "models", "ops", "text", "trace"},
    "tasks": {"checkpoints", "data", "fairseq_hooks", "inference", "models", "options", "resumption"},
    "cli": {"analysis", "checkpoints", "criterions", "data", "fairseq_hooks", "inference", "models"}
    | {"options", "segmentation", "text"},
    "__init__": {"checkpoints", "cli", "resumption", "training_options"},  # and by name what is registered
    "__main__": {"cli"},
}
FORBIDDEN = {
    "ops": {"fairseq", "omegaconf", "hydra"},
    "modules": {"fairseq", "omegaconf", "hydra"},
    "text": {"fairseq", "omegaconf", "hydra", "torch"},
    "analysis": {"fairseq", "omegaconf", "hydra", "torch"},
    "segmentation": {"fairseq", "omegaconf", "hydra", "torch"},
}
OPTIONAL = {"matplotlib", "triton", "onnx", "onnxruntime", "sentencepiece", "shtab", "sacrebleu", "sklearn"}
# Folders within a part, and what of the package they may not import: each other, or who stands above them.
APART = {
    "ops/cpu": {"ops.triton", "ops.hm_lstm"},
    "ops/triton": {"ops.cpu", "ops.hm_lstm"},
    "models/translation": {"models.hmlstm_lm", "models.moving_average"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """The part of the package that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def part_named(names):
    """The part that `fairseq_hmrnn` and these names after it mean; a name that the package itself exports is of
    __init__."""
    return names[0] if names and names[0] in ALLOWED else "__init__"


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
            allowed = {part, *ALLOWED[part]}
            assert part_named(rest) in allowed, f"{part} imports {name}; it may import {sorted(allowed)}"
        else:
            assert top not in FORBIDDEN.get(part, ()), f"{part} must not import {name}"


def test_every_grant_is_used():
    used = {part: set() for part in ALLOWED}
    for path in FILES:
        names = (name.split(".") for name in imported(path))
        used[part_of(path)] |= {part_named(rest) for top, *rest in names if top == "fairseq_hmrnn"} - {part_of(path)}
    assert used == ALLOWED


def test_a_part_stands_above_those_that_import_it():
    order = list(ALLOWED)
    for part, others in ALLOWED.items():
        assert others <= set(order[: order.index(part)]), part


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_what_few_need_is_imported_where_it_is_used(path):
    """Every command imports the package, and would wait for it."""
    if path.parent == PACKAGE / "ops" / "triton":  # itself imported only where a GPU is
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & OPTIONAL


@pytest.mark.parametrize("folder", APART)
def test_rooms_of_a_part_stay_apart(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in imported(path):
            within = name.split(".")[1:3]
            assert ".".join(within) not in APART[folder], f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("part", ["ops", "modules"])
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


def test_modules_of_tests_have_names_of_their_own():
    """They are imported by name from several folders, beside those of the benchmarks."""
    folders = [folder for folder in (ROOT / "tests").rglob("*") if folder.is_dir()]
    files = [
        file for folder in [ROOT / "tests", ROOT / "scripts" / "benchmark", *folders] for file in folder.glob("*.py")
    ]
    names = [file.stem for file in files if not file.stem.startswith(("test_", "conftest", "__"))]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    imports_conftest = [str(file) for file in files if "from conftest import" in file.read_text(encoding="utf-8")]
    assert imports_conftest == [__file__]
