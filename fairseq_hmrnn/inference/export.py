"""One step of a language model as a function of tensors alone, for use without this package or fairseq."""

from __future__ import annotations

import copy
import inspect
import io
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import torch
from torch import Tensor, nn

from ..ops import HMLSTMState
from ..ops.reference import hm_lstm_reference

FORMATS = ("torchscript", "torch.export", "onnx")


class StepFunction(nn.Module):
    """(tokens (B,), state (B, S)) to (log-probabilities (B, V), boundaries (B, L), state (B, S)).

    The state is one tensor: h of all layers, c of all layers, then z; zeros before the first symbol, which is the
    begin symbol. Padding is a symbol like any other: feed samples of different lengths apart. It is computed by the
    reference, whose operations every exporter knows, and without the rounding of `--bfloat16-products`. Weights and
    slope are copies of the decoder's as it is now.
    """

    def __init__(self, decoder):
        super().__init__()
        self.decoder = copy.deepcopy(decoder).eval()
        for part in self.decoder.modules():
            if hasattr(part, "bfloat16_products"):
                part.bfloat16_products = False
        self.options = self.decoder.hm_lstm.options(self.decoder.slope_progress.slope)

    @property
    def state_size(self) -> int:
        return self.decoder.hm_lstm.zero_state(0).pack().size(1)

    def forward(self, tokens: Tensor, state: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        decoder, lstm = self.decoder, self.decoder.hm_lstm
        before = HMLSTMState.unpack(state, lstm.hidden_sizes)
        x = decoder.embed_without_dropout(tokens).unsqueeze(0)
        output = hm_lstm_reference(x, lstm.layers(), before, self.options)
        logits = decoder.predict(decoder.layer_output([h[0] for h in output.hidden]))
        return logits.log_softmax(1), output.boundaries[0], output.state.pack()


def _check_kind(kind: str) -> None:
    if kind not in FORMATS:
        raise ValueError(f"unknown kind {kind!r} of exported file: choose from {', '.join(FORMATS)}")


def _write(save: Callable[..., Any], program: Any, path: str) -> None:
    """By way of memory: torch's own writer ends the process where a device is full."""
    written = io.BytesIO()
    save(program, written)
    Path(path).write_bytes(written.getbuffer())


@torch.no_grad()
def export(step: StepFunction, path: str, kind: str) -> None:
    """Write the step to a file. kind: one of FORMATS; the batch size stays free.

    ValueError for another kind, RuntimeError where this torch, or a package that the format requires, is not there.
    """
    _check_kind(kind)
    dtype = step.decoder.hm_lstm.bias[0].dtype
    tokens, state = torch.zeros(2, dtype=torch.long), torch.zeros(2, step.state_size, dtype=dtype)
    if kind == "torchscript":
        _write(torch.jit.save, torch.jit.trace(step, (tokens, state), check_trace=False), path)
        return
    if kind == "torch.export":
        if not hasattr(torch, "export"):
            raise RuntimeError(f"torch {torch.__version__} has no torch.export: use --format torchscript")
        batch = torch.export.Dim("batch")
        program = torch.export.export(step, (tokens, state), dynamic_shapes=({0: batch}, {0: batch}))
        _write(torch.export.save, program, path)
        return
    given, returned = ["tokens", "state"], ["log_probs", "boundaries", "next_state"]
    free = {name: {0: "batch"} for name in given + returned}
    # Weights stand in the file itself; newer versions of torch would put them into another beside it.
    options: Dict[str, Any] = {"input_names": given, "output_names": returned, "dynamic_axes": free}
    if "external_data" in inspect.signature(torch.onnx.export).parameters:
        options["external_data"] = False
    try:
        torch.onnx.export(step, (tokens, state), path, opset_version=17, **options)
    except ImportError as error:
        raise RuntimeError(f"ONNX requires more packages: pip install onnx onnxscript ({error})") from error


def load_step(path: str, kind: str) -> Callable:
    """The file that `export` wrote, as its user would load it; errors as there."""
    _check_kind(kind)
    if kind == "torchscript":
        return torch.jit.load(path)
    if kind == "torch.export":
        return torch.export.load(path).module()
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError("the ONNX file cannot be checked without onnxruntime: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(str(path))

    def step(tokens, state):
        return tuple(map(torch.from_numpy, session.run(None, {"tokens": tokens.numpy(), "state": state.numpy()})))

    return step


@torch.no_grad()
def largest_difference(loaded: Callable, step: StepFunction, batch_size: int = 3, steps: int = 25) -> float:
    """Between the loaded function and the model on random symbols, over a batch of another size than it was traced
    with; NaN if any is."""
    generator, decoder = torch.Generator().manual_seed(0), step.decoder
    tokens = torch.randint(len(decoder.dictionary), (batch_size, steps), generator=generator)
    tokens[tokens == decoder.padding_idx] = 0
    features, extra = decoder.extract_features(tokens)
    logits = decoder.predict(features)
    state, differences = torch.zeros(batch_size, step.state_size, dtype=logits.dtype), []
    for t in range(steps):
        log_probs, boundaries, state = loaded(tokens[:, t], state)
        differences.append((log_probs - logits[:, t].log_softmax(1)).abs().max())
        differences.append((boundaries - extra["trace"].boundaries[:, t]).abs().max())
    return float(torch.stack(differences).max())  # unlike Python's max
