"""The kernels of two grids; `test_kernels.py` runs these in a process of their own."""

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.trainer.losses.cases import FORMS, PATCH, TERMS, WEIGHTS, Case, case_of
from tests.unit.trainer.losses.definition import assert_equal, error
from tests.unit.trainer.losses.interpreted import DEVICE, MARKS, ROUNDINGS, buffers, there  # noqa: F401
from trainer.losses import fused_resize, row_kernel, twin
from trainer.losses.meet import meet
from trainer.losses.twin import Found, Terms

pytestmark = MARKS

loss_and_gradient = there(fused_resize.loss_and_gradient)
one_grid = there(row_kernel.loss_and_gradient)

PAIRS = [(2, 3), (3, 2), (4, 6), (6, 4), (1, 3), (3, 1), (5, 3), (3, 5), (4, 8), (8, 4)]
"""Tokens a side of prediction and target; 8 to 16 and 16 to 24 have these ratios."""
ERROR = 5e-6 if DEVICE == "cpu" else 2e-3
"""A GPU resizes in TF32, of ten bits."""


def case_of_grids(
    mine: int, theirs: int, form: str, dtype: torch.dtype, channels: int, terms: Terms = PATCH
) -> Case:
    """Two rows; every fourth token has weight 0. Nothing is NaN, which would be everywhere."""
    prediction, told = (
        each[place]
        for place, side in enumerate((mine, theirs))
        for each in [case_of(FORMS[form], dtype, channels, terms, side, side**2)]
    )
    values, scales = told.values.clone(), told.scales
    if told.code == "fp8":
        values[values & 0x7F == 0x7F] = 0
    elif told.code == "float":
        values = values.nan_to_num(0.5)
    told = replace(
        told, values=values, scales=scales if scales is None else scales.nan_to_num(0.02)
    )
    count = 2 * max(mine, theirs) ** 2
    weight = torch.tensor(WEIGHTS).repeat(count)[:count].view(2, -1)
    one = torch.tensor(2.0**-7), torch.tensor(3.0)
    return Case(prediction.nan_to_num(0.5), told, weight, *one, terms)


def exact(case: Case) -> Found:
    """In float64, from the very numbers that the kernel is given."""
    wide = (tensor.double() for tensor in (case.prediction, case.weight, case.share, case.scale))
    prediction, weight, share, scale = wide
    if case.prediction.dtype == torch.float16:
        found = meet(
            twin.loss_and_gradient, prediction, case.told, weight, share, scale, case.terms, True
        )
        return found._replace(gradient=found.gradient / (share * scale))
    return meet(
        twin.loss_and_gradient, prediction, case.told, weight, share, scale, case.terms, True
    )


def check(case: Case) -> None:
    found, true = loss_and_gradient(*case, True), exact(case)
    dtype = case.prediction.dtype
    rounding = ROUNDINGS[dtype]
    assert found.loss.item() == pytest.approx(true.loss.item(), rel=ERROR)
    assert error(found.gradient, true.gradient, rounding, 2.0**-25 if rounding else 0.0) < ERROR
    assert found.counts.tolist() == true.counts.tolist()
    assert found.gradient.dtype == dtype


@pytest.mark.parametrize("grids", PAIRS)
def test_grids__equal_the_twin_of_every_ratio(grids: tuple[int, int]) -> None:
    check(case_of_grids(*grids, "int8, factor", torch.float32, 33))


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
@pytest.mark.parametrize("form", FORMS)
def test_grids__equal_the_twin_of_every_form(grids: tuple[int, int], form: str) -> None:
    check(case_of_grids(*grids, form, torch.float32, 20))


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("channels", [1, 300])
def test_grids__equal_the_twin_in_every_precision(
    grids: tuple[int, int], dtype: torch.dtype, channels: int
) -> None:
    check(case_of_grids(*grids, "int8", dtype, channels))


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
@pytest.mark.parametrize("terms", TERMS)
def test_grids__equal_the_twin_of_every_term(grids: tuple[int, int], terms: str) -> None:
    check(case_of_grids(*grids, "int8", torch.float32, 20, TERMS[terms]))


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
def test_grids__a_masked_row_is_not_looked_at(grids: tuple[int, int]) -> None:
    case = case_of_grids(*grids, "float32", torch.float32, 20)
    case.weight[0] = 0
    found = loss_and_gradient(*case, True)
    case.prediction[0], case.told.values[0] = math.nan, math.inf
    again = loss_and_gradient(*case, True)
    assert_equal(again, found)
    assert not found.gradient[0].any()
    assert found.gradient[1].any()


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
@pytest.mark.parametrize("drop", [False, True])
def test_grids__what_is_not_finite_stops_or_is_dropped(grids: tuple[int, int], drop: bool) -> None:
    case = case_of_grids(*grids, "float32", torch.float32, 20, PATCH._replace(drop=drop))
    case.weight.fill_(1)
    larger = case.prediction if grids[0] > grids[1] else case.told.values
    larger[1, 2, 3] = math.nan
    found = loss_and_gradient(*case, True)
    assert found.counts[1] == 1
    assert found.loss.isfinite() == drop
    assert found.gradient.isfinite().all() == drop
    assert found.gradient[0].isfinite().all()
    if drop:
        check(case)


@pytest.mark.parametrize("grids", [(2, 3), (3, 2)])
def test_grids__alone_and_twice_give_the_same_bits(grids: tuple[int, int]) -> None:
    case = case_of_grids(*grids, "int4", torch.bfloat16, 40)
    found = loss_and_gradient(*case, True)
    assert_equal(loss_and_gradient(*case, True), found)
    alone = loss_and_gradient(*case, False)
    assert torch.equal(alone.loss, found.loss)
    assert alone.gradient.numel() == 0


@pytest.mark.parametrize("most", [("MOST_SIDE", 2), ("MOST_SPAN", 180)])
def test_grids__of_one_size_or_too_large_go_the_other_way(
    most: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = case_of_grids(3, 3, "int8", torch.float32, 20)
    assert_equal(loss_and_gradient(*same, True), one_grid(*same, True))
    monkeypatch.setattr(fused_resize, *most)
    case = case_of_grids(2, 3, "int8", torch.float32, 20)
    found, other = loss_and_gradient(*case, True), meet(one_grid, *case, True)
    assert_equal(found, other)


def test_grids__no_rows() -> None:
    case = case_of_grids(2, 3, "float32", torch.float32, 20)
    told = replace(case.told, values=case.told.values[:0])
    none = case._replace(prediction=case.prediction[:0], told=told, weight=case.weight[:0])
    found = loss_and_gradient(*none, True)
    assert found.loss == 0
    assert found.gradient.shape == (0, 4, 20)
