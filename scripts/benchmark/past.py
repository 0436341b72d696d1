#!/usr/bin/env python3
"""Who uses the longer past? Bits per character of language models whose state is put back to zeros every 30, 100, ...
10,000 characters of a prepared text.

    python scripts/benchmark/past.py data/ptb checkpoints/ptb runs/language_model/nn_lstm_lm.1 --csv past.csv

Models: HM-LSTM (`hmlstm_lm`) and the `nn_lstm_lm` of this folder; of each kind the mean and the range are printed and,
with --plot, drawn. Every model scores the same characters at every interval, each after the character before it, so
that only the state is lost. What a model gains from one interval to the next is what it takes from that much longer a
past.
"""

from __future__ import annotations

import logging
import math
import statistics

import nn_lstm_lm  # noqa: F401  registers the model
import torch
import torch.nn.functional as F
from drawing import subplots
from results import write_rows
from torch import Tensor

from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.data.indexed import count_symbols
from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.inference.dynamic_evaluation import TextWindows

STEPS = 1000  # of a call of a model
SYMBOLS = 16_000  # of a call, over all rows


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    add = parser.add_argument
    add("data", metavar="DATA", type=kinds.prepared_folder, help="the prepared folder")
    add("checkpoints", metavar="CHECKPOINT", nargs="+", type=kinds.path, help="a checkpoint, or a folder with one")
    add("--subset", metavar="SPLIT", default="valid", type=kinds.path, help="split to score (default %(default)s)")
    add("--intervals", metavar="N", nargs="+", type=kinds.STEPS, default=[30, 100, 300, 1000, 3000, 10000])
    add("--first", metavar="N", type=kinds.COUNT, help="score the first N symbols of the split alone")
    add("--csv", metavar="FILE", type=kinds.new_file, help="write the table here too")
    add("--plot", metavar="FILE", type=kinds.picture, help="draw it")
    add("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    return parser.parse_args()


def load(path, data):
    """The decoder of a checkpoint, in evaluation, and its dictionaries."""
    found = loading.load([path], data)
    decoder = found.models[0].decoder.eval()
    if not hasattr(decoder, "hm_lstm") and not hasattr(decoder, "lstm"):
        raise UserError(f"{path} is neither an hmlstm_lm nor an nn_lstm_lm: it has no state to put back")
    return decoder, found.src_dict, found.tgt_dict


@torch.no_grad()
def bits_with_resets(decoder, sources: Tensor, targets: Tensor, interval: int) -> float:
    """Bits a symbol of targets (T,), each predicted after its source (T,), with a state of zeros at every
    `interval`-th of them."""
    length = -(-len(sources) // interval) * interval  # what is added after the end has no part in the sum
    filler, rows = decoder.dictionary.pad(), length // interval
    x, y = (F.pad(text, (0, length - len(text)), value=filler).view(rows, interval) for text in (sources, targets))
    nats = 0.0
    for some in torch.arange(rows).split(max(1, SYMBOLS // min(interval, STEPS))):
        state = None
        for source, target in zip(x[some].split(STEPS, dim=1), y[some].split(STEPS, dim=1)):
            logits, extra = decoder(source, state=state)
            state = extra["state"]
            log_probs = decoder.get_normalized_probs((logits, extra), log_probs=True).flatten(0, 1)
            nats += F.nll_loss(log_probs, target.flatten(), ignore_index=filler, reduction="sum").item()
    return nats / len(targets) / math.log(2)


def scores(path, args):
    """A checkpoint's kind of model, and its bits a symbol by interval."""
    decoder, *dictionaries = load(path, args.data)
    windows = TextWindows(args.data, args.subset, *dictionaries, STEPS, first=args.first)
    sources, targets = (torch.cat(parts, dim=1)[0] for parts in zip(*windows))
    kind = "HM-LSTM" if hasattr(decoder, "hm_lstm") else "nn.LSTM"
    return kind, [bits_with_resets(decoder, sources, targets, interval) for interval in args.intervals]


def plot(by_kind, intervals, path):
    """Bits over the distance between resets: the mean of every kind of model, from the best to the worst."""
    figure, axes = subplots(figsize=(5.2, 3.4), layout="constrained")
    for color, (kind, columns) in zip(LAYER_COLORS, by_kind.items()):
        bits = torch.tensor(columns)
        mean = bits.mean(0)
        bars = torch.stack([mean - bits.amin(0), bits.amax(0) - mean]).clamp(min=0)
        axes.errorbar(intervals, mean, yerr=bars, color=color, marker="o", capsize=3, label=f"{kind} ({len(bits)})")
    axes.set(xscale="log", xlabel="characters from one reset of the state to the next", ylabel="bits per character")
    axes.set_xticks(intervals, [f"{interval:,}" for interval in intervals])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    total = count_symbols(f"{args.data}/{args.subset}")
    scored = min(total, args.first or total)
    if max(args.intervals) > scored:
        raise UserError(f"{args.subset} has {scored} symbols to score: give --intervals of at most as many")
    found = [scores(path, args) for path in args.checkpoints]
    table = [["reset every", *args.checkpoints]]
    by_interval = zip(*(bits for _, bits in found))
    table += [[interval, *(f"{bits:.4f}" for bits in row)] for interval, row in zip(args.intervals, by_interval)]
    if args.csv:
        write_rows(args.csv, table)
    print(f"{scored} symbols of {args.subset}, bits per symbol")
    for row in table:
        print(" | ".join(map(str, row)))
    by_kind = {kind: [bits for of, bits in found if of == kind] for kind, _ in found}
    for kind, columns in by_kind.items():
        of_kind = (f"{statistics.mean(bits):.3f} ({min(bits):.3f} - {max(bits):.3f})" for bits in zip(*columns))
        print(f"{kind}, {len(columns)} model" + "s" * (len(columns) > 1), *of_kind, sep=" | ")
    if args.plot:
        plot(by_kind, args.intervals, args.plot)


if __name__ == "__main__":
    run_command(main)
