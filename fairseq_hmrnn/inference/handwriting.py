"""A trained model of handwriting in use: it writes, and it reads lines that were written."""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks

from ..checkpoints import find_checkpoint, load_for_use, naming, settings
from ..data.handwriting import Normalization
from ..models.handwriting import HandwritingModel
from ..trace import KEY


class Written(NamedTuple):
    """A line of N steps. steps: (N, 3), normalised. boundaries: (N, detectors), z of each layer after it read a step;
    no columns where the model has none. log_probs: (N,), of each step given those before it, in nats; 0 for the first,
    which is given."""

    steps: np.ndarray
    boundaries: np.ndarray
    log_probs: np.ndarray


class Writer:
    """A model and the normalisation of the strokes that it was trained on."""

    def __init__(self, model: HandwritingModel, normalization: Normalization):
        self.model, self.normalization = model.eval().float(), normalization

    @classmethod
    def load(cls, path: str) -> Writer:
        """From a checkpoint, or a folder with one. ValueError for a model of something else, UnsafeCheckpointError for
        what is no whole checkpoint."""
        path = find_checkpoint(path)
        state = load_for_use(path)
        task_state = state.get("task_state") or {}
        if "normalization" not in task_state:
            raise ValueError(f"{path} is not a model of handwriting: it was trained with another task")
        with naming(path):
            task = tasks.setup_task(settings(state).task, task_state=task_state)
        models, _, task = checkpoint_utils.load_model_ensemble_and_task([path], task=task, state=state)
        return cls(models[0], task.normalization)

    @torch.no_grad()
    def read(self, steps: np.ndarray) -> Written:
        """steps: (N, 3) of a line, normalised, N from 1."""
        _check_steps(steps)
        x = torch.from_numpy(np.asarray(steps, dtype=np.float32)).unsqueeze(0)
        parameters, extra = self.model(x)
        log_probs = self.model.distribution(parameters[0, :-1]).log_prob(x[0, 1:])
        return Written(np.asarray(steps), _boundaries(extra), np.append(0, log_probs.numpy()))

    @torch.no_grad()
    def write(self, count: int, bias: float = 0.0, beginning: Optional[np.ndarray] = None) -> Written:
        """`count` new steps after a beginning (N, 3), normalised, N from 1; None: a pen that is put down. bias:
        Graves' b, see `MixtureDensity.distribution`. Draws from torch's generator."""
        start = np.zeros((1, 3)) if beginning is None else beginning
        _check_steps(start)
        if count < 0:
            raise ValueError(f"the number of new steps must not be negative, got {count}")
        steps = torch.from_numpy(np.asarray(start, dtype=np.float32)).unsqueeze(0)
        parameters, extra = self.model(steps)
        written, boundaries = [steps], [_boundaries(extra)]
        log_probs = [parameters.new_zeros(1), self.model.distribution(parameters[0, :-1]).log_prob(steps[0, 1:])]
        for _ in range(count):
            step = self.model.distribution(parameters[:, -1:], bias).sample()
            log_probs.append(self.model.distribution(parameters[0, -1:]).log_prob(step[0]))
            parameters, extra = self.model(step, state=extra["state"])
            written.append(step)
            boundaries.append(_boundaries(extra))
        return Written(torch.cat(written, dim=1)[0].numpy(), np.concatenate(boundaries), torch.cat(log_probs).numpy())


def _check_steps(steps: np.ndarray) -> None:
    """ValueError for what is not (N, 3) with N from 1."""
    if np.ndim(steps) != 2 or np.shape(steps)[1] != 3 or not len(steps):
        raise ValueError(f"steps must be of shape (N, 3) with N from 1, not {np.shape(steps)}")


def _boundaries(extra) -> np.ndarray:
    """(T, detectors) of a batch of one line."""
    trace = extra.get(KEY)
    if trace is None:
        return np.zeros((extra["valid"].size(1), 0))
    return trace.boundaries[0, :, : trace.num_detectors].float().numpy()
