"""Forward pass: one launch of `forward_products` and one of `forward_cell` per phase. Equations: ops/README.md."""

import triton
import triton.language as tl

from .cell import GATES, SAVED, activate, advance, detect, pre_activation
from .common import (
    BOTTOM_UP,
    RECURRENT,
    TOP_DOWN,
    add_product,
    choose_rows,
    gates_where,
    load_gates,
    multiply_gates,
    needed,
    normalised,
    place,
    row_of,
    store_gates,
    sum_gates,
)


@triton.jit
def z_below_of(z, layer, step, steps, rows, rows_padded):
    """z of the layer below at this step; 1 below layer 0."""
    below = tl.maximum(layer - 1, 0)
    found = tl.load(z + row_of(below, step + 1, steps + 1, rows, rows_padded))
    return tl.where(layer == 0, 1.0, found)


@triton.jit
def product_index(layer, product, step, LAYERS: tl.constexpr, KEEP: tl.constexpr):
    """Index of a product's first row in `products`, in rows of samples: (steps or 1, layers, 3)."""
    slot = step if KEEP else 0
    return (layer + slot * LAYERS) * 3 + product


@triton.jit(do_not_specialize=["phase", "steps"])
def forward_products(
    weights, read, hidden, products, z, valid, running, padded,
    phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr, TRAINING: tl.constexpr,
    NORM: tl.constexpr, SKIP: tl.constexpr, SORT: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gate rows of U (m h'), V h_above and W h_below, all but the input's, of every cell of a phase.

    Grid: blocks of rows of the weight, tiles of samples, 3 products of every cell.
    """
    product = tl.program_id(2) % 3
    layer, step = place(phase, tl.program_id(2) // 3)
    source = tl.where(product == RECURRENT, layer, tl.where(product == TOP_DOWN, layer + 1, layer - 1))
    exists = (layer < LAYERS) & (step >= 0) & (step < steps) & (source >= 0) & (source < LAYERS)
    column = tl.program_id(0) * BLOCK_N
    if exists:
        if column < tl.load(padded + layer) * GATES:
            own = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
            rows = tl.arange(0, ROWS) if SORT else own
            inside = rows < rows_padded
            here = tl.load(valid + step * rows_padded + rows, mask=inside, other=0)
            z_prev = tl.load(z + row_of(layer, step, steps + 1, rows, rows_padded), mask=inside, other=0.0)
            below = row_of(tl.maximum(layer - 1, 0), step + 1, steps + 1, rows, rows_padded)
            z_below = tl.where(layer == 0, 1.0, tl.load(z + below, mask=inside, other=0.0))
            run = tl.load(running + row_of(layer, step, steps + 1, rows, rows_padded), mask=inside, other=0)
            recurrent, top_down, bottom_up, _ = needed(z_prev, z_below, here, run, TRAINING, NORM, SKIP)
            need = tl.where(product == RECURRENT, recurrent, tl.where(product == TOP_DOWN, top_down, bottom_up))
            if SORT:
                rows, used = choose_rows(need, ROWS, BLOCK_M, tl.program_id(1))
            else:
                used = need != 0
            if tl.max(used.to(tl.int32), 0) > 0:
                slot = tl.where(product == BOTTOM_UP, step + 1, step)
                inner = tl.arange(0, BLOCK_K)
                outer = column + tl.arange(0, BLOCK_N)
                first = row_of(source, slot, steps + 1, rows, rows_padded) * SIZE
                matrix = weights + (layer * 3 + product).to(tl.int64) * (GATES * SIZE * SIZE)
                w = matrix + outer[None, :] * SIZE + inner[:, None]
                total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
                end = tl.load(padded + source)
                # Two buffers, for the recurrent product reads what the dropout mask left.
                if product == RECURRENT:
                    a = read + first[:, None] + inner[None, :]
                else:
                    a = hidden + first[:, None] + inner[None, :]
                for k in range(0, end, BLOCK_K):
                    total = add_product(total, tl.load(a + k), tl.load(w + k), UPCAST)
                target = product_index(layer, product, step, LAYERS, KEEP).to(tl.int64) * rows_padded + rows
                out = products + target[:, None] * (GATES * SIZE) + outer[None, :]
                tl.store(out, total, mask=used[:, None])


@triton.jit
def term(
    pointer, gains, product_last, last_gain, units, mask, stride, count, opened, EPS: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """One product of a sample, normalised over its rows: those of the gates, the detector's, and for the backward pass
    the mean, 1 / deviation and the detector's row before it was normalised."""
    gates = load_gates(pointer, units, stride, mask & opened)
    last = tl.where(opened, product_last, 0.0)
    mean = 0.0
    rstd = 1.0
    if NORM:
        mean = (sum_gates(gates) + last) / count
        gates = gates_where(mask, normalised(gates, mean, 1.0))
        last = last - mean
        rstd = tl.rsqrt((sum_gates(multiply_gates(gates, gates)) + last * last) / count + EPS)
        gates = multiply_gates(normalised(gates, 0.0, rstd), load_gates(gains, units, stride, mask))
        last = last * rstd * last_gain
    return gates, last, (mean, rstd, product_last)


@triton.jit
def detector_row(h, detectors, layer, product, source, slot, slots, b, rows_padded, units, size, SIZE: tl.constexpr):
    """The input and weights of the detector's row of a product, in float32; a source that is not there has size
    0."""
    read = tl.load(h + row_of(source, slot, slots, b, rows_padded) * SIZE + units, mask=units < size, other=0.0)
    w = tl.load(detectors + (layer * 3 + product) * SIZE + units, mask=units < size, other=0.0)
    return read, w


@triton.jit
def recurrent_term(
    products, h, masks, detectors, gains, gains_last, layer, step, steps, b, rows_padded, units, size, stride, count,
    needed, LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """U h' of eq. (1), as `term`. Without gates (inference, COPY) the detector's row is all there is."""
    mask = units < size
    h_read, w = detector_row(h, detectors, layer, RECURRENT, layer, step, steps + 1, b, rows_padded, units, size, SIZE)
    if MASKED:
        h_read = h_read * tl.load(masks + row_of(layer, 0, 1, b, rows_padded) * SIZE + units, mask=mask, other=0.0)
    last = tl.sum(h_read * w, 0)
    row = product_index(layer, RECURRENT, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    gates, u, found = term(
        products + row * (GATES * SIZE), gains + (layer * 3) * (GATES * SIZE), last, tl.load(gains_last + layer * 3),
        units, mask, stride, count, needed != 0, EPS, NORM,
    )  # fmt: skip
    return gates, u if NORM else last, found


@triton.jit
def top_down_term(
    products, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded, units, size, stride, count,
    needed, LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """V h_above' of eq. (1), as `term`."""
    has_above = layer + 1 < LAYERS
    above = tl.where(has_above, layer + 1, 0)
    size_above = tl.where(has_above & (needed != 0), tl.load(sizes + above), 0)
    h_above, w = detector_row(h, detectors, layer, TOP_DOWN, above, step, steps + 1, b, rows_padded, units, size_above,
                              SIZE)  # fmt: skip
    row = product_index(layer, TOP_DOWN, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    return term(
        products + row * (GATES * SIZE), gains + (layer * 3 + TOP_DOWN) * (GATES * SIZE), tl.sum(h_above * w, 0),
        tl.load(gains_last + layer * 3 + TOP_DOWN), units, units < size, stride, count, (needed != 0) & has_above, EPS,
        NORM,
    )  # fmt: skip


@triton.jit
def bottom_up_term(
    products, projected, projected_last, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded,
    units, size, stride, count, needed,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """W h_below of eq. (1), in layer 1 of the input, as `term`."""
    has_below = layer > 0
    below = tl.where(has_below, layer - 1, 0)
    size_below = tl.where(has_below & (needed != 0), tl.load(sizes + below), 0)
    h_below, w = detector_row(h, detectors, layer, BOTTOM_UP, below, step + 1, steps + 1, b, rows_padded, units,
                              size_below, SIZE)  # fmt: skip
    input_row = step.to(tl.int64) * rows_padded + b
    last = tl.where(has_below, tl.sum(h_below * w, 0), tl.load(projected_last + input_row))
    row = product_index(layer, BOTTOM_UP, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    if has_below:
        bottom = products + row * (GATES * SIZE)
    else:
        bottom = projected + input_row * (GATES * SIZE)
    return term(
        bottom, gains + (layer * 3 + BOTTOM_UP) * (GATES * SIZE), last, tl.load(gains_last + layer * 3 + BOTTOM_UP),
        units, units < size, stride, count, needed != 0, EPS, NORM,
    )  # fmt: skip


@triton.jit
def store_state(
    h, hidden, read, mask_of_h, c, gates, z_prev, z_below, keep, before, after, units, mask, SIZE: tl.constexpr,
    MASKED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Stores h and c, bit for bit those of the step before where `keep`, and h as products read it."""
    h_prev = tl.load(h + before * SIZE + units, mask=mask, other=0.0)
    c_prev = tl.load(c + before * SIZE + units, mask=mask, other=0.0)
    h_next, c_next = advance(gates, h_prev, c_prev, z_prev, z_below)
    c_next = tl.where(keep, c_prev, c_next)
    h_next = tl.where(keep, h_prev, h_next)
    tl.store(c + after * SIZE + units, c_next, mask=mask)
    tl.store(h + after * SIZE + units, h_next, mask=mask)
    if HALF:
        tl.store(hidden + after * SIZE + units, h_next.to(hidden.dtype.element_ty), mask=mask)
    if MASKED:
        factor = tl.load(mask_of_h + units, mask=mask, other=0.0)
        tl.store(read + after * SIZE + units, (h_next * factor).to(read.dtype.element_ty), mask=mask)


@triton.jit
def emit(
    u, z, boundaries, probs, noise, layer, z_prev, z_below, here, slope, after, emitted,
    LAYERS: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Stores the boundary and what is emitted of it."""
    z_new, z_tilde = detect(u, tl.load(noise + emitted), z_below, slope, MODE, NESTED)
    has_detector = (layer + 1 < LAYERS) | TOP
    z_new = tl.where(has_detector, z_new, 0.0)
    z_tilde = tl.where(has_detector, z_tilde, 0.0)
    tl.store(boundaries + emitted, tl.where(here != 0, z_new, 0.0))
    tl.store(probs + emitted, tl.where(here != 0, z_tilde, 0.0))
    tl.store(z + after, tl.where(here != 0, z_new, z_prev))


@triton.jit(do_not_specialize=["phase", "steps"])
def forward_cell(
    products, projected, projected_last, h, hidden, read, masks, c, z, u, running, gates, statistics,
    valid, noise, boundaries, probs, detectors, bias, bias_last, gains, gains_last, sizes, padded,
    scalars, phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, TRAINING: tl.constexpr,
    NORM: tl.constexpr, SKIP: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr, TOP: tl.constexpr,
    MASKED: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Equations (1) to (6) of one sample and one cell. Grid: samples, cells of the phase."""
    b = tl.program_id(0)
    layer, step = place(phase, tl.program_id(1))
    if (layer < LAYERS) & (step >= 0) & (step < steps):
        size = tl.load(sizes + layer)
        stride = tl.load(padded + layer)
        units = tl.arange(0, BLOCK)
        mask = units < size
        count = (size * GATES + 1).to(tl.float32)
        before = row_of(layer, step, steps + 1, b, rows_padded)
        after = before + rows_padded
        here = tl.load(valid + step * rows_padded + b)
        z_prev = tl.load(z + before)
        z_below = z_below_of(z, layer, step, steps, b, rows_padded)
        run = tl.load(running + before)
        recurrent, top_down, bottom_up, again = needed(z_prev, z_below, here, run, TRAINING, NORM, SKIP)
        copied = (here != 0) & (z_prev == 0) & (z_below == 0)
        recurrent_gates, recurrent_u, found_r = recurrent_term(
            products, h, masks, detectors, gains, gains_last, layer, step, steps, b, rows_padded, units, size, stride,
            count, recurrent, LAYERS, SIZE, KEEP, NORM, MASKED, EPS,
        )  # fmt: skip
        top_down_gates, top_down_u, found_t = top_down_term(
            products, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded, units, size, stride,
            count, top_down, LAYERS, SIZE, KEEP, NORM, EPS,
        )  # fmt: skip
        bottom_up_gates, bottom_up_u, found_b = bottom_up_term(
            products, projected, projected_last, h, detectors, gains, gains_last, sizes, layer, step, steps, b,
            rows_padded, units, size, stride, count, bottom_up, LAYERS, SIZE, KEEP, NORM, EPS,
        )  # fmt: skip

        biases = load_gates(bias + layer * (GATES * SIZE), units, stride, mask)
        s = ()
        for gate in tl.static_range(GATES):
            s += (pre_activation(recurrent_gates[gate], top_down_gates[gate], bottom_up_gates[gate], biases[gate],
                                 z_prev, z_below),)  # fmt: skip
        activated = activate(s)
        logit = pre_activation(recurrent_u, top_down_u, bottom_up_u, tl.load(bias_last + layer), z_prev, z_below)
        logit = tl.where(again | (here == 0), tl.load(u + before), logit)

        store_state(h, hidden, read, masks + row_of(layer, 0, 1, b, rows_padded) * SIZE, c, activated, z_prev, z_below,
                    copied | (here == 0), before, after, units, mask, SIZE, MASKED, HALF)  # fmt: skip
        emit(logit, z, boundaries, probs, noise, layer, z_prev, z_below, here, tl.load(scalars), after,
             row_of(layer, step, steps, b, rows_padded), LAYERS, MODE, NESTED, TOP)  # fmt: skip
        tl.store(u + after, logit)
        tl.store(running + after, copied.to(tl.int32))
        if TRAINING:
            keep_saved(gates, activated, again, before, after, units, stride, mask, SIZE)
            if NORM:
                keep_statistics(statistics, again, before, after, found_r, found_t, found_b)


@triton.jit
def keep_saved(gates, activated, again, before, after, units, stride, mask, SIZE: tl.constexpr):
    """The gates for the backward pass; within a run of COPY steps those of its first step."""
    old = load_gates(gates + before * (SAVED * SIZE), units, stride, mask & again, SAVED)
    kept = ()
    for vector in tl.static_range(SAVED):
        kept += (tl.where(again, old[vector], activated[vector]),)
    store_gates(gates + after * (SAVED * SIZE), units, stride, mask, kept, SAVED)


@triton.jit
def keep_statistics(statistics, again, before, after, recurrent, top_down, bottom_up):
    """The results of `term` for the three products; that of the recurrent one goes with the gates of a run."""
    old = statistics + before * 9
    new = statistics + after * 9
    for index in tl.static_range(3):
        tl.store(new + index, tl.where(again, tl.load(old + index), recurrent[index]))
        tl.store(new + 3 + index, top_down[index])
        tl.store(new + 6 + index, bottom_up[index])
