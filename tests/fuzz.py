"""Random inputs to every command and option: what may come out is a result, or one line and exit code 2.

    python tests/fuzz.py --folder WORK --inputs 2000 --seed 1

WORK holds `bin`, a prepared text, `model`, a checkpoint trained on it, `train.log` of that, and `text.txt`; and of
handwriting `corpus`, `strokes`, which is prepared of it, and `writer`, a checkpoint trained on that. Each input runs in
a fork of this process, which has imported everything. Options are asked of the commands' own parsers, so that new ones
are tried too.
"""

import argparse
import importlib
import json
import logging
import os
import random
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LIMIT = 120  # seconds an input may take; hardly one takes two, but a machine may be busy
STREAMED = 10_000  # characters: so much output is that of an input without end
LARGEST_OUTPUT = 1 << 20  # bytes: endless output ends there, as on a full device
NOT_NUMBERS = ("nan", "inf", "-inf")
VALUES = [*NOT_NUMBERS, "-1", "0", "1", "2", "1.5", "1e30", "99999999999", str(10**30), "", "x", "1,,2", "\u00e9", "-"]
VALUES += ["\udcff", "/dev/zero", "/dev/null", "/dev/full", "{work}", "{work}/none", "{work}/fifo", "{work}/none/none"]
VALUES += ["{work}/data.bin", "a" * 5000, "${x}", "'\"$(ls)`;", "layer", "length", "lines", "{work}/out.png"]
STREAMS = ["text", "text", "text", "empty", "binary", "zero", "closed", "folder"]
OUTPUTS = ["file"] * 8 + ["closed", "full", "unread"]
# name -> arguments that work and are quick; None: so slow that only refusals are tried
COMMANDS = {
    "fairseq-hmrnn sample": ["{work}/model", "--length", "5"],
    "fairseq-hmrnn evaluate": ["{work}/model", "{work}/bin", "--dynamic", "--statistics", "2"],
    "fairseq-hmrnn segment": ["{work}/model"],
    "fairseq-hmrnn plot": ["{work}/model", "--out", "{work}/new.svg"],
    "fairseq-hmrnn export": ["{work}/model", "--out", "{work}/new.ts"],
    "fairseq-hmrnn average": ["{work}/model", "--last", "1", "--out", "{work}/new.pt"],
    "fairseq-hmrnn sample-handwriting": ["{work}/writer", "--out", "{work}/line.svg", "--steps", "9"],
    "fairseq-hmrnn plot-handwriting": ["{work}/writer", "--data", "{work}/strokes", "--out", "{work}/line.svg"],
    "fairseq-hmrnn prepare text": ["{work}/text.txt", "--dest", "{work}/prepared", "--overwrite"],
    "fairseq-hmrnn prepare synthetic": "--dest {work}/language --train-lines 2 --valid-lines 1 --overwrite".split(),
    "fairseq-hmrnn prepare ptb": ["{work}"],
    "fairseq-hmrnn prepare text8": ["{work}/text.txt"],
    "fairseq-hmrnn prepare enwik8": ["{work}/text.txt"],
    "fairseq-hmrnn prepare handwriting": ["{work}/corpus", "--dest", "{work}/written", "--overwrite"],
    "fairseq-hmrnn prepare translation": ["a", "b", "{work}", "--dest", "{work}/pairs"],
    "fairseq-hmrnn train": ["{work}/bin", "--dry-run", "--save-dir", "{work}/save"],
    "fairseq-hmrnn options": [],
    "fairseq-hmrnn path": [],
    "fairseq-hmrnn": ["path"],
    "scripts/benchmark/recurrence.py": "--layers 2 --hidden 4 --steps 2 --batch 1 --repeats 1 --threads 1".split(),
    "scripts/benchmark/curve.py": ["{work}/train.log"],
    "scripts/benchmark/signals.py": ["{work}/model/checkpoint_best.pt", "--text", "{work}/text.txt", "--gold", "lines"],
    "scripts/benchmark/handwriting.py": None,
    "scripts/benchmark/stability.py": None,
    "scripts/benchmark/long_memory.py": None,
    "scripts/benchmark/long_memory_why.py": None,
    "scripts/benchmark/past.py": None,
    "scripts/benchmark/timescales.py": None,
    "scripts/benchmark/collapse.py": None,
    "scripts/benchmark/generation.py": None,
    "scripts/benchmark/gpu.py": None,
    "scripts/benchmark/gpu_kernels.py": None,
    "scripts/benchmark/gpu_update.py": None,
    "scripts/benchmark/language_model.py": None,
    "scripts/benchmark/memory.py": None,
    "scripts/benchmark/peak.py": None,
    "scripts/benchmark/precision.py": None,
    "scripts/benchmark/ranks.py": None,
    "scripts/benchmark/training.py": None,
    "scripts/benchmark/translation.py": None,
}
TRAIN = "{work}/bin --user-dir {root}/fairseq_hmrnn --task hmlstm_language_modeling --arch hmlstm_lm --embed-dim 4 "
TRAIN += "--hidden-sizes 6,5,4 --output-dim 4 --criterion boundary_regularized_cross_entropy --boundary-rates .3,.1 "
TRAIN += "--lr-scheduler exact_reduce_lr_on_plateau --optimizer adam --lr 0.01 --batch-size 8 --tokens-per-sample 30 "
TRAIN += "--cpu --num-workers 0 --no-save --disable-validation --max-update 1 --log-format simple"


