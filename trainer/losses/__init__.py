"""The distillation loss of EUPE (arXiv 2603.22387, section 3.2), summed over the teachers of a run.

CLS: 1 - cosine. Patch tokens: 0.9 (1 - cosine) + 0.1 smooth-L1 on standardised targets. What the
paper leaves open is settled here: smooth-L1 has beta 1, and means are taken over channels, then
tokens, then rows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from schemas.train_config import Loss
from trainer.batch import Target
from trainer.heads import Prediction
from trainer.losses.reference import cls_rows, token_rows, weighted_mean
from trainer.resize import meet

Parts = dict[str, dict[str, Tensor]]
"""{teacher: {"cls": scalar, "patch": scalar}}, detached; no "cls" where the teacher has none."""


def distillation_loss(
    predictions: Mapping[str, Prediction],
    targets: Mapping[str, Target],
    weight: Tensor,
    factors: Mapping[str, float],
    loss: Loss,
) -> tuple[Tensor, Parts]:
    """The loss of one batch, in float32 whatever the arguments are.

    Args:
        predictions: of the student, for each teacher.
        targets: of the same teachers; where the grids differ the smaller is resized.
        weight: float32 [batch]; a row of weight 0 contributes nothing, whatever it holds.
        factors: of each teacher's loss in the total.
        loss: the configured terms.

    Returns:
        The total, a scalar, and its parts before `factors`. Both are 0, with gradients of 0, for
        a batch whose weights are all 0.
    """
    total = torch.zeros((), device=weight.device)
    parts: Parts = {}
    for name, prediction in predictions.items():
        target = targets[name]
        tokens = meet(_usable(prediction.tokens, weight), _usable(target.tokens, weight))
        terms = {"patch": weighted_mean(token_rows(*tokens, loss.patch), weight)}
        if prediction.cls is not None and target.cls is not None:
            rows = cls_rows(_usable(prediction.cls, weight), _usable(target.cls, weight))
            terms["cls"] = weighted_mean(rows, weight)
        total = total + factors[name] * torch.stack(list(terms.values())).sum()
        parts[name] = {term: value.detach() for term, value in terms.items()}
    return total, parts


def _usable(values: Tensor, weight: Tensor) -> Tensor:
    """`values` in float32 with the rows of weight 0 emptied: 0 x NaN would be NaN, both in the sum
    and in its gradient."""
    keep = (weight > 0).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(keep, values.float(), 0.0)
