"""The chunked vote against one that looks at a row at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import knn
from trainer.knn import TEMPERATURE, usable_ks, vote

pytestmark = pytest.mark.unit


def by_hand(
    asked: list[float], train: list[list[float]], labels: list[int], k: int
) -> tuple[int, int]:
    """(softmax-weighted class, majority class) of one row."""
    cosines = [sum(a * b for a, b in zip(asked, known)) for known in train]
    nearest = sorted(range(len(train)), key=lambda index: -cosines[index])[:k]
    weights: dict[int, float] = {}
    counts: dict[int, tuple[int, float]] = {}
    for index in nearest:
        label = labels[index]
        weights[label] = weights.get(label, 0) + math.exp(cosines[index] / TEMPERATURE)
        heads, nearness = counts.get(label, (0, 0.0))
        counts[label] = heads + 1, nearness + cosines[index]
    weighted = max(sorted(weights), key=lambda label: weights[label])
    return weighted, max(sorted(counts), key=lambda label: counts[label])


@given(
    seed=st.integers(0, 2**32 - 1),
    train_rows=st.integers(1, 40),
    test_rows=st.integers(1, 12),
    classes=st.integers(1, 6),
    chunk=st.integers(1, 200),
)
@settings(max_examples=40, deadline=None)
def test_vote__equals_one_row_at_a_time(
    seed: int, train_rows: int, test_rows: int, classes: int, chunk: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    train = F.normalize(torch.randn(train_rows, 4, generator=random, dtype=torch.float64), dim=-1)
    test = F.normalize(torch.randn(test_rows, 4, generator=random, dtype=torch.float64), dim=-1)
    labels = torch.randint(classes, (train_rows,), generator=random)
    ks = tuple(k for k in (1, 3, 10, 20) if k <= train_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "CHUNK_ELEMENTS", chunk)
        votes = vote(test, train, labels, classes, ks)
    for k in ks:
        expected = [by_hand(row, train.tolist(), labels.tolist(), k) for row in test.tolist()]
        found = zip(votes.softmax[k].tolist(), votes.majority[k].tolist())
        assert list(found) == expected


def test_vote__the_two_may_differ() -> None:
    angles = torch.tensor([0.0, 0.6, 0.61], dtype=torch.float64)
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    asked = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    votes = vote(asked, train, torch.tensor([0, 1, 1]), 2, (3,))
    assert votes.softmax[3].item() == 0
    assert votes.majority[3].item() == 1


def test_vote__a_tied_majority_goes_to_the_nearer_class_then_the_smaller() -> None:
    near, far, opposite = [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]
    asked = torch.tensor([near])
    labels = torch.tensor([2, 2, 1, 1])
    train = torch.tensor([far, far, near, opposite])  # sums: class 2 has 1.2, class 1 has 1.0
    assert vote(asked, train, labels, 3, (4,)).majority[4].item() == 2
    equal = torch.tensor([far, near, near, far])
    votes = vote(asked, equal, labels, 3, (4,))
    assert votes.majority[4].item() == 1
    assert votes.softmax[4].item() == 1


@pytest.mark.parametrize(
    ("rows", "expected"), [(4, (4,)), (10, (10,)), (150, (10, 20, 100)), (500, (10, 20, 100, 200))]
)
def test_ks__are_those_that_there_are_neighbours_for(rows: int, expected: tuple[int, ...]) -> None:
    assert usable_ks(rows) == expected
