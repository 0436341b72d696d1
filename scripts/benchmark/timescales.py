#!/usr/bin/env python3
"""Do timescales adapt to the input? How long the segments of one model are in texts whose words differ in length, and
in one text that changes.

    python scripts/benchmark/timescales.py english=train.en german=train.de --csv timescales.csv --plot timescales.png
    python scripts/benchmark/timescales.py english=train.en german=train.de --checkpoint checkpoints/ptb --csv ptb.csv

Small language models of characters are trained on a mixture of the files, of source code (Python's own modules) and of
the first file with a filler after every letter, by the recipe ptb_small with smaller layers and the rate of words in
the mixture: with the penalty on rates alone, with `uncertainty`, and with that and `unforeseen` for layer 2. What is
measured was held out, and stands beside text with two fillers, which no model has seen. With --checkpoint models that
are trained already are measured instead, on texts that are spelt in their alphabet. Run again, the trainings that are
done are taken as they are; those of another number of updates or of other texts are refused.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from candidates import Recipe
from commands import command
from drawing import subplots
from results import claim, digest, read_rows, write_rows
from timescales_texts import (
    CODE,
    FILLER,
    STRETCHED,
    UNSEEN,
    fold,
    mixture,
    pieces,
    read_kinds,
    split,
    stretched,
    whole_lines,
    word_ends,
    word_rate,
)

from fairseq_hmrnn.analysis.plots import LAYER_COLORS
from fairseq_hmrnn.analysis.segments import Scores
from fairseq_hmrnn.checkpoints import find_checkpoint
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.data.binarize import TextSource, prepare
from fairseq_hmrnn.inference import loading
from fairseq_hmrnn.options import SEED, whole
from fairseq_hmrnn.text import code_points

SETTINGS = {
    "uncertainty": "rate+uncertainty=.1",
    "rate": "rate",
    "unforeseen": "rate+uncertainty=.1,rate=50+unforeseen=0:1:500",  # layer 2, where layer 1 listens to uncertainty
}
LAYER_2 = 5  # words in a segment of layer 2, by its rate
LEAD = 200  # characters that are read before the count begins
COUNTED = 2000
PART = 1500  # characters of a text that changes, three times
BIN = 100  # characters over which its rate is taken
CHANGE = "changing"
RESERVED = (CODE, STRETCHED, UNSEEN, CHANGE)
TICKS = (2, 3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000)
COLUMNS = ("model", "seed", "text", "position", "layer", "word", "word_sd", "segment", "segment_sd", "f1")
OPTIONS = "common.cpu=true dataset.num_workers=0 dataset.batch_size=16 dataset.batch_size_valid=64".split()
OPTIONS += "lr_scheduler._name=fixed optimization.max_epoch=0 model.output_dim=128".split()
OPTIONS += ["model.hidden_sizes='240,64,64'"]


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    add = parser.add_argument
    add("files", metavar="NAME=FILE", nargs="+", type=named_file, help="texts, UTF-8; the first one is stretched too")
    add("--out", default="runs/timescales", type=kinds.folder_to_write, help="folder of data and trainings")
    add("--checkpoint", nargs="+", type=existing_checkpoint, help="measure these models; nothing is trained")
    add("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    add("--seeds", nargs="+", type=SEED, default=[1, 2, 3])
    add("--updates", type=kinds.COUNT, default=800)
    add("--size", type=whole(50_000, 2**31), default=500_000, help="characters of each kind of text, at most")
    add("--csv", type=kinds.new_file, default="timescales.csv")
    add("--plot", type=kinds.picture)
    add("--threads", type=kinds.THREADS, default=torch.get_num_threads())
    args = parser.parse_args()
    names = [name for name, _ in args.files]
    for name in names:
        if names.count(name) > 1 or name in RESERVED:
            parser.error(f"give every file a name of its own, and none of {', '.join(RESERVED)}: {name}")
    if args.plot and len(set(args.checkpoint or ())) > len(LAYER_COLORS):
        parser.error(f"--plot draws at most {len(LAYER_COLORS)} models: give fewer --checkpoint, or no --plot")
    return args


def names_of(checkpoints: List[str]) -> Dict[str, str]:
    """{name: checkpoint}, each once: the name of its folder, or the path as it is given where folders share a name."""
    paths = list(dict.fromkeys(checkpoints))
    folders = [(Path(path) if Path(path).is_dir() else Path(path).parent).resolve().name for path in paths]
    return {folder if folders.count(folder) == 1 else path: path for folder, path in zip(folders, paths)}


def existing_checkpoint(argument):
    """A checkpoint, or a folder with one: missed before anything is measured."""
    try:
        find_checkpoint(kinds.path(argument))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return argument


def named_file(argument):
    """NAME=FILE as a pair."""
    name, equals, path = argument.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("write NAME=FILE")
    return name, kinds.existing_file(path)


def prepared(texts: Dict[str, str], args):
    """A binarised mixture of what is trained on, with 20 blocks of what is held out for validation, in the folder of
    the trainings, and its rate of words; UserError if the folder is of other texts or updates."""
    of_texts = {f"the text {name}": digest(text) for name, text in texts.items()}
    claim(args.out, {"--updates": args.updates, "--size": args.size, **of_texts})
    folder = Path(args.out) / "data"
    trained, held_out = ([split(text)[part] for text in texts.values()] for part in (0, 1))
    mixed = mixture(trained, seed=1)
    if not (folder / "dict.txt").exists():
        names = {"train": mixed, "valid": whole_lines(mixture(held_out, seed=1)[:20_000])}
        prepare({name: TextSource.from_text(name, text) for name, text in names.items()}, str(folder), {"test": 0.01})
    return word_rate(mixed)


def trained(setting: str, seed: int, rate: float, args) -> str:
    """The checkpoint of one training, which is made unless it is there."""
    folder = Path(args.out) / f"{setting}.{seed}"
    checkpoint, done = folder / "checkpoint_last.pt", folder / "done"
    if not done.exists():
        rates = f"criterion.boundary_rates='steps:{rate:.4f},steps:{rate / LAYER_2:.4f}'"
        options = [rates, f"criterion.boundary_regularizers='{SETTINGS[setting]}'", f"common.seed={seed}"]
        options += [f"optimization.max_update={args.updates}"]
        recipe = Recipe("ptb_small", [*OPTIONS, *options])
        data = Path(args.out) / "data"
        command(*recipe.hmlstm_command(data, folder), log=folder / "train.log")
        done.touch()
    return str(checkpoint)


class Texts(NamedTuple):
    """Held-out pieces by kind, each of LEAD + COUNTED characters, and texts that change twice, of 3 * PART."""

    by_kind: Dict[str, List[str]]
    changing: List[str]

    @classmethod
    def of(cls, texts: Dict[str, str], first: str, alphabet=None) -> Texts:
        """alphabet: spell them in it, without filler: letters are then repeated instead. UserError for a text that is
        too short to give two pieces."""
        held_out = {name: split(text)[1] for name, text in texts.items()}
        if alphabet is not None:
            plain = held_out[STRETCHED].replace(FILLER, "")
            held_out = {name: fold(text, alphabet) for name, text in held_out.items()}
            held_out[STRETCHED] = stretched(fold(plain, alphabet), 1, filler=None)
        held_out[UNSEEN] = stretched(held_out[first], 2, filler=None if alphabet else FILLER)
        by_kind = {name: pieces(text, LEAD + COUNTED) for name, text in held_out.items()}
        for name, found in by_kind.items():
            if len(found) < 2:
                raise UserError(
                    f"{name} has {len(held_out[name])} characters to measure on, the last tenth of it, and "
                    f"{2 * (LEAD + COUNTED)} are required: give longer files, {first} of one and a half times --size"
                )
        usual, other = (pieces(held_out[name], PART) for name in (first, STRETCHED))
        changing = ["".join(parts) for parts in zip(usual, other, usual[1:] + usual[:1])]
        return cls(by_kind, changing)


def boundaries(model, texts: List[str]) -> np.ndarray:
    """(N, T, detectors) of texts of equal length, each read by itself."""
    reader = model.reader()
    tokens = torch.from_numpy(np.stack([reader.table[code_points(text)] for text in texts]))
    state = model.models[0].decoder.hm_lstm.zero_state(len(texts))
    windows = [reader.reader.boundaries(window) for window in reader.reader.read_batch(tokens, state)]
    return torch.cat(windows).transpose(0, 1).numpy() > 0.5


def spread(values) -> Tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values)


def lengths(model, texts: List[str], layer: int):
    """The rest of a row of one kind: over its pieces mean and standard deviation of the lengths of words and of the
    layer's segments, and F1 of its boundaries for those of words."""
    found = boundaries(model, texts)[:, LEAD:, layer]
    gold = np.stack([word_ends(text) for text in texts])[:, LEAD:]
    word, segment = (spread([COUNTED / max(1, piece.sum()) for piece in marks]) for marks in (gold, found))
    return [*word, *segment, Scores.of((found & gold).sum(), found.sum(), gold.sum()).f1]


