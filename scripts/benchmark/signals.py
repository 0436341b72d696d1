#!/usr/bin/env python3
"""How well the signals that taught a language model's detectors find boundaries by themselves.

    python scripts/benchmark/signals.py checkpoints/unspaced/checkpoint_last.pt --text test.txt --gold test.words.txt

The criterion is loaded with what it learned beside the model: the network that reads from right to left, and the
lexicon. Of every layer whose detector listened to something, as many boundaries as it makes are put where the signal is
highest. Of `lexicon` there is what the detector was taught too, the best segmentation by signal and lexicon, and of the
highest places there are as many. Rows are lines, or windows of the running text.
"""

from typing import Dict, Iterator, List

import numpy as np
import torch
from fairseq import checkpoint_utils
from torch.nn.utils.rnn import pad_sequence

from fairseq_hmrnn.analysis import segments
from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import UserError, run_command
from fairseq_hmrnn.cli.files import read_text
from fairseq_hmrnn.cli.gold import add_gold, check_separator, gold_boundaries
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import layer_steps
from fairseq_hmrnn.criterions.boundary_regularizers import REGULARIZERS, Signals
from fairseq_hmrnn.criterions.boundary_terms import listening
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
    """Samples as of training, each row behind a line end, and the places of their symbols in the text; tokens: (T,)."""
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


class Found:
    """What a signal says of every place of a text: bool or values behind each symbol, where there is one."""

    def __init__(self, length: int):
        self.values, self.marks = np.full(length, -np.inf), np.zeros(length, dtype=bool)

    def highest(self, count: int) -> np.ndarray:
        count = min(count, int(np.isfinite(self.values).sum()))
        marks = np.zeros(len(self.values), dtype=bool)
        marks[np.argsort(-self.values, kind="stable")[:count]] = True
        return marks


@torch.no_grad()
def read(model, criterion, sample, names: List[str], found: List[Found], closed: np.ndarray) -> None:
    """What the detectors of a batch's rows do, and what they would have been taught."""
    output = model(**sample["net_input"])
    trace, tokens = output[1]["trace"], sample["net_input"]["src_tokens"]
    behind = sample["places"].numpy() - 1  # a step reads the symbol before its target; the first reads none of the text
    heard = {}
    for need in ("signals", "right_to_left"):
        if any(name and need in REGULARIZERS[name].needs for name in names):
            heard[need] = Signals(*criterion._hear(need, model, output, sample, names[0])[1])
    own = (sample["places"].numpy() >= 0) & (np.arange(behind.shape[1]) > 0)
    for layer, name in enumerate(names):
        closed[behind[own], layer] = trace.boundaries[..., layer].numpy()[own] > 0.5
        if name is None:
            continue
        steps = layer_steps(trace, layer, criterion.targets.share(layer), **heard)
        values, known = REGULARIZERS[name].signal(steps)
        ends = behind - REGULARIZERS[name].late
        where = own & known.numpy() & (ends >= 0)
        if layer:  # chooses among the places where the layer below closes a segment
            where &= (steps.z_below > 0.5).numpy()
        found[layer].values[ends[where]] = values.numpy()[where]
        if name == "lexicon":
            begins = criterion.targets.found.begins(tokens, values, known).numpy()
            found[layer].marks[ends[where & begins]] = True


def main() -> None:
    args = parse_arguments()
    model, criterion, task = load(args.checkpoint)
    text, dictionary = read_text(args.text), task.source_dictionary
    golds = gold_boundaries(args.gold, text, args.separator)
    names = [listening(criterion.terms[min(layer, len(criterion.terms) - 1)]) for layer in range(len(criterion.rates))]
    if not any(names):
        raise UserError(f"no detector of {args.checkpoint} listened to a signal: there is none to compare")
    tokens = torch.tensor([dictionary.index(symbol) for symbol in encode(text)])
    found, closed = [Found(len(text)) for _ in names], np.zeros((len(text), len(names)), dtype=bool)
    for sample in batches(tokens, args.window, dictionary.eos(), dictionary.pad()):
        read(model, criterion, sample, names, found, closed)
    print(f"{'':37s}boundaries           F1 of tokens\nlayer              gold         rate    P     R    F1")
    for layer, name in enumerate(names):
        if name is None:
            continue
        taught = {"lexicon, taught": found[layer].marks} if name == "lexicon" else {}
        count = int((found[layer].marks if taught else closed[:, layer]).sum())
        for row, marks in {f"{name}, highest": found[layer].highest(count), **taught}.items():
            for alignment, gold in golds.items():
                scores, tokens_f1 = segments.boundary_scores(marks, gold), segments.token_scores(marks, gold).f1
                figures = f"{scores.precision:5.3f} {scores.recall:5.3f} {scores.f1:5.3f}   {tokens_f1:5.3f}"
                print(f"{layer + 1:2d} {row:22s} {alignment:11s} {marks.mean():5.3f} {figures}")


if __name__ == "__main__":
    run_command(main)
