"""EUPE's rule for grids of different sides (arXiv 2603.22387, section 3.3) around a loss of equal
ones: the smaller grid is resized to the larger, whichever side it is on, and if that is the
prediction, its gradient comes back through the resize."""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.losses.told import Told
from trainer.losses.twin import Found, Terms
from trainer.resize import resize_back, resize_tokens, side_of

LossAndGradient = Callable[[Tensor, Told, Tensor, Tensor, Tensor, Terms, bool], Found]


def meet(
    equal: LossAndGradient,
    prediction: Tensor,
    told: Told,
    weight: Tensor,
    share: Tensor,
    scale: Tensor,
    terms: Terms,
    gradient: bool,
) -> Found:
    """As `equal`, of any two square grids; `weight` is of the larger one's tokens."""
    prediction = prediction.detach()  # or torch.compile would derive a backward of its own
    exact = torch.promote_types(prediction.dtype, torch.float32)
    if prediction.shape[1] == told.values.shape[1]:
        return equal(prediction, told, weight, share, scale, terms, gradient)
    if prediction.shape[1] > told.values.shape[1]:
        larger = resize_tokens(told.decoded(exact), side_of(prediction))
        told = Told("float", larger, told.channels)
        return equal(prediction, told, weight, share, scale, terms, gradient)
    larger = resize_tokens(prediction.to(exact), side_of(told.values))
    if prediction.dtype == torch.float16:  # whose gradient is left without share and scale
        one = share.new_ones(())
        found = equal(larger, told, weight, one, one, terms, gradient)
        loss = found.loss * share
    else:
        found = equal(larger, told, weight, share, scale, terms, gradient)
        loss = found.loss
    back = found.gradient
    if gradient:
        back = resize_back(back, side_of(prediction)).to(prediction.dtype)
    return Found(loss, back, found.counts)
