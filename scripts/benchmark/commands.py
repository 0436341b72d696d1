"""fairseq's commands as subprocesses, for the benchmarks that train with them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fairseq_hmrnn.cli.errors import UserError  # noqa: E402
from fairseq_hmrnn.cli.recipe import write_recipe  # noqa: E402

BIN = Path(sys.executable).parent
USER_DIR = ROOT / "fairseq_hmrnn"


def command(name, *arguments, log):
    """Run a command of this environment and return what it printed, which is appended to the file `log` as it comes, so
    that it is there after an interruption. If it fails, so does the benchmark, with the reason that was printed."""
    with open(log, "a+b") as file:
        begin = file.seek(0, os.SEEK_END)
        code = subprocess.call(
            [str(BIN / name), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        file.seek(begin)
        printed = file.read().decode()
    if code:
        raise UserError(f"{name} failed, see {log}: {last_line(printed)}")
    return printed


def last_line(printed):
    """The last line in which a command that failed names an error, else its last."""
    lines = [line for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in reversed(lines) if re.search(r"(Error|Exception|\berror)\b.*:", line)), lines[-1])


def recipe_options(recipe, data, folder):
    """Options of fairseq-hydra-train to train a recipe on prepared data, with checkpoints and log in `folder`."""
    folder = Path(folder).resolve()
    write_recipe(recipe, str(Path(data).resolve()), str(folder), str(folder / "recipe"))
    return ["--config-dir", folder / "recipe", "--config-name", recipe]


def log_records(text, kind):
    """The numbers of a log's lines of one kind, "train_inner" or "valid", as fairseq-train and hydra write them with
    log-format json."""
    pattern = re.compile(rf"\b{kind}(?: \||\]\[INFO\] -) (\{{.*\}})$", re.MULTILINE)
    return [json.loads(found) for found in pattern.findall(text)]


def parse_with_rest(parser):
    """The arguments before --, parsed, and those after it."""
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:split]), arguments[split + 1 :]
