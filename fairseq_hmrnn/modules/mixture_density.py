"""The density of a pen's next step: a mixture of bivariate Gaussians and a Bernoulli variable.

Graves 2013, "Generating Sequences With Recurrent Neural Networks" (arXiv 1308.0850), section 4.1.
"""

from __future__ import annotations

import math
from typing import Tuple, cast

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, MixtureSameFamily, Normal, constraints
from torch.nn.functional import softplus

# Standard deviations are at least e^-7, about 0.001, and at most e^7: a density on a component that shrinks onto one
# point would grow without bound.
LOG_SCALE = 7.0
CORRELATION = 6.0  # of |artanh rho|: rho up to 1 - 1.2e-5


class BivariateNormal(Distribution):
    """Normal distributions of two variables, as x and then y given x, both of them torch's `Normal`.

    mean: (..., 2). log_scale: (..., 2), of the standard deviations. slant: (...), artanh of the correlation rho; with
    it sqrt(1 - rho^2) = 1 / cosh(slant), which loses no digits where rho is near 1.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, mean: Tensor, log_scale: Tensor, slant: Tensor):
        self.mu, self.log_scale, self.slant = mean, log_scale, slant
        super().__init__(slant.shape, torch.Size([2]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def covariance_matrix(self) -> Tensor:
        """(..., 2, 2)."""
        scale, rho = self.log_scale.exp(), self.slant.tanh()
        covariance = rho * scale[..., 0] * scale[..., 1]
        rows = [scale[..., 0].square(), covariance, covariance, scale[..., 1].square()]
        return torch.stack(rows, dim=-1).unflatten(-1, (2, 2))

    @property
    def _log_narrowing(self) -> Tensor:
        """log sqrt(1 - rho^2) = -log cosh(slant)."""
        size = self.slant.abs()
        return math.log(2) - size - softplus(-2 * size)

    def _first(self) -> Normal:
        return Normal(self.mu[..., 0], self.log_scale[..., 0].exp(), validate_args=False)

    def _second(self, x: Tensor) -> Normal:
        """y, given x."""
        ratio = (self.log_scale[..., 1] - self.log_scale[..., 0]).exp()  # each by itself may be 0 in single precision
        mean = self.mu[..., 1] + self.slant.tanh() * ratio * (x - self.mu[..., 0])
        return Normal(mean, (self.log_scale[..., 1] + self._log_narrowing).exp(), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """value: (..., 2)."""
        x, y = value.unbind(-1)
        return self._first().log_prob(x) + self._second(x).log_prob(y)

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        x = self._first().sample(torch.Size(sample_shape))
        return torch.stack([x, self._second(x).sample()], dim=-1)

    def entropy(self) -> Tensor:
        """log (2 pi e) + log of both standard deviations + log sqrt(1 - rho^2)."""
        return math.log(2 * math.pi * math.e) + self.log_scale.sum(-1) + self._log_narrowing


class StepDistribution:
    """The distribution of a pen's next step (dx, dy, e), e being 1 where the stroke ends there.

    offset: a mixture over (...) of events (2,). pen: a Bernoulli variable (...), independent of the offset.
    """

    def __init__(self, offset: MixtureSameFamily, pen: Bernoulli):
        self.offset, self.pen = offset, pen

    def log_prob(self, step: Tensor) -> Tensor:
        """step: (..., 3). In nats; a density in dx and dy, a probability in e."""
        return self.offset.log_prob(step[..., :2]) + self.pen.log_prob(step[..., 2])

    def sample(self) -> Tensor:
        """(..., 3)."""
        return torch.cat([self.offset.sample(), self.pen.sample().unsqueeze(-1)], dim=-1)

    def entropy_bound(self) -> Tensor:
        """(...), an upper bound of the entropy in nats. That of a mixture has no closed form; this is the smaller of
        two bounds that have: sum_k w_k (H(N_k) - log w_k), exact where components lie apart, and the entropy of the
        Gaussian with the mixture's covariance, which no density of that covariance exceeds, exact where components
        are one. Huber et al. 2008, "On entropy approximation for Gaussian mixture random vectors", section 2. The
        pen's entropy is added, which is exact."""
        weights: Categorical = self.offset.mixture_distribution
        parts = cast(BivariateNormal, self.offset.component_distribution)
        apart = (weights.probs * parts.entropy()).sum(-1) + weights.entropy()
        mean = (weights.probs.unsqueeze(-1) * parts.mean).sum(-2)
        away = parts.mean - mean.unsqueeze(-2)
        spread = parts.covariance_matrix + away.unsqueeze(-1) * away.unsqueeze(-2)
        spread = (weights.probs[..., None, None] * spread).sum(-3)
        product = spread[..., 0, 0] * spread[..., 1, 1]
        narrowing = (1 - spread[..., 0, 1].square() / product).clamp(min=1e-6)  # rounding: it would fall to 0
        together = math.log(2 * math.pi * math.e) + 0.5 * (product.log() + narrowing.log())
        return torch.minimum(apart, together) + self.pen.entropy()


class MixtureDensity(nn.Module):
    """A linear layer to the parameters of a `StepDistribution`.

    input_size: of the features. components: M, of the mixture. The layer's 6 M + 1 rows: logits of the weights, M;
    means, 2 M; logarithms of the standard deviations, 2 M; artanh of the correlations, M; the logit of the pen.
    """

    def __init__(self, input_size: int, components: int):
        super().__init__()
        self.components = components
        self.linear = nn.Linear(input_size, 6 * components + 1)

    def forward(self, features: Tensor) -> Tensor:
        """features (..., input_size). Returns (..., 6 M + 1), which `distribution` takes."""
        return self.linear(features)

    def distribution(self, parameters: Tensor, bias: float = 0.0) -> StepDistribution:
        """parameters (..., 6 M + 1), in float32 at least. bias: Graves' b from 0, for samples that are tidier than what
        was written: standard deviations are divided by e^b, the logits of the weights multiplied by 1 + b."""
        weights, mean, log_scale, slant, pen = self._split(parameters)
        parts = BivariateNormal(
            mean, log_scale.clamp(-LOG_SCALE, LOG_SCALE) - bias, slant.clamp(-CORRELATION, CORRELATION)
        )
        choice = Categorical(logits=weights * (1 + bias), validate_args=False)
        offset = MixtureSameFamily(choice, parts, validate_args=False)
        return StepDistribution(offset, Bernoulli(logits=pen, validate_args=False))

    def _split(self, parameters: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        count = self.components
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        weights, mean, log_scale, slant, pen = parameters.split([count, 2 * count, 2 * count, count, 1], dim=-1)
        shape = (*parameters.shape[:-1], count, 2)
        return weights, mean.reshape(shape), log_scale.reshape(shape), slant, pen.squeeze(-1)
