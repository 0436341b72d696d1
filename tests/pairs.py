"""Comparisons of sequences item by item, which cannot pass because one of them is short or empty."""

import torch


def pairs(*sequences):
    """The items at each place, as `zip` does; asserts that there are some and that every sequence has as many."""
    lists = [list(sequence) for sequence in sequences]
    lengths = [len(items) for items in lists]
    assert len(set(lengths)) == 1 and lengths[0], lengths
    return list(zip(*lists))


def same_bits(found, expected):
    """Whether all tensors are equal, place by place."""
    return all(torch.equal(a, b) for a, b in pairs(found, expected))
