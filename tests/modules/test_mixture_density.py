"""The density of a pen's next step against NumPy, torch's own distributions, and numbers at their extremes."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from fairseq_hmrnn.modules import MixtureDensity
from fairseq_hmrnn.modules.mixture_density import CORRELATION, LOG_SCALE, BivariateNormal


def numpy_log_prob(parameters, step, count):
    """log p of one step, by Graves' equations (24) and (25)."""
    weights, rest = np.split(parameters, [count])
    mean, log_scale = rest[: 2 * count].reshape(count, 2), rest[2 * count : 4 * count].reshape(count, 2)
    slant, pen = rest[4 * count : 5 * count], rest[5 * count]
    weights, scale, rho = np.exp(weights) / np.exp(weights).sum(), np.exp(log_scale), np.tanh(slant)
    x, y = ((step[:2] - mean) / scale).T
    z = x**2 + y**2 - 2 * rho * x * y
    density = np.exp(-z / (2 * (1 - rho**2))) / (2 * np.pi * scale[:, 0] * scale[:, 1] * np.sqrt(1 - rho**2))
    pen = 1 / (1 + np.exp(-pen))
    return np.log((weights * density).sum()) + np.log(pen if step[2] else 1 - pen)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_log_prob_is_that_of_numpy(count):
    torch.manual_seed(0)
    density = MixtureDensity(4, count).double()
    parameters = density(torch.randn(5, 7, 4).double() * 0.5)
    steps = torch.cat([torch.randn(5, 7, 2), torch.rand(5, 7, 1).round()], dim=-1).double()
    found = density.distribution(parameters).log_prob(steps)
    expected = [
        [numpy_log_prob(p.numpy(), s.numpy(), count) for p, s in zip(*rows)] for rows in zip(parameters.detach(), steps)
    ]
    assert found.shape == (5, 7)
    assert np.allclose(found.detach().numpy(), expected, rtol=1e-10)


def test_one_component_is_a_multivariate_normal():
    torch.manual_seed(1)
    density = MixtureDensity(1, 1)
    parameters = torch.randn(50, 7).double()
    found = density.distribution(parameters).offset
    mean, scale, rho = parameters[:, 1:3], parameters[:, 3:5].exp(), parameters[:, 5].tanh()
    covariance = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    covariance[:, [0, 1], [1, 0]] *= rho.unsqueeze(-1)
    expected = MultivariateNormal(mean, covariance)
    value = torch.randn(50, 2).double()
    assert torch.allclose(found.log_prob(value), expected.log_prob(value), rtol=1e-9)
    assert torch.allclose(found.component_distribution.covariance_matrix.squeeze(1), covariance)
    assert torch.allclose(found.component_distribution.entropy().squeeze(1), expected.entropy())
    torch.manual_seed(2)
    samples = found.component_distribution.sample((20000,)).squeeze(2)[:, 0]
    assert torch.allclose(samples.mean(0), mean[0], atol=0.05 * scale[0].max().item())
    assert torch.allclose(torch.from_numpy(np.cov(samples.T.numpy())), covariance[0], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_gradients_are_finite_at_the_extremes(dtype, size):
    """rho next to 1 and -1, standard deviations at both ends, weights that are 0, steps far away from every mean."""
    density = MixtureDensity(2, 3)
    for sign in (1.0, -1.0):
        parameters = (sign * size * torch.ones(4, 19)).to(dtype).requires_grad_()
        steps = torch.tensor([[0.0, 0, 0], [1e3, -1e3, 1], [-1e3, 1e3, 0], [size, size, 1]])
        distribution = density.distribution(parameters)
        loss = -distribution.log_prob(steps)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(parameters.grad).all()
        assert torch.isfinite(distribution.entropy_bound()).all()
        assert torch.isfinite(distribution.sample()).all()


def test_narrowing_loses_no_digits_near_a_correlation_of_one():
    normal = BivariateNormal(torch.zeros(2), torch.zeros(2), torch.tensor(CORRELATION))
    exact = 0.5 * math.log(1 - math.tanh(CORRELATION) ** 2)
    assert abs(normal._log_narrowing.item() - exact) < 1e-5
    assert LOG_SCALE > 0


def test_bias_narrows_the_density_and_sharpens_the_weights():
    density = MixtureDensity(2, 2)
    parameters = torch.tensor([[0.0, 1, 0, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0.3]])
    plain, tidy = density.distribution(parameters), density.distribution(parameters, bias=2.0)
    scales = [d.offset.component_distribution.covariance_matrix[0, 0, 0, 0].sqrt().item() for d in (plain, tidy)]
    assert scales[0] / scales[1] == pytest.approx(math.exp(2))
    odds = [d.offset.mixture_distribution.logits.diff().item() for d in (plain, tidy)]
    assert odds == pytest.approx([1.0, 3.0])
    assert torch.equal(plain.pen.probs, tidy.pen.probs)


def test_entropy_bound_is_above_the_entropy_and_meets_it_at_both_ends():
    torch.manual_seed(3)
    density = MixtureDensity(2, 4)
    parameters = torch.randn(30, 25).double()
    many = density.distribution(parameters.repeat(4000, 1))
    estimate = -many.log_prob(many.sample()).view(4000, 30).mean(0)
    bound = density.distribution(parameters).entropy_bound()
    assert (bound > estimate - 0.1).all()
    assert (bound - estimate).mean() < 0.7
    parameters[:, 4:12:2], parameters[:, 5:12:2], parameters[:, 12:20] = 0.1, 0.2, 0.3  # all components are one
    parameters[:, 20:24] = 0.5
    same = density.distribution(parameters)
    one = same.offset.component_distribution.entropy()[:, 0] + same.pen.entropy()
    assert torch.allclose(same.entropy_bound(), one)
    parameters[:, 4:12] = torch.arange(8).double() * 1e3  # far apart
    apart = density.distribution(parameters)
    exact = one + apart.offset.mixture_distribution.entropy()
    assert torch.allclose(apart.entropy_bound(), exact)


def test_samples_of_densities_too_narrow_for_single_precision_are_finite():
    log_scale = torch.full((5, 2), -110.0)
    narrow = BivariateNormal(torch.ones(5, 2), log_scale, torch.full((5,), 0.5))
    assert torch.equal(narrow.sample(), torch.ones(5, 2))
