"""Characters per second of fairseq-generate and of `fairseq-hmrnn sample`, for HM-LSTM and for fairseq's lstm_lm.

    python scripts/benchmark/generation.py

Both models have the same layers and sizes and one update of training; the HM-LSTM's detector biases are then set so
that its boundary rates on its own samples are those asked for. All four take turns within one process, so that a busy
machine slows all of them; ratios are taken within a turn. fairseq-generate's figure is the one it logs itself, less the
prompt's characters, that of sample what --timing prints: neither counts loading. `model` is the time a step spends in
the decoder, the rest of fairseq-generate's step is fairseq's own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from calibration import set_rate
from fairseq.models.lstm import LSTMDecoder
from fairseq_cli import generate, train
from results import NOTE, claim
from turns import ratio

from fairseq_hmrnn import checkpoints
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.main import run
from fairseq_hmrnn.cli.recipe import PACKAGE
from fairseq_hmrnn.data.binarize import TextSource, prepare
from fairseq_hmrnn.data.embedded import embedded_text
from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.inference.sampler import SamplingOptions
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.options import SEED, SIZE, whole

MODELS = ("hmlstm_lm", "lstm_lm")
PROMPT = 8  # characters
BEGUN, CALIBRATED = "begun", "calibrated"  # files in a folder whose models this script makes, or has made
PLUGIN = ["--user-dir", str(PACKAGE), "--task", "hmlstm_language_modeling", "--cpu"]
PLUGIN += ["--num-workers", "0"]


@contextlib.contextmanager
def quietly():
    """Sends everything printed and logged meanwhile into the string buffer that this yields."""
    said = io.StringIO()
    logging.disable(logging.NOTSET)  # sample turns it off
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("fairseq_cli.generate")
    logger.addHandler(handler)
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = []
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            yield said
    finally:
        logger.removeHandler(handler)
        root.handlers[:] = before


def call(function, *arguments):
    """Run a command in this process; what it said on standard error and in the log of fairseq-generate."""
    with quietly() as said, mock.patch.object(sys, "argv", ["command", *map(str, arguments)]):
        function()
    return said.getvalue()


def to_be_made(folder: Path) -> bool:
    """Whether data and models are to be made: in a new or empty folder, and in one where this script was interrupted.

    Any other folder is taken as it is: UserError where it lacks what is measured.
    """
    if (folder / BEGUN).exists() and not (folder / CALIBRATED).exists():
        return True
    if not folder.exists() or all(path.stem == Path(NOTE).stem for path in folder.iterdir()):
        return True
    for path in (folder / "data", folder / "test.txt", *(checkpoint_of(folder, name) for name in MODELS)):
        if not path.exists():
            raise UserError(f"there is no {path}, and {folder} was not begun by this script: give another --folder")
    return False


def make(args, folder: Path) -> None:
    """Data and calibrated checkpoints, from the start: fairseq-train would go on from a calibrated one."""
    (folder / BEGUN).touch()
    for name in MODELS:
        shutil.rmtree(folder / name, ignore_errors=True)
    prepare_data(folder, args.batch)
    make_checkpoints(args, folder)
    calibrate(args, checkpoint_of(folder, "hmlstm_lm"))
    (folder / CALIBRATED).touch()


def checkpoint_of(folder: Path, name: str) -> Path:
    return folder / name / "checkpoint_last.pt"


def prepare_data(folder: Path, batches) -> None:
    text = embedded_text()
    (folder / "train.txt").write_text(text[:200_000], encoding="utf-8")
    (folder / "test.txt").write_text(text[200_000 : 200_000 + PROMPT * max(batches)].replace("\n", " "), "utf-8")
    with quietly():
        files = {"train": "train", "valid": "test", "test": "test"}
        sources = {split: TextSource.from_file(str(folder / f"{name}.txt")) for split, name in files.items()}
        prepare(sources, str(folder / "data"), {})


def settings_of(args) -> dict:
    """What data and checkpoints depend on."""
    names = ("layers", "hidden", "normalization", "rates", "seed")
    return {**{f"--{name}": getattr(args, name) for name in names}, "a largest --batch of": max(args.batch)}


def make_checkpoints(args, folder: Path) -> None:
    """One update of training for both."""
    sizes = ",".join([str(args.hidden)] * args.layers)
    options = {
        "hmlstm_lm": ["--hidden-sizes", sizes, "--embed-dim", 128, "--output-dim", args.hidden]
        + ["--normalization", args.normalization],
        "lstm_lm": ["--decoder-embed-dim", 128, "--decoder-hidden-size", args.hidden]
        + ["--decoder-layers", args.layers, "--decoder-out-embed-dim", args.hidden],
    }
    for name in MODELS:
        training = [folder / "data", *PLUGIN, "--arch", name, *options[name], "--optimizer", "adam", "--lr", 1e-5]
        training += ["--batch-size", 2, "--tokens-per-sample", 20, "--max-target-positions", 10**6]
        training += ["--max-update", 1, "--disable-validation"]
        training += ["--criterion", "cross_entropy", "--no-save-optimizer-state", "--save-dir", folder / name]
        call(train.cli_main, *training, "--seed", args.seed)


def calibrate(args, path: Path) -> list:
    """Set the detector biases of a checkpoint; returns the rates on text that the model samples."""
    model = loading.load([str(path)])
    lstm = model.models[0].decoder.hm_lstm
    with torch.no_grad():
        for layer, rate in enumerate(args.rates[: lstm.num_detectors]):
            set_rate(lstm.bias[layer], rate, lambda layer=layer: rates(model)[layer], halvings=12)
    state = torch.load(path, map_location="cpu")
    state["model"] = model.models[0].state_dict()
    torch.save(state, path)
    return rates(model)


def rates(model) -> list:
    steps = model.sampler(SamplingOptions(seed=1)).run([[model.begin]] * 32)
    found = torch.tensor([next(steps).boundaries for _ in range(60)])
    return found.mean((0, 1)).tolist()


class Clock:
    """Time and calls inside the decoders."""

    def __init__(self):
        self.seconds = self.calls = 0

    def wrap(self, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.calls += 1
            return result

        return timed


def run_generate(args, folder: Path, name: str, batch: int):
    """(new characters per second, microseconds of a step in the decoder and outside) of fairseq-generate."""
    block = len((folder / "test.txt").read_text("utf-8")) // batch
    options = [folder / "data", *PLUGIN, "--path", checkpoint_of(folder, name), "--gen-subset", "test"]
    options += ["--tokens-per-sample", block, "--batch-size", batch, "--prefix-size", PROMPT, "--sampling", "--beam", 1]
    options += ["--max-len-b", args.length, "--seed", 1, "--no-progress-bar"]
    clock = Clock()
    with mock.patch.object(HMLSTMDecoder, "forward", clock.wrap(HMLSTMDecoder.forward)):
        with mock.patch.object(LSTMDecoder, "forward", clock.wrap(LSTMDecoder.forward)):
            said = call(generate.cli_main, *options)
    tokens = int(re.search(r"\(([\d,]+) tokens\)", said).group(1).replace(",", ""))
    assert tokens == batch * (args.length + PROMPT), tokens
    speed = float(re.search(r"([\d.]+) tokens/s", said).group(1))
    inside = 1e6 * clock.seconds / clock.calls
    return new_symbols_a_second(speed, args.length), inside, 1e6 * batch / speed - inside


def new_symbols_a_second(tokens_a_second: float, length: int) -> float:
    """From fairseq-generate's figure, in which a prompt counts as generated: as `sample` counts."""
    return tokens_a_second * length / (length + PROMPT)


