"""What holds of every implementation of `loss_and_gradient`, the twin and the kernels, and of no
faulty one."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import (
    FORMS,
    PATCH,
    TERMS,
    Case,
    case_of,
    edges,
    of_tokens,
    poisoned,
)
from tests.unit.trainer.losses.reference import reference
from trainer.losses.op import LossAndGradient
from trainer.losses.twin import Found, Terms

EXACT = 1e-13
"""Relative error of what is found in float64."""
LOSS_ERROR = 1e-6
GRADIENT_ERROR = 2e-6
"""Relative, of the whole gradient as a vector: of one that is 0 it is 1, however small the true one
is. What float16 and bfloat16 round away in each element is not counted."""
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float16: 2.0**-25}
"""Half of its distance from 0."""


def error(found: Tensor, true: Tensor, rounding: float = 0.0, smallest: float = 0.0) -> float:
    """Relative, of vectors, beyond what each element may have been rounded by; of NaN, NaN."""
    beyond = (found.double() - true).abs() - rounding * true.abs() - smallest
    # `clamp` keeps NaN.
    size = beyond.clamp(min=0).norm()
    return (size / true.norm()).item() if true.any() else size.item()


def verify(loss_and_gradient: LossAndGradient, case: Case, rounding: float | None = None) -> None:
    """That an implementation finds what the reference does.

    Args:
        rounding: of a gradient's elements, instead of what `ROUNDING` grants its type.
    """
    dtype = case.prediction.dtype
    exact = dtype == torch.float64
    true = reference(case, unit=dtype == torch.float16)
    found = loss_and_gradient(*case, True)
    assert found.counts.tolist() == true.counts.tolist()
    loss_error = EXACT if exact else LOSS_ERROR
    assert found.loss.item() == pytest.approx(true.loss.item(), rel=loss_error)
    assert found.loss.dtype == torch.promote_types(dtype, torch.float32)
    assert found.gradient.shape == case.prediction.shape
    assert found.gradient.dtype == dtype
    granted = ROUNDING.get(dtype, 0.0) if rounding is None else rounding
    beyond = error(found.gradient, true.gradient, granted, SMALLEST.get(dtype, 0.0))
    assert beyond <= (EXACT if exact else GRADIENT_ERROR)
    assert not found.gradient[case.weight == 0].any()


def formulas(loss_and_gradient: LossAndGradient) -> None:
    for terms in TERMS.values():
        verify(loss_and_gradient, case_of(FORMS["int8, factor"], torch.float32, 12, terms))
    verify(loss_and_gradient, case_of(FORMS["float16"], torch.float16, 12))


def loss_alone(loss_and_gradient: LossAndGradient) -> None:
    """Without a gradient the same loss is found, and no gradient."""
    for dtype, channels in ((torch.float32, 12), (torch.float16, 384)):
        case = case_of(FORMS["int8"], dtype, channels)
        found, alone = (loss_and_gradient(*case, gradient) for gradient in (True, False))
        assert torch.equal(alone.loss, found.loss)
        assert torch.equal(alone.counts, found.counts)
        assert alone.gradient.numel() == 0


def no_direction(loss_and_gradient: LossAndGradient) -> None:
    """The cosine of such tokens is 0 and has no gradient; smooth-L1 is theirs like any other's."""
    for terms in TERMS.values():
        for dtype in (torch.float32, torch.float16):
            verify(loss_and_gradient, edges(dtype, terms))
    for prediction, target in (([0.0, 0.0], [3.0, 4.0]), ([3.0, 4.0], [0.0, 0.0])):
        found = loss_and_gradient(
            *of_tokens([prediction], [target], [1.0], Terms(cosine=0.9)), True
        )
        assert found.loss.item() == pytest.approx(0.9)
        assert not found.gradient.any()
        assert found.counts.tolist() == [1, 0]


def masked(loss_and_gradient: LossAndGradient) -> None:
    """Whatever a token of weight 0 holds, the same bits are found."""
    for terms in TERMS.values():
        zeros = without_second(loss_and_gradient, terms)
        for garbage in (math.nan, math.inf, -1e30):
            case = poisoned(garbage, terms)
            case.weight[0, 1] = 0
            assert_equal(loss_and_gradient(*case, True), zeros)


