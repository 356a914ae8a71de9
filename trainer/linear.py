"""A linear probe: multinomial logistic regression on frozen features, with an L2 penalty.

The problem is convex and solved to its optimum, so the figure depends on the features alone and not
on a learning rate, an order or a number of epochs. How strong the penalty is, is chosen on a tenth
of the training rows; then all of them are fitted with it.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.terminal import Terminal
from schemas.keyed_hash import hash_texts

SPLIT_KEY = b"teachonce linear probe"
"""Never changed: which rows choose the penalty is the same for every student."""
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Of the penalty, half the sum of the squared weights, beside the mean loss of a row; from strong
to weak, because each begins with what the one before it found."""
GRADIENT = 1e-6
"""Largest gradient of what counts as the optimum."""
MOST_STEPS = 1000
CHUNK_ELEMENTS = 2**23
"""Largest matrix held at a time, rows x the larger of channels and classes: 64 MiB."""
SMALLEST_SPREAD = 1e-7
"""Standard deviation over mean. What varies less is the rounding of float32."""


class Scale(NamedTuple):
    """What features are standardised by."""

    mean: Tensor
    factor: Tensor
    """1 / standard deviation; 0 for a channel that does not vary."""

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.factor


def linear_top1(
    train: tuple[Tensor, Tensor],
    keys: list[str],
    test: tuple[Tensor, Tensor],
    classes: int,
    terminal: Terminal,
) -> float:
    """Share of the test rows that a probe of the training rows gets right.

    Args:
        train, test: features [rows, channels] and classes int64 [rows], on one device.
        keys: what the training rows are called.
        classes: how many there are.
    """
    order = np.argsort(hash_texts(keys, SPLIT_KEY), kind="stable")
    with terminal.progress("linear probe", len(STRENGTHS) + 1, "fits") as meter:
        weights: list[Tensor] = []
        shares: list[float] = []
        kept, rest = (torch.from_numpy(part) for part in np.split(order, [len(order) // 10]))
        choosing = (train[0][rest], train[1][rest])
        scale = measure(choosing[0])
        for strength in STRENGTHS:
            begin = weights[-1] if weights else None
            weights.append(fit(*choosing, scale, classes, strength, begin))
            shares.append(_share(train[0][kept], train[1][kept], scale, weights[-1]))
            meter.advance(1, f"L2 {strength:g}")
        best = max(range(len(STRENGTHS)), key=shares.__getitem__) if len(kept) else 0
        scale = measure(train[0])
        found = fit(*train, scale, classes, STRENGTHS[best], weights[best])
        meter.advance(1)
    terminal.decide(
        "L2",
        f"{STRENGTHS[best]:g}",
        f"{shares[best]:.4f} of {len(kept):,} training pictures kept back for the choice",
    )
    return _share(*test, scale, found)


def measure(features: Tensor) -> Scale:
    """Mean and spread of each channel."""
    mean = features.mean(dim=0, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for chunk in _chunks(features):
        squares += (chunk.double() - mean).square().sum(dim=0)
    std = (squares / len(features)).sqrt()
    varies = std > SMALLEST_SPREAD * mean.abs()
    return Scale(mean, torch.where(varies, 1 / std, 0.0))


def fit(
    features: Tensor,
    labels: Tensor,
    scale: Scale,
    classes: int,
    strength: float,
    begin: Tensor | None = None,
) -> Tensor:
    """The weights that minimise the mean cross-entropy and the penalty, by LBFGS in float64.

    Args:
        begin: weights to begin with; all 0 by default.

    Returns:
        float64 [channels + 1, classes]; the last row is the bias, on which there is no penalty.
    """
    basis = _basis(features, scale, classes, strength)
    weights = features.new_zeros(features.shape[1] + 1, classes, dtype=torch.float64)
    if begin is not None:
        weights.copy_(torch.linalg.solve(basis, begin))
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=MOST_STEPS,
        tolerance_grad=GRADIENT,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        loss, gradient = loss_and_gradient(features, labels, scale, basis @ weights, strength)
        weights.grad = basis.T @ gradient
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return basis @ weights


def _basis(features: Tensor, scale: Scale, classes: int, strength: float) -> Tensor:
    """Coordinates in which the problem is about as steep in every direction, [channels + 1] twice.
    The optimum is the same one; channels that go together are then no long narrow valley."""
    width = features.shape[1]
    second = features.new_zeros(width, width, dtype=torch.float64)
    for chunk in _chunks(features):
        inputs = scale(chunk)
        second += inputs.T @ inputs / len(features)
    spread, directions = torch.linalg.eigh(second)
    steepness = spread.clamp(min=0) / classes + strength
    basis = torch.eye(width + 1, dtype=torch.float64, device=features.device)
    basis[:-1, :-1] = (directions * steepness.rsqrt()) @ directions.T
    basis[-1, -1] = classes**0.5
    return basis


def loss_and_gradient(
    features: Tensor, labels: Tensor, scale: Scale, weights: Tensor, strength: float
) -> tuple[float, Tensor]:
    """What `fit` minimises, and its gradient: written out, because a chunk at a time is then held
    instead of the logits of every row."""
    slopes = weights[:-1]
    gradient = torch.zeros_like(weights)
    gradient[:-1] = strength * slopes
    loss = 0.5 * strength * slopes.square().sum()
    for chunk, answers in zip(_chunks(features, weights), _chunks(labels, features, weights)):
        inputs = scale(chunk)
        logits = inputs @ slopes + weights[-1]
        loss += F.cross_entropy(logits, answers, reduction="sum") / len(labels)
        errors = (logits.softmax(dim=1) - F.one_hot(answers, logits.shape[1])) / len(labels)
        gradient[:-1] += inputs.T @ errors
        gradient[-1] += errors.sum(dim=0)
    return loss.item(), gradient


def _share(features: Tensor, labels: Tensor, scale: Scale, weights: Tensor) -> float:
    found = [
        (scale(chunk) @ weights[:-1] + weights[-1]).argmax(dim=1)
        for chunk in _chunks(features, weights)
    ]
    return (torch.cat(found) == labels).double().mean().item() if found else 0.0


def _chunks(rows: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    width = max(each.shape[1] for each in (rows, *others) if each.ndim == 2)
    return torch.split(rows, max(1, CHUNK_ELEMENTS // width))
