#!/usr/bin/env python3
"""HM-LSTM by a recipe beside two LSTM language models of equal parameters, one over torch.nn.LSTM that carries its
state too and fairseq's lstm_lm: bits per character of the validation split over updates and over seconds of training,
several seeds, drawn.

    fairseq-hmrnn prepare ptb FOLDER_WITH_PTB_TXT
    python scripts/benchmark/language_model.py data/ptb --csv curves.csv --plot curves.png
    python scripts/benchmark/language_model.py data/ptb --recipe ptb_3h --to-the-end --beside nn_lstm_lm
    python scripts/benchmark/language_model.py data/ptb optimization.lr=[.004] --beside nn_lstm_lm --lstm-lr .008

With --updates or --seconds all models keep the recipe's learning rate; with --to-the-end they make the recipe's own
number of updates and follow its schedule. Settings over the recipe are all models' but those of model and criterion;
--lstm-lr gives the LSTMs a learning rate of their own, --lstm-init-range another start. Dropout acts at more places in
the LSTMs, and HM-LSTM alone has a recurrent one (candidates.py): --lstm-dropout gives theirs. Speeds come first, in
turns and without validation: keep the machine quiet for that minute. Seconds are updates times the seconds that an
update took there. The same command again goes on where it was interrupted, also with more seeds, other LSTMs or, at one
learning rate, more updates; in a folder of another recipe, schedule, setting, text or number of threads it is refused.
"""

import itertools
import json
import re
import statistics
from pathlib import Path

import torch
from candidates import HMLSTM, LSTMS, Recipe, check_settings
from commands import checking, command, log_records, parameters_in
from drawing import subplots
from results import claim, data_digest, write_rows

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.files import write_whole
from fairseq_hmrnn.cli.recipe import RECIPES
from fairseq_hmrnn.options import SEED, number

SETTINGS = "common.cpu=true dataset.num_workers=0 common.log_format=json dataset.batch_size_valid=64".split()
SETTINGS += ["optimization.max_epoch=0"]  # as many as the updates are
ONE_RATE = ["lr_scheduler._name=fixed"]
COLORS = {HMLSTM: "#0072B2", "nn_lstm_lm": "#009E73", "lstm_lm": "#D55E00"}
SPEED_UPDATES = 24
REFUSED = {
    "common.seed": "give --seeds",
    "dataset.validate_interval_updates": "give --validate-every",
    "checkpoint.save_dir": "give --out",
}


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.prepared_folder, help="folder of `prepare ptb`, or any prepared text")
    parser.add_argument(
        "settings", nargs="*", help="of the recipe, such as model.output_dim=256 optimization.lr=[.004]"
    )
    parser.add_argument(
        "--out", type=kinds.folder_to_write, default="runs/language_model", help="folder of checkpoints and logs"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="ptb_small", help="default %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--updates", type=kinds.COUNT, default=1000, help="the same number for all models")
    length.add_argument("--seconds", type=number(0, 1e9, open_below=True), help="of training, the same for all models")
    length.add_argument("--to-the-end", action="store_true", help="as many updates as the recipe, and its schedule")
    parser.add_argument("--validate-every", type=kinds.COUNT, default=200, help="updates")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beside", nargs="*", choices=LSTMS, default=list(LSTMS), help="LSTMs to compare with")
    parser.add_argument(
        "--lstm-dropout",
        type=number(0, 1, open_above=True),
        metavar="P",
        help="of the LSTMs, after every layer (default: the recipe's dropout_output, which HM-LSTM has once, on h_e)",
    )
    parser.add_argument("--lstm-lr", type=number(0, 1e9, open_below=True), help="of the LSTMs (default: the recipe's)")
    parser.add_argument(
        "--lstm-init-range",
        type=number(0, 10, open_below=True),
        metavar="R",
        help="nn_lstm_lm's LSTM starts uniform in +-R, as lstm_lm in .1 (default: PyTorch's initial values)",
    )
    parser.add_argument("--csv", type=kinds.new_file, help="file of the curves")
    parser.add_argument("--plot", type=kinds.picture, help="picture of the curves")
    args = parser.parse_args()
    args.out = Path(args.out)
    with checking(parser):
        check(args)
    return args


