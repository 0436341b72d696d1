"""The recurrent state of all layers as one value."""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from .host import is_on_host


class HMLSTMState(NamedTuple):
    """State of an L-layer HM-LSTM between two steps.

    h: tuple over layers of (B, H_l), the hidden states.
    c: tuple over layers of (B, H_l), the cell states.
    z: (B, L), the boundaries of the last step; the column of a layer without detector is 0.
    """

    h: Tuple[Tensor, ...]
    c: Tuple[Tensor, ...]
    z: Tensor

    @classmethod
    def zeros(cls, batch_size: int, hidden_sizes: Sequence[int], dtype=None, device=None) -> HMLSTMState:
        """The state before the first symbol: everything 0, so that every layer starts with UPDATE or COPY."""

        def new(size):
            return torch.zeros(batch_size, size, dtype=dtype, device=device)

        return cls(tuple(map(new, hidden_sizes)), tuple(map(new, hidden_sizes)), new(len(hidden_sizes)))

    @property
    def batch_size(self) -> int:
        return self.z.size(0)

    @property
    def hidden_sizes(self) -> Tuple[int, ...]:
        return tuple(h.size(1) for h in self.h)

    def apply(self, function: Callable[[Tensor], Tensor]) -> HMLSTMState:
        """The state with `function` applied to each of its tensors."""
        return HMLSTMState(tuple(map(function, self.h)), tuple(map(function, self.c)), function(self.z))

    def detach(self) -> HMLSTMState:
        """Cut the graph: the one place where truncated back-propagation truncates."""
        return self.apply(Tensor.detach)

    def reorder(self, order: Tensor) -> HMLSTMState:
        """Select rows of the batch, as beam search does. order: (B',) of row indices."""
        return self.apply(lambda tensor: tensor.index_select(0, order))

    def pack(self) -> Tensor:
        """All of it as one (B, 2 (H_1 + ... + H_L) + L) tensor: h, c and z of a sample side by side."""
        return torch.cat([*self.h, *self.c, self.z], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor, hidden_sizes: Sequence[int]) -> HMLSTMState:
        """The inverse of `pack`. ValueError for a tensor of another width."""
        sizes = [*hidden_sizes, *hidden_sizes, len(hidden_sizes)]
        if packed.size(1) != sum(sizes):
            raise ValueError(f"a state of layers {list(hidden_sizes)} has {sum(sizes)} columns, not {packed.size(1)}")
        parts = packed.split(sizes, dim=1)
        layers = len(hidden_sizes)
        return cls(parts[:layers], parts[layers:-1], parts[-1])

    def reorder_(self, order: Tensor) -> HMLSTMState:
        """`reorder` in place: copies only rows that change, within the state's own tensors, which the result shares.

        Most of the time beam search keeps most rows where they are. Not for a state with a graph behind it. On a GPU
        finding the rows would make it wait, so there this is `reorder`.
        """
        kept = order.numel()
        if kept > self.batch_size or not is_on_host(order):
            return self.reorder(order)
        changed = order.ne(torch.arange(kept)).nonzero().squeeze(1)
        if changed.numel():
            source = order[changed]
            for tensor in (*self.h, *self.c, self.z):
                tensor.index_copy_(0, changed, tensor.index_select(0, source))
        return self if kept == self.batch_size else self.apply(lambda tensor: tensor[:kept])

    def to(self, *args, **kwargs) -> HMLSTMState:
        """`Tensor.to` of every tensor."""
        return self.apply(lambda tensor: tensor.to(*args, **kwargs))
