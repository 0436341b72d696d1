"""Hooks of modules whose weights are read without calling them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as all_modules

from ..ops import linear


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its `forward`."""
    of_module = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    of_all = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)
    return any((*of_module, *of_all, getattr(module, "_backward_pre_hooks", None)))  # the last since torch 2


def run_pre_hooks(*modules: nn.Module) -> None:
    """What torch runs before a call of each module: torch.nn.utils.prune and the older weight_norm make weights so."""
    for module in modules:
        if not module._forward_pre_hooks:  # as nearly always: this is on the way of every step
            continue
        with_kwargs = getattr(module, "_forward_pre_hooks_with_kwargs", {})  # since torch 2
        for key, hook in module._forward_pre_hooks.items():
            hook(module, (), {}) if key in with_kwargs else hook(module, ())


def apply_linear(module: nn.Linear, x: Tensor, bfloat16_products: bool = False) -> Tensor:
    """module(x) by `ops.linear`, which see; x (..., in_features), returns (..., out_features)."""
    run_pre_hooks(module)
    return linear(x, module.weight, module.bias, bfloat16_products)
