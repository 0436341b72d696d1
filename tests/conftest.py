"""A small text, the model that the real commands train on it, and ways to run commands."""

import importlib
import json
import logging
import os
import random
import subprocess
import sys
import uuid
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


PATIENCE = 900  # seconds until what takes a second or ten is taken to hang: a machine may be very busy


def run(command, *arguments, cwd=ROOT, stdin="", check=True, timeout=PATIENCE):
    """Run a command of this environment; its standard output, errors and log together as `.stdout`."""
    if command == "fairseq-hmrnn":  # as the installed command does, whether it is installed or not
        command = [sys.executable, "-m", "fairseq_hmrnn"]
    elif command.startswith("fairseq-"):
        command = [str(BIN / command)]
    else:
        command = [sys.executable, command if command in ("-m", "-c") else str(ROOT / command)]
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


def script(name, *arguments, check=True):
    """Output of one of scripts/*.sh."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        timeout=PATIENCE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert (result.returncode == 0) == check, result.stdout[-4000:]
    return result.stdout


COMMANDS = {"run", "run_forked", "script", "subprocess"}  # what starts them
MADE_BY_COMMANDS = {"data", "trained"}  # fixtures
QUICK_FILES = {"test_documents.py", "test_layering.py", "test_options.py"}  # beside those in the folders of tests/


def pytest_collection_modifyitems(items):
    """Mark as quick the tests of the package's parts that start no commands and are not marked slow or thorough."""
    for item in items:
        path = Path(item.fspath)
        is_quick = path.parent != ROOT / "tests" or path.name in QUICK_FILES
        commands = COMMANDS & {*item.function.__code__.co_names} or MADE_BY_COMMANDS & {*item.fixturenames}
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


FORKS = """
import importlib, json, logging, os, random, signal, sys, traceback
jobs, refused = json.loads(sys.stdin.read())
modules = {name: importlib.import_module("fairseq_cli." + name) for group in jobs for name, *_ in group}

class Kill(logging.Handler):
    # Ends this process without warning, up to 10 ms of its own processor time after an update, but not after two more,
    # however fast the machine is.
    def __init__(self, after):
        super().__init__()
        self.left = after

    def emit(self, record):
        self.left -= record.name == "train_inner"  # fairseq renames the logger for each line
        if self.left == 0 and record.name == "train_inner":
            signal.setitimer(signal.ITIMER_PROF, 0.001 + random.random() * 0.01)  # SIGPROF: ends it as SIGKILL does
        if self.left < -1:
            os.kill(os.getpid(), signal.SIGKILL)

def start(name, arguments, log, kill_at):
    child = os.fork()
    if child:
        return child
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1), os.dup2(stream, 2)
    sys.argv = ["fairseq-" + name, *arguments]
    random.seed()
    if kill_at:
        logging.getLogger("fairseq.logging.progress_bar").addHandler(Kill(kill_at))
    code = 1
    try:
        modules[name].cli_main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

def finish(child, kill_at):
    status = os.waitpid(child, 0)[1]
    if kill_at and os.WIFSIGNALED(status):
        print("killed")
        return 0
    return status

for group in jobs:
    children = [start(*job) for job in group]
    for child, (_, _, log, kill_at) in zip(children, group):
        if (finish(child, kill_at) != 0) != refused:
            print(open(log).read()[-4000:])
            sys.exit(1)
"""


def run_forked(groups, kill_at=(), refused=False):
    """Run fairseq commands in forks of one process that has imported fairseq, which saves their start-up.

    groups: lists of (command, arguments, log file), run one group after the other, the commands of a group at once.
    kill_at: for each group the number of updates after which its commands are killed; 0 or none: never.
    refused: whether every command must fail, where otherwise none may.
    Returns what the process printed: "killed" for every command that was.
    """
    jobs = []
    for index, group in enumerate(groups):
        kill = kill_at[index] if kill_at else 0
        jobs.append(
            [
                (name[len("fairseq-") :].replace("-", "_"), list(map(str, arguments)), str(log), kill)
                for name, arguments, log in group
            ]
        )
    return run("-c", FORKS, stdin=json.dumps((jobs, refused)), timeout=4 * PATIENCE).stdout


def rank_options(folder, count=2):
    """The options of each of `count` processes that train together, and meet at a new file in this folder: a port that
    is free now may not be when they begin."""
    meeting = f"file://{folder}/meeting-{uuid.uuid4().hex}"
    common = ["--distributed-world-size", count, "--distributed-no-spawn", "--distributed-backend", "gloo"]
    common += ["--distributed-init-method", meeting, "--ddp-backend", "legacy_ddp"]
    return [[*common, "--distributed-rank", rank] for rank in range(count)]


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
