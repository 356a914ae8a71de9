"""The loss of one head and its gradient in plain PyTorch: the definition that the kernels are held
to, and what runs where there is no GPU.

For a token with prediction p and target t of D channels, after Zhu et al. (EUPE, arXiv 2603.22387,
section 3.2), with smooth-L1 h as torch's:

    loss = cosine x (1 - <p, t> / (|p| |t|)) + smooth_l1 x mean over D of h(p - t)

A token whose prediction or target is no longer than EPS has no direction: its cosine is 0 with a
gradient of 0, where torch's own has a gradient of 1e8 and one such token would undo the step.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses.told import Told

EPS = 1e-8
"""Norms up to this count as zero."""


class Terms(NamedTuple):
    """Of the loss of one head."""

    cosine: float
    smooth_l1: float = 0.0
    beta: float = 1.0
    """Where smooth-L1 turns from quadratic to linear, in standard deviations; 0: it is |p - t|."""
    drop: bool = False
    """Tokens that are not finite, or whose products are not, count as masked; else they make the
    loss and their gradient NaN."""


class Found(NamedTuple):
    loss: Tensor
    """float32, or of float64 where the prediction is; a scalar."""
    gradient: Tensor
    """As the prediction; empty where none was asked for."""
    counts: Tensor
    """float32 [2]: tokens without a direction, tokens that are not finite."""


class Several(NamedTuple):
    """Of several heads; the counts are of all of them."""

    losses: Tensor
    """[heads]."""
    gradients: list[Tensor]
    counts: Tensor


def loss_and_gradient(
    prediction: Tensor,
    told: Told,
    weight: Tensor,
    share: Tensor,
    scale: Tensor,
    terms: Terms,
    gradient: bool,
) -> Found:
    """Sum over tokens of weight x share x the loss of a token; its gradient, times scale.

    Args:
        prediction: [rows, tokens, channels].
        weight: float32 [rows, tokens]; a token of weight 0 contributes nothing, whatever it holds.
        share, scale: scalars on the device.
        gradient: whether to find it. Where the prediction is float16, in which the gradient of a
            mean is 0, it is left without share and scale.
    """
    exact = torch.promote_types(prediction.dtype, torch.float32)
    keep = weight != 0
    p = torch.where(keep[..., None], prediction.to(exact), 0.0)
    t = torch.where(keep[..., None], told.decoded(exact), 0.0)
    distance = p - t
    spread = smooth_l1(distance, terms.beta).mean(-1) if terms.smooth_l1 else p.new_zeros(())
    long_p, long_t = p.norm(dim=-1), t.norm(dim=-1)
    inner = (p * t).sum(-1)
    finite = (long_p + long_t + inner + spread).isfinite()
    weight = torch.where(finite, weight, 0.0 if terms.drop else torch.nan)
    short = (long_p <= EPS) | (long_t <= EPS)
    cosine = torch.where(short, 0.0, inner / (long_p * long_t))
    tokens = terms.cosine * (1 - cosine) + terms.smooth_l1 * spread
    loss = (torch.where(weight != 0, tokens, 0.0) * weight).sum() * share
    counts = torch.stack([(keep & short).sum(), (keep & ~finite).sum()]).float()
    if not gradient:
        return Found(loss, prediction.new_empty(0), counts)
    by_p = torch.where(short, 0.0, terms.cosine * cosine / long_p.square())
    by_t = torch.where(short, 0.0, -terms.cosine / (long_p * long_t))
    found = by_p[..., None] * p + by_t[..., None] * t
    if terms.smooth_l1:
        slope = (distance / terms.beta).clamp(-1, 1) if terms.beta else distance.sign()
        found = found + terms.smooth_l1 / p.shape[-1] * slope
    by = weight if prediction.dtype == torch.float16 else weight * (share * scale)
    found = torch.where((weight != 0)[..., None], found * by[..., None], 0.0)
    return Found(loss, found.to(prediction.dtype), counts)


def smooth_l1(distance: Tensor, beta: float) -> Tensor:
    """Of each distance: d^2 / (2 beta) below beta, d - beta / 2 above it."""
    size = distance.abs()
    if not beta:
        return size
    return torch.where(size < beta, size.square() / (2 * beta), size - beta / 2)
