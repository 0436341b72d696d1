#!/usr/bin/env python3
"""Why an HM-LSTM forgets, or does not: what happens to a value of the task recall within a gap, while training goes on.

    python scripts/benchmark/long_memory_why.py --contestants hm_lstm hm_lstm_cost --out why.csv --plot why.png

Every --every updates, and after the last one, the model reads facts, a gap of --gap distractors and a query. A row of
the CSV then has
- right: the share of right answers, and what it is if the detector of layer 1, of layer 2, or of both is held shut
  within the gap: what a boundary there does to the memory;
- z1, z2: the rates of boundaries within the gap;
- layer1_10, ... layer3_2000: how far the value can be read from each layer's h so many steps into the gap, by a linear
  map that is fitted on one half of the samples and measured on the other.
Run again, the script goes on with the trainings that have no rows yet.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from drawing import subplots
from long_memory import SHORTEST_GAP, training
from long_memory_models import CONTESTANTS, LAYERS, Model
from long_memory_tasks import KINDS, build_task
from results import read_rows, write_rows
from torch import Tensor
from tqdm import tqdm

from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.options import LARGEST_SIZE, SEED, SIZE, number, whole

FACTS = 3  # steps before the gap, with one pair: key, value, separator
SHUT = {"": (), "_shut1": (0,), "_shut2": (1,), "_shut12": (0, 1)}
PROBED = (10, 100, 500, 2000, 10000)  # steps into the gap
RIDGE = 0.3
SETTINGS = ("contestant", "seed", "hidden", "updates", "every", "batch_size", "lr", "train_gap", "gap", "samples")
SHARED = SETTINGS[2:]  # by all runs of a call


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    add = parser.add_argument
    hm_lstms = [name for name, known in CONTESTANTS.items() if known.kind == "hm_lstm"]
    add("--contestants", choices=hm_lstms, nargs="+", default=["hm_lstm"])
    add("--out", default="long_memory_why.csv", type=kinds.new_file)
    add("--plot", type=kinds.picture)
    add("--seeds", type=SEED, nargs="+", default=[1, 2, 3])
    add("--hidden", type=SIZE, default=32)
    add("--updates", type=kinds.COUNT, default=1500)
    add("--every", type=kinds.COUNT, default=250, help="updates from one look to the next")
    add("--batch-size", type=kinds.BATCH_SIZE, default=16)
    add("--lr", type=number(0, 1, open_below=True), default=0.002)
    add("--train-gap", type=whole(SHORTEST_GAP, LARGEST_SIZE), default=200, help="longest gap of training")
    add("--gap", type=kinds.STEPS, default=2000, help="of the looks")
    add("--samples", type=whole(8, 2**16), default=128)
    add("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    return parser.parse_args()


def stops_of(gap):
    """Steps into a gap after which states are read."""
    return [stop for stop in PROBED if stop < gap] + [gap]


def columns_of(arguments):
    """Of the CSV."""
    states = [f"layer{layer}_{stop}" for stop in stops_of(arguments.gap) for layer in range(1, LAYERS + 1)]
    rates = [f"z{layer}" for layer in range(1, LAYERS)]
    return [*SETTINGS, "update", "loss", *(f"right{name}" for name in SHUT), *rates, *states]


@contextlib.contextmanager
def shut(recurrence, layers):
    """Within this context the detectors of these layers find no boundary."""
    before = [recurrence.bias[layer].detach().clone() for layer in layers]
    for layer in layers:
        recurrence.bias[layer].detach()[-1] = -1e6
    try:
        yield
    finally:
        for layer, bias in zip(layers, before):
            recurrence.bias[layer].detach().copy_(bias)


def readable(h: Tensor, answers: Tensor) -> float:
    """The share of answers (B,) that a linear map of h (B, H) gives, fitted on the first half, on the second."""
    half = len(h) // 2
    x = F.pad(h, (0, 1), value=1.0)
    gram = x[:half].t() @ x[:half] + RIDGE * torch.eye(x.size(1))
    weights = torch.linalg.solve(gram, x[:half].t() @ F.one_hot(answers[:half], KINDS).float())
    return (x[half:] @ weights).argmax(1).eq(answers[half:]).float().mean().item()


@torch.no_grad()
def read(model, task, arguments, layers=()):
    """Right answers with these layers' detectors shut in the gap, rates there, and what can be read by layer and step
    into the gap."""
    batch = task.draw(arguments.samples, arguments.gap, torch.Generator().manual_seed(arguments.gap), True)
    inputs, answers = batch.inputs, batch.answers[0]
    stops = stops_of(arguments.gap)
    state = model.read(inputs[:FACTS]).state
    boundaries, found = torch.zeros(LAYERS - 1), {}
    with shut(model.recurrence, layers):
        for start, stop in zip([0, *stops], stops):
            output = model.read(inputs[FACTS + start : FACTS + stop], state)
            state, boundaries = output.state, boundaries + output.boundaries[..., : LAYERS - 1].sum((0, 1))
            found.update({f"layer{i}_{stop}": readable(h, answers) for i, h in enumerate(state.h, 1)})
    output = model.read(inputs[FACTS + arguments.gap :], state)
    right = task.right(model.out(model.mix([h[-1:] for h in output.hidden])), batch.answers)
    return right, boundaries / (arguments.gap * arguments.samples), found


def look(model, task, arguments):
    """One row's figures."""
    right, rates, found = read(model, task, arguments)
    row = {"right": right}
    row.update({f"right{name}": read(model, task, arguments, layers)[0] for name, layers in SHUT.items() if layers})
    row.update({f"z{layer}": rate.item() for layer, rate in enumerate(rates, 1)})
    return {name: round(value, 4) for name, value in {**row, **found}.items()}


