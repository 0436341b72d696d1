"""Averages of weights (`--store-ema`) as fairseq's trainer makes them; more of them: test_fairseq_interfaces.py."""

import fairseq.trainer
import torch
from fairseq.dataclass.configs import EMAConfig

from fairseq_hmrnn.models.handwriting import HMLSTMHandwritingConfig, HMLSTMHandwritingModel


def test_the_trainer_averages_handwriting_too():
    """Its progress is a buffer of integers, which have no mean."""
    model = HMLSTMHandwritingModel(HMLSTMHandwritingConfig(embed_dim=4, hidden_sizes="6,5", output_dim=7, mixtures=2))
    average = fairseq.trainer.build_ema(model, EMAConfig(store_ema=True, ema_decay=0.5), None)
    first = model.embed_step.weight.detach().clone()
    with torch.no_grad():
        model.embed_step.weight.add_(1)
    model.set_num_updates(1)
    average.step(model, 1)
    torch.testing.assert_close(average.get_model().embed_step.weight.detach(), first + 0.5)
    assert average.get_model().slope_progress.num_updates == 1
