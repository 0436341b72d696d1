"""The cell: eq. (1) to (6) of ops/README.md and their derivatives, for the units of one sample.

Nothing here knows where a value lies: `forward.py` and `backward.py` load, call and store. Gates are tuples of GATES
vectors, in the order of `ops.types.GATE_ORDER`; z_prev, z_below and what belongs to the detector are scalars. How
to change the cell: ops/README.md.
"""

import triton
import triton.language as tl

from ..types import NUM_GATES

GATES = tl.constexpr(NUM_GATES)
SAVED = tl.constexpr(NUM_GATES)  # vectors kept for the backward pass, beside h and c: those that `activate` returns
STEP = tl.constexpr(0)  # boundary modes, in the order of `ops.boundary.BOUNDARY_MODES`
BERNOULLI = tl.constexpr(1)


@triton.jit
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    y = (1 - e) / (1 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def pre_activation(recurrent, top_down, bottom_up, bias, z_prev, z_below):
    """Eq. (1) of one gate, or of the detector: a closed term is exactly zero, whatever is behind its boundary."""
    s = recurrent + bias + tl.where(z_prev != 0, z_prev * top_down, 0.0)
    return s + tl.where(z_below != 0, z_below * bottom_up, 0.0)


@triton.jit
def activate(s):
    """Eq. (2): f, i, o, g."""
    f, i, o, g = s
    return tl.sigmoid(f), tl.sigmoid(i), tl.sigmoid(o), tanh(g)


@triton.jit
def activate_backward(gates, d_gates):
    """Gradients of s from those of what `activate` returned."""
    f, i, o, g = gates
    d_f, d_i, d_o, d_g = d_gates
    return d_f * f * (1 - f), d_i * i * (1 - i), d_o * o * (1 - o), d_g * (1 - g * g)


@triton.jit
def advance(gates, h_prev, c_prev, z_prev, z_below):
    """Eq. (3) and (4): h and c."""
    f, i, o, g = gates
    update = (1 - z_prev) * z_below
    copy = (1 - z_prev) * (1 - z_below)
    c = update * (f * c_prev + i * g) + copy * c_prev + z_prev * (i * g)
    return copy * h_prev + (1 - copy) * (o * tanh(c)), c


@triton.jit
def advance_backward(gates, h_prev, c_prev, c, dh, dc, z_prev, z_below):
    """Eq. (2) to (4) backwards, from the gradients of h and c: those of s, h_prev, c_prev, and each unit's part of
    those of z_prev and z_below, which choose the operation and so look at the branches not taken."""
    f, i, o, g = gates
    tanh_c = tanh(c)
    update = (1 - z_prev) * z_below
    copy = (1 - z_prev) * (1 - z_below)
    dh_new = (1 - copy) * dh
    dc = dc + dh_new * o * (1 - tanh_c * tanh_c)
    d_ig = (update + z_prev) * dc
    ds = activate_backward(gates, (update * dc * c_prev, d_ig * g, dh_new * tanh_c, d_ig * i))
    # `step_backward` of cpu/csrc/cell.h has flushed + kept as one sum.
    other = dh * (h_prev - o * tanh_c)
    kept = dc * f * c_prev
    flushed = dc * (i * g - c_prev) - other
    dz_prev = (1 - z_below) * flushed - z_below * kept
    dz_below = (1 - z_prev) * (flushed + kept)
    return ds, copy * dh, dc * (update * f + copy), dz_prev, dz_below


@triton.jit
def decision(z_tilde, noise, MODE: tl.constexpr):
    """Eq. (6) before nesting; noise is 0.5 for "step"."""
    if MODE == STEP or MODE == BERNOULLI:
        return (z_tilde > noise).to(tl.float32)
    else:
        return z_tilde


@triton.jit
def hidden_term(products, bias, output):
    """Eq. (2a): what the detector's hidden layer adds to u, products being those of D. A NaN stays one here too."""
    s = products + bias
    return tl.sum(output * tl.where(s < 0, 0.0, s), 0)


@triton.jit
def detect(u, noise, z_below, slope, MODE: tl.constexpr, NESTED: tl.constexpr):
    """Eq. (5) and (6): z and z~. A NaN stays one, where clamping would hide it."""
    p = (slope * u + 1) / 2
    z_tilde = tl.where(p > 1, 1.0, tl.where(p < 0, 0.0, p))
    z = decision(z_tilde, noise, MODE)
    if NESTED:
        z_tilde = z_below * z_tilde
        z = z_below * z
    return z, z_tilde


@triton.jit
def detect_backward(u, noise, dz, dz_tilde, z_below, slope, MODE: tl.constexpr, NESTED: tl.constexpr):
    """Eq. (5) and (6) backwards, straight-through: the gradients of u, and of z_below where boundaries nest."""
    p = (slope * u + 1) / 2
    dz_below = 0.0
    if NESTED:
        z_tilde = tl.minimum(tl.maximum(p, 0.0), 1.0)
        dz_below = dz * decision(z_tilde, noise, MODE) + dz_tilde * z_tilde
        dz = dz * z_below
        dz_tilde = dz_tilde * z_below
    return tl.where((p >= 0) & (p <= 1), slope / 2 * (dz + dz_tilde), 0.0), dz_below