def over_positions(model, texts: List[str], layer: int):
    """Of texts that change: by BIN characters the position of the first, mean lengths of words and segments and F1."""
    found, gold = boundaries(model, texts)[..., layer], np.stack([word_ends(text) for text in texts])
    for start in range(0, 3 * PART, BIN):
        ours, theirs = (marks[:, start : start + BIN] for marks in (found, gold))
        f1 = Scores.of((ours & theirs).sum(), ours.sum(), theirs.sum()).f1
        word, segment = (ours.size / max(1, marks.sum()) for marks in (theirs, ours))
        yield [start, word, segment, f1]


def rows_of(name: str, seed, checkpoint: str, texts: Dict[str, str], first: str, spelt: bool):
    """Of COLUMNS, all that is measured of one model."""
    model = loading.load([checkpoint])
    known = Texts.of(texts, first, {*model.src_dict.symbols, " ", "\n"} if spelt else None)
    for layer in range(model.reader().num_detectors):
        for kind, some in known.by_kind.items():
            yield [name, seed, kind, "", layer + 1, *lengths(model, some, layer)]
        for position, word, segment, f1 in over_positions(model, known.changing, layer):
            yield [name, seed, CHANGE, position, layer + 1, word, "", segment, "", f1]


def elasticity(rows) -> float:
    """The slope of log segment length over log word length, over texts: 1 where segments grow as words do, 0 where they
    do not."""
    x, y = (np.log([float(row[column]) for row in rows]) for column in ("word", "segment"))
    return float(np.polyfit(x, y, 1)[0])


