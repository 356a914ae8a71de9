"""k nearest neighbours on global features: the two votes that are in use.

EUPE's paper (arXiv 2603.22387, appendix) counts a majority; its released code weighs each neighbour
by the softmax of its cosine. Both are given, from the same neighbours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CHUNK_ELEMENTS = 2**24
"""Largest matrix held at a time, test rows x the larger of training rows and classes: 64 MiB."""


class Votes(NamedTuple):
    """Predicted classes, int64 [test rows], for each k."""

    softmax: dict[int, Tensor]
    majority: dict[int, Tensor]


def usable_ks(train_rows: int) -> tuple[int, ...]:
    """Those of KS that there are neighbours for; else all the neighbours there are."""
    return tuple(k for k in KS if k <= train_rows) or (train_rows,)


def vote(test: Tensor, train: Tensor, labels: Tensor, classes: int, ks: Sequence[int]) -> Votes:
    """Predict the class of every test row from its nearest training rows.

    A tie of the majority goes to the class whose neighbours are nearer in sum; any that is left,
    to the class of the smaller number.

    Args:
        test: [test rows, channels], of length 1 each.
        train: [training rows, channels], of length 1 each, on the same device.
        labels: int64 [training rows], in 0..classes-1.
        classes: how many there are.
        ks: neighbours that vote, each at most the number of training rows.
    """
    rows = max(1, CHUNK_ELEMENTS // max(len(train), classes))
    chunks = [
        _vote_chunk(test[first : first + rows], train, labels, classes, ks)
        for first in range(0, len(test), rows)
    ]
    return Votes(
        softmax={k: torch.cat([chunk.softmax[k] for chunk in chunks]) for k in ks},
        majority={k: torch.cat([chunk.majority[k] for chunk in chunks]) for k in ks},
    )


def _vote_chunk(
    test: Tensor, train: Tensor, labels: Tensor, classes: int, ks: Sequence[int]
) -> Votes:
    nearest = (test @ train.T).topk(max(ks), dim=1)
    voters = labels[nearest.indices]
    weights = (nearest.values / TEMPERATURE).softmax(dim=1)
    votes = Votes({}, {})
    for k in ks:
        voter, cosine = voters[:, :k], nearest.values[:, :k]
        heads = _by_class(torch.ones_like(cosine), voter, classes)
        leads = heads == heads.max(dim=1, keepdim=True).values
        nearness = _by_class(cosine, voter, classes).masked_fill(~leads, -torch.inf)
        votes.softmax[k] = _by_class(weights[:, :k], voter, classes).argmax(dim=1)
        votes.majority[k] = nearness.argmax(dim=1)
    return votes


def _by_class(values: Tensor, voters: Tensor, classes: int) -> Tensor:
    """Sum of the neighbours' values in each class: [test rows, k] twice -> [test rows, classes]."""
    return values.new_zeros(len(values), classes).scatter_add_(1, voters, values)
