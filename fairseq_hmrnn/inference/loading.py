"""Loading trained language models for use from Python."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch
from fairseq import checkpoint_utils, tasks

from ..checkpoints import (
    check_overrides,
    data_folder,
    drop_unnamed_codec,
    find_checkpoint,
    forget_files,
    load_for_use,
    naming,
    settings,
    split_checkpoints,
)
from ..models import HMLSTMLanguageModel
from ..models.decoding import generate_in
from .dictionaries import check_dictionary, folder_of_dictionary
from .hub import LanguageModelHub


def load(paths: Sequence[str], data: Optional[str] = None, dtype: str = "float32", **overrides) -> LanguageModelHub:
    """Load one checkpoint, or several as an ensemble.

    data: a folder with the dict.txt; not required where the checkpoint carries its dictionary, as those of the task
    hmlstm_language_modeling do, or has dict.txt beside it. dtype: of sampling and generation, "bfloat16" for less
    time, see `models.decoding.generate_in`; scores and segments are computed in float32. overrides: options to change,
    for instance `bpe="sentencepiece", sentencepiece_model=PATH`. UnsafeCheckpointError for what is no whole checkpoint,
    or has weights that are not finite. ValueError for checkpoints of different dictionaries, or of another than that of
    data. TypeError for an override that is no option of the checkpoint.
    """
    paths = [find_checkpoint(path) for path in paths]
    state = _load_language_model(paths[0], overrides)
    cfg = settings(state)
    forget_files(cfg, overrides)
    codec = drop_unnamed_codec(cfg, overrides)
    if codec is not None:
        raise ValueError(f'{paths[0]} was trained with the codec {codec}: name it and its files, bpe="{codec}", ...')
    task_state = state.get("task_state") or {}
    common = None if data is None else data_folder(data, paths[0])
    data = folder_of_dictionary(paths[0], state) if common is None else common
    if data is not None:
        task_state, cfg.task.data = {}, data
    with naming(paths[0]):
        task = tasks.setup_task(cfg.task, task_state=task_state)
    models: List[torch.nn.Module] = []
    criterions: List[Any] = []
    for path in paths:
        if models:
            state = _load_language_model(path, overrides)
        if models or common is not None:
            check_dictionary(path, state, task, common, paths[0])
        loaded, found, task = checkpoint_utils.load_model_ensemble_and_task([path], overrides, task=task, state=state)
        cfg = cfg if models else found
        criterions.append(found.criterion)
        models, state = [*models, *loaded], {}  # its weights are not held beside those of the next
    generate_in(models, dtype)
    if hasattr(task.args, "generation_dtype"):  # which `generate` asks
        task.args.generation_dtype = dtype
    with naming(paths[0]):
        return LanguageModelHub(cfg, task, models, criterions)


def _load_language_model(path: str, overrides: Dict[str, Any]) -> Dict[str, Any]:
    """A checkpoint; ValueError if it is of another model."""
    state = load_for_use(path, overrides)
    check_overrides(path, settings(state), overrides)
    if "normalization" in (state.get("task_state") or {}):
        raise ValueError(f"{path} is a model of handwriting, not of text: fairseq-hmrnn sample-handwriting uses it")
    if any(name.startswith("encoder.") for name in state["model"]):
        raise ValueError(f"{path} is a translation model, not a language model: fairseq-generate runs it")
    return state


def load_pretrained(path: str, names: Optional[str] = None, data: Optional[str] = None, **kwargs) -> LanguageModelHub:
    """Implements `HMLSTMLanguageModel.from_pretrained`."""
    return load(split_checkpoints(path, names), data, **kwargs)


HMLSTMLanguageModel.load_pretrained = staticmethod(load_pretrained)
