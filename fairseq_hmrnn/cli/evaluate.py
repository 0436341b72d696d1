"""Score a split of a prepared text, also while the model learns from what it has scored.

    fairseq-hmrnn evaluate checkpoints/mytext data/mytext --subset test
    fairseq-hmrnn evaluate checkpoints/mytext data/mytext --subset valid --dynamic --learning-rate 3e-5 --decay 0.001

Reads the split as one stream and prints bits per symbol, as fairseq-eval-lm --stateful does. With --dynamic the
weights follow the text (dynamic evaluation, arXiv 1709.07432): a segment is scored, then learned from. Choose learning
rate and decay on the validation split; --first 50000 scores its first symbols, which takes less time.
"""

from __future__ import annotations

import argparse
import math
from itertools import islice
from typing import List, Optional

from fairseq.utils import get_perplexity
from torch import Tensor

from ..inference import loading
from ..inference.dynamic_evaluation import DynamicEvaluation, DynamicOptions, TextWindows, gradient_rms, nats_of_mean
from ..inference.reader import WINDOW
from ..options import number
from . import arguments as kinds
from .errors import UserError
from .progress import counted, progress_bar

DEFAULT = DynamicOptions()
DEFAULT_BATCHES, DEFAULT_STREAMS = 200, 32
STATISTICS_WINDOW = 100


def add_arguments(parser: kinds.Parser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="+",
        type=kinds.path,
        help="of an hmlstm_lm, or a folder with one; several: an ensemble, the mean of their probabilities",
    )
    add("data", metavar="DATA", type=kinds.prepared_folder, help="the prepared folder")
    add("--subset", metavar="SPLIT", default="test", type=kinds.path, help="train, valid or test (default %(default)s)")
    add("--first", metavar="N", type=kinds.COUNT, help="score the first N symbols of the split alone")
    add("--dynamic", action="store_true", help="learn from each segment after it was scored")
    group = parser.add_argument_group("with --dynamic")
    add = group.add_argument
    add(
        "--learning-rate",
        metavar="R",
        type=number(0, 1),
        default=DEFAULT.learning_rate,
        help="of a step, in units of the gradient's root mean square (default %(default)s)",
    )
    add(
        "--decay",
        metavar="D",
        type=kinds.RATE,
        default=DEFAULT.decay,
        help="how much of the way back to the checkpoint's weights a step goes (default %(default)s)",
    )
    add(
        "--segment",
        metavar="N",
        type=kinds.STEPS,
        default=DEFAULT.segment,
        help="symbols that are scored before the weights change (default %(default)s)",
    )
    add(
        "--epsilon",
        metavar="E",
        type=number(0, 1, open_below=True),
        default=DEFAULT.epsilon,
        help="added to the root mean square before dividing by it (default %(default)s)",
    )
    add(
        "--statistics",
        metavar="N",
        type=kinds.COUNT,
        default=DEFAULT_BATCHES,
        help="batches of the training split that the root mean squares are taken from (default %(default)s)",
    )
    add(
        "--streams",
        metavar="N",
        type=kinds.BATCH_SIZE,
        default=DEFAULT_STREAMS,
        help=f"windows of {STATISTICS_WINDOW} symbols of such a batch (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    given = DynamicOptions(args.learning_rate, args.decay, args.segment, args.epsilon)
    batches = (args.statistics, args.streams)
    if not args.dynamic and (given != DEFAULT or batches != (DEFAULT_BATCHES, DEFAULT_STREAMS)):
        raise UserError("--learning-rate, --decay, --segment, --epsilon, --statistics and --streams require --dynamic")
    loaded = loading.load(args.checkpoint, args.data)
    decoders = [model.decoder for model in loaded.models]
    for path, decoder in zip(args.checkpoint, decoders):
        if not hasattr(decoder, "hm_lstm"):
            raise UserError(f"{path} is not an HM-LSTM language model")
    dictionaries = (loaded.src_dict, loaded.tgt_dict)
    options = given if args.dynamic else DynamicOptions(0.0)
    window = options.segment if args.dynamic else WINDOW
    text = TextWindows(args.data, args.subset, *dictionaries, window, first=args.first)
    rms: List[Optional[List[Tensor]]] = [None] * len(decoders)
    if args.dynamic:
        windows = TextWindows(args.data, "train", *dictionaries, STATISTICS_WINDOW, args.streams)
        total = min(args.statistics, len(windows))
        with progress_bar(total * len(decoders), " batches", label="RMS of gradients") as progress:
            rms = [gradient_rms(decoder, counted(islice(windows, total), progress)) for decoder in decoders]
    evaluations = [DynamicEvaluation(decoder, sizes, options) for decoder, sizes in zip(decoders, rms)]
    nats = 0.0
    with progress_bar(text.num_symbols, " symbols") as progress:
        for segments in zip(*(evaluation.score(text) for evaluation in evaluations)):
            nats += nats_of_mean(segments).double().sum().item()
            progress.update(segments[0].numel())
    print(_score(nats, text.num_symbols))


def _score(nats: float, symbols: int) -> str:
    """As fairseq-eval-lm prints it; also where weights that follow the text have diverged."""
    bits = nats / symbols / math.log(2)
    return f"Evaluated {symbols} tokens, Loss (base 2): {bits:.4f}, Perplexity: {get_perplexity(bits):.2f}"
