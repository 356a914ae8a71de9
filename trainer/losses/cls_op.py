"""The CLS losses of all teachers as one operator of torch; otherwise as op.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.losses.meet import LossAndGradient
from trainer.losses.op import (
    IMPLS,
    Impl,
    gone_back_once,
    implementation,
    on_device_of,
    rescaled,
    share_of,
)
from trainer.losses.told import Told
from trainer.losses.twin import Several, Terms

LossesAndGradients = Callable[
    [Sequence[Tensor], Sequence[Told], Tensor, Tensor, Tensor, Terms, bool], Several
]


def cls_losses(
    predictions: Sequence[Tensor],
    told: Sequence[Told],
    weight: Tensor,
    total: Tensor,
    scales: Tensor,
    drop: bool = False,
    impl: Impl = "twin",
) -> tuple[Tensor, Tensor]:
    """For each teacher the sum over rows of weight / total x (1 - cosine).

    Args:
        predictions: of each teacher, [rows, 1, its channels]; all of one float type.
        told: of each, float, as many; with factor and shift for all or for none.
        weight: float32 [rows].
        total: scalar.
        scales: [teachers], of the gradients alone.
        drop: as in Terms.

    Returns:
        [teachers], and float32 [2] counts as feature_loss, of all of them.

    Raises:
        ValueError: shapes that do not fit one another.
    """
    shapes = [(len(weight), 1, each.channels) for each in told]
    if [each.shape for each in predictions] != shapes or scales.shape != (len(shapes),):
        raise ValueError(
            f"the CLS losses of predictions of {[tuple(each.shape) for each in predictions]}, "
            f"targets of {shapes} and scales of {tuple(scales.shape)}: one of each for a teacher"
        )
    if len({each.factor is None for each in told}) > 1:
        raise ValueError("CLS losses: factor and shift are of all teachers, or of none")
    needs_gradient = torch.is_grad_enabled() and any(each.requires_grad for each in predictions)
    losses, _, counts = _op(
        *(list(predictions), [each.values for each in told]),
        [each.factor for each in told if each.factor is not None],
        [each.shift for each in told if each.shift is not None],
        *(weight, total, scales, drop, impl, needs_gradient),
    )
    return losses, counts


@torch.library.custom_op("teachonce::cls_losses", mutates_args=())
def _op(
    predictions: Sequence[Tensor],
    values: Sequence[Tensor],
    factors: Sequence[Tensor],
    shifts: Sequence[Tensor],
    weight: Tensor,
    total: Tensor,
    scales: Tensor,
    drop: bool,
    impl: str,
    needs_gradient: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    told = [Told("float", each, each.shape[-1]) for each in values]
    if factors:
        told = [
            replace(each, factor=factor, shift=shift)
            for each, factor, shift in zip(told, factors, shifts)
        ]
    # No kernel has float64.
    chosen = IMPLS[impl] if predictions[0].dtype != torch.float64 else "twin"
    losses_and_gradients = _implementation(chosen)
    with on_device_of(weight):
        found = losses_and_gradients(
            *(predictions, told, weight, share_of(total, 1), scales),
            *(Terms(cosine=1.0, drop=drop), needs_gradient),
        )
    return found.losses, [each.contiguous() for each in found.gradients], found.counts


@cache
def _implementation(impl: Impl) -> LossesAndGradients:
    if impl in ("triton", "fused"):
        from trainer.losses import cls_kernel

        return cls_kernel.losses_and_gradients
    return _OneByOne(implementation(impl))


class _OneByOne:
    """A head after the other."""

    def __init__(self, loss_and_gradient: LossAndGradient) -> None:
        self._loss_and_gradient = loss_and_gradient

    def __call__(
        self,
        predictions: Sequence[Tensor],
        told: Sequence[Told],
        weight: Tensor,
        share: Tensor,
        scales: Tensor,
        terms: Terms,
        gradient: bool,
    ) -> Several:
        found = [
            self._loss_and_gradient(p, t, weight[:, None], share, scale, terms, gradient)
            for p, t, scale in zip(predictions, told, scales)
        ]
        return Several(
            torch.stack([each.loss for each in found]),
            [each.gradient for each in found],
            torch.stack([each.counts for each in found]).sum(0),
        )


@_op.register_fake
def _(predictions: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    exact = torch.promote_types(predictions[0].dtype, torch.float32)
    return (
        predictions[0].new_empty(len(predictions), dtype=exact),
        [each.new_empty(each.shape if arguments[-1] else (0,)) for each in predictions],
        predictions[0].new_empty(2, dtype=torch.float32),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], Tensor]) -> None:
    _, gradients, counts = output
    ctx.mark_non_differentiable(*gradients, counts)
    ctx.save_for_backward(*gradients, *inputs[5:7])
    ctx.lengths, ctx.gone_back = [len(each) for each in inputs[1:4]], False


def _backward(ctx: Any, by: Tensor, *unused: Any) -> tuple[Any, ...]:
    gone_back_once(ctx)
    *gradients, total, scales = ctx.saved_tensors
    if gradients[0].dtype == torch.float16:
        by = by * scales * share_of(total, 1)
    back = [rescaled(gradient, each) for gradient, each in zip(gradients, by.unbind())]
    return back, *([None] * length for length in ctx.lengths), *(None,) * 6


_op.register_autograd(_backward, setup_context=_keep)
