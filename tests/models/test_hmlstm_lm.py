"""The language model as fairseq sees it, without its commands."""

from types import SimpleNamespace

import pytest
import torch
from running import run
from small_language_model import DICTIONARY, PAD, make, tokens
from small_texts import dictionary_of

from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.hmlstm_lm import HMLSTMLanguageModel


@pytest.mark.parametrize("boundary", ["step", "bernoulli", "soft"])
def test_incremental_decoding_equals_teacher_forcing(boundary):
    model, x = make(boundary=boundary, slope=1.5), tokens(3, 10)
    logits, _ = model(x)
    incremental_state = {}
    for t in range(10):
        step, _ = model.decoder(x[:, : t + 1], incremental_state=incremental_state)
        torch.testing.assert_close(step[:, 0], logits[:, t], rtol=0, atol=1e-12)


def test_reordering_lets_each_row_go_on_from_the_chosen_one():
    model, x = make(), tokens(4, 8)
    order = torch.tensor([2, 0, 0, 3])
    incremental_state = {}
    for t in range(5):
        model.decoder(x[:, : t + 1], incremental_state=incremental_state)
    model.decoder.reorder_incremental_state_scripting(incremental_state, order)
    joined = torch.cat([x[order, :5], x[:, 5:6]], dim=1)
    step, _ = model.decoder(joined, incremental_state=incremental_state)
    torch.testing.assert_close(step[:, 0], model(joined)[0][:, 5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("left", [0, 3])
@pytest.mark.parametrize("right", [0, 2])
def test_pad_symbols_change_nothing(left, right):
    model, x = make(), tokens(2, 6)
    padded = torch.nn.functional.pad(x, (left, right), value=PAD)
    padded = torch.cat([padded, tokens(1, padded.size(1))])  # beside a sample without padding
    (plain, plain_extra), (logits, extra) = model(x), model(padded)
    rows = slice(left, left + 6)
    torch.testing.assert_close(logits[:2, rows], plain, rtol=0, atol=1e-12)
    assert torch.equal(extra["trace"].boundaries[:2, rows], plain_extra["trace"].boundaries)
    assert torch.equal(extra["trace"].valid, padded.ne(PAD))


def test_empty_batch():
    logits, extra = make()(torch.zeros(0, 5, dtype=torch.long))
    assert logits.shape == (0, 5, len(DICTIONARY)) and extra["trace"].boundaries.shape == (0, 5, 3)


def test_state_can_be_carried():
    model, x = make(), tokens(2, 9)
    logits, _ = model(x)
    _, extra = model(x[:, :4])
    rest, _ = model(x[:, 4:], state=extra["state"])
    torch.testing.assert_close(rest, logits[:, 4:], rtol=0, atol=1e-12)


def test_slope_is_in_the_checkpoint_and_survives_half():
    options = dict(boundary="soft", slope_per_epoch=0.04, slope_per_update=0.001)
    model = make(**options)
    model.set_epoch(11)
    model.set_num_updates(2049)  # half precision would make 2048 of it
    assert model.decoder.slope_progress.slope == pytest.approx(1 + 10 * 0.04 + 2.049)
    saved = {name: value.clone() for name, value in model.half().state_dict().items()}
    other = make(**options)
    other.load_state_dict(saved)
    assert other.decoder.slope_progress.slope == model.decoder.slope_progress.slope
    x = tokens(1, 4)
    assert not torch.equal(other(x)[0], make(**options)(x)[0])


def test_a_checkpoint_of_another_dictionary_is_refused():
    model = make()
    with pytest.raises(ValueError, match="another dictionary"):
        make(dictionary_of("abcdefh")).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="another dictionary"):
        make(dictionary_of("abcdefgh")).load_state_dict(model.state_dict())
    sums = {name: sum([value] * 50) for name, value in model.state_dict().items()}  # as fairseq averages checkpoints
    averaged = {name: value / 50 if value.is_floating_point() else value // 50 for name, value in sums.items()}
    make(dictionary_of("abcdefg")).load_state_dict(averaged)


def test_tied_softmax():
    model = make(tie_embeddings=True, embed_dim=9)
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    with pytest.raises(ValueError, match="to be equal"):
        make(tie_embeddings=True)


def test_dropout_acts_in_training_only():
    for name in ("dropout_input", "dropout_output", "dropout_recurrent"):
        model, x = make(**{name: 0.5}), tokens(2, 6)
        assert torch.equal(model(x)[0], model(x)[0])
        model.train()
        assert not torch.equal(model(x)[0], model(x)[0])
        if name != "dropout_recurrent":  # of a zero state
            first, second = (model.decoder(x[:, :1], incremental_state={})[0] for _ in range(2))
            assert not torch.equal(first, second)


def test_every_option_reaches_the_recurrence():
    options = {"detector_grad_scale": 0.5, "forget_bias": 2.0, "detector_bias": -1.0, "recompute_chunks": 3}
    options["detector_hidden"] = 5
    options.update(boundary="bernoulli", nested_boundaries=True, top_boundary=True, backend="reference")
    recurrence = make(normalization="none", dropout_recurrent=0.3, **options).decoder.hm_lstm
    assert {name: getattr(recurrence, name) for name in options} == options
    assert recurrence.recurrent_dropout == 0.3 and recurrence.gain_recurrent is None
    assert make().decoder.hm_lstm.gain_recurrent is not None


def test_a_task_that_does_not_tell_the_epoch_is_named(caplog):
    task = SimpleNamespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY)
    HMLSTMLanguageModel.build_model(HMLSTMLanguageModelConfig(slope_per_update=0.1), task)
    assert "slope" not in caplog.text
    HMLSTMLanguageModel.build_model(HMLSTMLanguageModelConfig(slope_per_epoch=0.04), task)
    assert "SimpleNamespace does not pass the epoch to a model" in caplog.text


@pytest.mark.parametrize("sizes", ["", "8,a", "8,,5", "0,4"])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match="hidden-sizes must be positive integers"):
        make(hidden_sizes=sizes)


