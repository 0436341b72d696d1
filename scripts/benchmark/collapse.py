#!/usr/bin/env python3
"""Train small `hmlstm_lm`s from many seeds and report whether any boundary detector falls silent or always fires.

Model, regularisers and their defaults are those of fairseq-train; text is CPython's documentation topics, or one
sentence again and again. A detector has collapsed if its rate over any 50 updates after the first 200 leaves [.02, .9].
"""

import logging
import sys
from types import SimpleNamespace

import torch
from tqdm import tqdm

from fairseq_hmrnn.cli import arguments as kinds
from fairseq_hmrnn.cli.errors import run_command
from fairseq_hmrnn.criterions import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import parse_rates
from fairseq_hmrnn.criterions.boundary_terms import parse_regularizers
from fairseq_hmrnn.data.characters import CharacterDictionary, encode
from fairseq_hmrnn.data.embedded import embedded_text
from fairseq_hmrnn.models.config import SLOPE, HMLSTMLanguageModelConfig, parse_sizes
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel
from fairseq_hmrnn.options import BIAS, Parsed, check_config, whole

ALLOWED = (0.02, 0.9)
WINDOW, WARM_UP = 50, 200  # updates
SENTENCE = "the quick brown fox jumps over the lazy dog.\n"
DEFAULTS = HMLSTMLanguageModelConfig()


def parse_arguments():
    parser = kinds.Parser(description=__doc__)
    parser.add_argument("--seeds", type=kinds.COUNT, default=10)
    parser.add_argument("--normalization", nargs="+", default=["layer", "none"], choices=["layer", "none"])
    parser.add_argument("--text", nargs="+", default=["topics", "sentence"], choices=["topics", "sentence"])
    parser.add_argument("--updates", type=whole(WARM_UP + WINDOW), default=1000)
    parser.add_argument("--hidden-sizes", type=Parsed(parse_sizes), default="48,48,48")
    parser.add_argument("--batch-size", type=kinds.BATCH_SIZE, default=8)
    parser.add_argument("--steps", type=whole(1, 1000), default=50)
    parser.add_argument("--slope", type=SLOPE, default=DEFAULTS.slope)
    parser.add_argument("--detector-bias", type=BIAS, default=DEFAULTS.detector_bias)
    parser.add_argument("--boundary-rates", type=Parsed(parse_rates), default="steps:.2,steps:.05")
    parser.add_argument("--boundary-regularizers", type=Parsed(parse_regularizers), default="rate")
    arguments = parser.parse_args()
    if len(parse_sizes(arguments.hidden_sizes)) != 3:
        parser.error("--hidden-sizes must be three, for two detectors")
    return arguments


def build(arguments, normalization, dictionary):
    """The model and the criterion that the options describe."""
    cfg = HMLSTMLanguageModelConfig(
        hidden_sizes=arguments.hidden_sizes,
        normalization=normalization,
        slope=arguments.slope,
        detector_bias=arguments.detector_bias,
        embed_dim=32,
        output_dim=48,
    )
    check_config(cfg, HMLSTMLanguageModelConfig)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    criterion = BoundaryRegularizedCrossEntropy(
        task, False, arguments.boundary_rates, boundary_regularizers=arguments.boundary_regularizers
    )
    return HMLSTMLanguageModel(HMLSTMDecoder(cfg, dictionary)).train(), criterion


def train(arguments, normalization, seed, tokens, dictionary):
    """(windows, detectors): each detector's mean rate over every WINDOW updates."""
    torch.manual_seed(seed)
    model, criterion = build(arguments, normalization, dictionary)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.002)
    sums, rates = 0, []
    for update in range(arguments.updates):
        starts = torch.randint(len(tokens) - arguments.steps - 1, (arguments.batch_size, 1))
        window = tokens[starts + torch.arange(arguments.steps + 1)]
        sample = {"net_input": {"src_tokens": window[:, :-1]}, "target": window[:, 1:].contiguous()}
        sample["ntokens"] = sample["target"].numel()
        model.set_num_updates(update)
        loss, size, log = criterion(model, sample)
        optimizer.zero_grad()
        (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        sums = sums + torch.stack([log[f"z{layer}:steps"] / log["steps"] for layer in (1, 2)])
        if update % WINDOW == WINDOW - 1:
            rates.append(sums / WINDOW)
            sums = 0
    return torch.stack(rates)


def main():
    arguments = parse_arguments()
    logging.disable(logging.INFO)
    dictionary, collapsed, runs = CharacterDictionary(), 0, 0
    texts = {"topics": embedded_text(), "sentence": SENTENCE * 40}
    for symbol in encode("".join(sorted(set(texts["topics"])))):
        dictionary.add_symbol(symbol)
    print("text      normalization  seeds  z1 lowest  highest  z2 lowest  highest  collapsed")
    for text in arguments.text:
        tokens = torch.tensor([dictionary.index(symbol) for symbol in encode(texts[text])])
        for normalization in arguments.normalization:
            found = []
            for seed in tqdm(range(1, arguments.seeds + 1), desc=f"{text}, {normalization}", file=sys.stderr):
                found.append(train(arguments, normalization, seed, tokens, dictionary))
            rates = torch.stack(found)[:, WARM_UP // WINDOW :]  # (seeds, windows, detectors)
            bad = ((rates < ALLOWED[0]) | (rates > ALLOWED[1])).flatten(1).any(1).sum().item()
            low, high = rates.flatten(0, 1).min(0).values, rates.flatten(0, 1).max(0).values
            print(
                f"{text:9s} {normalization:13s} {arguments.seeds:6d}      {low[0]:.3f}    {high[0]:.3f}"
                f"      {low[1]:.3f}    {high[1]:.3f}  {bad:4d} of {arguments.seeds}",
                flush=True,
            )
            collapsed, runs = collapsed + bad, runs + arguments.seeds
    sys.exit(f"{collapsed} of {runs} runs collapsed" if collapsed else 0)


if __name__ == "__main__":
    run_command(main)
