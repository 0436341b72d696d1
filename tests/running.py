"""Ways to run the real commands."""

import atexit
import contextlib
import functools
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE = 900  # seconds until what takes a second or ten is taken to hang: a machine may be very busy
# Variables that are read when a process starts or imports a library.
AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TORCH_", "TRITON_", "CUDA_", "OMP_", "MKL_", "KMP_", "OPENBLAS_")
# Set by scikit-learn in whatever imports it, now or later; forks.py has imported it.
SET_BY_LIBRARIES = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}


def environment(**changes):
    """The variables of a command: this process's, but for one thread and the package of this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


class Forks:
    """The process of forks.py, which starts commands. Ends with the tests, or when a command hangs.

    variables: of its environment, beside those of this process.
    """

    def __init__(self, **variables):
        self.variables = variables
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, str(ROOT / "tests" / "forks.py")]
        self.environment = environment(**variables)
        self.process = subprocess.Popen(
            command, env=self.environment, start_new_session=True, encoding="utf-8", **pipes
        )
        atexit.register(self.end)

    def start(self, command, output, folder=ROOT, stdin=os.devnull, kill_after=0, errors=None):
        """Start a command, a list. `output`: the file that what it prints is added to, but for its errors and log if
        they have a file `errors`."""
        wanted = environment(**self.variables)
        differs = {name for name in {*wanted, *self.environment} if wanted.get(name) != self.environment.get(name)}
        differs -= SET_BY_LIBRARIES
        assert not any(name.startswith(AT_START) for name in differs), f"set too late for a fork: {differs}"
        files = {"input": str(stdin), "output": str(output), "folder": str(folder)}
        files["errors"] = str(errors or output)
        return Fork(self, self.ask({"start": command, "environment": wanted, "kill_after": kill_after, **files}))

    def ask(self, request, timeout=PATIENCE):
        """The answer to a request, a number."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.end()
            raise subprocess.TimeoutExpired(str(request), timeout)
        answer = self.process.stdout.readline()
        if not answer:
            self.end()
            raise RuntimeError(f"the process of forks.py ended with {self.process.wait()}")
        return int(answer)

    def end(self):
        """End the process and all that it has started."""
        two_forks.cache_clear()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Fork(NamedTuple):
    """A command that a process of forks.py has started."""

    forks: Forks
    process: int

    def wait(self, timeout=PATIENCE):
        """Its exit code."""
        return self.forks.ask({"wait": self.process}, timeout)


@functools.lru_cache(maxsize=2)
def two_forks(on_gpu):
    """Two processes in turn, which hash strings differently, as those of one training do; started when first used.
    Unless on_gpu, commands see no GPU."""
    variables = {} if on_gpu else NO_GPU
    return itertools.cycle([Forks(**variables), Forks(**variables)])


# fairseq makes a tensor on a GPU that it sees in each of several processes, whatever --cpu says.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ON_CPU = {"--cpu", "common.cpu=true"}
# Set by `scripts/gpu_check.sh check`: fairseq's commands run on the GPU where tests ask for the CPU. Processes that
# train together stay there, for each requires a GPU of its own.
ON_GPU = os.environ.get("FAIRSEQ_HMRNN_TEST_ON_GPU", "") not in ("", "0")


def start(command, arguments, output, **options):
    """Start a command of this environment, whether the package is installed or not, "-m module", or a script of this
    repository. options: as of Forks.start."""
    on_gpu = ON_GPU and "--distributed-world-size" not in arguments
    if on_gpu:
        arguments = [argument for argument in arguments if str(argument) not in ON_CPU]
    name = "-m fairseq_hmrnn" if command == "fairseq-hmrnn" else command
    name = name if name.startswith("-m ") else str((ROOT if "/" in name else BIN) / name)
    return next(two_forks(on_gpu)).start([name, *map(str, arguments)], output, **options)