def test_a_recurrent_network_has_no_longest_input():
    assert make().max_positions() > 10**9


def test_published_architectures_have_the_published_sizes():
    from argparse import Namespace

    from fairseq.models import ARCH_CONFIG_REGISTRY

    sizes = {"ptb": ("512,512,512", 512), "text8": ("1024,1024,1024", 2048), "enwik8": ("1024,1024,1024", 2048)}
    for name, (hidden_sizes, output_dim) in sizes.items():
        args = Namespace(dropout_output=0.5)  # what the user gave is kept
        ARCH_CONFIG_REGISTRY[f"hmlstm_lm_{name}"](args)
        assert (args.hidden_sizes, args.output_dim, args.dropout_output) == (hidden_sizes, output_dim, 0.5)
        assert getattr(args, "slope_per_epoch", 0) == (0.04 if name == "ptb" else 0)


OPTIONS = {
    "default": {},
    "top": {"normalization": "none", "top_boundary": True},
    "tied": {"boundary": "soft", "tie_embeddings": True, "output_dim": 6},
    "reference-in-chunks": {"boundary": "bernoulli", "backend": "reference", "recompute_chunks": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_gets_a_gradient(name):
    model = make(**OPTIONS[name]).train()
    model(tokens(2, 6))[0].logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key


DISTRIBUTED = """
import os, sys, torch
sys.path[:0] = ["tests/models", "tests"]
from small_language_model import make, tokens
from test_hmlstm_lm import OPTIONS
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
for options in OPTIONS.values():
    model = torch.nn.parallel.DistributedDataParallel(make(**options).train())
    for _ in range(2):  # the second forward raises if the first left a parameter waiting
        model(tokens(2, 6))[0].logsumexp(-1).sum().backward()
    print("done", flush=True)
os._exit(0)  # torch may wait for ever when it takes a group of processes down
"""


def test_torch_distributed_waits_for_no_parameter():
    """As fairseq's pytorch_ddp does: torch's own wrapper, alone in its group."""
    assert run("-c", DISTRIBUTED).stdout.count("done") == len(OPTIONS)
