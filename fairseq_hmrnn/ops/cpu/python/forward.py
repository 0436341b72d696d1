"""The forward pass of the Python path, cell after cell."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ...boundary import decide, hard_sigmoid, operations
from ...detector import hidden_term, input_products
from ...types import BOTTOM_UP, NUM_PRODUCTS, RECURRENT, TOP_DOWN, LayerParameters, split_gates
from .problem import (
    WORTH_PACKING,
    Cell,
    Inputs,
    Normalised,
    Product,
    Saved,
    normalise,
    take,
)

# Gathering rows costs more than it saves when nearly all of them are needed.
DENSE_SHARE = 0.8

Packed = List[List[Optional[Product]]]  # [layer][product], None for one that is not there or not in the loop


def pack(layers: Sequence[LayerParameters], reorder: bool) -> Packed:
    """The products of all cells; layer 1's bottom-up product is taken for all steps at once, outside of the cells."""
    return [
        [
            None if weight is None or (index, product) == (0, BOTTOM_UP) else Product(weight, reorder)
            for product, weight in enumerate(layer.weights)
        ]
        for index, layer in enumerate(layers)
    ]


class Forward:
    """One forward pass, cell after cell.

    products: as `pack` makes them, packed here if None. projected: x is layer 1's bottom-up product, (T, B, 4H+1), and
    after it that of its detector's hidden layer, if it has one, (T, B, N).
    """

    def __init__(self, inputs: Inputs, training: bool, products: Optional[Packed] = None, projected: bool = False):
        self.inputs, self.training = inputs, training
        steps, batch = inputs.x.shape[:2]
        self.h, self.c, self.z = list(inputs.state.h), list(inputs.state.c), list(inputs.state.z.unbind(1))
        self.h_read = [self.masked(h, index) for index, h in enumerate(self.h)]
        self.hidden = [inputs.x.new_empty(steps, batch, h.size(1)) for h in self.h]
        self.boundaries = inputs.x.new_zeros(steps, batch, len(self.h))
        self.probs = torch.zeros_like(self.boundaries)
        self.all_rows = torch.arange(batch)
        self.run = [torch.full((batch,), -1) for _ in self.h]
        self.run_u = [inputs.x.new_zeros(batch) for _ in self.h]
        self.run_count = [0] * len(self.h)
        self.saved = Saved([], [[] for _ in self.h], [[] for _ in self.h])
        self.linear = pack(inputs.layers, steps * batch >= WORTH_PACKING) if products is None else products
        x = inputs.x.reshape(steps * batch, inputs.x.size(2))
        lowest = inputs.layers[0]
        rows = lowest.weight_bottom_up.size(0)
        p = x[:, :rows] if projected else F.linear(x, lowest.weight_bottom_up)
        self.projected = normalise(p, inputs.layer_norm)
        self.input_terms = x[:, rows:] if projected else input_products(lowest, x)

    def masked(self, h: Tensor, index: int) -> Tensor:
        return h if self.inputs.masks is None else h * self.inputs.masks[index]

    def run_all(self):
        for t in range(self.inputs.x.size(0)):
            self.saved.cells.append([])
            for index in range(len(self.h)):
                self.cell(t, index)
        results = (*self.hidden, *self.h, *self.c, self.boundaries, self.probs, torch.stack(self.z, 1))
        given = {id(tensor) for tensor in (*self.inputs.state.h, *self.inputs.state.c)}
        return tuple(result.clone() if id(result) in given else result for result in results)

    def kinds(self, t: int, index: int, z_prev: Tensor, z_below: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """Samples to compute in full, and samples of COPY steps to skip."""
        inputs = self.inputs
        valid = None if inputs.valid is None else inputs.valid[t]
        if index == 0 or not inputs.skip or (self.training and inputs.copy_has_gate_gradients):
            return (self.all_rows if valid is None else valid.nonzero().flatten()), None
        copy = (z_prev == 0) & (z_below == 0)
        active = ~copy if valid is None else ~copy & valid
        rows = active.nonzero().flatten()
        everyone = self.all_rows if valid is None else valid.nonzero().flatten()
        if rows.numel() > DENSE_SHARE * everyone.numel():
            return everyone, None
        return rows, (copy if valid is None else copy & valid).nonzero().flatten()

    def cell(self, t: int, index: int) -> None:
        inputs, nested = self.inputs, self.inputs.options.nested_boundaries
        z_prev, z_below = self.z[index], self.z[index - 1] if index else torch.ones_like(self.z[0])
        rows, idle = self.kinds(t, index, z_prev, z_below)
        u = self.run_u[index]
        if idle is not None and idle.numel():
            if self.training or (inputs.has_detector(index) and not nested):
                self.start_runs(index, idle)
            u = self.run_u[index]
        cell = self.update(t, index, rows, z_prev, z_below, u) if rows.numel() else None
        if cell is not None:
            u = cell.u
        if self.training:
            cell = cell or Cell(rows, (), None, None, [], z_prev, z_below, u, None, None)
            runs = None if idle is None else self.run[index][idle]
            self.saved.cells[t].append(cell._replace(idle=idle, runs=runs))
        self.hidden[index][t] = self.h[index]
        self.detect(t, index, u, z_below)

    def detect(self, t: int, index: int, u: Tensor, z_below: Tensor) -> None:
        inputs = self.inputs
        if inputs.has_detector(index):
            z_tilde = hard_sigmoid(u, inputs.options.slope)  # (5)
            z = decide(z_tilde, inputs.options.boundary, None if inputs.noise is None else inputs.noise[t, :, index])
            if inputs.options.nested_boundaries:
                z_tilde, z = z_below * z_tilde, z_below * z
        else:
            z = z_tilde = torch.zeros_like(u)
        old = self.z[index]
        if inputs.valid is not None:
            valid = inputs.valid[t]
            self.z[index] = torch.where(valid, z, old)
            zero = torch.zeros_like(z)
            z, z_tilde = torch.where(valid, z, zero), torch.where(valid, z_tilde, zero)
        else:
            self.z[index] = z
        self.boundaries[t, :, index] = z
        self.probs[t, :, index] = z_tilde

    def product(self, index: int, product: int, x: Tensor) -> Normalised:
        multiply = self.linear[index][product]
        assert multiply is not None  # cells ask for products that are there
        return normalise(multiply(x), self.inputs.layer_norm)

    def scaled(self, index: int, product: int, n: Tensor) -> Tensor:
        gain = self.inputs.gain(index, product)
        return n if gain is None else n * gain

    def start_runs(self, index: int, idle: Tensor) -> None:
        """The gates of a run of COPY steps, at its first; in no_grad its detector alone."""
        fresh = idle[self.run[index][idle] < 0]
        if not fresh.numel():
            return
        layer, h = self.inputs.layers[index], take(self.h_read[index], fresh)
        self.run[index][fresh] = torch.arange(self.run_count[index], self.run_count[index] + fresh.numel())
        self.run_count[index] += fresh.numel()
        self.run_u[index] = self.run_u[index].clone()
        nothing = h.new_zeros(fresh.numel())
        hidden = self.detector_term(0, index, fresh, nothing, nothing)
        if not self.training and not self.inputs.layer_norm:
            self.run_u[index][fresh] = h @ layer.weight_recurrent[-1] + layer.bias[-1] + hidden
            return
        recurrent = self.product(index, RECURRENT, h)
        f, i, o, g, u = split_gates(self.scaled(index, RECURRENT, recurrent.n) + layer.bias)
        self.run_u[index][fresh] = u + hidden
        if not self.training:
            return
        f, ig, o = f.sigmoid(), i.sigmoid() * g.tanh(), o.sigmoid()
        h, c = take(self.h[index], fresh), take(self.c[index], fresh)
        self.saved.coefficients[index].append(torch.stack([ig - c, ig + (f - 1) * c, h - o * c.tanh()], 1))
        if recurrent.rstd is not None:
            self.saved.copy_statistics[index].append(torch.cat([recurrent.rstd, recurrent.n[:, -1:]], 1))

    def detector_term(self, t: int, index: int, rows: Tensor, z_prev: Tensor, z_below: Tensor) -> Union[Tensor, float]:
        """What a hidden layer of the detector adds to u of some samples, eq. (2a). z_prev, z_below: of these, (N,)."""
        layer, batch = self.inputs.layers[index], self.all_rows.numel()
        hidden = layer.detector_hidden
        if hidden is None:
            return 0.0
        read = [take(self.h_read[index], rows)]
        if layer.weight_top_down is not None:
            read.append(z_prev.unsqueeze(1) * take(self.h[index + 1], rows))
        if index:
            read.append(z_below.unsqueeze(1) * take(self.h[index - 1], rows))
            return hidden_term(hidden, torch.cat(read, 1))
        assert self.input_terms is not None  # made for a hidden layer of layer 1
        own = slice(t * batch, (t + 1) * batch)
        columns = hidden.weight[:, : -layer.weight_bottom_up.size(1)]
        units = F.linear(torch.cat(read, 1), columns, hidden.bias) + take(self.input_terms[own], rows)
        return units.relu() @ hidden.output

    def update(self, t, index, rows, z_prev, z_below, run_u) -> Cell:
        """Equations (1) to (4) of some samples."""
        inputs, layer, batch = self.inputs, self.inputs.layers[index], self.all_rows.numel()
        products: List[Optional[Normalised]] = [None] * NUM_PRODUCTS
        products[RECURRENT] = found = self.product(index, RECURRENT, take(self.h_read[index], rows))
        s = self.scaled(index, RECURRENT, found.n) + layer.bias
        z_prev_rows, z_below_rows = take(z_prev, rows), take(z_below, rows)
        terms = [] if layer.weight_top_down is None else [(TOP_DOWN, z_prev_rows, self.h[index + 1])]
        terms += [(BOTTOM_UP, z_below_rows, self.h[index - 1])] if index else []
        for which, gate, source in terms:
            everything = not inputs.skip or (inputs.layer_norm and self.training)
            open_rows = torch.arange(rows.numel()) if everything else gate.nonzero().flatten()
            if not open_rows.numel():
                continue
            samples = rows if open_rows.numel() == rows.numel() else rows[open_rows]
            products[which] = found = self.product(index, which, take(source, samples))
            term = self.scaled(index, which, found.n) * take(gate, open_rows).unsqueeze(1)
            s = s + term if open_rows.numel() == rows.numel() else s.index_add(0, open_rows, term)
        if index == 0:
            n, rstd = self.projected
            own = slice(t * batch, (t + 1) * batch)
            found = Normalised(take(n[own], rows), None if rstd is None else take(rstd[own], rows))
            products[BOTTOM_UP] = found
            s = s + self.scaled(index, BOTTOM_UP, found.n)
        f, i, o, g, u = split_gates(s)
        u = u + self.detector_term(t, index, rows, z_prev_rows, z_below_rows)
        f, i, o, g = f.sigmoid(), i.sigmoid(), o.sigmoid(), g.tanh()  # (2)
        c_prev, h_prev = take(self.c[index], rows), take(self.h[index], rows)
        opened, copy, flush = operations(z_prev_rows.unsqueeze(1), z_below_rows.unsqueeze(1))
        ig = i * g
        c = opened * (f * c_prev + ig) + copy * c_prev + flush * ig  # (3)
        h = copy * h_prev + (1 - copy) * (o * c.tanh())  # (4)
        if rows.numel() == batch:
            self.h[index], self.c[index] = h, c
        else:
            self.h[index], self.c[index] = self.h[index].index_copy(0, rows, h), self.c[index].index_copy(0, rows, c)
            u = run_u.index_copy(0, rows, u)
        self.h_read[index] = self.masked(self.h[index], index)
        self.run[index][rows] = -1
        if not self.training:
            return Cell(rows, (), None, None, [], z_prev, z_below, u, None, None)  # u alone is read
        # The last c is a result of the call: what is kept must be another object, or both would keep each other alive.
        kept = c.detach()
        products = products if inputs.layer_norm else []
        return Cell(rows, (f, i, o, g), c_prev, kept, products, z_prev, z_below, u, None, None)
