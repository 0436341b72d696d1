"""What a mixed-precision optimizer of fairseq holds and its checkpoints do not: the float32 master weights of a 16-bit
model, and the age of the loss scale."""

from __future__ import annotations

import logging
from typing import Any, Dict, List

import torch
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from torch import Tensor

logger = logging.getLogger(__name__)


def training_state(optimizer) -> Dict[str, Any]:
    """For a checkpoint, on the CPU; empty for an optimizer of float32."""
    state: Dict[str, Any] = {}
    weights = float32_weights(optimizer)
    if weights:
        state["weights"] = [weight.detach().cpu() for weight in weights]
    scaler = getattr(optimizer, "scaler", None)
    if isinstance(scaler, DynamicLossScaler):
        state["scaler"] = {name: value for name, value in vars(scaler).items() if name.startswith("_")}
    elif scaler is not None:  # torch's, of --amp; nothing without a GPU
        state["scaler"] = scaler.state_dict()
    return {name: value for name, value in state.items() if value}


@torch.no_grad()
def load_training_state(optimizer, state: Dict[str, Any]) -> None:
    """Load the state of a checkpoint whose weights the model has. Float32 weights that do not round to these are left
    alone: somebody has changed the model, and that counts."""
    weights, saved = float32_weights(optimizer), state.get("weights") or []
    if weights and saved:
        dtype = next(iter(optimizer.fp16_params)).dtype
        rounded = (value.to(weights[0].device, dtype).float() for value in saved)
        if len(weights) == len(saved) and all(map(torch.equal, weights, rounded)):
            for weight, value in zip(weights, saved):
                weight.copy_(value)
        else:
            logger.info("the checkpoint's float32 weights do not match its model: training continues from the model")
    scaler = getattr(optimizer, "scaler", None)
    if isinstance(scaler, DynamicLossScaler):
        vars(scaler).update(state.get("scaler") or {})
    elif scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])


def float32_weights(optimizer) -> List[Tensor]:
    """Those that it steps in place of the model's, one by one or end to end; none if it steps the model's own."""
    found = getattr(optimizer, "fp32_params", [])
    return [found] if torch.is_tensor(found) else list(found.values() if isinstance(found, dict) else found)
