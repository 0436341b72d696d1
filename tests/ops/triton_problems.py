"""The problems of the Triton kernels' tests, and their comparison with the reference: on a GPU where there is one."""

from __future__ import annotations

import torch
import triton_interpreter  # noqa: F401  (makes it faster)
from problems import assert_close, make_problem, near_threshold, tensors

from fairseq_hmrnn.ops import RecurrenceOptions, state_dtype
from fairseq_hmrnn.ops.reference import hm_lstm_reference
from fairseq_hmrnn.ops.triton import hm_lstm_triton

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

# name: sizes, steps, batch, options, more arguments of make_problem. Together they hold every option, most of them
# in more than one company; every seed keeps its boundaries away from the threshold.
PROBLEMS = {
    "plain": ([5, 9, 6], 3, 2, dict(detector_grad_scale=0.0), dict()),
    "exact-padded-masked-nested": ([6, 4], 3, 2, dict(nested_boundaries=True), dict(padded=True, masked=True)),
    "exact-mostly-closed-padded": ([5, 3], 4, 2, dict(), dict(bias=0.3, padded=True)),
    "open": ([4, 17], 3, 2, dict(), dict(bias=6.0)),
    "norm-top-bernoulli-padded": (
        [5, 7], 3, 2, dict(detector_grad_scale=0.0, boundary="bernoulli", top_boundary=True),
        dict(layer_norm=True, padded=True),
    ),
    "norm-mostly-closed": ([5, 4], 5, 2, dict(detector_grad_scale=0.0), dict(layer_norm=True, bias=-1.5)),
    "norm-scaled-nested-masked": (
        [5, 4], 3, 2, dict(detector_grad_scale=0.3, nested_boundaries=True),
        dict(layer_norm=True, masked=True, bias=-0.5),
    ),
    "soft-top": ([5, 4], 3, 2, dict(boundary="soft", top_boundary=True), dict(padded=True)),
    "soft-norm": ([4, 5], 3, 2, dict(boundary="soft"), dict(layer_norm=True)),
    "one-layer-one-step": ([33], 1, 1, dict(top_boundary=True), dict()),
    "hidden-nested-masked": (
        [5, 9, 6], 3, 2, dict(detector_grad_scale=0.0, nested_boundaries=True), dict(masked=True, detector_hidden=3)
    ),
    "hidden-exact-mostly-closed-padded": ([5, 3], 4, 2, dict(), dict(bias=-0.3, padded=True, detector_hidden=3)),
    "hidden-norm-top-bernoulli-padded": (
        [5, 7], 3, 2, dict(detector_grad_scale=0.0, boundary="bernoulli", top_boundary=True),
        dict(layer_norm=True, padded=True, detector_hidden=3),
    ),
    "hidden-norm-scaled-nested-masked": (
        [5, 4], 3, 2, dict(detector_grad_scale=0.3, nested_boundaries=True),
        dict(layer_norm=True, masked=True, bias=-0.5, detector_hidden=3),
    ),
    "hidden-soft-top": (
        [5, 34], 3, 2, dict(boundary="soft", top_boundary=True), dict(padded=True, detector_hidden=18)
    ),
    "four-layers": ([1, 2, 20, 3], 2, 1, dict(boundary="bernoulli"), dict(masked=True)),
}  # fmt: skip


def problem_of(name, dtype=torch.float32, seed=1, **changes):
    sizes, steps, batch, options, more = PROBLEMS[name]
    options = RecurrenceOptions(**{"slope": 0.8, "detector_grad_scale": 1.0, **options})
    return make_problem(seed, steps, batch, sizes, options, **{**more, **changes}, dtype=dtype)


def moved(problem, dtype, device=DEVICE):
    """The same numbers in another dtype or place, as leaves."""

    def move(t, dtype=dtype):
        return None if t is None else t.detach().to(device, dtype).requires_grad_()

    wide = state_dtype(dtype)

    return problem._replace(
        x=move(problem.x),
        layers=tuple(type(p)(*map(move, p)) for p in problem.layers),
        state=problem.state.apply(lambda t: move(t, wide)),
        valid=None if problem.valid is None else problem.valid.to(device),
        noise=None if problem.noise is None else problem.noise.to(device, wide),
        masks=None if problem.masks is None else tuple(m.to(device, wide) for m in problem.masks),
    )


def expected_of(problem):
    """Outputs and gradients of the reference in float64, for these very numbers."""
    return tuple(map(cpu_doubles, run_here(moved(problem, torch.float64), hm_lstm_reference)))


def check(problem, tolerance, **keywords):
    """Outputs, gradients, and the outputs without gradients."""
    expected, expected_grads = expected_of(problem)
    assert not near_threshold(problem, expected, max(1e-4, tolerance / 4)), "take another seed"
    here = moved(problem, problem.x.dtype)
    found, grads = run_here(here, **keywords)
    assert_close(cpu_doubles(found), expected, tolerance, problem.outputs)
    assert_close(cpu_doubles(grads), expected_grads, tolerance, problem.gradients)
    with torch.no_grad():
        assert_close(cpu_doubles(tensors(hm_lstm_triton(*here, **keywords))), expected, tolerance, problem.outputs)
    return expected


def cpu_doubles(found):
    return [t.detach().cpu().double() for t in found]


def run_here(problem, function=hm_lstm_triton, seed=0, **keywords):
    """As problems.run, whose random weights are on CPU."""
    output = tensors(function(*problem, **keywords))
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=random, dtype=torch.float64).to(t) for t in output]
    grads = torch.autograd.grad(output, problem.leaves(), weights, allow_unused=True)
    return output, [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, problem.leaves())]
