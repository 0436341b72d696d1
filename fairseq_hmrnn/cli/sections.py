"""The sections of a recipe, what each may choose, and the settings of what it chose, as fairseq registers them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Collection, Dict, List, Optional

import fairseq.models
import fairseq.tasks
from fairseq.dataclass.configs import FairseqConfig
from fairseq.registry import REGISTRIES
from omegaconf import DictConfig

NAME = "_name"  # of the model, task, criterion and so on that a section configures
SECTIONS = [field.name for field in dataclasses.fields(FairseqConfig) if field.name != NAME]
CHOOSING = ["model", "task", *REGISTRIES]  # sections that have a _name
LEARNING_RATE = "lr"  # older optimizers and schedulers read it among their own, where their dataclasses have it too
# Older parts, whose settings are known from their options alone. Of the others fairseq takes more than these.
KNOWN_BY_OPTIONS = ("optimizer", "lr_scheduler")
# Settings of other sections that suit only what the recipe chose: which of its criterion's figures is the best, and the
# learning rate that ends training, below which another schedule may begin.
TIED = {
    "criterion": ("checkpoint", ("best_checkpoint_metric", "maximize_best_checkpoint_metric")),
    "lr_scheduler": ("optimization", ("stop_min_lr",)),
}


def choices(section: str) -> Collection[str]:
    """The names that a section may choose."""
    if section == "model":
        return fairseq.models.ARCH_MODEL_REGISTRY
    if section == "task":  # fairseq-hydra-train sets up no other
        return fairseq.tasks.TASK_DATACLASS_REGISTRY
    return REGISTRIES[section]["registry"]


def settings_of(section: str, name: Optional[str]) -> Optional[type]:
    """The dataclass of a section's settings, of what it chose by `name` if it chooses; None if that is not known."""
    if section not in CHOOSING:
        return getattr(FairseqConfig, section)
    if name is None:
        return None
    if section == "model":
        model = fairseq.models.ARCH_MODEL_NAME_REGISTRY.get(name, name)  # an architecture is a model's
        return fairseq.models.MODEL_DATACLASS_REGISTRY.get(model)
    if section == "task":
        return fairseq.tasks.TASK_DATACLASS_REGISTRY.get(name)
    if is_older(section, name):
        return _of_options(REGISTRIES[section]["registry"][name])
    return REGISTRIES[section]["dataclass_registry"].get(name)


def drop_tied(recipe: DictConfig, section: str) -> None:
    """Remove from a recipe what suits only its choice in `section`, which another choice replaces."""
    if section in TIED:
        other, names = TIED[section]
        for name in set(names).intersection(recipe.get(other) or ()):
            del recipe[other][name]


def is_older(section: str, name: Optional[str]) -> bool:
    """Whether it is an older part, made for options and without a dataclass: hydra adds no defaults of such a part."""
    return section in KNOWN_BY_OPTIONS and name is not None and name not in REGISTRIES[section]["dataclass_registry"]


def defaults_of(settings: type) -> Dict[str, Any]:
    """The default values of a dataclass of `settings_of` an older part."""
    return {field.name: field.default for field in dataclasses.fields(settings)}


def _of_options(part: Any) -> type:
    """A dataclass of the options that a part adds to a parser, and of the learning rate."""
    parser = argparse.ArgumentParser(add_help=False)
    part.add_args(parser)
    fields: List[Any] = [(LEARNING_RATE, Any, dataclasses.field(default=f"${{optimization.{LEARNING_RATE}}}"))]
    for action in parser._actions:
        kind: Any = bool if isinstance(action.default, bool) else action.type or str
        kind = kind if kind in (bool, int, float, str) else Any
        fields.append((action.dest, Optional[kind], dataclasses.field(default=action.default)))
    return dataclasses.make_dataclass(part.__name__, fields)
