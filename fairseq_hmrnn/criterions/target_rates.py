"""The rate that each layer's boundaries are to have, and the steps that it is a share of."""

from __future__ import annotations

import functools
import logging
import math
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor

from ..trace import BoundaryTrace
from .boundary_regularizers import REGULARIZERS, LayerSteps, later
from .boundary_terms import Rate, Term, by_layer, delay_behind, listening
from .lexicon_estimator import LexiconEstimator
from .rate_estimator import EVERY_EARLY, RateEstimator

logger = logging.getLogger(__name__)


class TargetRates:
    """rates: by layer, or empty. terms: by layer, or one list for all layers. line_end: the index of `</s>`, None for
    strokes. delay: of detectors that listen to a signal; None: the regulariser's own.

    heard: the name of what each layer's detector listens to, None for one that does not. estimator: of the first
    layer's rate, or of its lexicon; None where neither is to be found.
    """

    def __init__(
        self,
        rates: Sequence[Rate],
        terms: Sequence[List[Term]],
        line_end: Optional[int],
        delay: Optional[int] = None,
    ):
        self.rates, self.delay = rates, delay
        self.line_end = -1 if line_end is None else line_end  # -1: no symbol
        self.heard = [listening(of_layer) for of_layer in by_layer(list(terms), len(rates))]
        # How many steps after a segment's last one each layer's detector closes it.
        self.delays = [delay_behind(name, delay) for name in self.heard]
        self.estimator: Optional[RateEstimator] = None
        if self.heard and self.heard[0] == "lexicon":
            self.estimator = LexiconEstimator(rates[0].share)
        elif rates and rates[0].share is None:
            self.estimator = RateEstimator()
        self._announces = bool(rates) and rates[0].share is None  # what the rate is before the first search
        lines = line_end is not None  # strokes have none
        self.within_lines = [rate.within_lines and lines for rate in rates]
        given = [within and rate.share is not None for within, rate in zip(self.within_lines, rates)]
        if any(given):
            layers = ", ".join(str(layer) for layer, within in enumerate(given, 1) if within)
            logger.info(
                f"boundary-rates: numbers (here of layer {layers}) are shares of the steps within lines; of all steps, "
                "as before 1.0 and for sentences, it is steps:.2"
            )

    def share(self, layer: int) -> Optional[float]:
        """None if there are no rates."""
        share = self.rates[layer].share if self.rates else None
        return self.estimator.rate if share is None and self.estimator is not None else share

    def search(self, num_updates: int, device: torch.device) -> None:
        """Where the first layer's rate is to be found: see RateEstimator. Says what it begins with, once a checkpoint
        that training goes on from has been loaded."""
        if self.estimator is None:
            return
        if self._announces:
            self._announces = False
            then = f"is searched from update {EVERY_EARLY} on"
            if not math.isnan(self.estimator.last):
                then = "was found before training stopped; the search goes on"
            logger.info(f"boundary-rates: the rate of layer 1 is {self.estimator.rate:.3g} and {then}")
        self.estimator.search(num_updates, device)

    def counted(
        self, trace: BoundaryTrace, layer: int, tokens: Optional[Tensor], following: Optional[Tensor] = None
    ) -> Tensor:
        """bool (B, T), the valid steps that the rate is a share of. tokens: (B, T); None: strokes, without lines.
        following: (B, T), the symbol after each, if tokens do not end where a text does: a line may end there."""
        if tokens is None or not self.rates or not self.within_lines[layer]:
            return trace.valid
        return self._within(trace, layer, tokens, following)

    def _within(self, trace: BoundaryTrace, layer: int, tokens: Tensor, following: Optional[Tensor]) -> Tensor:
        ends, delay = tokens.eq(self.line_end), self.delays[layer]
        left_out = later(ends, delay) | later(ends, delay - 1)
        if following is not None:
            left_out |= later(following.eq(self.line_end), delay)
        return trace.valid & ~left_out

    def with_targets(self, layer: int, steps: LayerSteps, tokens: Optional[Tensor]) -> LayerSteps:
        """With what the targets of a layer that listens depend on."""
        if layer == 0 and tokens is not None and isinstance(self.estimator, LexiconEstimator):
            steps = steps._replace(lexicon=functools.partial(self._begins, self.estimator, tokens))
        return steps._replace(delay=self.delay)

    def _begins(self, estimator: LexiconEstimator, tokens: Tensor, signal: Tensor, known: Tensor) -> Tensor:
        return estimator.begins(tokens, self.certain_at_line_ends(tokens, signal), known)

    def certain_at_line_ends(self, tokens: Tensor, signal: Tensor) -> Tensor:
        """The signal of the place before each symbol (B, T), inf before and after `</s>` if the first layer's rate is
        within lines: a segment begins there for certain, and no rate counts it."""
        if not self.within_lines[0]:
            return signal
        ends = tokens.eq(self.line_end)
        return signal.masked_fill(ends | later(ends, 1), math.inf)

    def remember(self, name: str, layer: int, steps: LayerSteps, tokens: Optional[Tensor]) -> None:
        """If the first layer's rate is to be found: remember what its detector hears by the regulariser `name`."""
        hear, delay = REGULARIZERS[name].signal, REGULARIZERS[name].delay
        if self.estimator is None or hear is None or tokens is None or layer > 0 or name != self.heard[0]:
            return
        with torch.no_grad():
            signal, known = hear(steps)
            if delay == 0:  # then it is about the place after a step
                signal, known = later(signal, 1), later(known, 1)
            self.estimator.remember(tokens, self.certain_at_line_ends(tokens, signal), known)

    def statistics(
        self, trace: BoundaryTrace, tokens: Optional[Tensor], following: Optional[Tensor], training: bool
    ) -> Dict[str, Tensor]:
        """Sums for the log: z1_within, the share within lines, where the rate is that; z1_target, the rate, if it is
        found."""
        counts = {}
        for layer, within in enumerate(self.within_lines):
            if within and tokens is not None:
                counted, kind = self._within(trace, layer, tokens, following), f"steps{layer + 1}"
                counts[kind] = counted.sum()
                counts[f"z{layer + 1}_within:{kind}"] = (trace.boundaries[..., layer].detach().double() * counted).sum()
        if self.estimator is not None and self.rates[0].share is None and training:
            kind = "steps1" if "steps1" in counts else "steps"
            counts[f"z1_target:{kind}"] = counts.get(kind, trace.valid.sum()) * self.estimator.rate
        return counts
