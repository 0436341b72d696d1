"""What an optimizer of 16-bit weights holds goes into a checkpoint and out of it, if the model is still the same."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf

from fairseq_hmrnn.optim import mixed_precision


def optimizer_of(weights, kind):
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.optimizer = OmegaConf.create({**vars(FairseqAdamConfig(lr=[0.01])), "_name": "adam"})
    cfg.common.bf16, cfg.common.fp16_no_flatten_grads = kind == "bf16", True
    return FP16Optimizer.build_optimizer(cfg, [torch.nn.Parameter(weights.clone())])


def stepped(kind):
    """After an update, its weight and loss scaler no longer as at the start."""
    optimizer = optimizer_of(torch.linspace(-1, 1, 9).to(torch.bfloat16 if kind == "bf16" else torch.float16), kind)
    optimizer.zero_grad()
    optimizer.backward((optimizer.fp16_params[0].float() ** 2).sum())
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_float32_weights_and_the_age_of_the_loss_scale_come_back(kind):
    before = stepped(kind)
    state, (weight,) = mixed_precision.training_state(before), mixed_precision.float32_weights(before)
    after = optimizer_of(before.fp16_params[0].detach(), kind)
    (restored,) = mixed_precision.float32_weights(after)
    assert not torch.equal(restored, weight)  # 16 bits of it
    mixed_precision.load_training_state(after, state)
    assert torch.equal(restored, weight)
    if kind == "fp16":
        assert vars(after.scaler) == vars(before.scaler) and after.scaler._iter == 1


def test_a_model_that_was_changed_counts():
    before = stepped("bf16")
    state = mixed_precision.training_state(before)
    after = optimizer_of(before.fp16_params[0].detach() + 1, "bf16")
    (weight,) = mixed_precision.float32_weights(after)
    mixed_precision.load_training_state(after, state)
    assert torch.equal(weight, after.fp16_params[0].float())
    other = optimizer_of(torch.ones(3, dtype=torch.bfloat16), "bf16")
    mixed_precision.load_training_state(other, state)
    assert torch.equal(mixed_precision.float32_weights(other)[0], torch.ones(3))


def test_weights_that_lie_end_to_end_come_back():
    """As on a GPU, where fairseq has one tensor by device."""
    parts = [torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([[3.0]], dtype=torch.bfloat16)]
    flat = torch.tensor([1.001, 2.002, 3.003])
    before = SimpleNamespace(fp16_params=parts, fp32_params={0: flat})
    after = SimpleNamespace(fp16_params=parts, fp32_params={0: torch.cat([part.flatten() for part in parts]).float()})
    mixed_precision.load_training_state(after, mixed_precision.training_state(before))
    assert torch.equal(after.fp32_params[0], flat)


def test_an_optimizer_of_float32_has_nothing_to_keep():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    assert mixed_precision.training_state(optimizer) == {}
    mixed_precision.load_training_state(optimizer, {"weights": [torch.zeros(2)]})
