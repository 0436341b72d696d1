"""Cross-entropy with a penalty on boundary rates, and the statistics that tell whether a hierarchy is learned."""

import math
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.logging import metrics
from torch import Tensor

OPERATIONS = ("update", "copy", "flush")


@dataclass
class BoundaryRegularizedCrossEntropyConfig(CrossEntropyCriterionConfig):
    boundary_rates: str = field(
        default="",
        metadata={
            "help": "target share of steps at which each detector closes a segment, bottom to top, by comma, each "
            "between 0 and 1, such as .2,.05; empty: no penalty"
        },
    )
    boundary_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the squared distance of each layer's mean boundary rate from its target"},
    )


@register_criterion("boundary_regularized_cross_entropy", dataclass=BoundaryRegularizedCrossEntropyConfig)
class BoundaryRegularizedCrossEntropy(CrossEntropyCriterion):
    """loss = sum of -log p + sample_size * weight * sum_l (mean z[l] - rate[l])^2, means over the symbols of a batch
    that are not padding. The gradient of z is the straight-through one.

    The penalty is for training alone: the validation loss is the plain cross-entropy. With weight 0 or no rates the
    loss equals fairseq's cross_entropy to the last digit. Works with every model whose second output holds
    `boundaries` (B, T, L), `valid` (B, T) and `num_detectors`.
    """

    def __init__(self, task, sentence_avg, boundary_rates, boundary_weight):
        super().__init__(task, sentence_avg)
        self.rates = parse_rates(boundary_rates)
        if boundary_weight < 0:
            raise ValueError(f"boundary-weight must not be negative, got {boundary_weight}")
        self.weight = boundary_weight

    def forward(self, model, sample, reduce=True):
        """As fairseq's cross_entropy: the loss, its denominator, and what to log."""
        net_output = model(**sample["net_input"])
        nll, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        loss, extra = nll, net_output[1]
        self._check(extra)
        if self.rates and self.weight > 0 and model.training:
            loss = loss + self.weight * sample_size * self.penalty(extra["boundaries"], extra["valid"])
        logging_output = {
            "loss": loss.data,
            "nll": nll.data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            **boundary_counts(extra["boundaries"].detach(), extra["valid"], extra["num_detectors"]),
        }
        return loss, sample_size, logging_output

    def _check(self, extra) -> None:
        if "boundaries" not in extra:
            raise ValueError("boundary_regularized_cross_entropy wants a model with boundaries, such as hmlstm_lm")
        if self.rates and len(self.rates) != extra["num_detectors"]:
            raise ValueError(
                f"boundary-rates has {len(self.rates)} rates, the model has {extra['num_detectors']} boundary "
                "detectors: give one for each (the top layer has none without top-boundary)"
            )

    def penalty(self, boundaries: Tensor, valid: Tensor) -> Tensor:
        """sum_l (mean z[l] - rate[l])^2. boundaries (B, T, L), valid (B, T); a scalar."""
        steps = valid.sum().clamp(min=1)
        mean = boundaries[..., : len(self.rates)].float().mul(valid.unsqueeze(-1)).sum((0, 1)) / steps
        return (mean - mean.new_tensor(self.rates)).pow(2).sum()

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """loss, nll_loss and bpc (the same to more digits) in bits, ppl; z1, z2, ... boundary rates; update1, copy1,
        flush1, ... shares of steps."""
        totals: Dict[str, float] = {}
        for log in logging_outputs:
            for key, value in log.items():
                totals[key] = totals.get(key, 0) + value
        tokens = totals.get("ntokens", 0)
        metrics.log_scalar("loss", totals["loss"] / totals["sample_size"] / math.log(2), totals["sample_size"], round=3)
        nll_bits = totals["nll"] / tokens / math.log(2)
        metrics.log_scalar("nll_loss", nll_bits, tokens, round=3)
        metrics.log_scalar("bpc", nll_bits, tokens, round=4)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        for key, value in totals.items():
            name, _, kind = key.rpartition(":")
            if name and kind in ("steps", "pairs") and totals[kind] > 0:
                metrics.log_scalar(name, value / totals[kind], totals[kind], round=3)


def parse_rates(text: str) -> List[float]:
    """ ".2,.05" to [0.2, 0.05]; ValueError with a remedy otherwise."""
    if not text:
        return []
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 < rate < 1 for rate in rates):
        raise ValueError(
            f"boundary-rates must be numbers between 0 and 1, exclusive, separated by commas, not {text!r}"
        )
    return rates


def boundary_counts(boundaries: Tensor, valid: Tensor, num_detectors: int) -> Dict[str, Tensor]:
    """Sums for the rates and for the shares of UPDATE, COPY and FLUSH, addable over batches and ranks.

    boundaries (B, T, L), valid (B, T). Keys: `zN:steps`, sums over the `steps` valid steps; `updateN:pairs` and so
    on, sums over the `pairs` of valid steps with a valid predecessor, since an operation depends on the step before.
    """
    z = boundaries.double() * valid.unsqueeze(-1)
    counts = {f"z{layer + 1}:steps": z[..., layer].sum() for layer in range(num_detectors)}
    counts["steps"] = valid.sum()
    pairs = valid[:, 1:] & valid[:, :-1]
    counts["pairs"] = pairs.sum()
    z_below = torch.ones_like(z[:, 1:, 0])
    for layer in range(z.size(-1)):
        shares = operations(z[:, :-1, layer], z_below)
        for name, share in zip(OPERATIONS, shares):
            counts[f"{name}{layer + 1}:pairs"] = (share * pairs).sum()
        z_below = z[:, 1:, layer]
    return counts


def operations(z_prev: Tensor, z_below: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """How far a step is UPDATE, COPY and FLUSH: 0 or 1, or shares for soft boundaries."""
    return (1 - z_prev) * z_below, (1 - z_prev) * (1 - z_below), z_prev
