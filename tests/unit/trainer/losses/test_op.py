"""The loss as an operator: what its gradient is multiplied by, that it is gone back from once, and
what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.losses.cases import FORMS, PATCH, case_of
from tests.unit.trainer.losses.definition import GRADIENT_ERROR, ROUNDING, SMALLEST, error
from tests.unit.trainer.losses.reference import reference
from tests.unit.trainer.losses.through_op import loss_of, took
from trainer.losses import op, twin
from trainer.losses.cls_op import cls_losses
from trainer.losses.op import feature_loss
from trainer.losses.told import Told
from trainer.losses.twin import Found, Terms

pytestmark = pytest.mark.unit

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_feature_loss__equals_the_formulas(form: str, dtype: torch.dtype) -> None:
    case = case_of(FORMS[form], dtype, 127)
    true = reference(case, unit=False)
    found = took(case)
    assert found.loss.item() == pytest.approx(true.loss.item(), rel=1e-6)
    rounding, smallest = ROUNDING.get(dtype, 0.0), SMALLEST.get(dtype, 0.0)
    # Once when it is kept and once when it is multiplied: float16 by share and scale.
    twice = 2 * rounding if dtype == torch.float16 else rounding
    assert error(found.gradient[:, 1:], true.gradient, twice, smallest) <= GRADIENT_ERROR
    assert not found.gradient[:, 0].any()


def test_feature_loss__weight_of_a_row_is_that_of_its_tokens() -> None:
    case = case_of(FORMS["float32"], torch.float32, 7)
    prediction, rows = case.prediction.nan_to_num(), torch.tensor([0.5, 2.0])
    told = Told("float", case.told.values.nan_to_num(), 7)
    one = torch.ones(())
    by_row, by_token = (
        feature_loss(prediction, told, weight, rows.sum(), one, PATCH)[0]
        for weight in (rows, rows[:, None].expand(2, prediction.shape[1]))
    )
    assert torch.equal(by_row, by_token)


def test_feature_loss__scale_is_of_the_gradient_alone() -> None:
    case = case_of(FORMS["int8"], torch.float32, 7)
    plain = took(case._replace(scale=torch.tensor(1.0)))
    scaled = took(case._replace(scale=torch.tensor(4.0)))
    assert torch.equal(scaled.loss, plain.loss)
    assert torch.equal(scaled.gradient, 4 * plain.gradient)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward__multiplies_by_what_the_loss_was_multiplied_by(dtype: torch.dtype) -> None:
    case = case_of(FORMS["int8"], dtype, 7)
    plain, tripled = took(case), took(case, times=3.0)
    torch.testing.assert_close(
        tripled.gradient.double(),
        3 * plain.gradient.double(),
        rtol=2 * ROUNDING.get(dtype, 2.0**-23),
        atol=2 * SMALLEST.get(dtype, 0.0),
    )
    assert plain.gradient.any()


def test_backward__mean_over_many_tokens_does_not_vanish_in_float16() -> None:
    """A part of a batch of a million tokens, with a scale as mixed precision has it."""
    case = case_of(FORMS["int8"], torch.float16, 384)
    large = case._replace(share=torch.tensor(2.0**-20), scale=torch.tensor(65536.0))
    true = reference(large, unit=False).gradient
    assert (true / 65536).half().count_nonzero() < 0.1 * true.count_nonzero()
    assert error(took(large).gradient[:, 1:], true, 2.0**-10, 2.0**-25) <= GRADIENT_ERROR


def test_backward__comes_once() -> None:
    case = case_of(FORMS["int8"], torch.float32, 7)
    loss, _ = loss_of(case, case.prediction.clone().requires_grad_())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="neither a second backward"):
        loss.backward()


def test_backward__cannot_be_gone_back_through() -> None:
    case = case_of(FORMS["int8"], torch.float32, 7)
    prediction = case.prediction.clone().requires_grad_()
    loss, _ = loss_of(case, prediction)
    with pytest.raises(RuntimeError, match="nor one of the backward"):
        torch.autograd.grad(loss, prediction, create_graph=True)


class Spy:
    """The twin, and what it was asked."""

    def __init__(self) -> None:
        self.predictions: list[Tensor] = []
        self.gradients: list[bool] = []

    def __call__(
        self,
        prediction: Tensor,
        told: Told,
        weight: Tensor,
        share: Tensor,
        scale: Tensor,
        terms: Terms,
        gradient: bool,
    ) -> Found:
        self.predictions.append(prediction)
        self.gradients.append(gradient)
        return twin.loss_and_gradient(prediction, told, weight, share, scale, terms, gradient)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    monkeypatch.setattr(op, "implementation", lambda impl: found)
    return found


def test_feature_loss__finds_a_gradient_only_where_one_is_wanted(spy: Spy) -> None:
    case = case_of(FORMS["int8"], torch.float32, 7)
    leaf = case.prediction.clone().requires_grad_()
    assert not loss_of(case, leaf.detach())[0].requires_grad
    with torch.no_grad():
        loss_of(case, leaf)
    with torch.inference_mode():
        loss_of(case, leaf)
    assert loss_of(case, leaf)[0].requires_grad
    assert spy.gradients == [False, False, False, True]


def test_feature_loss__copies_no_prediction(spy: Spy) -> None:
    case = case_of(FORMS["int8"], torch.bfloat16, 7)
    assert not case.prediction.is_contiguous()
    loss_of(case, case.prediction)
    (seen,) = spy.predictions
    assert seen.data_ptr() == case.prediction.data_ptr()
    assert seen.stride() == case.prediction.stride()


ROWS, TOKENS, WIDTH = 2, 3, 4
WRONG = {
    "rows": ((3, TOKENS, WIDTH), (ROWS, TOKENS, WIDTH), (ROWS,), "loss of a prediction of"),
    "tokens": ((ROWS, 5, WIDTH), (ROWS, TOKENS, WIDTH), (ROWS,), "loss of a prediction of"),
    "channels": ((ROWS, TOKENS, 5), (ROWS, TOKENS, WIDTH), (ROWS,), "loss of a prediction of"),
    "weights": (
        (ROWS, TOKENS, WIDTH),
        (ROWS, TOKENS, WIDTH),
        (TOKENS,),
        r"weights of \(3,\) for 2",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_feature_loss__refuses_shapes_that_do_not_fit(what: str) -> None:
    prediction, target, weight, text = WRONG[what]
    told, one = Told("float", torch.zeros(target), WIDTH), torch.ones(())
    with pytest.raises(ValueError, match=text):
        feature_loss(torch.zeros(prediction), told, torch.ones(weight), one, one, PATCH)


@pytest.mark.parametrize("what", ["prediction", "target"])
def test_feature_loss__refuses_channels_that_are_not_dense(what: str) -> None:
    dense, apart = torch.zeros(ROWS, TOKENS, WIDTH), torch.zeros(ROWS, WIDTH, TOKENS).mT
    prediction, target = (apart, dense) if what == "prediction" else (dense, apart)
    told, one = Told("float", target, WIDTH), torch.ones(())
    with pytest.raises(ValueError, match=f"the channels of a {what} must be dense"):
        feature_loss(prediction, told, torch.ones(ROWS), one, one, PATCH)


def test_feature_loss__keeps_its_precision_under_autocast() -> None:
    case = case_of(FORMS["int8"], torch.float32, 7, tokens=9)
    prediction = case.prediction[:, :4].nan_to_num()
    told = replace(case.told, scales=torch.full((2, 9), 0.02).half())

    def gradient() -> Tensor:
        leaf = prediction.clone().requires_grad_()
        loss, _ = feature_loss(leaf, told, torch.ones(2), torch.tensor(2.0), torch.ones(()), PATCH)
        loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    plain = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(), plain)


def test_feature_loss__gradient_is_dense_whatever_the_prediction_is() -> None:
    case = case_of(FORMS["float32"], torch.float32, 7)
    across = case.prediction.nan_to_num().transpose(0, 1).contiguous().transpose(0, 1)
    found = op._op(
        *(across, case.told.values, None, None, None, case.weight, torch.ones(()), torch.ones(())),
        *("float", 7, *PATCH, "twin", True),
    )
    assert found[1].is_contiguous()


def test_cls_losses__refuse_what_does_not_fit() -> None:
    one, told = torch.ones(3, 1, 4), Told("float", torch.ones(3, 1, 4), 4)
    moved = replace(told, factor=torch.ones(4), shift=torch.ones(4))
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="factor and shift are of all teachers, or of none"):
        cls_losses([one, one], [told, moved], ones, ones.sum(), ones[:2])
    with pytest.raises(ValueError, match="one of each for a teacher"):
        cls_losses([one, one], [told, told], ones, ones.sum(), ones)
