"""Sample text from a language model, symbol by symbol, as long as you like.

    fairseq-hmrnn sample checkpoints/mytext --prompt "Once upon" --temperature 0.7
    printf 'Once upon' | fairseq-hmrnn sample checkpoints/mytext --prompt - --length 1000000 > text.txt

Works with HM-LSTM language models and with fairseq's lstm_lm. Several checkpoints make an ensemble.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import List, Sequence

import torch
from fairseq.data.encoders import BPE_REGISTRY
from omegaconf.errors import MissingMandatoryValue

from ..inference import LanguageModelHub, loading
from ..inference.sampler import SamplingOptions
from ..inference.samples import Layout, SampleWriter
from ..inference.search import ENDS
from ..inference.surface import unknown_message
from ..models.decoding import GENERATION_DTYPES
from ..options import number, whole
from . import arguments as kinds
from .errors import UserError
from .files import read_text

ENDLESS = 10**15  # symbols or samples: more than anybody waits for
LARGEST_PROMPT = 1 << 26  # bytes: it is read as a whole
LARGEST_SEARCH = 10**8  # symbols of all beams together, which beam search keeps


def add_arguments(parser: kinds.Parser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        metavar="CHECKPOINT",
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
        help="text to continue, kept exactly; - reads it from standard input, newlines included; may be given several "
        "times (default: the start of a text)",
    )
    add(
        "--length",
        type=whole(0, ENDLESS),
        default=500,
        metavar="N",
        help="new symbols per sample (default %(default)s)",
    )
    add(
        "--end",
        choices=ENDS,
        default="auto",
        help="what ends a sample: length alone, or newline, its line's end too (</s>); auto: length for a model of "
        "characters, newline for any other (default %(default)s)",
    )
    add(
        "--samples", type=whole(1, ENDLESS), default=1, metavar="N", help="samples of each prompt (default %(default)s)"
    )
    add(
        "--batch-size",
        type=kinds.BATCH_SIZE,
        default=1,
        metavar="N",
        help="samples drawn at once; more than one is faster, but does not stream (default %(default)s)",
    )
    _add_choice(parser.add_argument_group("which symbol comes next"))
    _add_output(parser.add_argument_group("output"))
    add(
        "--dtype",
        choices=GENERATION_DTYPES,
        default="float32",
        help="bfloat16: round what is multiplied, for less time; of any checkpoint (default %(default)s)",
    )
    add("--threads", type=kinds.THREADS, metavar="N", help="of torch (default: as torch chooses)")
    add("--bpe", metavar="NAME", help="as for fairseq, for instance sentencepiece (characters need none)")
    add("--sentencepiece-model", metavar="FILE", type=kinds.existing_file, help="with --bpe sentencepiece")


def _add_choice(group) -> None:
    add = group.add_argument
    add("--temperature", type=float, default=1.0, metavar="F", help="below 1: more probable text (default %(default)s)")
    add("--top-k", type=whole(), default=0, metavar="K", help="one of the K most probable; 0: of all")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="one of the fewest symbols whose probabilities sum to P",
    )
    add("--greedy", action="store_true", help="always the most probable symbol")
    add(
        "--beam",
        type=whole(0, 10000),
        default=0,
        metavar="N",
        help="beam search for the most probable text; shown when it is complete",
    )
    add("--nbest", type=whole(1, 10000), default=1, metavar="N", help="with --beam: show the N best")
    add("--diverse-beam-groups", type=whole(1, 10000, also=(-1,)), default=-1, metavar="N", help="groups within --beam")
    add("--diverse-beam-strength", type=number(0, 1e6), metavar="F", help="of these groups (default 0.5)")
    add("--seed", type=kinds.GENERATOR_SEED, metavar="N", help="the same seed and options give the same text")


def _add_output(group) -> None:
    add = group.add_argument
    add(
        "--show-boundaries",
        action="store_true",
        help="mark where segments end: | in layer 1, \u2016 in layer 2, ...; in colour on a terminal",
    )
    add("--json", action="store_true", help="a line of JSON for each sample: scores and boundaries too")
    add("--hide-prompt", action="store_true", help="print the new text only")
    add("--timing", action="store_true", help="say on standard error how fast it was")


def run(args: argparse.Namespace) -> None:
    options = _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    prompts = _read_prompts(args.prompt or [""])
    model = _load(args)
    _warn_of_unknown(model, prompts)
    layout = Layout(args.show_boundaries, args.json, args.hide_prompt)
    writer = SampleWriter(model, options, args.length, args.end, layout, sys.stdout)
    start = time.perf_counter()
    if args.beam:
        strength = 0.5 if args.diverse_beam_strength is None else args.diverse_beam_strength
        diverse = {"diverse_beam_groups": args.diverse_beam_groups, "diverse_beam_strength": strength}
        writer.search(prompts, args.nbest, beam=args.beam, temperature=args.temperature, **diverse)
    else:
        writer.draw(prompts, args.samples, args.batch_size)
    if writer.interactive:
        print()
    sys.stdout.flush()
    if args.timing:
        seconds = time.perf_counter() - start
        speed = writer.new_symbols / max(seconds, 1e-9)
        print(f"{writer.new_symbols} symbols in {seconds:.3f} s, {speed:.1f} symbols/s", file=sys.stderr)


def _check(args: argparse.Namespace) -> SamplingOptions:
    """UserError for options that do not go together or have no meaning."""
    if args.bpe and args.bpe not in BPE_REGISTRY:
        raise UserError(f"there is no --bpe {args.bpe}: choose from {', '.join(sorted(BPE_REGISTRY))}")
    if (args.bpe == "sentencepiece") != bool(args.sentencepiece_model):
        raise UserError("--bpe sentencepiece and --sentencepiece-model FILE require each other")
    if args.diverse_beam_strength is not None and args.diverse_beam_groups <= 0:
        raise UserError("--diverse-beam-strength requires --diverse-beam-groups")
    if args.beam:
        of_sampling = {"show_boundaries": False, "greedy": False, "top_k": 0, "top_p": 1, "samples": 1, "batch_size": 1}
        if args.seed is not None or any(getattr(args, name) != usual for name, usual in of_sampling.items()):
            raise UserError("--beam does not go with options of sampling")
        if args.nbest > args.beam:
            raise UserError("--nbest cannot be larger than --beam")
        if args.beam * args.length > LARGEST_SEARCH:
            raise UserError(f"--beam keeps all of its text: --beam times --length must be at most {LARGEST_SEARCH:,}")
        if args.diverse_beam_groups > 0 and args.beam % args.diverse_beam_groups:
            raise UserError("--diverse-beam-groups must divide --beam")
    elif args.nbest != 1 or args.diverse_beam_groups > 0:
        raise UserError("--nbest and --diverse-beam-groups require --beam")
    if args.json and args.show_boundaries:
        raise UserError("--json has the boundaries already: leave --show-boundaries out")
    if args.json and args.hide_prompt:
        raise UserError("--json has the new text apart from the prompt: leave --hide-prompt out")
    return SamplingOptions(args.temperature, args.top_k, args.top_p, args.greedy, args.seed).check()


def _read_prompts(prompts: Sequence[str]) -> List[str]:
    if prompts.count("-") > 1:
        raise UserError("standard input can be one prompt only")
    return [read_text("-", LARGEST_PROMPT) if prompt == "-" else prompt for prompt in prompts]


def _load(args: argparse.Namespace) -> LanguageModelHub:
    """The model; UserError where a codec misses one of its files."""
    codec = {"bpe": args.bpe, "sentencepiece_model": args.sentencepiece_model} if args.bpe else {}
    try:
        return loading.load(args.checkpoint, args.data, args.dtype, **codec)
    except MissingMandatoryValue as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--bpe {args.bpe} requires more than can be given here ({first})") from error


def _warn_of_unknown(model: LanguageModelHub, prompts: Sequence[str]) -> None:
    unknown = model.unknown_symbols(prompts)
    if unknown:
        print(f"sample: {unknown_message(unknown)}", file=sys.stderr)
