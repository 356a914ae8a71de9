"""EUPE's rule for token grids of different sides (arXiv 2603.22387, section 3.3).

The smaller grid is bicubically resized to the larger one, after the adapter head, whichever side it
is on. The resize is a constant linear map, so it is applied as two small matrix products: their
gradient is two matrix products as well, where the gradient of torch's own interpolation scatters
with atomic adds, slowly and in no fixed order. Standardising per channel and resizing commute.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

CUBIC = -0.75
"""The free parameter of the cubic kernel, as in torch and OpenCV."""


def resize_tokens(tokens: Tensor, side: int) -> Tensor:
    """Bicubic resize of row-major tokens [batch, n x n, channels] to `side` x `side` of them.

    Equals `F.interpolate(mode="bicubic", align_corners=False)` of the same map.
    """
    now = side_of(tokens)
    if now == side:
        return tokens
    return _both_ways(bicubic_matrix(now, side, tokens.device, tokens.dtype), tokens)


def resize_back(gradient: Tensor, side: int) -> Tensor:
    """The gradient in `side` x `side` tokens, given that in what they were resized to: the resize's
    adjoint."""
    matrix = bicubic_matrix(side, side_of(gradient), gradient.device, gradient.dtype)
    return _both_ways(matrix.T, gradient)


def _both_ways(matrix: Tensor, tokens: Tensor) -> Tensor:
    """`matrix` [new side, side] along both sides of the grid."""
    square = tokens.reshape(-1, matrix.shape[1], matrix.shape[1], tokens.shape[2])
    tall = torch.einsum("ty,byxd->btxd", matrix, square)
    return torch.einsum("sx,btxd->btsd", matrix, tall).flatten(1, 2)


@lru_cache(maxsize=64)
def bicubic_matrix(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The resize of `source` samples to `target` as a matrix [target, source]; rows sum to 1."""
    # Kept for every later call, so it must not be one of inference mode's tensors: training could
    # not save it for its backward.
    with torch.inference_mode(False):
        place = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
        left = place.floor()
        matrix = torch.zeros(target, source, dtype=torch.float64)
        for tap in range(-1, 3):
            column = (left + tap).clamp(0, source - 1).long()
            weight = cubic((place - left - tap).abs())
            matrix.scatter_add_(1, column[:, None], weight[:, None])
        return matrix.to(device, dtype)


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at distances in [0, 2]."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def side_of(tokens: Tensor) -> int:
    """Of the square grid of [batch, tokens, channels]."""
    side = math.isqrt(tokens.shape[1])
    assert side * side == tokens.shape[1], f"{tokens.shape[1]} tokens are no square grid"
    return side
