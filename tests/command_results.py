"""What commands printed, and the checkpoints that they left."""

import re

import torch

# Allows what checkpoints hold; and sets variables of the environment, which must be there when forks.py starts.
import fairseq_hmrnn  # noqa: F401
from fairseq_hmrnn.cli.given import Given


def value_of(option, arguments):
    """The value of an option in a command's arguments; None if it is not there."""
    return Given(arguments).value_of(option)


def values(text, key):
    """All numbers logged as key=value or key value."""
    return [float(value) for value in re.findall(rf"\b{key}[= ]([-0-9.e]+)", text)]


def lines_of(text, kind):
    """The lines that generate or interactive printed as `kind-N<tab>...`: a list of the parts after the number."""
    return re.findall(rf"^{kind}-\d+\t(.*)$", text, re.MULTILINE)


def base2_losses(text):
    """Every loss that fairseq-eval-lm printed."""
    return [float(loss) for loss in re.findall(r"Loss \(base 2\): ([0-9.]+)", text)]


def base2_loss(text):
    """The first of them."""
    return base2_losses(text)[0]


def losses(log):
    """The logged loss by update, of the last run in a log that did this update."""
    found = re.findall(r"train_inner.* loss=([0-9.]+).* num_updates=(\d+)", log.read_text(encoding="utf-8"))
    return {int(update): float(loss) for loss, update in found}


def checkpoint(folder, name="checkpoint_last.pt"):
    return torch.load(folder / name, map_location="cpu")


def weights(folder, name="checkpoint_last.pt"):
    return checkpoint(folder, name)["model"]


def same(a, b):
    """Whether two dicts of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
