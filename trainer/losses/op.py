"""The loss of one head as an operator of torch: it may stand in a compiled function or a CUDA
graph, and does not wait for the GPU once it has met a pair of grids.

The gradient is found together with the loss, in the one pass over the data, and kept until the
backward. There it is only scaled, in place, and not even that where the scale is 1: what multiplies
a loss is better passed in with it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trainer.losses import twin
from trainer.losses.meet import LossAndGradient, meet
from trainer.losses.told import Code, Told
from trainer.losses.twin import Terms

Impl = Literal["twin", "compiled", "triton", "fused"]
WIDEST = 8192
"""Channels that a program of a kernel can hold."""


def feature_loss(
    prediction: Tensor,
    told: Told,
    weight: Tensor,
    total: Tensor,
    scale: Tensor,
    terms: Terms,
    impl: Impl = "twin",
) -> tuple[Tensor, Tensor]:
    """The sum over rows of weight / total x the mean over tokens of their loss.

    Args:
        prediction: [rows, tokens, channels] of any float type and strides, the channels dense.
        told: of as many tokens, or of another square grid where the prediction is of one: the
            smaller one is resized.
        weight: float32 [rows], or [rows, tokens] of the larger grid; what has weight 0 contributes
            nothing, whatever it holds.
        total: scalar; where it is 0 so is the loss. The weights of the whole batch, of which these
            rows may be a part.
        scale: scalar that the gradient, not the loss, is multiplied by: what would else multiply
            the loss on its way back, at the price of one more pass.

    Returns:
        The loss, a scalar, and float32 [2]: how many tokens have no direction, how many are not
        finite. The loss can be gone back from once.

    Raises:
        ValueError: shapes that do not fit one another, or channels that are not dense.
    """
    tokens = _tokens(prediction, told, weight)
    by_token = weight if weight.ndim == 2 else weight[:, None]
    needs_gradient = prediction.requires_grad and torch.is_grad_enabled()
    loss, _, counts = _op(
        *(prediction, told.values, told.scales, told.factor, told.shift),
        *(by_token.expand(len(prediction), tokens), total, scale),
        *(told.code, told.channels, *terms, impl, needs_gradient),
    )
    return loss, counts


def _tokens(prediction: Tensor, told: Told, weight: Tensor) -> int:
    """Of the larger grid."""
    rows, mine, channels = prediction.shape
    theirs = told.values.shape[1]
    square = all(math.isqrt(count) ** 2 == count for count in (mine, theirs))
    if (rows, channels) != (len(told.values), told.channels) or not (mine == theirs or square):
        raise ValueError(
            f"the loss of a prediction of {rows} rows, {mine} tokens, {channels} channels and a "
            f"target of {len(told.values)}, {theirs}, {told.channels}: rows and channels must be "
            "equal, tokens too unless both are of square grids"
        )
    tokens = max(mine, theirs)
    if weight.shape not in ((rows,), (rows, tokens)):
        raise ValueError(f"weights of {tuple(weight.shape)} for {rows} rows of {tokens} tokens")
    for what, tensor in (("prediction", prediction), ("target", told.values)):
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"the channels of a {what} must be dense, and lie {tensor.stride()}")
    return tokens


@cache
def implementation(impl: Impl) -> LossAndGradient:
    if impl == "triton":
        from trainer.losses import row_kernel

        return partial(meet, row_kernel.loss_and_gradient)
    if impl == "fused":
        from trainer.losses import fused_resize

        return fused_resize.loss_and_gradient
    if impl == "compiled":
        return partial(meet, torch.compile(twin.loss_and_gradient))
    return partial(meet, twin.loss_and_gradient)


@torch.library.custom_op("teachonce::feature_loss", mutates_args=())
def _op(
    prediction: Tensor,
    values: Tensor,
    scales: Tensor | None,
    factor: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    total: Tensor,
    scale: Tensor,
    code: str,
    channels: int,
    cosine: float,
    smooth_l1: float,
    beta: float,
    drop: bool,
    impl: str,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    told = Told(_CODES[code], values, channels, scales, factor, shift)
    terms = Terms(cosine, smooth_l1, beta, drop)
    share = share_of(total, weight.shape[1])
    # No kernel has float64.
    chosen = IMPLS[impl] if prediction.dtype != torch.float64 else "twin"
    loss_and_gradient = implementation(chosen)
    with on_device_of(prediction):
        found = loss_and_gradient(prediction, told, weight, share, scale, terms, needs_gradient)
    return found.loss, found.gradient.contiguous(), found.counts


_CODES: dict[str, Code] = {code: code for code in get_args(Code)}
IMPLS: dict[str, Impl] = {impl: impl for impl in get_args(Impl)}


@_op.register_fake
def _(prediction: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    exact = torch.promote_types(prediction.dtype, torch.float32)
    shape = prediction.shape if arguments[-1] else (0,)
    return (
        prediction.new_empty((), dtype=exact),
        prediction.new_empty(shape),
        prediction.new_empty(2, dtype=torch.float32),
    )


@contextmanager
def on_device_of(tensor: Tensor) -> Iterator[None]:
    """Launches go there, and everything keeps its precision, whatever the caller's autocast."""
    on_device = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    with on_device, torch.autocast(tensor.device.type, enabled=False):
        yield


def share_of(total: Tensor, tokens: int) -> Tensor:
    """Of one token of weight 1 in a mean over rows whose weights sum to `total`."""
    return torch.where(total > 0, 1 / (total * max(1, tokens)), 0.0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, total, scale = inputs[5:8]
    _, gradient, counts = output
    ctx.mark_non_differentiable(gradient, counts)
    ctx.save_for_backward(gradient, total, scale)
    ctx.tokens, ctx.arguments, ctx.gone_back = weight.shape[1], len(inputs), False


def _backward(ctx: Any, by: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    gone_back_once(ctx)
    gradient, total, scale = ctx.saved_tensors
    if gradient.dtype == torch.float16:
        by = by * scale * share_of(total, ctx.tokens)
    return rescaled(gradient, by), *(None,) * (ctx.arguments - 1)


def gone_back_once(ctx: Any) -> None:
    """Raises RuntimeError in a second backward, and in one that is to be gone back through."""
    if ctx.gone_back or torch.is_grad_enabled():
        raise RuntimeError(
            "the gradient of a loss of teachonce is found once, with the loss, and used up in the "
            "backward: neither a second backward nor one of the backward is possible"
        )
    ctx.gone_back = True


def rescaled(gradient: Tensor, by: Tensor) -> Tensor:
    """`gradient` times the scalar `by`, in place."""
    if type(gradient) is not Tensor:  # being traced, where others might look at it as well
        return gradient * by
    has_kernel = gradient.dtype != torch.float64 and find_spec("triton") is not None
    if gradient.is_cuda and has_kernel:
        from trainer.losses.rescale_kernel import rescale

        with torch.cuda.device_of(gradient):  # type: ignore[no-untyped-call]
            rescale(gradient, by)
        return gradient
    return gradient.mul_(by)


_op.register_autograd(_backward, setup_context=_keep)
