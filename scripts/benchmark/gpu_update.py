#!/usr/bin/env python3
"""Whole training updates as fairseq makes them, on a GPU: a recipe's HM-LSTM beside language models over torch.nn.LSTM
(cuDNN), one of as many units where all layers of the recipe have the same, and one of as many parameters.

    fairseq-hmrnn prepare ptb FOLDER_WITH_PTB_TXT
    python scripts/benchmark/gpu_update.py data/ptb --recipe ptb --precision bf16 float32

Each is a process of its own that runs the real command, with data, loss, optimizer and log; they make updates in turns,
the others waiting, and ratios are taken within a turn. A thread of fairseq's makes batches ahead, also for those who
wait. float32 is without TF32. Everything after -- are settings of the recipe, such as dataset.batch_size=128.
"""

import contextlib
import itertools
from pathlib import Path

from candidates import HMLSTM, Recipe, check_settings
from commands import checking, environment, parse_with_rest
from contestants import Contestant
from precision import FLOAT32
from turns import ratio

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.cli.recipe import RECIPES
from fairseq_hmrnn.models.config import parse_sizes

LSTM = "nn_lstm_lm"
PRECISIONS = {name: f"common.{name}=true" for name in ("bf16", "fp16")}
OPTIONS = "dataset.num_workers=0 dataset.disable_validation=true checkpoint.no_save=true".split()
OPTIONS += "optimization.max_epoch=0 optimization.max_update=0 optimization.stop_min_lr=-1".split()
REFUSED = dict.fromkeys(["common.amp", "common.bf16", "common.fp16"], "give --precision")
REFUSED["common.cpu"] = "give --cpu, or leave it out"


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.prepared_folder, help="prepared folder")
    parser.add_argument("--recipe", choices=RECIPES, default="ptb")
    parser.add_argument("--precision", nargs="+", choices=["float32", *PRECISIONS], default=["bf16", "float32"])
    parser.add_argument("--warm-up", type=kinds.COUNT, default=60, help="updates before the turns")
    parser.add_argument("--turns", type=kinds.COUNT, default=5, help="of each; figures are medians over them")
    parser.add_argument("--updates", type=kinds.COUNT, default=40, help="of a turn")
    parser.add_argument("--cpu", action="store_true", help="to try the script without a GPU")
    parser.add_argument("--out", type=kinds.folder_to_write, default="runs/gpu_update", help="folder of the logs")
    args, rest = parse_with_rest(parser)
    args.out = Path(args.out)
    with checking(parser):
        check_settings(rest, REFUSED, [*OPTIONS, *FLOAT32])
    return args, rest


def recipe_of(args, rest, precision) -> Recipe:
    of_precision = [*FLOAT32, *([PRECISIONS[precision]] if precision in PRECISIONS else [])]
    return Recipe(args.recipe, [*rest, *OPTIONS, *of_precision, f"common.cpu={str(args.cpu).lower()}"])


def start(args, title, precision, recipe, running, lstm=None) -> Contestant:
    """The recipe's HM-LSTM, or an LSTM of the sizes `lstm`; `running` closes it."""
    folder = args.out / f"{title}.{precision}".replace(" ", "-")
    if lstm:
        command = recipe.lstm_command(LSTM, lstm["hidden_size"], args.data, folder)
    else:
        command = recipe.hmlstm_command(args.data, folder)
    surroundings = environment(threads=1, NVIDIA_TF32_OVERRIDE="0")
    batch = recipe.values["dataset"]["batch_size"]
    found = Contestant(title, title, precision, batch, command, folder, surroundings, lstm)
    running.callback(found.close)
    return found


def lstm_sizes(recipe, model):
    """{title: sizes} of the LSTMs beside a recipe's model, as `training_worker.describe` tells of it."""
    equal = recipe.lstm_sizes(LSTM, model["parameters"], model["num_symbols"])
    found, sizes = {f"{LSTM}, equal parameters": equal}, parse_sizes(recipe.values["model"]["hidden_sizes"])
    if len(set(sizes)) == 1:
        found[f"{LSTM}, equal layers"] = {**equal, "hidden_size": sizes[0]}
    return found


def contestants(args, rest, running):
    """{precision: those of it}, HM-LSTM first, each before its first update. They get ready at once."""
    recipes = {precision: recipe_of(args, rest, precision) for precision in args.precision}
    found = {name: [start(args, HMLSTM, name, recipe, running)] for name, recipe in recipes.items()}
    for precision, recipe in recipes.items():
        found[precision][0].wait_for_model()
        for title, lstm in lstm_sizes(recipe, found[precision][0].model).items():
            found[precision].append(start(args, title, precision, recipe, running, lstm))
    for contestant in itertools.chain(*found.values()):
        contestant.wait_for_model()
    return found


def main():
    args, rest = parse_args()
    with contextlib.ExitStack() as running:
        by_precision = contestants(args, rest, running)
        everybody = list(itertools.chain(*by_precision.values()))
        for contestant in everybody:
            contestant.make(args.warm_up)
        for _ in range(args.turns):
            for contestant in everybody:
                contestant.take_turn(args.updates)
    print("| | precision | parameters | ms an update | symbols a second | time, HM-LSTM = 1 |")
    print("|---|---|---|---|---|---|")
    for precision, found in by_precision.items():
        for contestant in found:
            print(
                f"| {contestant.title} | {precision} | {contestant.model['parameters']:,} "
                f"| {1e3 * contestant.update_seconds:.2f} | {contestant.speed:,.0f} "
                f"| {ratio(contestant.seconds, found[0].seconds)} |"
            )


if __name__ == "__main__":
    run_command(main)
