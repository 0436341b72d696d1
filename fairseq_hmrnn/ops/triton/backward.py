"""Backward pass: one launch of `backward_cell` and one of `backward_products` per phase, phases in falling order.

The derivation is in ops/README.md. Cells pull: what a cell sent through its products lies in `sent_gates` until the
cells that it read come to their turn, so that no two programs write to one place and every sum has one order.
"""

import triton
import triton.language as tl

from .common import (
    BOTTOM_UP,
    RECURRENT,
    SPLIT,
    TOP_DOWN,
    add_product,
    choose_rows,
    decision,
    load_gates,
    place,
    row_of,
    store_gates,
    sum_gates,
    tanh,
)
from .forward import product_index, z_below_of


@triton.jit(do_not_specialize=["phase", "steps"])
def backward_products(
    weights, gradients, sent, sent_gates, padded,
    phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, SORT: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """U^T, V^T, W^T times the gradient of the gate rows, of every cell of a phase, each in SPLIT partial sums.

    Grid: blocks of columns of the weight, tiles of samples, parts of the sum for 3 products of every cell.
    """
    part = tl.program_id(2) % SPLIT
    product = tl.program_id(2) // SPLIT % 3
    layer, step = place(phase, tl.program_id(2) // (3 * SPLIT))
    target = tl.where(product == RECURRENT, layer, tl.where(product == TOP_DOWN, layer + 1, layer - 1))
    exists = (layer < LAYERS) & (step >= 0) & (step < steps) & (target >= 0) & (target < LAYERS)
    column = tl.program_id(0) * BLOCK_N
    if exists:
        if column < tl.load(padded + target):
            own = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
            rows = tl.arange(0, ROWS) if SORT else own
            flags = tl.load(sent + row_of(layer, step, steps, rows, rows_padded), mask=rows < rows_padded, other=0)
            need = (flags >> product) & 1
            if SORT:
                rows, used = choose_rows(need, ROWS, BLOCK_M, tl.program_id(1))
            else:
                used = need != 0
            if tl.max(used.to(tl.int32), 0) > 0:
                inner = tl.arange(0, BLOCK_K)
                outer = column + tl.arange(0, BLOCK_N)
                kind = layer + (product * LAYERS if NORM else 0)
                first = row_of(kind, step, steps, rows, rows_padded) * (4 * SIZE)
                a = gradients + first[:, None] + inner[None, :]
                matrix = weights + (layer * 3 + product).to(tl.int64) * (4 * SIZE * SIZE)
                w = matrix + inner[:, None] * SIZE + outer[None, :]
                total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
                height = tl.load(padded + layer)
                for k in range(part * height, (part + 1) * height, BLOCK_K):
                    total = add_product(total, tl.load(a + k), tl.load(w + k * SIZE), UPCAST)
                place_of = sent_row(layer, step, product, part, rows, rows_padded, LAYERS)
                tl.store(sent_gates + place_of[:, None] * SIZE + outer[None, :], total, mask=used[:, None])


@triton.jit
def sent_row(layer, step, product, part, row, rows_padded, LAYERS: tl.constexpr):
    """Index of a row in `sent_gates` (2, layers, 3, SPLIT, samples, .); two steps are enough, for a cell reads what
    the next step sent before the step before that overwrites it."""
    index = ((layer + step % 2 * LAYERS) * 3 + product) * SPLIT + part
    return index.to(tl.int64) * rows_padded + row


@triton.jit
def pulled(
    sent_gates, sent, detectors, detector_gradients, layer, step, product, there, b, steps, rows_padded, units, mask,
    kappa, LAYERS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """What cell (layer, step) sent through a product to the units of this cell; 0 where not `there`."""
    layer = tl.where(there, layer, 0)
    step = tl.where(there, step, 0)
    cell = row_of(layer, step, steps, b, rows_padded)
    flags = tl.load(sent + cell)
    mask = mask & there
    gates = mask & (((flags >> product) & 1) != 0)
    value = tl.zeros_like(units).to(tl.float32)
    for part in tl.static_range(SPLIT):
        row = sent_row(layer, step, product, part, b, rows_padded, LAYERS)
        value += tl.load(sent_gates + row * SIZE + units, mask=gates, other=0.0)
    kind = row_of(layer + product * LAYERS, step, steps, b, rows_padded)
    last = tl.where(there, tl.load(detector_gradients + kind), 0.0)
    w = tl.load(detectors + (layer * 3 + product) * SIZE + units, mask=mask, other=0.0)
    return value + kappa * last * w


@triton.jit
def through_norm(
    pointer, gains, gain_sums, gain_last_sum, found, last_gain, ds_f, ds_i, ds_o, ds_g, du, gate, computed, units,
    mask, stride, count, kappa,
):  # fmt: skip
    """Layer normalisation of one product backwards: the gradient of the product, its detector's row, and the sum over
    the rows that reaches the gate. Adds to this sample's sums of the gains' gradients."""
    mean = tl.load(found)
    rstd = tl.load(found + 1)
    f, i, o, g = load_gates(pointer, units, stride, mask & computed)
    f = tl.where(mask & computed, (f - mean) * rstd, 0.0)
    i = tl.where(mask & computed, (i - mean) * rstd, 0.0)
    o = tl.where(mask & computed, (o - mean) * rstd, 0.0)
    g = tl.where(mask & computed, (g - mean) * rstd, 0.0)
    last = (tl.load(found + 2) - mean) * rstd
    sum_f, sum_i, sum_o, sum_g = load_gates(gain_sums, units, stride, mask)
    store_gates(gain_sums, units, stride, mask, sum_f + gate * ds_f * f, sum_i + gate * ds_i * i,
                sum_o + gate * ds_o * o, sum_g + gate * ds_g * g)  # fmt: skip
    tl.store(gain_last_sum, tl.load(gain_last_sum) + gate * du * last)
    gain_f, gain_i, gain_o, gain_g = load_gates(gains, units, stride, mask)
    gd_f = ds_f * gain_f
    gd_i = ds_i * gain_i
    gd_o = ds_o * gain_o
    gd_g = ds_g * gain_g
    gd_last = du * last_gain
    to_gate = sum_gates(gd_f * f, gd_i * i, gd_o * o, gd_g * g) + kappa * gd_last * last
    mean_1 = gate * (sum_gates(gd_f, gd_i, gd_o, gd_g) + kappa * gd_last) / count
    mean_2 = gate * to_gate / count
    gd_f = tl.where(mask, rstd * (gate * gd_f - mean_1 - f * mean_2), 0.0)
    gd_i = tl.where(mask, rstd * (gate * gd_i - mean_1 - i * mean_2), 0.0)
    gd_o = tl.where(mask, rstd * (gate * gd_o - mean_1 - o * mean_2), 0.0)
    gd_g = tl.where(mask, rstd * (gate * gd_g - mean_1 - g * mean_2), 0.0)
    gd_last = rstd * (gate * gd_last - mean_1 - last * mean_2)
    return gd_f, gd_i, gd_o, gd_g, gd_last, to_gate


@triton.jit
def collect(
    h, masks, z, dh, dz, sent, sent_gates, detectors, detector_gradients, sizes, layer, step, b, steps, rows_padded,
    units, mask, kappa, LAYERS: tl.constexpr, SIZE: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What reaches h of this cell (dh, kept by the next step and sent by its three readers), and z: of FLUSH at the
    next step, and of the gate of the layer above, which with layer normalisation come another way."""
    has_next = step + 1 < steps
    has_above = layer + 1 < LAYERS
    has_below = layer > 0
    after = row_of(layer, step + 1, steps + 1, b, rows_padded)
    own = row_of(layer, 0, 1, b, rows_padded)
    total = tl.load(dh + own * SIZE + units, mask=mask, other=0.0)
    v = pulled(sent_gates, sent, detectors, detector_gradients, layer, step + 1, RECURRENT, has_next, b, steps,
               rows_padded, units, mask, kappa, LAYERS, SIZE)  # fmt: skip
    if MASKED:
        v = v * tl.load(masks + own * SIZE + units, mask=mask, other=0.0)
    total += v
    v = pulled(sent_gates, sent, detectors, detector_gradients, layer - 1, step + 1, TOP_DOWN,
               has_next & has_below, b, steps, rows_padded, units, mask, kappa, LAYERS, SIZE)  # fmt: skip
    if not NORM:
        below = tl.where(has_below, layer - 1, 0)
        v = v * tl.load(z + row_of(below, step + 1, steps + 1, b, rows_padded))
    total += v
    v = pulled(sent_gates, sent, detectors, detector_gradients, layer + 1, step, BOTTOM_UP,
               (step >= 0) & has_above, b, steps, rows_padded, units, mask, kappa, LAYERS, SIZE)  # fmt: skip
    dz_sum = tl.load(dz + own)
    dz_from_above = 0.0
    if not NORM:
        dz_from_above = tl.sum(v * tl.load(h + after * SIZE + units, mask=mask, other=0.0), 0)
        v = v * tl.load(z + after)
        above = tl.where(has_above, layer + 1, 0)
        mask_above = (units < tl.load(sizes + above)) & has_above
        v_above = pulled(sent_gates, sent, detectors, detector_gradients, layer, step + 1, TOP_DOWN,
                         has_next & has_above, b, steps, rows_padded, units, mask_above, kappa, LAYERS,
                         SIZE)  # fmt: skip
        h_above = tl.load(h + row_of(above, step + 1, steps + 1, b, rows_padded) * SIZE + units,
                          mask=mask_above, other=0.0)  # fmt: skip
        dz_sum += tl.sum(v_above * h_above, 0)
    return total + v, dz_sum, dz_from_above


@triton.jit
def detector_gradient(
    logit, noise, d_z, d_tilde, z_below, slope, has_detector, MODE: tl.constexpr, NESTED: tl.constexpr
):
    """Eq. (5) and (6) backwards, straight-through: the gradient of the logit, and of z below where boundaries nest."""
    p = (slope * logit + 1) / 2
    to_below = 0.0
    if NESTED:
        z_tilde = tl.minimum(tl.maximum(p, 0.0), 1.0)
        to_below = d_z * decision(z_tilde, noise, MODE) + d_tilde * z_tilde
        d_z = d_z * z_below
        d_tilde = d_tilde * z_below
    du = tl.where(has_detector & (p >= 0) & (p <= 1), slope / 2 * (d_z + d_tilde), 0.0)
    return du, tl.where(has_detector, to_below, 0.0)


@triton.jit
def through_cell(
    h, c, gates, dh, dc, total, z_prev, z_below, here, active, before, after, own, units, mask, stride,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Eq. (2) to (4) backwards: the gradients of the gate rows, of z_prev (FLUSH) and of z_below (UPDATE). Leaves in
    dc and dh what goes on to the step before."""
    f, i, o, g = load_gates(gates + after * (4 * SIZE), units, stride, mask)
    h_prev = tl.load(h + before * SIZE + units, mask=mask, other=0.0)
    c_prev = tl.load(c + before * SIZE + units, mask=mask, other=0.0)
    tanh_c = tanh(tl.load(c + after * SIZE + units, mask=mask, other=0.0))
    dc_kept = tl.load(dc + own * SIZE + units, mask=mask, other=0.0)
    update = (1 - z_prev) * z_below
    copy = (1 - z_prev) * (1 - z_below)
    dh_new = (1 - copy) * total
    dc_all = dc_kept + dh_new * o * (1 - tanh_c * tanh_c)
    d_ig = (update + z_prev) * dc_all
    ds_f = tl.where(active, update * dc_all * c_prev * f * (1 - f), 0.0)
    ds_i = tl.where(active, d_ig * g * i * (1 - i), 0.0)
    ds_o = tl.where(active, dh_new * tanh_c * o * (1 - o), 0.0)
    ds_g = tl.where(active, d_ig * i * (1 - g * g), 0.0)
    other = total * (h_prev - o * tanh_c)
    kept = dc_all * f * c_prev
    d_flush = (1 - z_below) * tl.sum(dc_all * (i * g - c_prev) - other, 0) - z_below * tl.sum(kept, 0)
    d_open = (1 - z_prev) * tl.sum(dc_all * (i * g - c_prev) - other + kept, 0)
    tl.store(dc + own * SIZE + units, tl.where(here, dc_all * (update * f + copy), dc_kept), mask=mask)
    tl.store(dh + own * SIZE + units, tl.where(here, copy * total, total), mask=mask)
    return ds_f, ds_i, ds_o, ds_g, d_flush, d_open


@triton.jit
def through_products(
    products, projected, statistics, gains, gains_last, gradients, detector_gradients, gain_sums, gain_last_sums,
    ds_f, ds_i, ds_o, ds_g, du, z_prev, z_below, here, active, layer, step, after, b, steps, rows_padded, units, mask,
    stride, count, kappa,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """With layer normalisation: stores the gradients of the three products; returns those that reach their gates
    z_prev and z_below, and the flags of the products that send something."""
    to_flush = 0.0
    to_open = 0.0
    for product in tl.static_range(3):
        gate = 1.0 if product == RECURRENT else (z_prev if product == TOP_DOWN else z_below)
        there = layer + 1 < LAYERS if product == TOP_DOWN else layer >= 0
        row = product_index(layer, product, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
        pointer = products + row * (4 * SIZE)
        if product == BOTTOM_UP:
            if layer == 0:
                pointer = projected + (step.to(tl.int64) * rows_padded + b) * (4 * SIZE)
        vector = layer * 3 + product
        sums = row_of(vector, 0, 1, b, rows_padded)
        wanted = there & (active | (here & FULL))
        d_f, d_i, d_o, d_g, d_last, to_gate = through_norm(
            pointer, gains + vector * (4 * SIZE), gain_sums + sums * (4 * SIZE), gain_last_sums + sums,
            statistics + after * 9 + product * 3, tl.load(gains_last + vector), ds_f, ds_i, ds_o, ds_g,
            du, gate, wanted, units, mask, stride, count, kappa,
        )  # fmt: skip
        to_gate = tl.where(wanted, to_gate, 0.0)
        if product == TOP_DOWN:
            to_flush += to_gate
        if product == BOTTOM_UP:
            to_open += to_gate
        kind = row_of(layer + product * LAYERS, step, steps, b, rows_padded)
        store_gates(
            gradients + kind * (4 * SIZE), units, stride, mask, tl.where(wanted, d_f, 0.0),
            tl.where(wanted, d_i, 0.0), tl.where(wanted, d_o, 0.0), tl.where(wanted, d_g, 0.0),
        )  # fmt: skip
        tl.store(detector_gradients + kind, tl.where(here & there, d_last, 0.0))
    flags = (active | (here & FULL)).to(tl.int32) + 2 * (active & (z_prev != 0)).to(tl.int32)
    return to_flush, to_open, flags + 4 * (active & (z_below != 0)).to(tl.int32)


@triton.jit(do_not_specialize=["phase", "steps"])
def backward_cell(
    products, projected, h, masks, c, z, u, gates, statistics, valid, noise, detectors, gains, gains_last,
    grad_hidden, grad_boundaries, grad_probs, dh, dc, dz, dz_below, sent, sent_gates, gradients, detector_gradients,
    bias_sums, bias_last_sums, gain_sums, gain_last_sums, sizes, padded,
    scalars, phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr,
    FULL: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr, TOP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of one sample and one cell, down to those of its products. Grid: samples, cells of the phase.

    Step -1 is the state before the first step: there the gradients are only collected.
    """
    b = tl.program_id(0)
    layer, step = place(phase, tl.program_id(1))
    if (layer < LAYERS) & (step >= -1) & (step < steps):
        kappa = tl.load(scalars + 1)
        size = tl.load(sizes + layer)
        stride = tl.load(padded + layer)
        units = tl.arange(0, BLOCK)
        mask = units < size
        has_above = layer + 1 < LAYERS
        after = row_of(layer, step + 1, steps + 1, b, rows_padded)
        own = row_of(layer, 0, 1, b, rows_padded)
        total, dz_sum, dz_from_above = collect(
            h, masks, z, dh, dz, sent, sent_gates, detectors, detector_gradients, sizes, layer, step, b, steps,
            rows_padded, units, mask, kappa, LAYERS, SIZE, NORM, MASKED,
        )  # fmt: skip
        if step < 0:
            tl.store(dh + own * SIZE + units, total, mask=mask)
            tl.store(dz + own, dz_sum)
        else:
            before = after - rows_padded
            here = tl.load(valid + step * rows_padded + b) != 0
            emitted = row_of(layer, step, steps, b, rows_padded)
            z_prev = tl.load(z + before)
            z_below = z_below_of(z, layer, step, steps, b, rows_padded)
            active = here & ((z_prev != 0) | (z_below != 0))
            total += tl.load(grad_hidden + emitted * SIZE + units, mask=mask, other=0.0)

            above = tl.where(has_above, layer + 1, 0)
            d_z = dz_sum + dz_from_above + tl.load(grad_boundaries + emitted)
            d_z += tl.where(has_above, tl.load(dz_below + row_of(above, 0, 1, b, rows_padded)), 0.0)
            du, to_below = detector_gradient(
                tl.load(u + after), tl.load(noise + emitted), d_z, tl.load(grad_probs + emitted), z_below,
                tl.load(scalars), here & (has_above | TOP), MODE, NESTED,
            )  # fmt: skip
            ds_f, ds_i, ds_o, ds_g, d_flush, d_open = through_cell(
                h, c, gates, dh, dc, total, z_prev, z_below, here, active, before, after, own, units, mask, stride, SIZE
            )
            sum_f, sum_i, sum_o, sum_g = load_gates(bias_sums + own * (4 * SIZE), units, stride, mask)
            store_gates(bias_sums + own * (4 * SIZE), units, stride, mask, sum_f + ds_f, sum_i + ds_i, sum_o + ds_o,
                        sum_g + ds_g)  # fmt: skip
            tl.store(bias_last_sums + own, tl.load(bias_last_sums + own) + du)
            if NORM:
                to_flush, to_open, flags = through_products(
                    products, projected, statistics, gains, gains_last, gradients, detector_gradients, gain_sums,
                    gain_last_sums, ds_f, ds_i, ds_o, ds_g, du, z_prev, z_below, here, active, layer, step, after, b,
                    steps, rows_padded, units, mask, stride, (4 * size + 1).to(tl.float32), kappa,
                    LAYERS, SIZE, KEEP, FULL,
                )  # fmt: skip
                d_flush += to_flush
                d_open += to_open
            else:
                store_gates(gradients + emitted * (4 * SIZE), units, stride, mask, ds_f, ds_i, ds_o, ds_g)
                for product in tl.static_range(3):
                    tl.store(detector_gradients + row_of(layer + product * LAYERS, step, steps, b, rows_padded), du)
                flags = 7 * active.to(tl.int32)
            tl.store(sent + emitted, flags)
            tl.store(dz + own, tl.where(here, d_flush, dz_sum))
            tl.store(dz_below + own, tl.where(here, d_open + to_below, 0.0))
