#!/usr/bin/env python3
"""Short trainings in every precision that fairseq has: each must reach the loss of float32, and go on where it stopped.

    python scripts/benchmark/precision.py data/ptb                    # on a GPU
    python scripts/benchmark/precision.py data/ptb --cpu --updates 40 # amp is float32 there

Every precision is trained once from begin to end, and once with an interruption in the middle. Prints a table: the
mean training loss in bits of the last tenth of the updates, with and without interruption, how far it is from
float32's, words per second. Exit status 1 if one is further away than --tolerance. With --jobs several train at once,
which says nothing about speed. Everything after -- are settings of the recipe, such as dataset.batch_size=8.
"""

import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from commands import command, log_records, parse_with_rest, recipe_options

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.recipe import RECIPES, load_recipe
from fairseq_hmrnn.cli.settings import settle
from fairseq_hmrnn.options import WEIGHT, whole

FLOAT32 = "common.bf16=false common.fp16=false common.memory_efficient_fp16=false common.amp=false".split()
PRECISIONS = {  # beside FLOAT32, for a recipe may have a precision of its own
    "float32": [],
    "fp16": ["common.fp16=true", "common.fp16_no_flatten_grads=true"],
    "memory-efficient fp16": ["common.fp16=true", "common.memory_efficient_fp16=true"],
    "amp": ["common.amp=true"],
    "bf16": ["common.bf16=true", "common.fp16_no_flatten_grads=true"],
}


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.prepared_folder, help="prepared folder")
    parser.add_argument("--recipe", default="ptb_small", choices=RECIPES)
    parser.add_argument("--updates", type=whole(2), default=200)
    parser.add_argument("--tolerance", type=WEIGHT, default=0.05, help="bits")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--jobs", type=kinds.COUNT, default=1, help="precisions that are trained at once")
    parser.add_argument(
        "--out", type=kinds.folder_to_write, default="runs/precision", help="folder of checkpoints and logs"
    )
    return parse_with_rest(parser)


def train(args, settings, folder, updates):
    """The log of a training up to so many updates in all."""
    given = ["common.log_format=json", "common.log_interval=1", "dataset.disable_validation=true"]
    given += [f"common.cpu={str(args.cpu).lower()}", *FLOAT32]
    given += [f"optimization.max_update={updates}", "optimization.max_epoch=0"]
    given += ["common.fp16_init_scale=4"] if args.cpu else []  # fairseq requires CUDA where the scaled loss overflows
    recipe = load_recipe(args.recipe)
    options = recipe_options(recipe, settle(recipe, [*given, *settings]), args.data, folder)
    return command("fairseq-hydra-train", *options, log=folder / "train.log")


def last_loss(records, updates):
    count = max(1, updates // 10)
    found = {int(record["num_updates"]): float(record["loss"]) for record in records}
    return statistics.mean(found[update] for update in range(updates - count + 1, updates + 1))


def measure(args, rest, name, settings):
    """Loss of an unbroken training, of an interrupted one, and words per second."""
    folder = args.out / name.replace(" ", "-")
    whole = log_records(train(args, [*settings, *rest], folder / "whole", args.updates), "train_inner")
    train(args, [*settings, *rest], folder / "parts", args.updates // 2)
    parts = log_records(train(args, [*settings, *rest], folder / "parts", args.updates), "train_inner")
    if int(parts[0]["num_updates"]) != args.updates // 2 + 1:
        raise UserError(f"{name}: the second half did not go on from the first")
    speed = statistics.median(float(record["wps"]) for record in whole[len(whole) // 2 :])
    return last_loss(whole, args.updates), last_loss(parts, args.updates), speed


def main():
    args, rest = parse_args()
    args.out = Path(args.out)
    if args.out.exists():
        raise UserError(f"{args.out} exists: remove it, or give another --out")
    print("| | loss | interrupted | worst difference | words per second |\n|---|---|---|---|---|")
    expected, failed = math.nan, []
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {name: pool.submit(measure, args, rest, name, settings) for name, settings in PRECISIONS.items()}
        try:
            for name, found in waiting.items():
                try:
                    whole, parts, speed = found.result()
                except UserError as error:  # the others are of use all the same
                    failed.append(name)
                    print(f"| {name} | {error} |", flush=True)
                    continue
                expected = whole if name == "float32" else expected
                difference = max(abs(whole - expected), abs(parts - expected))
                failed += [] if difference <= args.tolerance else [name]  # NaN fails
                print(f"| {name} | {whole:.3f} | {parts:.3f} | {difference:.3f} | {speed:.0f} |", flush=True)
        finally:
            for found in waiting.values():  # where an error has left some unread, the rest does not begin
                found.cancel()
    if failed:
        sys.exit(f"failed, or further than {args.tolerance} bits from float32: {', '.join(failed)}")
    print(f"every precision is within {args.tolerance} bits of float32")


if __name__ == "__main__":
    run_command(main)
