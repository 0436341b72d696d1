"""A text as parallel contiguous streams, cut into windows: what truncated back-propagation through time reads.

The text is cut into as many streams of equal length as all processes have rows in a batch together (batch size times
processes). A window is the next stretch of every stream. Every symbol of the text is predicted exactly once, also
across the borders of windows and streams; nothing is dropped. Streams differ in length by at most one symbol, which is
padded in the last window.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
import torch
from fairseq.data import ConcatDataset, FairseqDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.utils import move_to_cpu
from torch import Tensor

from ..options import PROBABILITY, number, whole
from .folders import matching

LENGTH = whole(1)  # of a window, in symbols
JITTER = number(0, 1, open_above=True)
_DIGITS = 9  # of products of length and jitter that count: 100 * (1 + .1) is 110.00000000000001
_STREAM_KEYS = ("stream", "window", "reset")  # of a batch's net_input, beside what every language model takes


class WindowOptions(NamedTuple):
    """How streams are cut.

    length: symbols of a window. jitter: share of `length` by which windows vary at random. reset_prob: probability
    that a stream's state is reset before a window.
    """

    length: int
    jitter: float = 0.0
    reset_prob: float = 0.0

    def check(self) -> WindowOptions:
        """Self, or ValueError."""
        LENGTH.check("tokens-per-sample", self.length)
        JITTER.check("window-jitter", self.jitter)
        PROBABILITY.check("state-reset-prob", self.reset_prob)
        return self

    @property
    def longest(self) -> int:
        """Symbols of the longest window that there may be."""
        return math.ceil(round(self.length * (1 + self.jitter), _DIGITS))

    def count_streams(self, max_sentences: Optional[float], max_tokens: Optional[float]) -> int:
        """As many as both allow, each None where it does not matter: streams, and the symbols of their windows. 1 if
        neither is given; max_tokens less than one window is as if not given."""
        limits = [max_sentences, max_tokens and max_tokens // self.longest]
        return int(min(filter(None, limits), default=1))

    def borders(self, num_steps: int, seed: int, epoch: int) -> np.ndarray:
        """(W + 1,) where windows start and end in a stream of num_steps; a function of seed and epoch alone."""
        if self.jitter == 0:
            inner = np.arange(0, num_steps, self.length)
        else:
            shortest = max(1, math.floor(round(self.length * (1 - self.jitter), _DIGITS)))
            random = np.random.RandomState([seed % 2**32, epoch])
            inner = random.randint(shortest, self.longest + 1, size=num_steps // shortest + 1).cumsum()
            inner = np.concatenate([[0], inner[inner < num_steps]])
        return np.append(inner, num_steps)

    def resets(self, num_streams: int, seed: int, epoch: int, window: int) -> np.ndarray:
        """(num_streams,) bool, which streams start this window from zeros; a function of the arguments alone."""
        return np.random.RandomState([seed % 2**32, epoch, window + 1]).rand(num_streams) < self.reset_prob


def read_tokens(dataset) -> np.ndarray:
    """All indices of one of fairseq's indexed datasets, one after the other, in the type they are stored in."""
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([read_tokens(part) for part in dataset.datasets])
    if isinstance(dataset, MMapIndexedDataset):
        return np.frombuffer(dataset._bin_buffer, dtype=dataset._index.dtype).copy()  # the dataset closes its file
    return np.concatenate([dataset[i].numpy() for i in range(len(dataset))] or [np.zeros(0, dtype=np.int64)])


CHECKSUM = "checksum of the text"
_CHECKED = 1 << 20  # symbols at once
_SMALLER_BATCH = " (batch size times processes): give a smaller --batch-size (for validation --batch-size-valid)"


