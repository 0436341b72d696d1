"""fairseq's exponential moving average of weights (`--store-ema`) for the models of this package."""

from __future__ import annotations

import fairseq.trainer
from fairseq.models import ema
from torch import nn

from .hmlstm_lm import HMLSTMLanguageModel
from .translation_model import TranslationModel


class MovingAverage(ema.EMA):
    """fairseq's, but for three things: integers of a model (its progress, its dictionary's fingerprint) are copied, for
    they have no mean; a weight that a model has under two names decays once an update, not twice; and after a restart
    `--ema-update-freq` goes on counting where it was."""

    def __init__(self, model, config, device=None, skip_keys=None):
        integers = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
        super().__init__(model, config, device, integers.union(skip_keys or ()))
        separate_tied(self.model)
        if config.ema_fp32:
            self.fp32_params = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.fp32_params = {n: t.float() if t.is_floating_point() else t for n, t in self.fp32_params.items()}

    def step(self, new_model, updates=None):
        """Told after every update; updates: how many there were."""
        if updates is not None:
            self.update_freq_counter = (updates - 1) % self.config.ema_update_freq
        super().step(new_model, updates)


def separate_tied(model: nn.Module) -> None:
    """Give every name of a parameter a parameter of its own, of the same value."""
    seen = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(parameter))


def install() -> None:
    """Have fairseq's trainer average models of this package, and no others, as above."""
    build = fairseq.trainer.build_ema

    def build_ema(model, cfg, device):
        ours = isinstance(model, (HMLSTMLanguageModel, TranslationModel))
        return (MovingAverage if ours else build)(model, cfg, device)

    fairseq.trainer.build_ema = build_ema
