"""Precisions that fairseq's trainer cannot train in on this machine: one line says so, before it fails within them."""

from __future__ import annotations

import functools
from typing import Callable

import fairseq.trainer
import torch
from fairseq import utils

from .fairseq_hooks import is_of_this_package, wrap_once


def require_machine(common) -> None:
    """common: fairseq's options of that name. ValueError for a precision that this machine does not have."""
    if common.tpu and utils.xm is None:  # fairseq-train sets it for --bf16
        raise ValueError(
            "--bf16 is for TPUs and requires torch_xla: elsewhere give --bfloat16-products, or train a recipe or a "
            "YAML with common.bf16=true"
        )
    reads_gpu = common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads or common.amp)
    if reads_gpu and not torch.cuda.is_available():
        raise ValueError(
            "--fp16 requires a GPU: without one give --fp16-no-flatten-grads --fp16-init-scale 4 too, or "
            "--bfloat16-products in its place"
        )


def install() -> None:
    """Have fairseq's trainer look first, for tasks, models and criterions of this package."""
    wrap_once(fairseq.trainer.Trainer, "__init__", _looks_first)


def _looks_first(begin: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(begin)
    def __init__(self, cfg, task, model, criterion, *args, **kwargs):
        if is_of_this_package(*map(type, (task, model, criterion))):
            require_machine(cfg.common)
        begin(self, cfg, task, model, criterion, *args, **kwargs)

    return __init__