def report(rows):
    """Segment length by text, and the elasticity: the mean of the seeds, from the lowest to the highest."""
    plain = [row for row in rows if row["text"] != CHANGE]
    texts = list(dict.fromkeys(row["text"] for row in plain))
    for name, layer in dict.fromkeys((row["model"], row["layer"]) for row in plain):
        of_layer = [row for row in plain if (row["model"], row["layer"]) == (name, layer)]
        for text in texts:
            some = [row for row in of_layer if row["text"] == text]
            word, segments, f1 = ([float(row[column]) for row in some] for column in ("word", "segment", "f1"))
            print(f"{name}, layer {layer}, {text}: words {word[0]:.2f}, segments {told(segments)}, F1 {told(f1)}")
        for which, some in (("all", of_layer), ("without code", [row for row in of_layer if row["text"] != CODE])):
            slopes = [elasticity([row for row in some if row["seed"] == seed]) for seed in seeds_of(some)]
            print(f"{name}, layer {layer}: elasticity, {which}: {told(slopes)}")


def told(values):
    return f"{statistics.mean(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def seeds_of(rows):
    return list(dict.fromkeys(row["seed"] for row in rows))


def plot(rows, path):
    """Segment length over word length, a panel for each layer, and the rate of boundaries where a text changes."""
    models, layers = (list(dict.fromkeys(row[column] for row in rows)) for column in ("model", "layer"))
    size = {"figsize": (4 * len(layers) + 5, 4.4), "layout": "constrained", "width_ratios": [1] * len(layers) + [1.3]}
    figure, panels = subplots(1, len(layers) + 1, **size)
    for axes, layer in zip(panels, layers):
        draw_lengths(axes, [row for row in rows if row["layer"] == layer and row["text"] != CHANGE], models)
        axes.set_title(f"layer {layer}")
    change = [row for row in rows if row["text"] == CHANGE and row["layer"] == layers[0]]
    draw_change(panels[-1], change, models)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=120)


