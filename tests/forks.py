"""A process that has imported what fairseq's commands import first, and becomes one command after the other in forks.

So a command needs no seconds to start. running.py starts it and writes requests to its standard input, one a line, in
JSON; it answers each with a line:

    {"start": [script or "-m module", arguments ...], "folder", "environment", "input", "output", "errors",
     "kill_after"}
        runs it with these files as standard input, output and error, and answers with its process id
    {"wait": process id}    answers with its exit code, as subprocess gives it: negative for a signal

A fork runs the command's own script as __main__. fairseq, which takes a second, is imported before too, but set aside:
a fork that imports it gets it as new, and logging is set up only then, by what the command has set up before. The
package, which adds to fairseq, is imported in the fork. All forks of one such process hash strings alike, so that
running.py has two of them.
"""

import atexit
import contextlib
import gc
import importlib.util
import json
import logging
import multiprocessing.process
import os
import random
import runpy
import signal
import sys
import tempfile
import threading
from pathlib import Path

HEAVY = ["torch.distributed.fsdp", "torch.multiprocessing", "numpy", "sklearn", "sacrebleu", "hydra.experimental"]
HEAVY += ["omegaconf", "regex", "bitarray", "tensorboardX"]


class SetAside:
    """Imports fairseq and takes it out of `sys.modules`; whoever imports it then finds all of it there again."""

    def __init__(self):
        self.of_logging = []  # what fairseq calls logging.basicConfig with, which does nothing if it was called before
        configure = logging.basicConfig
        logging.basicConfig = lambda **settings: self.of_logging.append(settings)
        try:
            importlib.import_module("fairseq")
        finally:
            logging.basicConfig = configure
        names = [name for name in sys.modules if name.partition(".")[0] == "fairseq"]
        self.modules = {name: sys.modules.pop(name) for name in names}
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self, is_package=True) if name == "fairseq" else None

    def create_module(self, spec):
        self.spec = self.modules[spec.name].__spec__
        return self.modules[spec.name]

    def exec_module(self, module):
        sys.meta_path.remove(self)
        module.__spec__ = self.spec
        for settings in self.of_logging:
            logging.basicConfig(**settings)
        sys.modules.update(self.modules)


class Kill(logging.Handler):
    """Ends this process without warning, up to 10 ms of its own processor time after an update, but not after two more,
    however fast the machine is."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def emit(self, record):
        self.left -= record.name == "train_inner"  # fairseq renames the logger for each line
        if self.left == 0 and record.name == "train_inner":
            signal.setitimer(signal.ITIMER_PROF, 0.001 + random.random() * 0.01)  # SIGPROF: ends it as SIGKILL does
        if self.left < -1:
            os.kill(os.getpid(), signal.SIGKILL)


def become(request):
    """Make this fork the process that the request describes; returns its script or module."""
    added = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for descriptor, file, mode in ((0, "input", os.O_RDONLY), (1, "output", added), (2, "errors", added)):
        opened = os.open(request[file], mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    command, *arguments = request["start"]
    sys.argv = [command, *arguments]
    sys.path[0] = os.getcwd() if command.startswith("-m ") else str(Path(command).parent)
    tempfile.tempdir, multiprocessing.process.ORIGINAL_DIR = None, os.getcwd()
    random.seed()
    sys.modules["numpy"].random.seed()
    if request["kill_after"]:
        logging.getLogger("fairseq.logging.progress_bar").addHandler(Kill(request["kill_after"]))
    return command


def serve():
    """Answer requests until there are no more, or, in a fork, return what it is to run."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitpid(request["wait"], 0)[1]
            answer = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        else:
            answer = os.fork()
            if not answer:
                requests.close(), answers.close()
                return become(request)
        print(answer, file=answers, flush=True)
    return None


def finish(command):
    """Run the script or module as __main__ and end, without what the interpreter does last: freeing every object, which
    a fork would have to copy first, takes longer than most commands. What fails only there shows in the tests that
    start processes of their own (test_cli.py, test_commands.py, test_packaging.py)."""
    code = 0
    try:
        if command.startswith("-m "):
            runpy.run_module(command[3:], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    SetAside()
    gc.freeze()  # a collection in a fork would copy what it looks at
    command = serve()
    if command:
        finish(command)
