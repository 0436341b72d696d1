"""Random problems for the kernels, and the comparison with the reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fairseq_hmrnn.ops import HMLSTMState, LayerParameters, RecurrenceOptions, state_dtype
from fairseq_hmrnn.ops.cpu import loading
from fairseq_hmrnn.ops.types import num_rows

# Options of the cell that no table of problems varies: tests/ops/test_bfloat16.py does; a GPU takes 16-bit weights.
NOT_COMPARED = {"bfloat16_products"}


class Problem(NamedTuple):
    x: Tensor
    layers: Tuple[LayerParameters, ...]
    state: HMLSTMState
    options: RecurrenceOptions
    valid: Optional[Tensor]
    noise: Optional[Tensor]
    masks: Optional[Tuple[Tensor, ...]]

    def __repr__(self):  # hypothesis prints it
        sizes, layer_norm = [p.hidden_size for p in self.layers], self.layers[0].layer_norm
        given = {"padded": self.valid is not None, "masked": self.masks is not None, "layer_norm": layer_norm}
        return f"Problem({tuple(self.x.shape)}, {sizes}, {self.options}, {given}, {self.x.dtype})"

    def leaves(self):
        weights = [t for layer in self.layers for t in layer if t is not None]
        return [self.x, *self.state.h, *self.state.c, self.state.z, *weights]

    @property
    def outputs(self):
        """What each of the `tensors` of an output is, for `assert_close`."""
        layers = range(len(self.layers))
        hidden, (h, c) = [f"hidden[{i}]" for i in layers], ([f"state.{name}[{i}]" for i in layers] for name in "hc")
        return [f"output {name}" for name in (*hidden, "boundaries", "boundary_probs", *h, *c, "state.z")]

    @property
    def gradients(self):
        """What the gradient of each of the `leaves` is, for `assert_close`."""
        layers = [(i, layer._asdict().items()) for i, layer in enumerate(self.layers)]
        state = [f"state.{name}[{i}]" for name in "hc" for i, _ in layers]
        weights = [f"layers[{i}].{name}" for i, tensors in layers for name, t in tensors if t is not None]
        return [f"gradient of {name}" for name in ("x", *state, "state.z", *weights)]


def make_problem(
    seed, steps, batch, sizes, options, input_size=7, layer_norm=False, padded=False, masked=False, bias=0.0,
    dtype=torch.float64, detector_hidden=0,
) -> Problem:  # fmt: skip
    """bias: of the detectors; 6 opens and -6 closes nearly all boundaries. detector_hidden: units of their hidden
    layers."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, shift=0.0, dtype=dtype):
        return (torch.randn(*shape, generator=random, dtype=torch.float64) * scale + shift).to(dtype).requires_grad_()

    def uniform(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64).to(wide)

    wide = state_dtype(dtype)

    layers = []
    for index, size in enumerate(sizes):
        rows, below = num_rows(size), sizes[index - 1] if index else input_size
        above = sizes[index + 1] if index + 1 < len(sizes) else None
        columns = {"recurrent": size, "bottom_up": below, "top_down": above}  # drawn in this order
        weights = {name: normal(rows, c, scale=c**-0.5) if c else None for name, c in columns.items()}
        vector = normal(rows, scale=0.3)
        with torch.no_grad():
            vector[-1] += bias
        gains = {
            name: normal(rows, scale=0.2, shift=1.0) if layer_norm and weight is not None else None
            for name, weight in weights.items()
        }
        named = {f"weight_{name}": weight for name, weight in weights.items()}
        named.update((f"gain_{name}", gain) for name, gain in gains.items())
        if detector_hidden and (above or options.top_boundary):
            read = size + below + (above or 0)
            named["detector_hidden_weight"] = normal(detector_hidden, read, scale=read**-0.5)
            named["detector_hidden_bias"] = normal(detector_hidden, scale=0.3)
            named["detector_output"] = normal(detector_hidden)
        layers.append(LayerParameters(bias=vector, **named))
    z = (uniform(batch, len(sizes)) > 0.5).to(wide).requires_grad_()
    h, c = (tuple(normal(batch, s, dtype=wide) for s in sizes) for _ in range(2))
    state = HMLSTMState(h, c, z)
    x = normal(steps, batch, input_size)
    valid = uniform(steps, batch) > 0.3 if padded else None
    if padded:  # nothing there may reach a result
        with torch.no_grad():
            x[~valid] = torch.nan
    return Problem(
        x=x,
        layers=tuple(layers),
        state=state,
        options=options,
        valid=valid,
        noise=uniform(steps, batch, len(sizes)) if options.boundary == "bernoulli" else None,
        masks=tuple((uniform(batch, s) > 0.5).to(wide) * 2 for s in sizes) if masked else None,
    )