def all_masked(loss_and_gradient: LossAndGradient) -> None:
    case = poisoned(math.nan)
    case.weight.zero_()
    found = loss_and_gradient(*case._replace(share=torch.zeros(())), True)
    assert found.loss.item() == 0
    assert not found.gradient.any()
    assert not found.counts.any()


def no_total(loss_and_gradient: LossAndGradient) -> None:
    case = case_of(FORMS["int8"], torch.float32, 12)._replace(share=torch.zeros(()))
    found = loss_and_gradient(*case, True)
    assert found.loss.item() == 0
    assert not found.gradient.any()


def no_tokens(loss_and_gradient: LossAndGradient) -> None:
    case = case_of(FORMS["int8"], torch.float32, 12)
    assert case.told.scales is not None
    for some in ((slice(0), slice(None)), (slice(None), slice(0))):
        told = replace(case.told, values=case.told.values[some], scales=case.told.scales[some])
        less = case._replace(prediction=case.prediction[some], told=told, weight=case.weight[some])
        found = loss_and_gradient(*less, True)
        assert found.loss.item() == 0
        assert found.gradient.shape == less.prediction.shape
        assert found.counts.tolist() == [0, 0]


GARBAGE = (
    ([math.nan, 1.0], [1.0, 2.0]),
    ([1.0, 2.0], [1.0, math.nan]),
    ([math.inf, 1.0], [1.0, 2.0]),
    ([1.0, 2.0], [-math.inf, 2.0]),
    ([0.0, 0.0], [math.nan, 2.0]),
    ([math.inf, 1.0], [0.0, 0.0]),
    ([1e30, 1.0], [1.0, 2.0]),  # finite, and its square is not
    ([1.0, 2.0], [1e30, 1.0]),
)
"""Predictions and targets that are not finite, or whose products are not."""


def stops(loss_and_gradient: LossAndGradient) -> None:
    """A token that is not finite makes the loss NaN and all of its own gradient, no other's."""
    for terms in TERMS.values():
        others = without_second(loss_and_gradient, terms).gradient
        for prediction, target in GARBAGE:
            found = loss_and_gradient(*_second(prediction, target, terms), True)
            assert found.loss.isnan()
            assert found.gradient[0, 1].isnan().all()
            assert torch.equal(found.gradient[0, ::2], others[0, ::2])
            assert found.counts[1] == 1


def drops(loss_and_gradient: LossAndGradient) -> None:
    """A token that is not finite is counted, and else is as if it had weight 0."""
    for each in TERMS.values():
        terms = each._replace(drop=True)
        zeros = without_second(loss_and_gradient, terms)
        for prediction, target in GARBAGE:
            found = loss_and_gradient(*_second(prediction, target, terms), True)
            assert found.counts[1] == 1
            assert_equal(found._replace(counts=zeros.counts), zeros)
        for garbage in (math.nan, math.inf):
            verify(loss_and_gradient, poisoned(garbage, terms))


def each_for_itself(loss_and_gradient: LossAndGradient) -> None:
    """Another token changes the loss, and nothing in the gradient of the others."""
    case = case_of(FORMS["float16"], torch.float32, 12)
    before = loss_and_gradient(*case, True)
    case.prediction[1, 3] *= -2
    after = loss_and_gradient(*case, True)
    same = (after.gradient == before.gradient).all(-1)
    assert same.sum() == same.numel() - 1
    assert not same[1, 3]
    assert after.loss != before.loss


def twice(loss_and_gradient: LossAndGradient) -> None:
    case = case_of(FORMS["int4"], torch.float32, 127)
    assert_equal(loss_and_gradient(*case, True), loss_and_gradient(*case, True))


CHECKS: dict[str, Callable[[LossAndGradient], None]] = {
    check.__name__: check
    for check in (
        *(formulas, loss_alone, no_direction, masked, all_masked, no_total, no_tokens),
        *(stops, drops, each_for_itself, twice),
    )
}


def without_second(loss_and_gradient: LossAndGradient, terms: Terms = PATCH) -> Found:
    case = poisoned(0.0, terms)
    case.weight[0, 1] = 0
    return loss_and_gradient(*case, True)


def assert_equal(found: Found, expected: Found) -> None:
    """To the bit."""
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


def _second(prediction: list[float], target: list[float], terms: Terms) -> Case:
    case = poisoned(0.0, terms)
    case.prediction[0, 1] = torch.tensor(prediction)
    case.told.values[0, 1] = torch.tensor(target)
    return case
