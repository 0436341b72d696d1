#!/usr/bin/env python3
"""Whole training updates as fairseq-train makes them, on CPU: what they take, what the processor needs for their
arithmetic at best, and where the rest goes.

    fairseq-hmrnn prepare ptb FOLDER_WITH_PTB_TXT
    python scripts/benchmark/training.py data/ptb ptb criterion.boundary_rates=.18,.04 --precision float32 bf16
    python scripts/benchmark/training.py data/ptb ptb_small --threads 1 --batch-size 8 64
    python scripts/benchmark/training.py data/ptb ptb criterion.boundary_rates=.18,.04 --against v0.1 --csv table.csv

Every candidate is a process of its own that runs the real command; they make a few updates in turns within one run,
the others waiting. Candidates: the recipe's hmlstm_lm; nn_lstm_lm, a language model over torch.nn.LSTM that carries its
state too, and fairseq's lstm_lm, both of as many parameters; with --against the recipe in an earlier state of this
project. Needed arithmetic: arithmetic.py, at the boundary rates measured during the very updates that are timed. The
limit is that arithmetic at the speed of the best large product of the same precision (peak.py; in bf16 that of float32
where it is faster), measured before and after the turns. New boundaries are not trained ones: the warm-up lets the
rates settle, or take a --checkpoint.
"""

import contextlib
import itertools
from pathlib import Path

import peak
import training_report as report
from candidates import HMLSTM, LSTMS, EarlierState, Recipe, check_settings, commit_named
from commands import ROOT, checking, environment
from contestants import Contestant

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.cli.recipe import RECIPES
from fairseq_hmrnn.data.folders import how_to_prepare
from fairseq_hmrnn.options import whole

WARM_UP, LSTM_WARM_UP = 40, 3  # updates
REFUSED = {
    "common.cpu": "this benchmark is of the CPU",
    "common.bf16": "give --precision",
    "common.fp16": "give --precision",
    "common.amp": "give --precision",
    "dataset.batch_size": "give --batch-size",
    "task.data": "give the folder as the first argument",
    "model._name": "the recipe's model is hmlstm_lm; --beside chooses others",
    "criterion._name": "the recipe's criterion measures the boundaries",
}
# Nothing but updates: no validation, no checkpoints, no end; batches are made when it is their candidate's turn.
OPTIONS = "common.cpu=true dataset.num_workers=0 dataset.data_buffer_size=0 dataset.disable_validation=true".split()
OPTIONS += "checkpoint.no_save=true optimization.max_epoch=0 optimization.max_update=0".split()


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.prepared_folder, help="prepared folder")
    parser.add_argument("recipe", choices=RECIPES, help="of fairseq_hmrnn/configs")
    parser.add_argument("settings", nargs="*", metavar="SECTION.NAME=VALUE", help="over those of the recipe")
    parser.add_argument("--precision", nargs="+", choices=peak.PRECISIONS, default=["float32"])
    parser.add_argument("--beside", nargs="*", choices=LSTMS, default=list(LSTMS), help="LSTMs to compare with")
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, nargs="+", help="default: the recipe's")
    parser.add_argument("--against", metavar="COMMIT", help="an earlier state of this project as a candidate more")
    parser.add_argument("--checkpoint", type=kinds.existing_file, help="weights of the recipe to start from")
    parser.add_argument("--warm-up", type=kinds.COUNT, help=f"updates before the turns; {WARM_UP}, with --checkpoint 3")
    parser.add_argument("--turns", type=kinds.COUNT, default=5, help="of each candidate; figures are medians over them")
    parser.add_argument("--updates", type=kinds.COUNT, default=4, help="of a turn")
    parser.add_argument("--profiled", type=whole(), default=2, help="updates that the breakdown is taken of; 0: none")
    parser.add_argument("--threads", type=kinds.THREADS, default=2)
    parser.add_argument(
        "--out", type=kinds.folder_to_write, default="runs/training", help="folder of logs and earlier states"
    )
    parser.add_argument("--csv", type=kinds.new_file, help="file of the figures, a line for each candidate")
    args = parser.parse_intermixed_args()
    args.data, args.out = Path(args.data), Path(args.out)
    with checking(parser):
        check(args)
    return args


def check(args):
    """ValueError for options that mean nothing, before anything runs; fills in defaults."""
    if not (args.data / "train.idx").is_file():
        raise ValueError(f"no train.idx in {args.data}: {how_to_prepare(str(args.data))}")
    check_settings(args.settings, REFUSED, OPTIONS)
    args.warm_up = args.warm_up if args.warm_up is not None else LSTM_WARM_UP if args.checkpoint else WARM_UP
    args.against = commit_named(args.against) if args.against else None


def start(args, running):
    """All contestants, each before its first update; `running` closes them."""
    candidates = [(HMLSTM, HMLSTM, ROOT)]
    if args.against:
        earlier = EarlierState.prepare(args.against, args.out / "states")
        candidates.append((f"{HMLSTM} @ {earlier.commit}", HMLSTM, earlier.root))
    candidates += [(model, model, ROOT) for model in args.beside]
    batches = args.batch_size or [Recipe(args.recipe).values["dataset"]["batch_size"]]
    found = []
    for batch, precision, (title, model, root) in itertools.product(batches, args.precision, candidates):
        folder = args.out / "logs" / f"{title.replace(' ', '')}.{precision}.{batch}"
        options = [*OPTIONS, f"dataset.batch_size={batch}", f"common.bf16={str(precision == 'bf16').lower()}"]
        recipe, lstm = Recipe(args.recipe, [*args.settings, *options]), None
        if model == HMLSTM:
            command = recipe.hmlstm_command(args.data, folder, root)
            if args.checkpoint:
                command.append(f"checkpoint.finetune_from_model={Path(args.checkpoint).resolve()}")
        else:
            lstm = recipe.lstm_sizes(model, found[0].model["parameters"], found[0].model["num_symbols"])
            command = recipe.lstm_command(model, lstm["hidden_size"], args.data, folder)
        label = ", ".join([title, *[precision] * (len(args.precision) > 1), *[f"B {batch}"] * (len(batches) > 1)])
        contestant = Contestant(title, label, precision, batch, command, folder, environment(root, args.threads), lstm)
        running.callback(contestant.close)
        found.append(contestant)
        found[0].wait_for_model()  # the LSTMs are made as large
    for contestant in found:
        contestant.wait_for_model()
    return found


def measure(args, contestants):
    """Warm-ups, then turns, then the breakdowns; returns the peaks {precision: GFLOP/s and how}."""
    surroundings = environment(threads=args.threads)
    peaks = [[peak.measure(precision, args.threads, surroundings) for precision in args.precision]]
    for contestant in contestants:
        contestant.make(LSTM_WARM_UP if contestant.lstm else args.warm_up)
    for _ in range(args.turns):
        for contestant in contestants:
            contestant.take_turn(args.updates)
    if args.profiled:
        for contestant in contestants:
            contestant.parts = contestant.make(args.profiled, profiled=True)["parts"]
    peaks.append([peak.measure(precision, args.threads, surroundings) for precision in args.precision])
    best = [max(pair, key=lambda found: found["gflops"]) for pair in zip(*peaks)]
    return dict(zip(args.precision, best))


def main():
    args = parse_args()
    with contextlib.ExitStack() as running:
        contestants = start(args, running)
        peaks = measure(args, contestants)
    report.print_all(args, contestants, peaks)
    if args.csv:
        report.write_csv(args.csv, contestants, peaks)


if __name__ == "__main__":
    run_command(main)
