"""What a checkpoint says of its model: the configuration it was trained with, and what of it holds for its use."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, Dict, Optional, Tuple

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig, OmegaConf, open_dict

from ..fairseq_hooks import registered_options
from ..options import nearest

# Codecs that need no file, and so can be taken from a checkpoint as they are.
CODECS_WITHOUT_FILES = {"bytes", "characters"}


def settings(checkpoint: Dict[str, Any]):
    """The configuration that a model was trained with, whichever way the checkpoint has it; None if it has none."""
    if checkpoint.get("cfg") is not None:
        return checkpoint["cfg"]
    return convert_namespace_to_omegaconf(checkpoint["args"]) if checkpoint.get("args") is not None else None


def registered_classes(cfg) -> Dict[str, Any]:
    """The classes of the model and the task that a configuration names; None where no such name is known."""
    model, task = getattr(cfg, "model", None), getattr(cfg, "task", None)
    model = getattr(model, "_name", None) or getattr(model, "arch", None)
    task = getattr(task, "_name", None) or getattr(task, "task", None)
    return {
        "model": ARCH_MODEL_REGISTRY.get(model) or MODEL_REGISTRY.get(model),
        "task": TASK_REGISTRY.get(task),
    }


def forget_files(cfg, overrides: Dict[str, Any]) -> None:
    """Have no file be opened that a checkpoint names and the user (`overrides`) does not: those that its model was
    started from, whose weights it has, and one for replacing unknown words."""
    forget(cfg, overrides, "model", ("_from", "_path"), "")
    forget(cfg, overrides, "generation", ("replace_unk",), None)


def forget(cfg, overrides: Dict[str, Any], group: str, endings: Tuple[str, ...], nothing: Optional[str]) -> None:
    """Have the group's texts whose names end so, and that the user did not give, be `nothing`."""
    part = getattr(cfg, group, None)
    with open_dict(cfg):
        for field in list(part if isinstance(part, DictConfig) else vars(part or argparse.Namespace())):
            value = getattr(part, field) if field.endswith(endings) else None
            if isinstance(value, str) and overrides.get(field) != value:
                setattr(part, field, nothing)


def check_overrides(path: str, cfg, overrides: Dict[str, Any]) -> None:
    """TypeError for an override that no section of a checkpoint's configuration has, nor any codec or tokenizer:
    fairseq would leave it out without a word."""
    sections = [vars(part) if isinstance(part, argparse.Namespace) else part for part in [cfg, *cfg.values()]]
    known = {str(name) for part in sections if isinstance(part, (dict, DictConfig)) for name in part}
    for kind in ("bpe", "tokenizer"):
        for codec in REGISTRIES[kind]["dataclass_registry"].values():
            known.update(field.name for field in dataclasses.fields(codec))
    newer = {field.name for config in registered_options().values() for field in dataclasses.fields(config)}
    for name in sorted(overrides.keys() - known):
        if name in newer:
            raise TypeError(f"{path} was trained before there was an option {name}, and has none")
        raise TypeError(f"unknown option {name}: {nearest(name, known)}")


def drop_unnamed_codec(cfg, overrides: Dict[str, Any]) -> Optional[str]:
    """Have `cfg.bpe` be the codec that the user named in `overrides`, with defaults beside what the user named.

    One that the checkpoint alone names stays if it needs no file, or only local ones that the user named; otherwise it
    is dropped, and its name is returned.
    """
    bpe = getattr(cfg, "bpe", None)
    asked, found = overrides.get("bpe"), bpe if isinstance(bpe, str) else getattr(bpe, "_name", None)
    name = asked if isinstance(asked, str) else found
    if name is None:
        return None
    registry = REGISTRIES["bpe"]["dataclass_registry"]
    fields = OmegaConf.structured(registry[name]) if name in registry else OmegaConf.create({})
    with open_dict(fields):
        fields._name = name
        names = list(fields.keys())  # of fields without a value too, which are not `in` it
        files = {field: overrides[field] for field in names if field in overrides}
        fields.update(files)
    named = name in CODECS_WITHOUT_FILES or any(os.path.isfile(str(value)) for value in files.values())
    with open_dict(cfg):
        cfg.bpe = fields if asked is not None or named else None
    return None if cfg.bpe is not None else name
