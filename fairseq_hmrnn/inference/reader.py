"""The one reader of known text: by windows, the state carried on, so that memory does not grow with the text.
Predictions are computed only on request; boundaries need none."""

from __future__ import annotations

import abc
import logging
import math
from typing import Callable, Iterable, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from ..data.binarize import index_table
from ..models.decoder import HMLSTMDecoder
from ..ops import HMLSTMOutput, HMLSTMState
from ..text import code_points
from .surface import unknown_message

logger = logging.getLogger(__name__)

WINDOW = 1000  # symbols per call of the recurrence; the state is carried, so that it changes nothing but memory
PREDICTED = 1 << 22  # probabilities that are held at once
Lookahead = Union[int, Sequence[int]]  # of all layers, or of each


class Window(NamedTuple):
    """A batch of symbols that was read. tokens: (B, T). valid: (B, T) bool, False for padding. start: the state before
    the first of them. output: what the recurrence made of them."""

    tokens: Tensor
    valid: Tensor
    start: HMLSTMState
    output: HMLSTMOutput


class Reader:
    """Reads symbols one after the other, as if they were given at once.

    decoder: of an HM-LSTM language model, in evaluation; ValueError for another one. begin: the symbol that stands
    before a text. window: symbols per call of the recurrence.
    """

    def __init__(self, decoder, begin: int, window: int = WINDOW):
        if not isinstance(decoder, HMLSTMDecoder):
            raise ValueError("scoring and segmenting require an HM-LSTM language model")
        self.decoder, self.window = decoder.eval(), window
        self.recur: Callable[[Tensor, HMLSTMState], Tuple[HMLSTMOutput, Tensor]] = decoder.recur
        self.state = decoder.hm_lstm.zero_state(1)
        for _ in self.read(torch.tensor([begin])):
            pass

    @property
    def num_detectors(self) -> int:
        return self.decoder.hm_lstm.num_detectors

    def read(self, tokens: Tensor) -> Iterator[Window]:
        """The next symbols, (T,), by windows with a batch of 1."""
        for window in self.read_batch(tokens.unsqueeze(0), self.state):
            self.state = window.output.state
            yield window

    @torch.no_grad()
    def read_batch(self, tokens: Tensor, state: HMLSTMState) -> Iterator[Window]:
        """Symbols (B, T) from a state on, by windows; padding changes nothing."""
        for part in tokens.to(self.decoder.embed_tokens.weight.device).split(self.window, dim=1):
            output, valid = self.recur(part, state)
            yield Window(part, valid, state, output)
            state = output.state

    @torch.no_grad()
    def log_probs(self, window: Window) -> Iterator[Tensor]:
        """Predictions in nats, before the first symbols of a window and after each: (T + 1, B, V), in parts over T.
        Row t is the prediction of symbol t."""
        output, layer_output = window.output, self.decoder.layer_output
        before = layer_output([h.unsqueeze(0).to(like.dtype) for h, like in zip(window.start.h, output.hidden)])
        behind = layer_output.over_sequence(output.hidden, output.changed(window.start, window.valid.t()))
        steps = max(1, PREDICTED // (window.tokens.size(0) * len(self.decoder.dictionary)))
        for features in torch.cat([before, behind]).split(steps):
            yield self.decoder.predict(features).float().log_softmax(-1)

    def boundaries(self, window: Window) -> Tensor:
        """(T, B, detectors): whether a segment ends with each symbol, 0 or 1; of soft boundaries where z is above one
        half."""
        return closes(window.output.boundaries[..., : self.num_detectors])

    def boundary_probs(self, window: Window) -> Tensor:
        """(T, B, detectors): z~ of each symbol."""
        return window.output.boundary_probs[..., : self.num_detectors].float()


def closes(z: Tensor) -> Tensor:
    """Whether segments end, 0 or 1 in float32: z itself, or, of soft boundaries, whose z is any number from 0 to 1,
    whether it is above one half."""
    return (z > 0.5).float()


class Reading(NamedTuple):
    """A model's states at T characters. Arrays over steps; step t has just read character t.

    boundaries: (T, detectors), 0 or 1, by `closes`. boundary_probs: (T, detectors), z~. norms: (T, L), the Euclidean
    norm of each layer's h.
    """

    boundaries: np.ndarray
    boundary_probs: np.ndarray
    norms: np.ndarray


class Predictions(NamedTuple):
    """Measures of a model's predictions of T characters, in nats. entropy: (T,), of its prediction of the character
    after each. surprisal: (T,), -log p of each."""

    entropy: np.ndarray
    surprisal: np.ndarray

    @property
    def next_surprisal(self) -> np.ndarray:
        """(T,), the surprisal of the character that follows each step; 0 at the last, which nothing follows."""
        return np.append(self.surprisal[1:], 0)


class Closings(NamedTuple):
    """text: T characters. boundaries: (T, detectors) bool, whether a segment ends after each."""

    text: str
    boundaries: np.ndarray


class TextReader(abc.ABC):
    """Reads the pieces of a text of any length, as if they were one."""

    num_detectors: int

    @abc.abstractmethod
    def read(self, text: str) -> Reading:
        """The next piece of the text, not empty; memory grows with its length, not with that of the text."""

    @abc.abstractmethod
    def read_with_predictions(self, text: str) -> Tuple[Reading, Predictions]:
        """The same, and the predictions; takes longer."""

    @abc.abstractmethod
    def boundaries(self, text: str) -> np.ndarray:
        """(T, detectors), those of `read` alone, for less work."""

    def closings(self, texts: Iterable[str], lookahead: Lookahead = 0) -> Iterator[Closings]:
        """The text of all pieces, each with the boundaries after its characters, which are known `lookahead`
        characters later: see `closed_earlier`."""
        latest = max(lookahead_by_layer(lookahead, self.num_detectors), default=0)
        text, boundaries = "", np.zeros((0, self.num_detectors))
        for piece in texts:
            text, boundaries = text + piece, np.concatenate([boundaries, self.boundaries(piece)])
            ready = len(text) - latest
            if ready > 0:
                yield Closings(text[:ready], self.closed_earlier(text, boundaries, lookahead)[:ready] > 0.5)
                text, boundaries = text[ready:], boundaries[ready:]
        yield Closings(text, self.closed_earlier(text, boundaries, lookahead) > 0.5)

    def closed_earlier(self, text: str, boundaries: np.ndarray, lookahead: Lookahead) -> np.ndarray:
        """The boundaries (T, detectors) of a text put `lookahead` characters before."""
        return closed_earlier(boundaries, lookahead)


class CharacterReader(TextReader):
    """Reads with a model of characters. Warns once of characters that the model does not know.

    decoder, begin, window: as for Reader. dictionary: of its input, of characters.
    """

    def __init__(self, decoder, dictionary, begin: int, window: int = WINDOW):
        self.reader, self.dictionary = Reader(decoder, begin, window), dictionary
        self.table = index_table(dictionary).astype(np.int64)
        self.warned_of_unknown = False
        self.num_detectors = self.reader.num_detectors

    def read(self, text: str) -> Reading:
        return Reading(*self._arrays(text, self._states))

    def read_with_predictions(self, text: str) -> Tuple[Reading, Predictions]:
        found = self._arrays(text, lambda window: (*self._states(window), *self._predictions(window)))
        states = len(Reading._fields)
        return Reading(*found[:states]), Predictions(*found[states:])

    def boundaries(self, text: str) -> np.ndarray:
        return self._arrays(text, lambda window: (self.reader.boundaries(window),))[0]

    def boundary_probs(self, text: str) -> np.ndarray:
        """(T, detectors), those of `read` alone, for less work."""
        return self._arrays(text, lambda window: (self.reader.boundary_probs(window),))[0]

    def _windows(self, text: str) -> Iterator[Tuple[Window, np.ndarray]]:
        """Windows of a text, and the places of each window's characters in the text, in the order of its rows, without
        padding."""
        start = 0
        for window in self.reader.read(torch.from_numpy(self._tokens(text))):
            stop = start + window.tokens.size(1)
            yield window, np.arange(start, stop)
            start = stop

    def _tokens(self, text: str) -> np.ndarray:
        """(T,) int64."""
        tokens = self.table[code_points(text)]
        unknown = tokens == self.dictionary.unk()
        if not self.warned_of_unknown and unknown.any():
            self.warned_of_unknown = True
            logger.warning(unknown_message(text[place] for place in np.flatnonzero(unknown)))
        return tokens

    def _arrays(self, text: str, measure: Callable[[Window], Tuple[Tensor, ...]]) -> List[np.ndarray]:
        """What `measure` returns for windows, arrays (T, B, ...), as arrays by character, (T, ...)."""
        parts, places = [], []
        for window, where in self._windows(text):
            parts.append([value.transpose(0, 1)[window.valid].cpu().numpy() for value in measure(window)])
            places.append(where)
        order = np.argsort(np.concatenate(places), kind="stable")
        return [np.concatenate(values)[order] for values in zip(*parts)]

    def _states(self, window: Window) -> Tuple[Tensor, ...]:
        output = window.output
        norms = torch.stack([h.float().norm(dim=-1) for h in output.hidden], dim=2)
        return self.reader.boundaries(window), self.reader.boundary_probs(window), norms

    def _predictions(self, window: Window) -> Tuple[Tensor, ...]:
        symbols = output_symbols(window.tokens, self.reader.decoder.dictionary)
        entropy, surprisal = [], []
        for log_probs, of_symbols in with_symbols(self.reader.log_probs(window), symbols):
            entropy.append(torch.special.entr(log_probs.exp()).sum(-1))
            surprisal.append(-of_symbols)
        return torch.cat(entropy)[1:], torch.cat(surprisal)


def closed_earlier(boundaries: np.ndarray, lookahead: Lookahead) -> np.ndarray:
    """Boundaries (T, L) put `lookahead` symbols before: for layers that read that many symbols of the next segment
    before they close one. The last symbols have none. ValueError as of `lookahead_by_layer`."""
    moved = np.zeros_like(boundaries)
    for layer, steps in enumerate(lookahead_by_layer(lookahead, boundaries.shape[1])):
        moved[: max(len(boundaries) - steps, 0), layer] = boundaries[steps:, layer]
    return moved


def lookahead_by_layer(lookahead: Lookahead, layers: int) -> List[int]:
    """How many symbols of the next segment each layer reads before it closes one. ValueError for a number that is
    negative or not whole, or for others than one or `layers` of them."""
    numbers = np.atleast_1d(lookahead)
    if not (np.isfinite(numbers) & (numbers >= 0) & (numbers % 1 == 0)).all():
        raise ValueError(f"lookahead must be whole numbers of symbols from 0, got {lookahead}")
    given: List[int] = numbers.astype(int).tolist()
    if len(given) not in (1, layers):
        raise ValueError(f"lookahead has {len(given)} numbers: give one, or one for each of {layers} layers")
    return given * layers if len(given) == 1 else given


def with_symbols(predictions: Iterable[Tensor], symbols: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """Each part of the predictions of a window, as of `Reader.log_probs`, with those of the symbols (B, T) that came:
    (t, B), one fewer in the last part, whose last prediction is of a symbol after the window."""
    step = 0
    for log_probs in predictions:
        came = symbols[:, step : step + len(log_probs)].t().unsqueeze(2)
        yield log_probs, log_probs[: len(came)].gather(2, came).squeeze(2)
        step += len(log_probs)


def mean_log_probs(parts: Iterable[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities that models give, from their logarithms, all of one shape."""
    stacked = torch.stack(list(parts))
    return stacked.logsumexp(0) - math.log(len(stacked))


def output_symbols(tokens: Tensor, dictionary) -> Tensor:
    """Tokens as a model with this output dictionary predicts them: those that a smaller one does not have, as unknown
    (--output-dictionary-size)."""
    return tokens.masked_fill(tokens >= len(dictionary), dictionary.unk())
