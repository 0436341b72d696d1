"""Boundary regularisers: one formula each, on plain tensors.

Every regulariser is a function of one layer's `LayerSteps` and returns a scalar, a mean over the valid steps of the
batch; padding never counts. Sums of terms by step or by row (`binomial`, `entropy`, `cost`, and the uncertainty family
with given targets) are additive over accumulated batches and ranks if sample_size, by which the criterion weights them,
is proportional to the number of steps: not with --sentence-avg, and only roughly in translation. Those of a mean rate
(`rate`, `ratio`, `hinge`) apply to the rate of each batch on each rank.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..trace import BoundaryTrace

PROBABILITY_MARGIN = 0.02  # cross-entropies see z~ no closer to 0 and 1 than this: keeps their gradient below 50


class Signals(NamedTuple):
    """Predictions at every step, without gradient. Each (B, T), in nats.

    entropy: of the distribution of the predicted symbol, -sum p log p.
    surprisal: -log p of the symbol that came.
    predicted: bool, False where there was nothing to predict.
    """

    entropy: Tensor
    surprisal: Tensor
    predicted: Tensor


def entropy_and_surprisal(log_probs: Tensor, symbols: Tensor) -> Tuple[Tensor, Tensor]:
    """Both (B, T), of predictions log_probs (B, T, V), the entropy without gradient, and the symbols (B, T) that
    came."""
    surprisal = -log_probs.gather(-1, symbols.unsqueeze(-1)).squeeze(-1)
    return torch.special.entr(log_probs.detach().exp()).sum(-1), surprisal


class LayerSteps(NamedTuple):
    """One layer's boundaries. Tensors (B, T).

    z: 0 or 1 (in [0, 1] if soft), with straight-through gradients. z_tilde: its probability. valid: bool, the steps
    that count. rate: the target share of boundaries, None without one. z_below: z of the layer below, None for the
    first.

    None unless the regulariser needs them: signals, of the model's predictions of the symbol after each step;
    right_to_left, of the predictions of the symbol read at each step by a network that reads the other way
    (right_to_left.py); lexicon, a function of a signal about the place before each step, values and known (B, T), that
    returns bool (B, T), True where a segment begins (lexicon_estimator.py).

    delay: steps after a segment's last symbol at which the detector learns to fire; None: the regulariser's own.
    """

    z: Tensor
    z_tilde: Tensor
    valid: Tensor
    rate: Optional[float] = None
    z_below: Optional[Tensor] = None
    signals: Optional[Signals] = None
    right_to_left: Optional[Signals] = None
    lexicon: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    delay: Optional[int] = None

    @classmethod
    def of(
        cls,
        trace: BoundaryTrace,
        layer: int,
        rate: Optional[float],
        signals: Optional[Signals] = None,
        right_to_left: Optional[Signals] = None,
    ) -> LayerSteps:
        """One layer of a batch, its tensors in single precision or better."""
        dtype = torch.promote_types(trace.boundaries.dtype, torch.float)
        z, z_tilde = trace.boundaries.to(dtype), trace.boundary_probs.to(dtype)
        return cls(
            z=z[..., layer],
            z_tilde=z_tilde[..., layer],
            valid=trace.valid,
            rate=rate,
            z_below=z[..., layer - 1] if layer else None,
            signals=signals,
            right_to_left=right_to_left,
        )


class Heard(NamedTuple):
    """A signal that a detector listens to: values (B, T), and known, bool (B, T), where there is one."""

    values: Tensor
    known: Tensor


class Regularizer(NamedTuple):
    """A formula of `LayerSteps`, and which of its optional fields it reads.

    signal: what it listens to, of those that listen. delay: at which step a detector that learned it closes a segment,
    unless --boundary-delay says another; 0: at its last step; 1: at the first of the next one.
    """

    formula: Callable[[LayerSteps], Tensor]
    needs: FrozenSet[str]
    signal: Optional[Callable[[LayerSteps], Heard]] = None
    delay: int = 0

    def __call__(self, steps: LayerSteps) -> Tensor:
        return self.formula(steps)


# Fields of LayerSteps that the criterion fills where they are needed.
NEEDS = ("rate", "signals", "right_to_left", "lexicon")
REGULARIZERS: Dict[str, Regularizer] = {}


def regularizer(*needs: str) -> Callable[[Callable[[LayerSteps], Tensor]], Callable[[LayerSteps], Tensor]]:
    """Decorates a function, which then is the regulariser of its name: in the option, its help and all checks.

    needs: those of NEEDS that it reads. ValueError for any other, and for a second regulariser of one name.
    """
    if not set(needs) <= set(NEEDS):
        raise ValueError(f"a regulariser may need {', '.join(NEEDS)}, not {', '.join(sorted(set(needs) - set(NEEDS)))}")

    def register(formula):
        _add(formula.__name__, Regularizer(formula, frozenset(needs)))
        return formula

    return register


def listener(*needs: str, delay: int = 0) -> Callable[[Callable[[LayerSteps], Heard]], Regularizer]:
    """Decorates a function that makes a signal, which then is a regulariser too: the detector learns where the signal
    is among the highest. needs, delay: as of Regularizer; the rate need not be named."""

    def register(signal):
        def formula(steps):
            return _listen(steps, *_delayed(steps, delay, *signal(steps)))

        found = Regularizer(formula, frozenset(("rate", *needs)), signal, delay)
        _add(signal.__name__, found)
        return found

    return register


def _add(name: str, found: Regularizer) -> None:
    if name in REGULARIZERS:
        raise ValueError(f"there is a boundary regularizer {name!r} already: choose another name")
    REGULARIZERS[name] = found


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`, a bool of the same shape, holds; 0 if it holds nowhere."""
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


