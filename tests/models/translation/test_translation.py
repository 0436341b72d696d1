"""The translation models as fairseq sees them, without its commands."""

import pytest
import torch
from pairs import pairs
from small_translation import MEMORIES, MODELS, PAD, TARGET, build_plain, dictionary_of, make, tokens
from torch.nn.utils import prune

from fairseq_hmrnn.inference.reader import Reader
from fairseq_hmrnn.models.decoding import generate_in
from fairseq_hmrnn.models.translation.encoder import attention_over_source, keep_segments, mean_segments
from fairseq_hmrnn.modules import Attention

BOTH = pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])


def detector_bias(model, layer, value):
    """Let the encoder's detectors of a layer say always or never."""
    for direction in (model.encoder.hm_lstm, model.encoder.hm_lstm_backward):
        if direction is not None:
            with torch.no_grad():
                direction.bias[layer][-1] = value


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("left, right", [(3, 0), (0, 2), (2, 4)])
@BOTH
def test_source_padding_changes_nothing(memory, bidirectional, left, right):
    model, x, y = make(encoder_memory=memory, bidirectional=bidirectional), tokens(2, 6), tokens(2, 5, TARGET)
    plain, plain_extra = model(x, None, y)
    padded = torch.nn.functional.pad(x, (left, right), value=PAD)
    padded = torch.cat([padded, tokens(1, padded.size(1))])  # beside a sample without padding
    logits, extra = model(padded, None, torch.cat([y, tokens(1, 5, TARGET)]))
    torch.testing.assert_close(logits[:2], plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(extra["attn"][0][:2, :, left : left + 6], plain_extra["attn"][0], rtol=0, atol=1e-12)
    assert extra["attn"][0].size(2) == padded.size(1)
    forward, *backward = extra["trace"].boundaries.split(3)
    assert torch.equal(forward[:2, left : left + 6], plain_extra["trace"].boundaries[:2])
    for boundaries in backward:  # read from the right, so that the right padding comes first
        assert torch.equal(boundaries[:2, right : right + 6], plain_extra["trace"].boundaries[2:])
    assert int(extra["trace"].valid.sum()) == (1 + bidirectional) * (12 + padded.size(1))


@BOTH
def test_backward_direction_is_a_forward_one_over_the_reversed_source(bidirectional):
    model, x = make(encoder_memory="steps", bidirectional=True), tokens(2, 6)
    encoder = model.encoder
    memory = encoder(x)["encoder_out"][0]
    for index, size in ((0, 8), (1, 5), (2, 7)):
        start = 20 * bidirectional + sum((8, 5, 7)[:index])
        source = x.flip(1) if bidirectional else x
        module = encoder.hm_lstm_backward if bidirectional else encoder.hm_lstm
        hidden = module(encoder.embed_tokens(source).transpose(0, 1)).hidden[index]
        hidden = hidden.flip(0) if bidirectional else hidden
        torch.testing.assert_close(memory[..., start : start + size], hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", ["all-layers", "segments:1", "means:1"])
def test_incremental_decoding_with_reordering_equals_teacher_forcing(name, memory):
    model = make(name, encoder_memory=memory, bidirectional=True)
    x, y = tokens(4, 9), tokens(4, 7, TARGET)
    x[1, :4] = PAD
    order = torch.tensor([2, 1, 1, 0])
    if name == "hmlstm_transformer":  # reorders its cache among the hypotheses of one source only
        x, order = x[[0, 0, 1, 1]], torch.tensor([1, 1, 3, 2])
    encoder_out = model.encoder(x)
    fairseqs = name in ("hmlstm_lstm", "hmlstm_transformer")  # attention, or its softmax, in single precision
    close = {"rtol": 0, "atol": 1e-6 if fairseqs else 1e-12}
    incremental_state = {}
    for t in range(4):
        step, extra = model.decoder(y[:, : t + 1], encoder_out=encoder_out, incremental_state=incremental_state)
        logits, whole = model(x, None, y)
        torch.testing.assert_close(step[:, 0], logits[:, t], **close)
        if whole["attn"] is not None:
            torch.testing.assert_close(extra["attn"][0][:, -1], whole["attn"][0][:, t], **close)
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
    model.decoder.reorder_incremental_state_scripting(incremental_state, order)
    joined = torch.cat([y[order, :4], y[:, 4:5]], dim=1)
    step, _ = model.decoder(joined, encoder_out=encoder_out, incremental_state=incremental_state)
    torch.testing.assert_close(step[:, 0], model(x[order], None, joined)[0][:, 4], **close)


@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_unfed"])
def test_target_padding_and_later_symbols_change_nothing(name):
    model, x, y = make(name), tokens(2, 6), tokens(2, 5, TARGET)
    plain, _ = model(x, None, y)
    longer, _ = model(x, None, torch.cat([y, tokens(2, 3, TARGET, seed=5)], dim=1))
    torch.testing.assert_close(longer[:, :5], plain, rtol=0, atol=1e-12)
    padded = y.clone()
    padded[0, 3:] = PAD
    torch.testing.assert_close(model(x, None, padded)[0][0, :3], plain[0, :3], rtol=0, atol=1e-12)
    padded = torch.cat([torch.full((2, 2), PAD), y], dim=1)
    torch.testing.assert_close(model(x, None, padded)[0][:, 2:], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_unfed"])
def test_a_decoder_goes_on_from_a_given_state(name):
    model, x, y = make(name), tokens(2, 6), tokens(2, 5, TARGET)
    plain, _ = model(x, None, y)
    encoder_out = model.encoder(x)
    _, extra = model.decoder(y[:, :3], encoder_out=encoder_out)
    rest, _ = model.decoder(y[:, 3:], encoder_out=encoder_out, state=extra["state"])
    torch.testing.assert_close(rest, plain[:, 3:], rtol=0, atol=1e-12)
    cache = {}
    for t in (3, 4):
        options = {"encoder_out": encoder_out, "incremental_state": cache, "state": extra["state"]}
        step, _ = model.decoder(y[:, : t + 1], **options)
        torch.testing.assert_close(step[:, 0], plain[:, t], rtol=0, atol=1e-12)


def test_hypotheses_that_change_places_among_those_of_their_source_move_nothing():
    encoder, x = make(bidirectional=True).encoder, tokens(2, 6)
    first = encoder.reorder_encoder_out(encoder(x), torch.tensor([0, 0, 1, 1]))
    assert encoder.reorder_encoder_out(first, torch.tensor([1, 1, 3, 2])) is first
    for order in ([2, 3, 0, 0], [2, 2], [0, 1, 2, 3, 3]):
        moved, expected = encoder.reorder_encoder_out(first, torch.tensor(order)), encoder(x[[0, 0, 1, 1]][order])
        for name in ("encoder_out", "encoder_padding_mask", "final_hidden"):
            torch.testing.assert_close(moved[name], expected[name], rtol=0, atol=1e-12)
        for trace, other in pairs(moved["traces"], expected["traces"]):
            assert torch.equal(trace.boundaries, other.boundaries)


@BOTH
def test_segments_keep_the_closing_steps_and_the_last_one(bidirectional):
    model, x = make(encoder_memory="segments:1", bidirectional=bidirectional), tokens(5, 12)
    every = make(encoder_memory="steps", bidirectional=bidirectional)
    for either in (model, every):
        detector_bias(either, 0, -0.5 if bidirectional else 0.0)
    x[0, :7] = PAD
    out, whole = model.encoder(x), every.encoder(x)["encoder_out"][0]
    closed = out["traces"][0].boundaries[..., 0] > 0
    if bidirectional:
        closed = closed | (out["traces"][1].boundaries[..., 0].flip(1) > 0)
    closed[:, -1] = True
    lengths = closed.sum(1)
    assert len(set(lengths.tolist())) > 1 and lengths.max() < 12  # the case is one worth testing
    assert out["encoder_out"][0].size(0) == lengths.max()
    for row in range(5):
        steps = closed[row].nonzero().squeeze(1)
        assert torch.equal(out["encoder_padding_mask"][0][row], torch.arange(lengths.max()) >= lengths[row])
        assert torch.equal(out["memory_positions"][0][row, : lengths[row]], steps)
        assert torch.equal(out["encoder_out"][0][: lengths[row], row], whole[steps, row])


@BOTH
def test_a_mean_is_of_the_steps_since_the_slot_before(bidirectional):
    model, x = make(encoder_memory="means:1", bidirectional=bidirectional), tokens(5, 12)
    closing = make(encoder_memory="segments:1", bidirectional=bidirectional)
    every = make(encoder_memory="steps", bidirectional=bidirectional)
    for any_of_them in (model, closing, every):
        detector_bias(any_of_them, 0, -0.5 if bidirectional else 0.0)
    x[0, :7], x[1, 8:] = PAD, PAD
    out, kept, whole = model.encoder(x), closing.encoder(x), every.encoder(x)["encoder_out"][0]
    for name in ("encoder_padding_mask", "memory_positions"):
        assert torch.equal(out[name][0], kept[name][0])
    lengths = (~out["encoder_padding_mask"][0]).sum(1)
    assert len(set(lengths.tolist())) > 1 and lengths.max() < 12  # the case is one worth testing
    for row, first in enumerate((7, 0, 0, 0, 0)):
        for slot, last in enumerate(out["memory_positions"][0][row, : lengths[row]].tolist()):
            mean = whole[first : last + 1, row].mean(0)
            torch.testing.assert_close(out["encoder_out"][0][slot, row], mean, rtol=0, atol=1e-12)
            first = last + 1
        assert first == (8 if row == 1 else 12)


def test_attention_is_mapped_back_to_the_source():
    model, x, y = make(encoder_memory="segments:1"), tokens(3, 10), tokens(3, 4, TARGET)
    _, extra = model(x, None, y)
    attention = extra["attn"][0]
    out = model.encoder(x)
    torch.testing.assert_close(attention.sum(2), torch.ones_like(attention[..., 0]))
    attended = attention.amax(1) > 0
    kept = out["traces"][0].boundaries[..., 0] > 0
    kept[:, -1] = True
    assert torch.equal(attended, kept)
    slots = torch.rand(3, 2, out["encoder_out"][0].size(0))
    over_source = attention_over_source(slots, out["memory_positions"][0], 10)
    for row, count in enumerate(kept.sum(1)):
        torch.testing.assert_close(over_source[row][:, kept[row]][:, : count - 1], slots[row][:, : count - 1])


@pytest.mark.parametrize("memory", ["segments:1", "means:1"])
@pytest.mark.parametrize("bias, length", [(50.0, 9), (-50.0, 1)], ids=["always", "never"])
def test_encoders_that_close_a_segment_always_or_never(bias, length, memory):
    model, x, y = make(encoder_memory=memory, bidirectional=True), tokens(3, 9), tokens(3, 4, TARGET)
    detector_bias(model, 0, bias)
    logits, extra = model(x, None, y)
    assert model.encoder(x)["encoder_out"][0].size(0) == length
    assert torch.isfinite(logits).all() and torch.isfinite(extra["attn"][0]).all()
    model.train()(x, None, y)[0].logsumexp(2).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_one_symbol_and_very_many(name, memory):
    model = make(name, encoder_memory=memory, bidirectional=True)
    for length in (1, 1500):
        logits, _ = model(tokens(1, length), None, tokens(1, 3, TARGET))
        assert torch.isfinite(logits).all()
    assert model.encoder.max_positions() > 10**9


@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_unfed", "hmlstm_lstm"])
@pytest.mark.parametrize("batch, target", [(2, 0), (0, 4), (0, 0)])
def test_without_target_symbols_or_sentences(name, batch, target):
    model = make(name)
    logits, extra = model(tokens(batch, 5), None, tokens(batch, target, TARGET))
    assert logits.shape == (batch, target, len(TARGET)) and extra["attn"][0].shape == (batch, target, 5)
    logits.sum().backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("name", ["hmlstm", "hmlstm_unfed"])
def test_no_target_symbol_leaves_the_state(name):
    model, encoded = make(name), make(name).encoder(tokens(2, 6))
    y = tokens(2, 5, TARGET)
    _, before = model.decoder(y[:, :3], encoder_out=encoded)
    _, after = model.decoder(y[:, :0], encoder_out=encoded, state=before["state"])
    rest, expected = (model.decoder(y[:, 3:], encoded, state=extra["state"])[0] for extra in (after, before))
    assert torch.equal(rest, expected) and after["decoder_trace"].boundaries.size(1) == 0


@pytest.mark.parametrize("shorten", [keep_segments, mean_segments])
def test_segments_of_an_empty_batch(shorten):
    memory, mask, steps = shorten(torch.zeros(4, 0, 3), torch.zeros(4, 0).bool(), torch.ones(4, 0).bool())
    assert memory.shape == (0, 0, 3) and mask.shape == (0, 0) and steps.shape == (0, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_memory": "words"}, "choose from steps, segments:LAYER, means:LAYER, all-layers"),
        ({"encoder_memory": "segments:x"}, "choose from steps, segments:LAYER, means:LAYER, all-layers"),
        ({"encoder_memory": "segments:3"}, "has 2 from the bottom"),
        ({"encoder_memory": "means:3"}, "layer 3 requires .* has 2 from the bottom"),
        ({"encoder_memory": "means"}, "choose from steps"),
        ({"encoder_memory": "segments:0"}, "choose from steps, segments:LAYER, means:LAYER, all-layers"),
        ({"slope_per_epoch": 0.04}, "slope-per-update"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_slope_grows_with_updates_on_both_sides():
    model = make(slope_per_update=0.01)
    model.set_num_updates(100)
    assert model.encoder.slope_progress.slope == model.decoder.slope_progress.slope == pytest.approx(2)


def test_the_sources_embedding_starts_small():
    weight = build_plain("hmlstm_lstm").encoder.embed_tokens.weight
    assert 0.05 < weight.abs().max() <= 0.1 and not weight[PAD].any()


def test_steps_with_input_feeding_share_one_mask_of_recurrent_dropout():
    model, x, y = make("hmlstm", dropout_recurrent=0.5).train(), tokens(3, 9), tokens(3, 7, TARGET)
    torch.nn.init.zeros_(model.decoder.feed.weight)
    encoder_out, logits = model.encoder(x), []
    for feed in (model.decoder.feed, None):  # step by step, and the whole target in one call
        model.decoder.feed = feed
        torch.manual_seed(5)
        logits.append(model.decoder(y, encoder_out)[0])
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_another_dictionary_is_refused(name):
    state = make(name).state_dict()
    with pytest.raises(ValueError, match="another source dictionary .*dict.LANG.txt.* --srcdict"):
        make(name, source=dictionary_of("abcdefh")).load_state_dict(dict(state))
    with pytest.raises(ValueError, match="another target dictionary .*dict.LANG.txt.* --tgtdict"):
        make(name, target=dictionary_of("uvwxzy")).load_state_dict(dict(state))
    del state["decoder.dictionary_fingerprint.fingerprint"]  # of a version that had none here
    make(name, target=dictionary_of("uvwxzy")).load_state_dict(state)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_parameter_gets_a_gradient(name, memory, dtype):
    """Wherever attention looks and whatever the precision: fairseq's pytorch_ddp waits for all of them."""
    model = make(name, encoder_memory=memory, bidirectional=True).to(dtype).train()
    logits, extra = model(tokens(2, 6), None, tokens(2, 5, TARGET))
    assert logits.dtype == dtype and extra["trace"].boundaries.dtype == torch.float32
    logits.float().logsumexp(-1).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("layers, out_dim", [(1, 9), (2, 9), (2, 4)])
@pytest.mark.parametrize("memory", ["steps", "all-layers", "segments:1", "means:1"])
def test_whole_targets_are_those_of_fairseq_s_own_loop(layers, out_dim, memory, monkeypatch):
    options = {"decoder_layers": layers, "decoder_out_embed_dim": out_dim, "bidirectional": True}
    model, x, y = make("hmlstm_lstm", encoder_memory=memory, **options), tokens(4, 9), tokens(4, 7, TARGET)
    x[1, :4] = PAD
    found = []
    for whole in (True, False):
        monkeypatch.setattr(type(model.decoder), "_runs_sequences", lambda *_, whole=whole: whole)
        model.zero_grad()
        logits, extra = model(x, None, y)
        logits.square().sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        found.append((logits, extra["attn"][0], gradients))
    (logits, attention, gradients), (own_logits, own_attention, own_gradients) = found
    # fairseq's attention is in single precision.
    torch.testing.assert_close(logits, own_logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention, own_attention, rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, own_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_dropout_of_whole_targets_is_drawn_anew_at_every_step_and_feeds_what_was_dropped():
    model = make("hmlstm_lstm", decoder_dropout_out=0.5, decoder_layers=1, decoder_out_embed_dim=9)
    x, y = tokens(1, 5).expand(64, 5), torch.full((64, 3), 5)
    plain = model.decoder.extract_features(y, model.encoder(x))[0]
    model.decoder.train()
    torch.manual_seed(1)
    dropped, extra = model.decoder.extract_features(y, model.encoder(x))
    assert extra["attn"] is None
    zeros = dropped.eq(0).double()
    assert 0.4 < zeros.mean() < 0.6 and not torch.equal(zeros[:, 0], zeros[:, 1])
    first = dropped[:, 0][dropped[:, 0] != 0]
    torch.testing.assert_close(first, 2 * plain[:, 0][dropped[:, 0] != 0], rtol=0, atol=1e-6)
    assert (dropped[:, 1] - 2 * plain[:, 1])[dropped[:, 1] != 0].abs().max() > 1e-3  # fed with what dropout left


def test_attention_over_a_projected_memory_is_attention():
    torch.manual_seed(2)
    attention = Attention(4, 6, 3).double()
    query, memory = torch.randn(2, 5, 4).double(), torch.randn(2, 7, 6).double().requires_grad_()
    padding_mask = torch.zeros(2, 7, dtype=torch.bool)
    padding_mask[1, 3:] = True
    whole, weights = attention(query, memory, padding_mask)
    projected = attention.project(memory, padding_mask)
    steps = [attention.step(query[:, t], projected) for t in range(5)]
    by_step, step_weights = (torch.stack(tensors, dim=1) for tensors in zip(*steps))
    torch.testing.assert_close(by_step, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(step_weights, weights, rtol=0, atol=1e-12)
    inputs = [memory, *attention.parameters()]
    for one, other in pairs(*(torch.autograd.grad(of.square().sum(), inputs) for of in (by_step, whole))):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["hmlstm_lstm", "hmlstm_transformer"])
@pytest.mark.parametrize("shared", [False, True])
def test_logits_of_many_rows_are_those_of_few(name, shared):
    options = {"decoder_embed_dim": 8, "share_decoder_input_output_embed": shared}
    options.update({"decoder_out_embed_dim": 8} if name == "hmlstm_lstm" else {})
    decoder = make(name, **options).decoder
    features = torch.randn(7, 6, 8, generator=torch.Generator().manual_seed(1)).double()
    few = torch.cat([decoder.output_layer(part) for part in features.split(1)])
    torch.testing.assert_close(decoder.output_layer(features), few, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_of_language_models_is_refused(name):
    """Generation with packed weights, and reading a text without a source."""
    model = make(name).float()
    with pytest.raises(ValueError, match="in bfloat16 requires HM-LSTM language models"):
        generate_in([model], "bfloat16")
    with pytest.raises(ValueError, match="require an HM-LSTM language model"):
        Reader(model.decoder, TARGET.eos())
    assert not hasattr(model.decoder, "begin_generation")


PRUNED = {
    "hmlstm": ["attention.query", "attention.output", "feed", "output_projection"],
    "hmlstm_unfed": ["attention.query", "attention.output", "output_projection"],
    "hmlstm_lstm": ["attention.input_proj", "attention.output_proj", "layers.0", "fc_out"],
    "hmlstm_transformer": ["output_projection"],
}


@pytest.mark.parametrize("rows", [2, 40])  # few are multiplied by torch, many by the panels
@pytest.mark.parametrize("name", MODELS)
def test_pruned_layers_are_trained_and_stay_pruned(name, rows):
    """torch.nn.utils.prune makes a weight in a hook before every call of its module."""
    model, x, y = make(name), tokens(rows, 5), tokens(rows, 3, TARGET)
    lengths = torch.full((rows,), 5)
    for part in PRUNED[name]:
        module = model.decoder.get_submodule(part)
        prune.random_unstructured(module, "weight_ih" if part == "layers.0" else "weight", amount=0.5)
    for _ in range(2):
        model(x, lengths, y)[0].sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.sign()
    found = model(x, lengths, y)[0]
    for part in PRUNED[name]:
        prune.remove(model.decoder.get_submodule(part), "weight_ih" if part == "layers.0" else "weight")
    torch.testing.assert_close(found, model(x, lengths, y)[0], rtol=0, atol=1e-6)
