"""Buffers that are used again, and the CUDA graphs over them."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Callable, Dict, Hashable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..parameters import LayerParameters
from .buffers import Buffers, Shape
from .launch import Launcher

IDLE = 4  # buffers kept for later calls; a training run on texts of one length needs one or two


class _Graph:
    """A function of fixed memory: called the first time, which compiles its kernels; then captured; then replayed."""

    def __init__(self, function: Callable[[], Sequence[Optional[Tensor]]]):
        self.function, self.calls, self.graph, self.results = function, 0, None, ()

    def __call__(self) -> List[Optional[Tensor]]:
        self.calls += 1
        if self.calls == 1 or torch.cuda.is_current_stream_capturing():
            return list(self.function())
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as a data loader's, may allocate meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.results = self.function()
            self.graph = graph
        self.graph.replay()
        return [None if t is None else t.clone() for t in self.results]


class Workspace:
    """Buffers and what runs over them, for one shape and weights at one place."""

    def __init__(self, shape: Shape, layers: Sequence[LayerParameters], use_graphs: bool):
        self.buffers, self.use_graphs = Buffers(shape), use_graphs
        self.launcher = Launcher(self.buffers)
        self.graphs: Dict[Hashable, _Graph] = {}
        # In a graph the weights are read from where they are now; the key of the pool holds their addresses.
        self.layers = layers

    def run(self, name: Hashable, function: Callable[[], Sequence[Optional[Tensor]]]) -> List[Optional[Tensor]]:
        if not self.use_graphs:
            return list(function())
        return self.graphs.setdefault(name, _Graph(function))()

    def forward(self) -> None:
        self.run("forward", self._forward)

    def _forward(self) -> Tuple[Tensor, ...]:
        self.buffers.load_weights(self.layers)
        self.launcher.forward()
        return ()

    def backward(self, want_x: bool, want_weights: bool) -> List[Optional[Tensor]]:
        return self.run((want_x, want_weights), lambda: self.launcher.gradients(want_x, want_weights))


class _Pool:
    """Workspaces at rest, the one used last at the end."""

    def __init__(self):
        self.lock, self.idle = threading.Lock(), OrderedDict()

    def take(self, key: Hashable) -> Optional[Workspace]:
        with self.lock:
            found = self.idle.get(key)
            workspace = found.pop() if found else None
            if found is not None and not found:
                del self.idle[key]
            return workspace

    def give_back(self, key: Hashable, workspace: Workspace) -> None:
        with self.lock:
            self.idle.setdefault(key, []).append(workspace)
            self.idle.move_to_end(key)
            while sum(map(len, self.idle.values())) > IDLE:
                oldest = next(iter(self.idle))
                self.idle[oldest].pop(0)
                if not self.idle[oldest]:
                    del self.idle[oldest]

    def clear(self) -> None:
        with self.lock:
            self.idle.clear()


pool = _Pool()


class Lease:
    """A workspace in use; it goes back to the pool when the lease dies, with the autograd graph that holds it."""

    def __init__(self, workspace: Workspace, key: Optional[Hashable]):
        self.workspace = workspace
        if key is not None:
            weakref.finalize(self, pool.give_back, key, workspace).atexit = False


def lease(shape: Shape, layers: Sequence[LayerParameters], use_graphs: bool) -> Lease:
    """With graphs, a workspace that ran before over the same weights on this stream, if one is at rest."""
    if not use_graphs or torch.cuda.is_current_stream_capturing():
        return Lease(Workspace(shape, layers, False), None)
    addresses = tuple(None if t is None else t.data_ptr() for layer in layers for t in layer)
    key = (shape, addresses, torch.cuda.current_stream(shape.device).cuda_stream)
    return Lease(pool.take(key) or Workspace(shape, layers, True), key)
