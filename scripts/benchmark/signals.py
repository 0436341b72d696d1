#!/usr/bin/env python3
"""How well the signals that taught a language model's detectors find boundaries by themselves.

    python scripts/benchmark/signals.py checkpoints/unspaced/checkpoint_last.pt --text test.txt --gold test.words.txt

The criterion is loaded with what it learned beside the model: the network that reads from right to left, and the
lexicon. Of every layer whose detector listened to something, as many boundaries as it makes are put where the signal is
highest. Of `lexicon` there is what the detector was taught too, the best segmentation by signal and lexicon, and of the
highest places there are as many. Rows are lines, or windows of the running text.
"""

import math
from typing import Dict, Iterator, NamedTuple

import numpy as np
import torch
from fairseq import checkpoint_utils
from torch.nn.utils.rnn import pad_sequence

from fairseq_hmrnn.analysis import segments
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.files import read_text
from fairseq_hmrnn.cli.gold import add_gold, check_separator, gold_boundaries
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, LayerSteps, top_share
from fairseq_hmrnn.data.characters import encode
from fairseq_hmrnn.options import whole

ROWS = 32  # read at once


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=kinds.existing_file)
    parser.add_argument("--text", required=True, type=kinds.existing_file)
    add_gold(parser)
    parser.add_argument("--window", type=whole(2), help="symbols of a row; default: a row is a line")
    args = parser.parse_args()
    if not args.gold:
        raise UserError("boundaries to compare with are missing: give --gold")
    check_separator(args)
    return args


def load(path: str):
    """The model and its criterion, both as the training left them, with the task."""
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], state=state)
    criterion = task.build_criterion(cfg.criterion)
    if state.get("criterion"):
        criterion.load_state_dict(state["criterion"])
    criterion.load_training_state(state["extra_state"].get("criterion") or {})
    return model.eval(), criterion.eval(), task


def batches(tokens: torch.Tensor, size, line_end: int, padding: int) -> Iterator[Dict]:
    """Samples as of training, each row after a line end, and the places of their symbols in the text; tokens: (T,)."""
    ends = np.flatnonzero(tokens.numpy() == line_end) + 1 if size is None else np.arange(size, len(tokens), size)
    bounds = sorted({0, *ends.tolist(), len(tokens)})
    rows = sorted(zip(bounds, bounds[1:]), key=lambda row: row[0] - row[1])
    for first in range(0, len(rows), ROWS):
        places = [torch.arange(*row) for row in rows[first : first + ROWS]]
        read = [torch.cat([tokens.new_tensor([line_end]), tokens[place]]) for place in places]
        source, target = (
            pad_sequence(part, True, padding) for part in ([row[:-1] for row in read], [row[1:] for row in read])
        )
        yield {
            "net_input": {"src_tokens": source, "src_lengths": source.ne(padding).sum(1)},
            "target": target,
            "places": pad_sequence(places, True, -1),  # of the targets
        }


class Found(NamedTuple):
    """Behind each symbol of a text, (detectors, T): the signals, -inf where there is none, inf where a lexicon is told
    that lines end; whether detectors close a segment, and whether they would have been taught to by a lexicon."""

    values: torch.Tensor
    closed: torch.Tensor
    taught: torch.Tensor

    @classmethod
    def nothing(cls, detectors: int, length: int) -> "Found":
        closed = torch.zeros(detectors, length, dtype=torch.bool)
        return cls(torch.full(closed.shape, -math.inf), closed, closed.clone())


@torch.no_grad()
def read(model, criterion, sample, found: Found) -> None:
    """What is found in a batch's rows."""
    output = model(**sample["net_input"])
    trace, tokens, places = output[1]["trace"], sample["net_input"]["src_tokens"], sample["places"]
    behind = places - 1  # a step reads the symbol before its target; the first reads none of the text
    predictions = criterion.predictions(model, output, sample)
    own = (places >= 0) & (torch.arange(places.size(1)) > 0)
    for layer, name in enumerate(criterion.targets.heard):
        found.closed[layer, behind[own]] = trace.boundaries[..., layer][own] > 0.5
        if name is None:
            continue
        steps = LayerSteps.of(trace, layer, criterion.targets.share(layer), **predictions.of(name))
        values, known = REGULARIZERS[name].signal(steps)
        if name == "lexicon":
            values = criterion.targets.certain_at_line_ends(tokens, values)
        ends = behind - REGULARIZERS[name].delay
        where = own & known & (ends >= 0)
        if layer:  # chooses among the places where the layer below closes a segment
            where &= steps.z_below > 0.5
        found.values[layer, ends[where]] = values[where]
        if name == "lexicon":
            begins = criterion.targets.estimator.begins(tokens, values, known)
            found.taught[layer, ends[where & begins]] = True


def main() -> None:
    args = parse_arguments()
    model, criterion, task = load(args.checkpoint)
    text, dictionary = read_text(args.text), task.source_dictionary
    golds = gold_boundaries(args.gold, text, args.separator)
    names = criterion.targets.heard
    if not any(names):
        raise UserError(f"no detector of {args.checkpoint} listened to a signal: there is none to compare")
    tokens = torch.tensor([dictionary.index(symbol) for symbol in encode(text)])
    found = Found.nothing(len(names), len(text))
    for sample in batches(tokens, args.window, dictionary.eos(), dictionary.pad()):
        read(model, criterion, sample, found)
    print(f"{'':37s}boundaries           F1 of tokens\nlayer              gold         rate    P     R    F1")
    for layer, name in enumerate(names):
        if name is None:
            continue
        taught = {"lexicon, taught": found.taught[layer]} if name == "lexicon" else {}
        best = highest(found.values[layer], (found.taught if taught else found.closed)[layer])
        for row, marks in {f"{name}, highest": best, **taught}.items():
            for alignment, gold in golds.items():
                print(f"{layer + 1:2d} {row:22s} {alignment:11s} {figures(marks.numpy(), gold)}")


def highest(values: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """bool (T,): as many of the highest values as there are marks, all that are inf among them."""
    certain = values == math.inf
    return top_share(values, values.isfinite(), (marks.sum() - certain.sum()).clamp(min=0)) | certain


def figures(marks: np.ndarray, gold: segments.Gold) -> str:
    """The rate, the scores of boundaries, and F1 of tokens."""
    scores, tokens = segments.boundary_scores(marks, gold), segments.token_scores(marks, gold)
    return f"{marks.mean():5.3f} {scores.precision:5.3f} {scores.recall:5.3f} {scores.f1:5.3f}   {tokens.f1:5.3f}"


if __name__ == "__main__":
    run_command(main)