def run(command, *arguments, cwd=ROOT, stdin="", check=True, timeout=PATIENCE):
    """Run a command of this environment; its standard output, errors and log together as `.stdout`.

    command: one of fairseq's, "fairseq-hmrnn", "-m module" or a script of this repository, a fork of a process that has
    imported their libraries; "-m" or "-c" alone: a new process of Python.
    """
    if command in ("-m", "-c"):
        python = [sys.executable, command, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        result = subprocess.run(
            python, cwd=cwd, env=environment(), input=stdin, encoding="utf-8", timeout=timeout, **pipes
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            given, output = Path(folder) / "input", Path(folder) / "output"
            given.write_text(stdin, encoding="utf-8")  # a file, not a pipe: the command need not read, nor live so long
            code = start(command, arguments, output, folder=cwd, stdin=given).wait(timeout)
            result = subprocess.CompletedProcess([command, *arguments], code, output.read_text(encoding="utf-8"))
    assert not check or result.returncode == 0, result.stdout[-6000:]
    return result


def run_groups(groups, kill_after=(), refused=False):
    """Run groups of commands one after the other, the commands of a group at once.

    groups: lists of (command, arguments, log file).
    kill_after: for each group the number of updates after which its commands are killed; 0 or none: never.
    refused: whether every command must fail, where otherwise none may.
    Returns how many commands were killed.
    """
    killed = 0
    for index, group in enumerate(groups):
        kill = kill_after[index] if kill_after else 0
        started = [start(*command, kill_after=kill) for command in group]
        for fork, (_, _, log) in zip(started, group):
            code = fork.wait()
            if kill and code < 0:
                killed += 1
            else:
                assert (code != 0) == refused, Path(log).read_text(encoding="utf-8")[-4000:]
    return killed


def script(name, *arguments, check=True, root=ROOT, **variables):
    """Output of one of scripts/*.sh. root: of a repository. variables: of its environment."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = ["bash", str(root / "scripts" / name), *map(str, arguments)]
    variables = environment(PATH=path, **variables)
    result = subprocess.run(command, cwd=ROOT, env=variables, timeout=PATIENCE, encoding="utf-8", **pipes)
    assert (result.returncode == 0) == check, result.stdout[-4000:]
    return result.stdout


# Sends what follows -m to `forked_python` and takes over what came of it; anything else is for Python itself.
FORKED_PYTHON = """#!/bin/sh
[ "$1" = -m ] || exec {python} "$@"
printf '%s\\0' "$PWD" "$@" > {folder}/asked && read code < {folder}/answered
cat {folder}/output && cat {folder}/errors >&2
exit "$code"
"""


@contextlib.contextmanager
def forked_python(folder):
    """A stand-in for Python in this folder, for scripts that start several processes: each `-m module` is a fork of one
    that has imported the libraries, with the variables of this process. It takes one call at a time."""
    path, asked = folder / "python", folder / "asked"
    path.write_text(FORKED_PYTHON.format(python=sys.executable, folder=folder), encoding="utf-8")
    path.chmod(0o755)
    for pipe in (asked, folder / "answered"):
        os.mkfifo(pipe)

    def answer():
        while True:
            place, *call = asked.read_text(encoding="utf-8").split("\0")[:-1] or [""]
            if not place:
                return
            files = {name: folder / name for name in ("output", "errors")}
            for file in files.values():
                file.write_bytes(b"")
            try:
                code = start(f"-m {call[1]}", call[2:], folder=place, **files).wait()
            except Exception as error:  # which the script must not wait for
                files["errors"].write_text(f"{error!r}\n", encoding="utf-8")
                code = 1
            (folder / "answered").write_text(f"{code}\n", encoding="utf-8")

    answering = threading.Thread(target=answer, daemon=True)  # which does not outlive the tests, whatever it waits for
    answering.start()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # of a pipe that nobody reads any more, as after a test that has failed
            os.close(os.open(asked, os.O_WRONLY | os.O_NONBLOCK))
        answering.join(timeout=10)


def rank_options(folder, count=2):
    """The options of each of `count` processes that train together, and meet at a new file in this folder: a port that
    is free now may not be when they begin."""
    meeting = f"file://{folder}/meeting-{uuid.uuid4().hex}"
    common = ["--distributed-world-size", count, "--distributed-no-spawn", "--distributed-backend", "gloo"]
    common += ["--distributed-init-method", meeting, "--ddp-backend", "legacy_ddp"]
    return [[*common, "--distributed-rank", rank] for rank in range(count)]
