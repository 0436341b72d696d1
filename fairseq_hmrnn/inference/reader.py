"""Reads text of any length with a trained character model, piece by piece, its state carried from piece to piece."""

from __future__ import annotations

import logging
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch

from ..data.characters import encode, is_character_dictionary
from ..models.decoder import HMLSTMDecoder
from ..ops import HMLSTMOutput, HMLSTMState
from . import hub
from .surface import unknown_message
from .windows import check_lookahead, output_symbols, read_windows

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """What a model made of T characters. Arrays over steps; step t has just read character t.

    boundaries, boundary_probs: (T, detectors), z and z~. entropy: (T,), of the next character, in nats. surprisal:
    (T,), -log p of the character just read, in nats. norms: (T, L), the Euclidean norm of each layer's h.
    """

    boundaries: np.ndarray
    boundary_probs: np.ndarray
    entropy: np.ndarray
    surprisal: np.ndarray
    norms: np.ndarray

    @classmethod
    def join(cls, readings: List[Reading]) -> Reading:
        """Readings of consecutive pieces as one."""
        return cls(*map(np.concatenate, zip(*readings)))

    @property
    def next_surprisal(self) -> np.ndarray:
        """(T,), the surprisal of the character that follows each step; 0 at the last, which nothing follows."""
        return np.append(self.surprisal[1:], 0)

    def closed_earlier(self, lookahead: int) -> Reading:
        """The same with all boundaries `lookahead` characters before: of layers that read so much of the next segment
        before they close one. The last characters have none. ValueError for a negative one."""
        check_lookahead(lookahead)
        boundaries = np.zeros_like(self.boundaries)
        boundaries[: max(len(boundaries) - lookahead, 0)] = self.boundaries[lookahead:]
        return self._replace(boundaries=boundaries)


class CharacterReader:
    """Reads a text's pieces one after the other, as if they were one.

    checkpoint: of an HM-LSTM language model of characters, or a folder with one. data: the prepared folder with its
    dictionary; None: the dictionary that the checkpoint carries, else that of the folder it was trained on. Warns once
    of characters that the model does not know. Raises ValueError for any other checkpoint, OSError for missing files.
    """

    def __init__(self, checkpoint: str, data: Optional[str] = None, max_steps: int = 2000):
        loaded = hub.load([checkpoint], data)
        decoder, self.dictionary = loaded.models[0].decoder, loaded.src_dict
        if not isinstance(decoder, HMLSTMDecoder):
            raise ValueError(f"{checkpoint} is not an HM-LSTM language model")
        if not is_character_dictionary(self.dictionary):
            raise ValueError(f"{checkpoint} was not trained on characters: prepare the text with prepare_text.py")
        self.decoder = decoder.eval()
        self.max_steps = max_steps
        self.told_of_unknown = False
        self.state: Optional[HMLSTMState] = None
        self.log_probs = torch.zeros(1, len(self.decoder.dictionary))
        self._read(torch.tensor([self.dictionary.eos()]))  # a text begins behind a newline, as it did in training

    @property
    def num_detectors(self) -> int:
        return self.decoder.hm_lstm.num_detectors

    def read(self, text: str) -> Reading:
        """The next piece of the text, not empty; memory grows with its length, not with that of the text."""
        tokens = torch.tensor([self.dictionary.index(symbol) for symbol in encode(text)])
        if not self.told_of_unknown and tokens.eq(self.dictionary.unk()).any():
            self.told_of_unknown = True
            unknown = (c for c, token in zip(text, tokens.tolist()) if token == self.dictionary.unk())
            logger.warning(unknown_message(unknown))
        return self._read(tokens)

    def _read(self, tokens: torch.Tensor) -> Reading:
        """tokens: (T,)."""
        windows = read_windows(self.decoder, tokens, self.state, self.max_steps)
        return Reading.join([self._reading(*found) for found in zip(tokens.split(self.max_steps), windows)])

    def _reading(self, tokens: torch.Tensor, found: Tuple[torch.Tensor, HMLSTMOutput]) -> Reading:
        """Of one window, and what was found in it."""
        logits, output = found
        log_probs = logits.float().log_softmax(-1)
        before = torch.cat([self.log_probs, log_probs[:-1]])
        self.state, self.log_probs = output.state, log_probs[-1:]
        detectors = slice(0, self.num_detectors)
        return Reading(
            output.boundaries[:, 0, detectors].float().numpy(),
            output.boundary_probs[:, 0, detectors].float().numpy(),
            torch.special.entr(log_probs.exp()).sum(-1).numpy(),
            -before.gather(1, output_symbols(tokens, self.decoder.dictionary).unsqueeze(1)).squeeze(1).numpy(),
            torch.stack([h[:, 0].float().norm(dim=-1) for h in output.hidden], dim=1).numpy(),
        )
