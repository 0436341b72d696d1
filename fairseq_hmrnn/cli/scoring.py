"""The score of a test split after training, by fairseq's own commands in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import List

from fairseq import checkpoint_utils

from ..checkpoints import find_checkpoint, settings
from ..data.folders import matching
from .as_option import as_option
from .errors import UserError
from .recipe import PACKAGE

# What a language model's score is made of, by names for messages.
OF_LANGUAGE_MODEL = {
    "number of tokens": re.compile(r"Evaluated [0-9,]+ tokens"),
    "loss": re.compile(r"Loss \(base 2\): [^,\s]+"),
}
LOG_LIKELIHOOD = re.compile(r"\| log_likelihood (\S+)")
TEST_SPLITS = ("test.idx", "test.*.idx", "test.npz")  # of text, of two languages, of handwriting
# As -m runs a module, but nothing in the current folder, such as a fairseq.py, is taken for a package.
RUN_MODULE = (
    "import sys; sys.path = [folder for folder in sys.path if folder]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
# Variables by which fairseq knows that a launcher started it as one of several processes.
OF_SEVERAL_PROCESSES = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"}
# Options of tasks that belong to what was trained: of its output, its direction and the lengths of its sentences.
OF_TRAINING = {
    "hmlstm_language_modeling": ("output_dictionary_size",),
    "translation": ("source_lang", "target_lang", "max_source_positions", "max_target_positions", "truncate_source"),
}
OF_WINDOWS = ("tokens_per_sample", "sample_break_mode", "add_bos_token")


def score(task: str, data: str, save_dir: str, cpu: bool) -> None:
    """Print what the test split scores: bits per character for language modelling, BLEU for translation, the average
    log-likelihood of a line for handwriting. Says so where there is nothing to score, and leaves other tasks alone.

    Writes what fairseq printed to SAVE_DIR, eval.log or translations.txt. UserError where fairseq fails.
    """
    if task not in SCORES:
        return
    try:
        path = find_checkpoint(save_dir)  # the last one where nothing was validated
    except FileNotFoundError:
        print(f"{save_dir} has no checkpoint; done")
        return
    if not any(matching(data, pattern) for pattern in TEST_SPLITS):
        print(f"{data} has no test split; done")
        return
    common = [data, "--user-dir", str(PACKAGE), "--task", task, "--path", path, *_of_training(task, path)]
    common += ["--distributed-world-size", "1"]  # also where training had several processes
    SCORES[task]([*common, *(["--cpu"] if cpu else [])], data, save_dir)


def _of_training(task: str, path: str) -> List[str]:
    """The options OF_TRAINING of a checkpoint's task, as they were when it was trained; of a language model that does
    not carry its state over the test text, those of its windows too."""
    if task not in OF_TRAINING:
        return []
    state, names, found = checkpoint_utils.load_checkpoint_to_cpu(path), OF_TRAINING[task], []
    if task == "hmlstm_language_modeling" and any(name.startswith("decoder.hm_lstm.") for name in state["model"]):
        found += ["--stateful", "--tokens-per-sample", "1000"]
    elif task == "hmlstm_language_modeling":
        names += OF_WINDOWS
    trained = settings(state).task
    for name in names:
        found += as_option(name, getattr(trained, name, None))
    return found


def _score_language_model(common: List[str], data: str, save_dir: str) -> None:
    options = ["--gen-subset", "test"]
    log = os.path.join(save_dir, "eval.log")
    printed = _run("fairseq_cli.eval_lm", [*common, *options], log)
    print("\n".join(_last(pattern.findall(printed), what, log) for what, pattern in OF_LANGUAGE_MODEL.items()))


def _score_translation(common: List[str], data: str, save_dir: str) -> None:
    options = ["--gen-subset", "test", "--required-batch-size-multiple", "1", "--beam", "5", "--max-tokens", "4000"]
    # Which model is named does not matter here: pieces are joined the same way with any.
    models = matching(data, "spm.*.model")
    options += ["--bpe", "sentencepiece", "--sentencepiece-model", models[0]] if models else ["--post-process"]
    options += ["--scoring", "sacrebleu"]
    log = os.path.join(save_dir, "translations.txt")
    printed = _run("fairseq_cli.generate", [*common, *options], log)
    print(_last(printed.splitlines(), "BLEU", log))


def _score_handwriting(common: List[str], data: str, save_dir: str) -> None:
    options = ["--valid-subset", "test", "--batch-size", "16"]
    log = os.path.join(save_dir, "eval.log")
    nats = _last(LOG_LIKELIHOOD.findall(_run("fairseq_cli.validate", [*common, *options], log)), "log-likelihood", log)
    print(f"Evaluated the test split, average log-likelihood: {nats} nats a line")


SCORES = {
    "hmlstm_language_modeling": _score_language_model,
    "translation": _score_translation,
    "hmlstm_handwriting": _score_handwriting,
}


def _last(found: List[str], what: str, log: str) -> str:
    """The last of what was found in fairseq's output; UserError if there is none."""
    if not found:
        raise UserError(f"the test split was not scored: fairseq printed no {what}, see {log}")
    return found[-1]


def _run(module: str, arguments: List[str], log: str) -> str:
    """Run a command; returns its standard output and errors, which the file `log` keeps."""
    alone = {name: value for name, value in os.environ.items() if name not in OF_SEVERAL_PROCESSES}
    with open(log, "w+b") as file:
        command = [sys.executable, "-c", RUN_MODULE, module, *arguments]
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, env=alone)
        file.seek(0)
        printed = file.read().decode("utf-8", "replace")
    if code:
        raise UserError(f"the test split was not scored, see {log}: {(printed.splitlines() or ['no word'])[-1]}")
    return printed
