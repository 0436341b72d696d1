"""Starting an encoder or a decoder from a checkpoint."""

from __future__ import annotations

import logging
from typing import Dict, Sequence, Tuple, Union

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from ...checkpoints import check_finite
from ..recurrent_decoder import RecurrentDecoder
from .encoder import HMLSTMEncoder

logger = logging.getLogger(__name__)

ENCODER_PARTS = ("embed_tokens.", "hm_lstm.", "hm_lstm_backward.")
DECODER_PARTS = ("embed_tokens.", "hm_lstm.", "output_projection.", "adaptive_softmax.")


SOFTMAX_PARTS = ("output_projection.", "adaptive_softmax.")
Given = Dict[int, Tuple[str, Tensor]]  # of a parameter, by its id: where its value is from, and the value


def load_pretrained(
    module: Union[HMLSTMEncoder, RecurrentDecoder], path: str, parts: Sequence[str], given: Given
) -> None:
    """Copy the weights under the names `parts` from a checkpoint into an encoder or decoder.

    From a translation model an encoder takes the encoder's weights, else, as from a language model, those of its
    decoder. given: what other checkpoints were read for before; extended. ValueError if the checkpoint has none, was
    trained with another dictionary, has other sizes, or has several values for one parameter; UnsafeCheckpointError if
    they are not finite.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path)["model"]
    has_encoder = any(name.startswith("encoder.hm_lstm.") for name in state)
    prefix = "encoder." if has_encoder and parts == ENCODER_PARTS else "decoder."
    module.dictionary_fingerprint.upgrade_state_dict_named(state, f"{prefix}dictionary_fingerprint")
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    found = {name: value for name, value in found.items() if name.startswith(tuple(parts))}
    if not any(name.startswith("hm_lstm.") for name in found):
        raise ValueError(f"{path} holds no HM-LSTM to start from: give an hmlstm_lm or a translation model")
    needed = module.state_dict(keep_vars=True)
    _check_shapes(path, found, needed)
    check_finite(path, found)
    _check_shared(path, found, needed, given)
    module.load_state_dict(found, strict=False)
    logger.info("started %s from %s: %d tensors", type(module).__name__, path, len(found))


def _check_shapes(path: str, found: Dict[str, Tensor], needed: Dict[str, Tensor]) -> None:
    recurrence = [name for name in needed if name.startswith("hm_lstm.")]
    for name in [*found, *recurrence]:
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (found, needed)]
        if shapes[0] != shapes[1]:
            softmax = name.startswith(SOFTMAX_PARTS)
            options = (
                "output-dim and adaptive-softmax-cutoff" if softmax else "sizes, layers, directions and normalization"
            )
            raise ValueError(
                f"{path} does not fit: {name} has shape {shapes[0]} there and {shapes[1]} here (None: there is none); "
                f"give the {options} that it was trained with"
            )


def _check_shared(path: str, found: Dict[str, Tensor], needed: Dict[str, Tensor], given: Given) -> None:
    """ValueError where one parameter would get two values, of which the first would be lost."""
    for name, value in found.items():
        source, before = given.setdefault(id(needed[name]), (f"{name} of {path}", value))
        if not torch.equal(before.to(value), value):
            raise ValueError(
                f"{name} of {path} is not {source}, and here they are one parameter: leave out share-all-embeddings or "
                "share-decoder-input-output-embed (tie-embeddings), or start from models that have them in common"
            )
