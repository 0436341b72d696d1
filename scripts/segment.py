#!/usr/bin/env python3
"""Segment text with a trained HM-LSTM: segment.py CHECKPOINT < TEXT.

Text of any length, read as it comes, the model's state carried on. Output: the text with a separator behind each
segment; JSON lines, one for each stretch that no layer cuts; or, with --gold, a table of how well the boundaries agree
with gold ones, beside random boundaries, every k-th character, and peaks of the model's own surprisal and entropy.
"""

import codecs
import json
import logging
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq_hmrnn.analysis import segments  # noqa: E402
from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import run_command  # noqa: E402
from fairseq_hmrnn.cli.files import not_utf8, open_bytes, read_text  # noqa: E402
from fairseq_hmrnn.inference.reader import CharacterReader, Reading  # noqa: E402
from fairseq_hmrnn.options import LARGEST_SIZE, whole  # noqa: E402

CHUNK_BYTES = 1 << 14


def gold_source(argument):
    """whitespace, lines, or a file."""
    return argument if argument in ("whitespace", "lines") else kinds.existing_file(argument)


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=kinds.path, help="of an hmlstm_lm trained on characters")
    parser.add_argument(
        "--data", type=kinds.prepared_folder,
        help="the prepared folder with its dict.txt (default: the one it was trained on)",
    )
    parser.add_argument(
        "--text", default="-", type=kinds.file_or_input, help="a UTF-8 file; - reads standard input (default)"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text")
    parser.add_argument(
        "--layer", type=whole(1, 1000), help="whose boundaries, from 1 (default: 1; json and --gold have all)"
    )
    parser.add_argument(
        "--separator", default="|", type=kinds.separator, help="behind each segment, here and in --gold (default: |)"
    )
    parser.add_argument(
        "--gold",
        type=gold_source,
        help="compare with: whitespace (word ends), lines (sentence ends), or a file, the same text with separators",
    )
    parser.add_argument(
        "--lookahead",
        type=whole(0, LARGEST_SIZE),
        default=0,
        help="characters that a layer reads of the next segment before it closes one: boundaries are put that far back "
        "(default: 0; 1 for layers trained with bidirectional)",
    )
    parser.add_argument("--seed", type=kinds.SEED, default=0, help="of the random baseline")
    arguments = parser.parse_args()
    if arguments.gold and arguments.format == "json":
        parser.error("--gold prints a table: leave --format json out")
    if arguments.layer is None:
        arguments.layer = 1
    elif arguments.gold or arguments.format == "json":
        parser.error("--gold and --format json have all layers: leave --layer out")
    return arguments


def pieces(source):
    """The text, piece by piece, as soon as there is any."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(source) as file:
        read = getattr(file, "read1", file.read)
        while True:
            data = read(CHUNK_BYTES)
            begun = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                name = "standard input" if source == "-" else source
                raise not_utf8(name, position - begun + error.start) from error
            position += len(data)
            if text:
                yield text
            if not data:
                return


def closings(reader, texts, lookahead):
    """Pieces of the text, each with the boundaries (characters, layers) behind its characters, which are known
    `lookahead` characters later."""
    pending = ""
    for text in texts:
        boundaries = reader.read(text).boundaries > 0.5
        pending += text
        ready = len(pending) - lookahead
        if ready > 0:
            yield pending[:ready], boundaries[-ready:]
            pending = pending[ready:]
    yield pending, np.zeros((len(pending), reader.num_detectors), dtype=bool)


def write_text(closed, layer, separator):
    for text, boundaries in closed:
        sys.stdout.write("".join(c + separator if mark else c for c, mark in zip(text, boundaries[:, layer])))
        sys.stdout.flush()


def write_json(closed):
    """{"start", "stop", "text", "layers"}: characters start to stop of the text, and the layers that end there."""
    start, pending = 0, ""
    for text, boundaries in closed:
        for character, closing in zip(text, boundaries.tolist()):
            pending += character
            if any(closing):
                layers = [layer for layer, closes in enumerate(closing, 1) if closes]
                write_line(start, pending, layers)
                start, pending = start + len(pending), ""
        sys.stdout.flush()
    if pending:
        write_line(start, pending, [])


def write_line(start, text, layers):
    record = {"start": start, "stop": start + len(text), "text": text, "layers": layers}
    print(json.dumps(record, ensure_ascii=False))


def golds_for(name, text, separator):
    """Gold boundaries by alignment."""
    if name == "whitespace":
        return segments.word_gold(text)
    if name == "lines":
        return {"newline": segments.line_gold(text)}
    marks = segments.segmented_gold(text, read_text(name), separator)
    return {"file": marks, "file, late": segments.late(marks)}


def write_comparison(reading: Reading, golds, seed):
    """A table for every layer: scores under each alignment, beside those of the baselines."""
    boundaries = reading.boundaries > 0.5
    print(f"{len(boundaries)} characters")
    print("layer boundaries        rate  length  gold          P     R    F1  F1 +-1  F1 segments")
    for layer in range(boundaries.shape[1]):
        found = boundaries[:, layer]
        others = segments.baselines(found, reading.next_surprisal, reading.entropy, seed)
        for name, marks in {"detector": found, **others}.items():
            for alignment, gold in golds.items():
                scores, near = segments.boundary_scores(marks, gold), segments.boundary_scores(marks, gold, 1)
                whole = segments.segment_scores(marks, gold)
                print(
                    f"{layer + 1:5d} {name:16s} {marks.mean():6.3f} {segments.mean_length(marks):7.1f}  "
                    f"{alignment:11s} {scores.precision:5.3f} {scores.recall:5.3f} {scores.f1:5.3f}   {near.f1:5.3f}"
                    f"        {whole.f1:5.3f}"
                )
    for layer in range(1, boundaries.shape[1]):
        pair = boundaries[:, layer - 1], boundaries[:, layer]
        nested, kappa = segments.nestedness(*pair), segments.agreement(*pair)
        print(f"layers {layer} and {layer + 1}: nested {nested:.3f}, agreement (kappa) {kappa:.3f}")
    for alignment, gold in golds.items():
        print(f"gold boundaries, {alignment}: {(gold.boundary | gold.edge).mean():.3f} of all characters, with edges")


def main():
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    reader = CharacterReader(arguments.checkpoint, arguments.data)
    if arguments.layer > reader.num_detectors:
        raise ValueError(f"there is no layer {arguments.layer} with a detector: choose 1 to {reader.num_detectors}")
    if arguments.gold:
        text = read_text(arguments.text)
        if not text:
            raise ValueError("the text is empty: there is nothing to compare")
        golds = golds_for(arguments.gold, text, arguments.separator)
        write_comparison(reader.read(text).closed_earlier(arguments.lookahead), golds, arguments.seed)
        return
    closed = closings(reader, pieces(arguments.text), arguments.lookahead)
    if arguments.format == "json":
        write_json(closed)
    else:
        write_text(closed, arguments.layer - 1, arguments.separator)


if __name__ == "__main__":
    run_command(main)
