"""Cross-entropy with regularisers on boundaries, and the statistics that show whether a hierarchy is learned."""

import math
from dataclasses import dataclass
from typing import Dict, List, Optional

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.logging import metrics
from torch import Tensor

from ..options import WEIGHT, Parsed, number, option, whole
from ..trace import BoundaryTrace
from .adaptive import adaptive_nll
from .boundary_criterion import BoundaryCriterion
from .boundary_regularizers import REGULARIZERS, Signals, detector_cross_entropy, entropy_and_surprisal
from .boundary_statistics import boundary_counts, gold_counts, log_boundary_metrics, summed
from .boundary_supervision import Supervision, SymbolSet, build_supervision, whitespace_indices
from .boundary_terms import listeners, listening, parse_rates, parse_regularizers, parse_terms
from .config import BoundaryConfig
from .softmax_nll import LARGE, plain_logits, softmax_nll
from .source_predictions import Source

LARGEST_DELAY = 9  # steps; longer than a word


def _parse_separator(text: str) -> str:
    """Itself; ValueError if it separates nothing."""
    if not text:
        raise ValueError("boundary-supervision-separator must not be empty")
    return text


@dataclass
class BoundaryRegularizedCrossEntropyConfig(BoundaryConfig):
    boundary_rates: str = option(
        "",
        "target share of the steps within lines at which each detector closes a segment, bottom to top, separated by "
        "commas, each between 0 and 1, such as .2,.05; steps:.2: of all steps, ends of lines too; auto, for the first "
        "layer: to be found in what its detector listens to; empty: regularisers that require no rate alone",
        Parsed(parse_rates),
    )
    boundary_regularizers: str = option(
        "rate",
        "regularisers of each detector, bottom to top, separated by commas (one entry: for all); an entry is none or "
        f"terms joined by +, of {', '.join(REGULARIZERS)}; a term may have a weight, NAME=WEIGHT, or one that is "
        "annealed, NAME=START:END:UPDATES. Such as rate+uncertainty=.1,rate (criterions/boundary_regularizers.py)",
        Parsed(parse_regularizers),
    )
    boundary_delay: Optional[int] = option(
        None,
        "steps after a segment's last one at which detectors that listen to a signal learn to fire; default: 1 for "
        "bidirectional and lexicon, else 0. segment and plot undo it, in layers that listen to nothing as in the layer "
        "below",
        whole(0, LARGEST_DELAY, optional=True),
    )
    boundary_supervision: str = option(
        "",
        "boundaries that one layer is to learn: whitespace, sentencepiece:MODEL (the last character of "
        "each piece), or a file: the training text with a separator after each segment",
    )
    boundary_supervision_layer: int = option(1, "the layer that learns them, from 1", whole(1, 1000))
    boundary_supervision_weight: float = option(1.0, "weight of the binary cross-entropy of that layer's z~", WEIGHT)
    boundary_supervision_separator: str = option(
        "|", "what ends a segment in the file of boundary-supervision", Parsed(_parse_separator)
    )
    label_smoothing: float = option(
        0.0, "epsilon of label smoothing, in training alone; 0: none", number(0, 1, open_above=True)
    )

    @staticmethod
    def check_together(cfg) -> None:
        terms = parse_terms(cfg.boundary_regularizers, parse_rates(cfg.boundary_rates))
        if cfg.boundary_delay is not None and not any(map(listening, terms)):
            names = ", ".join(listeners())
            raise ValueError(f"boundary-delay requires one of {names} in boundary-regularizers: give one, or no delay")