def draw_lengths(axes, rows, models):
    """Every seed's lengths, with the standard deviation over pieces as bars; a color for each model and a marker for
    each text."""
    words = [float(row["word"]) for row in rows]
    axes.plot([min(words), max(words)], [min(words), max(words)], color="gray", linestyle=":", label="one word")
    texts = list(dict.fromkeys(row["text"] for row in rows))
    markers = dict(zip(texts, itertools.cycle("os^Dvp*X")))
    for row in rows:
        x, x_sd, y, y_sd = (float(row[column]) for column in ("word", "word_sd", "segment", "segment_sd"))
        style = {"color": LAYER_COLORS[models.index(row["model"])], "elinewidth": 0.7, "capsize": 2, "alpha": 0.7}
        style.update(marker=markers[row["text"]], markersize=5)
        axes.errorbar(x, y, xerr=x_sd, yerr=[[min(y_sd, y - 1)], [y_sd]], **style)
    for text, marker in markers.items():
        axes.plot([], [], marker=marker, color="gray", linestyle="", label=text)
    axes.set(xscale="log", yscale="log", xlabel="word length, characters", ylabel="segment length, characters")
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        ticks = [length for length in TICKS if limits[0] < length < limits[1]]
        axis.set_ticks(ticks, [f"{length:,}" for length in ticks])
    axes.minorticks_off()


def draw_change(axes, rows, models):
    """Layer 1's rate over position: the mean of the seeds, from the lowest to the highest; words' rate beside it."""
    for color, name in zip(LAYER_COLORS, models):
        some = [row for row in rows if row["model"] == name]
        seeds = seeds_of(some)
        found = np.array([[1 / float(row["segment"]) for row in some if row["seed"] == seed] for seed in seeds])
        positions = [int(row["position"]) + BIN / 2 for row in some if row["seed"] == seeds[0]]
        axes.plot(positions, found.mean(0), color=color, label=f"{name} ({len(seeds)} seeds)")
        axes.fill_between(positions, found.min(0), found.max(0), color=color, alpha=0.25, linewidth=0)
    words = [1 / float(row["word"]) for row in some if row["seed"] == seeds[0]]
    axes.plot(positions, words, color="gray", linestyle=":", label="ends of words")
    axes.set(title="layer 1, text that changes", xlabel="position, characters", ylabel="boundaries a character", ylim=0)
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])
    axes.legend(frameon=False)


def rounded(row):
    return [f"{value:.4f}" if isinstance(value, float) else value for value in row]


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    files = dict(args.files)
    texts, first = read_kinds(files, args.size), next(iter(files))
    Texts.of(texts, first)  # whether they are long enough
    if args.checkpoint:
        models = [(name, 0, path) for name, path in names_of(args.checkpoint).items()]
    else:
        rate = prepared(texts, args)
        print(f"words a character of the mixture: {rate:.4f}", flush=True)
        runs = itertools.product(*(dict.fromkeys(values) for values in (args.settings, args.seeds)))
        models = [(setting, seed, trained(setting, seed, rate, args)) for setting, seed in runs]
    table = []  # written when all is measured: an earlier file is kept until then
    for name, seed, path in models:
        table += map(rounded, rows_of(name, seed, path, texts, first, bool(args.checkpoint)))
    write_rows(args.csv, [COLUMNS, *table])
    rows = read_rows(Path(args.csv), COLUMNS)
    report(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_command(main)
