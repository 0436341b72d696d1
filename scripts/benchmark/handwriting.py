#!/usr/bin/env python3
"""Handwriting: HM-LSTM, HM-LSTM with an annealed slope, and torch.nn.LSTM of as many parameters, by the same command
with equal updates; and where the boundaries of layers 1 and 2 fall.

    fairseq-hmrnn prepare handwriting UNIPEN --dest data/handwriting --dequantize
    python scripts/benchmark/handwriting.py data/handwriting --out runs/handwriting

Prints two tables: the average log-likelihood of the test lines, in nats as published, over the seeds; and F1 of the
layers' boundaries against the last points of strokes, characters and words, beside as many boundaries at random and at
every k-th point. Training that was interrupted goes on where it stopped; what is done is not done again, more seeds are
added, and other settings are refused; models scored by another version of this script are scored again, not trained.
--report prints the tables of what is done at any time, whatever its settings, of all seeds unless --seeds names some.
"""

import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np
from calibration import closest_size
from commands import USER_DIR, command
from results import claim, data_digest

from fairseq_hmrnn.analysis.segments import Gold, baselines, boundary_scores, late
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.files import write_whole
from fairseq_hmrnn.data.handwriting import load_split
from fairseq_hmrnn.data.handwriting.store import CHARACTER, WORD
from fairseq_hmrnn.inference.handwriting import Writer
from fairseq_hmrnn.models.handwriting import HMLSTMHandwritingConfig, HMLSTMHandwritingModel
from fairseq_hmrnn.options import SEED, SIZE, number

LSTM_USER_DIR = Path(__file__).resolve().parent / "lstm_handwriting"
CONTESTANTS = ("HM-LSTM", "HM-LSTM, annealed slope", "nn.LSTM")
GOLD = ("pen-ups", "characters", "words")
SEEDS = (1, 2, 3)
SCORING = 2  # of results: another number where `evaluate` finds other figures for the same model
SETTINGS = ("updates", "batch_size", "max_line_steps", "hidden", "lr", "slope", "slope_max", "boundary_rates")
SETTINGS += ("boundary_regularizers",)


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.path, help="prepared folder")
    parser.add_argument("--out", type=kinds.folder_to_write, default="runs/handwriting", help="of checkpoints and logs")
    parser.add_argument("--seeds", type=SEED, nargs="+", help="default: {} {} {}".format(*SEEDS))
    parser.add_argument("--updates", type=kinds.COUNT, default=800)
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, default=8)
    parser.add_argument("--max-line-steps", type=kinds.STEPS, default=800, help="longer lines are not trained on")
    parser.add_argument("--hidden", type=SIZE, default=96, help="units of each of HM-LSTM's three layers")
    parser.add_argument("--lr", type=number(0, 1, open_below=True), default=0.002)
    parser.add_argument("--slope", type=number(0, 100, open_below=True), default=0.5)
    parser.add_argument("--slope-max", type=number(0, 100, open_below=True), default=1.5, help="of the annealed slope")
    parser.add_argument("--boundary-rates", default=".04,.01")
    parser.add_argument("--boundary-regularizers", default="rate=10+uncertainty=10")
    parser.add_argument("--report", action="store_true", help="print the tables of what is done, and train nothing")
    args = parser.parse_args()
    if args.seeds is None:
        args.seeds = seeds_in(args.out) if args.report else SEEDS
    return args


def seeds_in(folder):
    """Of the runs that have a folder there."""
    names = "|".join(map(re.escape, map(folder_name, CONTESTANTS)))
    found = (re.fullmatch(rf"(?:{names})\.(\d+)", path.name) for path in Path(folder).glob("*.*"))
    return sorted({int(match.group(1)) for match in found if match})


def folder_name(contestant):
    return contestant.lower().replace(", ", "-").replace(" ", "-")


