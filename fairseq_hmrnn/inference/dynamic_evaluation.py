"""Dynamic evaluation (Krause et al. 2018, arXiv 1709.07432): a language model goes on learning from the text it scores.

Every segment of the text is scored before anything is learned from it, so that the result is that of a model that has
seen nothing but the past.
"""

from __future__ import annotations

from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.indexed import check_split
from ..data.streams import StreamBatches, WindowOptions, load_stream
from ..ops import HMLSTMState
from .reader import mean_log_probs


class DynamicOptions(NamedTuple):
    """How a model learns from what it has scored.

    learning_rate: eta, 0 for static evaluation. decay: lambda, how fast the weights return to those of the checkpoint.
    segment: symbols that are scored before the weights change. epsilon: added to the root mean square of a gradient
    before dividing by it.
    """

    learning_rate: float = 3e-5
    decay: float = 1e-3
    segment: int = 20
    epsilon: float = 1e-4

    def check(self) -> DynamicOptions:
        """Self, or ValueError."""
        if not 0 <= self.learning_rate < float("inf"):
            raise ValueError(f"the learning rate must be a number from 0, got {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"the decay must lie in [0, 1], got {self.decay}")
        if self.segment < 1:
            raise ValueError(f"a segment has at least 1 symbol, got {self.segment}")
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon must be a positive number, got {self.epsilon}")
        return self


class TextWindows:
    """A prepared split, or its first symbols, as num_streams contiguous streams, cut into windows of `length` symbols,
    the last of which may be shorter. Iterates over their sources and targets, both (num_streams, length); len is the
    number of windows.

    FileNotFoundError for a split that is not there, ValueError for one that is damaged or has fewer symbols than there
    are streams.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        dictionary,
        output_dictionary,
        length: int,
        num_streams: int = 1,
        first: Optional[int] = None,
    ):
        check_split(f"{folder}/{split}", dictionary)
        text = load_stream(folder, split, dictionary, output_dictionary, WindowOptions(length).check())
        text.tokens = text.tokens[:first]
        text.check_holds(num_streams, ": give fewer, or more text")
        self.num_symbols = len(text)
        self._batches = StreamBatches(text, num_streams, range(num_streams))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Tuple[Tensor, Tensor]]:
        for window in range(len(self)):
            batch = self._batches[window]
            yield batch["net_input"]["src_tokens"], batch["target"]


def parameters_of(decoder) -> List[Tensor]:
    """The parameters that dynamic evaluation changes, each once."""
    return [parameter for parameter in decoder.parameters() if parameter.requires_grad]


def gradient_rms(decoder, batches: Iterable[Tuple[Tensor, Tensor]]) -> List[Tensor]:
    """The root mean square, over batches of training text, of the gradient of the mean loss, as `parameters_of`.

    batches: sources and targets, both (B, T), consecutive windows of the same B streams.
    """
    parameters, state, count = parameters_of(decoder), None, 0
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for source, target in batches:
        nats, state = _losses(decoder, source, target, state)
        for square, gradient in zip(squares, _gradients(nats, parameters)):
            square.addcmul_(gradient, gradient)
        count += 1
    if not count:
        raise ValueError("no training text to take the root mean square of gradients from")
    return [square.div_(count).sqrt_() for square in squares]


class DynamicEvaluation:
    """Scores a text with a decoder whose weights follow it.

    decoder: an HMLSTMDecoder in evaluation, with float32 weights; `restore` gives it back the weights that it had.
    rms: as `gradient_rms` made it, of these weights; None with a learning rate of 0, which leaves them as they are.
    """

    def __init__(self, decoder, rms: Optional[List[Tensor]], options: DynamicOptions):
        options.check()
        self.decoder, self.learns = decoder, options.learning_rate > 0
        self.parameters = parameters_of(decoder)
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        if not self.learns:
            return
        if rms is None:
            raise ValueError("a learning rate above 0 requires rms: see gradient_rms")
        mean = sum(r.sum() for r in rms) / sum(r.numel() for r in rms)
        self.rates = [options.learning_rate / (r + options.epsilon) for r in rms]
        self.pulls = [(options.decay / mean * r).clamp_(max=1) for r in rms]

    def score(self, segments: Iterable[Tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """Nats (B, T) of each segment's symbols. segments: sources and targets (B, T), as of `TextWindows`."""
        state: Optional[HMLSTMState] = None
        for source, target in segments:
            with torch.set_grad_enabled(self.learns):
                nats, state = _losses(self.decoder, source, target, state)
            if self.learns:
                self._learn(_gradients(nats, self.parameters))
            yield nats.detach()

    @torch.no_grad()
    def _learn(self, gradients: List[Tensor]) -> None:
        """theta += lambda RMS / mean(RMS) (theta_0 - theta) - eta g / (RMS + epsilon), the update rule there."""
        for parameter, start, pull, rate, gradient in zip(
            self.parameters, self.start, self.pulls, self.rates, gradients
        ):
            parameter.lerp_(start, pull).addcmul_(gradient, rate, value=-1)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the decoder the weights that it had at the beginning."""
        for parameter, start in zip(self.parameters, self.start):
            parameter.copy_(start)


def nats_of_mean(nats: Sequence[Tensor]) -> Tensor:
    """Nats of the mean of the probabilities that models gave to the same symbols, each tensor those of a model: an
    ensemble as fairseq makes it."""
    return -mean_log_probs(-x for x in nats)


def _losses(decoder, source: Tensor, target: Tensor, state: Optional[HMLSTMState]) -> Tuple[Tensor, HMLSTMState]:
    """Nats (B, T) of targets after their sources, padding as 0, and the state reached, cut off from the graph."""
    logits, extra = decoder(source, state=state)
    log_probs = decoder.get_normalized_probs((logits, extra), log_probs=True)
    pad = decoder.dictionary.pad()
    nats = F.nll_loss(log_probs.flatten(0, 1), target.flatten(), reduction="none", ignore_index=pad)
    return nats.view_as(target), extra["state"].detach()


def _gradients(nats: Tensor, parameters: List[Tensor]) -> List[Tensor]:
    """Gradients of the mean over symbols; zeros for parameters that had no part in it."""
    found = torch.autograd.grad(nats.mean(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, found)]
