#!/usr/bin/env python3
"""Long dependencies: recall a value after a gap of 50 to 2,000 steps of distractors, HM-LSTM against torch.nn.LSTM.

A sequence begins with a segment of key-value pairs, goes on with segments of distractors (words of random letters
between separators) until the gap is over, and ends with a query: one of the keys, whose value is to be predicted. Gaps
of training are drawn log-uniformly up to --train-gap; accuracy is measured at every gap of --gaps. Both models have
three layers of equal size and a forget bias of 1, see the same sequences in the same order, and get the same updates. A
row of the CSV is written when a run has ended; run again, the script goes on with the runs that have no row yet.
"""

import csv
import itertools
import logging
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.modules import HMLSTM, LayerOutput
from fairseq_hmrnn.options import LARGEST_SIZE, SEED, SIZE, whole

KEYS, VALUES, LETTERS = 8, 8, 8
SEPARATOR, QUERY = 0, 1
FIRST_KEY, FIRST_VALUE, FIRST_LETTER = 2, 2 + KEYS, 2 + KEYS + VALUES
SYMBOLS = 2 + KEYS + VALUES + LETTERS
TARGET_RATES = (0.2, 0.05)
MODELS = ("hm_lstm", "lstm")
SHORTEST_GAP = 5  # of training


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--out", default="recall.csv", type=kinds.new_file)
    parser.add_argument("--plot", type=kinds.new_file, help="draw the CSV as this PNG")
    parser.add_argument("--hidden", type=SIZE, default=64)
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[1, 2, 3])
    parser.add_argument("--updates", type=kinds.COUNT, default=1000)
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, default=32)
    parser.add_argument("--pairs", type=whole(1, KEYS), default=2, help="key-value pairs to keep in mind")
    parser.add_argument(
        "--train-gap", type=whole(SHORTEST_GAP, LARGEST_SIZE), default=200, help="longest gap of training"
    )
    parser.add_argument("--gaps", type=whole(1, LARGEST_SIZE), nargs="+", default=[50, 100, 200, 500, 1000, 2000])
    parser.add_argument(
        "--samples", type=kinds.BATCH_SIZE, default=256, help="sequences per gap to measure accuracy on"
    )
    parser.add_argument("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    return parser.parse_args()


def sequences(batch_size: int, pairs: int, gap: int, random: torch.Generator):
    """x (T, B) symbol indices, T = 2 pairs + 1 + gap + 2, and the value asked for at the last step, (B,) in [0, 8)."""

    def draw(high, *shape):
        return torch.randint(high, shape, generator=random)

    keys = torch.stack([torch.randperm(KEYS, generator=random)[:pairs] for _ in range(batch_size)], dim=1)
    values = draw(VALUES, pairs, batch_size)
    facts = torch.stack([keys + FIRST_KEY, values + FIRST_VALUE], dim=1).flatten(0, 1)
    separators = torch.full((1, batch_size), SEPARATOR)
    distractors = draw(LETTERS, gap, batch_size) + FIRST_LETTER
    distractors[torch.rand(gap, batch_size, generator=random) < TARGET_RATES[0]] = SEPARATOR
    asked = draw(pairs, 1, batch_size)
    query = torch.cat([torch.full((1, batch_size), QUERY), keys.gather(0, asked) + FIRST_KEY])
    return torch.cat([facts, separators, distractors, query]), values.gather(0, asked)[0]


class Model(nn.Module):
    """Embedding, three recurrent layers, and the value's logits after the last step."""

    def __init__(self, kind: str, hidden: int):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, hidden)
        self.hm_lstm = HMLSTM(hidden, [hidden] * 3, layer_norm=True) if kind == "hm_lstm" else None
        self.lstm = nn.LSTM(hidden, hidden, num_layers=3) if kind == "lstm" else None
        self.mix = LayerOutput([hidden] * 3, hidden) if kind == "hm_lstm" else nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, VALUES)
        if self.lstm is not None:  # the forget bias that HMLSTM starts with
            for layer in range(3):
                nn.init.constant_(getattr(self.lstm, f"bias_ih_l{layer}").detach()[hidden : 2 * hidden], 1.0)

    def forward(self, x):
        """x (T, B). Returns logits (B, VALUES) and the penalty on boundary rates."""
        if self.lstm is not None:
            output, _ = self.lstm(self.embed(x))
            return self.out(F.relu(self.mix(output[-1]))), 0.0
        output = self.hm_lstm(self.embed(x))
        rates = output.boundaries[..., :2].mean((0, 1))
        return self.out(self.mix([h[-1] for h in output.hidden])), (rates - rates.new_tensor(TARGET_RATES)).pow(2).sum()


