"""Forward pass: one launch of `forward_products` and one of `forward_cell` per phase. Equations: ops/README.md."""

import triton
import triton.language as tl

from .cell import GATES, SAVED, activate, advance, detect, hidden_term, pre_activation
from .common import (
    BOTTOM_UP,
    PRODUCTS,
    RECURRENT,
    STATISTICS,
    TOP_DOWN,
    add_product,
    added_gates,
    choose_rows,
    gates_where,
    load_gates,
    multiply_gates,
    needed,
    normalised,
    of_layer,
    place,
    row_of,
    store_gates,
    sums,
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
    return (layer + slot * LAYERS) * PRODUCTS + product


@triton.jit(do_not_specialize=["phase", "steps"])
def forward_products(
    forward_weights, read, hidden, products, z, valid, running,
    phase, steps, rows_padded,
    LAYERS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr,
    TRAINING: tl.constexpr, NORM: tl.constexpr, SKIP: tl.constexpr, SORT: tl.constexpr, STRIDE_N: tl.constexpr,
    STRIDE_K: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The gate rows of U (m h'), V h_above and W h_below, all but the input's, of every cell of a phase.

    Grid: blocks of rows of the weight, tiles of samples, 3 products of every cell.
    """
    product = tl.program_id(2) % PRODUCTS
    layer, step = place(phase, tl.program_id(2) // PRODUCTS)
    source = tl.where(product == RECURRENT, layer, tl.where(product == TOP_DOWN, layer + 1, layer - 1))
    exists = (layer < LAYERS) & (step >= 0) & (step < steps) & (source >= 0) & (source < LAYERS)
    column = tl.program_id(0) * BLOCK_N
    if exists:
        if column < of_layer(PADDED, layer, LAYERS) * GATES:
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
                rows, used = choose_rows(need, BLOCK_M, tl.program_id(1))
            else:
                used = need != 0
            if tl.max(used.to(tl.int32), 0) > 0:
                slot = tl.where(product == BOTTOM_UP, step + 1, step)
                inner = tl.arange(0, BLOCK_K)
                outer = column + tl.arange(0, BLOCK_N)
                first = row_of(source, slot, steps + 1, rows, rows_padded) * SIZE
                matrix = forward_weights + (layer * PRODUCTS + product).to(tl.int64) * (GATES * SIZE * SIZE)
                w = matrix + outer[None, :] * STRIDE_N + inner[:, None] * STRIDE_K
                total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
                end = of_layer(PADDED, source, LAYERS)
                # Two buffers, for the recurrent product reads what the dropout mask left.
                if product == RECURRENT:
                    a = read + first[:, None] + inner[None, :]
                else:
                    a = hidden + first[:, None] + inner[None, :]
                for k in range(0, end, BLOCK_K):
                    total = add_product(total, tl.load(a + k), tl.load(w + k * STRIDE_K), UPCAST)
                target = product_index(layer, product, step, LAYERS, KEEP).to(tl.int64) * rows_padded + rows
                out = products + target[:, None] * (GATES * SIZE) + outer[None, :]
                tl.store(out, total, mask=used[:, None])


@triton.jit
def detector_product(h, detectors, layer, product, source_row, units, mask, SIZE: tl.constexpr):
    """What the detector's row of a product sums over the units, in float32."""
    read = tl.load(h + source_row * SIZE + units, mask=mask, other=0.0)
    return read * tl.load(detectors + (layer * PRODUCTS + product) * SIZE + units, mask=mask, other=0.0)


@triton.jit
def recurrent_term(
    products, masks, detectors, h_prev, layer, step, b, rows_padded, units, mask, stride, needed,
    LAYERS: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """U h' of eq. (1): the rows of the gates, 0 where not needed, and the vector whose sum is the detector's row."""
    if MASKED:
        h_prev *= tl.load(masks + row_of(layer, 0, 1, b, rows_padded) * SIZE + units, mask=mask, other=0.0)
    w = tl.load(detectors + (layer * PRODUCTS + RECURRENT) * SIZE + units, mask=mask, other=0.0)
    row = product_index(layer, RECURRENT, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    gates = load_gates(products + row * (GATES * SIZE), units, stride, mask)
    return gates_where(mask & needed, gates), h_prev * w


@triton.jit
def top_down_term(
    products, h, detectors, layer, step, steps, b, rows_padded, units, mask, stride, needed,
    LAYERS: tl.constexpr, SIZES: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """V h_above' of eq. (1), as `recurrent_term`. The top layer has none."""
    above = tl.minimum(layer + 1, LAYERS - 1)
    row = product_index(layer, TOP_DOWN, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    gates = load_gates(products + row * (GATES * SIZE), units, stride, mask)
    mask_above = units < of_layer(SIZES, above, LAYERS)
    last = detector_product(h, detectors, layer, TOP_DOWN, row_of(above, step, steps + 1, b, rows_padded), units,
                            mask_above, SIZE)  # fmt: skip
    return gates_where(mask & needed, gates), tl.where(needed, last, 0.0)


@triton.jit
def bottom_up_term(
    products, projected, projected_detector, h, detectors, layer, step, steps, b, rows_padded, units, mask, stride,
    needed, LAYERS: tl.constexpr, SIZES: tl.constexpr, SIZE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """W h_below of eq. (1), in layer 1 of the input, as `recurrent_term`."""
    below = tl.maximum(layer - 1, 0)
    input_row = step.to(tl.int64) * rows_padded + b
    row = product_index(layer, BOTTOM_UP, step, LAYERS, KEEP).to(tl.int64) * rows_padded + b
    if layer > 0:
        bottom = products + row * (GATES * SIZE)
    else:
        bottom = projected + input_row * (GATES * SIZE)
    gates = load_gates(bottom, units, stride, mask)
    mask_below = units < of_layer(SIZES, below, LAYERS)
    last = detector_product(h, detectors, layer, BOTTOM_UP, row_of(below, step + 1, steps + 1, b, rows_padded), units,
                            mask_below, SIZE)  # fmt: skip
    first = tl.where(units == 0, tl.load(projected_detector + input_row), 0.0)
    return gates_where(mask & needed, gates), tl.where(needed, tl.where(layer > 0, last, first), 0.0)


@triton.jit
def terms(
    products, projected, projected_detector, h, masks, detectors, h_prev, layer, step, steps, b, rows_padded, units,
    mask, stride, recurrent, top_down, bottom_up, LAYERS: tl.constexpr, SIZES: tl.constexpr, SIZE: tl.constexpr,
    KEEP: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The three products of eq. (1): their rows of the gates, and the vectors whose sums are the detector's rows."""
    gates_r, last_r = recurrent_term(
        products, masks, detectors, h_prev, layer, step, b, rows_padded, units, mask, stride, recurrent, LAYERS, SIZE,
        KEEP, MASKED,
    )  # fmt: skip
    if NORM:  # otherwise COPY without gates requires the detector's row all the same
        last_r = tl.where(recurrent, last_r, 0.0)
    gates_t, last_t = top_down_term(
        products, h, detectors, layer, step, steps, b, rows_padded, units, mask, stride,
        top_down & (layer + 1 < LAYERS), LAYERS, SIZES, SIZE, KEEP,
    )  # fmt: skip
    gates_b, last_b = bottom_up_term(
        products, projected, projected_detector, h, detectors, layer, step, steps, b, rows_padded, units, mask, stride,
        bottom_up, LAYERS, SIZES, SIZE, KEEP,
    )  # fmt: skip
    return (gates_r, gates_t, gates_b), (last_r, last_t, last_b)


@triton.jit
def normalise(
    rows, lasts, gains, detector_gains, layer, units, mask, stride, count, SIZE: tl.constexpr, EPS: tl.constexpr
):  # fmt: skip
    """Layer normalisation of the three products, each over all its rows: the rows of the gates, the detector's rows,
    and for the backward pass each mean, 1 / deviation and the detector's row before it was normalised."""
    totals = sums((added_gates(rows[0]), added_gates(rows[1]), added_gates(rows[2]), lasts[0], lasts[1], lasts[2]), 6)
    means = ()
    centred = ()
    squares = ()
    for product in tl.static_range(PRODUCTS):
        mean = (totals[product] + totals[PRODUCTS + product]) / count
        gates = gates_where(mask, normalised(rows[product], mean, 1.0))
        means += (mean,)
        centred += (gates,)
        squares += (added_gates(multiply_gates(gates, gates)),)
    variances = sums(squares, PRODUCTS)
    scaled = ()
    last_rows = ()
    found = ()
    for product in tl.static_range(PRODUCTS):
        vector = layer * PRODUCTS + product
        last = totals[PRODUCTS + product] - means[product]
        rstd = tl.rsqrt((variances[product] + last * last) / count + EPS)
        gain = load_gates(gains + vector * (GATES * SIZE), units, stride, mask)
        scaled += (multiply_gates(normalised(centred[product], 0.0, rstd), gain),)
        last_rows += (last * rstd * tl.load(detector_gains + vector),)
        found += ((means[product], rstd, totals[PRODUCTS + product]),)
    return scaled, last_rows, found


@triton.jit
def pre_activations(rows, biases, z_prev, z_below):
    """Eq. (1) of all gates."""
    s = ()
    for gate in tl.static_range(GATES):
        s += (pre_activation(rows[0][gate], rows[1][gate], rows[2][gate], biases[gate], z_prev, z_below),)
    return s


@triton.jit
def add_read(
    total, weights, read, factors, gate, end, SIZE: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """total (HIDDEN, CHUNK) and what the detector's hidden units make of a vector of `end` numbers times its gate, to
    be summed over CHUNK: one sum of all three vectors, for a sum waits for all threads."""
    inner = tl.arange(0, CHUNK)
    w = weights + tl.arange(0, HIDDEN)[:, None] * SIZE + inner[None, :]
    for k in range(0, end, CHUNK):
        value = tl.load(read + k + inner)
        if MASKED:
            value *= tl.load(factors + k + inner)
        value = tl.where(gate != 0, gate * value, 0.0)
        total += tl.load(w + k) * value[None, :]
    return total


@triton.jit
def detector_hidden(
    h, masks, detector_hidden_weights, detector_hidden_biases, detector_outputs, projected_hidden, layer, step, steps,
    b, rows_padded, z_prev, z_below, needed, LAYERS: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr,
    SKIP: tl.constexpr, TOP: tl.constexpr, MASKED: tl.constexpr, HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """What the detector's hidden layer adds to u, eq. (2a); anything where not needed. A loop of no turns leaves out
    what is closed, for here the weights are most of what a program reads."""
    above = tl.minimum(layer + 1, LAYERS - 1)
    below = tl.maximum(layer - 1, 0)
    needed = needed & ((layer + 1 < LAYERS) | TOP)
    top_down = needed & (layer + 1 < LAYERS) & ((z_prev != 0) | (not SKIP))
    bottom_up = needed & (layer > 0) & ((z_below != 0) | (not SKIP))
    matrix = detector_hidden_weights + (layer * PRODUCTS).to(tl.int64) * (HIDDEN * SIZE)
    own = row_of(layer, 0, 1, b, rows_padded) * SIZE
    total = tl.zeros((HIDDEN, CHUNK), dtype=tl.float32)
    total = add_read(
        total, matrix + RECURRENT * (HIDDEN * SIZE), h + row_of(layer, step, steps + 1, b, rows_padded) * SIZE,
        masks + own, 1.0, tl.where(needed, of_layer(PADDED, layer, LAYERS), 0), SIZE, HIDDEN, CHUNK, MASKED,
    )  # fmt: skip
    total = add_read(
        total, matrix + TOP_DOWN * (HIDDEN * SIZE), h + row_of(above, step, steps + 1, b, rows_padded) * SIZE,
        masks, z_prev, tl.where(top_down, of_layer(PADDED, above, LAYERS), 0), SIZE, HIDDEN, CHUNK, False,
    )  # fmt: skip
    total = add_read(
        total, matrix + BOTTOM_UP * (HIDDEN * SIZE), h + row_of(below, step + 1, steps + 1, b, rows_padded) * SIZE,
        masks, z_below, tl.where(bottom_up, of_layer(PADDED, below, LAYERS), 0), SIZE, HIDDEN, CHUNK, False,
    )  # fmt: skip
    hidden_units = tl.arange(0, HIDDEN)
    first = tl.load(projected_hidden + (step.to(tl.int64) * rows_padded + b) * HIDDEN + hidden_units)
    products = tl.sum(total, 1) + tl.where(layer == 0, first, 0.0)
    parameters = layer * HIDDEN + hidden_units
    return hidden_term(products, tl.load(detector_hidden_biases + parameters), tl.load(detector_outputs + parameters))


@triton.jit
def store_state(
    h, hidden, read, mask_of_h, c, gates, h_prev, c_prev, z_prev, z_below, keep, after, units, mask,
    SIZE: tl.constexpr, MASKED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Stores h and c, bit for bit those of the step before where `keep`, and h as products read it."""
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
    products, projected, projected_detector, h, hidden, read, masks, c, z, u, running, gates, statistics,
    valid, noise, boundaries, probs, detectors, bias, detector_bias, gains, detector_gains,
    detector_hidden_weights, detector_hidden_biases, detector_outputs, projected_hidden,
    scalars, phase, steps, rows_padded,
    LAYERS: tl.constexpr, SIZES: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    KEEP: tl.constexpr, TRAINING: tl.constexpr, NORM: tl.constexpr, SKIP: tl.constexpr, MODE: tl.constexpr,
    NESTED: tl.constexpr, TOP: tl.constexpr, MASKED: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr,
    HIDDEN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Equations (1) to (6) of one sample and one cell. Grid: samples, cells of the phase."""
    b = tl.program_id(0)
    layer, step = place(phase, tl.program_id(1))
    if (layer < LAYERS) & (step >= 0) & (step < steps):
        size = of_layer(SIZES, layer, LAYERS)
        stride = of_layer(PADDED, layer, LAYERS)
        units = tl.arange(0, BLOCK)
        mask = units < size
        before = row_of(layer, step, steps + 1, b, rows_padded)
        after = before + rows_padded
        here = tl.load(valid + step * rows_padded + b)
        z_prev = tl.load(z + before)
        z_below = z_below_of(z, layer, step, steps, b, rows_padded)
        run = tl.load(running + before)
        recurrent, top_down, bottom_up, again = needed(z_prev, z_below, here, run, TRAINING, NORM, SKIP)
        copied = (here != 0) & (z_prev == 0) & (z_below == 0)
        # Products and states are loaded whether they are needed or not, so that no such load waits for another.
        h_prev = tl.load(h + before * SIZE + units, mask=mask, other=0.0)
        c_prev = tl.load(c + before * SIZE + units, mask=mask, other=0.0)
        rows, lasts = terms(
            products, projected, projected_detector, h, masks, detectors, h_prev, layer, step, steps, b, rows_padded,
            units, mask, stride, recurrent != 0, top_down != 0, bottom_up != 0, LAYERS, SIZES, SIZE, KEEP, NORM, MASKED,
        )  # fmt: skip
        biases = load_gates(bias + layer * (GATES * SIZE), units, stride, mask)
        if NORM:
            rows, last_rows, found = normalise(rows, lasts, gains, detector_gains, layer, units, mask, stride,
                                               (size * GATES + 1).to(tl.float32), SIZE, EPS)  # fmt: skip
        else:
            last_rows = sums(lasts, 3)
        activated = activate(pre_activations(rows, biases, z_prev, z_below))
        row_bias = tl.load(detector_bias + layer)
        logit = pre_activation(last_rows[0], last_rows[1], last_rows[2], row_bias, z_prev, z_below)
        if HIDDEN:
            logit += detector_hidden(
                h, masks, detector_hidden_weights, detector_hidden_biases, detector_outputs, projected_hidden, layer,
                step, steps, b, rows_padded, z_prev, z_below, (again == 0) & (here != 0), LAYERS, PADDED, SIZE, SKIP,
                TOP, MASKED, HIDDEN, CHUNK,
            )  # fmt: skip
        logit = tl.where(again | (here == 0), tl.load(u + before), logit)

        store_state(h, hidden, read, masks + row_of(layer, 0, 1, b, rows_padded) * SIZE, c, activated, h_prev, c_prev,
                    z_prev, z_below, copied | (here == 0), after, units, mask, SIZE, MASKED, HALF)  # fmt: skip
        emit(logit, z, boundaries, probs, noise, layer, z_prev, z_below, here, tl.load(scalars), after,
             row_of(layer, step, steps, b, rows_padded), LAYERS, MODE, NESTED, TOP)  # fmt: skip
        tl.store(u + after, logit)
        tl.store(running + after, copied.to(tl.int32))
        if TRAINING:
            keep_saved(gates, activated, again, before, after, units, stride, mask, SIZE)
            if NORM:
                keep_statistics(statistics, again, before, after, found)


@triton.jit
def keep_saved(gates, activated, again, before, after, units, stride, mask, SIZE: tl.constexpr):
    """The gates for the backward pass; within a run of COPY steps those of its first step."""
    if again:
        old = load_gates(gates + before * (SAVED * SIZE), units, stride, mask, SAVED)
        store_gates(gates + after * (SAVED * SIZE), units, stride, mask, old, SAVED)
    else:
        store_gates(gates + after * (SAVED * SIZE), units, stride, mask, activated, SAVED)


@triton.jit
def keep_statistics(statistics, again, before, after, found):
    """The statistics of `normalise` for the three products; those of the recurrent one go with the gates of a run."""
    old = statistics + before * (PRODUCTS * STATISTICS)
    new = statistics + after * (PRODUCTS * STATISTICS)
    for index in tl.static_range(STATISTICS):
        tl.store(new + index, tl.where(again, tl.load(old + index), found[0][index]))
        tl.store(new + STATISTICS + index, found[1][index])
        tl.store(new + 2 * STATISTICS + index, found[2][index])
