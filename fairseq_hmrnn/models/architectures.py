"""Named settings of a model."""

from typing import Any, Dict

from fairseq.models import MODEL_DATACLASS_REGISTRY, register_model_architecture
from omegaconf import OmegaConf


def register_architectures(model: str, architectures: Dict[str, Dict[str, Any]]) -> None:
    """Register, for fairseq's --arch, names of settings of a model; what the user gives on the command line goes first.

    architectures: name -> {option of the model's dataclass: its value}.
    """
    for name, settings in architectures.items():
        register_model_architecture(model, name)(_filler(model, settings))


def _filler(model: str, settings: Dict[str, Any]):
    def fill(args):
        for option, value in settings.items():
            setattr(args, option, getattr(args, option, value))
        if OmegaConf.is_config(args):  # a checkpoint's, which may be older than an option; fairseq fills in none here
            for option, value in vars(MODEL_DATACLASS_REGISTRY[model]()).items():
                if option not in args:
                    args[option] = value

    return fill
