"""fairseq's commands as subprocesses, for the benchmarks that train with them."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from fairseq_hmrnn.cli.arguments import split_rest
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.recipe import with_folders, write_recipe

ROOT = Path(__file__).resolve().parents[2]
USER_DIR = ROOT / "fairseq_hmrnn"
FAIRSEQ_TRAIN = Path(__file__).resolve().parent / "fairseq_train.py"


def fairseq_command(name):
    """How to start one of fairseq's commands, such as fairseq-train, with this Python, also where it has no scripts;
    fairseq-train with a --bf16 of this machine. Or this package's, fairseq-hmrnn."""
    if name == "fairseq-hmrnn":
        return [sys.executable, "-m", "fairseq_hmrnn"]
    if name == "fairseq-train":
        return [sys.executable, str(FAIRSEQ_TRAIN)]
    if not name.startswith("fairseq-"):
        raise ValueError(f"{name} is none of fairseq's commands")
    module = name.replace("fairseq-", "fairseq_cli.").replace("-", "_")
    return [sys.executable, "-c", f"import sys; del sys.path[0]; from {module} import cli_main; cli_main()"]


def environment(root=ROOT, threads=None, **more):
    """That of this process, in which the package is taken from `root`, and torch computes with so many threads if they
    are given."""
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    if threads:
        more = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **more}
    return {**os.environ, "PYTHONPATH": path, **more}


def command(name, *arguments, log):
    """Run a command of this environment and return what it printed, which is appended to the file `log` as it comes, so
    that it is there after an interruption. The log's folder is made. If the command fails, so does the benchmark, with
    the reason that was printed."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a+b") as file:
        begin = file.seek(0, os.SEEK_END)
        code = subprocess.call(
            [*fairseq_command(name), *map(str, arguments)],
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        file.seek(begin)
        printed = file.read().decode()
    if code:
        raise UserError(f"{name} failed, see {log}: {reason(printed)}")
    return printed


def reason(printed):
    """The line of a command's output that says why it ended: the first error, for what follows may come of it."""
    lines = [line for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception): |Could not override |\S+: error: ", line)]
    return (errors or lines[-1:])[0]


def recipe_options(recipe, settings, data, folder, user_dir=USER_DIR):
    """Options of fairseq-hydra-train to train a recipe, as `load_recipe` reads it and `settle` leaves it with its
    settings, on prepared data, with checkpoints and log in `folder`. user_dir: the package that it is to load."""
    folder = Path(folder).resolve()
    placed = with_folders(recipe, str(Path(data).resolve()), str(folder), str(user_dir))
    write_recipe(placed, str(folder / "recipe" / "recipe.yaml"))
    return ["--config-dir", str(folder / "recipe"), "--config-name", "recipe", *settings]


def log_records(text, kind):
    """The numbers of a log's lines of one kind, "train_inner" or "valid", as fairseq-train and hydra write them with
    log-format json."""
    pattern = re.compile(rf"\b{kind}(?: \||\]\[INFO\] -) (\{{.*\}})$", re.MULTILINE)
    return [json.loads(found) for found in pattern.findall(text)]


def parameters_in(log):
    """How many parameters the model of fairseq-train's log has."""
    return int(re.search(r"num\. shared model params: ([0-9,]+)", log).group(1).replace(",", ""))


@contextlib.contextmanager
def checking(parser):
    """Within it a ValueError is an error of the parser's arguments."""
    try:
        yield
    except ValueError as error:
        parser.error(str(error))


def parse_with_rest(parser):
    """The arguments before --, parsed, and those after it."""
    own, rest = split_rest(sys.argv[1:])
    return parser.parse_args(own), rest
