#!/usr/bin/env python3
"""Long memory: HM-LSTM beside torch.nn.LSTM, torch.nn.GRU and a Transformer of equal parameters, on four tasks.

Each task (long_memory_tasks.py) keeps something for a number of steps, the gap. Gaps of training are drawn
log-uniformly up to --train-gap; the share of right answers is measured at every gap of --gaps. Contestants
(long_memory_models.py) have three layers, see the same sequences in the same order and get the same updates. A row of
the CSV is written when a run has ended; run again, the script goes on with the runs that have no row yet.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from pathlib import Path

import torch
from drawing import subplots
from long_memory_models import CONTESTANTS, DEFAULT, Model, equal_size
from long_memory_tasks import TASKS, build_task, items_of
from results import read_rows, write_rows
from torch import nn
from tqdm import tqdm

from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.options import LARGEST_SIZE, SEED, SIZE, number, whole

SHORTEST_GAP = 5  # of training
TEST_BATCH = 64
SETTINGS = ("task", "contestant", "seed", "hidden", "updates", "batch_size", "train_gap", "lr", "items", "samples")
OWN = ("task", "contestant", "seed")  # of a run


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    add = parser.add_argument
    add("--tasks", choices=TASKS, nargs="+", default=["recall"])
    add("--contestants", choices=list(CONTESTANTS), nargs="+", default=DEFAULT)
    add("--out", default="long_memory.csv", type=kinds.new_file)
    add("--plot", type=kinds.picture, help="draw the rows of these settings as this picture")
    add("--hidden", type=SIZE, default=32, help="units of each of HM-LSTM's layers; the others get as many parameters")
    add("--seeds", type=SEED, nargs="+", default=[1, 2, 3])
    add("--updates", type=kinds.COUNT, default=500)
    add("--batch-size", type=kinds.BATCH_SIZE, default=16)
    add("--lr", type=number(0, 1, open_below=True), default=0.002)
    add("--items", type=whole(1, 4), help="pairs of recall (default 1), items of copying (default 3)")
    add("--train-gap", type=whole(SHORTEST_GAP, LARGEST_SIZE), default=200, help="longest gap of training")
    add("--gaps", type=whole(SHORTEST_GAP, LARGEST_SIZE), nargs="+", default=[50, 200, 500, 1000, 2000, 10000])
    add("--samples", type=kinds.BATCH_SIZE, default=TEST_BATCH, help="sequences per gap to measure on")
    add("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    return parser.parse_args()


def training(model, task, seed, arguments):
    """Trains a model; the loss of every update, in the task's units."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)
    shortest, longest = math.log(SHORTEST_GAP), math.log(arguments.train_gap)
    for update in range(arguments.updates):
        gap = round(math.exp(shortest + (longest - shortest) * torch.rand(1, generator=random).item()))
        batch = task.draw(arguments.batch_size, gap, random, False)
        predictions, penalty = model(batch.inputs, len(batch.answers), update)
        loss = task.loss(predictions, batch.answers)
        optimizer.zero_grad()
        (loss + penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def measure(model, task, gap, samples):
    """The share of right answers after a gap, the same sequences for every model, and the milliseconds of processor
    time of a step that is read, of the whole batches of TEST_BATCH: a smaller one takes less. None if there is none."""
    random, shares, seconds, steps = torch.Generator().manual_seed(gap), [], 0.0, 0
    for start in range(0, samples, TEST_BATCH):
        size = min(TEST_BATCH, samples - start)
        batch = task.draw(size, gap, random, True)
        began = time.process_time()
        predictions, _ = model(batch.inputs, len(batch.answers))
        if size == TEST_BATCH:
            seconds, steps = seconds + time.process_time() - began, steps + len(batch.inputs[-model.window :])
        shares += [task.right(predictions, batch.answers)] * size
    return statistics.mean(shares), 1000 * seconds / steps if steps else None


def run(name, contestant, seed, arguments):
    """The rest of a row: parameters, loss and processor seconds of training, then by gap right answers and milliseconds
    of a step, empty without a whole batch."""
    task = build_task(name, arguments.items)
    longest = arguments.train_gap
    parameters = Model(CONTESTANTS["hm_lstm"], task, arguments.hidden, longest).num_parameters
    hidden = equal_size(CONTESTANTS[contestant], task, parameters, longest)
    torch.manual_seed(seed)
    model = Model(CONTESTANTS[contestant], task, hidden, longest)
    began, title = time.process_time(), f"{name}, {contestant}, seed {seed}"
    losses = list(tqdm(training(model, task, seed, arguments), title, arguments.updates, mininterval=10))
    loss, seconds = statistics.mean(losses[-max(1, len(losses) // 10) :]), time.process_time() - began
    model.eval()
    found = [measure(model, task, gap, arguments.samples) for gap in arguments.gaps]
    right, milliseconds = zip(*found)
    return [model.num_parameters, f"{loss:.4f}", f"{seconds:.0f}", *_rounded(right), *_rounded(milliseconds)]


def _rounded(values):
    return ["" if value is None else f"{value:.3f}" for value in values]


def is_of(row, arguments):
    """Whether a row has these settings, of whichever task, contestant and seed."""
    settings = {**vars(arguments), "items": items_of(row["task"], arguments.items)}
    return all(row[key] == str(settings[key]) for key in SETTINGS if key not in OWN)


def plot(rows, gaps, path):
    """Right answers over the gap, a panel for each task: the mean of the seeds, and from the worst to the best."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    size = {"figsize": (4.2 * len(tasks) + 2.8, 3.6), "layout": "constrained", "squeeze": False, "sharey": True}
    figure, (panels,) = subplots(1, len(tasks), **size)
    for axes, name in zip(panels, tasks):
        for (contestant, known), color in zip(CONTESTANTS.items(), itertools.cycle(LAYER_COLORS)):
            found = [row for row in rows if (row["task"], row["contestant"]) == (name, contestant)]
            shares = torch.tensor([[float(row[f"gap{gap}"]) for gap in gaps] for row in found])
            if len(shares):
                mean = shares.mean(0)
                spread = torch.stack([mean - shares.amin(0), shares.amax(0) - mean]).clamp(min=0)
                style = {"color": color, "marker": "o", "capsize": 3, "label": f"{known.label} ({len(shares)} seeds)"}
                axes.errorbar(gaps, mean, yerr=spread, **style)
        axes.axhline(build_task(name).chance, color="gray", linestyle=":", label="chance")
        axes.set(xscale="log", title=name, xlabel="gap, steps", ylim=(0, 1.03))
        axes.set_xticks(gaps, [f"{gap:,}" for gap in gaps], rotation=45)
        axes.minorticks_off()
    panels[0].set_ylabel("right answers")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def main():
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    gaps = arguments.gaps
    columns = [*SETTINGS, "parameters", "loss", "seconds", *(f"gap{gap}" for gap in gaps), *(f"ms{g}" for g in gaps)]
    done = {tuple(row[key] for key in SETTINGS) for row in read_rows(out, columns)}
    for name in arguments.tasks:
        build_task(name, arguments.items)  # what it requires is missed before any training
    for name, seed, contestant in itertools.product(arguments.tasks, arguments.seeds, arguments.contestants):
        own = {"task": name, "contestant": contestant, "seed": seed, "items": items_of(name, arguments.items)}
        row = [{**vars(arguments), **own}[key] for key in SETTINGS]
        if tuple(map(str, row)) not in done:
            row += run(name, contestant, seed, arguments)
            write_rows(out, [row], "a")
    print(out.read_text())
    if arguments.plot:
        plot([row for row in read_rows(out, columns) if is_of(row, arguments)], gaps, arguments.plot)


if __name__ == "__main__":
    run_command(main)
