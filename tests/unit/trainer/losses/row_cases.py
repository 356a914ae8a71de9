"""The kernels of one grid; `test_kernels.py` runs these in a process of their own."""

import math

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import FORMS, TERMS, WIDTHS, case_of
from tests.unit.trainer.losses.definition import CHECKS, verify
from tests.unit.trainer.losses.interpreted import DEVICE, MARKS, ROUNDINGS, buffers, there  # noqa: F401
from trainer.losses import rescale_kernel, row_kernel
from trainer.losses.rescale_kernel import BLOCK

pytestmark = MARKS

loss_and_gradient = there(row_kernel.loss_and_gradient)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("form", ["float16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("channels", WIDTHS)
def test_row_kernel__equals_the_formulas(channels: int, form: str, dtype: torch.dtype) -> None:
    verify(loss_and_gradient, case_of(FORMS[form], dtype, channels), ROUNDINGS[dtype])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [7, 768, 1664])
def test_row_kernel__equals_the_formulas_of_every_form(channels: int, form: str) -> None:
    verify(loss_and_gradient, case_of(FORMS[form], torch.float32, channels))


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("channels", [7, 1664])
def test_row_kernel__equals_the_formulas_of_every_term(channels: int, terms: str) -> None:
    verify(loss_and_gradient, case_of(FORMS["int8"], torch.float32, channels, TERMS[terms]))


@pytest.mark.parametrize("check", CHECKS)
def test_row_kernel__is_as_defined(check: str) -> None:
    CHECKS[check](loss_and_gradient)


def rescaled(values: Tensor, by: float) -> Tensor:
    values = values.to(DEVICE)
    rescale_kernel.rescale(values, torch.tensor(by, device=DEVICE))
    return values.cpu()


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_rescale__multiplies(count: int, dtype: torch.dtype) -> None:
    values = torch.randn(count).to(dtype)
    before = values.double()
    values = rescaled(values, 3.0)
    rounding = ROUNDINGS[dtype] or 2.0**-23
    torch.testing.assert_close(values.double(), 3 * before, rtol=rounding, atol=0)


def test_rescale__by_1_leaves_every_bit() -> None:
    values = torch.tensor([math.nan, -math.nan, math.inf, -0.0, 1e-42]).repeat(500)
    before = values.view(torch.int32).clone()
    assert torch.equal(rescaled(values, 1.0).view(torch.int32), before)


def test_rescale__comes_round_where_programs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescale_kernel, "PROGRAMS", 2)
    values = torch.ones(5 * BLOCK + 3)
    assert (rescaled(values, 3.0) == 3).all()
