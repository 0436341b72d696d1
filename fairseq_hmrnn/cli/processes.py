"""The processes that train together: which one this is, and how many they are, as fairseq finds both."""

from __future__ import annotations

import os

import torch

from .given import Given

# Variables of a launcher, such as torchrun, whose processes fairseq has train together if all are there.
OF_LAUNCHER = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def rank(given: Given) -> int:
    """The number of this process among those of one training."""
    by_slurm = os.environ.get("SLURM_PROCID") if given.distributed("world_size") else None  # else each trains alone
    number = given.distributed("rank") or os.environ.get("RANK") or by_slurm or "0"
    return int(number) if number.isdecimal() else 0


def world_size(given: Given, cpu: bool) -> int:
    """How many processes train together: as many as are given, else one for each GPU of this machine. A launcher's
    number takes the place of any but 1, for which fairseq does not ask the launcher."""
    size = given.distributed("world_size") or ("1" if cpu else str(max(torch.cuda.device_count(), 1)))
    if size != "1" and given.distributed("init_method") is None and all(name in os.environ for name in OF_LAUNCHER):
        size = os.environ["WORLD_SIZE"]
    return max(int(size), 1) if size.isdecimal() else 1
