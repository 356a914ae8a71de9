"""The distillation loss in plain PyTorch: the definition that every faster one is held to.

Everything here is in the precision of its arguments, a row of the batch at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.train_config import PatchLoss

EPS = 1e-8
"""Norms up to this count as zero."""


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Cosine over the last dimension, [..., channels] -> [...].

    Of a vector without a direction (norm <= EPS) it is 0 with a gradient of 0: torch's own has a
    gradient of 1e8 there, and one such token would undo the step.
    """
    prediction_norm = torch.linalg.vector_norm(prediction, dim=-1)
    target_norm = torch.linalg.vector_norm(target, dim=-1)
    product = prediction_norm.clamp_min(EPS) * target_norm.clamp_min(EPS)
    value = (prediction * target).sum(-1) / product
    return torch.where((prediction_norm > EPS) & (target_norm > EPS), value, 0.0)


def cls_rows(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of each row: [batch, channels] twice -> [batch]."""
    return 1 - cosine(prediction, target)


def token_rows(prediction: Tensor, target: Tensor, loss: PatchLoss) -> Tensor:
    """Cosine and smooth-L1 part of each row, averaged over channels, then tokens.

    Args:
        prediction, target: [batch, tokens, channels]; the target in standard deviations.
        loss: the factors of both parts, and where smooth-L1 turns linear.

    Returns:
        [batch]
    """
    distance = F.smooth_l1_loss(prediction, target, reduction="none", beta=loss.beta).mean(-1)
    tokens = loss.cosine * (1 - cosine(prediction, target)) + loss.smooth_l1 * distance
    return tokens.mean(-1)


def weighted_share(rows: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """What `rows` [rows] by `weight` [rows] add to a mean over weights that sum to `total`; 0 where
    that is 0."""
    return (rows * weight).sum() / torch.where(total > 0, total, 1.0)
