"""Steps of generation by the compiled kernel, against the reference and the output module in torch."""

import pytest
import torch
import torch.nn.functional as F
from pairs import same_bits
from problems import assert_every_option_varies, hidden_is_shared, make_problem, varied

from fairseq_hmrnn.modules import LayerOutput
from fairseq_hmrnn.ops import HMLSTMState, RecurrenceOptions, cpu
from fairseq_hmrnn.ops.cpu.generation import Generation, OutputParameters, SymbolChoice
from fairseq_hmrnn.ops.reference import hm_lstm_reference

pytestmark = pytest.mark.skipif(cpu.kernel.compiled is None, reason="the compiled kernel was not built")
SYMBOLS, PAD, OUTPUT_SIZE = 11, 1, 9
OPTIONS = {
    "plain": RecurrenceOptions(slope=0.8),
    "nested": RecurrenceOptions(nested_boundaries=True),
    "top": RecurrenceOptions(slope=1.5, top_boundary=True),
    "soft": RecurrenceOptions(boundary="soft", top_boundary=True, nested_boundaries=True),
}


class Case:
    """A small model, its generation, and what the reference makes of tokens."""

    def __init__(
        self, batch, options, sizes=(8, 5, 7), table=True, layer_norm=False, dtype=torch.float64, bias=0.0,
        detector_hidden=0,
    ):  # fmt: skip
        self.options = options
        kind = {"layer_norm": layer_norm, "dtype": dtype, "bias": bias, "detector_hidden": detector_hidden}
        problem = make_problem(5, 1, batch, sizes, options, input_size=6, **kind)
        self.layers, self.state = problem.layers, problem.state.detach()
        torch.manual_seed(4)
        self.output = LayerOutput(sizes, OUTPUT_SIZE).to(dtype)
        self.embedding = torch.randn(SYMBOLS, 6, dtype=dtype)
        self.weight, self.bias = torch.randn(SYMBOLS, OUTPUT_SIZE, dtype=dtype), torch.randn(SYMBOLS, dtype=dtype)
        packed = cpu.PackedLayers(self.layers, "compiled")
        output = OutputParameters(self.output.layer_weights(), self.weight, self.bias)
        self.generation = Generation(packed, options, self.embedding, table, output, PAD)

    @torch.no_grad()
    def reference(self, tokens, state=None):
        """logits, features and the recurrence's output over tokens (T, B)."""
        valid = tokens.ne(PAD)
        output = hm_lstm_reference(self.embedding[tokens], self.layers, state or self.state, self.options, valid)
        features = self.output(output.hidden)
        return F.linear(features, self.weight, self.bias), features, output


