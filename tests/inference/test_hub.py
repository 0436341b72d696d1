"""The hub interface, with a checkpoint of the repository."""

import pytest
import torch
from running import ROOT

from fairseq_hmrnn.models import HMLSTMLanguageModel

TEXT = "der baum ist und das haus\n"


@pytest.fixture(scope="module")
def lm():
    return HMLSTMLanguageModel.from_pretrained(str(ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt"))


@pytest.mark.parametrize(
    "regularizers, delay, expected", [("rate+lexicon,rate", None, 1), ("rate+lexicon,rate", 2, 2), ("rate", 2, 0)]
)
def test_boundaries_are_put_back_by_what_the_first_layer_was_taught(lm, monkeypatch, regularizers, delay, expected):
    monkeypatch.setitem(lm.cfg.criterion, "boundary_regularizers", regularizers)
    monkeypatch.setitem(lm.cfg.criterion, "boundary_delay", delay)
    assert lm.delay == expected
    assert torch.equal(lm.boundaries(TEXT), lm.boundaries(TEXT, lookahead=expected))
    assert lm.segment(TEXT) == lm.segment(TEXT, lookahead=expected)
    late = lm.boundaries(TEXT, lookahead=0)
    assert torch.equal(lm.boundaries(TEXT)[: len(TEXT) - expected], late[expected:])
    assert late.any()
