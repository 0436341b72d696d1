"""Starting an encoder or a decoder from a checkpoint."""

from __future__ import annotations

import logging
from typing import Sequence

from fairseq import checkpoint_utils
from torch import nn

from ...checkpoints import check_finite

logger = logging.getLogger(__name__)

ENCODER_PARTS = ("embed_tokens.", "hm_lstm.", "hm_lstm_backward.")
DECODER_PARTS = ("embed_tokens.", "hm_lstm.", "output_projection.", "adaptive_softmax.")


def load_pretrained(module: nn.Module, path: str, parts: Sequence[str]) -> None:
    """Copy the weights under the names `parts` from a checkpoint into an encoder or decoder.

    From a translation model an encoder takes the encoder's weights, else, as from a language model, those of its
    decoder. ValueError if the checkpoint has none, was trained with another dictionary, or has other sizes;
    UnsafeCheckpointError if they are not finite.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path)["model"]
    has_encoder = any(name.startswith("encoder.hm_lstm.") for name in state)
    prefix = "encoder." if has_encoder and parts == ENCODER_PARTS else "decoder."
    module.dictionary_fingerprint.upgrade_state_dict_named(state, f"{prefix}dictionary_fingerprint")
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    found = {name: value for name, value in found.items() if name.startswith(tuple(parts))}
    needed = module.state_dict()
    recurrence = [name for name in needed if name.startswith("hm_lstm.")]
    if not any(name.startswith("hm_lstm.") for name in found):
        raise ValueError(f"{path} holds no HM-LSTM to start from: give an hmlstm_lm or a translation model")
    for name in [*found, *recurrence]:
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (found, needed)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit: {name} has shape {shapes[0]} there and {shapes[1]} here (None: there is none); "
                "give the sizes, layers, directions and normalization that it was trained with"
            )
    check_finite(path, found)
    module.load_state_dict(found, strict=False)
    logger.info("started %s from %s: %d tensors", type(module).__name__, path, len(found))
