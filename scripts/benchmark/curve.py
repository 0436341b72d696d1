#!/usr/bin/env python3
"""A long training as CSV and picture: bits per character of the validation and training text over epochs and hours.

    python scripts/benchmark/curve.py checkpoints/ptb/train.log --seconds 0.9 --csv docs/ptb.csv --plot docs/ptb.png

LOG is what fairseq wrote in log-format simple, of a training that was interrupted as often as you like. Hours are
updates times the seconds of one update that were measured with nothing else running; without --seconds, those that the
log has. The picture leaves out what is more than half above the best validation: the first updates.
"""

import logging
import re
from pathlib import Path

from drawing import subplots
from results import write_rows

from fairseq_hmrnn.analysis.training import logged
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.options import number

LINE = re.compile(r"\b(train_inner|valid)(?:\]\[INFO\] -| \|) (.*)")
VALUE = logged("bpc|num_updates|wall")
COLORS = {"validation": "#1f6f8b", "training": "#b0b0b0"}
FIELDS = ("split", "update", "epoch", "hours", "bpc")
SHOWN = 1.5  # times the bits of the best validation, in the picture


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("log", type=kinds.existing_file, metavar="LOG")
    parser.add_argument(
        "--seconds", type=number(0, open_below=True), metavar="S", help="of an update (default: the log's)"
    )
    parser.add_argument("--csv", type=kinds.new_file, metavar="FILE")
    parser.add_argument("--plot", type=kinds.picture, metavar="FILE")
    return parser.parse_args()


def read(lines, seconds=None):
    """Rows of FIELDS, in order. An update that two lines report, since training was interrupted after it, is there
    once, as the later line has it. UserError for what is no such log."""
    rows, wall, lines = {}, 0.0, list(lines)
    totals = re.findall(r"epoch \d+: +\d+ / (\d+)", "\n".join(lines))
    if not totals:
        raise UserError("this is no log of a training in log-format simple, of one --log-interval at least")
    per_epoch = int(totals[0])
    for line in lines:
        found = LINE.search(line)
        values = {name: float(value) for name, value in VALUE.findall(found.group(2))} if found else {}
        if not {"bpc", "num_updates"} <= values.keys():
            continue
        wall = values.get("wall", wall)
        split = "validation" if found.group(1) == "valid" else "training"
        update = int(values["num_updates"])
        hours = update * seconds / 3600 if seconds else wall / 3600
        rows[split, update] = dict(zip(FIELDS, (split, update, update / per_epoch, hours, values["bpc"])))
    return [rows[key] for key in sorted(rows)]


def shown(rows):
    """The rows that are drawn."""
    best = min(row["bpc"] for row in rows if row["split"] == "validation")
    return [row for row in rows if row["bpc"] < SHOWN * best]


def plot(rows, path):
    figure, panels = subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    drawn = shown(rows)
    for axes, x in zip(panels, ("epoch", "hours")):
        for split in ("training", "validation"):
            line = [row for row in drawn if row["split"] == split]
            marker = "o" if split == "validation" else None
            values = [[row[name] for row in line] for name in (x, "bpc")]
            axes.plot(*values, color=COLORS[split], marker=marker, markersize=3, linewidth=1.6, label=split)
        axes.set_xlabel({"epoch": "epochs", "hours": "hours of training"}[x])
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("bits per character")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    args = parse_args()
    logging.disable(logging.INFO)  # fairseq turns all on, of all libraries
    rows = read(Path(args.log).read_text(encoding="utf-8").splitlines(), args.seconds)
    validations = [row for row in rows if row["split"] == "validation"]
    if not validations:
        raise UserError(f"{args.log} has no validation yet")
    best = min(validations, key=lambda row: row["bpc"])
    print("best validation: {bpc:.4f} after {update:,} updates, {epoch:.2f} epochs, {hours:.2f} hours".format(**best))
    if args.csv:
        shown = ({**row, "epoch": f"{row['epoch']:.3f}", "hours": f"{row['hours']:.3f}"} for row in rows)
        write_rows(args.csv, [FIELDS, *(row.values() for row in shown)])
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_command(main)
