"""Some cases of the fuzz that scripts/sanitize.sh runs, on the extension as it is built for use."""

import random

import kernel_fuzz as fuzz
import pytest
import torch

from fairseq_hmrnn.ops import cpu

pytestmark = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("kind", sorted(set(fuzz.KINDS), key=fuzz.KINDS.index), ids=lambda kind: kind.__name__)
def test_random_calls(kind, seed):
    torch.manual_seed(seed)
    kind(random.Random(seed), 3)