def train(kind, seed, arguments):
    """A trained model and the mean training loss, in nats, of the last tenth of the updates."""
    torch.manual_seed(seed)
    model, random = Model(kind, arguments.hidden), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    losses = []
    for _ in tqdm(range(arguments.updates), desc=f"{kind} seed {seed}", mininterval=10):
        shortest, longest = math.log(SHORTEST_GAP), math.log(arguments.train_gap)
        gap = round(math.exp(shortest + (longest - shortest) * torch.rand(1, generator=random).item()))
        x, value = sequences(arguments.batch_size, arguments.pairs, gap, random)
        logits, penalty = model(x)
        loss = F.cross_entropy(logits, value)
        optimizer.zero_grad()
        (loss + penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), torch.tensor(losses[-max(1, len(losses) // 10) :]).mean().item()


@torch.no_grad()
def accuracies(model, arguments):
    """Share of values recalled after each gap, on the same sequences for every model."""
    found = []
    for gap in arguments.gaps:
        random = torch.Generator().manual_seed(gap)
        x, value = sequences(arguments.samples, arguments.pairs, gap, random)
        found.append(model(x)[0].argmax(1).eq(value).float().mean().item())
    return found


def plot(rows, gaps, path):
    """Accuracy over gap: every seed thin, their mean thick."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for kind, label, color in zip(MODELS, ("HM-LSTM", "nn.LSTM"), ("tab:blue", "tab:orange")):
        lines = torch.tensor([[float(row[f"gap{gap}"]) for gap in gaps] for row in rows if row["model"] == kind])
        for line in lines:
            axes.plot(gaps, line, color=color, alpha=0.35, linewidth=1)
        if len(lines):
            label = f"{label}, mean of {len(lines)}"
            axes.plot(gaps, lines.mean(0), color=color, linewidth=2.5, marker="o", label=label)
    axes.axhline(1 / VALUES, color="gray", linestyle=":", label="chance")
    axes.set(xscale="log", xlabel="gap between value and query, steps", ylabel="accuracy", ylim=(0, 1.03))
    axes.set_xticks(gaps, [f"{gap:,}" for gap in gaps])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.out = Path(arguments.out)
    settings = ["model", "seed", "hidden", "updates", "pairs", "train_gap"]
    columns = [*settings, "loss", "seconds", *(f"gap{gap}" for gap in arguments.gaps)]
    if not arguments.out.exists():
        csv.writer(arguments.out.open("w")).writerow(columns)
    rows = list(csv.DictReader(arguments.out.open()))
    if rows and list(rows[0]) != columns:
        raise UserError(f"{arguments.out} has other columns: give another --out")
    done = {tuple(row[key] for key in settings) for row in rows}
    for seed, kind in itertools.product(arguments.seeds, MODELS):
        row = [kind, seed, arguments.hidden, arguments.updates, arguments.pairs, arguments.train_gap]
        if tuple(map(str, row)) not in done:
            began = time.time()
            model, loss = train(kind, seed, arguments)
            row += [f"{loss:.4f}", f"{time.time() - began:.0f}", *(f"{a:.3f}" for a in accuracies(model, arguments))]
            with arguments.out.open("a") as file:
                csv.writer(file).writerow(row)
    print(arguments.out.read_text())
    if arguments.plot:
        plot(list(csv.DictReader(arguments.out.open())), arguments.gaps, arguments.plot)


if __name__ == "__main__":
    run_command(main)
