"""Make one checkpoint of the mean of several checkpoints' weights, for scoring and generation.

    fairseq-hmrnn average checkpoints/ptb --last 5 --out checkpoints/ptb/averaged.pt
    fairseq-hmrnn average checkpoints/ptb/checkpoint_best.pt --half --out best16.pt
    fairseq-hmrnn average checkpoints/ptb/checkpoint_last.pt --ema --out checkpoints/ptb/ema.pt

Averaging the last checkpoints of a training often predicts better than any of them. Keep some with
--keep-interval-updates 5 (checkpoint.keep_interval_updates=5 in a recipe). A training with --store-ema keeps a moving
average in every checkpoint, which --ema takes in place of the weights. The optimizer is left out.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch

from ..inference.averaging import average, newest
from ..options import whole
from .arguments import Parser, new_file, path
from .errors import UserError
from .files import write_whole

DEFAULT_LAST = 5


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", type=path, nargs="+", help="checkpoints, or one folder of a training"
    )
    parser.add_argument(
        "--last",
        type=whole(1),
        metavar="N",
        help=f"of a folder, so many of its newest checkpoint_E_U.pt (default {DEFAULT_LAST})",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of --store-ema in place of the weights")
    parser.add_argument("--half", action="store_true", help="write weights as float16, half the size")
    parser.add_argument("--out", metavar="FILE", type=new_file, required=True, help="file to write")


def run(args: argparse.Namespace) -> None:
    paths = [Path(name) for name in args.checkpoints]
    if len(paths) == 1 and paths[0].is_dir():
        folder, count = paths[0], args.last or DEFAULT_LAST
        paths = newest(folder, count)
        if len(paths) < count:
            print(f"average: {folder} has {len(paths)} of the last {count} checkpoints asked for")
    elif args.last is not None:
        raise UserError("--last chooses from one folder: give the folder alone, or leave --last out")
    written = io.BytesIO()  # torch's own writer ends the process where a device is full
    torch.save(average(paths, args.ema, args.half), written)
    write_whole(args.out, written.getbuffer())
    what = "moving averages of" if args.ema else "the mean of"
    print(f"{args.out}: {what} {', '.join(path.name for path in paths)}")