@register_criterion("boundary_regularized_cross_entropy", dataclass=BoundaryRegularizedCrossEntropyConfig)
class BoundaryRegularizedCrossEntropy(BoundaryCriterion):
    """loss = sum of -log p + sample_size * (boundary_weight * sum_l sum_r w_r R_r(layer l) + supervision), with R_r of
    boundary_regularizers.py, means over the steps of a batch that are not padding.

    The regularisers are for training alone: the validation loss is the plain cross-entropy. With boundary_weight 0,
    neither supervision nor label smoothing, the loss equals fairseq's cross_entropy to the last digit; so it does with
    the default regularisers and no rates. Works with every model whose second output holds a
    BoundaryTrace as `trace`. Its steps are in translation those of the source, while the loss is over the target.
    With label_smoothing, training takes fairseq's smoothed -log p. Regularisers that listen in both reading directions
    have the criterion train a small network beside the model, its mean -log p by step added to the loss; it shares
    no weights with the model, is in checkpoints for training to go on, and is not needed for anything else. fairseq's
    --clip-norm takes the norm over its gradient too. In translation, where the model predicts nothing of the source, a
    second such network reads it from left to right, and detectors of both reading directions learn the same steps.
    """

    name = "boundary_regularized_cross_entropy"

    def __init__(self, task, sentence_avg, *args, **options):
        """args, options: as of BoundaryCriterion."""
        super().__init__(task, sentence_avg, *args, **options)
        dictionary = getattr(task, "source_dictionary", None)
        self.supervision: Optional[Supervision] = None
        if self.cfg.boundary_supervision:
            separator = self.cfg.boundary_supervision_separator
            self.supervision = build_supervision(self.cfg.boundary_supervision, dictionary, separator)
        self.supervision_layer = self.cfg.boundary_supervision_layer - 1
        self.supervision_weight = self.cfg.boundary_supervision_weight
        whitespace = whitespace_indices(dictionary)
        self.is_whitespace = SymbolSet(whitespace, len(dictionary)) if whitespace else None
        self.label_smoothing = self.cfg.label_smoothing

    def forward(self, model, sample, reduce=True):
        """As fairseq's cross_entropy: the loss, its denominator, and what to log."""
        net_output = model(**sample["net_input"])
        loss, nll = self._cross_entropy(model, net_output, sample, reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        trace = self.checked_trace(net_output)
        if model.training:
            for penalty in self.penalties(model, net_output, sample):
                loss = loss + sample_size * penalty
        logging_output = {
            "loss": loss.data,
            "nll": nll.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            **self.statistics(trace, sample),
        }
        return loss, sample_size, logging_output

    def _cross_entropy(self, model, net_output, sample, reduce):
        """The loss and -log p; the same but for label smoothing in training."""
        adaptive_softmax = getattr(getattr(model, "decoder", None), "adaptive_softmax", None)
        if self.label_smoothing == 0 or not model.training:
            if adaptive_softmax is None:
                nll, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
            else:
                target = model.get_targets(sample, net_output).view(-1)
                nll = adaptive_nll(adaptive_softmax, net_output[0].flatten(0, 1), target, self.padding_idx)
                nll = nll.sum() if reduce else nll
            return nll, nll
        log_probs = model.get_normalized_probs(net_output, log_probs=True)
        target = model.get_targets(sample, net_output).view(-1)
        log_probs = log_probs.view(-1, log_probs.size(-1))
        return label_smoothed_nll_loss(log_probs, target, self.label_smoothing, self.padding_idx, reduce)

    def compute_loss(self, model, net_output, sample, reduce=True):
        """As fairseq's cross_entropy: -log p, twice."""
        logits = plain_logits(model, net_output)
        if logits is None or logits.numel() < LARGE:
            return super().compute_loss(model, net_output, sample, reduce)
        target = model.get_targets(sample, net_output).view(-1)
        nll = softmax_nll(logits.view(-1, logits.size(-1)), target, self.padding_idx, reduce)
        return nll, nll

    def checked_trace(self, net_output) -> BoundaryTrace:
        """As BoundaryCriterion's; ValueError also if there is no layer to supervise."""
        trace = super().checked_trace(net_output)
        if self.supervision is not None and self.supervision_layer >= trace.num_detectors:
            raise ValueError(
                f"boundary-supervision-layer {self.supervision_layer + 1} does not exist: the model has "
                f"{trace.num_detectors} boundary detectors"
            )
        return trace

    def further_penalties(self, source: Source) -> List[Tensor]:
        """That of the supervision."""
        if self.supervision is None or self.supervision_weight == 0 or source.tokens is None:
            return []
        target, known = map(source.by_row, self.supervision(source.tokens))
        z_tilde = source.trace.boundary_probs[..., self.supervision_layer].float()
        return [self.supervision_weight * detector_cross_entropy(z_tilde, target, known & source.trace.valid)]

    @torch.no_grad()
    def signals(self, model, net_output, sample, name: str) -> Signals:
        """The entropy and surprisal of the model's predictions at the steps of its boundaries."""
        target = model.get_targets(sample, net_output)
        if "prev_output_tokens" in sample["net_input"] or target.shape != self.checked_trace(net_output).valid.shape:
            others = [other for other, found in REGULARIZERS.items() if "signals" not in found.needs]
            raise ValueError(
                f"the boundary regularizer {name} listens to predictions at the steps of the boundaries, as a language "
                f"model makes them; here boundaries belong to the source, which is predicted in fairseq's tasks of "
                f"translation alone: use {', '.join(others)}"
            )
        log_probs = model.get_normalized_probs(net_output, log_probs=True).float().view(*target.shape, -1)
        return Signals(*entropy_and_surprisal(log_probs, target), target.ne(self.padding_idx))

    def statistics(self, trace: BoundaryTrace, sample) -> Dict[str, Tensor]:
        """Sums of boundaries, and how far they are the text's whitespace if its dictionary has any."""
        counts = boundary_counts(trace.boundaries.detach(), trace.valid, trace.num_detectors)  # in the order of reading
        source = Source.of(trace, sample)
        trace, tokens = source.trace, source.tokens_by_row
        counts.update(self.targets.statistics(trace, tokens, source.following, self.training))
        if self.is_whitespace is not None:
            gold, boundaries = self.is_whitespace(tokens), trace.boundaries.detach()
            counts.update(gold_counts(boundaries, gold, trace.valid, trace.num_detectors))
        return counts

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """loss, nll_loss and bpc (nll_loss, 4 decimals) in bits, ppl; z1, z2, ... boundary rates; z1_within, ... within
        lines; z1_target, ... the rates found so far with auto; update1, copy1, flush1, ... shares of steps; word_f1_1,
        ... F1 of each layer's boundaries against whitespace, where the step that reads the whitespace is the
        boundary."""
        totals = summed(logging_outputs)
        tokens = totals["ntokens"]
        metrics.log_scalar("loss", totals["loss"] / totals["sample_size"] / math.log(2), totals["sample_size"], round=3)
        nll_bits = totals["nll"] / tokens / math.log(2)
        metrics.log_scalar("nll_loss", nll_bits, tokens, round=3)
        metrics.log_scalar("bpc", nll_bits, tokens, round=4)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        log_boundary_metrics(totals)
