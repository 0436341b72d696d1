"""Single steps of generation: packed weights, table, skipped output terms; against the full forward pass."""

import copy
import pickle

import pytest
import torch
from kernel_paths import PATHS
from pairs import same_bits
from small_language_model import PAD, make, tokens
from torch.nn.utils import prune

from fairseq_hmrnn.models import decoding
from fairseq_hmrnn.ops import cpu


def steps(model, x, state=None):
    """Logits of every step (B, T, V), and the incremental state."""
    state = {} if state is None else state
    with torch.no_grad():
        logits = [model.decoder(x[:, : t + 1], incremental_state=state)[0] for t in range(x.size(1))]
    return torch.cat(logits, dim=1), state


def kind(model, state):
    return type(model.decoder._steps(state))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("boundary", ["step", "soft"])
@pytest.mark.parametrize("normalization", ["layer", "none"])
@pytest.mark.parametrize("batch", [1, 5])
def test_packed_steps_equal_the_forward_pass(monkeypatch, batch, normalization, boundary, table, path):
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", path)
    if not table:
        monkeypatch.setattr(decoding, "TABLE_SYMBOLS", 0)
    model = make(boundary=boundary, normalization=normalization, top_boundary=True)
    x = tokens(batch, 40)
    full, extra = model(x)
    found, state = steps(model, x)
    assert kind(model, state) is {"python": decoding.PackedSteps, "compiled": decoding.CompiledSteps}[path]
    torch.testing.assert_close(found, full, rtol=0, atol=1e-11)
    if boundary == "step":
        share = extra["trace"].boundaries.mean((0, 1))
        assert ((share > 0.05) & (share < 0.95)).any(), share  # some steps COPY, some do not


