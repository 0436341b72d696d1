"""The options that name boundary regularisers, their weights and the target rates, as text."""

from __future__ import annotations

import math
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from .boundary_regularizers import REGULARIZERS


class Term(NamedTuple):
    """A regulariser with its weight, which goes from `start` to `end` in a straight line over `updates` updates."""

    name: str
    start: float = 1.0
    end: float = 1.0
    updates: int = 0

    def weight(self, num_updates: int) -> float:
        if num_updates >= self.updates:
            return self.end
        return self.start + (self.end - self.start) * num_updates / self.updates


def needing(need: str, terms: Sequence[Sequence[Term]]) -> List[str]:
    """The names, in order and each once, of the regularisers among the terms of all layers that need one of NEEDS."""
    names = (term.name for layer in terms for term in layer)
    return [name for name in dict.fromkeys(names) if need in REGULARIZERS[name].needs]


def parse_regularizers(text: str) -> List[List[Term]]:
    """The terms of each layer: "rate+uncertainty=.1,rate".

    An entry is `none`, or terms joined by +; a term is NAME, NAME=WEIGHT or NAME=START:END:UPDATES. ValueError with a
    remedy otherwise.
    """
    entries = [entry.strip() for entry in text.split(",")]
    return [[] if entry == "none" else list(map(_parse_term, entry.split("+"))) for entry in entries]


def _parse_term(text: str) -> Term:
    name, _, weight = text.strip().partition("=")
    if name not in REGULARIZERS:
        raise ValueError(
            f"unknown boundary regularizer {name!r}: choose from {', '.join(REGULARIZERS)} or none, such as "
            "rate+uncertainty=.1,rate"
        )
    try:
        start, end, updates = _parse_weight(weight)
    except ValueError:
        start = math.nan
    if not (start >= 0 and end >= 0 and updates >= 0 and math.isfinite(start + end)):
        raise ValueError(
            f"the weight of a boundary regularizer is a number from 0 or START:END:UPDATES, such as {name}=.1 or "
            f"{name}=0:.1:1000, not {weight!r}"
        )
    return Term(name, start, end, updates)


def _parse_weight(text: str) -> Tuple[float, float, int]:
    if not text:
        return 1.0, 1.0, 0
    if ":" not in text:
        return float(text), float(text), 0
    start, end, updates = text.split(":")
    return float(start), float(end), int(updates)


def parse_terms(text: str, rates: List[Rate]) -> List[List[Term]]:
    """The regularisers by layer, one entry for all layers; without rates the default is none."""
    if not rates and text == "rate":
        return [[]]
    terms = parse_regularizers(text)
    of_a_rate = needing("rate", terms) + needing("lexicon", terms)
    if of_a_rate and not rates:
        raise ValueError(f"{', '.join(of_a_rate)} in boundary-regularizers requires --boundary-rates, such as .2,.05")
    if needing("lexicon", terms[1:]) or (needing("lexicon", terms) and len(terms) < len(rates)):
        raise ValueError("lexicon in boundary-regularizers is for the first layer alone, such as rate+lexicon,rate")
    if rates and rates[0].share is None and listening(terms[0]) is None:
        raise ValueError(
            f"auto in boundary-rates is found by what a detector listens to: in boundary-regularizers give layer 1 one "
            f"of {', '.join(listeners())}, such as rate+bidirectional, or give numbers alone, such as .2,.05"
        )
    return terms


def listeners() -> List[str]:
    """The names of the regularisers that listen to a signal."""
    return [name for name, found in REGULARIZERS.items() if found.signal is not None]


def listening(terms: Sequence[Term]) -> Optional[str]:
    """The name of the regulariser that determines a layer's rate, if that is searched, and its delay: the first with a
    lexicon, else the first that listens to a signal; None if none does."""
    names = [term.name for term in terms if REGULARIZERS[term.name].signal is not None]
    return next(iter([*needing("lexicon", [terms]), *names]), None)


def by_layer(terms: List[List[Term]], layers: int) -> List[List[Term]]:
    """The terms of each of so many layers; the last entry is for all layers beyond the list."""
    return [terms[min(layer, len(terms) - 1)] for layer in range(layers)]


def delay_behind(heard: Optional[str], given: Optional[int]) -> int:
    """How many steps after a segment's last one a detector closes it. heard: the name of what it listens to; None:
    nothing. given: --boundary-delay; None: the regulariser's own."""
    if heard is None:
        return 0
    return REGULARIZERS[heard].delay if given is None else given


def delays_of(criterion: Any) -> Tuple[int, ...]:
    """How many steps after a segment's last one each layer's detector, from the bottom, was taught to close it, by the
    options of the criterion that a checkpoint was trained with. One that listens to nothing closes its segments as late
    as the layer below, whose segments they are made of. (0,), for all layers, if nothing of the kind was taught."""
    delays: List[int] = []
    for heard in _heard_by_layers(criterion):
        below = delays[-1] if delays else 0
        delays.append(below if heard is None else delay_behind(heard, getattr(criterion, "boundary_delay", None)))
    return tuple(delays) or (0,)


def teaches_first_layer(criterion: Any) -> bool:
    """Whether training by these options of a criterion taught the first layer's detector where segments end."""
    supervised = getattr(criterion, "boundary_supervision", "") and criterion.boundary_supervision_layer == 1
    return bool(supervised) or any(_heard_by_layers(criterion)[:1])


def _heard_by_layers(criterion: Any) -> List[Optional[str]]:
    """As `listening`, of each layer that has a rate, by the options of a criterion."""
    regularizers, rates = (getattr(criterion, f"boundary_{name}", None) for name in ("regularizers", "rates"))
    if not regularizers or not rates:
        return []
    layers = parse_rates(rates)
    return [listening(terms) for terms in by_layer(parse_terms(regularizers, layers), len(layers))]


class Rate(NamedTuple):
    """The target rate of one layer. share: of its boundaries; None: to be found. within_lines: among the steps within
    lines, where none ends; otherwise among all."""

    share: Optional[float]
    within_lines: bool


def parse_rates(text: str) -> List[Rate]:
    """Those of each layer: ".2,.05", ".2,steps:.05" or "auto,.05"; ValueError with a remedy otherwise."""
    return [_parse_rate(part.strip(), layer, text) for layer, part in enumerate(text.split(","))] if text else []


def _parse_rate(part: str, layer: int, text: str) -> Rate:
    if part == "auto" and layer == 0:
        return Rate(None, within_lines=True)
    if part == "auto":
        raise ValueError(
            "auto in boundary-rates is for the first layer: give numbers for those above, such as auto,.05"
        )
    counted, _, number = part.rpartition(":")
    try:
        share = float(number)
    except ValueError:
        share = math.nan
    if counted not in ("", "within", "steps") or not 0 < share < 1:
        raise ValueError(
            "boundary-rates must be numbers between 0 and 1, exclusive, separated by commas, each of the steps within "
            f"lines or, as steps:.2, of all steps; or auto, to be found, for the first layer; not {text!r}"
        )
    return Rate(share, within_lines=counted != "steps")