@regularizer("rate")
def rate(steps: LayerSteps) -> Tensor:
    """(m - a)^2, m the mean of z and a the target rate. The gradient is the same at every step, through z."""
    return (masked_mean(steps.z, steps.valid) - steps.rate).pow(2)


@regularizer("rate")
def binomial(steps: LayerSteps) -> Tensor:
    """-sum_rows log [C(n, k) a^k (1-a)^(n-k)] / sum_rows n, k the boundaries among the n valid steps of a row: the
    prior of dynamic token pooling (Nawrot et al. 2023, arXiv 2211.09761, section 3.2), C by the gamma function."""
    n = steps.valid.sum(1).to(steps.z.dtype)
    k = steps.z.masked_fill(~steps.valid, 0).sum(1)
    log_choices = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_prior = log_choices + k * math.log(steps.rate) + (n - k) * math.log1p(-steps.rate)
    return -log_prior.sum() / n.sum().clamp(min=1)


@regularizer("rate")
def ratio(steps: LayerSteps) -> Tensor:
    """N/(N-1) [(N-1) F G + (1-F)(1-G)], N = 1/a, F the share of steps with z > 0.5 (no gradient), G the mean of z~:
    H-Net's ratio loss (Hwang et al. 2025, arXiv 2507.07955, eq. 10). It is 1 at F = G = a."""
    share = masked_mean((steps.z.detach() > 0.5).to(steps.z_tilde.dtype), steps.valid)
    mean = masked_mean(steps.z_tilde, steps.valid)
    return share * mean / steps.rate + (1 - share) * (1 - mean) / (1 - steps.rate)


@regularizer()
def entropy(steps: LayerSteps) -> Tensor:
    """Mean of -z~ log z~ - (1-z~) log(1-z~), which pushes z~ away from 0.5: entropy minimisation (Grandvalet and
    Bengio 2004). It says nothing of the rate."""
    p = steps.z_tilde.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return masked_mean(-p * p.log() - (1 - p) * (1 - p).log(), steps.valid)


@regularizer("rate")
def hinge(steps: LayerSteps) -> Tensor:
    """max(0, |m - a| - a/2)^2: nothing while the mean rate m lies between half and one and a half times the target."""
    distance = (masked_mean(steps.z, steps.valid) - steps.rate).abs()
    return (distance - steps.rate / 2).clamp(min=0).pow(2)


@regularizer()
def cost(steps: LayerSteps) -> Tensor:
    """Mean of z, a cost of every boundary: a segment ends only where it lowers the loss by more than that. The layers
    above then COPY through all that does not matter to them, which keeps what they hold to the bit (docs/time.md).
    Anneal it from 0: a detector has to find out first what its boundaries are good for."""
    return masked_mean(steps.z, steps.valid)


