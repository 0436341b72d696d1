"""Cross-entropy with regularisers on boundaries, and the statistics that show whether a hierarchy is learned."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import torch
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from ..options import WEIGHT, CheckedOptions, Parsed, check_config, number, option, whole
from ..trace import BoundaryTrace, trace_of
from .adaptive import adaptive_nll
from .boundary_regularizers import (
    REGULARIZERS,
    LayerSteps,
    Signals,
    detector_cross_entropy,
    entropy_and_surprisal,
)
from .boundary_statistics import boundary_counts, gold_counts, log_boundary_metrics, summed
from .boundary_supervision import Supervision, SymbolSet, build_supervision, whitespace_indices
from .boundary_terms import listeners, listening, needing, parse_rates, parse_regularizers, parse_terms
from .rate_estimator import MEMORY
from .right_to_left import RightToLeftPredictor, followers, left_to_right
from .softmax_nll import LARGE, plain_logits, softmax_nll
from .target_rates import TargetRates

logger = logging.getLogger(__name__)

LARGEST_DELAY = 9  # steps; longer than a word
TRANSLATION_TASKS = (TranslationTask, TranslationMultiSimpleEpochTask)  # whose sources no model predicts


def _parse_separator(text: str) -> str:
    """Itself; ValueError if it separates nothing."""
    if not text:
        raise ValueError("boundary-supervision-separator must not be empty")
    return text


@dataclass
class BoundaryRegularizedCrossEntropyConfig(CrossEntropyCriterionConfig):
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
    boundary_weight: float = option(1.0, "factor on the weights of all boundary regularisers", WEIGHT)
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
class BoundaryRegularizedCrossEntropy(CheckedOptions, CrossEntropyCriterion):
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

    name, models_with_boundaries = "boundary_regularized_cross_entropy", "hmlstm_lm or hmlstm"  # in errors

    def __init__(
        self, task, sentence_avg, boundary_rates="", boundary_regularizers="rate", boundary_weight=1.0, **options
    ):
        """options: further fields of the class's dataclass. ValueError for a value out of range, TypeError for another
        name."""
        options["boundary_rates"], options["boundary_regularizers"] = boundary_rates, boundary_regularizers
        options["boundary_weight"] = boundary_weight
        config = getattr(self, "__dataclass")  # of register_criterion
        check_config(config(**options), config)
        cfg = BoundaryRegularizedCrossEntropyConfig(**options)  # also with what a subclass has no option for
        super().__init__(task, sentence_avg)
        self.rates = parse_rates(cfg.boundary_rates)
        self.terms = parse_terms(cfg.boundary_regularizers, self.rates)
        self.weight = cfg.boundary_weight
        dictionary = getattr(task, "source_dictionary", None)
        line_end = dictionary.eos() if dictionary is not None else None
        self.targets = TargetRates(self.rates, self.terms, line_end, cfg.boundary_delay)
        self.right_to_left: Optional[RightToLeftPredictor] = None
        if needing("right_to_left", self.terms):
            if dictionary is None:
                names = ", ".join(needing("right_to_left", self.terms))
                raise ValueError(
                    f"{names} in boundary-regularizers requires a task with symbols; strokes have none: give "
                    "--criterion handwriting_likelihood, and other regularizers"
                )
            self.right_to_left = RightToLeftPredictor(len(dictionary), dictionary.pad())
        self.left_to_right: Optional[RightToLeftPredictor] = None  # of reversed rows
        if needing("signals", self.terms) and isinstance(task, TRANSLATION_TASKS):
            self.left_to_right = RightToLeftPredictor(len(dictionary), dictionary.pad())
        self.supervision: Optional[Supervision] = None
        if cfg.boundary_supervision:
            separator = cfg.boundary_supervision_separator
            self.supervision = build_supervision(cfg.boundary_supervision, dictionary, separator)
        self.supervision_layer = cfg.boundary_supervision_layer - 1
        self.supervision_weight = cfg.boundary_supervision_weight
        whitespace = whitespace_indices(dictionary)
        self.is_whitespace = SymbolSet(whitespace, len(dictionary)) if whitespace else None
        self.label_smoothing = cfg.label_smoothing

    @classmethod
    def build_criterion(cls, cfg, task):
        """From fairseq's options."""
        fields = dataclasses.fields(getattr(cls, "__dataclass"))
        names = [field.name for field in fields if not field.name.startswith("_")]
        return cls(task, **{name: getattr(cfg, name) for name in names})

    def forward(self, model, sample, reduce=True):
        """As fairseq's cross_entropy: the loss, its denominator, and what to log."""
        net_output = model(**sample["net_input"])
        loss, nll = self._cross_entropy(model, net_output, sample, reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        trace = self._checked_trace(net_output)
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

    def _checked_trace(self, net_output) -> BoundaryTrace:
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
        if self.supervision is not None and self.supervision_layer >= detectors:
            raise ValueError(
                f"boundary-supervision-layer {self.supervision_layer + 1} does not exist: the model has {detectors} "
                "boundary detectors"
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

    def penalties(self, model, net_output, sample) -> List[Tensor]:
        """Terms added to the loss, by symbol, scalars: of every regulariser whose weight is not 0, of the networks that
        these listen to (zeros where none does), and of the supervision."""
        tokens = sample["net_input"].get("src_tokens")
        trace, tokens_of_rows = in_source_order(trace_of(net_output), tokens)
        heard: Dict[str, Signals] = {}
        penalties: List[Tensor] = []
        if self.targets.estimator is not None:
            updates = self._num_updates(trace, f"a {self.targets.estimator.quantity} that is to be found")
            self.targets.estimator.newest = self._places_of_an_epoch(sample)
            self.targets.search(updates, trace.boundaries.device)
        for layer in range(trace.num_detectors):
            counted = self.targets.counted(trace, layer, tokens_of_rows, self._following(sample))
            for term in self.terms[layer if len(self.terms) > 1 else 0]:
                updates = self._num_updates(trace, f"annealing ({term.name})") if term.updates else 0
                weight = self.weight * term.weight(updates)
                if weight == 0:
                    continue
                regularizer = REGULARIZERS[term.name]
                for need in ("signals", "right_to_left"):
                    if need in regularizer.needs and need not in heard:
                        nll, found = self.predictions_for(need, model, net_output, sample, term.name)
                        penalties += nll
                        heard[need] = Signals(*(rows_of(trace, values) for values in found))
                # A lexicon gives targets at line ends too, which no rate counts.
                valid = trace.valid if "lexicon" in regularizer.needs else counted
                steps = LayerSteps.of(trace, layer, self.targets.share(layer), **heard)._replace(valid=valid)
                steps = self.targets.with_targets(layer, steps, tokens_of_rows)
                self.targets.remember(term.name, layer, steps, tokens_of_rows)
                penalties.append(weight * regularizer(steps))
        penalties += self._unheard(heard)
        if self.supervision is not None and self.supervision_weight > 0:
            target, known = (rows_of(trace, values) for values in self.supervision(tokens))
            z_tilde = trace.boundary_probs[..., self.supervision_layer].float()
            cross_entropy = detector_cross_entropy(z_tilde, target, known & trace.valid)
            penalties.append(self.supervision_weight * cross_entropy)
        return penalties

    def _unheard(self, heard: Dict[str, Signals]) -> List[Tensor]:
        """0 with a gradient of zeros for every weight of a network that nothing listened to in this update, since its
        terms have no weight yet or any more: torch's distributed wrapper waits for every parameter."""
        networks = {"right_to_left": self.right_to_left, "signals": self.left_to_right}
        unheard = [network for need, network in networks.items() if network is not None and need not in heard]
        return [parameter.flatten()[:0].sum() for network in unheard for parameter in network.parameters()]

    def predictions_for(self, need, model, net_output, sample, name: str) -> Tuple[List[Tensor], Signals]:
        """One of the NEEDS of the regulariser of this name, for every source symbol, and the loss of the network that
        predicted it, if it is not the model itself."""
        tokens = sample["net_input"].get("src_tokens")
        if need == "right_to_left":
            following = self._following(sample)
            if following is None:
                following = followers(tokens, self.right_to_left.padding_idx)
            nll, found = self.right_to_left(tokens, following)
        elif self.left_to_right is not None:
            nll, found = left_to_right(self.left_to_right, tokens)
        else:
            return [], self.signals(model, net_output, sample, name)
        return [nll], found

    @staticmethod
    def _following(sample) -> Optional[Tensor]:
        """(B, T), the symbol after each source symbol, of a language model; None in translation."""
        return None if "prev_output_tokens" in sample["net_input"] else sample["target"]

    def _places_of_an_epoch(self, sample) -> int:
        """How many of the places that are remembered come once: of a stream, whose windows may be cut anew in the next
        epoch, those that this process reads in one."""
        stream = sample["net_input"].get("stream")
        if stream is None:
            return MEMORY
        return len(self.task.dataset(stream)) // distributed_utils.get_data_parallel_world_size()

    @staticmethod
    def _num_updates(trace: BoundaryTrace, what: str) -> int:
        if trace.num_updates is None:
            raise ValueError(f"{what} requires a model that knows its updates: give one number")
        return int(trace.num_updates)  # a tensor where the model was compiled

    @torch.no_grad()
    def signals(self, model, net_output, sample, name: str) -> Signals:
        """The entropy and surprisal of the model's predictions at the steps of its boundaries."""
        target = model.get_targets(sample, net_output)
        if "prev_output_tokens" in sample["net_input"] or target.shape != trace_of(net_output).valid.shape:
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
        boundaries, valid = trace.boundaries.detach(), trace.valid
        counts = boundary_counts(boundaries, valid, trace.num_detectors)
        aligned, tokens = in_source_order(trace, sample["net_input"]["src_tokens"])
        counts.update(self.targets.statistics(aligned, tokens, self._following(sample), self.training))
        if self.is_whitespace is not None:
            whitespace = self.is_whitespace(tokens)
            counts.update(gold_counts(aligned.boundaries.detach(), whitespace, aligned.valid, trace.num_detectors))
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


def in_source_order(trace: BoundaryTrace, tokens: Optional[Tensor]) -> Tuple[BoundaryTrace, Optional[Tensor]]:
    """A trace with its steps in the order of the tokens (B, T) that were read, in one direction or in two, and the
    tokens of each of its rows."""
    if tokens is None:
        return trace, None
    trace = trace.in_source_order(tokens.size(0))
    return trace, rows_of(trace, tokens)


def rows_of(trace: BoundaryTrace, values: Tensor) -> Tensor:
    """Values (B, T) of a source for every row of its trace: twice, if it was read in two directions."""
    return values if values.size(0) == trace.valid.size(0) else values.repeat(2, 1)
