"""Write texts of a random language whose words and phrases are known, without separators.

    fairseq-hmrnn prepare synthetic --dest data/synthetic
    fairseq-hmrnn prepare text data/synthetic/train.txt data/synthetic/valid.txt --dest data/synthetic/bin

DIR gets train.txt, valid.txt, and for `segment --gold` valid.words.txt and valid.phrases.txt, with "|" after each word
and each phrase.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ...data.folders import check_destination
from ...data.synthetic import SyntheticLanguage
from ...options import whole
from ..arguments import GENERATOR_SEED, Parser, folder_to_write
from ..files import write_whole

NAMES = ("train", "valid", "valid.words", "valid.phrases")  # of the texts, less .txt
LINES = whole(1, 10_000_000)  # they are made in memory


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--dest", metavar="DIR", required=True, type=folder_to_write, help="folder for the texts")
    parser.add_argument(
        "--seed", type=GENERATOR_SEED, default=0, metavar="N", help="of the language (default %(default)s)"
    )
    for split, lines in (("train", 5000), ("valid", 200)):
        parser.add_argument(
            f"--{split}-lines", type=LINES, default=lines, metavar="N", help=f"of {split}.txt (default %(default)s)"
        )
    parser.add_argument("--overwrite", action="store_true", help="replace texts of these names that are in DIR")


def run(args: argparse.Namespace) -> None:
    dest = Path(args.dest)
    taken = any((dest / f"{name}.txt").exists() for name in NAMES)
    check_destination(args.dest, args.overwrite or not taken)
    language = SyntheticLanguage(args.seed)
    valid = language.draw(args.valid_lines, seed=2)
    dest.mkdir(parents=True, exist_ok=True)
    texts = (language.draw(args.train_lines, seed=1).text, valid.text, valid.words, valid.phrases)
    for name, text in zip(NAMES, texts):
        path = dest / f"{name}.txt"
        write_whole(str(path), text)
        print(f"{path}: {text.count(chr(10)):,} lines")
