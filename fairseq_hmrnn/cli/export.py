"""Write one step of a language model to a file that needs neither fairseq nor this package.

    fairseq-hmrnn export checkpoints/mytext --out step.ts

The file holds a function: (tokens (B,), state (B, S)) to (log-probabilities (B, V), boundaries (B, L), state (B, S)).
The symbols, the begin symbol, those never to sample and S are written beside it, in OUT.json. What was written is
checked against the model.
"""

from __future__ import annotations

import argparse
import json

from ..inference import export, loading
from ..inference.transcript import symbol_texts
from .arguments import Parser, add_checkpoint, new_file, prepared_folder
from .errors import UserError
from .files import whole_file, write_whole

TOLERANCE = 1e-4  # on log-probabilities, float32


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=prepared_folder,
        help="the folder with dict.txt, if the checkpoint does not carry it",
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=new_file, help="file to write")
    parser.add_argument(
        "--format",
        choices=export.FORMATS,
        default="torchscript",
        help="of the file (default %(default)s); torch.export requires a name that ends in .pt2",
    )


def run(args: argparse.Namespace) -> None:
    if args.format == "torch.export" and not args.out.endswith(".pt2"):
        raise UserError("torch.export requires a file name that ends in .pt2")
    new_file(args.out + ".json")
    model = loading.load([args.checkpoint], args.data)
    decoder = model.models[0].decoder
    if not hasattr(decoder, "hm_lstm"):
        raise UserError(f"{args.checkpoint} is not an HM-LSTM language model")
    about = {"symbols": symbol_texts(model.task, model.bpe), "begin": model.begin, "never": model.never}
    step = export.StepFunction(decoder)
    with whole_file(args.out) as unfinished:
        export.export(step, unfinished, args.format)
        worst = export.largest_difference(export.load_step(unfinished, args.format), step)
        if not worst < TOLERANCE:
            raise UserError(f"what was exported differs from the model by {worst}: nothing was written")
    write_whole(args.out + ".json", json.dumps({**about, "state_size": step.state_size}))
    print(f"written: {args.out} and {args.out}.json; largest difference to the model {worst:.1e}")
