"""Differences between versions of fairseq, and between those of torch in what a checkpoint may hold.

Other differences of torch stand where they matter: recording in ops/capture.py, operators in ops/library.py, autocast
in ops/precision.py, kernels in ops/hm_lstm.py, oneDNN's products in ops/products.py and ops/cpu/python/problem.py,
lists of tensors in ops/triton/buffers.py, files in checkpoints/archive.py, formats in inference/export.py.
"""

from __future__ import annotations

import argparse
import collections
import typing
from typing import Optional, Set, Tuple

import numpy as np
import omegaconf
import torch
from fairseq.data import Dictionary
from fairseq.distributed.utils import _TensorPlaceholder


def allow_in_torch() -> None:
    """Register with torch's own check what checkpoints of fairseq are made of, as far as this torch has one."""
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)
    if add_safe_globals is None:
        return
    multiarray: typing.Any = np.core.multiarray  # whose type stub lacks both functions
    numbers = {type(np.dtype(code)) for code in np.typecodes["All"] if np.dtype(code).kind in "biufc"}
    add_safe_globals(
        [
            argparse.Namespace,
            collections.defaultdict,
            collections.deque,
            bytes,
            complex,
            dict,
            frozenset,
            list,
            int,
            float,
            str,
            typing.Any,
            np.ndarray,
            np.dtype,
            *numbers,
            multiarray._reconstruct,
            multiarray.scalar,
            omegaconf.DictConfig,
            omegaconf.ListConfig,
            omegaconf.base.ContainerMetadata,
            omegaconf.base.Metadata,
            omegaconf.nodes.AnyNode,
            Dictionary,
            _TensorPlaceholder,
        ]
    )


def safe_globals() -> Set[Tuple[str, str]]:
    """(module, name) of what was registered as safe with torch, here or by other code; nothing where torch has no such
    list."""
    found = set()
    for thing in getattr(torch.serialization, "get_safe_globals", list)():
        name = thing[1] if isinstance(thing, tuple) else f"{thing.__module__}.{getattr(thing, '__qualname__', thing)}"
        found.add(tuple(name.rsplit(".", 1)))
    return found


def record_offset(reader, name: str) -> Optional[int]:
    """Where torch's reader of archives finds a member in the file; None if this torch has no such function."""
    return reader.get_record_offset(name) if hasattr(reader, "get_record_offset") else None
