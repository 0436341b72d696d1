"""The one reader of known text: by windows, the state carried on, so that memory does not grow with the text. What a
model predicts is computed only for who asks for it; boundaries need no prediction."""

from __future__ import annotations

import logging
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from ..data.characters import encode
from ..models.decoder import HMLSTMDecoder
from ..ops import HMLSTMOutput, HMLSTMState
from .surface import unknown_message

logger = logging.getLogger(__name__)

WINDOW = 1000  # symbols per call of the recurrence; the state is carried, so that it changes nothing but memory


class Window(NamedTuple):
    """T symbols that were read. tokens: (T,). output: what the recurrence made of them, with a batch of 1. before: of
    each layer h (1, 1, H_l) of the step before the first of them."""

    tokens: Tensor
    output: HMLSTMOutput
    before: Tuple[Tensor, ...]


class Reader:
    """Reads symbols one after the other, as if they were given at once.

    decoder: of an HM-LSTM language model, in evaluation; ValueError for another one. begin: the symbol that stands
    before a text. window: symbols per call of the recurrence.
    """

    def __init__(self, decoder, begin: int, window: int = WINDOW):
        if not isinstance(decoder, HMLSTMDecoder):
            raise ValueError("scoring and segmenting require an HM-LSTM language model")
        self.decoder, self.window = decoder.eval(), window
        self.state: Optional[HMLSTMState] = None
        self.last: Tuple[Tensor, ...] = ()
        for _ in self.read(torch.tensor([begin])):
            pass

    @property
    def num_detectors(self) -> int:
        return self.decoder.hm_lstm.num_detectors

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Iterator[Window]:
        """The next symbols, (T,), by windows."""
        for part in tokens.to(self.decoder.embed_tokens.weight.device).split(self.window):
            output, _ = self.decoder.recur(part.unsqueeze(0), self.state)
            before, self.last = self.last, tuple(h[-1:] for h in output.hidden)
            self.state = output.state
            yield Window(part, output, before)

    @torch.no_grad()
    def log_probs(self, window: Window) -> Tensor:
        """(T + 1, V): what the model foretold before the first symbol of a window, and behind each, in nats. Row t is
        the prediction of symbol t."""
        hidden = [torch.cat(pair) for pair in zip(window.before, window.output.hidden)]
        return self.decoder.predict(self.decoder.layer_output(hidden)).squeeze(1).float().log_softmax(-1)

    def boundaries(self, window: Window) -> Tensor:
        """(T, detectors): z of each symbol, whether a segment ends with it."""
        return window.output.boundaries[:, 0, : self.num_detectors].float()


class Reading(NamedTuple):
    """A model's states at T characters. Arrays over steps; step t has just read character t.

    boundaries, boundary_probs: (T, detectors), z and z~. norms: (T, L), the Euclidean norm of each layer's h.
    """

    boundaries: np.ndarray
    boundary_probs: np.ndarray
    norms: np.ndarray


class Predictions(NamedTuple):
    """Of a model's predictions of T characters, in nats. entropy: (T,), of its prediction of the character behind each.
    surprisal: (T,), -log p of each."""

    entropy: np.ndarray
    surprisal: np.ndarray

    @property
    def next_surprisal(self) -> np.ndarray:
        """(T,), the surprisal of the character that follows each step; 0 at the last, which nothing follows."""
        return np.append(self.surprisal[1:], 0)


class Closings(NamedTuple):
    """text: T characters. boundaries: (T, detectors) bool, whether a segment ends behind each."""

    text: str
    boundaries: np.ndarray


class CharacterReader:
    """Reads the pieces of a text of any length with a model of characters, as if they were one. Warns once of
    characters that the model does not know.

    decoder, begin, window: as for Reader. dictionary: of its input, of characters.
    """

    def __init__(self, decoder, dictionary, begin: int, window: int = WINDOW):
        self.reader, self.dictionary = Reader(decoder, begin, window), dictionary
        self.told_of_unknown = False

    @property
    def num_detectors(self) -> int:
        return self.reader.num_detectors

    def read(self, text: str) -> Reading:
        """The next piece of the text, not empty; memory grows with its length, not with that of the text."""
        return _join([self._reading(window) for window in self._windows(text)])

    def read_with_predictions(self, text: str) -> Tuple[Reading, Predictions]:
        """The same, and what was foretold, for several times the work."""
        found = [(self._reading(window), self._predictions(window)) for window in self._windows(text)]
        readings, predictions = zip(*found)
        return _join(readings), _join(predictions)

    def closings(self, texts: Iterable[str], lookahead: int = 0) -> Iterator[Closings]:
        """The text of all pieces, each with the boundaries behind its characters, which are known `lookahead`
        characters later: see `closed_earlier`."""
        check_lookahead(lookahead)
        text, boundaries = "", np.zeros((0, self.num_detectors))
        for piece in texts:
            text, boundaries = text + piece, np.concatenate([boundaries, self.read(piece).boundaries])
            ready = len(text) - lookahead
            if ready > 0:
                yield Closings(text[:ready], closed_earlier(boundaries, lookahead)[:ready] > 0.5)
                text, boundaries = text[ready:], boundaries[ready:]
        yield Closings(text, np.zeros(boundaries.shape, dtype=bool))

    def _windows(self, text: str) -> Iterator[Window]:
        tokens = torch.tensor([self.dictionary.index(symbol) for symbol in encode(text)])
        if not self.told_of_unknown and tokens.eq(self.dictionary.unk()).any():
            self.told_of_unknown = True
            unknown = (c for c, token in zip(text, tokens.tolist()) if token == self.dictionary.unk())
            logger.warning(unknown_message(unknown))
        return self.reader.read(tokens)

    def _reading(self, window: Window) -> Reading:
        output = window.output
        norms = torch.stack([h[:, 0].float().norm(dim=-1) for h in output.hidden], dim=1)
        probs = output.boundary_probs[:, 0, : self.num_detectors].float()
        return Reading(*(part.cpu().numpy() for part in (self.reader.boundaries(window), probs, norms)))

    def _predictions(self, window: Window) -> Predictions:
        log_probs = self.reader.log_probs(window)
        entropy = torch.special.entr(log_probs[1:].exp()).sum(-1)
        read = output_symbols(window.tokens, self.reader.decoder.dictionary)
        surprisal = -log_probs[:-1].gather(1, read.unsqueeze(1)).squeeze(1)
        return Predictions(entropy.cpu().numpy(), surprisal.cpu().numpy())


def _join(parts):
    """Tuples of arrays over consecutive steps as one."""
    return type(parts[0])(*map(np.concatenate, zip(*parts)))


def closed_earlier(boundaries: np.ndarray, lookahead: int) -> np.ndarray:
    """Boundaries (T, L) put `lookahead` symbols before: of layers that read so much of the next segment before they
    close one. The last symbols have none. ValueError for a negative one."""
    check_lookahead(lookahead)
    moved = np.zeros_like(boundaries)
    moved[: max(len(boundaries) - lookahead, 0)] = boundaries[lookahead:]
    return moved


def check_lookahead(lookahead: int) -> None:
    """ValueError unless it can be how many symbols of the next segment a layer reads before it closes one."""
    if lookahead < 0:
        raise ValueError(f"lookahead counts symbols from 0, got {lookahead}")


def output_symbols(tokens: Tensor, dictionary) -> Tensor:
    """Tokens as a model with this output dictionary predicts them: those that a smaller one does not have, as unknown
    (--output-dictionary-size)."""
    return tokens.masked_fill(tokens >= len(dictionary), dictionary.unk())