def rows_of(contestant, seed, arguments):
    """The rows of one training."""
    task = build_task("recall")
    torch.manual_seed(seed)
    model = Model(CONTESTANTS[contestant], task, arguments.hidden, arguments.train_gap)
    title, losses = f"{contestant}, seed {seed}", training(model, task, seed, arguments)
    losses = tqdm(losses, title, arguments.updates, mininterval=10)
    for update, loss in enumerate(losses, 1):
        if update % arguments.every == 0 or update == arguments.updates:
            yield {"update": update, "loss": round(loss, 4), **look(model, task, arguments)}


def plot(rows, path):
    """How far the value can be read from each layer over the gap, at the last look at every training."""
    last = {(row["contestant"], row["seed"]): row for row in rows}
    size = {"figsize": (3.4 * len(last), 3), "layout": "constrained", "squeeze": False, "sharey": True}
    figure, (panels,) = subplots(1, len(last), **size)
    for axes, ((contestant, seed), row) in zip(panels, last.items()):
        for layer, color in zip(range(1, LAYERS + 1), LAYER_COLORS):
            found = {int(name.split("_")[1]): row[name] for name in row if name.startswith(f"layer{layer}_")}
            axes.plot(list(found), list(map(float, found.values())), color=color, marker="o", label=f"layer {layer}")
        axes.axhline(1 / KINDS, color="gray", linestyle=":")
        title = f"{CONTESTANTS[contestant].label}, seed {seed}\nanswers {float(row['right']):.2f}"
        axes.set_title(f"{title}, boundaries in the gap {float(row['z1']):.3f}, {float(row['z2']):.3f}", fontsize=8)
        axes.set(xscale="log", xlabel="steps into the gap", ylim=(0, 1.03))
    panels[0].set_ylabel("value read from h")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    columns = columns_of(arguments)
    done = {tuple(row[key] for key in SETTINGS) for row in read_rows(out, columns)}
    for contestant, seed in itertools.product(arguments.contestants, arguments.seeds):
        own = {"contestant": contestant, "seed": seed}
        settings = {key: {**vars(arguments), **own}[key] for key in SETTINGS}
        if tuple(map(str, settings.values())) not in done:
            found = ({**settings, **row} for row in rows_of(contestant, seed, arguments))
            write_rows(out, [[row[column] for column in columns] for row in found], "a")
    rows = read_rows(out, columns)
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.plot:
        plot([row for row in rows if all(row[key] == str(getattr(arguments, key)) for key in SHARED)], arguments.plot)


if __name__ == "__main__":
    run_command(main)
