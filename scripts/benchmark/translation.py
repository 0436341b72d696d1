#!/usr/bin/env python3
"""Train translation models of equal size for equal updates on one prepared folder, translate its test split, and print
a table: parameters, memory slots per source symbol, perplexity of the validation split, BLEU of the test split.

    fairseq-hmrnn prepare translation de en DIR --source-size 4000 --target-size 4000
    python scripts/benchmark/translation.py DIR/bin --updates 1000 --out runs/translation
    python scripts/benchmark/translation.py DIR/bin --speed      # the speed alone, measured in turns

The same command again goes on where it was interrupted. Everything after -- goes to every fairseq-train.
"""

import re
import statistics
from pathlib import Path

from commands import USER_DIR, command, parse_with_rest

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import parse_rates
from fairseq_hmrnn.options import Parsed, whole

PLUGIN = ["--user-dir", str(USER_DIR), "--task", "translation", "--required-batch-size-multiple", "1"]
TRAINING = "--optimizer adam --lr 0.002 --clip-norm 1 --max-tokens 1500 --seed 1 --cpu --num-workers 0 "
TRAINING += "--log-format simple"
SAVING = "--log-interval 25 --no-epoch-checkpoints --save-interval-updates 250 --keep-interval-updates 1"
TIMING = "--log-interval 4 --no-save --disable-validation --max-update 24"

# Sizes are such that all have the parameters of `lstm` within 5.1 %, with dictionaries of about 4,000 symbols.
LSTM_DECODER = "--decoder-embed-dim 128 --decoder-hidden-size 128 --decoder-out-embed-dim 128"
ENCODER = "--embed-dim 128 --hidden-sizes 76,76 --bidirectional"
HMLSTM_DECODER = "--output-dim 128 --decoder-hidden-sizes 84,84"
BOUNDARIES = "--criterion boundary_regularized_cross_entropy --boundary-rates {rate}"
MODELS = {
    "lstm": "--arch lstm --encoder-embed-dim 128 --encoder-hidden-size 128 --encoder-bidirectional "
    f"{LSTM_DECODER} --criterion cross_entropy",
    "hmlstm_lstm": f"--arch hmlstm_lstm {ENCODER} --encoder-memory steps {LSTM_DECODER} {BOUNDARIES}",
    "hmlstm_lstm-all-layers": f"--arch hmlstm_lstm {ENCODER} --encoder-memory all-layers --memory-dim 128 "
    f"{LSTM_DECODER} {BOUNDARIES}",
    "hmlstm_lstm-segments": f"--arch hmlstm_lstm {ENCODER} --encoder-memory segments:1 {LSTM_DECODER} {BOUNDARIES}",
    "hmlstm": f"--arch hmlstm {ENCODER} --encoder-memory steps {HMLSTM_DECODER} {BOUNDARIES}",
    "hmlstm-unfed": f"--arch hmlstm {ENCODER} --encoder-memory steps {HMLSTM_DECODER} --no-input-feeding {BOUNDARIES}",
    "hmlstm-segments": f"--arch hmlstm {ENCODER} --encoder-memory segments:1 {HMLSTM_DECODER} {BOUNDARIES}",
    "hmlstm_transformer": f"--arch hmlstm_transformer {ENCODER} --encoder-memory steps --decoder-embed-dim 128 "
    f"--decoder-ffn-embed-dim 192 --decoder-layers 2 {BOUNDARIES}",
}


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("data", type=kinds.path, help="folder of `prepare translation`")
    parser.add_argument(
        "--out", type=kinds.folder_to_write, default="runs/translation", help="folder of checkpoints and logs"
    )
    parser.add_argument("--updates", type=kinds.COUNT, default=1000)
    parser.add_argument("--beam", type=whole(1, 1000), default=5)
    parser.add_argument("--rate", type=Parsed(parse_rates), default=".4", help="target boundary rate of layer 1")
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


def train(name, args, options, rest):
    """Train a model; what fairseq-train has logged of it until now, runs that were interrupted included."""
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    model = MODELS[name].format(rate=args.rate).split()
    training = [*PLUGIN, *TRAINING.split(), "--save-dir", folder, *options, *model, *rest]
    command("fairseq-train", args.data, *training, log=folder / "train.log")
    return (folder / "train.log").read_text(encoding="utf-8")


def run(name, args, rest):
    """Train, translate and score one model; its row of the table."""
    folder, log = args.out / name, train(name, args, [*SAVING.split(), "--max-update", args.updates], rest)
    parameters = int(re.search(r"num\. shared model params: ([0-9,]+)", log).group(1).replace(",", ""))
    perplexity = re.findall(r"valid on .* ppl ([0-9.]+)", log)[-1]
    path = ["--path", folder / "checkpoint_last.pt", "--gen-subset", "test", "--beam", args.beam, "--max-tokens", 2000]
    path += ["--bpe", "sentencepiece", "--sentencepiece-model", next(args.data.glob("spm.*.model"))]
    scoring = ["--scoring", "sacrebleu", "--cpu"]
    output = command("fairseq-generate", args.data, *PLUGIN, *path, *scoring, log=folder / "test.log")
    bleu = float(re.findall(r"BLEU\S* = ([0-9.]+)", output)[-1])
    memory = memory_per_source_symbol(args.data, folder / "checkpoint_last.pt")
    return f"| `{name}` | {parameters:,} | {memory:.2f} | {perplexity} | {bleu:.1f} |"


def compare_speeds(args, rest):
    """Train every model a little, one after the other, several times; a table of the best speeds, since what else a
    machine does only ever slows them."""
    best = dict.fromkeys(args.models, 0.0)
    for _ in range(args.turns):
        for name in args.models:
            (args.out / name / "train.log").unlink(missing_ok=True)
            log = train(name, args, TIMING.split(), rest)
            speeds = [float(speed) for speed in re.findall(r"train_inner.* wps=([0-9.]+)", log)]
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
    print("| | parameters | memory per source symbol | validation perplexity | BLEU |\n|---|---|---|---|---|")
    for name in args.models:
        print(run(name, args, rest), flush=True)


if __name__ == "__main__":
    run_command(main)
