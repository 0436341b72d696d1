"""Buffers that are used again, and the CUDA graphs over them."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import OrderedDict
from typing import Callable, ContextManager, Dict, Hashable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .buffers import Buffers, Shape, copies
from .launch import Launcher

IDLE = 4  # buffers kept for later calls; a training run on texts of one length needs one or two
LONG, MULTIPLE = 60, 20  # steps, see shared_steps


def shared_steps(steps: int) -> int:
    """The length of the buffers of a call with a graph. Long ones are rounded up, so that windows of varying length
    share a few graphs; the steps after a call's last one are frozen, as at padding."""
    return steps if steps <= LONG else -(-steps // MULTIPLE) * MULTIPLE


Results = Sequence[Optional[Tensor]]


def capturable(device: torch.device) -> bool:
    """Whether what is launched there can become a CUDA graph of its own."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> int:
    """A key that tells streams apart: buffers of one stream must not be used on another while it runs."""
    return torch.cuda.current_stream(device).cuda_stream


def current_device(device: torch.device) -> ContextManager:
    """Makes a GPU the one on which Triton launches and graphs are captured: the current one, not that of the
    tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def capture(function: Callable[[], Results]) -> Tuple[Callable[[], None], Results]:
    """A function as a CUDA graph: what replays it, and its results, which every replay writes anew. It must read and
    write memory that stays in place."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a data loader's, may allocate meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = function()
    return graph.replay, results


class _Graph:
    """A function of fixed memory: called the first time, which compiles its kernels; then captured; then replayed."""

    def __init__(self, function: Callable[[], Results]):
        self.function, self.called = function, False
        self.replay: Optional[Callable[[], None]] = None
        self.results: Results = ()

    def __call__(self) -> List[Optional[Tensor]]:
        if not self.called:
            self.called = True
            return list(self.function())
        if self.replay is None:
            self.replay, self.results = capture(self.function)
        self.replay()
        made = iter(copies([t for t in self.results if t is not None]))
        return [None if t is None else next(made) for t in self.results]


class Workspace:
    """Buffers and what runs over them, for one shape. A call loads its weights and inputs into the buffers first, so
    that graphs read nothing else: under autocast weights are cast anew, to another place, by every call."""

    def __init__(self, shape: Shape, use_graphs: bool):
        self.buffers, self.use_graphs = Buffers(shape), use_graphs
        self.launcher = Launcher(self.buffers)
        self.graphs: Dict[Hashable, _Graph] = {}

    def run(self, name: Hashable, function: Callable[[], Results]) -> List[Optional[Tensor]]:
        if not self.use_graphs or not capturable(self.buffers.shape.device):
            return list(function())
        if name not in self.graphs:
            self.graphs[name] = _Graph(function)
        return self.graphs[name]()

    def forward(self) -> None:
        self.run("forward", self._forward)

    def _forward(self) -> Results:
        self.launcher.forward()
        return ()

    def backward(self, need_x: bool, need_weights: bool) -> List[Optional[Tensor]]:
        return self.run((need_x, need_weights), lambda: self.launcher.gradients(need_x, need_weights))


class _Pool:
    """Workspaces at rest, the one used last at the end."""

    def __init__(self):
        self.lock, self.idle = threading.Lock(), OrderedDict()
        # Leases may die in a garbage collection, which may interrupt this thread where it holds the lock: what comes
        # back waits in a queue whose `put` can be interrupted by itself.
        self.returned: queue.SimpleQueue = queue.SimpleQueue()

    def give_back(self, key: Hashable, workspace: Workspace) -> None:
        self.returned.put((key, workspace))

    def take(self, key: Hashable) -> Optional[Workspace]:
        with self.lock:
            self._sort_returned()
            found = self.idle.get(key)
            workspace = found.pop() if found else None
            if found is not None and not found:
                del self.idle[key]
            return workspace

    def at_rest(self) -> List[Workspace]:
        """All of them."""
        with self.lock:
            self._sort_returned()
            return [workspace for same in self.idle.values() for workspace in same]

    def clear(self) -> None:
        with self.lock:
            self._sort_returned()
            self.idle.clear()

    def _sort_returned(self) -> None:
        while True:
            try:
                key, workspace = self.returned.get_nowait()
            except queue.Empty:
                break
            self.idle.setdefault(key, []).append(workspace)
            self.idle.move_to_end(key)
        while sum(map(len, self.idle.values())) > IDLE:
            oldest = next(iter(self.idle))
            self.idle[oldest].pop(0)
            if not self.idle[oldest]:
                del self.idle[oldest]


pool = _Pool()


class Lease:
    """A workspace in use, for a call of so many steps; it goes back to the pool when the lease dies, with the autograd
    graph that holds it."""

    def __init__(self, workspace: Workspace, key: Optional[Hashable], steps: int):
        self.workspace, self.steps = workspace, steps
        if key is not None:
            weakref.finalize(self, pool.give_back, key, workspace).atexit = False


def lease(shape: Shape, use_graphs: bool) -> Lease:
    """With graphs, a workspace that ran before on this stream, if one is at rest."""
    if not use_graphs or not capturable(shape.device):
        return Lease(Workspace(shape, False), None, shape.steps)
    steps, shape = shape.steps, shape._replace(steps=shared_steps(shape.steps))
    key = (shape, current_stream(shape.device))
    return Lease(pool.take(key) or Workspace(shape, True), key, steps)