def check(args):
    """ValueError for settings that mean nothing here; fills in how many updates a recipe makes."""
    refused = dict(REFUSED)
    if not args.to_the_end:
        refused.update({"optimization.max_update": "give --updates", "lr_scheduler._name": "give --to-the-end"})
    check_settings(args.settings, refused, SETTINGS)
    values = Recipe(args.recipe, args.settings).values  # UserError for a name or a value that cannot be
    if args.to_the_end:
        args.updates = values["optimization"].get("max_update")
        if not args.updates:
            raise ValueError(f"the recipe {args.recipe} does not say after how many updates it ends: give --updates")


def settings_of(args):
    """What curves and speeds depend on. At one learning rate a longer training is a shorter one that went on."""
    settings = {"--recipe": args.recipe, "--to-the-end": args.to_the_end, "--validate-every": args.validate_every}
    for option in ("--lstm-dropout", "--lstm-lr", "--lstm-init-range"):
        settings[option] = getattr(args, option[2:].replace("-", "_"))
    settings["settings"] = args.settings or None
    return {**settings, "threads": torch.get_num_threads(), "data": data_digest(args.data)}


def train(model, equal_to, folder, log, options, args):
    """One training command; `options` are hydra's names and values. equal_to: parameters and symbols of the recipe's
    model, which an LSTM is given as many of."""
    options = dict(options)
    if model != HMLSTM and args.lstm_lr is not None:
        options["optimization.lr"] = f"[{args.lstm_lr}]"
    settings = {setting.partition("=")[0]: setting for setting in (*SETTINGS, *args.settings)}
    settings.update({name: f"{name}={value}" for name, value in options.items()})
    schedule = [] if args.to_the_end else ONE_RATE
    recipe = Recipe(args.recipe, [*schedule, *settings.values()])
    if model == HMLSTM:
        return command(*recipe.hmlstm_command(args.data, folder), log=log)
    size = recipe.lstm_sizes(model, *equal_to)["hidden_size"]
    of_lstm = args.lstm_dropout, args.lstm_init_range
    return command(*recipe.lstm_command(model, size, args.data, folder, *of_lstm), log=log)


def speed(model, equal_to, args):
    """Seconds an update, parameters and symbols of one short training."""
    log = args.out / f"{model}.speed.log"
    options = {"optimization.max_update": SPEED_UPDATES, "common.log_interval": 4, "checkpoint.no_save": "true"}
    options["dataset.disable_validation"] = "true"
    text = train(model, equal_to, args.out / "speed", log, options, args)
    parameters = parameters_in(text)
    symbols = int(re.search(r"\(embed_tokens\): Embedding\(([0-9]+),", text).group(1))
    records = log_records(log.read_text(encoding="utf-8"), "train_inner")
    # Symbols of an update over symbols a second: of updates a second the log has two decimals alone.
    return statistics.median(float(r["wpb"]) / float(r["wps"]) for r in records), parameters, symbols


def speeds_of(models, args):
    """{model: what `speed` returns}, by two short trainings of each in turns; from a file if they were taken before."""
    saved = args.out / "speeds.json"
    speeds = json.loads(saved.read_text()) if saved.exists() else {}
    if not all(len(speeds.get(model, ())) == 3 for model in models):
        for log in args.out.glob("*.speed.log"):
            log.unlink()
        speeds = {}  # figures of another session are not beside those of this one
        for _ in range(2):
            for model in models:
                speeds[model] = speed(model, speeds[HMLSTM][1:] if model != HMLSTM else None, args)
        write_whole(str(saved), json.dumps(speeds))
    return {model: speeds[model] for model in models}


