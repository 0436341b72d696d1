"""What regularisers listen to: predictions of a source, by the model itself or by networks that the criterion
trains beside it."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from ..trace import BoundaryTrace
from .boundary_regularizers import REGULARIZERS, Signals
from .boundary_terms import Term, needing
from .right_to_left import RightToLeftPredictor, followers, left_to_right

TRANSLATION_TASKS = (TranslationTask, TranslationMultiSimpleEpochTask)  # whose sources no model predicts
PREDICTIONS = ("signals", "right_to_left")  # those of NEEDS that are found here


class Source(NamedTuple):
    """The boundaries of a batch of B rows, and the symbols at which they stand.

    trace: of B rows, or of 2 B if an encoder has read each in two directions; in the order of the text.
    tokens: (B, T), None for pen strokes; tokens_by_row: the same for every row of the trace. following: (B, T), the
    symbol after each, of a language model; None in translation, where it is the next of the tokens.
    """

    trace: BoundaryTrace
    tokens: Optional[Tensor] = None
    tokens_by_row: Optional[Tensor] = None
    following: Optional[Tensor] = None

    @classmethod
    def of(cls, trace: BoundaryTrace, sample) -> Source:
        """From the trace that a model returned for a sample of fairseq."""
        tokens = sample["net_input"].get("src_tokens")
        if tokens is None:
            return cls(trace)
        following = None if "prev_output_tokens" in sample["net_input"] else sample["target"]
        source = cls(trace.in_source_order(tokens.size(0)), tokens, following=following)
        return source._replace(tokens_by_row=source.by_row(tokens))

    def by_row(self, values: Tensor) -> Tensor:
        """Values (B, T) for every row of the trace: twice, if it was read in two directions."""
        return values if values.size(0) == self.trace.valid.size(0) else values.repeat(2, 1)


def networks_for(
    task: Any, terms: Sequence[Sequence[Term]]
) -> Tuple[Optional[RightToLeftPredictor], Optional[RightToLeftPredictor]]:
    """The networks that the terms of all layers listen to, None where they listen to none: one that reads from right to
    left and, in translation, whose model predicts nothing of the source, one that reads reversed rows.

    ValueError if the task has no symbols to read.
    """
    dictionary = getattr(task, "source_dictionary", None)
    backward = needing("right_to_left", terms)
    if backward and dictionary is None:
        raise ValueError(
            f"{', '.join(backward)} in boundary-regularizers requires a task with symbols; strokes have none: give "
            "--criterion handwriting_likelihood, and other regularizers"
        )
    forward = needing("signals", terms) and isinstance(task, TRANSLATION_TASKS)
    right_to_left, reversed_rows = (
        RightToLeftPredictor(len(dictionary), dictionary.pad()) if names and dictionary is not None else None
        for names in (backward, forward)
    )
    return right_to_left, reversed_rows


class SourcePredictions:
    """Predictions of one batch's source, each made when a regulariser first listens to it.

    right_to_left, left_to_right: the networks, as `networks_for` has them. by_model: what the model's own predictions
    say, of which the name of the regulariser that listens is told.
    """

    def __init__(
        self,
        source: Source,
        right_to_left: Optional[RightToLeftPredictor],
        left_to_right: Optional[RightToLeftPredictor],
        by_model: Callable[[str], Signals],
    ):
        self.source, self._by_model = source, by_model
        self._networks = {"signals": left_to_right, "right_to_left": right_to_left}
        self._found: Dict[str, Signals] = {}
        self._losses: List[Tensor] = []

    def of(self, name: str) -> Dict[str, Signals]:
        """What the regulariser of this name listens to, by fields of LayerSteps, for every row of the trace."""
        needs = [need for need in PREDICTIONS if need in REGULARIZERS[name].needs]
        for need in needs:
            if need not in self._found:
                self._found[need] = Signals(*map(self.source.by_row, self._predicted(need, name)))
        return {need: self._found[need] for need in needs}

    def losses(self) -> List[Tensor]:
        """Of the networks, by symbol. One that nothing has listened to in this update, since its terms have no weight
        yet or any more, has gradients of zeros: torch's distributed wrapper waits for every parameter."""
        silent = [
            network for need, network in self._networks.items() if network is not None and need not in self._found
        ]
        zeros = [parameter.flatten()[:0].sum() for network in silent for parameter in network.parameters()]
        return self._losses + zeros

    def _predicted(self, need: str, name: str) -> Signals:
        network, tokens, following = self._networks[need], self.source.tokens, self.source.following
        if network is None or tokens is None:
            return self._by_model(name)
        if need == "signals":
            loss, found = left_to_right(network, tokens)
        else:
            loss, found = network(tokens, followers(tokens, network.padding_idx) if following is None else following)
        self._losses.append(loss)
        return found
