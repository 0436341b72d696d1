"""A small text, and the model that the real commands train on it."""

import dis
import functools
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import ROOT, run, start
from small_training import TASK, TRAIN, small_text

# Read when Triton is imported, here or in a command of a test: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# So that what is compiled is kept: else every command of a test would compile the package anew.
os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "", False

COMMANDS = {"run", "run_groups", "script", "start", "subprocess"}  # what starts them
MADE_BY_COMMANDS = {"data", "forked_commands", "trained"}  # fixtures
QUICK_FILES = {"test_documents.py", "test_layering.py", "test_options.py"}  # beside those in the folders of tests/


@functools.lru_cache(maxsize=None)  # once for all parameters of a test
def starts_commands(code):
    """Whether a function reads one of the global names COMMANDS, in its inner functions and comprehensions too."""
    # Whether a name is a global one takes long to find out, so that it is asked of these alone.
    named = COMMANDS.intersection(code.co_names) and any(
        step.opname == "LOAD_GLOBAL" and step.argval in COMMANDS for step in dis.get_instructions(code)
    )
    return named or any(starts_commands(inner) for inner in code.co_consts if hasattr(inner, "co_code"))


def pytest_collection_modifyitems(items):
    """Mark as quick the tests of the package's parts that start no commands and are not marked slow or thorough."""
    for item in items:
        path = Path(item.fspath)
        is_quick = path.parent != ROOT / "tests" or path.name in QUICK_FILES
        commands = starts_commands(item.function.__code__) or MADE_BY_COMMANDS & {*item.fixturenames}
        if is_quick and not commands and not any(map(item.get_closest_marker, ("slow", "thorough"))):
            item.add_marker(pytest.mark.quick)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often test_streams kills training (default 2)")


@pytest.fixture(autouse=True)
def logs_are_on():
    """A command that a test runs in this process turns them down."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def import_benchmark(monkeypatch):
    """The modules of scripts/benchmark, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmark"))
    return importlib.import_module


@pytest.fixture
def forked_commands(import_benchmark, monkeypatch):
    """What the benchmarks train with is a fork of a process that has imported the libraries."""
    commands = import_benchmark("commands")

    def call(command, env, stdout, stderr):
        name = "scripts/benchmark/fairseq_train.py" if command[0] == "fairseq-train" else command[0]
        return start(name, command[1:], stdout.name).wait()

    monkeypatch.setattr(commands, "fairseq_command", lambda name: [name])
    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(call=call, STDOUT=subprocess.STDOUT))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A prepared folder, with the text files beside it."""
    folder = tmp_path_factory.mktemp("data")
    for name, lines, seed in (("train", 150, 0), ("valid", 30, 1), ("test", 20, 2)):
        (folder / f"{name}.txt").write_bytes(small_text(lines, seed).encode())
    texts = [folder / f"{name}.txt" for name in ("train", "valid", "test")]
    run("fairseq-hmrnn", "prepare", "text", *texts, "--dest", folder / "bin")
    return folder / "bin"


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Folder of a model after 40 updates; `log.txt` is what fairseq-train printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = run("fairseq-train", data, *TASK, *TRAIN, "--max-update", 40, "--save-dir", folder)
    (folder / "log.txt").write_text(result.stdout, encoding="utf-8")
    return folder
