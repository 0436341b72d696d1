"""Pen strokes: readers of UNIPEN and IAM-OnDB, normalisation, storage, and the dataset of fairseq's tasks."""

from .dataset import GOLD, HandwritingDataset
from .prepare import prepare
from .store import Normalization, Strokes, load_normalization, load_split

__all__ = ["GOLD", "HandwritingDataset", "Normalization", "Strokes", "load_normalization", "load_split", "prepare"]
