#!/usr/bin/env python3
"""Draw a text with the boundaries that a model finds in it, as in the figures of the HM-LSTM paper."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from fairseq import checkpoint_utils  # noqa: E402

from fairseq_hmrnn.analysis.plots import plot_boundaries  # noqa: E402
from fairseq_hmrnn.compat import UnsafeCheckpointError  # noqa: E402
from fairseq_hmrnn.data.characters import encode  # noqa: E402


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="of an hmlstm_lm trained on characters")
    parser.add_argument("data", help="the prepared folder it was trained on (for its dict.txt)")
    parser.add_argument("--text", default="-", help="a UTF-8 file; - reads standard input (default)")
    parser.add_argument("--out", default="boundaries.png", help=".png, .svg or .pdf (default: boundaries.png)")
    parser.add_argument("--title", help="over the picture")
    return parser.parse_args()


def find_boundaries(checkpoint: str, data: str, text: str):
    """(T, L) array of the boundaries after each character of the text, with a newline before it."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([checkpoint], arg_overrides={"data": data})
    if not getattr(task, "has_characters", False) or not hasattr(model.decoder, "hm_lstm"):
        raise ValueError(f"{checkpoint} is not an HM-LSTM language model of characters")
    dictionary = task.source_dictionary
    tokens = [dictionary.eos()] + [dictionary.index(symbol) for symbol in encode(text)]
    with torch.no_grad():
        _, extra = model.eval()(torch.tensor([tokens]))
    return extra["boundaries"][0, 1:, : extra["num_detectors"]].numpy()


def main():
    arguments = parse_arguments()
    try:
        text = (sys.stdin.buffer.read() if arguments.text == "-" else Path(arguments.text).read_bytes()).decode()
        if not text:
            raise ValueError("the text is empty: there is nothing to draw")
        boundaries = find_boundaries(arguments.checkpoint, arguments.data, text)
        plot_boundaries(text, boundaries, arguments.out, title=arguments.title)
    except (OSError, ImportError, ValueError, UnsafeCheckpointError) as error:
        sys.exit(f"plot_boundaries: {error}")
    for layer, rate in enumerate(boundaries.mean(0), 1):
        print(f"layer {layer}: a boundary every {1 / rate:.1f} characters" if rate else f"layer {layer}: no boundary")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