def model_options(args, contestant):
    """The options in which contestants differ."""
    if contestant == "nn.LSTM":
        sizes = ["--hidden-size", lstm_size(args), "--embed-dim", args.hidden // 2, "--output-dim", args.hidden]
        return ["--user-dir", LSTM_USER_DIR, "--arch", "lstm_handwriting", *sizes]
    sizes = ["--hidden-sizes", f"{args.hidden},{args.hidden},{args.hidden}", "--embed-dim", args.hidden // 2]
    options = ["--user-dir", USER_DIR, "--arch", "hmlstm_handwriting", *sizes, "--output-dim", args.hidden]
    options += ["--boundary-rates", args.boundary_rates, "--boundary-regularizers", args.boundary_regularizers]
    options += ["--slope", args.slope, "--slope-max", args.slope_max]
    if contestant == "HM-LSTM, annealed slope":
        options += ["--slope-per-update", (args.slope_max - args.slope) / args.updates]
    return options


def lstm_size(args):
    """Units of a layer of the LSTM that has as many parameters as HM-LSTM."""
    from lstm_handwriting import LSTMHandwritingConfig, LSTMHandwritingModel

    config = HMLSTMHandwritingConfig(
        hidden_sizes=f"{args.hidden},{args.hidden},{args.hidden}", embed_dim=args.hidden // 2, output_dim=args.hidden
    )

    def parameters_of(size):
        sizes = {"hidden_size": size, "embed_dim": args.hidden // 2, "output_dim": args.hidden}
        return parameters(LSTMHandwritingModel(LSTMHandwritingConfig(**sizes)))

    return closest_size(parameters(HMLSTMHandwritingModel(config)), parameters_of, start=args.hidden)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def train(args, contestant, seed, folder):
    """fairseq-train, from where it stopped."""
    options = [args.data, "--task", "hmlstm_handwriting", "--criterion", "handwriting_likelihood", "--cpu"]
    options += ["--optimizer", "adam", "--clip-norm", 1, "--lr", args.lr, "--seed", seed, "--num-workers", 0]
    options += ["--lr-scheduler", "polynomial_decay", "--total-num-update", args.updates, "--warmup-updates", 50]
    options += ["--batch-size", args.batch_size, "--batch-size-valid", 16, "--max-line-steps", args.max_line_steps]
    options += ["--max-update", args.updates, "--save-dir", folder, "--no-epoch-checkpoints", "--log-format", "json"]
    options += ["--save-interval-updates", 100, "--keep-interval-updates", 1, "--log-interval", 25]
    options += ["--validate-interval-updates", args.updates, "--validate-interval", args.updates]
    command("fairseq-train", *options, *model_options(args, contestant), log=folder / "train.log")


def evaluate(args, folder):
    """Of the test lines: average log-likelihood, rates, and F1 by alignment, gold, layer and system."""
    writer, strokes = Writer.load(str(folder / "checkpoint_last.pt")), load_split(args.data, "test")
    lines = [writer.read(strokes.steps[strokes.line(index)]) for index in range(len(strokes.names))]
    found = {
        "scoring": SCORING,
        "log_likelihood": float(np.mean([line.log_probs.sum() for line in lines])),
        "lines": len(lines),
    }
    found["parameters"] = parameters(writer.model)
    boundaries = np.concatenate([line.boundaries for line in lines]) > 0.5
    found["rates"] = boundaries.mean(0).tolist()
    found["f1"] = f1_of(strokes, boundaries)
    return found


def f1_of(strokes, boundaries):
    """{"alignment|gold|layer|system": F1} of boundaries (T, layers), each gold over the lines in which it is marked."""
    edge, found = np.zeros(len(boundaries), dtype=bool), {}
    edge[strokes.starts[1:] - 1] = True  # a line ends there, which nobody has to find
    known = np.repeat(strokes.known, strokes.lengths)
    marks = [(strokes.steps[:, 2] > 0, np.ones_like(edge))]
    marks += [(strokes.marks & kind > 0, known & kind > 0) for kind in (CHARACTER, WORD)]
    for name, (marked, told) in zip(GOLD, marks):
        if told.any():
            gold = Gold((marked & ~edge)[told], edge[told])
            found.update(f1_scores(name, boundaries[told], gold))
    return found


def f1_scores(name, boundaries, gold):
    """("alignment|name|layer|system", F1) of boundaries (T, layers). name: of what is gold."""
    for alignment, aligned in (("last point", gold), ("next point", late(gold))):
        for layer, closed in enumerate(boundaries.T, 1):
            for system, found in {"layer": closed, **baselines(closed)}.items():
                yield f"{alignment}|{name}|{layer}|{system}", boundary_scores(found, aligned).f1


def report(args):
    """Both tables, of what is done."""
    results, others = {name: [] for name in CONTESTANTS}, 0
    for contestant, _, folder in runs_of(args):
        result = result_of(folder)
        if result and result.get("scoring") == SCORING:
            results[contestant].append(result)
        elif result:
            others += 1
    results = {name: found for name, found in results.items() if found}
    again = f"{others} left out, scored by another version of this script: run it without --report to score them again"
    if not results:
        raise UserError(f"nothing is done yet in {args.out}" + (f" ({again})" if others else ""))
    if others:
        print(f"handwriting: {again}", file=sys.stderr)
    print("| | parameters | log-likelihood, mean | by seed | rates z1, z2 |\n|---|---|---|---|---|")
    for name, found in results.items():
        scores = [run["log_likelihood"] for run in found]
        rates = ", ".join(f"{statistics.mean(rate):.3f}" for rate in zip(*(run["rates"] for run in found))) or "-"
        by_seed = ", ".join(f"{score:.0f}" for score in scores)
        print(f"| {name} | {found[0]['parameters']:,} | {statistics.mean(scores):.0f} | {by_seed} | {rates} |")
    for alignment in ("last point", "next point"):
        print(f"\nF1 where the {alignment} is gold, mean over seeds (lowest to highest):\n")
        print("| | layer | " + " | ".join(f"{gold} | random | every k-th" for gold in GOLD) + " |")
        print("|---|---|" + "---|---|---|" * len(GOLD))
        for name, found in results.items():
            for layer in range(1, len(found[0]["rates"]) + 1):
                cells = []
                for gold in GOLD:
                    for system in ("layer", "random", "every k-th"):
                        key = f"{alignment}|{gold}|{layer}|{system}"
                        values = [run["f1"][key] for run in found if key in run["f1"]]
                        spread = f" ({min(values):.2f} to {max(values):.2f})" if values and system == "layer" else ""
                        cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "-")
                print(f"| {name} | {layer} | " + " | ".join(cells) + " |")


def runs_of(args):
    """(contestant, seed, folder) of every run that was asked for."""
    for seed in args.seeds:
        for contestant in CONTESTANTS:
            yield contestant, seed, Path(args.out).resolve() / f"{folder_name(contestant)}.{seed}"


def result_of(folder):
    """Of a run that is done; None of one that is not."""
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def score(args, folder):
    write_whole(str(folder / "result.json"), json.dumps(evaluate(args, folder)))


def score_again(args, folder):
    """A run that is done, if its figures are of another scoring."""
    result = result_of(folder)
    if result and result.get("scoring") != SCORING:
        if not (folder / "checkpoint_last.pt").is_file():
            raise UserError(
                f"{folder} was scored by another version of this script, and there is no checkpoint_last.pt to score "
                "again: remove it to train anew, or give another --out"
            )
        score(args, folder)


def main():
    args = parse_arguments()
    if not args.report:
        settings = {f"--{name.replace('_', '-')}": getattr(args, name) for name in SETTINGS}
        claim(args.out, {**settings, "data": data_digest(args.data)})
        for _, _, folder in runs_of(args):
            score_again(args, folder)
        for contestant, seed, folder in runs_of(args):
            if not result_of(folder):
                train(args, contestant, seed, folder)
                score(args, folder)
    report(args)


if __name__ == "__main__":
    run_command(main)
