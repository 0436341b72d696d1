"""The recurrent state that goes from one window of a text to the next: truncated back-propagation through time."""

from __future__ import annotations

import logging
from typing import Any, Dict, Optional, Sequence

from torch import Tensor

from ..ops import HMLSTMState

logger = logging.getLogger(__name__)


class CarriedState:
    """Where the streams of one text stand. A model has one of these for training and one for evaluation.

    A window of a batch of parallel streams is named by the text (`stream`, a split's name) and its index (`window`).
    Window 0 starts from zeros and forgets whatever came before; window n starts where window n - 1 ended.

    hidden_sizes: of the layers, bottom to top. replays: the windows of an update may be asked for again, in order (AMP
    does so after an overflow), and start as they did the first time; `begin_update` says where updates begin.
    """

    def __init__(self, hidden_sizes: Sequence[int], replays: bool):
        self.hidden_sizes, self.replays = hidden_sizes, replays
        self.stream: Optional[str] = None
        self.window = -1  # the last one that was read
        self.state: Optional[HMLSTMState] = None  # at its end
        self._update = -1
        self._starts: Dict[int, Optional[HMLSTMState]] = {}  # of the windows of this update, with `replays`

    def start(self, stream: str, window: int, like: Tensor, reset: Optional[Tensor] = None) -> Optional[HMLSTMState]:
        """The state before a window's first symbol, None for zeros.

        like: a tensor of the dtype and device that the state is to have. reset: (B,) bool, the rows that start from
        zeros. A window whose predecessor was not read, because memory ran out there, starts from zeros, with a warning.
        """
        if stream != self.stream or window == 0:
            self._starts = {}
        if window == 0:
            state = None
        elif window in self._starts:
            state = self._starts[window]
        elif (stream, window) == (self.stream, self.window + 1):
            state = self.state
        else:
            logger.warning(f"window {window} of {stream} starts from zeros: the window before it was not read")
            state = None
        if self.replays:
            self._starts[window] = state
        if state is None:
            return None
        state = state.to(like)
        return state if reset is None else state.apply(lambda tensor: tensor.masked_fill(reset.unsqueeze(1), 0))

    def reach(self, stream: str, window: int, state: HMLSTMState) -> None:
        """Keep the state at a window's end, cut off from its graph."""
        self.stream, self.window, self.state = stream, window, state.detach()

    def begin_update(self, update: int) -> None:
        """Called before every window; with another update the windows read so far will not be asked for again."""
        if update != self._update:
            self._update, self._starts = update, {}

    def save(self) -> Optional[Dict[str, Any]]:
        """stream, window and `rows` (B, F), the packed state at its end; None if nothing was read yet."""
        if self.state is None:
            return None
        return {"stream": self.stream, "window": self.window, "rows": self.state.pack()}

    def restore(self, saved: Dict[str, Any]) -> None:
        """Go on from what `save` returned. ValueError for a state of other layers."""
        self.reach(saved["stream"], saved["window"], HMLSTMState.unpack(saved["rows"], self.hidden_sizes))
