#!/usr/bin/env python3
"""Train translation models of equal size on one prepared folder, for equal updates or until validation stops improving,
translate its test split, and print a table.

    fairseq-hmrnn prepare translation de en DIR --source-size 4000 --target-size 4000
    python scripts/benchmark/translation.py DIR/bin --updates 1000 --out runs/translation
    python scripts/benchmark/translation.py DIR/bin --patience 5 --interval 1000 --updates 100000 --average 5 \\
      --lr lstm=.002 hmlstm=.001 --dropout lstm=.2 hmlstm=.2      # trained to the end
    python scripts/benchmark/translation.py DIR/bin --speed      # the speed alone, the best of several turns

Columns: parameters, memory slots for a source symbol, perplexity of the validation split (of the last validation; with
--patience the best), BLEU and chrF of the test split by sacrebleu, whose signatures stand below the table, hours of
training, target symbols a second in training and in generation, each model by itself: to compare speeds of training
take --speed. The same command again goes on where it was interrupted, also with more models or more updates; a model
that was trained with other settings is refused. Everything after -- goes to every fairseq-train.
"""

import argparse
import re
import statistics
from pathlib import Path

from commands import USER_DIR, command, parameters_in, parse_with_rest
from results import claim, data_digest
from translation_models import BOUNDARIES, MODELS, options_of

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import parse_rates
from fairseq_hmrnn.options import Parsed, number, whole

PLUGIN = ["--user-dir", str(USER_DIR), "--task", "translation", "--required-batch-size-multiple", "1"]
TRAINING = "--optimizer adam --lr 0.002 --clip-norm 1 --max-tokens 1500 --seed 1 --cpu --num-workers 0 "
TRAINING += "--log-format simple"
SAVING = "--log-interval 25 --no-epoch-checkpoints --save-interval-updates {interval} --keep-interval-updates {keep}"
TIMING = "--log-interval 4 --no-save --disable-validation --max-update 24"
EARLY_STOP = "early stop since valid performance"  # in fairseq-train's log
COLUMNS = "parameters | memory per source symbol | validation perplexity | BLEU | chrF | hours | "
COLUMNS += "symbols/s in training | in generation"


def _of_model(kind):
    """The kind of argument MODEL=VALUE, as (model, value)."""

    def parse(argument):
        name, _, value = argument.partition("=")
        if name not in MODELS:
            raise argparse.ArgumentTypeError(f"no model {name!r}: choose from {', '.join(MODELS)}")
        return name, kind(value)

    return parse


_lr, _dropout = _of_model(number(0, 1, open_below=True)), _of_model(number(0, 1, open_above=True))


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.path, help="folder of `prepare translation`")
    parser.add_argument(
        "--out", type=kinds.folder_to_write, default="runs/translation", help="folder of checkpoints and logs"
    )
    parser.add_argument("--updates", type=kinds.COUNT, default=1000)
    parser.add_argument("--interval", type=kinds.COUNT, default=250, help="updates between validations")
    parser.add_argument(
        "--patience", type=kinds.COUNT, metavar="N", help="stop after N validations without improvement, or --updates"
    )
    parser.add_argument(
        "--average", type=kinds.COUNT, metavar="N", help="translate with the mean of the last N validated checkpoints"
    )
    parser.add_argument("--lr", type=_lr, nargs="+", default=[], metavar="MODEL=LR", help="instead of .002")
    parser.add_argument(
        "--dropout", type=_dropout, nargs="+", default=[], metavar="MODEL=P", help="instead of the models' own"
    )
    parser.add_argument("--beam", type=whole(1, 1000), default=5)
    parser.add_argument("--rate", type=Parsed(parse_rates), default="steps:.4", help="target boundary rate of layer 1")
    parser.add_argument("--speed", action="store_true", help="measure training speed in turns, and nothing else")
    parser.add_argument("--turns", type=kinds.COUNT, default=3, help="of --speed")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    return parse_with_rest(parser)


def memory_per_source_symbol(data, checkpoint):
    """Memory slots of an HM-LSTM encoder divided by source symbols, over the test split; 1 for any other encoder."""
    import torch
    from fairseq import checkpoint_utils

    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(data)})
    encoder = models[0].eval().encoder
    if not hasattr(encoder, "memory_kind"):
        return 1.0
    task.load_dataset("test")
    slots = symbols = 0
    with torch.no_grad():
        for index in range(len(task.datasets["test"])):
            source = task.datasets["test"][index]["source"].unsqueeze(0)
            slots += encoder(source)["encoder_out"][0].size(0)
            symbols += source.numel()
    return slots / symbols


def settings_of(name, args, rest):
    """What the training of a model depends on; one of more updates is a shorter one that went on."""
    settings = {"--lr": dict(args.lr).get(name), "--dropout": dict(args.dropout).get(name)}
    settings.update({f"--{option}": getattr(args, option) for option in ("interval", "patience", "average")})
    settings["--rate"] = args.rate if BOUNDARIES in MODELS[name] else None
    return {**settings, "--": rest, "data": data_digest(args.data)}


