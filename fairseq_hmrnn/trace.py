"""A model's output beside its predictions, which the criterion reads: the boundaries of a batch, as one value."""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

KEY = "trace"  # of the dictionary that fairseq's models return beside their predictions


class BoundaryTrace(NamedTuple):
    """Boundaries of a batch of B rows and T steps, in a model of L layers.

    boundaries, boundary_probs: (B, T, L), z and z~; 0 where a step is not valid and for a layer without detector.
    valid: (B, T) bool, False at padding.
    num_detectors: how many layers, from the bottom, have a boundary detector.
    num_updates: how many the model was trained for, in a recorded graph a tensor (); None if the model does not know.
    """

    boundaries: Tensor
    boundary_probs: Tensor
    valid: Tensor
    num_detectors: int
    num_updates: Optional[Union[int, Tensor]] = None

    def reorder(self, order: Tensor) -> BoundaryTrace:
        """Row i becomes what was row order[i]."""
        return self._with(tensor.index_select(0, order) for tensor in self._tensors)

    @classmethod
    def concatenate(cls, traces: Sequence[BoundaryTrace]) -> BoundaryTrace:
        """The rows of all of them, one after the other; of one model and equal T."""
        return traces[0]._with(map(torch.cat, zip(*(trace._tensors for trace in traces))))

    def in_source_order(self, rows: int) -> BoundaryTrace:
        """With the steps of both directions in the order of the source, if an encoder has read `rows` sources in both,
        2 * rows of these; otherwise itself."""
        if self.valid.size(0) != 2 * rows:
            return self
        return self._with(map(_second_reversed, self._tensors))

    @property
    def _tensors(self) -> Tuple[Tensor, Tensor, Tensor]:
        return self.boundaries, self.boundary_probs, self.valid

    def _with(self, tensors: Iterable[Tensor]) -> BoundaryTrace:
        boundaries, boundary_probs, valid = tensors
        return self._replace(boundaries=boundaries, boundary_probs=boundary_probs, valid=valid)


def _second_reversed(values: Tensor) -> Tensor:
    """Values (2 B, T, ...) with the steps of the last B rows reversed."""
    first, second = values.chunk(2)
    return torch.cat([first, second.flip(1)])


def trace_of(net_output: Any) -> Optional[BoundaryTrace]:
    """The trace in what a fairseq model returns, predictions and a dictionary; None where there is none."""
    extra = net_output[1] if isinstance(net_output, (tuple, list)) and len(net_output) > 1 else None
    return extra.get(KEY) if isinstance(extra, dict) else None