def num_updates(seconds_an_update, args):
    """Of a training of --updates, or of --seconds: as many as end with a validation within that time."""
    if args.seconds is None:
        return args.updates
    updates = int(args.seconds / seconds_an_update) // args.validate_every * args.validate_every
    if not updates:
        raise UserError(f"--seconds {args.seconds} is less than --validate-every {args.validate_every} updates take")
    return updates


def validations(log):
    """{updates: bits per character of the validation split} of a training's log."""
    if not log.exists():
        return {}
    records = log_records(log.read_text(encoding="utf-8"), "valid")
    return {int(record["valid_num_updates"]): float(record["valid_loss"]) for record in records}


def log_of(model, seed, args):
    return args.out / f"{model}.{seed}" / "train.log"


def check_updates(models, args):
    """UserError where a training has made more updates than --updates: the others would be compared with its start."""
    for model, seed in itertools.product(models, args.seeds):
        log = log_of(model, seed, args)
        made = max(validations(log), default=0)
        if made > args.updates:
            raise UserError(f"{log.parent} was trained for {made} updates: give as many --updates, or another --out")


def curve(model, equal_to, seed, updates, args):
    """[(updates, bits per character of the validation split)] of one training."""
    log = log_of(model, seed, args)
    folder = log.parent
    # A training that is at its end is not started again, which would only load it.
    if updates not in validations(log):
        options = {"optimization.max_update": updates, "common.seed": seed, "common.log_interval": 100}
        for name in ("dataset.validate_interval_updates", "checkpoint.save_interval_updates"):
            options[name] = args.validate_every
        train(model, equal_to, folder, log, options, args)
    return sorted(point for point in validations(log).items() if point[0] <= updates)


def plot(rows, path):
    """Every seed thin, the mean of each model thick; left over updates, right over seconds."""
    figure, panels = subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, x, title in zip(panels, ("updates", "seconds"), ("updates", "seconds of training")):
        for model in dict.fromkeys(row["model"] for row in rows):
            seeds = sorted({row["seed"] for row in rows if row["model"] == model})
            lines = [[r for r in rows if r["model"] == model and r["seed"] == seed] for seed in seeds]
            for line in lines:
                axes.plot([r[x] for r in line], [r["bpc"] for r in line], color=COLORS[model], linewidth=0.8, alpha=0.5)
            points = {}  # of all seeds
            for row in itertools.chain(*lines):
                points.setdefault(row[x], []).append(row["bpc"])
            abscissa = sorted(point for point, values in points.items() if len(values) == len(seeds))
            means = [statistics.mean(points[point]) for point in abscissa]
            label = f"{model}, {len(seeds)} seed" + "s" * (len(seeds) > 1)
            axes.plot(abscissa, means, color=COLORS[model], linewidth=2.2, marker="o", label=label)
        axes.set_xlabel(title)
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("bits per character, validation")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    args = parse_args()
    claim(args.out, settings_of(args))
    models = [HMLSTM, *args.beside]
    if args.seconds is None:
        check_updates(models, args)
    speeds = speeds_of(models, args)
    for model, (seconds, parameters, _) in speeds.items():
        print(f"{model}: {parameters:,} parameters, {seconds:.3f} seconds an update")
    lengths = {model: num_updates(seconds, args) for model, (seconds, *_) in speeds.items()}
    rows = []
    for seed, model in itertools.product(args.seeds, models):
        seconds, equal_to = speeds[model][0], speeds[HMLSTM][1:]
        for updates, bpc in curve(model, equal_to, seed, lengths[model], args):
            row = {"model": model, "seed": seed, "updates": updates, "seconds": updates * seconds, "bpc": bpc}
            print("{model} seed {seed}: {updates} updates, {seconds:.0f} s, {bpc:.3f}".format(**row), flush=True)
            rows.append(row)
    if args.csv:
        shown = ({**row, "seconds": f"{row['seconds']:.1f}"} for row in rows)
        write_rows(args.csv, [list(rows[0]), *(row.values() for row in shown)])
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    run_command(main)
