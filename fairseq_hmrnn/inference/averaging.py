"""The mean of several checkpoints' weights as one checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from ..checkpoints import check_finite

KEPT = ("args", "cfg", "criterion", "optimizer_history", "task_state")


def newest(folder: Path, count: int) -> List[Path]:
    """The `count` newest checkpoints of updates in a folder, or as many as there are, by their number of updates;
    ValueError where there is none."""
    numbered = []
    for path in folder.glob("checkpoint_*_*.pt"):
        match = re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name)
        if match:
            numbered.append((int(match.group(1)), path))
    if not numbered:
        raise ValueError(
            f"no checkpoint_EPOCH_UPDATE.pt in {folder}: train with --save-interval-updates and "
            "--keep-interval-updates, or name checkpoints one by one"
        )
    return [path for _, path in sorted(numbered)[-count:]]


def average(paths: Sequence[Path], moving: bool = False, half: bool = False) -> Dict[str, Any]:
    """The last checkpoint with the mean of all checkpoints' floating-point weights, without optimizer and position.

    moving: of the moving averages that --store-ema keeps beside the weights. half: weights as float16. ValueError for
    checkpoints of several models or dictionaries, for one without what is asked for, and for what is no checkpoint of
    fairseq's.
    """
    sums: Dict[str, Tensor] = {}
    normalizations: List[Any] = []
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give it alone, or name the checkpoints in it")
        if not path.is_file():
            raise ValueError(f"no such file: {path}")
        checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        model = _weights_of(checkpoint, path, moving)
        check_finite(str(path), model)
        if sums and _shapes(model) != _shapes(sums):
            raise ValueError(f"{path} is of another model than {paths[0]}")
        if sums and _differ(_fingerprints(model), _fingerprints(sums)):
            raise ValueError(f"{path} was trained with another dictionary than {paths[0]}")
        normalizations.append((checkpoint.get("task_state") or {}).get("normalization"))  # of strokes
        if normalizations[-1] != normalizations[0]:
            raise ValueError(f"{path} was trained on strokes normalised in another way than those of {paths[0]}")
        for key, tensor in model.items():
            sums[key] = tensor.double() + sums.get(key, 0) if tensor.is_floating_point() else tensor
    mean = {key: (sums[key] / len(paths)).to(t.dtype) if t.is_floating_point() else t for key, t in model.items()}
    if half:
        mean = {key: t.half() if t.is_floating_point() else t for key, t in mean.items()}
    kept = {key: checkpoint[key] for key in KEPT if key in checkpoint}
    position = {"epoch": _epoch_of(checkpoint), "iterations_in_epoch": 0}  # fairseq reads it
    return {**kept, "model": mean, "last_optimizer_state": None, "extra_state": {"train_iterator": position}}


def _epoch_of(checkpoint: Dict[str, Any]) -> int:
    """The epoch that training was in; 1 where the checkpoint does not say."""
    position = checkpoint["extra_state"]["train_iterator"]
    epoch = position.get("epoch") if isinstance(position, dict) else None
    return max(epoch, 1) if isinstance(epoch, int) else 1


def _shapes(model: Dict[str, Tensor]) -> Dict[str, torch.Size]:
    """The shapes of its weights: an earlier version may have kept other integers beside them."""
    return {key: tensor.shape for key, tensor in model.items() if tensor.is_floating_point()}


def _fingerprints(model: Dict[str, Tensor]) -> Dict[str, int]:
    """The fingerprints of its dictionaries, by names of buffers."""
    return {key: int(tensor) for key, tensor in model.items() if key.endswith("dictionary_fingerprint.fingerprint")}


def _differ(found: Dict[str, int], others: Dict[str, int]) -> bool:
    """Whether a fingerprint of one name differs between the two: old checkpoints have none."""
    return any(others.get(key, value) != value for key, value in found.items())


def _weights_of(checkpoint: Dict[str, Any], path: Path, moving: bool) -> Dict[str, Tensor]:
    """Names and tensors of its model, or of the moving average beside it, in the precision that was kept."""
    if not moving:
        return checkpoint["model"]
    extra = checkpoint["extra_state"]
    if "ema" not in extra:
        raise ValueError(f"{path} has no moving average: train with --store-ema, or leave --ema out")
    averaged = extra.get("ema_fp32_params", extra["ema"])
    lacking = [key for key, t in checkpoint["model"].items() if t.is_floating_point() and key not in averaged]
    if lacking:
        raise ValueError(f"{path}: its moving average lacks {lacking[0]}: leave --ema out")
    return {key: averaged[key] if t.is_floating_point() else t for key, t in checkpoint["model"].items()}
