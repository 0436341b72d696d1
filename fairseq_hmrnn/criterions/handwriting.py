"""The likelihood of handwriting, with regularisers on boundaries."""

from dataclasses import dataclass
from typing import Dict

import torch
from fairseq.criterions import register_criterion
from fairseq.logging import metrics
from torch import Tensor

from ..data.handwriting import GOLD
from ..options import Parsed, option
from ..trace import BoundaryTrace, trace_of
from .boundary_criterion import BoundaryCriterion
from .boundary_regularizers import REGULARIZERS, Signals
from .boundary_statistics import boundary_counts, gold_counts, log_boundary_metrics, summed
from .boundary_terms import parse_rates, parse_regularizers
from .config import BoundaryConfig

FILLED = {"rate", "signals"}  # what strokes have of NEEDS


def _parse_regularizers(text: str):
    """As of text, but for those that need what strokes have not."""
    terms = parse_regularizers(text)
    possible = [name for name, found in REGULARIZERS.items() if found.needs <= FILLED]
    others = dict.fromkeys(term.name for layer in terms for term in layer if term.name not in possible)
    if others:
        raise ValueError(
            f"{', '.join(others)} in boundary-regularizers requires symbols, strokes have: {', '.join(possible)}"
        )
    return terms


def _parse_rates(text: str):
    """As of text, but numbers alone."""
    rates = parse_rates(text)
    if any(rate.share is None for rate in rates) or ":" in text:
        raise ValueError(
            f"auto, steps: and within: in boundary-rates require symbols, strokes have numbers alone, not {text!r}"
        )
    return rates


@dataclass
class HandwritingLikelihoodConfig(BoundaryConfig):
    boundary_rates: str = option(
        "",
        "target share of steps at which each detector closes a segment, bottom to top, by comma, each "
        "between 0 and 1, such as .05,.02; empty: regularisers that require no rate alone",
        Parsed(_parse_rates),
    )
    boundary_regularizers: str = option(
        "rate",
        "regularisers of each detector, as of boundary_regularized_cross_entropy, but for those that read symbols "
        "from right to left; uncertainty, rise and surprisal listen to the density of the next step",
        Parsed(_parse_regularizers),
    )


@register_criterion("handwriting_likelihood", dataclass=HandwritingLikelihoodConfig)
class HandwritingLikelihood(BoundaryCriterion):
    """loss = sum of -log p(step | steps before) + sample_size * regularisers, in nats.

    Works with every `HandwritingModel`; regularisers require one with boundaries, and are for training alone.
    """

    scores_steps = True  # the task checks it
    name, models_with_boundaries = "a boundary regularizer", "hmlstm_handwriting"

    def __init__(self, task, *args, **options):
        if getattr(task, "source_dictionary", None) is not None:
            raise ValueError("handwriting_likelihood is of pen strokes, not of symbols: give --task hmlstm_handwriting")
        super().__init__(task, *args, **options)

    def forward(self, model, sample, reduce=True):
        """The loss, its denominator (steps, or lines with --sentence-avg), and what to log."""
        net_output = model(**sample["net_input"])
        nll = -self.log_probs(model, net_output, sample["target"])
        nll = nll.sum() if reduce else nll
        loss = nll
        sample_size = sample["nsentences"] if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "nll": nll.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        }
        if self.rates or any(self.terms) or trace_of(net_output) is not None:
            logging_output.update(self.statistics(self.checked_trace(net_output), sample))
            for penalty in self.penalties(model, net_output, sample) if model.training else []:
                loss = loss + sample_size * penalty
        return loss, sample_size, {"loss": loss.data, **logging_output}

    @staticmethod
    def log_probs(model, net_output, target: Tensor) -> Tensor:
        """log p of the steps that came, target (B, T, 3): (B, T) in nats, 0 at padding."""
        parameters, valid = net_output[0].float(), net_output[1]["valid"]
        found = model.distribution(parameters).log_prob(target.to(parameters.dtype))
        return found.masked_fill(~valid, 0)

    @torch.no_grad()
    def signals(self, model, net_output, sample, name: str) -> Signals:
        """The density's entropy, of which `StepDistribution.entropy_bound` is a bound, and surprisal."""
        surprisal = -self.log_probs(model, net_output, sample["target"])
        entropy = model.distribution(net_output[0].float()).entropy_bound()
        return Signals(entropy, surprisal, net_output[1]["valid"])

    def statistics(self, trace: BoundaryTrace, sample) -> Dict[str, Tensor]:
        """Sums of boundaries, and how far they are ends of strokes, characters and words where these are marked."""
        boundaries, detectors = trace.boundaries.detach(), trace.num_detectors
        counts = boundary_counts(boundaries, trace.valid, detectors)
        for index, name in enumerate(GOLD):
            gold, known = sample["gold"][..., index], sample["known"][..., index]
            counts.update(gold_counts(boundaries, gold, known, detectors, name))
        return counts

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """loss; nll_loss, by step; log_likelihood, the mean over lines of log p of a whole line, as published; all in
        nats. z1, z2, ..., update1, copy1, flush1, ...; pen_up_f1_1, character_f1_1, word_f1_1, ...: F1 of each layer's
        boundaries against the last points of strokes, characters and words."""
        totals = summed(logging_outputs)
        steps, lines = totals["ntokens"], totals["nsentences"]
        metrics.log_scalar("loss", totals["loss"] / totals["sample_size"], totals["sample_size"], round=3)
        metrics.log_scalar("nll_loss", totals["nll"] / steps, steps, round=4)
        metrics.log_scalar("log_likelihood", -totals["nll"] / lines, lines, round=2)
        log_boundary_metrics(totals)
