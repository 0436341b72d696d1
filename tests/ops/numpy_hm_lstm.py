"""HM-LSTM spelled out a second time, in NumPy float64, one sample at a time with if and else: no masks, no products
with zero, no autograd. What the reference computes must equal this."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalized(product, gain):
    if gain is None:
        return product
    return (product - product.mean()) / np.sqrt(product.var() + 1e-2) * gain


def run_sample(x, layers, h, c, z, slope, nested, top_boundary, valid=None):
    """x (T, input_size) of one sample; layers: dicts of arrays U, W, V, b, gU, gW, gV (V: top-down or None) and D, d, v
    (the detector's hidden layer or None).

    h, c: lists of (H_l,), z: list of numbers. Returns hidden [T][L], boundaries (T, L), probs (T, L), h, c, z.
    """
    h, c, z = [v.copy() for v in h], [v.copy() for v in c], list(z)
    hidden, boundaries, probs = [], [], []
    num_layers = len(layers)
    for t in range(len(x)):
        if valid is not None and not valid[t]:
            hidden.append([v.copy() for v in h])
            boundaries.append([0.0] * num_layers)
            probs.append([0.0] * num_layers)
            continue
        old_h, below, z_below = [v.copy() for v in h], x[t], 1.0
        step_probs = []
        for index, layer in enumerate(layers):
            size = len(h[index])
            s = normalized(layer["U"] @ old_h[index], layer["gU"]) + layer["b"]
            if z[index] == 1 and layer["V"] is not None:
                s = s + normalized(layer["V"] @ old_h[index + 1], layer["gV"])
            if z_below == 1:
                s = s + normalized(layer["W"] @ below, layer["gW"])
            u = s[-1]
            if layer["D"] is not None:
                above = old_h[index + 1] if layer["V"] is not None else np.zeros(0)
                closed = [np.zeros_like(above), np.zeros_like(below)]
                read = [old_h[index], above if z[index] == 1 else closed[0], below if z_below == 1 else closed[1]]
                u = u + layer["v"] @ np.maximum(0, layer["D"] @ np.concatenate(read) + layer["d"])
            f, i, o = (sigmoid(s[k * size : (k + 1) * size]) for k in range(3))
            g = np.tanh(s[3 * size : 4 * size])
            if z[index] == 1:  # FLUSH
                c[index] = i * g
                h[index] = o * np.tanh(c[index])
            elif z_below == 1:  # UPDATE
                c[index] = f * c[index] + i * g
                h[index] = o * np.tanh(c[index])
            prob = min(1.0, max(0.0, (slope * u + 1) / 2))
            boundary = 1.0 if prob > 0.5 else 0.0
            if nested:
                prob, boundary = prob * z_below, boundary * z_below
            if index == num_layers - 1 and not top_boundary:
                prob, boundary = 0.0, 0.0
            z[index] = boundary
            step_probs.append(prob)
            below, z_below = h[index], boundary
        hidden.append([v.copy() for v in h])
        boundaries.append(list(z))
        probs.append(step_probs)
    return hidden, np.array(boundaries), np.array(probs), h, c, z
