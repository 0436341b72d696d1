"""Compile every Triton kernel for GPUs that need not be there, as the launches of real shapes would.

    python tests/ops/triton_compile.py [--quick | --table] [CAPABILITY ...]

Prints for every kernel and set of constants its registers, spilled bytes and shared memory, as the assembler that
comes with Triton reports them. Fails where a kernel does not compile or requires more shared memory than there is.
--table is the one of ops/README.md: layers of 512 and 1024 with layer normalisation, B 64.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from fairseq_hmrnn.ops.triton import launch
from fairseq_hmrnn.ops.triton.buffers import Buffers, Shape

# By capability, of an A100, an RTX 3090, an H100 and a B200.
CARDS = {
    80: launch.Card(108, 163 * 1024, 8),
    86: launch.Card(82, 99 * 1024, 8),
    90: launch.Card(132, 227 * 1024, 9),
    100: launch.Card(148, 227 * 1024, 10),
}
KERNELS = ("forward_products", "forward_cell", "backward_products", "backward_cell")
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
TENSOR_CORES = ("tcgen05.mma", "wgmma", "mma.sync")  # instructions, those of the newest GPUs first
OPTIONS = ("num_warps", "num_stages")


class Recorder:
    """Stands in for a kernel: keeps the arguments of its launches instead of running."""

    def __init__(self, kernel):
        self.kernel, self.arg_names, self.launches = kernel, kernel.arg_names, {}

    def __getitem__(self, grid):
        return self.record

    def record(self, **given):
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                aligned = value.data_ptr() % 16 == 0
            else:
                signature[parameter.name] = "i32"
                aligned = value % 16 == 0 and not parameter.do_not_specialize
            if aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        options = {name: given[name] for name in OPTIONS if name in given}
        key = repr((signature, constants, sorted(attributes), options))
        self.launches[key] = (signature, constants, attributes, options)


def launches(shape: Shape, capability: int):
    """(kernel, signature, constants, attributes, options) of every different launch of a call on such a card."""
    recorders = {name: Recorder(getattr(launch, name)) for name in KERNELS}
    kept = {**{name: recorder.kernel for name, recorder in recorders.items()}, "card_of": launch.card_of}
    try:
        launch.card_of = lambda device: CARDS[capability]
        for name, recorder in recorders.items():
            setattr(launch, name, recorder)
        launcher = launch.Launcher(Buffers(shape))
        launcher.forward()
        if shape.training:
            launcher.backward()
    finally:
        for name, value in kept.items():
            setattr(launch, name, value)
    for recorder in recorders.values():
        for found in recorder.launches.values():
            yield (recorder.kernel, *found)


def assembler(capability):
    """Triton's own; before 3.5 it had one for all."""
    return get_ptxas(capability) if inspect.signature(get_ptxas).parameters else get_ptxas()


