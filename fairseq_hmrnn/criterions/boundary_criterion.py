"""What criterions with regularisers on boundaries have in common."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Dict, List

from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from ..options import CheckedOptions, check_config
from ..trace import BoundaryTrace, trace_of
from .boundary_regularizers import REGULARIZERS, LayerSteps, Signals
from .boundary_terms import by_layer, parse_rates, parse_terms
from .rate_estimator import MEMORY
from .source_predictions import Source, SourcePredictions, networks_for
from .target_rates import TargetRates

logger = logging.getLogger(__name__)


class BoundaryCriterion(CheckedOptions, CrossEntropyCriterion):
    """The regularisers of every layer, the networks that they listen to and the rates that are searched for.

    A subclass is registered with a BoundaryConfig, computes a loss, and says what the model's predictions tell
    (`signals`).
    """

    name = "this criterion"  # in errors, as the next
    models_with_boundaries = "hmlstm_lm or hmlstm"

    def __init__(
        self, task, sentence_avg, boundary_rates="", boundary_regularizers="rate", boundary_weight=1.0, **options
    ):
        """options: further fields of the class's dataclass. ValueError for a value out of range, TypeError for another
        name."""
        config = getattr(self, "__dataclass")  # of register_criterion
        self.cfg = config(
            boundary_rates=boundary_rates,
            boundary_regularizers=boundary_regularizers,
            boundary_weight=boundary_weight,
            **options,
        )
        check_config(self.cfg, config)
        super().__init__(task, sentence_avg)
        self.rates = parse_rates(boundary_rates)
        self.terms = parse_terms(boundary_regularizers, self.rates)
        self.weight = boundary_weight
        dictionary = getattr(task, "source_dictionary", None)
        line_end = dictionary.eos() if dictionary is not None else None
        self.targets = TargetRates(self.rates, self.terms, line_end, getattr(self.cfg, "boundary_delay", None))
        self.right_to_left, self.left_to_right = networks_for(task, self.terms)

    @classmethod
    def build_criterion(cls, cfg, task):
        """From fairseq's options."""
        fields = dataclasses.fields(getattr(cls, "__dataclass"))
        names = [field.name for field in fields if not field.name.startswith("_")]
        return cls(task, **{name: getattr(cfg, name) for name in names})

    def signals(self, model, net_output, sample, name: str) -> Signals:
        """What the model's predictions say at the steps of its boundaries, without gradient. name: of the regulariser
        that listens, for errors."""
        raise NotImplementedError

    def penalties(self, model, net_output, sample) -> List[Tensor]:
        """Terms added to the loss, by symbol, scalars: of the networks beside the model (zeros where nothing listens to
        one), of every regulariser whose weight is not 0, and what a subclass adds."""
        predictions = self.predictions(model, net_output, sample)
        source, found = predictions.source, []
        if self.targets.estimator is not None:
            updates = _num_updates(source.trace, f"a {self.targets.estimator.quantity} that is to be found")
            self.targets.estimator.newest = self._places_of_an_epoch(sample)
            self.targets.search(updates, source.trace.boundaries.device)
        for layer, terms in enumerate(by_layer(self.terms, source.trace.num_detectors)):
            counted = self.targets.counted(source.trace, layer, source.tokens_by_row, source.following)
            for term in terms:
                updates = _num_updates(source.trace, f"annealing ({term.name})") if term.updates else 0
                weight = self.weight * term.weight(updates)
                if weight > 0:
                    found.append(weight * self._regularized(term.name, layer, counted, predictions))
        return predictions.losses() + found + self.further_penalties(source)

    def further_penalties(self, source: Source) -> List[Tensor]:
        """Those of a subclass."""
        return []

    def _regularized(self, name: str, layer: int, counted: Tensor, predictions: SourcePredictions) -> Tensor:
        """A regulariser of one layer. counted: bool (B, T), the steps that the layer's rate is a share of."""
        regularizer, source = REGULARIZERS[name], predictions.source
        steps = LayerSteps.of(source.trace, layer, self.targets.share(layer), **predictions.of(name))
        if "lexicon" not in regularizer.needs:  # which gives targets at line ends too, which no rate counts
            steps = steps._replace(valid=counted)
        steps = self.targets.with_targets(layer, steps, source.tokens_by_row)
        self.targets.remember(name, layer, steps, source.tokens_by_row)
        return regularizer(steps)

    def predictions(self, model, net_output, sample) -> SourcePredictions:
        """What regularisers listen to in a batch, and the batch."""

        def by_model(name: str) -> Signals:
            return self.signals(model, net_output, sample, name)

        source = Source.of(self.checked_trace(net_output), sample)
        return SourcePredictions(source, self.right_to_left, self.left_to_right, by_model)

    def checked_trace(self, net_output) -> BoundaryTrace:
        """The boundaries that a model returned; ValueError if there are none, or not as many as the options say."""
        trace = trace_of(net_output)
        if trace is None:
            raise ValueError(f"{self.name} requires a model with boundaries, such as {self.models_with_boundaries}")
        detectors = trace.num_detectors
        if self.rates and len(self.rates) != detectors:
            raise ValueError(
                f"boundary-rates has {len(self.rates)} rates, the model has {detectors} boundary "
                "detectors: give one for each (the top layer has none without top-boundary)"
            )
        if len(self.terms) not in (1, detectors):
            raise ValueError(
                f"boundary-regularizers has {len(self.terms)} entries, the model has {detectors} boundary detectors: "
                "give one for each, or one for all"
            )
        return trace

    def training_state(self) -> Dict[str, Any]:
        """State besides the weights that training needs to resume, for a checkpoint's `extra_state`; may be empty."""
        return self.targets.estimator.state_dict() if self.targets.estimator is not None else {}

    def load_training_state(self, state: Dict[str, Any]) -> None:
        """Load a checkpoint's state; an empty one, of a training without `auto`, leaves the search at its start."""
        if state and self.targets.estimator is not None:
            self.targets.estimator.load_state_dict(state)

    def load_state_dict(self, state_dict, strict=True):
        """fairseq's checkpoints have None of a criterion that learned nothing: then the network starts untrained."""
        if state_dict:
            return super().load_state_dict(state_dict, strict)
        logger.info("the checkpoint has no right-to-left network: it starts untrained")

    def _places_of_an_epoch(self, sample) -> int:
        """How many of the places that are remembered come once: of a stream, whose windows may be cut anew in the next
        epoch, those that this process reads in one."""
        stream = sample["net_input"].get("stream")
        if stream is None:
            return MEMORY
        return len(self.task.dataset(stream)) // distributed_utils.get_data_parallel_world_size()


def _num_updates(trace: BoundaryTrace, what: str) -> int:
    if trace.num_updates is None:
        raise ValueError(f"{what} requires a model that knows its updates: give one number")
    return int(trace.num_updates)  # a tensor where the model was compiled