def detector_cross_entropy(z_tilde: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean of -y log z~ - (1-y) log(1-z~) over the steps where the target y (B, T) is known, bool (B, T)."""
    p = z_tilde.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
    return masked_mean(-torch.where(target, p, 1 - p).log(), known)


def top_share(values: Tensor, candidates: Tensor, count: Union[int, Tensor]) -> Tensor:
    """bool (B, T): the `count` candidates with the largest values of the batch (all that tie with the last of them).

    count: an integer, or a tensor of one. It stays on its device: to read it would make the host wait for a GPU.
    """
    if not candidates.numel():
        return candidates
    count = candidates.sum().clamp(max=count)
    ranked = values.masked_fill(~candidates, -math.inf).flatten().sort(descending=True)[0]
    last = ranked.gather(0, (count - 1).clamp(min=0).view(1))
    return candidates & (values >= last) & (count > 0)


def _delayed(steps: LayerSteps, behind: int, *heard: Tensor) -> List[Tensor]:
    """Tensors (B, T) that stand `behind` steps after the place they are about, moved to `steps.delay` after it."""
    return [later(x, 0 if steps.delay is None else steps.delay - behind) for x in heard]


def _listen(steps: LayerSteps, values: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of z~ towards "the signal here is among the highest", which is so at a share `rate` of the known
    steps. A layer above the first only has to choose among the steps where the layer below closes a segment."""
    known = known & steps.valid
    candidates = known if steps.z_below is None else known & (steps.z_below > 0.5)
    count = (known.sum().double() * steps.rate).round().long()
    target = top_share(values, candidates, count)
    return detector_cross_entropy(steps.z_tilde, target, known)


def later(values: Tensor, steps: int) -> Tensor:
    """Values (B, T) moved by `steps` to the right, or to the left if negative; 0 where none arrive."""
    length = values.size(1)
    moved = max(-length, min(steps, length))  # a batch may be shorter than a delay
    if moved == 0:
        return values
    return pad(values[:, :-moved], (moved, 0)) if moved > 0 else pad(values[:, -moved:], (0, -moved))


@listener("signals")
def uncertainty(steps: LayerSteps) -> Heard:
    """The detector learns where the model's own next-symbol entropy is in the top share `rate` of the batch: a segment
    ends where its continuation is hardest to foresee (Harris 1955; branching entropy, Tanaka-Ishii 2005). The
    threshold is that quantile of this batch's valid steps, so it follows the model as it learns; at inference the
    detector decides by itself. No gradient reaches the entropy."""
    return Heard(steps.signals.entropy, steps.signals.predicted)


@listener("signals")
def rise(steps: LayerSteps) -> Heard:
    """As `uncertainty`, with the entropy's rise over the step before; the first step of a row has none."""
    values, predicted = steps.signals.entropy, steps.signals.predicted
    return Heard(values - later(values, 1), predicted & later(predicted, 1))


@listener("signals")
def surprisal(steps: LayerSteps) -> Heard:
    """As `uncertainty`, with the surprisal of the symbol that came next: the detector learns to foresee it."""
    return Heard(steps.signals.surprisal, steps.signals.predicted)


@listener("signals", "right_to_left", delay=1)
def bidirectional(steps: LayerSteps) -> Heard:
    """For text without separators, where one reading direction is not enough: the detector learns, one step
    late, where the symbols on both sides of a place predict each other least. The place before step t has
        s_t = H(x_t | x_<t) + H(x_{t-1} | x_>=t) - (log p(x_t | x_<t) + log p(x_{t-1} | x_>=t)) / 4,
    and z_t learns where s_t - (s_{t-1} + s_{t+1}) / 8 is in the top share `rate`: at the first symbol of a new segment,
    since only from there on is the entropy of the symbol before it a function of a state that the detector sees.
    Branching entropy of both directions: Jin and Tanaka-Ishii 2006; less that of its neighbours: Magistry and Sagot
    2012; the weights are ours (docs/boundaries.md)."""
    ahead, back = steps.signals, steps.right_to_left
    values = ahead.entropy + back.entropy + (ahead.surprisal + back.surprisal) / 4
    known = ahead.predicted & back.predicted
    values = values - (later(values, 1) + later(values, -1)) / 8
    known = known & later(known, 1) & later(known, -1)
    return Heard(later(values, 1), later(known, 1))


def lexicon(steps: LayerSteps) -> Tensor:
    """As `bidirectional`, but the detector learns where segments begin in the best segmentation by that signal and by a
    lexicon together, which is counted in the best segmentation of the text read last (lexicon_estimator.py)."""
    values, known = bidirectional.signal(steps)
    begins, known = _delayed(steps, 1, steps.lexicon(values, known), known)
    return detector_cross_entropy(steps.z_tilde, begins, known & steps.valid)


_add("lexicon", Regularizer(lexicon, frozenset(("signals", "right_to_left", "lexicon")), bidirectional.signal, 1))


@listener("signals", "right_to_left")
def unforeseen(steps: LayerSteps) -> Heard:
    """For a layer above another: the detector learns where the symbol that closes a segment of the layer below was
    itself unforeseen, -log p(x_t | x_<t) - log p(x_t | x_>t): of all the places where a segment may end, those that end
    it in an unusual way."""
    ahead, back = steps.signals, steps.right_to_left
    known = later(ahead.predicted, 1) & back.predicted
    return Heard(later(ahead.surprisal, 1) + back.surprisal, known)