def test_padding_waits():
    model, x = make(), tokens(3, 7)
    padded = torch.cat([torch.full((3, 2), PAD), x], dim=1)
    padded[0] = torch.cat([x[0, :2], torch.tensor([PAD, PAD]), x[0, 2:]])
    found, _ = steps(model, padded)
    torch.testing.assert_close(found[1:, 2:], steps(model, x)[0][1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0, 4:], model(x)[0][0, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [[2, 0, 0, 3], [1, 3], [3, 2, 1, 0, 0, 1], [0, 1, 2, 3]])
def test_reordering_in_place_shrinking_and_growing(order):
    model, x, order = make(), tokens(4, 9), torch.tensor(order)
    _, state = steps(model, x[:, :6])
    model.decoder.reorder_incremental_state_scripting(state, order)
    rest = []
    with torch.no_grad():
        for t in range(6, 9):
            rest.append(model.decoder(x[order, : t + 1], incremental_state=state)[0])
    torch.testing.assert_close(torch.cat(rest, 1), model(x[order])[0][:, 6:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_reordering_leaves_the_first_state_as_it_was(monkeypatch, path):
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", path)
    decoder = make().decoder
    state = decoder.hm_lstm.zero_state(2).apply(torch.rand_like)
    before = state.apply(torch.clone)
    with torch.no_grad():
        decoder.begin_generation(2, state).reorder(torch.tensor([1, 1]))
    assert same_bits((*state.h, *state.c, state.z), (*before.h, *before.c, before.z))


def test_symbols_of_32_bits_are_generated_with():
    model, x = make(), tokens(2, 3)
    assert same_bits(steps(model, x.int())[0], steps(model, x)[0])


@pytest.mark.parametrize("path", PATHS)
def test_generation_reads_pruned_weights_as_they_are_now(monkeypatch, path):
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", path)
    model, other, x = make(), make(boundary="step"), tokens(2, 5)
    for each in (model, other):
        prune.random_unstructured(each.decoder.output_projection, "weight", amount=0.5)
    with torch.no_grad():
        other.decoder.output_projection.weight_orig.mul_(1.5)
    model.load_state_dict(other.state_dict())
    expected = other(x)[0]
    torch.testing.assert_close(steps(model, x)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-12)


def test_every_generation_reads_the_weights_as_they_are_when_it_starts():
    model, x = make(), tokens(2, 5)
    before, _ = steps(model, x)
    other = make(boundary="step")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    for parameter, source in zip(model.parameters(), other.parameters()):
        parameter.data.copy_(source.data)  # as fairseq's optimizers write, unseen by _version
    after, _ = steps(model, x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, other(x)[0], rtol=0, atol=1e-12)
    model.load_state_dict(make().state_dict())
    torch.testing.assert_close(steps(model, x)[0], before, rtol=0, atol=0)
    twice, ensemble = {}, [model, other]
    for each in ensemble:  # one incremental state for two decoders
        steps(each, x, twice)
    assert len(twice) == 2


@pytest.mark.parametrize("path", PATHS)
def test_weights_are_shared_where_their_owner_says_that_they_stay(monkeypatch, path):
    monkeypatch.setattr(cpu.kernel, "DEFAULT_PATH", path)
    model, x = make(), tokens(2, 5)
    frozen = model.decoder.frozen_weights
    with torch.no_grad(), frozen.shared():
        shared = frozen.of(model.decoder)
        with frozen.shared():
            assert frozen.of(model.decoder) is shared is not None
        assert frozen.of(model.decoder) is shared
        with torch.enable_grad():
            assert frozen.of(model.decoder) is None  # a graph is asked for
    with torch.no_grad():
        model.decoder.output_projection.weight.mul_(2)
        assert frozen.of(model.decoder) is not shared
    torch.testing.assert_close(steps(model, x)[0], model(x)[0], rtol=0, atol=1e-12)


def test_a_copy_shares_no_weights_with_anybody():
    """Made while its original's weights stay, as within a search."""
    model, x = make(), tokens(2, 5)
    with torch.no_grad(), model.decoder.frozen_weights.shared():
        steps(model, x)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        steps(other, x)
        with torch.no_grad():
            other.decoder.output_projection.weight.mul_(2)
        torch.testing.assert_close(steps(other, x)[0], other(x)[0], rtol=0, atol=1e-12)


def test_where_packed_steps_cannot_run(monkeypatch):
    model, x = make(), tokens(2, 5)
    full = model(x)[0]
    state = {}
    logits = torch.cat([model.decoder(x[:, : t + 1], incremental_state=state)[0] for t in range(5)], dim=1)
    assert kind(model, state) is decoding.Steps  # a graph is asked for
    logits.sum().backward()
    assert model.decoder.hm_lstm.weight_recurrent[0].grad.abs().sum() > 0
    half = copy.deepcopy(model).bfloat16()
    found, state = steps(half, x)
    assert kind(half, state) is decoding.Steps and found.dtype == torch.bfloat16
    monkeypatch.setattr(model.decoder.hm_lstm, "backend", "reference")
    found, state = steps(model, x)
    assert kind(model, state) is decoding.Steps
    torch.testing.assert_close(found, full, rtol=0, atol=1e-12)


def test_hooks_of_the_embedding_run_in_every_way_to_compute():
    """With fewer symbols than the dictionary has and with more, one by one, and by packed weights for many calls."""
    model, (few, many) = make(), (tokens(2, 3), tokens(2, 40))
    assert few.numel() < len(model.decoder.dictionary) < many.numel()
    plain = model(many)[0]
    model.decoder.embed_tokens.register_forward_hook(lambda module, given, output: 2 * output)
    assert not torch.allclose(model(many)[0], plain)
    torch.testing.assert_close(model(many[:, :3])[0], model(many)[0][:, :3], rtol=0, atol=1e-11)
    for x in (few, many):
        torch.testing.assert_close(steps(model, x)[0], model(x)[0], rtol=0, atol=1e-11)
    model.eval()
    output, _ = decoding.recurrence(model.decoder)(many, model.decoder.hm_lstm.zero_state(2))
    torch.testing.assert_close(output.hidden, model.decoder.recur(many)[0].hidden, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [3, 40])
def test_symbols_may_be_of_32_bits(length):
    model, x = make(), tokens(2, length)
    assert same_bits([model(x.int())[0]], [model(x)[0]])


def test_a_generation_can_be_copied_and_goes_on_independently():
    model, x = make(), tokens(2, 8)
    _, state = steps(model, x[:, :4])
    branch = copy.deepcopy(state)
    with torch.no_grad():
        for t in range(4, 8):
            model.decoder(x.flip(1)[:, : t + 1], incremental_state=state)
            found = model.decoder(x[:, : t + 1], incremental_state=branch)[0]
    torch.testing.assert_close(found[:, 0], model(x)[0][:, 7], rtol=0, atol=1e-12)
