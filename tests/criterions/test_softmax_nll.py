"""Cross-entropy that keeps no second matrix of the logits' size, against fairseq's."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel, FairseqDecoder

from fairseq_hmrnn.criterions import boundary_regularized_cross_entropy as criterion_module
from fairseq_hmrnn.criterions import softmax_nll as module
from fairseq_hmrnn.criterions.boundary_regularized_cross_entropy import BoundaryRegularizedCrossEntropy
from fairseq_hmrnn.criterions.softmax_nll import plain_logits, softmax_nll

PAD = 1
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 18])
def test_loss_is_that_of_fairseq_to_its_bits_and_so_is_the_gradient_but_for_rounding(dtype, reduce, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(37, 11, generator=generator) * 3).to(dtype)
    target = torch.randint(0, 11, (37,), generator=generator)
    target[::5] = PAD
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    log_probs, reduction = F.log_softmax(one, dim=1, dtype=torch.float32), "sum" if reduce else "none"
    expected = F.nll_loss(log_probs, target, ignore_index=PAD, reduction=reduction)
    found = softmax_nll(other, target, PAD, reduce)
    assert torch.equal(found, expected)
    weight = torch.rand(found.shape, generator=generator)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert other.grad.dtype == dtype
    torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=CLOSE[dtype])
    assert other.grad[::5].eq(0).all()


def test_no_rows():
    logits = torch.zeros(0, 5, requires_grad=True)
    softmax_nll(logits, torch.zeros(0, dtype=torch.long), PAD).backward()
    assert logits.grad.shape == (0, 5)


def test_models_with_probabilities_of_their_own_keep_them():
    class Model(BaseFairseqModel):
        def __init__(self, decoder):
            super().__init__()
            self.decoder = decoder

    class Own(FairseqDecoder):
        def get_normalized_probs(self, net_output, log_probs, sample=None):
            return net_output[0]

    class OwnModel(Model):
        def get_normalized_probs(self, net_output, log_probs, sample=None):
            return net_output[0]

    dictionary, logits = SimpleNamespace(), torch.zeros(1, 2, 3)
    plain, adaptive = FairseqDecoder(dictionary), FairseqDecoder(dictionary)
    adaptive.adaptive_softmax = torch.nn.Identity()
    assert plain_logits(Model(plain), (logits, {})) is logits
    for model in (Model(Own(dictionary)), OwnModel(plain), Model(adaptive), BaseFairseqModel()):
        assert plain_logits(model, (logits, {})) is None


def test_the_criterion_takes_it_for_large_logits_alone(monkeypatch):
    decoder, dictionary = FairseqDecoder(SimpleNamespace()), Dictionary()
    model = BaseFairseqModel()
    model.decoder = decoder
    criterion = BoundaryRegularizedCrossEntropy(SimpleNamespace(target_dictionary=dictionary), False, "")
    logits, target = torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3))
    asked = []
    monkeypatch.setattr(criterion_module, "softmax_nll", lambda *given: asked.append(given) or softmax_nll(*given))
    losses = []
    for large in (42, 43):
        monkeypatch.setattr(criterion_module, "LARGE", large)
        losses.append(criterion.compute_loss(model, (logits, {}), {"target": target})[0])
    assert len(asked) == 1 and torch.equal(*losses)
