"""A case of the loss as a trainer has it: through the operator, and gone back from."""

from typing import NamedTuple

import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import Case
from trainer.losses.op import Impl, feature_loss


class Took(NamedTuple):
    loss: Tensor
    gradient: Tensor
    """In the tensor that the prediction is a part of."""


def took(case: Case, times: float = 1.0, impl: Impl = "twin") -> Took:
    """The loss of a part of a leaf, gone back from."""
    rows, tokens, _ = case.prediction.shape
    leaf = torch.zeros(rows, 1 + tokens, case.told.channels, dtype=case.prediction.dtype)
    leaf[:, 1:] = case.prediction
    leaf.requires_grad_()
    loss, _ = loss_of(case, leaf[:, 1:], impl)
    (times * loss).backward()
    assert leaf.grad is not None
    return Took(loss.detach(), leaf.grad)


def loss_of(case: Case, prediction: Tensor, impl: Impl = "twin") -> tuple[Tensor, Tensor]:
    total = 1 / (case.share * prediction.shape[1])
    return feature_loss(prediction, case.told, case.weight, total, case.scale, case.terms, impl)
