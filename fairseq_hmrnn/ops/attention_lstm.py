"""An LSTM that attends to a memory and is fed what it attended to (arXiv 1508.04025, 3.3), over whole sequences, with a
backward pass written by hand.

A step waits for the one before, so its own products are small. Whatever does not wait is one large product before or
after the loop: the input's part of the gates, and the gradients of all weights and of the memory.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .cpu.kernel import multiply
from .differentiation import once_differentiable


class LayerSteps(NamedTuple):
    """The steps of one layer, as the backward pass reads them. inputs: what the layer reads below, but for x, beside h
    of the step before, (T, B, I + H). gates: (T, B, 4H). cells: after each step, and tanh: of these, (T, B, H)."""

    inputs: Tensor
    gates: Tensor
    cells: Tensor
    tanh: Tensor


def attention_lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    keys: Tensor,
    values: Tensor,
    padding_mask: Tensor,
    weights: Sequence[Tuple[Tensor, Tensor, Tensor]],
    output: Tensor,
    masks: Optional[Tuple[Tensor, Tensor]] = None,
) -> Tuple[Tensor, Tensor]:
    """At every step: the layers, from x and what was attended to last (0 at first) side by side; a = softmax(keys h);
    attended = tanh(sum over the memory of a values + output h), h being the top layer's.

    x: (T, B, E). h, c: (L, B, H), before the first step. keys, values: (B, M, H), the memory as attention compares and
    sums it. padding_mask: (B, M), True where there is no memory; every sample must have some. weights: of each layer
    (4H, inputs) for the input, E + H in the lowest layer and else H, (4H, H) for h, and the bias (4H); rows i, f, g, o,
    as in torch.nn.LSTMCell. output: (H, H). masks: of dropout, scaled: between layers (T, L - 1, B, H), and on what was
    attended to (T, B, H).

    Returns what was attended to, after dropout, (T, B, H), and the attention (T, B, M), which has no gradient.
    """
    flat = [tensor for layer in weights for tensor in layer]
    between, after = masks or (None, None)
    keys, values, output = keys.contiguous(), values.contiguous(), output.contiguous()
    return _AttentionLSTM.apply(x, h, c, keys, values, padding_mask, between, after, output, *flat)


class _AttentionLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, c, keys, values, padding_mask, between, after, output, *flat):
        layers = _layers(flat, x)
        keys_across, mask = keys.transpose(1, 2).contiguous(), padding_mask.unsqueeze(1)
        hidden, cells, fed = list(h.unbind(0)), list(c.unbind(0)), h.new_zeros(h.shape[1:])
        of_x = layers[0].of_x(x)
        steps = [layer.empty_steps(x) for layer in layers]
        tops, attended = (x.new_empty(*x.shape[:2], h.size(2)) for _ in range(2))  # tops: h of the top layer
        attention = x.new_empty(*x.shape[:2], keys.size(1))
        for t in range(x.size(0)):
            below = fed
            for index, (layer, saved) in enumerate(zip(layers, steps)):
                if index > 0:
                    below = hidden[index - 1] if between is None else hidden[index - 1] * between[t, index - 1]
                inputs = torch.cat([below, hidden[index]], dim=1, out=saved.inputs[t])
                gates = layer.gates(inputs, of_x[t] if index == 0 else layer.bias, saved.gates[t])
                hidden[index], cells[index] = _cell(gates, cells[index], saved.cells[t], saved.tanh[t])
            tops[t] = hidden[-1]
            scores = torch.bmm(tops[t].unsqueeze(1), keys_across).masked_fill_(mask, float("-inf"))
            attention[t] = scores.softmax(dim=2).squeeze(1)
            context = torch.bmm(attention[t].unsqueeze(1), values).squeeze(1)
            attended[t] = context.add_(multiply(tops[t], output)).tanh_()
            fed = attended[t] if after is None else attended[t] * after[t]
        ctx.mark_non_differentiable(attention)
        of_steps = [tensor for saved in steps for tensor in saved]
        inputs = x, h, c, keys, values, between, after, output
        ctx.save_for_backward(*inputs, attention, attended, tops, *of_steps, *flat)
        return attended if after is None else attended * after, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad, _):
        x, _, c, keys, values, between, after, output, attention, attended, tops, *rest = saved
        width = len(LayerSteps._fields)
        steps = [LayerSteps(*rest[i * width : (i + 1) * width]) for i in range(c.size(0))]
        layers = _layers(rest[len(steps) * width :], x)
        values_across = values.transpose(1, 2).contiguous()
        dh, dc = ([torch.zeros_like(c[0]) for _ in layers] for _ in range(2))
        dfed = torch.zeros_like(c[0])
        of_gates = [torch.empty_like(saved.gates) for saved in steps]
        dsums, dscores = torch.empty_like(attended), torch.empty_like(attention)
        for t in reversed(range(x.size(0))):
            dattended = grad[t] + dfed
            if after is not None:
                dattended = dattended * after[t]
            dsum = torch.mul(dattended, 1 - attended[t] * attended[t], out=dsums[t])
            dattention = torch.bmm(dsum.unsqueeze(1), values_across).squeeze(1)
            along = (dattention * attention[t]).sum(1, keepdim=True)
            torch.mul(attention[t], dattention - along, out=dscores[t])
            through_scores = torch.bmm(dscores[t].unsqueeze(1), keys).squeeze(1)
            dh[-1] = dh[-1] + through_scores + multiply(dsum, output, b_over_rows=True)
            for index in reversed(range(len(layers))):
                saved, dgates = steps[index], of_gates[index][t]
                before = saved.cells[t - 1] if t else c[index]
                dc[index] = _cell_backward(saved.gates[t], before, saved.tanh[t], dh[index], dc[index], dgates)
                below, dh[index] = layers[index].input_gradients(dgates)
                if index == 0:
                    dfed = below
                else:
                    dh[index - 1] = dh[index - 1] + (below if between is None else below * between[t, index - 1])
        dkeys = torch.bmm(dscores.permute(1, 2, 0), tops.transpose(0, 1))
        dvalues = torch.bmm(attention.permute(1, 2, 0), dsums.transpose(0, 1))
        doutput = multiply(dsums.flatten(0, 1), tops.flatten(0, 1), True, True)
        dx, dflat = None, []
        for index, layer in enumerate(layers):
            dgates = of_gates[index].flatten(0, 1)
            dflat += layer.weight_gradients(dgates, steps[index].inputs.flatten(0, 1), x if index == 0 else None)
            if index == 0 and ctx.needs_input_grad[0]:
                dx = multiply(dgates, layer.weight_x, b_over_rows=True).view_as(x)
        return (dx, torch.stack(dh), torch.stack(dc), dkeys, dvalues, None, None, None, doutput, *dflat)


class _Layer:
    """The weights of one layer. Of the lowest, the first `given` columns of its input's weight belong to x."""

    def __init__(self, weight_input: Tensor, weight_hidden: Tensor, bias: Tensor, given: int):
        self.weight_x = weight_input[:, :given]
        self.weight = torch.cat([weight_input[:, given:], weight_hidden], dim=1)  # of an input of `gates`
        self.bias, self.size = bias, weight_hidden.size(1)

    def empty_steps(self, x: Tensor) -> LayerSteps:
        """Room for those of x (T, B, E)."""
        widths = self.weight.size(1), 4 * self.size, self.size, self.size
        return LayerSteps(*(x.new_empty(*x.shape[:2], width) for width in widths))

    def of_x(self, x: Tensor) -> Tensor:
        """The part of the gates' sums that comes of x (T, B, E), and the bias: (T, B, 4H)."""
        return multiply(x.flatten(0, 1), self.weight_x).add_(self.bias).view(*x.shape[:2], 4 * self.size)

    def gates(self, inputs: Tensor, rest: Tensor, out: Tensor) -> Tensor:
        """i, f, g, o side by side, `out` (B, 4H). inputs: what the layer reads below, but for x, and h, (B, I + H).
        rest: of the sums."""
        sums, size = torch.add(multiply(inputs, self.weight), rest, out=out), self.size
        sums[:, : 2 * size].sigmoid_()
        sums[:, 2 * size : 3 * size].tanh_()
        sums[:, 3 * size :].sigmoid_()
        return sums

    def input_gradients(self, dgates: Tensor) -> Tuple[Tensor, Tensor]:
        """The gradients of what is below and of h, from those of the gates' sums."""
        dinputs = multiply(dgates, self.weight, b_over_rows=True)
        return dinputs[:, : -self.size], dinputs[:, -self.size :]

    def weight_gradients(self, dgates: Tensor, inputs: Tensor, x: Optional[Tensor]) -> List[Tensor]:
        """Gradients of weight_input, weight_hidden and bias, from all steps' (T * B, 4H) and (T * B, I + H)."""
        dweight = multiply(dgates, inputs, True, True)
        below, of_hidden = dweight[:, : -self.size], dweight[:, -self.size :]
        if x is not None:
            below = torch.cat([multiply(dgates, x.flatten(0, 1), True, True), below], dim=1)
        return [below, of_hidden, dgates.sum(0)]


