"""Sums that show whether a hierarchy is learned, addable over batches and ranks, and the metrics made of them."""

from __future__ import annotations

from typing import Callable, Dict, Sequence, Union

import torch
from fairseq.logging import metrics
from torch import Tensor

from ..ops.boundary import operations

OPERATIONS = ("update", "copy", "flush")


def boundary_counts(boundaries: Tensor, valid: Tensor, num_detectors: int) -> Dict[str, Tensor]:
    """Sums for the rates and for the shares of UPDATE, COPY and FLUSH, addable over batches and ranks.

    boundaries (B, T, L), valid (B, T). Keys: `zN:steps`, sums over the `steps` valid steps; `updateN:pairs` and so
    on, sums over the `pairs` of valid steps with a valid predecessor, since an operation depends on the step before.
    """
    z = boundaries.double() * valid.unsqueeze(-1)
    closed = z.sum((0, 1))
    counts = {f"z{layer + 1}:steps": closed[layer] for layer in range(num_detectors)}
    counts["steps"] = valid.sum()
    pairs = valid[:, 1:] & valid[:, :-1]
    counts["pairs"] = pairs.sum()
    z_below = torch.cat([torch.ones_like(z[:, 1:, :1]), z[:, 1:, :-1]], dim=-1)
    shares = torch.stack(operations(z[:, :-1], z_below)) * pairs.unsqueeze(-1)  # all layers at once: few kernels
    sums = shares.sum((1, 2))
    for index, name in enumerate(OPERATIONS):
        counts.update({f"{name}{layer + 1}:pairs": sums[index, layer] for layer in range(z.size(-1))})
    return counts


def gold_counts(
    boundaries: Tensor, gold: Tensor, valid: Tensor, num_detectors: int, name: str = "word"
) -> Dict[str, Tensor]:
    """Sums for each layer's F1 against gold boundaries, step by step.

    boundaries (B, T, L), gold and valid (B, T) bool; name: of what the gold boundaries end. Keys: `gold:NAME_f1`,
    `closedN:NAME_f1` (boundaries of layer N) and `hitsN:NAME_f1` (those that are gold), sums over `NAME_f1` steps.
    """
    z, kind = (boundaries > 0.5) & valid.unsqueeze(-1), f"{name}_f1"
    counts = {f"gold:{kind}": (gold & valid).sum(), kind: valid.sum()}
    closed, hits = z.sum((0, 1)), (z & gold.unsqueeze(-1)).sum((0, 1))
    for layer in range(num_detectors):
        counts[f"closed{layer + 1}:{kind}"] = closed[layer]
        counts[f"hits{layer + 1}:{kind}"] = hits[layer]
    return counts


def summed(logging_outputs: Sequence[Dict[str, Union[Tensor, float]]]) -> Dict[str, float]:
    """Sums over what batches and ranks logged, by key."""
    totals: Dict[str, Union[Tensor, float]] = {}
    for log in logging_outputs:
        for key, value in log.items():
            totals[key] = totals.get(key, 0) + value
    return numbers(totals)


def numbers(totals: Dict[str, Union[Tensor, float]]) -> Dict[str, float]:
    """The values as numbers. Tensors, scalars of one device, are brought over together: one by one, the host would
    wait for a GPU as often."""
    tensors = [value.double() for value in totals.values() if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return {key: next(read) if isinstance(value, Tensor) else value for key, value in totals.items()}


def log_boundary_metrics(totals: Dict[str, float]) -> None:
    """To fairseq's log: z1, ..., update1, copy1, flush1, ... and, if there are gold counts, word_f1_1, ...

    A total NAME:KIND is a sum over as many steps as the total KIND says.
    """
    for key, value in totals.items():
        name, _, kind = key.rpartition(":")
        if not name or totals[kind] <= 0:
            continue
        if not kind.endswith("_f1"):
            metrics.log_scalar(name, value / totals[kind], totals[kind], round=3)
        else:
            metrics.log_scalar(f"_{kind}_{name}", value / totals[kind], totals[kind])  # hidden: F1 is made of averages
            if name.startswith("hits"):
                metrics.log_derived(f"{kind}_{name[4:]}", _f1(kind, name[4:]))


def _f1(kind: str, layer: str) -> Callable:
    def f1(meters) -> float:
        hits, closed, gold = (meters[f"_{kind}_{name}"].avg for name in (f"hits{layer}", f"closed{layer}", "gold"))
        return round(float(2 * hits / max(closed + gold, 1e-12)), 3)

    return f1
