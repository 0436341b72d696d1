"""The backward pass of the Python path, as derived in ops/README.md."""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from ...boundary import decide, operations
from ...detector import hidden_gradients, read_by
from ...types import BOTTOM_UP, RECURRENT, TOP_DOWN, DetectorHidden, LayerParameters
from .problem import PRODUCTS, WORTH_PACKING, Inputs, Product, Saved, take


class Backward:
    """One backward pass. Gradients of what a step leaves are in dh, dc, dz, and become those of what it found."""

    def __init__(self, inputs: Inputs, saved: Saved, hidden, grads):
        self.inputs, self.saved, self.hidden = inputs, saved, hidden
        n = len(hidden)
        self.grad_hidden, state = grads[:n], grads[n : 3 * n]
        self.grad_boundaries, self.grad_probs, dz = grads[3 * n :]
        like = (*inputs.state.h, *inputs.state.c)
        start = [torch.zeros_like(x) if g is None else g.clone() for g, x in zip(state, like)]
        self.dh, self.dc = start[:n], start[n:]
        self.dz = list((torch.zeros_like(inputs.state.z) if dz is None else dz.clone()).unbind(1))
        self.kappa = inputs.options.detector_grad_scale
        reorder = inputs.x.size(0) * inputs.x.size(1) >= WORTH_PACKING
        self.transposed = [[self.pack(index, p, reorder) for p in PRODUCTS] for index in range(n)]
        self.coefficients = [torch.cat(pieces) if pieces else None for pieces in saved.coefficients]
        self.copy_statistics = [torch.cat(pieces) if pieces else None for pieces in saved.copy_statistics]
        self.bias = [torch.zeros_like(layer.bias) for layer in inputs.layers]
        self.gains = [[None if (g := inputs.gain(i, p)) is None else torch.zeros_like(g) for p in PRODUCTS]
                      for i in range(n)]  # fmt: skip
        self.detector = inputs.x.new_zeros(
            n, len(PRODUCTS), *inputs.x.shape[:2]
        )  # gradient of each product's detector row
        has_hidden = any(layer.detector_hidden is not None for layer in inputs.layers)
        self.du = inputs.x.new_zeros(n, *inputs.x.shape[:2]) if has_hidden else None  # for hidden layers alone
        # Gradients of gate rows, flat row indices.
        self.gathered: List[List[Tuple[List[Tensor], List[Tensor]]]] = [[([], []) for _ in PRODUCTS] for _ in range(n)]

    def pack(self, index: int, product: int, reorder: bool) -> Optional[Product]:
        weight = self.inputs.weight(index, product)
        if weight is None or (index, product) == (0, BOTTOM_UP):
            return None
        scaled = torch.cat([weight[:-1], self.kappa * weight[-1:]])
        return Product(scaled.t().contiguous(), reorder)

    def run_all(self, need_x: bool, need_weights: bool):
        n = len(self.hidden)
        for t in range(self.inputs.x.size(0) - 1, -1, -1):
            from_above = None
            for index in range(n - 1, -1, -1):
                from_above = self.cell(t, index, from_above)
        weights: List[Optional[Tensor]] = [None] * (len(LayerParameters._fields) * n)
        if need_weights:
            weights = [grad for index in range(n) for grad in self.layer_gradients(index)]
        dx = self.input_gradient() if need_x else None
        return [dx, torch.stack(self.dz, 1), *self.dh, *self.dc, *weights]

    def previous(self, t: int, index: int) -> Tensor:
        return self.hidden[index][t - 1] if t else self.inputs.state.h[index]

    def cell(self, t: int, index: int, from_above: Optional[Tensor]) -> Tensor:
        """Returns the gradient of z_below, (B,)."""
        inputs, cell = self.inputs, self.saved.cells[t][index]
        valid = None if inputs.valid is None else inputs.valid[t]
        if self.grad_hidden[index] is not None:
            self.dh[index] = self.dh[index] + self.grad_hidden[index][t]
        du, dz_below = self.detector_gradient(t, index, cell, from_above, valid)
        dz_prev = torch.zeros_like(du)
        if cell.idle is not None and cell.idle.numel():
            self.idle(t, index, cell, du, dz_prev, dz_below)
        if cell.rows.numel():
            self.rows(t, index, cell, du, dz_prev, dz_below)
        self.dz[index] = dz_prev if valid is None else torch.where(valid, dz_prev, self.dz[index])
        return dz_below

    def detector_gradient(self, t, index, cell, from_above, valid):
        """Straight-through: du, and what a nested detector sends to z_below, both (B,) and 0 where frozen."""
        options, zero = self.inputs.options, torch.zeros_like(cell.z_prev)
        if not self.inputs.has_detector(index):
            return zero, torch.zeros_like(zero)
        dz = self.dz[index] if from_above is None else self.dz[index] + from_above
        if self.grad_boundaries is not None:
            dz = dz + self.grad_boundaries[t, :, index]
        dz_tilde = zero if self.grad_probs is None else self.grad_probs[t, :, index]
        p, dz_below = (options.slope * cell.u + 1) / 2, torch.zeros_like(zero)
        if options.nested_boundaries:
            z_tilde = p.clamp(0, 1)
            noise = None if self.inputs.noise is None else self.inputs.noise[t, :, index]
            dz_below = dz * decide(z_tilde, options.boundary, noise) + dz_tilde * z_tilde
            dz, dz_tilde = dz * cell.z_below, dz_tilde * cell.z_below
        du = torch.where((p >= 0) & (p <= 1), options.slope / 2 * (dz + dz_tilde), zero)
        if valid is not None:
            du, dz_below = torch.where(valid, du, zero), torch.where(valid, dz_below, zero)
        self.bias[index][-1] += du.sum()
        if self.du is not None:
            self.du[index, t] = du
        return du, dz_below

    def idle(self, t, index, cell, du, dz_prev, dz_below) -> None:
        """COPY steps not computed again: the boundaries feel the branches not taken, the detector its own weights."""
        idle, layer = cell.idle, self.inputs.layers[index]
        to_flush, to_update, to_new = self.coefficients[index][cell.runs].unbind(1)
        dh, dc = self.dh[index][idle], self.dc[index][idle]
        other = dh * to_new
        dz_prev[idle] += (dc * to_flush - other).sum(1)
        dz_below[idle] += (dc * to_update - other).sum(1)
        du_idle = du[idle]
        if self.inputs.layer_norm:  # and kappa = 0, else no row is idle
            rstd, n = self.copy_statistics[index][cell.runs].unbind(1)
            self.gains[index][RECURRENT][-1] += (du_idle * n).sum()
            self.detector[index, RECURRENT, t, idle] = rstd * layer.gain_recurrent[-1] * du_idle
            return
        self.detector[index, RECURRENT, t, idle] = du_idle
        if self.kappa == 0:
            return
        scaled = self.kappa * du_idle
        sent = torch.outer(scaled, layer.weight_recurrent[-1])
        self.dh[index] = self.dh[index].index_add(0, idle, self.masked(sent, index, idle))
        if layer.weight_top_down is not None:
            dz_prev[idle] += scaled * (self.previous(t, index + 1)[idle] @ layer.weight_top_down[-1])
        dz_below[idle] += scaled * (self.hidden[index - 1][t][idle] @ layer.weight_bottom_up[-1])

    def masked(self, h: Tensor, index: int, rows: Tensor) -> Tensor:
        return h if self.inputs.masks is None else h * take(self.inputs.masks[index], rows)

    def rows(self, t, index, cell, du, dz_prev, dz_below) -> None:
        """Samples computed in full."""
        rows, (f, i, o, g), c_prev = cell.rows, cell.gates, cell.c_prev
        z_prev, z_below, du = take(cell.z_prev, rows), take(cell.z_below, rows), take(du, rows)
        opened, copy, flush = operations(z_prev.unsqueeze(1), z_below.unsqueeze(1))
        dh, h_prev, tanh_c, ig = take(self.dh[index], rows), take(self.previous(t, index), rows), cell.c.tanh(), i * g
        dh_new = (1 - copy) * dh
        dc = take(self.dc[index], rows) + dh_new * o * (1 - tanh_c * tanh_c)
        dig = (opened + flush) * dc
        ds = torch.cat([opened * dc * c_prev * f * (1 - f), dig * g * i * (1 - i), dh_new * tanh_c * o * (1 - o),
                        dig * i * (1 - g * g), du.unsqueeze(1)], 1)  # fmt: skip
        other, kept = dh * (h_prev - o * tanh_c), dc * f * c_prev
        dz_prev_rows = (1 - z_below) * (dc * (ig - c_prev) - other).sum(1) - z_below * kept.sum(1)
        dz_below_rows = (1 - z_prev) * (dc * (ig - c_prev) - other + kept).sum(1)
        self.bias[index][:-1] += ds[:, :-1].sum(0)
        products = self.product_gradients(index, cell, ds, z_prev, z_below)
        self.put(self.dc, index, rows, dc * (opened * f + copy))
        self.put(self.dh, index, rows, copy * dh)
        for product, (dp, gate_gradient) in products.items():
            gate = None if product == RECURRENT else z_prev if product == TOP_DOWN else z_below
            dz_gate = dz_prev_rows if product == TOP_DOWN else dz_below_rows
            self.keep(t, index, product, rows, dp, gate)
            if gate_gradient is not None:
                dz_gate += gate_gradient
            if (index, product) != (0, BOTTOM_UP):
                sent = self.send(t, index, product, rows, dp, gate)
                if sent is not None:
                    dz_gate += sent
        dz_prev.index_add_(0, rows, dz_prev_rows)
        dz_below.index_add_(0, rows, dz_below_rows)

    def put(self, where: List[Tensor], index: int, rows: Tensor, value: Tensor) -> None:
        whole = rows.numel() == where[index].size(0)
        where[index] = value if whole else where[index].index_copy(0, rows, value)

    def product_gradients(self, index, cell, ds, z_prev, z_below):
        """Per product: its gradient (before its gate without layer norm), and what reaches the gate z directly (with
        layer norm)."""
        inputs = self.inputs
        exist = [p for p in PRODUCTS if inputs.weight(index, p) is not None]
        if not inputs.layer_norm:
            return {p: (ds, None) for p in exist}
        found = {}
        weights = torch.ones(ds.size(1), dtype=ds.dtype)
        weights[-1] = self.kappa
        for p in exist:
            n, rstd = cell.products[p]
            gate = None if p == RECURRENT else (z_prev if p == TOP_DOWN else z_below)
            through = ds * n * inputs.gain(index, p)
            gate_gradient = None if gate is None else (through * weights).sum(1)
            dn = ds if gate is None else ds * gate.unsqueeze(1)
            self.gains[index][p] += (dn * n).sum(0)
            gd = dn * inputs.gain(index, p)
            seen = gd * weights
            dp = rstd * (gd - seen.mean(1, keepdim=True) - n * (seen * n).mean(1, keepdim=True))
            found[p] = (dp, gate_gradient)
        return found

    def keep(self, t, index, product, samples, dp, gate) -> None:
        """For the weight's gradient: gate rows are gathered until the end, the detector's row is kept for all t."""
        batch, layer_norm = self.inputs.x.size(1), self.inputs.layer_norm
        du = dp[:, -1] if gate is None or layer_norm else dp[:, -1] * gate
        self.detector[index, product, t, samples] = du
        if gate is not None:
            open_rows = gate.nonzero().flatten()
            if open_rows.numel() < samples.numel():
                samples, dp, gate = samples[open_rows], dp[open_rows], gate[open_rows]
            if not layer_norm and (index, product) != (0, BOTTOM_UP):
                dp = dp * gate.unsqueeze(1)
        gradients, flat = self.gathered[index][product]
        gradients.append(dp[:, :-1])
        flat.append(samples + t * batch)

    def send(self, t, index, product, samples, dp, gate) -> Optional[Tensor]:
        """To the input of a product; returns what reaches its gate through it (without layer norm)."""
        v = self.transposed[index][product](dp)
        if product == RECURRENT:
            v, target = self.masked(v, index, samples), index
            sent = None
        else:
            target = index + 1 if product == TOP_DOWN else index - 1
            source = self.previous(t, target) if product == TOP_DOWN else self.hidden[target][t]
            sent = None if self.inputs.layer_norm else (v * take(source, samples)).sum(1)
            v = v if self.inputs.layer_norm else v * gate.unsqueeze(1)
        whole = samples.numel() == self.dh[target].size(0)
        self.dh[target] = self.dh[target] + v if whole else self.dh[target].index_add(0, samples, v)
        return sent

    def read(self, index: int, product: int) -> Tensor:
        """The input of a product at every step, (T B, columns)."""
        steps, batch = self.inputs.x.shape[:2]
        if product == BOTTOM_UP:
            source = self.hidden[index - 1] if index else self.inputs.x
            return source.reshape(steps * batch, source.size(2))
        target = index if product == RECURRENT else index + 1
        source = torch.cat([self.inputs.state.h[target].unsqueeze(0), self.hidden[target][:-1]])
        if product == RECURRENT and self.inputs.masks is not None:
            source = source * self.inputs.masks[index]
        return source.reshape(steps * batch, source.size(2))

    def layer_gradients(self, index: int) -> List[Optional[Tensor]]:
        """In the order of LayerParameters."""
        weights: List[Optional[Tensor]] = [None] * len(PRODUCTS)
        for product in PRODUCTS:
            weight = self.inputs.weight(index, product)
            if weight is None:
                continue
            grad, read = torch.zeros_like(weight), self.read(index, product)
            gradients, flat = self.gathered[index][product]
            if gradients:
                grad[:-1] = torch.cat(gradients).t() @ read.index_select(0, torch.cat(flat))
            grad[-1] = self.detector[index, product].flatten() @ read
            weights[product] = grad
        return [*weights, self.bias[index], *self.gains[index], *self.detector_hidden_gradients(index)]

    def detector_hidden_gradients(self, index: int) -> List[Optional[Tensor]]:
        inputs = self.inputs
        hidden = inputs.layers[index].detector_hidden
        if hidden is None or self.du is None:
            return [None] * len(DetectorHidden._fields)
        last = self.saved.cells[-1][1:]  # z after the last step, but of the top layer, whose reader is the next call
        after = [*(cell.z_below for cell in last), torch.zeros_like(self.dz[0])]
        before = [torch.stack([cell.z_prev for cell in cells], 1) for cells in self.saved.cells]
        z = torch.stack([*before, torch.stack(after, 1)])
        read = read_by(index, inputs.x, self.hidden, inputs.state.h, z, inputs.masks)
        return [*hidden_gradients(hidden, read, self.du[index].flatten())]

    def input_gradient(self) -> Tensor:
        x, weight = self.inputs.x, self.inputs.layers[0].weight_bottom_up
        grad = x.new_zeros(x.size(0) * x.size(1), x.size(2))
        gradients, flat = self.gathered[0][BOTTOM_UP]
        if gradients:
            grad.index_copy_(0, torch.cat(flat), torch.cat(gradients) @ weight[:-1])
        if self.kappa != 0:
            grad.addr_(self.kappa * self.detector[0, BOTTOM_UP].flatten(), weight[-1])
        return grad.view_as(x)
