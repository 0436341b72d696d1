"""A language model's decoder under torch.jit.trace, torch.export and torch.compile."""

import importlib
import io

import pytest
import torch
from small_texts import dictionary_of

from fairseq_hmrnn.models.config import HMLSTMLanguageModelConfig
from fairseq_hmrnn.models.decoder import HMLSTMDecoder
from fairseq_hmrnn.ops import cpu

entry = importlib.import_module("fairseq_hmrnn.ops.hm_lstm")  # the package gives its name to the function

pytestmark = pytest.mark.skipif(entry.captured is None, reason="this torch has no custom operators")


def make(**options):
    torch.manual_seed(0)
    dropout = {"dropout_input": 0.0, "dropout_output": 0.0, "dropout_recurrent": 0.0}
    options = {"embed_dim": 8, "hidden_sizes": "10,8,6", "output_dim": 12, **dropout, **options}
    return HMLSTMDecoder(HMLSTMLanguageModelConfig(**options), dictionary_of("abcdefgh"))


def tokens(decoder, rows=3, columns=9, padded=False):
    found = torch.randint(4, 12, (rows, columns), generator=torch.Generator().manual_seed(rows))
    if padded:
        found[0, columns // 2 :], found[1, :2] = decoder.padding_idx, decoder.padding_idx
    return found


def assert_close(found, expected):
    """Eager calls have the compiled kernel's large products, graphs torch's: sums are rounded in another order."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Logits(torch.nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens):
        return self.decoder(tokens)[0]


@pytest.mark.thorough
def test_traces_and_exports_read_padding_that_they_were_not_recorded_with():
    decoder = make().eval()
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    program = torch.export.export(decoder, (tokens(decoder),), dynamic_shapes=({0: batch, 1: steps},))
    file = io.BytesIO()
    torch.export.save(program, file)
    exported = torch.export.load(io.BytesIO(file.getvalue())).module()
    traced = torch.jit.trace(Logits(decoder), tokens(decoder))
    for x in (tokens(decoder), tokens(decoder, padded=True), tokens(decoder, 2, 5, padded=True)):
        logits, extra = decoder(x)
        assert_close(traced(x), logits)
        assert_close(exported(x)[0], logits)
        assert torch.equal(exported(x)[1]["trace"].boundaries, extra["trace"].boundaries)


@pytest.mark.thorough
def test_one_compiled_graph_serves_all_updates_of_an_annealed_slope():
    from torch._dynamo import testing

    torch._dynamo.reset()
    counter = testing.CompileCounterWithBackend("aot_eager")
    decoder = make(slope_per_update=0.5)
    compiled = torch.compile(decoder, backend=counter, fullgraph=True)
    x, seen = tokens(decoder, padded=True), []
    for update in range(5):
        decoder.slope_progress.set_num_updates(update)
        (logits, extra), (expected, plain) = compiled(x), decoder(x)
        assert_close(logits, expected)
        assert int(extra["trace"].num_updates) == update
        assert_close(extra["trace"].boundary_probs, plain["trace"].boundary_probs)
        ours, theirs = (torch.autograd.grad(y.pow(2).mean(), list(decoder.parameters())) for y in (logits, expected))
        assert_close(ours, theirs)
        seen.append(extra["trace"].boundary_probs)
    assert counter.frame_count == 1 and not torch.equal(seen[0], seen[-1])


def test_the_slope_of_a_loaded_checkpoint_is_that_of_the_graph():
    torch._dynamo.reset()
    decoder, other = make(slope_per_update=0.5), make(slope_per_update=0.5)
    decoder.slope_progress.set_num_updates(4)
    other.load_state_dict(decoder.state_dict())
    compiled, x = torch.compile(other, backend="aot_eager", fullgraph=True), tokens(decoder)
    assert_close(compiled(x)[0], decoder(x)[0])
    assert "_as_tensors" not in " ".join(decoder.state_dict())


@pytest.mark.thorough
@torch.no_grad()
def test_generation_under_a_recorder():
    torch._dynamo.reset()
    decoder = make().eval()
    compiled, x = torch.compile(decoder, backend="aot_eager"), tokens(decoder)
    state, other = {}, {}
    for column in range(1, 5):
        found = compiled(x[:, :column], incremental_state=state)[0]
        expected = decoder(x[:, :column], incremental_state=other)[0]
        assert_close(found, expected)
    begun = "a step with packed weights" if cpu.kernel.compiled is None else "a generation that has begun"
    with pytest.raises(RuntimeError, match=f"{begun} cannot be traced or exported"):
        torch.jit.trace(lambda x: decoder(x, incremental_state=other)[0], x)
