"""The distillation loss of EUPE (arXiv 2603.22387, section 3.2), one adapter head at a time.

CLS: 1 - cosine. Patch tokens: 0.9 (1 - cosine) + 0.1 smooth-L1 on standardised targets. What the
paper leaves open is settled here: smooth-L1 has beta 1, and means are taken over channels, then
tokens, then rows. The mean over rows is of the whole batch, on all ranks: what is returned for a
part of it is that part's share, and the shares add up to the loss however the batch was cut.
"""

import torch
from torch import Tensor

from schemas.train_config import PatchLoss
from trainer.batch import Affine, Target
from trainer.losses.reference import cls_rows, token_rows, weighted_share
from trainer.resize import meet

Parts = dict[str, dict[str, Tensor]]
"""{teacher: {"cls": scalar, "patch": scalar}}, detached; no "cls" where the teacher has none."""


def patch_loss(
    prediction: Tensor, target: Target, weight: Tensor, total: Tensor, loss: PatchLoss
) -> Tensor:
    """A part's share of the patch loss, in float32 whatever the arguments are.

    Args:
        prediction: [rows, student tokens, patch_width]; where the grids differ the smaller one is
            resized.
        target: of the same rows.
        weight: float32 [rows]; a row of weight 0 contributes nothing, whatever it holds.
        total: scalar, the weights of the whole batch; where it is 0 so is the loss.
    """
    told = _standardised(target.standardised_tokens(), target.tokens_affine)
    rows = token_rows(*meet(_usable(prediction, weight), _usable(told, weight)), loss)
    return weighted_share(rows, weight, total)


def cls_loss(prediction: Tensor, target: Target, weight: Tensor, total: Tensor) -> Tensor:
    """A part's share of the CLS loss; `prediction` is [rows, cls_width], the rest as above."""
    assert target.cls is not None
    told = _standardised(target.cls, target.cls_affine)
    rows = cls_rows(_usable(prediction, weight), _usable(told, weight))
    return weighted_share(rows, weight, total)


def _standardised(values: Tensor, affine: Affine | None) -> Tensor:
    """By the statistics of the run, where the cache that these rows are of has others."""
    return values if affine is None else values.float() * affine.scale + affine.shift


def _usable(values: Tensor, weight: Tensor) -> Tensor:
    """`values` in float32 with the rows of weight 0 emptied: 0 x NaN would be NaN, both in the sum
    and in its gradient."""
    keep = (weight > 0).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(keep, values.float(), 0.0)