class StreamDataset(FairseqDataset):
    """A split as one sequence of symbols.

    tokens: (N,) indices. name: the split's. dictionary, output_dictionary: fairseq's, of inputs and of targets.
    windows: how it is to be read.
    """

    def __init__(self, tokens: np.ndarray, name: str, dictionary, output_dictionary, windows: WindowOptions):
        self.tokens, self.name, self.windows = tokens, name, windows
        self.dictionary, self.output_dictionary = dictionary, output_dictionary
        self._checksum: Optional[int] = None  # until it is asked for

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, position: int) -> int:
        return int(self.tokens[position])

    def checksum(self) -> int:
        """CRC-32 of the indices, whichever type they are stored in."""
        if self._checksum is None:
            self._checksum = 0
            for start in range(0, len(self.tokens), _CHECKED):
                part = self.tokens[start : start + _CHECKED].astype("<i4")
                self._checksum = zlib.crc32(part.tobytes(), self._checksum)
        return self._checksum

    def check_holds(self, num_streams: int, remedy: str = _SMALLER_BATCH) -> None:
        """ValueError, which ends with the remedy, if it is too short to be cut into num_streams."""
        if len(self) < num_streams:
            raise ValueError(f"{self.name} has {len(self)} symbols, too few for {num_streams} streams{remedy}")

    def slice(self, positions: np.ndarray, inside: np.ndarray) -> Dict[str, Tensor]:
        """source and target at `positions` (B, T) of the text; padding where `inside` (B, T) is False. The source is
        the symbol before the target; before the first comes </s>, as if the text began a new line."""
        pad, eos = self.dictionary.pad(), self.dictionary.eos()
        last = len(self.tokens) - 1
        target = self.tokens[np.minimum(positions, last)].astype(np.int64)
        source = self.tokens[np.clip(positions - 1, 0, last)].astype(np.int64)
        source[positions == 0] = eos
        target[target >= len(self.output_dictionary)] = self.output_dictionary.unk()
        source[~inside], target[~inside] = pad, pad
        return {"source": torch.from_numpy(source), "target": torch.from_numpy(target)}


def load_stream(
    folder: str,
    split: str,
    dictionary,
    output_dictionary,
    windows: WindowOptions,
    dataset_impl: Optional[str] = None,
    combine: bool = False,
) -> StreamDataset:
    """A prepared split as one sequence of symbols. dataset_impl, combine: fairseq's, for other formats and for split1,
    split2 and so on. FileNotFoundError if it is not there; whether its files are whole is for `indexed.check_split`."""
    path = f"{folder}/{split}"
    indexed = data_utils.load_indexed_dataset(path, dictionary, dataset_impl, combine=combine)
    if indexed is None:
        have = ", ".join(Path(name).stem for name in matching(folder, "*.idx")) or "none"
        raise FileNotFoundError(f"there is no split {split}: no {path}.idx: choose one that the folder has ({have})")
    return StreamDataset(read_tokens(indexed), split, dictionary, output_dictionary, windows)


class StreamBatches(torch.utils.data.Dataset):
    """Item w is the batch of window w: `rows` of the `num_streams` streams of a text. ValueError if it is too short."""

    def __init__(self, text: StreamDataset, num_streams: int, rows: range, seed: int = 1, epoch: int = 1):
        text.check_holds(num_streams)
        self.text, self.num_streams, self.rows, self.seed = text, num_streams, rows, seed
        bounds = np.arange(num_streams + 1, dtype=np.int64) * len(text) // num_streams
        self.starts = bounds[rows.start : rows.stop, None]
        self.stops = bounds[rows.start + 1 : rows.stop + 1, None]
        self.num_steps = int(np.diff(bounds).max())
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Lay out the windows of this epoch."""
        self.epoch = epoch
        self.borders = self.text.windows.borders(self.num_steps, self.seed, epoch)

    def __len__(self) -> int:
        return len(self.borders) - 1

    def __getitem__(self, window: int) -> Dict[str, Any]:
        """A batch as fairseq's criterions and its scorer take it. Beside src_tokens (B, T), net_input has what a model
        that carries state takes: `stream`, the split's name, `window`, its index, and `reset` (B,) bool."""
        positions = self.starts + np.arange(self.borders[window], self.borders[window + 1])
        inside = positions < self.stops
        symbols = self.text.slice(positions, inside)
        reset = self.text.windows.resets(self.num_streams, self.seed, self.epoch, window)
        return {
            "id": torch.arange(self.rows.start, self.rows.stop),
            "nsentences": len(self.rows),
            "ntokens": int(inside.sum()),
            "net_input": {
                "src_tokens": symbols["source"],
                "src_lengths": torch.from_numpy(inside.sum(1)),
                "stream": self.text.name,
                "window": window,
                "reset": torch.from_numpy(reset[self.rows.start : self.rows.stop]),
            },
            "target": symbols["target"],
        }

    def layout(self) -> Dict[str, Any]:
        """All that a position in the streams, and what was carried there, depend on, under the names of the options."""
        windows = self.text.windows
        layout = {
            "symbols of the text": len(self.text),
            CHECKSUM: self.text.checksum(),
            "batch size times processes": self.num_streams,
            "tokens-per-sample": windows.length,
            "window-jitter": windows.jitter,
            "state-reset-prob": windows.reset_prob,
        }
        if windows.jitter or windows.reset_prob:
            layout["seed"] = self.seed
        return layout


