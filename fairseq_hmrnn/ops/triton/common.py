"""Functions that the kernels share. No kernel masks its products: all buffers are padded with zeros (`buffers.py`)."""

import triton
import triton.language as tl

from .. import types
from .cell import GATES

PRODUCTS = tl.constexpr(types.NUM_PRODUCTS)
RECURRENT = tl.constexpr(types.RECURRENT)
TOP_DOWN = tl.constexpr(types.TOP_DOWN)
BOTTOM_UP = tl.constexpr(types.BOTTOM_UP)
STATISTICS = tl.constexpr(3)  # of a product, kept for the backward pass: see `normalise`
SPLIT = GATES  # the backward product sums over its rows gate by gate, side by side


@triton.jit
def place(phase, number):
    """Layer and step of cell `number` of a phase. Cells of equal 2 step + layer do not depend on each other."""
    layer = (phase + 2) % 2 + 2 * number
    return layer, (phase + 2 - layer) // 2 - 1


@triton.jit
def of_layer(NUMBERS: tl.constexpr, layer, LAYERS: tl.constexpr):
    """The layer's number of a compile-time tuple. No load, and where all are equal a constant, so that the compiler
    knows how addresses are aligned."""
    found = NUMBERS[0]
    for index in tl.static_range(1, LAYERS):
        found = tl.where(layer == index, NUMBERS[index], found)
    return found


@triton.jit
def row_of(layer, slot, slots, row, rows):
    """Index of a row in a buffer (layers, slots, rows, ...)."""
    return ((layer * slots + slot).to(tl.int64)) * rows + row


@triton.jit
def needed(z_prev, z_below, valid, running, TRAINING: tl.constexpr, NORM: tl.constexpr, SKIP: tl.constexpr):
    """Which samples need which of the three products, int32 each, and which go on with a run of COPY steps.

    A COPY step needs the recurrent product once per run: for the gates in training, with layer normalisation for the
    detector (its row alone is in `forward_cell`). Closed terms are needed for the gradient of layer normalisation.
    """
    here = valid != 0
    active = here & ((z_prev != 0) | (z_below != 0))
    if SKIP:
        again = here & (active == 0) & (running != 0)
        recurrent = active | (here & (active == 0) & (running == 0)) if TRAINING or NORM else active
        top_down = active if TRAINING and NORM else active & (z_prev != 0)
        bottom_up = active if TRAINING and NORM else active & (z_below != 0)
    else:
        again = valid != valid  # nobody
        recurrent = here
        top_down = here
        bottom_up = here
    return recurrent.to(tl.int32), top_down.to(tl.int32), bottom_up.to(tl.int32), again


@triton.jit
def choose_rows(need, BLOCK_M: tl.constexpr, tile):
    """The samples of one tile when those in need come first: indices (BLOCK_M,), and how many are left for it."""
    rank = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    before = tl.cumsum(need, 0)
    rows = tl.sum((before[None, :] <= rank[:, None]).to(tl.int32), 1)
    used = rank < tl.sum(need, 0)
    return tl.where(used, rows, 0), used


@triton.jit
def add_product(total, a, w, UPCAST: tl.constexpr):
    """total + a w in float32. UPCAST is for the interpreter, which takes bfloat16 operands for integers."""
    if UPCAST:
        a = a.to(tl.float32)
        w = w.to(tl.float32)
    return tl.dot(a, w, total, input_precision="ieee")


@triton.jit
def load_gates(pointer, units, stride, mask, COUNT: tl.constexpr = GATES):
    """The rows of all gates, or of COUNT other vectors, of one sample; 0 where not `mask`."""
    gates = ()
    for gate in tl.static_range(COUNT):
        gates += (tl.load(pointer + gate * stride + units, mask=mask, other=0.0).to(tl.float32),)
    return gates


@triton.jit
def store_gates(pointer, units, stride, mask, gates, COUNT: tl.constexpr = GATES):
    for gate in tl.static_range(COUNT):
        tl.store(pointer + gate * stride + units, gates[gate].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def accumulate_gates(pointer, units, stride, mask, gates):
    """Adds to what lies there."""
    for gate in tl.static_range(GATES):
        target = pointer + gate * stride + units
        tl.store(target, tl.load(target, mask=mask, other=0.0) + gates[gate], mask=mask)


@triton.jit
def gates_where(condition, gates):
    """0 where the condition does not hold."""
    kept = ()
    for gate in tl.static_range(GATES):
        kept += (tl.where(condition, gates[gate], 0.0),)
    return kept


@triton.jit
def normalised(gates, mean, rstd):
    found = ()
    for gate in tl.static_range(GATES):
        found += ((gates[gate] - mean) * rstd,)
    return found


@triton.jit
def multiply_gates(a, b):
    products = ()
    for gate in tl.static_range(GATES):
        products += (a[gate] * b[gate],)
    return products


@triton.jit
def added_gates(gates):
    """Unit by unit."""
    total = gates[0]
    for gate in tl.static_range(1, GATES):
        total += gates[gate]
    return total


@triton.jit
def _add_2(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _add_6(a, b, c, d, e, f, g, h, i, j, k, m):
    return a + g, b + h, c + i, d + j, e + k, f + m


@triton.jit
def _add_8(a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q):
    return a + i, b + j, c + k, d + m, e + n, f + o, g + p, h + q


@triton.jit
def sums(vectors, COUNT: tl.constexpr):
    """The sum over the units of each of COUNT (2, 3, 6 or 8) vectors. Together, for a sum waits for all threads."""
    if COUNT == 2:
        return tl.reduce(vectors, 0, _add_2)
    elif COUNT == 3:
        return tl.reduce(vectors, 0, _add_3)
    elif COUNT == 6:
        return tl.reduce(vectors, 0, _add_6)
    else:
        tl.static_assert(COUNT == 8)
        return tl.reduce(vectors, 0, _add_8)
