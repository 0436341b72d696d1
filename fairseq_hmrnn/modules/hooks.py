"""Hooks of modules whose weights are read without calling them."""

from __future__ import annotations

from torch import nn


def run_pre_hooks(module: nn.Module) -> None:
    """What torch runs before a call of the module: torch.nn.utils.prune and the older weight_norm make weights so."""
    with_kwargs = getattr(module, "_forward_pre_hooks_with_kwargs", {})  # since torch 2
    for key, hook in module._forward_pre_hooks.items():
        hook(module, (), {}) if key in with_kwargs else hook(module, ())
