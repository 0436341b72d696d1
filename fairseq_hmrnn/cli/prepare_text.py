"""prepare_text: binarise text for character-level language models."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Dict, List, Optional

from ..data.binarize import TextSource, check_destination, embedded_text, prepare
from .arguments import SHARE, Parser, existing_file, folder_to_write
from .errors import UserError

NEXT_COMMAND = (
    "fairseq-train {data} --user-dir fairseq_hmrnn --task hmlstm_language_modeling --arch hmlstm_lm "
    "--criterion boundary_regularized_cross_entropy --boundary-rates .2,.05 --optimizer adam --lr 0.002 --clip-norm 1 "
    "--batch-size 32 --tokens-per-sample 100 --max-epoch 10 --best-checkpoint-metric bpc --save-dir {save_dir}"
)


def _parser() -> Parser:
    parser = Parser(
        description="Binarise plain text for character-level language models: every character is one token. Missing "
        "splits are cut from the end of the training text at line borders.",
    )
    parser.add_argument("train", nargs="?", metavar="TRAIN", type=existing_file, help="training text, UTF-8")
    parser.add_argument("valid", nargs="?", metavar="VALID", type=existing_file, help="validation text")
    parser.add_argument("test", nargs="?", metavar="TEST", type=existing_file, help="test text")
    parser.add_argument("--embedded", action="store_true",
                        help="use CPython's own documentation topics instead of TRAIN")
    parser.add_argument("--dest", required=True, metavar="DIR", type=folder_to_write, help="where the data is written")
    parser.add_argument("--dict", metavar="FILE", type=existing_file,
                        help="use this dict.txt instead of one from the training split")
    parser.add_argument("--valid-fraction", type=SHARE, default=0.05, metavar="F",
                        help="share of TRAIN cut off for validation if there is no VALID (default %(default)s)")
    parser.add_argument("--test-fraction", type=SHARE, default=0.05, metavar="F",
                        help="share of TRAIN cut off for testing if there is no TEST (default %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace data that is in DIR already")
    return parser


def _sources(args: argparse.Namespace) -> Dict[str, TextSource]:
    """The texts that the command line names."""
    if args.embedded:
        if args.train is not None:
            raise UserError("--embedded brings its own text: leave TRAIN, VALID and TEST out")
        return {"train": TextSource.from_text("the embedded text", embedded_text())}
    if args.train is None:
        raise UserError("no text: give a TRAIN file, or --embedded")
    paths = {"train": args.train, "valid": args.valid, "test": args.test}
    return {name: TextSource.from_file(path) for name, path in paths.items() if path is not None}


def _fractions(args: argparse.Namespace) -> Dict[str, float]:
    fractions = {"valid": args.valid_fraction, "test": args.test_fraction}
    if sum(fractions.values()) >= 1:
        raise UserError("--valid-fraction and --test-fraction leave nothing to train on: give smaller numbers")
    return fractions


def main(argv: Optional[List[str]] = None) -> None:
    """Prepare the folder and say how to train on it. argv: arguments; None: those of the process."""
    args = _parser().parse_args(argv)
    fractions = _fractions(args)
    check_destination(args.dest, args.overwrite)
    report = prepare(_sources(args), args.dest, fractions, args.dict)
    print("\n".join(report))
    save_dir = os.path.join("checkpoints", os.path.basename(os.path.abspath(args.dest)))
    print(f"written to {args.dest}. To train on it:")
    print(NEXT_COMMAND.format(data=shlex.quote(args.dest), save_dir=shlex.quote(save_dir)))
