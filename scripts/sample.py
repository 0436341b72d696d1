#!/usr/bin/env python3
"""Sample text from a language model, character by character, as long as you like.

    python scripts/sample.py checkpoints/mytext --prompt "Once upon" --temperature 0.7
    printf 'Once upon' | python scripts/sample.py checkpoints/mytext --prompt - --length 1000000 > text.txt

Works with HM-LSTM language models and with fairseq's lstm_lm. Several checkpoints make an ensemble.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the libraries load: end quietly

import itertools  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from fairseq import checkpoint_utils  # noqa: E402
from fairseq.data.encoders import BPE_REGISTRY  # noqa: E402
from omegaconf.errors import MissingMandatoryValue  # noqa: E402

import fairseq_hmrnn  # noqa: E402, F401  (registers the models)
from fairseq_hmrnn.cli import arguments as kinds  # noqa: E402
from fairseq_hmrnn.cli.errors import UserError, run_command  # noqa: E402
from fairseq_hmrnn.cli.files import read_text  # noqa: E402
from fairseq_hmrnn.inference import hub  # noqa: E402
from fairseq_hmrnn.inference.sampler import SamplingOptions  # noqa: E402
from fairseq_hmrnn.inference.transcript import Plain, WithBoundaries, symbol_texts  # noqa: E402
from fairseq_hmrnn.models.decoding import GENERATION_DTYPES  # noqa: E402
from fairseq_hmrnn.options import number, whole  # noqa: E402

ENDLESS = 10**15  # symbols, samples: what nobody waits for
LARGEST_BATCH = 2**16
LARGEST_PROMPT = 1 << 26  # bytes: it is read as a whole
LARGEST_SEARCH = 10**8  # symbols of all beams together, which beam search keeps


def build_parser():
    parser = kinds.Parser(description=__doc__)
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="+",
        type=kinds.path,
        help="a checkpoint, or a folder with checkpoint_best.pt; several: an ensemble",
    )
    add(
        "--data",
        metavar="DIR",
        type=kinds.prepared_folder,
        help="the folder with dict.txt, if the checkpoint does not carry its dictionary",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        type=kinds.text,
        help="text to continue, kept exactly; - reads it from standard "
        "input, newlines included; may be given several times (default: the start of a text)",
    )
    add("--length", type=whole(0, ENDLESS), default=500, help="new symbols per sample (default %(default)s)")
    add(
        "--end",
        choices=hub.ENDS,
        default="auto",
        help="what ends a sample: length alone, or newline, its line's end too (</s>); auto: length for a model of "
        "characters, newline for any other (default %(default)s)",
    )
    add(
        "--samples", type=whole(1, ENDLESS), default=1, metavar="N", help="samples of each prompt (default %(default)s)"
    )
    add(
        "--batch-size",
        type=whole(1, LARGEST_BATCH),
        default=1,
        metavar="N",
        help="samples drawn at once; more than one is faster, but does not stream (default %(default)s)",
    )
    add_choice(parser.add_argument_group("which symbol comes next"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--show-boundaries",
        action="store_true",
        help="mark where segments end: | in layer 1, \u2016 in layer 2, ...; in colour on a terminal",
    )
    output.add_argument("--json", action="store_true", help="a line of JSON for each sample: scores and boundaries too")
    output.add_argument("--hide-prompt", action="store_true", help="print the new text only")
    output.add_argument("--timing", action="store_true", help="say on standard error how fast it was")
    parser.add_argument(
        "--dtype",
        choices=GENERATION_DTYPES,
        default="float32",
        help="bfloat16: round what is multiplied, for less time; of any checkpoint (default %(default)s)",
    )
    parser.add_argument("--threads", type=kinds.THREADS, metavar="N", help="of torch (default: as torch chooses)")
    parser.add_argument("--bpe", help="as for fairseq, for instance sentencepiece (characters need none)")
    parser.add_argument(
        "--sentencepiece-model", metavar="FILE", type=kinds.existing_file, help="with --bpe sentencepiece"
    )
    return parser


def add_choice(how):
    """Options of which symbol comes next."""
    how.add_argument("--temperature", type=float, default=1.0, help="below 1: more probable text (default %(default)s)")
    how.add_argument("--top-k", type=whole(), default=0, metavar="K", help="of the K most probable symbols only")
    how.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="of the most probable symbols that together have probability P only",
    )
    how.add_argument("--greedy", action="store_true", help="always the most probable symbol")
    how.add_argument(
        "--beam",
        type=whole(0, 10000),
        default=0,
        metavar="N",
        help="beam search for the most probable text; shown when it is complete",
    )
    how.add_argument("--nbest", type=whole(1, 10000), default=1, metavar="N", help="with --beam: show the N best")
    how.add_argument(
        "--diverse-beam-groups", type=whole(1, 10000, also=(-1,)), default=-1, metavar="N", help="with --beam"
    )
    how.add_argument("--diverse-beam-strength", type=number(0, 1e6), default=0.5, metavar="F", help="with --beam")
    how.add_argument("--seed", type=kinds.SEED, help="the same seed and options give the same text")


def check(args):
    """ValueError for options that do not go together or have no meaning."""
    if args.bpe and args.bpe not in BPE_REGISTRY:
        raise ValueError(f"there is no --bpe {args.bpe}: choose from {', '.join(sorted(BPE_REGISTRY))}")
    if (args.bpe == "sentencepiece") != bool(args.sentencepiece_model):
        raise ValueError("--bpe sentencepiece and --sentencepiece-model FILE require each other")
    if args.beam:
        if args.show_boundaries or args.greedy or args.top_k or args.top_p != 1 or args.samples > 1:
            raise ValueError("--beam does not go with options of sampling")
        if args.nbest > args.beam:
            raise ValueError("--nbest cannot be larger than --beam")
        if args.beam * args.length > LARGEST_SEARCH:
            raise ValueError(f"--beam keeps all of its text: --beam times --length must be at most {LARGEST_SEARCH:,}")
        if args.diverse_beam_groups > 0 and args.beam % args.diverse_beam_groups:
            raise ValueError("--diverse-beam-groups must divide --beam")
    elif args.nbest != 1 or args.diverse_beam_groups > 0:
        raise ValueError("--nbest and --diverse-beam-groups require --beam")
    if args.json and args.show_boundaries:
        raise ValueError("--json has the boundaries already: leave --show-boundaries out")
    return SamplingOptions(args.temperature, args.top_k, args.top_p, args.greedy, args.seed).check()


def read_prompts(args):
    prompts = args.prompt or [""]
    if prompts.count("-") > 1:
        raise ValueError("standard input can be one prompt only")
    return [read_text("-", LARGEST_PROMPT) if prompt == "-" else prompt for prompt in prompts]


def warn_of_unknown(model, prompts):
    if getattr(model.task, "has_characters", False):
        unknown = model.unknown_characters("".join(prompts))
        if unknown:
            shown = " ".join(ascii(c) for c in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            print(f"sample: the model has not seen {shown} and reads <unk> there", file=sys.stderr)


def check_ensemble(paths):
    """ValueError for a translation model behind the first checkpoint, which `hub.load` looks at itself."""
    for path in paths[1:]:
        weights = checkpoint_utils.load_checkpoint_to_cpu(hub.find_checkpoint(path))["model"]
        if any(name.startswith("encoder.") for name in weights):
            raise ValueError(f"{path} is a translation model: an ensemble is of language models alone")


class Run:
    """What was asked for, and how to print it."""

    def __init__(self, model, args, options):
        self.model, self.args = model, args
        self.sampler = model.sampler(options)
        self.texts = symbol_texts(model.task, model.bpe)
        self.has_characters = getattr(model.task, "has_characters", False)
        self.stop = model.stop(args.end)
        self.printed = self.new_symbols = 0
        self.several = False

    def prompt(self, text):
        return [self.model.begin, *self.model.encode(text).tolist()]

    def shown(self, prompt):
        """The prompt as new text follows it: a space goes before a new word."""
        words = self.model.bpe is None and not self.has_characters
        return prompt + " " if words and prompt and not prompt[-1].isspace() else prompt

    def continuation(self, prompt, symbols):
        """New symbols as they read behind the prompt."""
        text = self.model.continued(prompt, symbols)[len(prompt) :]
        return text.lstrip(" ") if prompt[-1:].isspace() and not self.has_characters else text

    def transcript(self):
        if not self.args.show_boundaries:
            return Plain(self.texts)
        return WithBoundaries(self.texts, colour=sys.stdout.isatty())

    def separate(self):
        if self.printed and not self.args.json:
            sys.stdout.write("\n----------\n")
        self.printed += 1

    def stream(self, prompt):
        """One sample, written symbol by symbol."""
        self.separate()
        transcript, write, interactive = self.transcript(), sys.stdout.write, sys.stdout.isatty()
        if not self.args.hide_prompt:
            if self.args.show_boundaries:
                symbols = self.prompt(prompt)
                for symbol, closed in zip(symbols[1:], self.sampler.read(symbols)[1]):
                    write(transcript.add(symbol, closed))
            else:
                write(self.shown(prompt))
        for count, step in enumerate(self.sampler.run([self.prompt(prompt)])):
            if count == self.args.length:
                write(transcript.end(step.boundaries and step.boundaries[0]))
                break
            write(transcript.add(step.tokens[0], step.boundaries and step.boundaries[0]))
            self.new_symbols += 1
            if interactive:
                sys.stdout.flush()
            if step.tokens[0] == self.stop:
                break

    def batch(self, prompts):
        """Samples drawn together: (prompt, symbols, bits, boundaries) of each."""
        found = [([], [], []) for _ in prompts]
        ended = [False] * len(prompts)
        for count, step in enumerate(self.sampler.run([self.prompt(p) for p in prompts], scores=self.args.json)):
            for row, (symbols, bits, boundaries) in enumerate(found):
                if ended[row]:
                    continue
                if step.boundaries is not None:
                    boundaries.append(step.boundaries[row])
                if count == self.args.length or (symbols and symbols[-1] == self.stop):
                    ended[row] = True
                    continue
                symbols.append(step.tokens[row])
                bits.append(-step.log_probs[row] / math.log(2) if self.args.json else 0.0)
            if all(ended):
                break
        self.new_symbols += sum(len(symbols) for symbols, _, _ in found)
        return [(prompt, *parts) for prompt, parts in zip(prompts, found)]

    def write(self, prompt, symbols, bits, boundaries):
        """A complete sample."""
        self.separate()
        if self.args.json:
            prompt_nats, prompt_boundaries = self.sampler.read(self.prompt(prompt))
            print(json.dumps(self.record(prompt, symbols, bits, prompt_nats, prompt_boundaries, boundaries)))
            return
        transcript = self.transcript()
        if not self.args.hide_prompt:
            sys.stdout.write(self.shown(prompt))
        for symbol, closed in zip(symbols, boundaries or [None] * len(symbols)):
            sys.stdout.write(transcript.add(symbol, closed))
        sys.stdout.write(transcript.end(boundaries[-1] if boundaries else None))

    def record(self, prompt, symbols, bits, prompt_nats, prompt_boundaries, boundaries):
        text = self.continuation(prompt, symbols)
        prompt_bits = [-nats / math.log(2) for nats in prompt_nats]
        record = {"prompt": prompt, "text": text, "prompt_bits": prompt_bits, "bits": bits}
        record["bits_per_character"] = sum(bits) / len(text) if text else None
        whole = len(prompt) + len(text)
        record["bits_per_character_with_prompt"] = (sum(bits) + sum(prompt_bits)) / whole if whole else None
        if boundaries:
            # What is known with a symbol is whether the one before it closed a segment, the begin symbol first.
            ends = [*prompt_boundaries, *boundaries][1:]
            detectors = getattr(self.model.models[0].decoder.hm_lstm, "num_detectors", 0)
            record["segment_ends"] = [
                [position + 1 for position, closed in enumerate(ends) if closed[layer]] for layer in range(detectors)
            ]
        return record

    def search(self, prompt):
        """Beam search, by fairseq."""
        options = {"max_len_b": self.args.length, "temperature": self.args.temperature}
        options["diverse_beam_groups"] = self.args.diverse_beam_groups
        options["diverse_beam_strength"] = self.args.diverse_beam_strength
        self.model.task.args.end_of_sample = self.args.end
        symbols = self.model.encode(prompt)
        for hypo in self.model.generate([symbols], beam=self.args.beam, **options)[0][: self.args.nbest]:
            new = hypo["tokens"][symbols.numel() :]
            bits = (-hypo["positional_scores"][symbols.numel() :] / math.log(2)).tolist()
            self.new_symbols += new.numel()
            self.write(prompt, new.tolist(), bits, [])


def produce(run, prompts):
    args = run.args
    queue = itertools.chain.from_iterable(itertools.repeat(prompt, args.samples) for prompt in prompts)
    if args.beam:
        for prompt in queue:
            run.search(prompt)
    elif args.batch_size == 1 and not args.json:
        for prompt in queue:
            run.stream(prompt)
    else:
        for batch in iter(lambda: list(itertools.islice(queue, args.batch_size)), []):
            for sample in run.batch(batch):
                run.write(*sample)


def load(args):
    """The model; UserError where a codec misses one of its files."""
    codec = {"bpe": args.bpe, "sentencepiece_model": args.sentencepiece_model} if args.bpe else {}
    check_ensemble(args.checkpoint)
    try:
        return hub.load(args.checkpoint, args.data, args.dtype, **codec)
    except MissingMandatoryValue as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--bpe {args.bpe} requires more than can be given here ({first})") from error


def main():
    args = build_parser().parse_args()
    logging.disable(logging.INFO)
    options = check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    prompts = read_prompts(args)
    model = load(args)
    warn_of_unknown(model, prompts)
    run = Run(model, args, options)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.perf_counter()
    produce(run, prompts)
    if sys.stdout.isatty():
        print()
    sys.stdout.flush()
    if args.timing:
        seconds = time.perf_counter() - start
        speed = run.new_symbols / max(seconds, 1e-9)
        print(f"{run.new_symbols} symbols in {seconds:.3f} s, {speed:.1f} symbols/s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
