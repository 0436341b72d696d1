"""Backward pass: one launch of `backward_cell` and one of `backward_products` per phase, phases in falling order.

The derivation is in ops/README.md. Cells pull: what a cell sent through its products lies in `sent_gates` until the
cells that it read come to their turn, so that no two programs write to one place and every sum has one order.
"""

import triton
import triton.language as tl

from .cell import GATES, SAVED, advance_backward, detect_backward
from .common import (
    BOTTOM_UP,
    PRODUCTS,
    RECURRENT,
    SPLIT,
    STATISTICS,
    TOP_DOWN,
    accumulate_gates,
    add_product,
    added_gates,
    choose_rows,
    gates_where,
    load_gates,
    multiply_gates,
    normalised,
    of_layer,
    place,
    row_of,
    store_gates,
    sums,
)
from .forward import product_index, z_below_of


@triton.jit(do_not_specialize=["phase", "steps"])
def backward_products(
    weights, gradients, sent, sent_gates,
    phase, steps, rows_padded,
    LAYERS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr,
    SORT: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """U^T, V^T, W^T times the gradient of the gate rows, of every cell of a phase, each in SPLIT partial sums.

    Grid: blocks of columns of the weight, tiles of samples, parts of the sum for 3 products of every cell.
    """
    part = tl.program_id(2) % SPLIT
    product = tl.program_id(2) // SPLIT % PRODUCTS
    layer, step = place(phase, tl.program_id(2) // (PRODUCTS * SPLIT))
    target = tl.where(product == RECURRENT, layer, tl.where(product == TOP_DOWN, layer + 1, layer - 1))
    exists = (layer < LAYERS) & (step >= 0) & (step < steps) & (target >= 0) & (target < LAYERS)
    column = tl.program_id(0) * BLOCK_N
    if exists:
        if column < of_layer(PADDED, target, LAYERS):
            own = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
            rows = tl.arange(0, ROWS) if SORT else own
            flags = tl.load(sent + row_of(layer, step, steps, rows, rows_padded), mask=rows < rows_padded, other=0)
            need = (flags >> product) & 1
            if SORT:
                rows, used = choose_rows(need, BLOCK_M, tl.program_id(1))
            else:
                used = need != 0
            if tl.max(used.to(tl.int32), 0) > 0:
                inner = tl.arange(0, BLOCK_K)
                outer = column + tl.arange(0, BLOCK_N)
                kind = layer + (product * LAYERS if NORM else 0)
                first = row_of(kind, step, steps, rows, rows_padded) * (GATES * SIZE)
                a = gradients + first[:, None] + inner[None, :]
                matrix = weights + (layer * PRODUCTS + product).to(tl.int64) * (GATES * SIZE * SIZE)
                w = matrix + inner[:, None] * SIZE + outer[None, :]
                total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
                height = of_layer(PADDED, layer, LAYERS)
                a += part * height
                w += part * height * SIZE
                for k in range(0, height, BLOCK_K):
                    total = add_product(total, tl.load(a + k), tl.load(w + k * SIZE), UPCAST)
                place_of = sent_row(layer, step, product, part, rows, rows_padded, LAYERS)
                tl.store(sent_gates + place_of[:, None] * SIZE + outer[None, :], total, mask=used[:, None])


@triton.jit
def sent_row(layer, step, product, part, row, rows_padded, LAYERS: tl.constexpr):
    """Index of a row in `sent_gates` (2, layers, 3, SPLIT, samples, .); two steps are enough, for a cell reads what
    the next step sent before the step before that overwrites it."""
    index = ((layer + step % 2 * LAYERS) * PRODUCTS + product) * SPLIT + part
    return index.to(tl.int64) * rows_padded + row


@triton.jit
def pulled(
    sent_gates, sent, detectors, detector_gradients, layer, step, product, there, b, steps, rows_padded, units, mask,
    kappa, LAYERS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The gradient that cell (layer, step) sent through a product to the units of this cell; 0 where not `there`."""
    layer = tl.where(there, layer, 0)
    step = tl.where(there, step, 0)
    cell = row_of(layer, step, steps, b, rows_padded)
    flags = tl.load(sent + cell)
    value = tl.zeros_like(units).to(tl.float32)
    for part in tl.static_range(SPLIT):
        row = sent_row(layer, step, product, part, b, rows_padded, LAYERS)
        value += tl.load(sent_gates + row * SIZE + units, mask=mask, other=0.0)
    kind = row_of(layer + product * LAYERS, step, steps, b, rows_padded)
    last = kappa * tl.load(detector_gradients + kind)
    w = tl.load(detectors + (layer * PRODUCTS + product) * SIZE + units, mask=mask, other=0.0)
    # Loaded in any case, so that no load waits for the flags.
    value = tl.where(mask & (((flags >> product) & 1) != 0), value, 0.0)
    return tl.where(there, value + last * w, 0.0)


@triton.jit
def product_before_norm(pointer, found, gains, ds, needed, units, mask, stride):
    """One product: its rows, normalised, 0 where not needed, the detector's row likewise, 1 / deviation, and the
    gradient of the rows times their gains."""
    mean = tl.load(found)
    rstd = tl.load(found + 1)
    last = (tl.load(found + 2) - mean) * rstd
    n = gates_where(mask & needed, normalised(load_gates(pointer, units, stride, mask), mean, rstd))
    return n, last, rstd, multiply_gates(ds, load_gates(gains, units, stride, mask))


@triton.jit
def through_norm(n, last, rstd, gd, gd_last, sum_gd, sum_gdn, gate, mask, count, kappa):
    """Layer normalisation of one product backwards: the gradient of the product, that of its detector's row, and the
    sum over all rows that reaches the gate. sum_gd and sum_gdn: over the rows of the gates, of gd and of gd n."""
    to_gate = sum_gdn + kappa * gd_last * last
    mean_1 = gate * (sum_gd + kappa * gd_last) / count
    mean_2 = gate * to_gate / count
    dp = ()
    for row in tl.static_range(GATES):
        dp += (tl.where(mask, rstd * (gate * gd[row] - mean_1 - n[row] * mean_2), 0.0),)
    return dp, rstd * (gate * gd_last - mean_1 - last * mean_2), to_gate


@triton.jit
def collect(
    h, masks, z, dh, dz, sent, sent_gates, detectors, detector_gradients, layer, step, b, steps, rows_padded,
    units, mask, kappa, LAYERS: tl.constexpr, SIZES: tl.constexpr, SIZE: tl.constexpr, NORM: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Collects what reaches h and z of this cell. Returns the gradient of h, a vector over units: dh of the next step
    and what the three cells that read h sent; the gradient of z from the next step; and that from the layer above,
    whose bottom-up term z gates. With layer normalisation the gates' parts are in dz and dz_below already, and the last
    is 0."""
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
        from_above = v * tl.load(h + after * SIZE + units, mask=mask, other=0.0)
        v = v * tl.load(z + after)
        above = tl.where(has_above, layer + 1, 0)
        mask_above = (units < of_layer(SIZES, above, LAYERS)) & has_above
        v_above = pulled(sent_gates, sent, detectors, detector_gradients, layer, step + 1, TOP_DOWN,
                         has_next & has_above, b, steps, rows_padded, units, mask_above, kappa, LAYERS,
                         SIZE)  # fmt: skip
        h_above = tl.load(h + row_of(above, step + 1, steps + 1, b, rows_padded) * SIZE + units,
                          mask=mask_above, other=0.0)  # fmt: skip
        dz_from_above, flushed = sums((from_above, v_above * h_above), 2)
        dz_sum += flushed
    return total + v, dz_sum, dz_from_above


@triton.jit
def operation(z, valid, layer, step, before, steps, b, rows_padded):
    """Whether the sample is here at this step, whether its cell computes (UPDATE or FLUSH), and z_prev and z_below."""
    here = tl.load(valid + step * rows_padded + b) != 0
    z_prev = tl.load(z + before)
    z_below = z_below_of(z, layer, step, steps, b, rows_padded)
    return here, here & ((z_prev != 0) | (z_below != 0)), z_prev, z_below


@triton.jit
def through_detector(
    u, noise, grad_boundaries, grad_probs, dz_below, logit_gradients, d_z, z_below, here, layer, b, rows_padded, after,
    emitted, slope, LAYERS: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr, TOP: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """The detector backwards, d_z being the gradient of z that `collect` found: the gradients of its logit, which is
    kept if a hidden layer asks for it, and of z_below."""
    has_above = layer + 1 < LAYERS
    above = tl.where(has_above, layer + 1, 0)
    d_z += tl.load(grad_boundaries + emitted)
    d_z += tl.where(has_above, tl.load(dz_below + row_of(above, 0, 1, b, rows_padded)), 0.0)
    du, to_below = detect_backward(
        tl.load(u + after), tl.load(noise + emitted), d_z, tl.load(grad_probs + emitted), z_below, slope, MODE, NESTED
    )
    has_detector = here & (has_above | TOP)
    du = tl.where(has_detector, du, 0.0)
    if KEEP:
        tl.store(logit_gradients + emitted, du)
    return du, tl.where(has_detector, to_below, 0.0)


@triton.jit
def through_cell(
    h, c, gates, dh, dc, total, z_prev, z_below, here, active, before, after, own, units, mask, stride,
    SIZE: tl.constexpr,
):  # fmt: skip
    """The cell backwards: the gradients of the gate rows, and each unit's part of those of z_prev (FLUSH) and z_below
    (UPDATE). Leaves in dc and dh what goes on to the step before."""
    saved = load_gates(gates + after * (SAVED * SIZE), units, stride, mask, SAVED)
    h_prev = tl.load(h + before * SIZE + units, mask=mask, other=0.0)
    c_prev = tl.load(c + before * SIZE + units, mask=mask, other=0.0)
    c_next = tl.load(c + after * SIZE + units, mask=mask, other=0.0)
    dc_next = tl.load(dc + own * SIZE + units, mask=mask, other=0.0)
    ds, dh_prev, dc_prev, d_flush, d_open = advance_backward(
        saved, h_prev, c_prev, c_next, total, dc_next, z_prev, z_below
    )
    tl.store(dc + own * SIZE + units, tl.where(here, dc_prev, dc_next), mask=mask)
    tl.store(dh + own * SIZE + units, tl.where(here, dh_prev, total), mask=mask)
    return gates_where(active, ds), d_flush, d_open


@triton.jit
def through_products(
    products, projected, statistics, gains, detector_gains, gradients, detector_gradients, gain_sums,
    detector_gain_sums, ds, du, d_flush, d_open, z_prev, z_below, here, active, layer, step, after, b, steps,
    rows_padded, units, mask, stride, count, kappa, LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr,
    COPY_GRADIENTS: tl.constexpr,
):  # fmt: skip
    """With layer normalisation: stores the gradients of the three products; returns the gradients of z_prev and
    z_below, d_flush and d_open being the vectors of what reaches them otherwise, and the flags of the products that
    send something."""
    before_norm = ()
    wanted = ()
    exists = ()
    vectors = (d_flush, d_open)
    for product in tl.static_range(PRODUCTS):
        there = layer + 1 < LAYERS if product == TOP_DOWN else layer >= 0
        row = product_index(layer, product, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
        pointer = products + row * (GATES * SIZE)
        if product == BOTTOM_UP:
            if layer == 0:
                pointer = projected + (step.to(tl.int64) * rows_padded + b) * (GATES * SIZE)
        exists += (there,)
        wanted += (there & (active | (here & COPY_GRADIENTS)),)
        n, last, rstd, gd = product_before_norm(
            pointer, statistics + (after * PRODUCTS + product) * STATISTICS,
            gains + (layer * PRODUCTS + product) * (GATES * SIZE), ds, wanted[product], units, mask, stride,
        )  # fmt: skip
        before_norm += ((n, last, rstd, gd),)
        vectors += (added_gates(gd), added_gates(multiply_gates(gd, n)))
    totals = sums(vectors, 8)
    to_gates = ()
    for product in tl.static_range(PRODUCTS):
        n, last, rstd, gd = before_norm[product]
        gate = 1.0 if product == RECURRENT else (z_prev if product == TOP_DOWN else z_below)
        vector = layer * PRODUCTS + product
        dp, d_last, to_gate = through_norm(
            n, last, rstd, gd, du * tl.load(detector_gains + vector), totals[2 + 2 * product], totals[3 + 2 * product],
            gate, mask, count, kappa,
        )  # fmt: skip
        to_gates += (tl.where(wanted[product], to_gate, 0.0),)
        kind = row_of(layer + product * LAYERS, step, steps, b, rows_padded)
        store_gates(gradients + kind * (GATES * SIZE), units, stride, mask, gates_where(wanted[product], dp))
        tl.store(detector_gradients + kind, tl.where(here & exists[product], d_last, 0.0))
        own = row_of(vector, 0, 1, b, rows_padded)
        accumulate_gates(gain_sums + own * (GATES * SIZE), units, stride, mask,
                         multiply_gates(normalised(ds, 0.0, gate), n))  # fmt: skip
        tl.store(detector_gain_sums + own, tl.load(detector_gain_sums + own) + gate * du * last)
    flags = (active | (here & COPY_GRADIENTS)).to(tl.int32) + 2 * (active & (z_prev != 0)).to(tl.int32)
    flags += 4 * (active & (z_below != 0)).to(tl.int32)
    return totals[0] + to_gates[TOP_DOWN], totals[1] + to_gates[BOTTOM_UP], flags


@triton.jit
def through_sum(
    gradients, detector_gradients, ds, du, d_flush, d_open, active, layer, step, emitted, b, steps, rows_padded,
    units, mask, stride, LAYERS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """`through_products` without layer normalisation: the three products are summed, so that one gradient is all
    three's."""
    to_flush, to_open = sums((d_flush, d_open), 2)
    store_gates(gradients + emitted * (GATES * SIZE), units, stride, mask, ds)
    for product in tl.static_range(PRODUCTS):
        tl.store(detector_gradients + row_of(layer + product * LAYERS, step, steps, b, rows_padded), du)
    return to_flush, to_open, 7 * active.to(tl.int32)


@triton.jit(do_not_specialize=["phase", "steps"])
def backward_cell(
    products, projected, h, masks, c, z, u, gates, statistics, valid, noise, detectors, gains, detector_gains,
    grad_hidden, grad_boundaries, grad_probs, dh, dc, dz, dz_below, sent, sent_gates, gradients, detector_gradients,
    bias_sums, detector_bias_sums, gain_sums, detector_gain_sums, logit_gradients,
    scalars, phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    KEEP: tl.constexpr, NORM: tl.constexpr, COPY_GRADIENTS: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr,
    TOP: tl.constexpr, MASKED: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """The gradients of one sample and one cell, down to those of its products. Grid: samples, cells of the phase.

    Step -1 is the state before the first step: there the gradients are only collected.
    """
    b = tl.program_id(0)
    layer, step = place(phase, tl.program_id(1))
    if (layer < LAYERS) & (step >= -1) & (step < steps):
        kappa = tl.load(scalars + 1)
        size = of_layer(SIZES, layer, LAYERS)
        stride = of_layer(PADDED, layer, LAYERS)
        units = tl.arange(0, BLOCK)
        mask = units < size
        after = row_of(layer, step + 1, steps + 1, b, rows_padded)
        own = row_of(layer, 0, 1, b, rows_padded)
        total, dz_sum, dz_from_above = collect(
            h, masks, z, dh, dz, sent, sent_gates, detectors, detector_gradients, layer, step, b, steps,
            rows_padded, units, mask, kappa, LAYERS, SIZES, SIZE, NORM, MASKED,
        )  # fmt: skip
        if step < 0:
            tl.store(dh + own * SIZE + units, total, mask=mask)
            tl.store(dz + own, dz_sum)
        else:
            before = after - rows_padded
            emitted = row_of(layer, step, steps, b, rows_padded)
            here, active, z_prev, z_below = operation(z, valid, layer, step, before, steps, b, rows_padded)
            total += tl.load(grad_hidden + emitted * SIZE + units, mask=mask, other=0.0)

            du, to_below = through_detector(
                u, noise, grad_boundaries, grad_probs, dz_below, logit_gradients, dz_sum + dz_from_above, z_below, here,
                layer, b, rows_padded, after, emitted, tl.load(scalars), LAYERS, MODE, NESTED, TOP, NORM and HIDDEN > 0,
            )  # fmt: skip
            ds, d_flush, d_open = through_cell(
                h, c, gates, dh, dc, total, z_prev, z_below, here, active, before, after, own, units, mask, stride, SIZE
            )
            accumulate_gates(bias_sums + own * (GATES * SIZE), units, stride, mask, ds)
            tl.store(detector_bias_sums + own, tl.load(detector_bias_sums + own) + du)
            if NORM:
                to_flush, to_open, flags = through_products(
                    products, projected, statistics, gains, detector_gains, gradients, detector_gradients, gain_sums,
                    detector_gain_sums, ds, du, d_flush, d_open, z_prev, z_below, here, active, layer, step, after, b,
                    steps, rows_padded, units, mask, stride, (size * GATES + 1).to(tl.float32), kappa,
                    LAYERS, SIZE, KEEP, COPY_GRADIENTS,
                )  # fmt: skip
            else:
                to_flush, to_open, flags = through_sum(
                    gradients, detector_gradients, ds, du, d_flush, d_open, active, layer, step, emitted, b, steps,
                    rows_padded, units, mask, stride, LAYERS, SIZE,
                )  # fmt: skip
            tl.store(sent + emitted, flags)
            tl.store(dz + own, tl.where(here, to_flush, dz_sum))
            tl.store(dz_below + own, tl.where(here, to_open + to_below, 0.0))