def compile_one(kernel, signature, constants, attributes, options, capability):
    """Registers, spilled bytes and shared memory of a kernel on a GPU of this capability."""
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".ptx") as ptx:
        ptx.write(compiled.asm["ptx"].encode())
        ptx.flush()
        name = re.search(r"^\.target\s+(\w+)", compiled.asm["ptx"], re.MULTILINE).group(1)
        command = [assembler(capability).path, "-v", f"--gpu-name={name}", ptx.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    spilled = int(re.search(r"(\d+) bytes spill stores", report).group(1))
    return registers, spilled, compiled.metadata.shared, compiled.asm["ptx"]


def shapes():
    """Both kinds of normalisation and all dtypes at a published size, and the other switches on small ones. On the meta
    device: on a CPU the kernels would be compiled as the interpreter takes them."""
    real = dict(steps=2, batch=64, input_size=128, sizes=(512, 512, 512), dtype=torch.bfloat16,
                device=torch.device("meta"), layer_norm=False, masked=False, training=True, boundary="step",
                nested_boundaries=False, top_boundary=False, detector_sends_gradients=False, skip=True)  # fmt: skip
    yield "bf16", Shape(**real)
    yield "bf16 layer norm", Shape(**{**real, "layer_norm": True})
    yield "fp16, hidden", Shape(**{**real, "dtype": torch.float16, "detector_hidden": (32, 32, 0)})
    yield "fp32 layer norm", Shape(**{**real, "layer_norm": True, "dtype": torch.float32})
    yield "fp16 sorted", Shape(**{**real, "dtype": torch.float16, "batch": 192})
    small = {**real, "sizes": (33, 5), "batch": 3, "masked": True, "nested_boundaries": True, "top_boundary": True}
    yield (
        "small, exact, bernoulli",
        Shape(
            **{**small, "layer_norm": True, "detector_sends_gradients": True, "boundary": "bernoulli", "skip": False}
        ),
    )
    yield "small, hidden", Shape(**{**small, "layer_norm": True, "detector_hidden": (3, 70)})
    yield "small, soft", Shape(**{**small, "boundary": "soft", "sizes": (5, 7, 6, 3)})
    yield "one step", Shape(**{**real, "steps": 1, "batch": 1, "training": False})
    yield "H 2048, layer norm", Shape(**{**real, "sizes": (2048, 1500), "layer_norm": True})


def table(capabilities):
    """Registers, spilled bytes and shared memory in Markdown, a column for each GPU. N: units of the detectors' hidden
    layers, which change `forward_cell` alone."""
    real = dict(shapes())["bf16 layer norm"]
    print("| kernel | H | |", " | ".join(f"sm_{capability}" for capability in capabilities), "|")
    print("|---|---|---" + "|---" * len(capabilities), "|", sep="")
    for size in (512, 1024):
        for name, dtype, hidden in (
            ("16 bit", torch.bfloat16, ()),
            ("fp32", torch.float32, ()),
            ("16 bit, N 32", torch.bfloat16, (32, 32, 0)),
            ("fp32, N 32", torch.float32, (32, 32, 0)),
        ):
            shape = real._replace(sizes=(size,) * 3, dtype=dtype, detector_hidden=hidden)
            for same in zip(*(launches(shape, capability) for capability in capabilities)):
                kernel = same[0][0]
                if hidden and kernel.__name__ != "forward_cell":
                    continue
                found = [compile_one(*each, capability)[:3] for each, capability in zip(same, capabilities)]
                cells = [f"{registers}, {spilled} B, {shared / 1024:.3g} KB" for registers, spilled, shared in found]
                print(f"| {kernel.__name__} | {size} | {name} |", " | ".join(cells), "|", flush=True)


def report(capability, name, shape):
    """Prints a line for every kernel of a call; yields its spilled bytes."""
    for kernel, *rest in launches(shape, capability):
        registers, spilled, shared, ptx = compile_one(kernel, *rest, capability)
        tensor_cores = next((name for name in TENSOR_CORES if name in ptx), "-")
        print(f"sm_{capability} {name:24} {kernel.__name__:18} {registers:4} registers {spilled:5} bytes spilled"
              f" {shared:7} shared {tensor_cores}", flush=True)  # fmt: skip
        if shared > CARDS[capability].shared_memory:
            sys.exit(f"{kernel.__name__} requires {shared} bytes of shared memory")
        yield spilled


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capabilities", type=int, nargs="*", default=[80, 90, 100, 86], metavar="CAPABILITY")
    parser.add_argument("--quick", action="store_true", help="for the suite: one shape each")
    parser.add_argument("--table", action="store_true", help="what ops/README.md shows")
    args = parser.parse_args()
    if args.table:
        table(args.capabilities)
        return
    spilled = []
    for number, capability in enumerate(args.capabilities):
        for name, shape in [list(shapes())[number]] if args.quick else shapes():
            spilled += report(capability, name, shape)
    print(f"{len(spilled)} kernels compiled, {sum(spilled)} bytes spilled")


if __name__ == "__main__":
    main()
