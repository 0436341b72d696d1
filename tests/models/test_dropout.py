"""Dropout of every model: kept at inference where it is asked for, and growing over training."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.modules import FairseqDropout
from small_translation import ADAPTIVE, CUTOFFS, MODELS, SIZES, TARGET, WORDS, language_model, make, tokens

from fairseq_hmrnn.models.handwriting import HMLSTMHandwritingConfig, HMLSTMHandwritingModel
from fairseq_hmrnn.modules import HMLSTM


def retain_dropout(model, modules=None):
    generation = SimpleNamespace(retain_dropout=True, retain_dropout_modules=modules)
    model.prepare_for_inference_(SimpleNamespace(generation=generation))


# Dropout at inference


DROPOUTS = [("hmlstm_lm", kind) for kind in ("dropout_input", "dropout_recurrent", "dropout_output")]
DROPOUTS += [(name, kind) for name in MODELS for kind in ("dropout_input", "dropout_recurrent", "dropout_memory")]
DROPOUTS += [("hmlstm", "dropout_output"), ("hmlstm_unfed", "dropout_output")]


@pytest.mark.parametrize("name, kind", DROPOUTS)
def test_dropout_is_retained(name, kind):
    model = language_model(**{kind: 0.5}) if name == "hmlstm_lm" else make(name, **{kind: 0.5})
    inputs = (tokens(2, 6, WORDS),) if name == "hmlstm_lm" else (tokens(2, 6), None, tokens(2, 5, TARGET))
    assert torch.equal(model(*inputs)[0], model(*inputs)[0])
    retain_dropout(model)
    with torch.no_grad():
        assert not torch.equal(model(*inputs)[0], model(*inputs)[0])


def test_dropout_is_retained_where_it_was_asked_for():
    model = make("hmlstm", dropout_input=0.5, dropout_recurrent=0.5, dropout_output=0.5)
    retain_dropout(model, ["HMLSTMEncoder"])
    x, y = tokens(2, 6), tokens(2, 5, TARGET)
    first, second = model.encoder(x), model.encoder(x)
    assert not torch.equal(first["encoder_out"][0], second["encoder_out"][0])
    assert torch.equal(*(model.decoder(y, first)[0] for _ in range(2)))


@pytest.mark.parametrize("name", ["hmlstm_lm", "hmlstm", "hmlstm_unfed"])
def test_single_steps_keep_their_recurrent_masks(name):
    options = {"dropout_recurrent": 0.5}
    model = language_model(**options) if name == "hmlstm_lm" else make(name, **options)
    retain_dropout(model)
    prev = tokens(3, 7, WORDS if name == "hmlstm_lm" else TARGET)
    cache, order = {}, torch.tensor([2, 0, 0])
    with torch.no_grad():
        encoder_out = None if name == "hmlstm_lm" else model.encoder(tokens(3, 6))
        torch.manual_seed(5)
        whole = model.decoder(prev, encoder_out=encoder_out)[0]
        torch.manual_seed(5)  # the masks are drawn first
        for t in range(6):
            step = model.decoder(prev[:, : t + 1], encoder_out=encoder_out, incremental_state=cache)[0]
            torch.testing.assert_close(step[:, 0], whole[:, t])
        model.decoder.reorder_incremental_state_scripting(cache, order)
        if encoder_out is not None:
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        step = model.decoder(prev[order], encoder_out=encoder_out, incremental_state=cache)[0]
        torch.testing.assert_close(step[:, 0], whole[order, 6])


# Dropout over training


def with_growing_dropout(name):
    options = {"dropout_growth_updates": 10, "dropout_growth_start": 0.2}
    options.update(dropout_input=0.5, dropout_recurrent=0.5)
    if name == "hmlstm_lm":
        return language_model(**options)
    if name == "hmlstm_handwriting":
        cfg = HMLSTMHandwritingConfig(**SIZES, output_dim=9, mixtures=3, **options)
        return HMLSTMHandwritingModel.build_model(cfg, None)
    if name == "hmlstm_lstm_adaptive":
        options.update(
            target=WORDS, adaptive_softmax_cutoff=CUTOFFS, decoder_dropout_out=0.5, **ADAPTIVE["hmlstm_lstm"]
        )
        name = "hmlstm_lstm"
    return make(name, dropout_memory=0.5, **options)


@pytest.mark.parametrize("name", ["hmlstm_lm", "hmlstm_handwriting", *MODELS, "hmlstm_lstm_adaptive"])
def test_every_dropout_grows(name):
    model = with_growing_dropout(name)
    dropouts = [module for module in model.modules() if isinstance(module, (FairseqDropout, torch.nn.Dropout))]
    whole = [dropout.p for dropout in dropouts]
    assert whole.count(0.5) >= (
        5 if name == "hmlstm_lstm_adaptive" else 3 if name in MODELS else 2
    )  # nobody has told of updates yet
    for num_updates, factor in ((0, 0.2), (5, 0.6), (10, 1.0), (99, 1.0)):
        model.set_num_updates(num_updates)
        assert [dropout.p for dropout in dropouts] == pytest.approx([factor * p for p in whole])
    model.train().set_num_updates(5)
    recurrences = [module for module in model.modules() if isinstance(module, HMLSTM)]
    for mask in recurrences[0].draw_recurrent_masks(4000):
        assert float(mask.max()) == pytest.approx(1 / 0.7)
        assert float(mask.eq(0).float().mean()) == pytest.approx(0.3, abs=0.02)
