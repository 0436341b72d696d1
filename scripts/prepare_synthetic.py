#!/usr/bin/env python3
"""Write texts of a random language whose words and phrases are known, without separators: train.txt, valid.txt, and
valid.words.txt and valid.phrases.txt with "|" behind each word and phrase, for segment.py --gold. Then binarise them:
prepare_text.py DEST/train.txt DEST/valid.txt --dest DEST/bin"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_hmrnn.data.synthetic import SyntheticLanguage  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dest", required=True, type=Path, help="folder for the texts")
    parser.add_argument("--seed", type=int, default=0, help="of the language (default: 0)")
    parser.add_argument("--train-lines", type=int, default=5000)
    parser.add_argument("--valid-lines", type=int, default=200)
    arguments = parser.parse_args()
    if min(arguments.train_lines, arguments.valid_lines) < 1:
        parser.error("there must be at least one line of each text")
    language = SyntheticLanguage(arguments.seed)
    valid = language.draw(arguments.valid_lines, seed=2)
    arguments.dest.mkdir(parents=True, exist_ok=True)
    texts = {"train": language.draw(arguments.train_lines, seed=1).text, "valid": valid.text}
    texts.update({"valid.words": valid.words, "valid.phrases": valid.phrases})
    for name, text in texts.items():
        path = arguments.dest / f"{name}.txt"
        path.write_bytes(text.encode())
        print(f"{path}: {text.count(chr(10)):,} lines")


if __name__ == "__main__":
    main()
