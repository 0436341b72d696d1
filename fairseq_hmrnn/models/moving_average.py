"""fairseq's exponential moving average of weights (`--store-ema`) for the models of this package."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any, Callable, Iterator

import fairseq.trainer
from fairseq import checkpoint_utils
from fairseq.models import ema
from torch import nn

from ..fairseq_hooks import is_of_this_package, wrap_once


class MovingAverage(ema.EMA):
    """fairseq's, but for four things: integers of a model (its progress, its dictionary's fingerprint) are copied, for
    they have no mean; a weight or a module that a model has under two names decays once an update, not twice; an
    adaptive softmax can be averaged; and after a restart `--ema-update-freq` goes on counting where it was."""

    def __init__(self, model, config, device=None, skip_keys=None):
        integers = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
        super().__init__(model, config, device, integers.union(skip_keys or ()))
        separate_tied(self.model)
        if config.ema_fp32:
            self.fp32_params = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.fp32_params = {n: t.float() if t.is_floating_point() else t for n, t in self.fp32_params.items()}

    def step(self, new_model, updates=None):
        """Called after every update; updates: how many there were."""
        if updates is not None:
            self.update_freq_counter = (updates - 1) % self.config.ema_update_freq
        super().step(new_model, updates)

    def restore(self, state_dict, build_fp32_params=False):
        """Load averaged weights; what fairseq leaves out, the version that its adaptive softmax asks for, stays."""
        super().restore({**self.model.state_dict(), **state_dict}, build_fp32_params)


def separate_tied(model: nn.Module) -> None:
    """Give every name of a module, and then of a parameter, one of its own, of the same values."""
    seen = set()
    for path in [path for path, _ in model.named_modules(remove_duplicate=False)]:
        module = model.get_submodule(path)
        if id(module) in seen:
            parent, _, name = path.rpartition(".")
            module = copy.deepcopy(module)
            setattr(model.get_submodule(parent), name, module)
        seen.add(id(module))
    seen.clear()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(parameter))


@contextlib.contextmanager
def _beginning_from_weights() -> Iterator[None]:
    """Checkpoints loaded meanwhile have an average: their weights, if they were written without one."""
    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, *args, **kwargs):
        checkpoint = load(path, *args, **kwargs)
        checkpoint.get("extra_state", {}).setdefault("ema", checkpoint.get("model"))
        return checkpoint

    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = load


def install() -> None:
    """Have fairseq's trainer average models of this package, and no others, as above; and let an average begin where
    training goes on from a checkpoint without one: fairseq has let go of the weights before it asks for them."""
    wrap_once(fairseq.trainer, "build_ema", _builds_own)
    wrap_once(checkpoint_utils, "load_checkpoint", _begins_from_weights)


def _builds_own(build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def build_ema(model, cfg, device):
        return (MovingAverage if is_of_this_package(type(model)) else build)(model, cfg, device)

    return build_ema


def _begins_from_weights(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **kwargs):
        if not is_of_this_package(type(trainer.get_model())):
            return load(cfg, trainer, **kwargs)
        with _beginning_from_weights() if trainer.cfg.ema.store_ema else contextlib.nullcontext():
            extra_state, epoch_itr = load(cfg, trainer, **kwargs)
        for name in ("ema", "ema_fp32_params"):  # used by now; fairseq would keep them to the end
            (extra_state or {}).pop(name, None)
        return extra_state, epoch_itr

    return load_checkpoint