def hidden_is_shared(layer: LayerParameters, batch):
    """Whether threads of the compiled kernel that own units share the hidden layer of a cell's detector by its size,
    without layer normalisation: HIDDEN_SHARED_FROM of csrc/problem.h."""
    header = (Path(loading.FOLDER) / "csrc" / "problem.h").read_text(encoding="utf-8")
    (least,) = re.findall(r"HIDDEN_SHARED_FROM = (\d+);", header)
    return layer.detector_hidden is not None and batch * layer.detector_hidden.weight.numel() >= int(least)


def tensors(output):
    return [*output.hidden, output.boundaries, output.boundary_probs, *output.state.h, *output.state.c, output.state.z]


def run(function, problem: Problem, seed=0, **keywords):
    """All outputs, and the gradients of a random linear function of all of them."""
    output = tensors(function(*problem, **keywords))
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=random, dtype=torch.float64).to(t.dtype) for t in output]
    loss = sum((t * w).sum() for t, w in zip(output, weights))
    leaves = problem.leaves()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return output, [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves)]


def condition(function, problem: Problem) -> float:
    """How much a relative change of weights, input and state comes out multiplied in outputs and gradients, for a
    float64 problem: layer normalisation of a nearly zero h over few rows multiplies by up to 300 at every step, and
    no two orders of summation then agree."""
    random = torch.Generator().manual_seed(0)

    def change(t):
        noise = torch.randn(t.shape, generator=random, dtype=torch.float64)
        return (t * (1 + 1e-12 * noise)).detach().requires_grad_()

    changed = problem._replace(
        x=change(problem.x),
        layers=tuple(type(p)(*(None if t is None else change(t) for t in p)) for p in problem.layers),
        state=problem.state.apply(change)._replace(z=problem.state.z),
    )
    worst = 0.0
    for values, others in zip(run(function, problem), run(function, changed)):
        for a, b in zip(values, others):
            if a.numel():
                worst = max(worst, float((a - b).detach().abs().max()) / max(1.0, float(a.detach().abs().max())))
    return worst / 1e-12


def near_threshold(problem: Problem, output, margin: float) -> bool:
    """Whether some boundary is within `margin` of going the other way: rounding may then decide."""
    probs = output[len(problem.layers) + 1]
    if problem.options.boundary == "soft":
        return False
    threshold = 0.5 if problem.noise is None else problem.noise
    return bool(((probs - threshold).abs() < margin).any())


def differences(found, expected):
    """Of each tensor the largest difference, and the largest element, at least 1, that it is relative to."""
    found, expected = list(found), list(expected)
    assert len(found) == len(expected), "one has more tensors"
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        yield float((a - b).detach().abs().max()) if b.numel() else 0.0, scale


def assert_close(found, expected, tolerance, labels=None):
    """Every element to `tolerance`, relative to the largest of its tensor. labels: of the tensors, for the message:
    `outputs` or `gradients` of a problem."""
    labels = labels or [f"tensor {index}" for index in range(len(expected))]
    assert len(labels) == len(expected), "labels of other tensors"
    for label, (difference, scale) in zip(labels, differences(found, expected)):
        assert difference <= tolerance * scale, f"{label}: {difference} of {scale}"


def varied(options):
    """Names of the options of the cell that are not at their default in one of these RecurrenceOptions."""
    usual = RecurrenceOptions()
    return {name for each in options for name in each._fields if getattr(each, name) != getattr(usual, name)}


def assert_every_option_varies(names):
    """names: of the options of the cell that a file's problems vary. A kernel that ignores another passes its tests."""
    forgotten = set(RecurrenceOptions._fields) - set(names) - NOT_COMPARED
    assert not forgotten, (
        f"no problem varies {', '.join(sorted(forgotten))}, so that a kernel may ignore it: vary every option of "
        "RecurrenceOptions in OPTIONS of tests/ops/cpu/test_recurrence.py, in OPTIONS of "
        "tests/ops/cpu/test_generation.py and in PROBLEMS of tests/ops/triton_problems.py"
    )
