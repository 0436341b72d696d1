"""Run by test_memory.py in a process of its own: calls of the compiled kernel under limits of the address space.

usage: limited_memory.py THREADS
Prints for each kind of call how many succeeded and how many ended in MemoryError; anything else that goes wrong is a
traceback.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import contextmanager

import torch
from problems import make_problem

from fairseq_hmrnn.modules import LayerOutput
from fairseq_hmrnn.ops import RecurrenceOptions, cpu
from fairseq_hmrnn.ops.cpu.generation import Generation, OutputParameters

MIB = 1 << 20
SIZES, SYMBOLS = [130, 70], 11
LARGE, STEP = 4000, MIB // 4  # samples, and how close limits are: threads' own memory takes some ten steps
LEAST, STEPS, FAILURES = 4 * MIB, 16, 10  # the lowest limit; how many are tried one below the other, and must fail
OPTIONS = RecurrenceOptions(slope=0.8, detector_grad_scale=1.0)


@contextmanager
def address_space(room: int):
    """At most `room` bytes more than now."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (now + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def problem(batch: int):
    made = make_problem(1, 2, batch, SIZES, OPTIONS, layer_norm=True, dtype=torch.float32, detector_hidden=9)
    for layer in made.layers:  # gradients of x and the state: then the threads' own memory is the last to be asked for
        for tensor in layer:
            if tensor is not None:
                tensor.requires_grad_(False)
    return made


def forward(batch: int):
    made = problem(batch)

    def call():
        with torch.no_grad():
            return cpu.hm_lstm_cpu(*made).hidden

    return call


def backward(batch: int):
    made = problem(batch)
    hidden = cpu.hm_lstm_cpu(*made).hidden
    grads = [torch.ones_like(h) for h in hidden]
    return lambda: torch.autograd.grad(hidden, [made.x, *made.state.h], grads, retain_graph=True)


def generation(batch: int):
    made = problem(batch)
    torch.manual_seed(4)
    output = LayerOutput(SIZES, 9)
    parameters = OutputParameters(output.layer_weights(), torch.randn(SYMBOLS, 9), torch.randn(SYMBOLS))
    begun = Generation(
        cpu.PackedLayers(made.layers, "compiled"), OPTIONS, torch.randn(SYMBOLS, made.x.size(2)), True, parameters, 1
    )
    reached = begun.begin(made.state)
    tokens = torch.randint(2, SYMBOLS, (1, batch))
    start = [tensor.clone() for tensor in (*reached.state.h, *reached.state.c, reached.state.z, reached.terms)]

    def call():
        for tensor, value in zip((*reached.state.h, *reached.state.c, reached.state.z, reached.terms), start):
            tensor.copy_(value)
        reached.copy_u.fill_(float("nan"))
        return begun.run(reached, tokens)[:2]

    return call


class Calls:
    """A large call that is tried with little room, and a small one that must work after it."""

    def __init__(self, make):
        self.large, self.small = make(LARGE), make(20)
        self.expected_large, self.expected_small = self.large(), self.small()  # and all threads are there now
        cpu.kernel.compiled.clear_buffers()
        self.in_use = cpu.kernel.compiled.buffer_bytes()[0]
        self.succeeded = self.failed = 0

    def fits(self, room: int) -> bool:
        with address_space(room):
            try:
                found = self.large()
            except MemoryError:
                found = None
            small = self.small()
        assert all(map(torch.equal, small, self.expected_small)), "the call after it is wrong"
        fits = found is not None
        assert not fits or all(map(torch.equal, found, self.expected_large)), "the call itself is wrong"
        del found, small
        assert cpu.kernel.compiled.buffer_bytes()[0] == self.in_use, "buffers are still in use"
        cpu.kernel.compiled.clear_buffers()
        self.failed += not fits
        self.succeeded += fits
        return fits


def main(threads: str):
    libc = ctypes.CDLL(None)
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: what is freed is no longer in the address space
        libc.mallopt(parameter, 1 << 16)
    torch.set_num_threads(int(threads))
    cpu.kernel.compiled.hold_threads(True)
    for make in (forward, backward, generation):
        print(make.__name__, *try_limits(make))


def try_limits(make):
    """Halve the room between failure and success, then try what is close to the least that was enough. Returns how many
    calls succeeded and failed.

    On a busy machine threads seldom hold their own memory at the same time: limits far below one that was not enough
    then are, so that limits go down until some calls have failed."""
    calls = Calls(make)
    least, most = LEAST, 512 * MIB
    while most - least > STEP:
        middle = (least + most) // 2
        least, most = (least, middle) if calls.fits(middle) else (middle, most)
    tried, room = 0, most
    while tried < STEPS or (calls.failed < FAILURES and room > LEAST):  # one thread's memory is there, another's is not
        calls.fits(max(LEAST, room))
        tried, room = tried + 1, room - STEP
    for share in (2, 4, 6, 8):
        calls.fits(LEAST + most * share // 10)
    return calls.succeeded, calls.failed


if __name__ == "__main__":
    main(*sys.argv[1:])
