"""Options of fairseq-train with which a training of this package's would fail: one line says so, before it begins where
that can be known."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict

import fairseq.trainer
import torch
from fairseq import checkpoint_utils, utils
from fairseq.logging import metrics

from .fairseq_hooks import is_of_this_package, running_command, takes_part, wrap_once
from .options import nearest

NOT_TRIED = ("loss", "nll_loss", "ppl", "bpc")  # metrics for --best-checkpoint-metric that a recipe may name


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


def require_metric(trainer, stats: Dict[str, Any]) -> None:
    """ValueError if --best-checkpoint-metric is none of a validation's `stats`. fairseq leaves bleu out while all
    translations are empty, as they may be at first: it is 0 then."""
    name = trainer.cfg.checkpoint.best_checkpoint_metric
    if name == "bleu" and _counts_bleu(trainer):
        stats.setdefault(name, 0.0)
    if name not in stats:
        logged = sorted(key for key in stats if not key.startswith("_"))
        raise ValueError(f"--best-checkpoint-metric: a validation has no {name}: {nearest(name, logged)}")


def _counts_bleu(trainer) -> bool:
    return bool(getattr(getattr(trainer.task, "cfg", None), "eval_bleu", False))


def _try_metric(trainer) -> None:
    """ValueError for an unusual --best-checkpoint-metric that the first batch of a validation does not log."""
    name = trainer.cfg.checkpoint.best_checkpoint_metric
    if name in NOT_TRIED or (name == "bleu" and _counts_bleu(trainer)) or trainer.cfg.dataset.disable_validation:
        return
    split = trainer.cfg.dataset.valid_subset.split(",")[0]
    batches = trainer.get_valid_iterator(split).next_epoch_itr(shuffle=False, set_dataset_epoch=False)
    with metrics.aggregate(new_root=True) as logged:
        trainer.valid_step(next(iter(batches)))
    require_metric(trainer, {"num_updates": 0, **logged.get_smoothed_values()})


def _requires_machine(begin: Callable[..., None]) -> Callable[..., None]:
    """Of fairseq's trainer, which looks at the machine before it begins."""

    @functools.wraps(begin)
    def __init__(self, cfg, task, model, criterion, *args, **kwargs):
        if is_of_this_package(*map(type, (task, model, criterion))):
            require_machine(cfg.common)
        begin(self, cfg, task, model, criterion, *args, **kwargs)

    return __init__


def _looks_ahead(load: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `load_checkpoint`, with which training begins. Checks now what fairseq would only find missing at the
    first update or validation."""

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **kwargs):
        loaded = load(cfg, trainer, **kwargs)
        if takes_part(trainer):
            getattr(trainer.get_model(), "check_files", lambda: None)()
            train = running_command("train")
            if train is not None:
                wrap_once(train, "get_valid_stats", _names_metrics)
            _try_metric(trainer)
        return loaded

    return load_checkpoint


def _names_metrics(get_valid_stats: Callable[..., Dict[str, Any]]) -> Callable[..., Dict[str, Any]]:
    """fairseq-train's, of the one that is asked for."""

    @functools.wraps(get_valid_stats)
    def of_validation(cfg, trainer, stats, *args, **kwargs):
        if takes_part(trainer):
            require_metric(trainer, stats)
        return get_valid_stats(cfg, trainer, stats, *args, **kwargs)

    return of_validation


def install() -> None:
    """Have fairseq-train look first, for tasks, models and criterions of this package."""
    wrap_once(fairseq.trainer.Trainer, "__init__", _requires_machine)
    wrap_once(checkpoint_utils, "load_checkpoint", _looks_ahead)