def is_done(log, args):
    """Whether the training with that log is at its end; if it were started again, fairseq would make one more update.
    UserError for one that went further."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    if args.patience and EARLY_STOP in text:
        return True
    updates = max(map(int, re.findall(r"valid on .*\| num_updates (\d+)", text)), default=0)
    if updates > args.updates:
        raise UserError(f"{log.parent} was trained for {updates} updates: give as many --updates, or another --out")
    return updates == args.updates


def train(name, args, options, rest):
    """Train a model; what fairseq-train has logged of it until now, runs that were interrupted included."""
    folder = args.out / name
    log = folder / "train.log"
    if is_done(log, args):
        return log.read_text(encoding="utf-8")
    model = options_of(name, args.rate, dict(args.lr).get(name), dict(args.dropout).get(name))
    training = [*PLUGIN, *TRAINING.split(), "--save-dir", folder, *options, *model, *rest]
    command("fairseq-train", args.data, *training, log=log)
    return log.read_text(encoding="utf-8")


def translate(name, args):
    """Translate the test split with what was trained; what fairseq-generate printed of it, and the checkpoint."""
    folder = args.out / name
    checkpoint = folder / ("checkpoint_best.pt" if args.patience else "checkpoint_last.pt")
    if args.average:
        checkpoint = folder / "averaged.pt"
        checkpoint.unlink(missing_ok=True)
        averaging = ["average", folder, "--last", args.average, "--out", checkpoint]
        command("fairseq-hmrnn", *averaging, log=folder / "average.log")
    path = ["--path", checkpoint, "--gen-subset", "test", "--beam", args.beam, "--max-tokens", 2000]
    path += ["--bpe", "sentencepiece", "--sentencepiece-model", next(args.data.glob("spm.*.model"))]
    scoring = ["--scoring", "sacrebleu", "--cpu"]
    return command("fairseq-generate", args.data, *PLUGIN, *path, *scoring, log=folder / "test.log"), checkpoint


def scores(printed):
    """BLEU and chrF of what fairseq-generate printed, as (score, signature)."""
    import sacrebleu

    lines = {kind: dict(re.findall(rf"^{kind}-(\d+)\t(?:-?[\d.e-]+\t)?(.*)$", printed, re.MULTILINE)) for kind in "DT"}
    translations, references = ([found.get(n, "") for n in sorted(lines["T"])] for found in (lines["D"], lines["T"]))
    metrics = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    return [(metric.corpus_score(translations, [references]).score, str(metric.get_signature())) for metric in metrics]


def speeds_of(log):
    """Target symbols a second, as fairseq-train logged them."""
    return [float(speed) for speed in re.findall(r"train_inner.* wps=([0-9.]+)", log)]


def training_time(log):
    """Hours of training in a log, its parts before an interruption included, and the median of its target symbols a
    second."""
    epochs = dict(re.findall(r"^.*\| train \| epoch (\d+) .*?\| train_wall ([\d.]+)", log, re.MULTILINE))
    return sum(map(float, epochs.values())) / 3600, statistics.median(speeds_of(log) or [0])


def run(name, args, rest):
    """Train, translate and score one model; its row of the table, and the signatures of its scores."""
    saving = SAVING.format(interval=args.interval, keep=args.average or 1).split()
    saving += ["--patience", args.patience] if args.patience else []
    claim(args.out / name, settings_of(name, args, rest))
    log = train(name, args, [*saving, "--max-update", args.updates], rest)
    parameters = parameters_in(log)
    perplexities = [float(found) for found in re.findall(r"valid on .* ppl ([0-9.]+)", log)]
    perplexity = min(perplexities) if args.patience else perplexities[-1]
    hours, speed = training_time(log)
    printed, checkpoint = translate(name, args)
    generation = float(re.findall(r"Translated .* ([\d.]+) tokens/s\)", printed)[-1])
    (bleu, _), (chrf, _) = found = scores(printed)
    memory = memory_per_source_symbol(args.data, checkpoint)
    row = f"| `{name}` | {parameters:,} | {memory:.2f} | {perplexity:.2f} | {bleu:.1f} | {chrf:.1f} "
    return f"{row}| {hours:.2f} | {speed:.0f} | {generation:.0f} |", [signature for _, signature in found]


def compare_speeds(args, rest):
    """Train every model a little, one after the other, several times; a table of the best speeds, since what else a
    machine does only ever slows them."""
    best = dict.fromkeys(args.models, 0.0)
    for _ in range(args.turns):
        for name in args.models:
            (args.out / name / "train.log").unlink(missing_ok=True)
            speeds = speeds_of(train(name, args, TIMING.split(), rest))
            best[name] = max(best[name], statistics.median(speeds[1:]))
    print("| | target symbols per second | ratio |\n|---|---|---|")
    for name, speed in best.items():
        print(f"| `{name}` | {speed:.0f} | {speed / best[args.models[0]]:.2f} |")


def main():
    args, rest = parse_args()
    args.data, args.out = Path(args.data), Path(args.out)
    if not any(args.data.glob("spm.*.model")) or not any(args.data.glob("dict.*.txt")):
        raise UserError(f"no dict.*.txt with spm.*.model in {args.data}: see fairseq-hmrnn prepare translation")
    if args.speed:
        args.out = args.out / "speed"
        return compare_speeds(args, rest)
    print(f"| | {COLUMNS} |\n{'|---' * (COLUMNS.count('|') + 2)}|")
    for name in args.models:
        row, signatures = run(name, args, rest)
        print(row, flush=True)
    print("\n" + "\n".join(signatures))


if __name__ == "__main__":
    run_command(main)