def run_sample(args, folder: Path, name: str, batch: int):
    """Characters per second of `sample`."""
    options = [checkpoint_of(folder, name), "--prompt", "x" * PROMPT]
    options += ["--length", int(args.sample_length / batch**0.5)]
    options += ["--samples", batch, "--batch-size", batch, "--seed", 1, "--timing"]
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stderr(said), mock.patch.object(sys, "stdout", stdout):
        run(["sample", *map(str, options)])
    return float(re.search(r"([\d.]+) symbols/s", said.getvalue()).group(1))


def measure(args, folder: Path):
    """Per batch size, command and model the figures of every turn."""
    results = {}
    for turn in range(args.turns + 1):
        for batch in args.batch:
            for name in MODELS:
                figures = run_generate(args, folder, name, batch)
                speed = run_sample(args, folder, name, batch)
                if turn:  # the first one warms up
                    results.setdefault((batch, "fairseq-generate", name), []).append(figures)
                    results.setdefault((batch, "sample", name), []).append((speed,))
    return results


def report(results) -> None:
    print("| B | command | model | characters/s | ratio to lstm_lm in fairseq-generate | model, us | fairseq, us |")
    print("|---|---|---|---|---|---|---|")
    for (batch, command, name), turns in results.items():
        baseline = results[batch, "fairseq-generate", "lstm_lm"]
        found = ratio(*([figures[0] for figures in some] for some in (turns, baseline)))
        columns = [statistics.median(column) for column in zip(*turns)]
        inside = " | ".join(f"{value:.0f}" for value in columns[1:]) or " | "
        print(f"| {batch} | {command} | {name} | {columns[0]:.0f} | {found} | {inside} |")


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--layers", type=whole(2, 100), default=3)
    parser.add_argument("--hidden", type=SIZE, default=512)
    parser.add_argument("--normalization", choices=["layer", "none"], default="layer")
    parser.add_argument(
        "--rates", type=kinds.RATE, nargs="+", default=[0.2, 0.05], help="boundary rates, bottom to top"
    )
    parser.add_argument("--batch", type=whole(1, 1024), nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--length", type=kinds.STEPS, default=200, help="characters that fairseq-generate generates per sample"
    )
    parser.add_argument(
        "--sample-length",
        type=kinds.STEPS,
        default=2000,
        help="characters per sample of sample at B 1, at B by the square root of B fewer",
    )
    parser.add_argument("--turns", type=kinds.COUNT, default=3)
    parser.add_argument("--threads", type=kinds.THREADS, default=2)
    parser.add_argument("--seed", type=SEED, default=1)
    parser.add_argument(
        "--folder",
        type=kinds.folder_to_write,
        help="keep data and checkpoints here, and use those there if they are of these settings",
    )
    args = parser.parse_args()
    if any(max(args.batch) % batch for batch in args.batch):  # the prompts are pieces of one text
        parser.error(f"--batch: give sizes that divide the largest, {max(args.batch)}")
    torch.set_num_threads(args.threads)
    with contextlib.ExitStack() as stack:
        folder = Path(args.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        making = to_be_made(folder)
        claim(folder, settings_of(args), "--folder")
        if making:
            make(args, folder)
        path = checkpoint_of(folder, "hmlstm_lm")
        checkpoints.check_checkpoint(str(path))
        found = ", ".join(f"{rate:.3f}" for rate in rates(loading.load([str(path)])))
        print(f"torch {torch.__version__}, {args.threads} threads, boundary rates on samples: {found}")
        report(measure(args, folder))


if __name__ == "__main__":
    run_command(main)
