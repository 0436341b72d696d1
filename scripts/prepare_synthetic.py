#!/usr/bin/env python3
"""Write texts of a random language whose words and phrases are known, without separators: train.txt, valid.txt, and
valid.words.txt and valid.phrases.txt with "|" behind each word and phrase, for segment.py --gold. Then binarise them:
prepare_text.py DEST/train.txt DEST/valid.txt --dest DEST/bin"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import run_command  # noqa: E402
from fairseq_hmrnn.cli.files import write_whole  # noqa: E402
from fairseq_hmrnn.data.synthetic import SyntheticLanguage  # noqa: E402
from fairseq_hmrnn.options import whole  # noqa: E402

LINES = whole(1, 10_000_000)  # they are made in memory


def main():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--dest", required=True, type=kinds.folder_to_write, help="folder for the texts")
    parser.add_argument("--seed", type=kinds.SEED, default=0, help="of the language (default: 0)")
    parser.add_argument("--train-lines", type=LINES, default=5000)
    parser.add_argument("--valid-lines", type=LINES, default=200)
    arguments = parser.parse_args()
    language = SyntheticLanguage(arguments.seed)
    valid = language.draw(arguments.valid_lines, seed=2)
    dest = Path(arguments.dest)
    dest.mkdir(parents=True, exist_ok=True)
    texts = {"train": language.draw(arguments.train_lines, seed=1).text, "valid": valid.text}
    texts.update({"valid.words": valid.words, "valid.phrases": valid.phrases})
    for name, text in texts.items():
        path = dest / f"{name}.txt"
        write_whole(str(path), text)
        print(f"{path}: {text.count(chr(10)):,} lines")


if __name__ == "__main__":
    run_command(main)