def random_tokens(steps, batch, seed=2):
    tokens = torch.randint(2, SYMBOLS, (steps, batch), generator=torch.Generator().manual_seed(seed))
    tokens[steps // 3 : steps // 2, 0] = PAD
    return tokens


def test_every_option_is_compared_with_the_reference():
    of_gradients = {"detector_grad_scale"}
    assert_every_option_varies(varied(OPTIONS.values()) | of_gradients)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("table", [True, False], ids=["table", "embedding"])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("detector_hidden", [0, 5], ids=["row", "hidden"])
def test_steps_equal_the_reference(detector_hidden, batch, table, layer_norm, name):
    kind = {"table": table, "layer_norm": layer_norm, "detector_hidden": detector_hidden}
    case, tokens = Case(batch, OPTIONS[name], **kind), random_tokens(30, batch)
    logits, features, output = case.reference(tokens)
    reached = case.generation.begin(case.state)
    found = case.generation.run(reached, tokens)
    for a, b in (
        (found.logits, logits), (found.features, features), (found.boundaries, output.boundaries),
        (found.boundary_probs, output.boundary_probs), (reached.state.pack(), output.state.pack()),
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    if name != "soft":
        rates = output.boundaries.mean((0, 1))
        assert 0.05 < rates[0] < 0.95, rates  # layers above do COPY, and not always


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("detector_hidden", [0, 100], ids=["row", "hidden"])
def test_one_call_for_all_steps_or_one_for_each(detector_hidden, threads, layer_norm):
    """To the bit, at sizes at which threads share the work, that of hidden layers too. float32 comes near the
    reference."""
    options, tokens = RecurrenceOptions(slope=1.2), random_tokens(12, 5)
    kind = {"layer_norm": layer_norm, "dtype": torch.float32, "bias": -0.3, "detector_hidden": detector_hidden}
    case = Case(5, options, (300, 130, 200), **kind)
    assert all(hidden_is_shared(layer, batch=5) == bool(detector_hidden) for layer in case.layers[:-1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together, apart = case.generation.begin(case.state), case.generation.begin(case.state)
        found = case.generation.run(together, tokens)
        pieces = [case.generation.run(apart, piece) for piece in tokens.split(1)]
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[:-1], map(torch.cat, zip(*(piece[:-1] for piece in pieces))))
    assert torch.equal(together.state.pack(), apart.state.pack()) and torch.equal(together.terms, apart.terms)
    logits, _, output = case.reference(tokens)
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.logits[:2], logits[:2], rtol=0, atol=2e-5)
    torch.testing.assert_close(found.boundary_probs[:2], output.boundary_probs[:2], rtol=0, atol=2e-5)


def test_what_is_chosen_is_read_next():
    case, prompt = Case(4, OPTIONS["plain"]), random_tokens(3, 4)
    never = torch.zeros(SYMBOLS, dtype=torch.bool)
    never[[PAD, 5]] = True
    noise = -torch.empty(6, 4, SYMBOLS).exponential_(generator=torch.Generator().manual_seed(1)).log()
    reached = case.generation.begin(case.state)
    found = case.generation.sample(reached, prompt, 6, SymbolChoice(0.7, 0, 1.0, never, noise))
    assert found.chosen.shape == (6, 4) and found.logits.shape == (8, 4, SYMBOLS)
    assert not torch.isin(found.chosen, torch.tensor([PAD, 5])).any()
    logits = case.reference(torch.cat([prompt, found.chosen[:-1]]))[0]
    torch.testing.assert_close(found.logits, logits, rtol=0, atol=1e-11)
    expected = (logits[2:].float() / 0.7).masked_fill(never, -torch.inf) + noise
    assert torch.equal(found.chosen, expected.argmax(2))
    greedy = case.generation.sample(
        case.generation.begin(case.state), prompt, 1, SymbolChoice(1.0, 0, 1.0, never, None)
    )
    assert torch.equal(greedy.chosen, logits[2:3].masked_fill(never, -torch.inf).argmax(2))


def test_rows_can_be_reordered_dropped_and_doubled():
    """Before every step; compared with the reference over what each row has read."""
    case, tokens = Case(4, OPTIONS["top"], bias=-0.5), random_tokens(20, 6)
    random, reached, rows = torch.Generator().manual_seed(3), case.generation.begin(case.state), torch.arange(4)
    history = torch.empty(0, 4, dtype=torch.long)
    for t, row in enumerate(tokens):
        order = torch.randint(rows.numel(), (3 + t % 4,), generator=random)
        reached, rows = reached.reorder(order), rows[order]
        history = torch.cat([history[:, order], row[None, : order.numel()]])
        found = case.generation.run(reached, history[-1:])
        start = case.state.reorder(rows)
        logits, _, output = case.reference(history, start)
        torch.testing.assert_close(found.logits[0], logits[-1], rtol=0, atol=1e-11)
        torch.testing.assert_close(found.boundary_probs[0], output.boundary_probs[-1], rtol=0, atol=1e-11)


def test_a_start_is_not_touched_and_serves_again_after_a_refused_symbol():
    case, tokens = Case(2, OPTIONS["plain"]), random_tokens(5, 2)
    start = HMLSTMState.unpack(case.state.pack().clone(), case.state.hidden_sizes)
    first = case.generation.run(case.generation.begin(case.state), tokens)
    assert torch.equal(start.pack(), case.state.pack())
    with pytest.raises(IndexError, match="is not in a table of"):
        case.generation.run(case.generation.begin(case.state), tokens + SYMBOLS)
    assert torch.equal(start.pack(), case.state.pack())
    assert torch.equal(first.logits, case.generation.run(case.generation.begin(case.state), tokens).logits)


@torch.no_grad()
def test_what_does_not_fit_is_refused():
    """The kernel works through bare pointers: nothing of another shape may reach it."""
    case = Case(2, OPTIONS["plain"])
    reached, tokens = case.generation.begin(case.state), random_tokens(3, 3)
    with pytest.raises(ValueError, match=r"tokens \(3, 3\) do not fit: \(T, 2\)"):
        case.generation.run(reached, tokens)
    with pytest.raises(ValueError, match=r"a state of layers \[8, 5\] does not fit"):
        case.generation.begin(HMLSTMState(case.state.h[:2], case.state.c[:2], case.state.z[:, :2]))
    tokens = random_tokens(3, 2)
    with pytest.raises(RuntimeError, match="does not fit"):
        case.generation.run(reached._replace(terms=reached.terms[:, :, 1:].contiguous()), tokens)
    with pytest.raises(ValueError, match="never has 3 symbols"):
        case.generation.sample(reached, tokens, 1, SymbolChoice(1.0, 0, 1.0, torch.zeros(3, dtype=torch.bool), None))
    case.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not numbers"):
        case.generation.sample(
            reached, tokens, 1, SymbolChoice(1.0, 0, 1.0, torch.zeros(SYMBOLS, dtype=torch.bool), None)
        )


def test_a_hidden_layer_needs_a_detector():
    case = Case(2, OPTIONS["top"], detector_hidden=3)
    packed, output = cpu.PackedLayers(case.layers, "compiled"), case.generation.output
    with pytest.raises(ValueError, match="top layer has no detector"):
        Generation(packed, OPTIONS["plain"], case.embedding, True, output, PAD)


@torch.no_grad()
def test_autocast_changes_nothing():
    tokens, found = random_tokens(5, 2), []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            case = Case(2, OPTIONS["plain"], dtype=torch.float32)
            found.append(case.generation.run(case.generation.begin(case.state), tokens).logits)
    assert torch.equal(*found)
