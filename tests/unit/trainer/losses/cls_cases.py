"""The kernel of all CLS losses; `test_kernels.py` runs these in a process of their own."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import FORMS, case_of
from tests.unit.trainer.losses.interpreted import DEVICE, MARKS, ROUNDINGS, buffers, moved  # noqa: F401
from trainer.losses.cls_op import cls_losses
from trainer.losses.op import Impl
from trainer.losses.told import Told
from trainer.losses.twin import Terms

pytestmark = MARKS

WIDTHS = (7, 1, 130, 64)
WEIGHT = torch.tensor([1.0, 0.0, 2.5, 0.5, 1.0])


def heads(form: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Told]]:
    """Of four teachers; masked rows hold NaN."""
    predictions, told = [], []
    for width in WIDTHS:
        case = case_of(FORMS[form], dtype, width, Terms(1.0), tokens=len(WEIGHT))
        values = case.told.values[0][:, None].clone()
        values[WEIGHT == 0] = math.nan
        prediction = case.prediction[0][:, None].clone().nan_to_num(1.0)
        prediction[WEIGHT == 0] = math.inf
        predictions.append(prediction)
        told.append(
            Told("float", values.nan_to_num(2.0), width, None, case.told.factor, case.told.shift)
        )
        told[-1].values[WEIGHT == 0] = math.nan
    return predictions, told


def took(
    predictions: Sequence[Tensor], told: Sequence[Told], impl: Impl, drop: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses, counts and gradients."""
    device = DEVICE if impl == "triton" else "cpu"
    leaves = [each.to(device).clone().requires_grad_() for each in predictions]
    told = [moved(each, device) for each in told]
    weight, scales = WEIGHT.to(device), torch.tensor([1.0, 2.0, 0.5, 3.0], device=device)
    losses, counts = cls_losses(leaves, told, weight, weight.sum(), scales, drop, impl)
    losses.sum().backward()
    gradients = [each.grad.cpu() for each in leaves if each.grad is not None]
    return losses.detach().cpu(), counts.cpu(), gradients


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("form", ["float16", "float32", "float16, factor"])
def test_cls_kernel__equals_a_head_after_the_other(form: str, dtype: torch.dtype) -> None:
    given = heads(form, dtype)
    losses, counts, gradients = took(*given, "triton")
    expected, same, true = took(*given, "twin")
    torch.testing.assert_close(losses, expected, rtol=2e-6, atol=1e-7)
    assert torch.equal(counts, same)
    for found, one in zip(gradients, true):
        rounding = 2 * ROUNDINGS[dtype] or 2e-6
        torch.testing.assert_close(found, one, rtol=rounding, atol=1e-7)
        assert found.isfinite().all()
        assert not found[1].any()


def test_cls_kernel__counts_and_drops_over_all_heads() -> None:
    predictions, told = heads("float32", torch.float32)
    predictions[0][0] = 0
    predictions[2][3, 0, 5] = math.nan
    losses, counts, _ = took(predictions, told, "triton")
    assert counts.tolist() == [1, 1]
    assert losses.isnan().tolist() == [False, False, True, False]
    kept, counts, gradients = took(predictions, told, "triton", drop=True)
    assert counts.tolist() == [1, 1]
    assert kept.isfinite().all()
    assert not gradients[2][3].any()
    assert torch.equal(kept[[0, 1, 3]], losses[[0, 1, 3]])


def test_cls_kernel__twice_gives_the_same_bits_and_without_a_gradient_the_same_losses() -> None:
    given = heads("float16", torch.bfloat16)
    losses, _, gradients = took(*given, "triton")
    again = took(*given, "triton")
    assert torch.equal(losses, again[0])
    assert all(torch.equal(one, other) for one, other in zip(gradients, again[2]))
    with torch.no_grad():
        weight, ones = WEIGHT.to(DEVICE), torch.ones(len(WIDTHS), device=DEVICE)
        predictions, told = ([moved(each, DEVICE) for each in some] for some in given)
        alone, _ = cls_losses(predictions, told, weight, weight.sum(), ones, False, "triton")
    assert torch.equal(alone.cpu(), losses)
