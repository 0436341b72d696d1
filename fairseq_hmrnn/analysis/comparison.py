"""A table of how well the boundaries of every layer agree with gold ones, beside what is found without a detector."""

from __future__ import annotations

from typing import Dict, Iterator, Optional

import numpy as np

from . import segments

SCORES = "    P     R    F1"
HEADS = (  # at most 120 columns
    f"{'':37s}{'boundaries':26s}{'with edges':20s}{'tokens':20s}types",
    f"layer              gold         rate{SCORES}   +-1   {SCORES}   {SCORES}   {SCORES}",
)


def comparison(
    boundaries: np.ndarray,
    golds: Dict[str, segments.Gold],
    surprisal: Optional[np.ndarray] = None,
    entropy: Optional[np.ndarray] = None,
    seed: int = 0,
    lexicon: Optional[np.ndarray] = None,
) -> Iterator[str]:
    """Lines of the table: the scores of `segments` of each layer under each alignment, and of the baselines.

    boundaries: (T, L) bool. golds: by their names. surprisal, entropy: (T,), of the next symbol at each step; without
    them their peaks are left out. seed: of the random boundaries. lexicon: bool (T,), of layer 1 by a lexicon too.
    """
    yield f"{len(boundaries)} characters"
    yield from HEADS
    for layer, found in enumerate(boundaries.T, 1):
        own = {"detector": found} if lexicon is None or layer > 1 else {"detector": found, "with lexicon": lexicon}
        for name, marks in {**own, **segments.baselines(found, surprisal, entropy, seed)}.items():
            for alignment, gold in golds.items():
                yield f"{layer:2d} {name:15s} {alignment:11s} {_row(marks, gold)}"
    for layer, found in enumerate(boundaries.T, 1):
        yield f"layer {layer}: {segments.mean_length(found):.1f} characters in a segment"
    for layer in range(1, boundaries.shape[1]):
        pair = boundaries[:, layer - 1], boundaries[:, layer]
        nested, kappa = segments.nestedness(*pair), segments.agreement(*pair)
        yield f"layers {layer} and {layer + 1}: nested {nested:.3f}, agreement (kappa) {kappa:.3f}"
    for alignment, gold in golds.items():
        share, within = (gold.boundary | gold.edge).mean(), gold.boundary.mean()
        yield f"gold boundaries, {alignment}: {within:.3f} of all characters, {share:.3f} with edges"


def _row(marks: np.ndarray, gold: segments.Gold) -> str:
    """The rate and all scores."""
    near = segments.boundary_scores(marks, gold, 1).f1
    others = [score(marks, gold) for score in (segments.edge_scores, segments.token_scores, segments.type_scores)]
    exact = f"{marks.mean():5.3f} {_scores(segments.boundary_scores(marks, gold))} {near:5.3f}"
    return "   ".join([exact, *map(_scores, others)])


def _scores(scores: segments.Scores) -> str:
    return f"{scores.precision:5.3f} {scores.recall:5.3f} {scores.f1:5.3f}"