def _layers(flat: Sequence[Tensor], x: Tensor) -> List[_Layer]:
    """From the weights of all layers, three each, and the lowest one's input (T, B, E)."""
    given = [x.size(2)] + [0] * (len(flat) // 3 - 1)
    return [_Layer(*weights) for weights in zip(flat[::3], flat[1::3], flat[2::3], given)]


def _cell(gates: Tensor, before: Tensor, cell: Tensor, tanh: Tensor) -> Tuple[Tensor, Tensor]:
    """h and c of one step, c written to `cell` and its tanh to `tanh`, (B, H)."""
    i, f, g, o = gates.chunk(4, dim=1)
    torch.mul(f, before, out=cell).addcmul_(i, g)
    return o * torch.tanh(cell, out=tanh), cell


def _cell_backward(gates: Tensor, before: Tensor, tanh: Tensor, dh: Tensor, dc: Tensor, dgates: Tensor) -> Tensor:
    """The gradient of the cell before (B, H), and that of the gates' sums, written to `dgates` (B, 4H), from those of h
    and of the cell after, whose tanh it was."""
    i, f, g, o = gates.chunk(4, dim=1)
    dc = dc + dh * o * (1 - tanh * tanh)
    torch.cat([dc * g, dc * before, dc * i, dh * tanh], dim=1, out=dgates)
    size = i.size(1)
    slope = gates * (1 - gates)
    slope[:, 2 * size : 3 * size] = 1 - g * g
    dgates.mul_(slope)
    return dc * f