class Parsers(Exception):
    """Raised in place of reading arguments, with the parser."""


def start(command):
    """Run a command as its file or module would be run."""
    if command == "fairseq-train":
        from fairseq_hmrnn.cli.errors import report_in_fairseq_commands

        report_in_fairseq_commands()
        importlib.import_module("fairseq_cli.train").cli_main()
    elif command.startswith("fairseq-hmrnn"):
        from fairseq_hmrnn.cli.main import run

        run([*command.split()[1:], *sys.argv[1:]])
    elif command.endswith(".py"):
        sys.path.insert(0, str((ROOT / command).parent))
        runpy.run_path(str(ROOT / command), run_name="__main__")
    else:
        raise ValueError(f"what is {command}?")


def options_of(command):
    """(option, whether it takes a number) of those with a value."""
    from fairseq_hmrnn.cli.arguments import Parser
    from fairseq_hmrnn.options import Range

    if command == "fairseq-train":
        from fairseq_hmrnn.fairseq_hooks import registered_options
        from fairseq_hmrnn.options import allowed_of

        configs = [
            registered_options()[f"--{kind}"]
            for kind in (
                "task hmlstm_language_modeling",
                "arch hmlstm_lm",
                "criterion boundary_regularized_cross_entropy",
                "lr-scheduler exact_reduce_lr_on_plateau",
            )
        ]
        fields = {
            f.name: allowed_of(f)
            for c in configs
            for f in c.__dataclass_fields__.values()
            if f.type is not bool and f.metadata.get("help")
        }
        return [(f"--{name.replace('_', '-')}", isinstance(allowed, Range)) for name, allowed in fields.items()
                if name not in ("data", "pad_to_fixed_length", "pad_to_fixed_bsz")]  # fmt: skip
    found, parse = [], Parser.parse_known_args

    def collect(parser, arguments=None, namespace=None):
        for word in command.split()[1:]:
            parser = next(action for action in parser._actions if action.nargs == argparse.PARSER).choices[word]
        for action in parser._actions:
            if action.option_strings and action.nargs != 0:
                found.append((action.option_strings[-1], isinstance(action.type, Range) or action.type is float))
        raise Parsers

    Parser.parse_known_args, sys.argv = collect, [command, "path"]  # without any word there is only help
    try:
        start(command)
    except Parsers:
        return found
    finally:
        Parser.parse_known_args = parse
    raise AssertionError(f"{command} does not use the parser of the package")


def draw(choose, options, work):
    """One input: command, arguments, standard input and output, and whether it must be refused."""
    command = choose.choice(list(options))
    base, stdin, stdout = {**COMMANDS, "fairseq-train": TRAIN.split()}[command], "text", "file"
    arguments, refused = list(base or []), False
    numbers = [option for option, is_number in options[command] if is_number]
    if base is None:
        arguments += [choose.choice(numbers), choose.choice([*NOT_NUMBERS, "x", "", str(-(10**30))])]
        refused = True
    else:
        for _ in range(choose.choice([0, 1, 1, 1, 2, 3]) if options[command] else 0):
            option, is_number = choose.choice(options[command])
            value = choose.choice(VALUES)
            arguments += [f"{option}={value}"]
            refused = refused or (is_number and value in NOT_NUMBERS)
        if command != "fairseq-train":
            stdin, stdout = choose.choice(STREAMS), choose.choice(OUTPUTS)
            if base and choose.random() < 0.2:
                arguments[0] = choose.choice(VALUES)
    arguments = [argument.replace("{work}", str(work)).replace("{root}", str(ROOT)) for argument in arguments]
    return command, arguments, stdin, stdout, refused


