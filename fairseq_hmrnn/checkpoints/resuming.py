"""A training that goes on from a checkpoint, or begins from its weights: what does not fit is one line."""

from __future__ import annotations

import functools
import traceback
from typing import Any, Callable, Optional

from fairseq.optim.lr_scheduler import FairseqLRScheduler

from ..fairseq_hooks import takes_part
from .archive import UnsafeCheckpointError, misfit
from .contents import MISFIT
from .loading import asking


def load_to_train(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load_checkpoint` of fairseq's trainer: where this package takes part, a checkpoint of another model, dictionary,
    criterion or optimizer is a ValueError of one line, of which fairseq and torch say less in more lines. A task with
    `check_resumed(task_state)` is asked before training goes on, but not before one that begins from weights alone."""

    @functools.wraps(load)
    def load_checkpoint(trainer, filename, reset_optimizer=False, *args, **kwargs):
        if not takes_part(trainer):
            return load(trainer, filename, reset_optimizer, *args, **kwargs)
        check = getattr(trainer.task, "check_resumed", None)
        try:
            with asking(None if reset_optimizer else check):
                return load(trainer, filename, reset_optimizer, *args, **kwargs)
        except UnsafeCheckpointError:
            raise
        except AssertionError as error:  # fairseq's, for another criterion or optimizer
            raise ValueError(f"{filename} {MISFIT}: {error}") from error
        except Exception as error:
            if _raised_within(error, FairseqLRScheduler):
                raise ValueError(
                    f"{filename} was trained with another --lr-scheduler: give that one, or --reset-lr-scheduler to "
                    "begin with this one"
                ) from error
            why = _why_not_loaded(error)
            if why is None:
                raise
            finetuned = trainer.cfg.checkpoint.finetune_from_model
            anew = "without --finetune-from-model" if finetuned else "in another --save-dir"
            raise ValueError(f"{filename} {why}, or begin anew, {anew}") from error

    return load_checkpoint


def _raised_within(error: Exception, kind: type) -> bool:
    """Whether the error came out of a method of an object of that kind."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), kind) for frame in frames)


def _why_not_loaded(error: Exception) -> Optional[str]:
    """Why fairseq's trainer could not use a checkpoint, and what to give; None if that is unknown."""
    cause = error.__context__  # what it says that there was
    if type(error) is Exception and isinstance(cause, ValueError):  # of this package's modules
        return f"does not fit: {cause}"
    difference = misfit(cause) if "optimizer's group" not in str(error) else "its optimizer has other parameters"
    return None if difference is None else f"{MISFIT}: {difference}; give those that it was trained with"
