"""Exported steps beside the model; `fairseq-hmrnn export` itself: test_sample.py."""

import pytest
import torch
from pairs import pairs
from small_language_model import make, tokens

from fairseq_hmrnn.inference import export


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("detector_hidden", [0, 3])
def test_a_trace_of_a_step_is_the_step_for_any_batch(detector_hidden, tmp_path, recwarn):
    step, path = export.StepFunction(make(detector_hidden=detector_hidden).decoder), str(tmp_path / "step.ts")
    export.export(step, path, "torchscript")
    warned = [warning.filename for warning in recwarn if issubclass(warning.category, torch.jit.TracerWarning)]
    assert not [filename for filename in warned if "fairseq_hmrnn" in filename]
    read, symbols = export.load_step(path, "torchscript"), tokens(3, 5)
    states = [symbols.new_zeros(3, step.state_size, dtype=step.decoder.embed_tokens.weight.dtype)] * 2
    for column in symbols.unbind(1):
        results = [function(column, state) for function, state in zip((read, step), states)]
        for found, expected in pairs(*results):
            torch.testing.assert_close(found, expected)
        states = [result[2] for result in results]


def test_products_that_were_rounded_in_training_are_not_in_a_file(tmp_path):
    """Another order of sums would round otherwise, by more than what is written may differ from the model."""
    model = make(bfloat16_products=True).float()
    symbols = tokens(2, 6)
    rounded = model(symbols)[0]
    step, path = export.StepFunction(model.train().decoder), str(tmp_path / "step.ts")
    assert model.decoder.training and torch.equal(model(symbols)[0], rounded)  # the model stays as it is
    log_probs = step(symbols[:, 0], torch.zeros(2, step.state_size))[0]
    assert (log_probs - rounded[:, 0].log_softmax(1)).abs().max() > 1e-4
    export.export(step, path, "torchscript")
    assert export.largest_difference(export.load_step(path, "torchscript"), step) < 1e-5


def test_another_kind_is_named(tmp_path):
    step, path = export.StepFunction(make().decoder), tmp_path / "step.h5"
    for use in (lambda: export.export(step, str(path), "h5"), lambda: export.load_step(str(path), "h5")):
        with pytest.raises(ValueError, match="unknown kind 'h5' .*: choose from torchscript, torch.export, onnx"):
            use()
    assert not path.exists()
