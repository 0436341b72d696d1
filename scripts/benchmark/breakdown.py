"""Where the time of an update goes: torch's profiler, and scopes around the parts of model, criterion and trainer.

What a part costs in the backward pass is known from the profiler's sequence numbers: a node of the graph has the number
that the operation had which made it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import defaultdict
from typing import Dict

import torch
from torch.profiler import ProfilerActivity, profile, record_function

SCOPE = "part: "
BACKWARD, NODE = "autograd::engine::evaluate_function: ", 1  # a name's begin; the scope of the node's own call inside
MODEL, CRITERION, OPTIMIZER, AUTOGRAD, REST = "model, rest", "criterion", "optimizer", "autograd, rest", "fairseq, rest"
# A decoder's modules, of every model that the benchmarks know, and the part each belongs to.
MODULES = {
    "embed_tokens": "embedding",
    "hm_lstm": "recurrence",
    "lstm": "recurrence",
    "layers": "recurrence",
    "layer_output": "output module",
    "additional_fc": "output module",
    "output_projection": "softmax",
    "fc_out": "softmax",
}
# The scopes that fairseq itself has.
FAIRSEQ_SCOPES = dict.fromkeys(("reduce-grads", "multiply-grads", "clip-grads", "optimizer"), OPTIMIZER)
PRODUCTS = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mkldnn_linear")}
PRODUCTS |= {"mkldnn::_linear_pointwise", "aten::_mkldnn_linear"}


class Breakdown:
    """`with Breakdown(trainer) as found:` and updates inside; then `found.seconds`, of all of them, by part."""

    def __init__(self, trainer):
        self._trainer, self._undo, self.seconds = trainer, contextlib.ExitStack(), {}

    def __enter__(self) -> Breakdown:
        trainer = self._trainer
        model, criterion = trainer.get_model(), trainer.get_criterion()
        self._module(model, MODEL)
        self._module(criterion, CRITERION)
        for name, part in MODULES.items():
            module = getattr(model.decoder, name, None)
            for each in module if isinstance(module, torch.nn.ModuleList) else [module]:
                if each is not None:
                    self._module(each, part)
                if hasattr(each, "over_sequence"):  # in place of its forward
                    self._method(each, "over_sequence", part)
        self._method(model, "get_normalized_probs", "softmax")
        if hasattr(model.decoder, "output_layer"):  # which may read the weights of output_projection itself
            self._method(model.decoder, "output_layer", "softmax")
        self._method(trainer, "zero_grad", OPTIMIZER)
        self._kernel = kernel_seconds()
        self._profile = self._undo.enter_context(profile(activities=[ProfilerActivity.CPU]))
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()
        self.seconds = seconds_by_part(self._profile.events())
        for name, seconds in kernel_seconds().items():
            direction, _, what = name.partition(" ")
            outer = "recurrence, backward" if direction == "backward" else "recurrence"
            self.seconds[f"{outer}, of it {what}"] = seconds - self._kernel.get(name, 0.0)

    def _module(self, module, part) -> None:
        scopes = []

        def enter(*_):
            scopes.append(record_function(SCOPE + part))
            scopes[-1].__enter__()

        def leave(*_):
            scopes.pop().__exit__(None, None, None)

        for hook in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
            self._undo.callback(hook.remove)

    def _method(self, owner, name, part) -> None:
        method = getattr(owner, name)

        def scoped(*args, **kwargs):
            with record_function(SCOPE + part):
                return method(*args, **kwargs)

        setattr(owner, name, scoped)
        self._undo.callback(delattr, owner, name)


def kernel_seconds() -> Dict[str, float]:
    """Seconds so far inside the compiled recurrence where it counts them, `ops.cpu.kernel_seconds()`: by names such as
    "forward products" and "backward gates"."""
    try:
        cpu = importlib.import_module("fairseq_hmrnn.ops.cpu")
    except ImportError:
        return {}
    counter = getattr(cpu, "kernel_seconds", None)
    return dict(counter()) if counter else {}


def seconds_by_part(events) -> Dict[str, float]:
    """Seconds of each part, with "PART, backward" of its own for the backward pass, and of the recurrence's products
    that go through torch. What is nested counts for the inner part alone."""
    seconds: Dict[str, float] = defaultdict(float)
    part_of_number = _parts_by_sequence_number(events)
    for event in events:
        part, took = _own_part(event, part_of_number), 1e-6 * event.time_range.elapsed_us()
        if part is not None:
            seconds[part] += took
            outer = _enclosing(event, part_of_number)
            if outer is not None:
                seconds[outer] -= took
        elif event.name in PRODUCTS and not _inside_product(event):
            outer = _enclosing(event, part_of_number)
            if outer is not None and outer.startswith("recurrence"):
                seconds[f"{outer}, of it torch's products"] += took
    return dict(seconds)


def _scope(event):
    if event.name.startswith(SCOPE):
        return event.name[len(SCOPE) :]
    return FAIRSEQ_SCOPES.get(event.name)


def _own_part(event, part_of_number):
    """The part whose scope, or whose node of the graph, an event is; None for one inside."""
    if event.name.startswith(BACKWARD):
        nodes = (child.sequence_nr for child in event.cpu_children if child.scope == NODE)
        part = part_of_number.get(event.sequence_nr if event.sequence_nr >= 0 else next(nodes, -1))  # torch before 2
        return AUTOGRAD if part is None else f"{part}, backward"
    return _scope(event)


def _enclosing(event, part_of_number):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        part = _own_part(event, part_of_number)
        if part is not None:
            return part
    return None


def _inside_product(event):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        if event.name in PRODUCTS:
            return True
    return False


def _parts_by_sequence_number(events) -> Dict[int, str]:
    """Operations that make no node have the number of the next that does, so the last with a number is its maker."""
    parts = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr < 0 or event.name.startswith(BACKWARD) or event.scope == NODE:
            continue
        outer = event
        while outer is not None and _scope(outer) is None:
            outer = outer.cpu_parent
        parts[event.sequence_nr] = None if outer is None else _scope(outer)
    return {number: part for number, part in parts.items() if part is not None}