def _the_batch(items: List[Dict[str, Any]]) -> Dict[str, Any]:
    return items[0]


class CarriedRows:
    """The carried state of training on its way between the model and checkpoints. Both are dicts with `stream`,
    `window` and `rows` (B, F), the state at that window's end: in `to_save` of all processes' streams, in `loaded` of
    this one's."""

    def __init__(self):
        self.to_save: Optional[Dict[str, Any]] = None
        self.loaded: Optional[Dict[str, Any]] = None


class StreamBatchIterator(EpochBatchIterator):
    """fairseq's iterator over the windows of streams, in order; takes the carried state into checkpoints and back.

    It has neither workers nor a buffer, whatever --num-workers says: a window is a slice of an array in memory, made in
    less time than a process needs to hand it over. The iterator holds no worker, so nothing needs closing.
    """

    def __init__(self, batches: StreamBatches, carried: CarriedRows, **kwargs):
        super().__init__(batches, collate_fn=_the_batch, batch_sampler=[], disable_shuffling=True, **kwargs)
        self.carried = carried

    @property
    def frozen_batches(self):
        return [[window] for window in range(len(self.dataset))]

    @property
    def first_batch(self):
        """The batch of a process that has none left: it belongs to no stream."""
        batch = self.dataset[0]
        kept = {key: value for key, value in batch["net_input"].items() if key not in _STREAM_KEYS}
        return {**batch, "net_input": kept}

    def state_dict(self):
        """fairseq's, and within an epoch the streams' layout and state."""
        state = super().state_dict()
        if state["iterations_in_epoch"] > 0:
            state["streams"] = {"layout": self.dataset.layout(), "carried": move_to_cpu(self.carried.to_save)}
        return state

    def load_state_dict(self, state_dict):
        """ValueError if the checkpoint was written within an epoch of other streams: its position means nothing here.
        Any number of processes may go on from it, if they have as many streams together."""
        if state_dict.get("iterations_in_epoch", 0) > 0:
            saved = state_dict.get("streams")
            if saved is None:
                raise ValueError("the checkpoint was written by training without --stateful, " + _REMEDY)
            layout = self.dataset.layout()
            before = {CHECKSUM: layout[CHECKSUM], **saved["layout"]}  # which earlier checkpoints do not have
            differing = [key for key in {**before, **layout} if before.get(key) != layout.get(key)]
            if differing:
                changes = ", ".join(f"{key} {before.get(key)} (now {layout.get(key)})" for key in differing)
                raise ValueError(f"the checkpoint was written within an epoch with {changes}, {_REMEDY}")
            if saved["carried"] is not None:
                own = slice(self.dataset.rows.start, self.dataset.rows.stop)
                self.carried.loaded = {**saved["carried"], "rows": saved["carried"]["rows"][own]}
        super().load_state_dict(state_dict)


def refuse_streams(iterator: EpochBatchIterator) -> EpochBatchIterator:
    """Have an iterator over shuffled windows raise ValueError for a position among the windows of streams."""
    if "load_state_dict" in vars(iterator):  # fairseq hands out an iterator again, epoch after epoch
        return iterator
    load = iterator.load_state_dict

    def load_state_dict(state_dict):
        if "streams" in state_dict:
            raise ValueError("the checkpoint was written within an epoch of training with --stateful, " + _REMEDY)
        load(state_dict)

    iterator.load_state_dict = load_state_dict
    return iterator


_REMEDY = (
    "so training cannot go on from where it was: give the same options again, resume from a checkpoint of an epoch's "
    "end, or give --reset-dataloader to start the epochs anew with these weights"
)
