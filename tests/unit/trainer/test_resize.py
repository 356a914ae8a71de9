"""The resize as a matrix product is torch's bicubic interpolation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.resize import bicubic_matrix, resize_back, resize_tokens

pytestmark = pytest.mark.unit

RATIOS = [(8, 16), (16, 24), (24, 32), (16, 32), (1, 4), (2, 3), (3, 7)]


def interpolated(tokens: Tensor, source: int, target: int) -> Tensor:
    square = tokens.unflatten(1, (source, source)).permute(0, 3, 1, 2)
    large = F.interpolate(square, size=(target, target), mode="bicubic", align_corners=False)
    return large.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("source", "target"), RATIOS)
def test_resize__equals_interpolate(source: int, target: int) -> None:
    tokens = torch.randn(2, source**2, 5, dtype=torch.float64)
    expected = interpolated(tokens, source, target)
    torch.testing.assert_close(resize_tokens(tokens, target), expected, atol=1e-12, rtol=1e-12)
    single = resize_tokens(tokens.float(), target)
    torch.testing.assert_close(single, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), RATIOS)
def test_resize__gradient_is_the_adjoint(source: int, target: int) -> None:
    tokens = torch.randn(2, source**2, 3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, target**2, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((resize_tokens(tokens, target) * direction).sum(), tokens)
    (theirs,) = torch.autograd.grad(
        (interpolated(tokens, source, target) * direction).sum(), tokens
    )
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(resize_back(direction, source), theirs, atol=1e-12, rtol=1e-12)
    inner = torch.tensordot(resize_tokens(tokens, target), direction, dims=3)
    torch.testing.assert_close(torch.tensordot(tokens, ours, dims=3), inner)


def test_resize__commutes_with_standardising() -> None:
    tokens = torch.randn(2, 16, 4, dtype=torch.float64)
    mean, std = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
    torch.testing.assert_close(
        resize_tokens((tokens - mean) / std, 6), (resize_tokens(tokens, 6) - mean) / std
    )


def test_matrix__made_under_inference_mode_still_trains() -> None:
    bicubic_matrix.cache_clear()
    with torch.inference_mode():
        resize_tokens(torch.randn(1, 9, 2), 5)
    tokens = torch.randn(1, 9, 2, requires_grad=True)
    resize_tokens(tokens, 5).sum().backward()
    assert tokens.grad is not None
