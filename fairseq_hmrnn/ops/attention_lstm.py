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


class SavedStep(NamedTuple):
    """A step, as the backward pass reads it beside its attention and what it attended to. inputs: of each layer, beside
    h of the step before, (B, I + H). gates (B, 4H), the cell after the step and its tanh, (B, H), of each layer. hidden
    (B, H): of the top layer."""

    inputs: List[Tensor]
    gates: List[Tensor]
    cells: List[Tuple[Tensor, Tensor]]
    hidden: Tensor


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
    return _AttentionLSTM.apply(x, h, c, keys, values, padding_mask, between, after, output, *flat)


class _AttentionLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, c, keys, values, padding_mask, between, after, output, *flat):
        layers = [_Layer(*flat[i : i + 3], x.size(2) if i == 0 else 0) for i in range(0, len(flat), 3)]
        keys, values, output = keys.contiguous(), values.contiguous(), output.contiguous()
        keys_across, mask = keys.transpose(1, 2).contiguous(), padding_mask.unsqueeze(1)
        hidden, cells, fed = list(h.unbind(0)), list(c.unbind(0)), h.new_zeros(h.shape[1:])
        of_x = layers[0].of_x(x)
        steps, attentions, sums = [], [], []
        for t in range(x.size(0)):
            inputs, gates, after_step, below = [], [], [], fed
            for index, layer in enumerate(layers):
                if index > 0:
                    below = hidden[index - 1] if between is None else hidden[index - 1] * between[t, index - 1]
                inputs.append(torch.cat([below, hidden[index]], dim=1))
                gates.append(layer.gates(inputs[-1], of_x[t] if index == 0 else layer.bias))
                hidden[index], cells[index], tanh = _cell(gates[-1], cells[index])
                after_step.append((cells[index], tanh))
            top = hidden[-1]
            scores = torch.bmm(top.unsqueeze(1), keys_across).masked_fill_(mask, float("-inf"))
            attention = scores.softmax(dim=2)
            attended = torch.bmm(attention, values).squeeze(1).add_(multiply(top, output)).tanh_()
            fed = attended if after is None else attended * after[t]
            steps.append(SavedStep(inputs, gates, after_step, top))
            attentions.append(attention.squeeze(1))
            sums.append(attended)
        attention, attended = torch.stack(attentions), torch.stack(sums)
        ctx.mark_non_differentiable(attention)
        ctx.save_for_backward(x, c, keys, values, between, after, output, attention, attended, *flat)
        ctx.steps = steps  # none of them is an input or an output
        return attended if after is None else attended * after, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        x, c, keys, values, between, after, output, attention, attended, *flat = ctx.saved_tensors
        steps: List[SavedStep] = ctx.steps
        layers = [_Layer(*flat[i : i + 3], x.size(2) if i == 0 else 0) for i in range(0, len(flat), 3)]
        values_across = values.transpose(1, 2).contiguous()
        dh = [torch.zeros_like(steps[0].hidden) for _ in layers]
        dc = [torch.zeros_like(steps[0].hidden) for _ in layers]
        dfed = torch.zeros_like(steps[0].hidden)
        of_gates: List[List[Tensor]] = [[] for _ in layers]
        of_sums, of_scores = [], []
        for t in reversed(range(len(steps))):
            step = steps[t]
            dattended = grad[t] + dfed
            if after is not None:
                dattended = dattended * after[t]
            dsum = dattended * (1 - attended[t] * attended[t])
            dattention = torch.bmm(dsum.unsqueeze(1), values_across).squeeze(1)
            along = (dattention * attention[t]).sum(1, keepdim=True)
            dscores = attention[t] * (dattention - along)
            through_scores = torch.bmm(dscores.unsqueeze(1), keys).squeeze(1)
            dh[-1] = dh[-1] + through_scores + multiply(dsum, output, b_over_rows=True)
            of_sums.append(dsum)
            of_scores.append(dscores)
            for index in reversed(range(len(layers))):
                before = steps[t - 1].cells[index][0] if t else c[index]
                tanh = step.cells[index][1]
                dgates, dc[index] = _cell_backward(step.gates[index], before, tanh, dh[index], dc[index])
                of_gates[index].append(dgates)
                below, dh[index] = layers[index].input_gradients(dgates)
                if index == 0:
                    dfed = below
                else:
                    dh[index - 1] = dh[index - 1] + (below if between is None else below * between[t, index - 1])
        dsums, dscores = _in_order(of_sums), _in_order(of_scores)
        hidden = torch.stack([step.hidden for step in steps])
        dkeys = torch.bmm(dscores.permute(1, 2, 0), hidden.transpose(0, 1))
        dvalues = torch.bmm(attention.permute(1, 2, 0), dsums.transpose(0, 1))
        doutput = multiply(dsums.flatten(0, 1), hidden.flatten(0, 1), True, True)
        dx, dflat = None, []
        for index, layer in enumerate(layers):
            dgates = _in_order(of_gates[index]).flatten(0, 1)
            inputs = torch.cat([step.inputs[index] for step in steps])
            dflat += layer.weight_gradients(dgates, inputs, x if index == 0 else None)
            if index == 0 and ctx.needs_input_grad[0]:
                dx = multiply(dgates, layer.weight_x, b_over_rows=True).view_as(x)
        return (dx, torch.stack(dh), torch.stack(dc), dkeys, dvalues, None, None, None, doutput, *dflat)


class _Layer:
    """The weights of one layer. Of the lowest, the first `given` columns of its input's weight belong to x."""

    def __init__(self, weight_input: Tensor, weight_hidden: Tensor, bias: Tensor, given: int):
        self.weight_x = weight_input[:, :given]
        self.weight = torch.cat([weight_input[:, given:], weight_hidden], dim=1)  # of an input of `gates`
        self.bias, self.size = bias, weight_hidden.size(1)

    def of_x(self, x: Tensor) -> Tensor:
        """The part of the gates' sums that comes of x (T, B, E), and the bias: (T, B, 4H)."""
        return multiply(x.flatten(0, 1), self.weight_x).add_(self.bias).view(*x.shape[:2], -1)

    def gates(self, inputs: Tensor, rest: Tensor) -> Tensor:
        """i, f, g, o side by side, (B, 4H). inputs: what the layer reads below, but for x, and h, (B, I + H). rest: of
        the sums."""
        sums, size = multiply(inputs, self.weight).add_(rest), self.size
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


def _cell(gates: Tensor, before: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """h, c and tanh c of one step."""
    i, f, g, o = gates.chunk(4, dim=1)
    cell = (f * before).addcmul_(i, g)
    tanh = cell.tanh()
    return o * tanh, cell, tanh


def _cell_backward(gates: Tensor, before: Tensor, tanh: Tensor, dh: Tensor, dc: Tensor):
    """The gradients of the gates' sums (B, 4H) and of the cell before, from those of h and of the cell after, whose
    tanh it was."""
    i, f, g, o = gates.chunk(4, dim=1)
    dc = dc + dh * o * (1 - tanh * tanh)
    dgates = torch.cat([dc * g, dc * before, dc * i, dh * tanh], dim=1)
    size = i.size(1)
    slope = gates * (1 - gates)
    slope[:, 2 * size : 3 * size] = 1 - g * g
    return dgates.mul_(slope), dc * f


def _in_order(backwards: List[Tensor]) -> Tensor:
    return torch.stack(backwards[::-1])
