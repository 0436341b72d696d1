"""A table of how well the boundaries of every layer agree with gold ones, beside what is found without a detector."""

from __future__ import annotations

from typing import Dict, Iterator

import numpy as np

from . import segments

HEAD = "layer boundaries        rate  length  gold          P     R    F1  F1 +-1  F1 segments"


def comparison(
    boundaries: np.ndarray, surprisal: np.ndarray, entropy: np.ndarray, golds: Dict[str, segments.Gold], seed: int = 0
) -> Iterator[str]:
    """Lines of the table: scores of each layer under each alignment, and of the baselines.

    boundaries: (T, L) bool. surprisal, entropy: (T,), of the next symbol at each step. golds: by their names.
    """
    yield f"{len(boundaries)} characters"
    yield HEAD
    for layer, found in enumerate(boundaries.T, 1):
        for name, marks in {"detector": found, **segments.baselines(found, surprisal, entropy, seed)}.items():
            for alignment, gold in golds.items():
                yield f"{layer:5d} {name:16s} {_row(marks, alignment, gold)}"
    for layer in range(1, boundaries.shape[1]):
        pair = boundaries[:, layer - 1], boundaries[:, layer]
        nested, kappa = segments.nestedness(*pair), segments.agreement(*pair)
        yield f"layers {layer} and {layer + 1}: nested {nested:.3f}, agreement (kappa) {kappa:.3f}"
    for alignment, gold in golds.items():
        share = (gold.boundary | gold.edge).mean()
        yield f"gold boundaries, {alignment}: {share:.3f} of all characters, with edges"


def _row(marks: np.ndarray, alignment: str, gold: segments.Gold) -> str:
    exact, near = segments.boundary_scores(marks, gold), segments.boundary_scores(marks, gold, 1)
    whole = segments.segment_scores(marks, gold)
    return (
        f"{marks.mean():6.3f} {segments.mean_length(marks):7.1f}  {alignment:11s} {exact.precision:5.3f} "
        f"{exact.recall:5.3f} {exact.f1:5.3f}   {near.f1:5.3f}        {whole.f1:5.3f}"
    )
