"""Named settings of a model."""

from typing import Any, Dict

from fairseq.models import register_model_architecture


def register_architectures(model: str, architectures: Dict[str, Dict[str, Any]]) -> None:
    """Register, for fairseq's --arch, names of settings of a model; what the user gives on the command line goes first.

    architectures: name -> {option of the model's dataclass: its value}.
    """
    for name, settings in architectures.items():
        register_model_architecture(model, name)(_filler(settings))


def _filler(settings: Dict[str, Any]):
    def fill(args):
        for option, value in settings.items():
            setattr(args, option, getattr(args, option, value))

    return fill
