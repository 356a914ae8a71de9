"""Starts the kernels of resize_kernel.py."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from trainer.losses import row_kernel
from trainer.losses.meet import meet
from trainer.losses.resize_kernel import large_row_kernel, small_row_kernel
from trainer.losses.told import Told
from trainer.losses.twin import Found, Terms
from trainer.resize import bicubic_matrix, side_of

LEAST = 16
"""Rows and columns of what the tensor cores multiply."""
MOST_CHUNK = 64
"""Channels at a time: with 128 a thread needs up to 187 registers, with 64 at most 128."""
MOST_SIDE = 64
"""Tokens a side of the larger grid; more do not fit a processor's shared memory."""
MOST_SPAN = 2**31
"""Elements from a row's first token to its last: the kernels count them in 32 bits."""
TAPS = 4
"""Rows that a row of a bicubic resize is made of."""
PRECISION = "tf32"
"""Of the products with the matrix of the resize: float32's range, ten bits of its fraction."""
WARPS = 8


def loss_and_gradient(
    prediction: Tensor,
    told: Told,
    weight: Tensor,
    share: Tensor,
    scale: Tensor,
    terms: Terms,
    gradient: bool,
) -> Found:
    """As twin.loss_and_gradient, of any two square grids; `weight` is of the larger one's tokens.
    Grids of more than MOST_SIDE tokens a side, or MOST_SPAN between the tokens of a row, meet
    before the kernel."""
    equal = prediction.shape[1] == told.values.shape[1]
    spans = [each.shape[1] * each.stride(1) for each in (prediction, told.values)]
    if equal or weight.shape[1] > MOST_SIDE**2 or max(spans) >= MOST_SPAN:
        of_one_grid = row_kernel.loss_and_gradient
        return meet(of_one_grid, prediction, told, weight, share, scale, terms, gradient)
    rows, _, channels = prediction.shape
    sides = side_of(prediction), side_of(told.values)
    small, large = min(sides), max(sides)
    mine_smaller = sides[0] == small
    device, programs = prediction.device, rows * large
    losses, counts = torch.empty(programs, device=device), torch.empty((2, programs), device=device)
    found = prediction.new_empty(prediction.shape if gradient else 0)
    if not programs:
        return Found(losses.sum(), found, counts.sum(1))
    window = _window(small, large, device)
    told_by = losses.new_empty((3, rows * large**2) if gradient and mine_smaller else 0)
    values = told.values.view(torch.int8) if told.code == "int8" else told.values
    scales = values if told.scales is None else told.scales
    factors = (told.factor, told.shift) if told.factor is not None else (weight, weight)
    read: tuple[Any, ...] = (prediction, values, scales, *factors, window.matrix, window.tops)
    strides = (*prediction.stride()[:2], *values.stride()[:2], *scales.stride()[:2])
    constants = constants_of(told, small, large, terms)
    large_row_kernel[(programs,)](
        *(*read, weight, share, scale, losses, counts, found, told_by, programs),
        *(*strides, *weight.stride()),
        MINE_SMALLER=mine_smaller,
        COSINE=terms.cosine,
        DROP=terms.drop,
        GRADIENT=gradient,
        UNIT=prediction.dtype == torch.float16,
        **constants,
        num_warps=WARPS,
    )
    if gradient and mine_smaller:
        small_row_kernel[(rows * small, -(-channels // constants["CHUNK"]))](
            *(*read, window.ends, told_by, weight, found, rows * large**2),
            *(*strides, *weight.stride()),
            **constants,
            num_warps=WARPS,
        )
    return Found(losses.sum(), found, counts.sum(1))


def constants_of(told: Told, small: int, large: int, terms: Terms) -> dict[str, Any]:
    """Those that both kernels have."""
    return {
        "CHANNELS": told.channels,
        "CHUNK": min(triton.next_power_of_2(max(told.channels, LEAST)), MOST_CHUNK),
        "LARGE": large,
        "SMALL": small,
        "LARGE_TILE": _tile(large),
        "SMALL_TILE": _tile(small),
        "TAPS": min(small, TAPS),
        "CODE": told.code,
        "SCALED": told.scales is not None,
        "AFFINE": told.factor is not None,
        "PRECISION": PRECISION,
        "SMOOTH": terms.smooth_l1,
        "BETA": terms.beta,
    }


class _Window(NamedTuple):
    """Of a resize, on a device."""

    matrix: Tensor
    """float32 [large, small]."""
    tops: Tensor
    """int32 [large]: the first of the rows that a row of the larger grid is made of."""
    ends: Tensor
    """int32 [2, small]: the first row of the larger grid that a row has a part in, and the one
    after the last."""


@lru_cache(maxsize=64)
def _window(small: int, large: int, device: torch.device) -> _Window:
    # On the host: what is computed while a CUDA graph is recorded has no values yet.
    matrix = bicubic_matrix(small, large, torch.device("cpu"), torch.float32)
    part = (matrix != 0).int()
    tops = part.argmax(1).clamp_max(small - min(small, TAPS))
    last = large - part.flip(0).argmax(0)
    ends = torch.stack([part.argmax(0), last])
    return _Window(*(each.to(device) for each in (matrix, tops.int(), ends.int())))


def _tile(side: int) -> int:
    return max(LEAST, int(triton.next_power_of_2(side)))
