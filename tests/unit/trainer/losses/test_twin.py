"""The definition against the formulas in float64, in every form and at every edge."""

from typing import cast

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import FORMS, TERMS, WIDTHS, case_of
from tests.unit.trainer.losses.definition import CHECKS, verify
from trainer.losses import twin
from trainer.losses.told import Told

pytestmark = pytest.mark.unit

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_twin__equals_the_formulas(form: str, dtype: torch.dtype) -> None:
    for channels in WIDTHS:
        verify(twin.loss_and_gradient, case_of(FORMS[form], dtype, channels))


@pytest.mark.parametrize("terms", TERMS)
def test_twin__equals_the_formulas_of_every_term(terms: str) -> None:
    for dtype in DTYPES:
        for channels in (7, 384):
            verify(
                twin.loss_and_gradient,
                case_of(FORMS["int8"], dtype, channels, TERMS[terms]),
            )


@pytest.mark.parametrize("check", CHECKS)
def test_twin__is_as_defined(check: str) -> None:
    CHECKS[check](twin.loss_and_gradient)


@pytest.mark.parametrize("terms", TERMS)
def test_gradient__is_the_derivative_of_the_loss(terms: str) -> None:
    """By finite differences, of the twin's own loss."""
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    weight, share, scale = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]]), *torch.ones(2)
    told = Told("float", target, 5)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, prediction: Tensor) -> Tensor:
            loss, gradient, _ = twin.loss_and_gradient(
                prediction, told, weight, share, scale, TERMS[terms], True
            )
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, *by: Tensor) -> Tensor:
            (gradient,) = cast("tuple[Tensor]", ctx.saved_tensors)  # type: ignore[attr-defined]
            return by[0] * gradient

    prediction = (target + torch.randn_like(target)).requires_grad_()
    assert torch.autograd.gradcheck(Loss.apply, prediction)
