"""torch.jit.script of the translation models."""

import copy
from types import SimpleNamespace
from typing import Dict, List, Optional

import pytest
import torch
from small_translation import MEMORIES, MODELS, PAD, TARGET, make, tokens
from test_translation import build_plain
from torch import Tensor, nn

TIED = {"share_decoder_input_output_embed": True}


class StepByStep(nn.Module):
    """As a generator in TorchScript calls a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, prev: Tensor) -> Tensor:
        encoder_out = self.model.encoder(source)
        cache: Dict[str, Dict[str, Optional[Tensor]]] = {}
        logits: List[Tensor] = []
        for t in range(prev.size(1)):
            logits.append(self.model.decoder(prev[:, : t + 1], encoder_out, cache)[0][:, -1])
        return torch.stack(logits, dim=1)


# All models have the same encoder, which makes the memories: one model has them all, the others' decoders two each.
SCRIPTED = [("hmlstm", *kind) for kind in zip(MEMORIES, [True, False, True, False, True])]
SCRIPTED += [("hmlstm_unfed", "segments:2", False), ("hmlstm_unfed", "means:1", True)]
SCRIPTED += [("hmlstm_lstm", "all-layers", False), ("hmlstm_lstm", "segments:1", True)]
SCRIPTED += [("hmlstm_transformer", "steps", True), ("hmlstm_transformer", "segments:2", False)]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name, memory, bidirectional", SCRIPTED)
def test_scripts_are_the_model(name, memory, bidirectional, tmp_path):
    model = make(name, encoder_memory=memory, bidirectional=bidirectional)
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    scripted = torch.jit.load(str(tmp_path / "model.pt"))
    fairseqs = name in ("hmlstm_lstm", "hmlstm_transformer")  # attention, or its softmax, in single precision
    close = {"rtol": 0, "atol": 1e-6 if fairseqs else 1e-12}
    for batch, source, target in ((3, 7, 5), (1, 1, 1), (4, 9, 2)):
        x, y = tokens(batch, source), tokens(batch, target, TARGET)
        x[0, : source // 3], lengths = PAD, torch.full((batch,), source)
        logits, extra = model(x, lengths, y)
        found, told = scripted(x, lengths, y, None)
        torch.testing.assert_close(found, logits, **close)
        assert torch.equal(told["boundaries"][0], extra["trace"].boundaries)
        if extra["attn"] is not None:
            torch.testing.assert_close(told["attn"][0], extra["attn"][0], **close)
    stepping = torch.jit.script(StepByStep(model))
    torch.testing.assert_close(stepping(x, y), logits, **close)


@pytest.mark.skipif(torch.__version__ < "2", reason="torch 1 multiplies no Half on CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_unfed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scripts_of_16_bits_keep_their_state_in_32(name, dtype):
    """Soft boundaries show every rounding of what they are made from: of a state in bfloat16 four times as much."""
    model = make(name, boundary="soft").to(dtype)
    x, y, lengths = tokens(3, 60), tokens(3, 4, TARGET), torch.full((3,), 60)
    own = model(x, lengths, y)[1]["trace"].boundaries
    scripted = torch.jit.script(model)(x, lengths, y, None)[1]["boundaries"][0]
    exact = copy.deepcopy(model).double()(x, lengths, y)[1]["trace"].boundaries
    assert (scripted - exact).abs().mean() < 2 * (own - exact).abs().mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_lstm", "hmlstm_transformer"])
@pytest.mark.parametrize("options", [{"adaptive_softmax_cutoff": "6"}, TIED], ids=["adaptive", "tied"])
def test_scripts_have_every_softmax_layer(name, options):
    sizes = {"hmlstm_lstm": {"decoder_embed_dim": 9, "decoder_out_embed_dim": 9}, "hmlstm": {"output_dim": 6}}
    model = make(name, **options, **sizes.get(name, {}))
    x, y = tokens(3, 7), tokens(3, 5, TARGET)
    found, _ = torch.jit.script(model)(x, None, y, None)
    expected, _ = model(x, torch.full((3,), 7), y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    again, _ = model(x, torch.full((3,), 7), y)  # it is left as it was
    assert torch.equal(again, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_without_symbols():
    model = make("hmlstm", bidirectional=True)
    scripted = torch.jit.script(model)
    for batch, source, target in ((2, 5, 0), (2, 0, 3), (0, 5, 3)):
        x, y = tokens(batch, source), tokens(batch, target, TARGET)
        (found, told), (logits, extra) = scripted(x, None, y, None), model(x, None, y)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-12)
        assert told["attn"][0].shape == extra["attn"][0].shape
        assert told["boundaries"][0].shape == extra["trace"].boundaries.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_as_built_and_as_fairseqs_hub_makes_them_can_be_scripted():
    for name in MODELS:
        model = build_plain(name, dropout_recurrent=0.1)
        torch.jit.script(model)
        model.prepare_for_inference_(SimpleNamespace(generation=SimpleNamespace(print_alignment=None)))
        torch.jit.script(model)
