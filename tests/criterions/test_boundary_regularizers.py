"""Each regulariser against its formula, computed step by step with numpy and math, in float64, with padding."""

import math

import numpy as np
import pytest
import torch
from running import ROOT

from fairseq_hmrnn.criterions import boundary_regularizers as regularizers
from fairseq_hmrnn.criterions.boundary_regularizers import (
    NEEDS,
    PROBABILITY_MARGIN,
    REGULARIZERS,
    LayerSteps,
    Signals,
    detector_cross_entropy,
    later,
    regularizer,
    top_share,
)
from fairseq_hmrnn.criterions.boundary_terms import Term, needing, parse_regularizers, parse_terms
from fairseq_hmrnn.trace import BoundaryTrace

RATE = 0.3


def make_steps(seed=0, rows=4, columns=9, below=False):
    """One layer's steps, with padding at both ends of some rows, and gradients with respect to z and z~."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.rand(rows, columns, dtype=torch.float64, generator=generator)

    z_tilde, valid = (draw() * 1.4 - 0.2).clamp(0, 1), torch.ones(rows, columns, dtype=torch.bool)
    valid[0, 6:] = valid[1, :2] = valid[2, :] = False  # a row of padding alone is what a dummy batch has
    predicted = valid.clone()
    predicted[3, 4] = False
    z = (z_tilde > 0.5).double()
    z_below = (draw() > 0.5).double() if below else None
    signals = Signals(draw(), draw(), predicted)
    back = Signals(draw(), draw(), valid.clone())
    back.predicted[0, 5] = back.predicted[3, 8] = False
    return LayerSteps(
        z=z.requires_grad_(),
        z_tilde=z_tilde.requires_grad_(),
        valid=valid,
        rate=RATE,
        z_below=z_below,
        signals=signals,
        right_to_left=back,
        lexicon=high,
    )


def with_signals(steps, change):
    """The steps with `change` applied to the signals of both reading directions."""
    return steps._replace(signals=change(steps.signals), right_to_left=change(steps.right_to_left))


def cut(steps, *place):
    """Some rows and columns of steps without a layer below."""
    short = steps._replace(z=steps.z[place], z_tilde=steps.z_tilde[place], valid=steps.valid[place])
    return with_signals(short, lambda way: Signals._make(x[place] for x in way))


def high(values, known):
    """In place of a lexicon."""
    return known & (values > 1)


def valid_steps(steps):
    """Every valid (row, column)."""
    return [tuple(index) for index in steps.valid.nonzero().tolist()]


def mean_rate(steps):
    return np.mean([steps.z[index].item() for index in valid_steps(steps)])


def direct_rate(steps):
    return (mean_rate(steps) - RATE) ** 2


def direct_cost(steps):
    return mean_rate(steps)


def direct_hinge(steps):
    return max(0, abs(mean_rate(steps) - RATE) - RATE / 2) ** 2


def direct_binomial(steps):
    total = 0
    for row in range(len(steps.z)):
        n = int(steps.valid[row].sum())
        k = sum(int(steps.z[index]) for index in valid_steps(steps) if index[0] == row)
        total -= math.log(math.comb(n, k) * RATE**k * (1 - RATE) ** (n - k))
    return total / len(valid_steps(steps))


def direct_ratio(steps):
    share, mean = mean_rate(steps), np.mean([steps.z_tilde[index].item() for index in valid_steps(steps)])
    n = 1 / RATE
    return n / (n - 1) * ((n - 1) * share * mean + (1 - share) * (1 - mean))


def clipped(steps, index):
    return min(max(steps.z_tilde[index].item(), PROBABILITY_MARGIN), 1 - PROBABILITY_MARGIN)


def direct_entropy(steps):
    ps = [clipped(steps, index) for index in valid_steps(steps)]
    return np.mean([-p * math.log(p) - (1 - p) * math.log(1 - p) for p in ps])


def direct_listening(steps, values):
    """values: (row, column) -> the signal, where it is known."""
    candidates = [index for index in values if steps.z_below is None or steps.z_below[index] == 1]
    count = min(round(RATE * len(values)), len(candidates))
    chosen = sorted(candidates, key=lambda index: -values[index])[:count]
    losses = [-math.log(clipped(steps, i) if i in chosen else 1 - clipped(steps, i)) for i in values]
    return np.mean(losses)


def known(steps, signals=None):
    return [index for index in valid_steps(steps) if (signals or steps.signals).predicted[index]]


def direct_uncertainty(steps):
    return direct_listening(steps, {index: steps.signals.entropy[index].item() for index in known(steps)})


def direct_surprisal(steps):
    return direct_listening(steps, {index: steps.signals.surprisal[index].item() for index in known(steps)})


def direct_rise(steps):
    places, entropy = known(steps), steps.signals.entropy
    rises = {(r, c): (entropy[r, c] - entropy[r, c - 1]).item() for r, c in places if (r, c - 1) in places}
    return direct_listening(steps, rises)


def direct_bidirectional_values(steps):
    ahead, back = steps.signals, steps.right_to_left
    sums = {  # by the step before the place
        i: (ahead.entropy[i] + back.entropy[i] + (ahead.surprisal[i] + back.surprisal[i]) / 4).item()
        for i in known(steps)
        if i in known(steps, back)
    }
    values = {}
    for row, column in sums:
        before, behind = (row, column - 1), (row, column + 1)
        if before in sums and behind in sums:
            values[behind] = sums[row, column] - (sums[before] + sums[behind]) / 8
    return values


def direct_bidirectional(steps):
    return direct_listening(steps, direct_bidirectional_values(steps))


def direct_lexicon(steps):
    values = direct_bidirectional_values(steps)
    losses = [-math.log(clipped(steps, i) if value > 1 else 1 - clipped(steps, i)) for i, value in values.items()]
    return np.mean(losses)


def direct_unforeseen(steps):
    ahead, back = steps.signals, steps.right_to_left
    own = {(row, column + 1): ahead.surprisal[row, column] for row, column in known(steps)}
    places = [index for index in known(steps, back) if index in own]
    return direct_listening(steps, {index: (own[index] + back.surprisal[index]).item() for index in places})


@pytest.mark.parametrize("below", [False, True], ids=["first-layer", "above"])
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_equals_direct_computation(name, below):
    for seed in range(5):
        steps = make_steps(seed, below=below)
        value = REGULARIZERS[name](steps)
        assert value.item() == pytest.approx(globals()[f"direct_{name}"](steps), rel=1e-12, abs=1e-15), seed


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("name", ["uncertainty", "bidirectional", "lexicon"])
def test_a_delay_moves_what_is_heard(name, delay):
    """The detector is as if it had been taught the same at steps that came so much earlier."""
    steps = make_steps(2, columns=14)
    steps = steps._replace(valid=torch.ones_like(steps.valid))
    steps.signals.predicted[:, -4:] = False  # so that nothing is moved out of the row
    moved = delay - REGULARIZERS[name].delay
    earlier = steps._replace(z_tilde=steps.z_tilde.roll(-moved, 1))
    known = later(REGULARIZERS[name].signal(steps).known, moved)
    assert known.sum() > 9 and int(known.sum()) == int(REGULARIZERS[name].signal(steps).known.sum())
    value = REGULARIZERS[name](steps._replace(delay=delay))
    assert value.item() == pytest.approx(REGULARIZERS[name](earlier).item(), rel=1e-12)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_padding_changes_neither_value_nor_gradient(name):
    steps = make_steps(1)._replace(rate=0.1)  # far enough from the mean rate for `hinge`
    junk = torch.where(steps.valid, 0.0, 1.0).double()
    other = steps._replace(
        z=(steps.z.detach() * (1 - junk) + junk).requires_grad_(),
        z_tilde=(steps.z_tilde.detach() * (1 - junk) + 0.4 * junk).requires_grad_(),
    )
    other = with_signals(
        other, lambda way: way._replace(entropy=way.entropy + 9 * junk, surprisal=way.surprisal + 9 * junk)
    )
    first, second = REGULARIZERS[name](steps), REGULARIZERS[name](other)
    assert first.item() == second.item()
    gradients = torch.autograd.grad(second, (other.z, other.z_tilde), allow_unused=True)
    gradients = [gradient for gradient in gradients if gradient is not None]
    assert any(gradient.any() for gradient in gradients)
    assert all(not gradient[~steps.valid].any() for gradient in gradients)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_single_precision_is_enough(name):
    """As training computes it: the value is that of double precision but for rounding, and so is the gradient."""
    double = make_steps(1)._replace(rate=0.1)
    single = double._replace(z=double.z.detach().float(), z_tilde=double.z_tilde.detach().float())
    single = with_signals(single, lambda way: Signals(way.entropy.float(), way.surprisal.float(), way.predicted))
    found = []
    for steps in (double, single):
        leaves = steps.z.requires_grad_(), steps.z_tilde.requires_grad_()
        value = REGULARIZERS[name](steps)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        assert value.dtype == steps.z.dtype
        found.append([value, *(leaf * 0 if g is None else g for g, leaf in zip(gradients, leaves))])
    for value, expected in zip(found[1], found[0]):
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_steps_are_in_single_precision_or_better(dtype):
    """Of models in 16 bits too, whose boundaries a mean over a batch would round."""
    trace = BoundaryTrace(
        torch.ones(1, 3, 2, dtype=dtype), torch.ones(1, 3, 2, dtype=dtype), torch.ones(1, 3).bool(), 2
    )
    steps = LayerSteps.of(trace, 1, None)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {steps.z.dtype, steps.z_tilde.dtype, steps.z_below.dtype} == {wide}


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_a_batch_of_padding_alone_or_an_empty_one_is_no_number_to_fear(name):
    steps = make_steps(0)
    nothing = torch.zeros_like(steps.valid)
    padding = with_signals(steps._replace(valid=nothing), lambda way: way._replace(predicted=nothing))
    for batch in (padding, cut(steps, slice(0)), cut(steps, slice(4), slice(0))):
        value = REGULARIZERS[name](batch)
        value.backward()
        assert math.isfinite(value.item())


def given_targets(steps):
    """What those that listen learn, here from targets that do not depend on the batch."""
    return detector_cross_entropy(steps.z_tilde, steps.signals.entropy > 0.6, steps.valid)


def lexicon_steps(steps):
    """How many steps the mean of `lexicon` is over."""
    return (REGULARIZERS["bidirectional"].signal(steps).known & steps.valid).sum()


@pytest.mark.parametrize(
    "formula, averaged",
    [
        (REGULARIZERS["binomial"], None),
        (REGULARIZERS["entropy"], None),
        (REGULARIZERS["cost"], None),
        (given_targets, None),
        (REGULARIZERS["lexicon"], lexicon_steps),
    ],
    ids=["binomial", "entropy", "cost", "given-targets", "lexicon"],
)
def test_sums_add_up_over_batches_and_ranks(formula, averaged):
    """The criterion adds the mean times the number of symbols."""
    steps = make_steps(2)
    weight = averaged or (lambda steps: steps.valid.sum())
    parts = [cut(steps, rows) for rows in (slice(0, 1), slice(1, 4))]
    whole = formula(steps) * weight(steps)
    added = sum(formula(part) * weight(part) for part in parts)
    assert whole.item() > 0 and 0 < weight(parts[0]) < weight(parts[1])
    assert added.item() == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("moved", [0, 1, -1, 2, -2, 3, -3, 9, -9])
def test_a_batch_that_is_shorter_than_what_it_is_moved_by(length, moved):
    values = torch.arange(1.0, 2 * length + 1).view(2, length)
    expected = torch.zeros(2, length)
    for column in range(length):
        if 0 <= column - moved < length:
            expected[:, column] = values[:, column - moved]
    assert torch.equal(later(values, moved), expected)
    assert torch.equal(later(values > 0, moved), expected > 0)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_nothing_is_heard_in_a_batch_that_is_shorter_than_the_delay(name, columns):
    steps = make_steps(3, columns=10)
    steps = steps._replace(valid=torch.ones_like(steps.valid))
    short = cut(steps, slice(None), slice(columns))
    expected = REGULARIZERS[name](short).item() if REGULARIZERS[name].signal is None else 0
    assert [REGULARIZERS[name](short._replace(delay=delay)).item() for delay in (3, 9)] == [expected] * 2


@pytest.mark.parametrize("name", ["rate", "binomial", "hinge", "ratio"])
@pytest.mark.parametrize("mean, sign", [(0.0, -1), (1.0, 1)])
def test_pulls_the_rate_towards_its_target(name, mean, sign):
    z = torch.full((2, 40), mean, dtype=torch.float64, requires_grad=True)
    z_tilde = torch.full((2, 40), mean, dtype=torch.float64, requires_grad=True)
    REGULARIZERS[name](LayerSteps(z, z_tilde, torch.ones(2, 40, dtype=torch.bool), RATE)).backward()
    gradient = z_tilde.grad if name == "ratio" else z.grad
    assert (gradient * sign > 0).all()


def test_cost_is_the_same_for_every_boundary():
    """Padding costs nothing, and a price asks for no rate, in the option neither."""
    assert parse_terms("cost=0:.03:200", []) == [[Term("cost", 0, 0.03, 200)]]
    steps = make_steps()._replace(rate=None)
    regularizers.cost(steps).backward()
    assert torch.equal(steps.z.grad, steps.valid / steps.valid.sum().double()) and steps.z_tilde.grad is None


def test_hinge_is_silent_inside_its_band():
    z = torch.zeros(1, 10, dtype=torch.float64)
    z[0, :4] = 1
    z.requires_grad_()
    value = regularizers.hinge(LayerSteps(z, z, torch.ones(1, 10, dtype=torch.bool), RATE))
    value.backward()
    assert value.item() == 0 and not z.grad.any()


def test_ratio_is_one_and_smallest_at_its_target():
    z = (torch.arange(10) < 3).double()[None]
    even = torch.full((1, 10), RATE, dtype=torch.float64)
    assert regularizers.ratio(LayerSteps(z, even, z >= 0, RATE)).item() == pytest.approx(1)
    for count, mean in ((0, 0.0), (1, 0.05), (2, 0.25), (4, 0.35), (6, 0.5), (10, 1.0)):  # both on one side of it
        z, even = (torch.arange(10) < count).double()[None], torch.full((1, 10), mean, dtype=torch.float64)
        assert regularizers.ratio(LayerSteps(z, even, z >= 0, RATE)).item() > 1.01


@pytest.mark.parametrize("name", [name for name, found in REGULARIZERS.items() if "signals" in found.needs])
def test_no_gradient_is_asked_of_the_signal(name):
    steps = make_steps(3)
    entropy = steps.signals.entropy.requires_grad_()
    value = REGULARIZERS[name](steps)
    assert torch.autograd.grad(value, entropy, allow_unused=True) == (None,)


def test_top_share_counts_ties_and_too_few_candidates():
    values = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    every = torch.ones(1, 4, dtype=torch.bool)
    assert top_share(values, every, 1).tolist() == [[False, True, False, False]]
    assert top_share(values, every, 2).tolist() == [[False, True, True, True]]
    assert top_share(values, values < 2, 3).tolist() == [[True, False, False, False]]
    assert not top_share(values, every, 0).any() and not top_share(values, ~every, 2).any()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_reads_no_more_than_it_needs(name):
    """The criterion fills what is declared alone: for the rest there is None in training."""
    needs = REGULARIZERS[name].needs
    steps = make_steps(4)
    REGULARIZERS[name](steps._replace(**{need: None for need in NEEDS if need not in needs}))
    for need in needs:
        with pytest.raises((TypeError, AttributeError)):
            REGULARIZERS[name](steps._replace(**{need: None}))


def test_a_regularizer_is_one_function():
    try:

        @regularizer("rate", "signals")
        def calm(steps):
            return steps.z_tilde.mean()

        assert parse_regularizers("calm=.5") == [[Term("calm", 0.5, 0.5)]]
        assert needing("signals", parse_regularizers("entropy+calm")) == ["calm"]
        with pytest.raises(ValueError, match="calm in boundary-regularizers requires --boundary-rates"):
            parse_terms("calm", [])
        with pytest.raises(ValueError, match="choose from .*, calm or none"):
            parse_regularizers("clam")
        with pytest.raises(ValueError, match="there is a boundary regularizer 'calm' already"):
            regularizer()(calm)
    finally:
        del REGULARIZERS["calm"]
    with pytest.raises(ValueError, match=f"may need {', '.join(NEEDS)}, not rates"):
        regularizer("rates")


def test_the_documents_name_every_regularizer():
    text = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    assert [name for name in REGULARIZERS if f"`{name}`" not in text] == []
