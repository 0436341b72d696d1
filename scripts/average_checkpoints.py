#!/usr/bin/env python3
"""The mean of several checkpoints' weights as one checkpoint for scoring and generation, without the optimizer.

    python scripts/average_checkpoints.py checkpoints/ptb --last 5 --out checkpoints/ptb/averaged.pt
    python scripts/average_checkpoints.py checkpoints/ptb/checkpoint_best.pt --half --out best16.pt
    python scripts/average_checkpoints.py checkpoints/ptb/checkpoint_last.pt --ema --out checkpoints/ptb/ema.pt

Averaging the last checkpoints of a training often predicts better than any of them. Keep some with
--keep-interval-updates 5 (checkpoint.keep_interval_updates=5 in a recipe). A training with --store-ema keeps a moving
average in every checkpoint, which --ema takes in place of the weights.
"""

import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from fairseq import checkpoint_utils  # noqa: E402

from fairseq_hmrnn.checkpoints import check_finite  # noqa: E402
from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import UserError, run_command  # noqa: E402
from fairseq_hmrnn.cli.files import write_whole  # noqa: E402
from fairseq_hmrnn.options import whole  # noqa: E402

KEPT = ("args", "cfg", "criterion", "optimizer_history", "task_state")


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("checkpoints", type=kinds.path, nargs="+", help="checkpoints, or one folder of a training")
    parser.add_argument(
        "--last", type=whole(1), help="of a folder, so many of its newest checkpoint_E_U.pt (default: 5)"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of --store-ema in place of the weights")
    parser.add_argument("--half", action="store_true", help="write weights as float16, half the size")
    parser.add_argument("--out", type=kinds.new_file, required=True, help="file to write")
    args = parser.parse_args()
    args.checkpoints = [Path(name) for name in args.checkpoints]
    args.folder = args.checkpoints[0] if len(args.checkpoints) == 1 and args.checkpoints[0].is_dir() else None
    if args.last is None:
        args.last = 5
    elif args.folder is None:
        parser.error("--last chooses from one folder: give the folder alone, or leave --last out")
    return args


def newest(folder, count):
    """The `count` newest checkpoints of updates in a folder, by their number of updates."""
    numbered = []
    for path in folder.glob("checkpoint_*_*.pt"):
        match = re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name)
        if match:
            numbered.append((int(match.group(1)), path))
    if not numbered:
        raise UserError(
            f"no checkpoint_EPOCH_UPDATE.pt in {folder}: train with --save-interval-updates and "
            "--keep-interval-updates, or name checkpoints one by one"
        )
    if len(numbered) < count:
        print(f"average_checkpoints: {folder} has {len(numbered)} of the last {count} checkpoints asked for")
    return [path for _, path in sorted(numbered)[-count:]]


def weights_of(checkpoint, path, ema):
    """Names and tensors of its model, or of the moving average beside it, in the precision that was kept."""
    if not ema:
        return checkpoint["model"]
    extra = checkpoint["extra_state"]
    if "ema" not in extra:
        raise UserError(f"{path} has no moving average: train with --store-ema, or leave --ema out")
    averaged = extra.get("ema_fp32_params", extra["ema"])
    return {key: averaged[key] if t.is_floating_point() else t for key, t in checkpoint["model"].items()}


def average(paths, ema):
    """The last checkpoint with the mean of all checkpoints' floating-point weights, without optimizer and position.
    ema: of their moving averages."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"no such file: {path}")
    sums = {}
    for path in paths:
        checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        model = weights_of(checkpoint, path, ema)
        check_finite(str(path), model)
        if sums and {k: v.shape for k, v in model.items()} != {k: v.shape for k, v in sums.items()}:
            raise UserError(f"{path} is of another model than {paths[0]}")
        for key, tensor in model.items():
            floating = tensor.is_floating_point()
            sums[key] = tensor.double() + sums.get(key, 0) if floating else tensor
    mean = {key: (sums[key] / len(paths)).to(t.dtype) if t.is_floating_point() else t for key, t in model.items()}
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    position = {"epoch": checkpoint["extra_state"]["train_iterator"]["epoch"], "iterations_in_epoch": 0}  # fairseq asks
    return {**kept, "model": mean, "last_optimizer_state": None, "extra_state": {"train_iterator": position}}


def main():
    args = parse_args()
    paths = newest(args.folder, args.last) if args.folder else args.checkpoints
    try:
        checkpoint = average(paths, args.ema)
    except KeyError as error:
        raise UserError(f"not a fairseq checkpoint ({error})") from error
    if args.half:
        halved = {key: t.half() if t.is_floating_point() else t for key, t in checkpoint["model"].items()}
        checkpoint["model"] = halved
    written = io.BytesIO()  # torch's own writer ends the process where a device is full
    torch.save(checkpoint, written)
    write_whole(args.out, written.getbuffer())
    print(f"{args.out}: the mean of {', '.join(path.name for path in paths)}")


if __name__ == "__main__":
    run_command(main)
