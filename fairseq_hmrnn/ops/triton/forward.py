"""Forward pass: one launch of `forward_products` and one of `forward_cell` per phase. Equations: ops/README.md."""

import triton
import triton.language as tl

from .common import (
    BOTTOM_UP,
    RECURRENT,
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
    wanted,
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
        if column < 4 * tl.load(padded + layer):
            own = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
            rows = tl.arange(0, ROWS) if SORT else own
            inside = rows < rows_padded
            here = tl.load(valid + step * rows_padded + rows, mask=inside, other=0)
            z_prev = tl.load(z + row_of(layer, step, steps + 1, rows, rows_padded), mask=inside, other=0.0)
            below = row_of(tl.maximum(layer - 1, 0), step + 1, steps + 1, rows, rows_padded)
            z_below = tl.where(layer == 0, 1.0, tl.load(z + below, mask=inside, other=0.0))
            run = tl.load(running + row_of(layer, step, steps + 1, rows, rows_padded), mask=inside, other=0)
            recurrent, top_down, bottom_up, _ = wanted(z_prev, z_below, here, run, TRAINING, NORM, SKIP)
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
                matrix = weights + (layer * 3 + product).to(tl.int64) * (4 * SIZE * SIZE)
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
                out = products + target[:, None] * (4 * SIZE) + outer[None, :]
                tl.store(out, total, mask=used[:, None])


@triton.jit
def term(
    pointer, gains, last, last_gain, units, mask, stride, count, opened, EPS: tl.constexpr, NORM: tl.constexpr
):  # fmt: skip
    """One product of a sample, normalised over its 4H+1 rows: the rows f, i, o, g, z, the mean and 1 / deviation."""
    f, i, o, g = load_gates(pointer, units, stride, mask & opened)
    last = tl.where(opened, last, 0.0)
    mean = 0.0
    rstd = 1.0
    if NORM:
        mean = (sum_gates(f, i, o, g) + last) / count
        f = tl.where(mask, f - mean, 0.0)
        i = tl.where(mask, i - mean, 0.0)
        o = tl.where(mask, o - mean, 0.0)
        g = tl.where(mask, g - mean, 0.0)
        last = last - mean
        rstd = tl.rsqrt((sum_gates(f * f, i * i, o * o, g * g) + last * last) / count + EPS)
        gain_f, gain_i, gain_o, gain_g = load_gates(gains, units, stride, mask)
        f = f * rstd * gain_f
        i = i * rstd * gain_i
        o = o * rstd * gain_o
        g = g * rstd * gain_g
        last = last * rstd * last_gain
    return f, i, o, g, last, mean, rstd


@triton.jit
def detector_product(hidden, detectors, layer, product, source, slot, slots, b, rows_padded, units, size,
                     SIZE: tl.constexpr):  # fmt: skip
    """The detector's row of a product in float32, of a source that is there or else is masked by size 0."""
    h = tl.load(hidden + row_of(source, slot, slots, b, rows_padded) * SIZE + units, mask=units < size, other=0.0)
    w = tl.load(detectors + (layer * 3 + product) * SIZE + units, mask=units < size, other=0.0)
    return h, w


@triton.jit
def recurrent_term(
    products, h, masks, detectors, gains, gains_last, layer, step, steps, b, rows_padded, units, size, stride, count,
    wanted, LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """U h' of eq. (1), as `term`, with the product's own last row. Without gates (inference, COPY) the detector's row
    is all there is."""
    mask = units < size
    h_read, w = detector_product(h, detectors, layer, RECURRENT, layer, step, steps + 1, b, rows_padded, units, size,
                                 SIZE)  # fmt: skip
    if MASKED:
        h_read = h_read * tl.load(masks + row_of(layer, 0, 1, b, rows_padded) * SIZE + units, mask=mask, other=0.0)
    last = tl.sum(h_read * w, 0)
    row = product_index(layer, RECURRENT, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    f, i, o, g, u, mean, rstd = term(
        products + row * (4 * SIZE), gains + (layer * 3) * (4 * SIZE), last, tl.load(gains_last + layer * 3),
        units, mask, stride, count, wanted != 0, EPS, NORM,
    )  # fmt: skip
    return f, i, o, g, u if NORM else last, mean, rstd, last


@triton.jit
def top_down_term(
    products, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded, units, size, stride, count,
    wanted, LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """V h_above' of eq. (1), as `term`, with the product's own last row."""
    has_above = layer + 1 < LAYERS
    above = tl.where(has_above, layer + 1, 0)
    size_above = tl.where(has_above & (wanted != 0), tl.load(sizes + above), 0)
    h_above, w = detector_product(h, detectors, layer, TOP_DOWN, above, step, steps + 1, b, rows_padded, units,
                                  size_above, SIZE)  # fmt: skip
    last = tl.sum(h_above * w, 0)
    row = product_index(layer, TOP_DOWN, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    f, i, o, g, u, mean, rstd = term(
        products + row * (4 * SIZE), gains + (layer * 3 + TOP_DOWN) * (4 * SIZE), last,
        tl.load(gains_last + layer * 3 + TOP_DOWN), units, units < size, stride, count, (wanted != 0) & has_above, EPS,
        NORM,
    )  # fmt: skip
    return f, i, o, g, u, mean, rstd, last


@triton.jit
def bottom_up_term(
    products, projected, projected_last, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded,
    units, size, stride, count, wanted,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """W h_below of eq. (1), in layer 1 of the input, as `term`, with the product's own last row."""
    has_below = layer > 0
    below = tl.where(has_below, layer - 1, 0)
    size_below = tl.where(has_below & (wanted != 0), tl.load(sizes + below), 0)
    h_below, w = detector_product(h, detectors, layer, BOTTOM_UP, below, step + 1, steps + 1, b, rows_padded,
                                  units, size_below, SIZE)  # fmt: skip
    input_row = step.to(tl.int64) * rows_padded + b
    last = tl.where(has_below, tl.sum(h_below * w, 0), tl.load(projected_last + input_row))
    row = product_index(layer, BOTTOM_UP, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    if has_below:
        bottom = products + row * (4 * SIZE)
    else:
        bottom = projected + input_row * (4 * SIZE)
    f, i, o, g, u, mean, rstd = term(
        bottom, gains + (layer * 3 + BOTTOM_UP) * (4 * SIZE), last,
        tl.load(gains_last + layer * 3 + BOTTOM_UP), units, units < size, stride, count, wanted != 0, EPS, NORM,
    )  # fmt: skip
    return f, i, o, g, u, mean, rstd, last


@triton.jit
def detect(
    logit, z, boundaries, probs, noise, layer, z_prev, z_below, here, slope, after, emitted,
    LAYERS: tl.constexpr, MODE: tl.constexpr, NESTED: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Eq. (5) and (6); stores z and what is emitted."""
    has_detector = (layer + 1 < LAYERS) | TOP
    # A NaN stays one, where clamping would hide it
    p = (slope * logit + 1) / 2
    z_tilde = tl.where(p > 1, 1.0, tl.where(p < 0, 0.0, p))
    z_new = decision(z_tilde, tl.load(noise + emitted), MODE)
    if NESTED:
        z_tilde = z_below * z_tilde
        z_new = z_below * z_new
    z_tilde = tl.where(has_detector, z_tilde, 0.0)
    z_new = tl.where(has_detector, z_new, 0.0)
    tl.store(boundaries + emitted, tl.where(here != 0, z_new, 0.0))
    tl.store(probs + emitted, tl.where(here != 0, z_tilde, 0.0))
    tl.store(z + after, tl.where(here != 0, z_new, z_prev))


@triton.jit(do_not_specialize=["phase", "steps"])
def forward_cell(
    products, projected, projected_last, h, operand, read, masks, c, z, u, running, gates, statistics,
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
        count = (4 * size + 1).to(tl.float32)
        before = row_of(layer, step, steps + 1, b, rows_padded)
        after = before + rows_padded
        here = tl.load(valid + step * rows_padded + b)
        z_prev = tl.load(z + before)
        z_below = z_below_of(z, layer, step, steps, b, rows_padded)
        run = tl.load(running + before)
        recurrent, top_down, bottom_up, again = wanted(z_prev, z_below, here, run, TRAINING, NORM, SKIP)
        copied = (here != 0) & (z_prev == 0) & (z_below == 0)
        s_f, s_i, s_o, s_g, s_u, mean_r, rstd_r, last_r = recurrent_term(
            products, h, masks, detectors, gains, gains_last, layer, step, steps, b, rows_padded, units, size, stride,
            count, recurrent, LAYERS, SIZE, KEEP, NORM, MASKED, EPS,
        )  # fmt: skip
        t_f, t_i, t_o, t_g, t_u, mean_t, rstd_t, last_t = top_down_term(
            products, h, detectors, gains, gains_last, sizes, layer, step, steps, b, rows_padded, units, size, stride,
            count, top_down, LAYERS, SIZE, KEEP, NORM, EPS,
        )  # fmt: skip
        b_f, b_i, b_o, b_g, b_u, mean_b, rstd_b, last_b = bottom_up_term(
            products, projected, projected_last, h, detectors, gains, gains_last, sizes, layer, step, steps, b,
            rows_padded, units, size, stride, count, bottom_up, LAYERS, SIZE, KEEP, NORM, EPS,
        )  # fmt: skip

        # (1) and (2); a closed term is exactly zero, whatever is behind the gate
        bias_f, bias_i, bias_o, bias_g = load_gates(bias + layer * (4 * SIZE), units, stride, mask)
        open_t = z_prev != 0
        open_b = z_below != 0
        f = tl.sigmoid(s_f + bias_f + tl.where(open_t, z_prev * t_f, 0.0) + tl.where(open_b, z_below * b_f, 0.0))
        i = tl.sigmoid(s_i + bias_i + tl.where(open_t, z_prev * t_i, 0.0) + tl.where(open_b, z_below * b_i, 0.0))
        o = tl.sigmoid(s_o + bias_o + tl.where(open_t, z_prev * t_o, 0.0) + tl.where(open_b, z_below * b_o, 0.0))
        g = tanh(s_g + bias_g + tl.where(open_t, z_prev * t_g, 0.0) + tl.where(open_b, z_below * b_g, 0.0))
        logit = s_u + tl.load(bias_last + layer)
        logit += tl.where(open_t, z_prev * t_u, 0.0) + tl.where(open_b, z_below * b_u, 0.0)
        logit = tl.where(again | (here == 0), tl.load(u + before), logit)

        # (3) and (4)
        h_prev = tl.load(h + before * SIZE + units, mask=mask, other=0.0)
        c_prev = tl.load(c + before * SIZE + units, mask=mask, other=0.0)
        update = (1 - z_prev) * z_below
        copy = (1 - z_prev) * (1 - z_below)
        c_next = update * (f * c_prev + i * g) + copy * c_prev + z_prev * (i * g)
        h_next = copy * h_prev + (1 - copy) * (o * tanh(c_next))
        keep = copied | (here == 0)
        c_next = tl.where(keep, c_prev, c_next)
        h_next = tl.where(keep, h_prev, h_next)
        tl.store(c + after * SIZE + units, c_next, mask=mask)
        tl.store(h + after * SIZE + units, h_next, mask=mask)
        if HALF:
            tl.store(operand + after * SIZE + units, h_next.to(operand.dtype.element_ty), mask=mask)
        if MASKED:
            factor = tl.load(masks + row_of(layer, 0, 1, b, rows_padded) * SIZE + units, mask=mask, other=0.0)
            tl.store(read + after * SIZE + units, (h_next * factor).to(read.dtype.element_ty), mask=mask)

        detect(logit, z, boundaries, probs, noise, layer, z_prev, z_below, here, tl.load(scalars), after,
               row_of(layer, step, steps, b, rows_padded), LAYERS, MODE, NESTED, TOP)  # fmt: skip
        tl.store(u + after, logit)
        tl.store(running + after, copied.to(tl.int32))
        if TRAINING:
            keep_gates(gates, f, i, o, g, again, before, after, units, stride, mask, SIZE)
            if NORM:
                keep_statistics(statistics, again, before, after, mean_r, rstd_r, last_r, mean_t, rstd_t, last_t,
                                mean_b, rstd_b, last_b)  # fmt: skip


@triton.jit
def keep_gates(gates, f, i, o, g, again, before, after, units, stride, mask, SIZE: tl.constexpr):
    """The gates for the backward pass; within a run of COPY steps those of its first step."""
    old_f, old_i, old_o, old_g = load_gates(gates + before * (4 * SIZE), units, stride, mask & again)
    f = tl.where(again, old_f, f)
    i = tl.where(again, old_i, i)
    o = tl.where(again, old_o, o)
    g = tl.where(again, old_g, g)
    store_gates(gates + after * (4 * SIZE), units, stride, mask, f, i, o, g)


@triton.jit
def keep_statistics(
    statistics, again, before, after, mean_r, rstd_r, last_r, mean_t, rstd_t, last_t, mean_b, rstd_b, last_b
):
    """Mean, 1/deviation and last row of the three products; those of the recurrent one go with the gates of a run."""
    found = statistics + before * 9
    new = statistics + after * 9
    tl.store(new + 0, tl.where(again, tl.load(found + 0), mean_r))
    tl.store(new + 1, tl.where(again, tl.load(found + 1), rstd_r))
    tl.store(new + 2, tl.where(again, tl.load(found + 2), last_r))
    tl.store(new + 3, mean_t)
    tl.store(new + 4, rstd_t)
    tl.store(new + 5, last_t)
    tl.store(new + 6, mean_b)
    tl.store(new + 7, rstd_b)
    tl.store(new + 8, last_b)
