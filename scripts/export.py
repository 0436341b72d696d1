#!/usr/bin/env python3
"""Write one step of a language model to a file that needs neither fairseq nor this package.

    python scripts/export.py checkpoints/mytext --out model.ts

The file holds a function: (tokens (B,), state (B, S)) to (log-probabilities (B, V), boundaries (B, L), state (B, S)).
The symbols, the begin symbol, those never to sample and S are written beside it, in OUT.json. What was written is
checked against the model.
"""

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import fairseq_hmrnn  # noqa: E402, F401  (registers the models)
from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import UserError, run_command  # noqa: E402
from fairseq_hmrnn.cli.files import whole_file, write_whole  # noqa: E402
from fairseq_hmrnn.inference import export, hub  # noqa: E402
from fairseq_hmrnn.inference.transcript import symbol_texts  # noqa: E402

TOLERANCE = 1e-4  # on log-probabilities, float32


def load_step(path, kind):
    """The written function, as a user would load it."""
    if kind == "torchscript":
        return torch.jit.load(path)
    if kind == "torch.export":
        return torch.export.load(path).module()
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError("the ONNX file cannot be checked without onnxruntime: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path))

    def step(tokens, state):
        return tuple(map(torch.from_numpy, session.run(None, {"tokens": tokens.numpy(), "state": state.numpy()})))

    return step


@torch.no_grad()
def largest_difference(step, function, decoder, batch_size=3, steps=25):
    """Between the file and the model on random symbols, over a batch of another size than it was traced with."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(decoder.dictionary)
    tokens = torch.randint(vocabulary, (batch_size, steps), generator=generator)
    tokens[tokens == decoder.padding_idx] = 0
    features, extra = decoder.extract_features(tokens)
    logits = decoder.predict(features)
    state, differences = torch.zeros(batch_size, function.state_size, dtype=logits.dtype), []
    for t in range(steps):
        log_probs, boundaries, state = step(tokens[:, t], state)
        differences.append((log_probs - logits[:, t].log_softmax(1)).abs().max())
        differences.append((boundaries - extra["boundaries"][:, t]).abs().max())
    return float(torch.stack(differences).max())  # NaN if any is, unlike Python's max


def parse_args():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=kinds.path, help="a checkpoint, or a folder with checkpoint_best.pt")
    parser.add_argument(
        "--data", metavar="DIR", type=kinds.prepared_folder,
        help="the folder with dict.txt, if the checkpoint does not carry it",
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=kinds.new_file)
    parser.add_argument("--format", choices=["torchscript", "torch.export", "onnx"], default="torchscript")
    args = parser.parse_args()
    if args.format == "torch.export" and not args.out.endswith(".pt2"):
        parser.error("torch.export requires a file name that ends in .pt2")
    kinds.new_file(args.out + ".json")
    return args


def main():
    args = parse_args()
    logging.disable(logging.INFO)
    model = hub.load([args.checkpoint], args.data)
    decoder = model.models[0].decoder
    if not hasattr(decoder, "hm_lstm"):
        raise UserError(f"{args.checkpoint} is not an HM-LSTM language model")
    function = export.StepFunction(decoder)
    with whole_file(args.out) as unfinished:
        export.export(function, unfinished, args.format)
        worst = largest_difference(load_step(unfinished, args.format), function, decoder)
        if not worst < TOLERANCE:
            raise UserError(f"what was exported differs from the model by {worst}: nothing was written")
    symbols = symbol_texts(model.task, model.bpe)
    never = [model.tgt_dict.pad(), model.tgt_dict.unk(), model.tgt_dict.bos()]
    about = {"symbols": symbols, "begin": model.begin, "never": never, "state_size": function.state_size}
    write_whole(args.out + ".json", json.dumps(about))
    print(f"written: {args.out} and {args.out}.json; largest difference to the model {worst:.1e}")


if __name__ == "__main__":
    run_command(main)
