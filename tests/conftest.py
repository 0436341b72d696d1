"""A small text, the model that the real commands train on it, and a way to run commands."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Read when Triton is imported, here or in a command of a test: without a GPU its kernels run in the interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
TASK = ["--user-dir", "fairseq_hmrnn", "--task", "hmlstm_language_modeling"]
SMALL = ["--arch", "hmlstm_lm", "--embed-dim", "8", "--hidden-sizes", "16,12,8", "--output-dim", "12"]
TRAIN = [*SMALL, "--criterion", "boundary_regularized_cross_entropy", "--boundary-rates", ".3,.1"]
TRAIN += ["--optimizer", "adam", "--lr", "0.01", "--clip-norm", "1", "--batch-size", "8"]
TRAIN += ["--tokens-per-sample", "30", "--cpu", "--seed", "1"]
TRAIN += ["--log-format", "simple", "--log-interval", "1", "--num-workers", "0"]


def run(command, *arguments, cwd=ROOT, stdin="", check=True, timeout=240):
    """Run a command of this environment; its standard output, errors and log together as `.stdout`."""
    if command.startswith("fairseq-"):
        command = [str(BIN / command)]
    else:
        command = [sys.executable, command if command == "-m" else str(ROOT / command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=timeout,
    )
    assert not check or result.returncode == 0, result.stdout[-6000:]
    return result


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
    run("scripts/prepare_text.py", *texts, "--dest", folder / "bin")
    return folder / "bin"


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Folder of a model after 40 updates; `log.txt` is what fairseq-train printed."""
    folder = tmp_path_factory.mktemp("trained")
    result = run("fairseq-train", data, *TASK, *TRAIN, "--max-update", 40, "--save-dir", folder)
    (folder / "log.txt").write_text(result.stdout, encoding="utf-8")
    return folder
