"""A small text, and the model that the real commands train on it."""

import dis
import importlib
import logging
import os
import random
from pathlib import Path

import pytest
import torch
from running import ROOT, run

# Read when Triton is imported, here or in a command of a test: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

TASK = ["--user-dir", "fairseq_hmrnn", "--task", "hmlstm_language_modeling"]
SMALL = ["--arch", "hmlstm_lm", "--embed-dim", "8", "--hidden-sizes", "16,12,8", "--output-dim", "12"]
TRAIN = [*SMALL, "--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".3,.1"]
TRAIN += ["--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--batch-size", "8"]
TRAIN += ["--tokens-per-sample", "30", "--cpu", "--seed", "1"]
TRAIN += ["--log-format", "simple", "--log-interval", "1", "--num-workers", "0"]


COMMANDS = {"run", "run_groups", "script", "start", "subprocess"}  # what starts them
MADE_BY_COMMANDS = {"data", "trained"}  # fixtures
QUICK_FILES = {"test_documents.py", "test_layering.py", "test_options.py"}  # beside those in the folders of tests/


def global_names(code):
    """Those that a function reads, in its inner functions and comprehensions too."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return names.union(*(global_names(inner) for inner in code.co_consts if hasattr(inner, "co_code")))


def pytest_collection_modifyitems(items):
    """Mark as quick the tests of the package's parts that start no commands and are not marked slow or thorough."""
    for item in items:
        path = Path(item.fspath)
        is_quick = path.parent != ROOT / "tests" or path.name in QUICK_FILES
        commands = COMMANDS & global_names(item.function.__code__) or MADE_BY_COMMANDS & {*item.fixturenames}
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
def benchmark(monkeypatch):
    """The modules of scripts/benchmark, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmark"))
    return importlib.import_module


def small_text(lines=150, seed=0):
    """Lines of words of a tiny language, with what is easily lost: tabs, runs of spaces, empty lines, U+3000."""
    choose = random.Random(seed)
    words = ["ka", "lumo", "tiri", "sen", "poko", "a"]
    text = [" ".join(choose.choices(words, k=choose.randint(1, 9))) for _ in range(lines)]
    text[3], text[4], text[10], text[-5] = "\tka  lumo ", "", "sen\u3000a", " a"
    return "\n".join(text) + "\n"


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
