#!/usr/bin/env python3
"""Train HM-LSTM under conditions that make plain straight-through gradients explode, and count what goes wrong.

Every run trains on CPython's documentation topics with state carried between windows, Adam 0.002 and gradient norm
clipped at 1, while the slope grows from 1 to 5. Each update draws the length of its window between 50 and --steps. A
row of the CSV is written when its run has ended, with `made`, the updates before a gradient was not finite; run again,
the script goes on with the runs that have no row yet.
"""

import itertools
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from results import read_rows, write_rows
from torch import nn
from tqdm import tqdm

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.data.embedded import embedded_text
from fairseq_hmrnn.models.slope import SlopeSchedule
from fairseq_hmrnn.modules import HMLSTM, LayerOutput
from fairseq_hmrnn.options import SEED, SIZE, whole

SETTINGS = ["hidden", "layer_norm", "steps", "seed", "detector_grad_scale", "updates", "batch_size"]
COLUMNS = [*SETTINGS, "made", "non_finite", "largest_norm", "median_norm", "bpc", "rate1", "rate2", "seconds"]
TARGET_RATES = (0.2, 0.05)


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--out", default="stability.csv", type=kinds.new_file)
    parser.add_argument("--hidden", type=SIZE, nargs="+", default=[64, 256, 512])
    parser.add_argument("--layer-norm", type=whole(0, 1), nargs="+", default=[1, 0])
    parser.add_argument("--steps", type=kinds.STEPS, nargs="+", default=[400], help="longest window")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[1, 2, 3])
    parser.add_argument("--detector-grad-scale", type=kinds.RATE, nargs="+", default=[0.0], help="1: exact gradients")
    parser.add_argument("--updates", type=kinds.COUNT, default=2000)
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, default=4)
    parser.add_argument("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    return parser.parse_args()


class Model(nn.Module):
    """A character language model of three equal layers."""

    def __init__(self, symbols: int, hidden: int, layer_norm: bool, detector_grad_scale: float):
        super().__init__()
        self.embed = nn.Embedding(symbols, 128)
        self.core = HMLSTM(128, [hidden] * 3, layer_norm, detector_grad_scale=detector_grad_scale)
        self.mix = LayerOutput([hidden] * 3, hidden)
        self.out = nn.Linear(hidden, symbols)

    def loss(self, x, y, state, slope):
        """Cross-entropy plus the penalty of the criterion; bits per character; mean rates; the state reached."""
        output = self.core(self.embed(x), state, slope=slope)
        nll = F.cross_entropy(self.out(self.mix(output.hidden)).flatten(0, 1), y.flatten())
        rates = output.boundaries[..., :2].mean((0, 1))
        penalty = (rates - rates.new_tensor(TARGET_RATES)).pow(2).sum()
        return nll + penalty, nll.item() / math.log(2), rates.tolist(), output.state.detach()


def streams(batch_size: int):
    """The text as (T, batch_size) parallel streams of symbol indices, and the number of symbols."""
    text = embedded_text()
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    symbols = torch.tensor([index[character] for character in text])
    length = len(symbols) // batch_size
    return symbols[: length * batch_size].view(batch_size, length).t().contiguous(), len(index)


def run(data, symbols, hidden, layer_norm, steps, seed, detector_grad_scale, updates):
    """The rest of a row, after its settings."""
    torch.manual_seed(seed)
    model = Model(symbols, hidden, bool(layer_norm), detector_grad_scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    slope = SlopeSchedule(1, 5, per_update=4 / updates)
    lengths = torch.randint(min(50, steps), steps + 1, (updates,)).tolist()
    norms, state, start, bpc, began = [], None, 0, float("nan"), time.time()
    name = f"H {hidden} {'LN' if layer_norm else '--'} T {steps} seed {seed} scale {detector_grad_scale:g}"
    for update, length in enumerate(tqdm(lengths, desc=name, mininterval=5)):
        if start + length + 1 > len(data):
            start, state = 0, None
        window = data[start : start + length + 1]
        start += length
        loss, bits, rates, state = model.loss(window[:-1], window[1:], state, slope(0, update))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        norms.append(norm)
        bpc = bits if math.isnan(bpc) else 0.98 * bpc + 0.02 * bits
        if not math.isfinite(norm):
            break  # the weights would be lost with the next step
        optimizer.step()
    finite = torch.tensor([n for n in norms if math.isfinite(n)] or [float("nan")])
    bad = len(norms) - int(finite.isfinite().sum())
    row = [
        len(norms) - bad,
        bad,
        f"{finite.max():.3g}",
        f"{finite.median():.3g}",
        f"{bpc:.3f}",
        *(f"{rate:.3f}" for rate in rates),
    ]
    return [*row, f"{time.time() - began:.0f}"]


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    data, symbols = streams(arguments.batch_size)
    if max(arguments.steps) >= len(data):
        raise UserError(f"a stream has {len(data)} symbols: give fewer --steps, or a smaller --batch-size")
    out = Path(arguments.out)
    done = {tuple(row[key] for key in SETTINGS) for row in read_rows(out, COLUMNS)}
    axes = (arguments.detector_grad_scale, arguments.seeds, arguments.hidden, arguments.steps, arguments.layer_norm)
    for scale, seed, hidden, steps, layer_norm in itertools.product(*axes):
        settings = [hidden, layer_norm, steps, seed, scale, arguments.updates, arguments.batch_size]
        if tuple(map(str, settings)) not in done:
            row = run(data, symbols, hidden, layer_norm, steps, seed, scale, arguments.updates)
            write_rows(out, [[*settings, *row]], "a")
    print(out.read_text())


if __name__ == "__main__":
    run_command(main)
