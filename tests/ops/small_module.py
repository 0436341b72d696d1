"""A small module and its input for tests."""

from __future__ import annotations

import torch

from fairseq_hmrnn.modules import HMLSTM

SIZES = [6, 5, 3]


def make(**options) -> HMLSTM:
    torch.manual_seed(0)
    return HMLSTM(4, SIZES, **options)


def given(steps=7, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, 4, generator=generator)
    return x, make()(torch.randn(3, batch, 4, generator=generator)).state.detach()