def redirect(work, stdin, stdout):
    """Descriptors 0 to 2, and Python's streams over them as the interpreter makes them."""
    sources = {"text": work / "text.txt", "binary": work / "data.bin", "zero": "/dev/zero"}
    os.dup2(os.open(sources.get(stdin, os.devnull), os.O_RDONLY), 0)
    out = os.open(work / "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    elif stdout == "unread":
        reader, out = os.pipe()
        os.close(reader)
    os.dup2(out, 1)
    os.dup2(os.open(work / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)
    if stdin == "closed":
        os.close(0)
        sys.stdin = None
    if stdout == "closed":
        os.close(1)
        sys.stdout = None


def child(work, command, arguments, stdin, stdout):
    """Run it and end this process as the interpreter would."""
    signal.alarm(LIMIT)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_OUTPUT, LARGEST_OUTPUT))
    redirect(work, stdin, stdout)
    logging.getLogger().handlers.clear()  # of fairseq's commands, which this process has imported
    sys.argv, code = [command, *arguments], 0
    try:
        start(command)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = 120
    os._exit(code)


def attempt(work, command, arguments, stdin, stdout):
    """The exit code, negative for a signal, and what it wrote to standard error and output."""
    pid = os.fork()
    if pid == 0:
        child(work, command, arguments, stdin, stdout)
    status = os.waitpid(pid, 0)[1]
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    errors, output = ((work / name).read_bytes().decode("utf-8", "replace") for name in ("stderr", "stdout"))
    return code, errors, output


def problem_of(command, stdout, refused, code, errors, output):
    """The fault in how it ended; None if nothing is."""
    last = ([line for line in errors.replace("\r", "\n").splitlines() if line.strip()] or [""])[-1]
    if code == -signal.SIGALRM:
        return None if len(output) > STREAMED else f"not ended after {LIMIT} s"
    if "Traceback" in errors or "Exception ignored" in errors:
        return f"a traceback: {errors[-1200:]}"
    if code == 0:
        return "silent nonsense" if refused else None
    if code == -signal.SIGPIPE:
        return None if stdout == "unread" and "error" not in errors else "ended by the signal of a broken pipe"
    if code != 2 and not (code == 1 and command == "fairseq-train"):
        return f"exit code {code}: {last}"
    if ": error: " not in last or errors.count("error: ") != 1:
        return f"not one line: {errors[-500:]}"
    return None


def prepare(work):
    """Import what the commands import, make what the inputs name; the absolute folder."""
    for module in ("matplotlib.figure", "fairseq_cli.train", "fairseq_hmrnn.inference.loading", "sentencepiece"):
        importlib.import_module(module)
    work = Path(work).resolve()
    if not (work / "fifo").exists():
        os.mkfifo(work / "fifo")
    (work / "data.bin").write_bytes(bytes(range(256)))
    os.chdir(work)  # for what is written under names that inputs make up
    return work


def run_fuzz(work, inputs, seed):
    """Descriptions of all random inputs that ended wrongly."""
    choose, wrong = random.Random(seed), []
    options = {command: options_of(command) for command in [*COMMANDS, "fairseq-train"]}
    for number in range(inputs):
        *drawn, refused = draw(choose, options, work)
        if number % 100 == 0:
            print(f"input {number}", file=sys.stderr, flush=True)
        problem = problem_of(drawn[0], drawn[3], refused, *attempt(work, *drawn))
        if problem:
            wrong.append({"input": number, "problem": problem, "what": drawn})
            print(json.dumps(wrong[-1])[:1500], file=sys.stderr, flush=True)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", action="store_true", help="run those of standard input instead, print how they end")
    given, begun = parser.parse_args(), time.monotonic()
    folder = prepare(given.folder)
    if given.cases:
        print(json.dumps([attempt(folder, *case) for case in json.load(sys.stdin)]))
        sys.exit()
    failed = run_fuzz(folder, given.inputs, given.seed)
    print(f"{given.inputs} inputs in {time.monotonic() - begun:.0f} s, {len(failed)} ended wrongly")
    sys.exit(bool(failed))
