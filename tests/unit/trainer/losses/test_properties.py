"""What must hold of the loss whatever the numbers are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.trainer.losses.cases import PATCH, TERMS
from trainer.losses import twin
from trainer.losses.told import Told
from trainer.losses.twin import Found, Terms

pytestmark = pytest.mark.unit

COSINE = TERMS["cls"]
PAIRS = st.tuples(st.integers(2, 65), st.integers(0, 2**31), st.sampled_from([1.0, 1e-3, 1e4]))
"""Channels, seed, and the size of one channel beside the others."""


def pair_of(pair: tuple[int, int, float]) -> tuple[Tensor, Tensor]:
    channels, seed, outlier = pair
    random = torch.Generator().manual_seed(seed)
    prediction, target = torch.randn(2, 2, 3, channels, generator=random)
    target[..., 0] *= outlier
    return prediction, target


def found_of(prediction: Tensor, target: Tensor, terms: Terms) -> Found:
    told, one = Told("float", target, target.shape[-1]), torch.ones(())
    weight = torch.ones(prediction.shape[:2])
    return twin.loss_and_gradient(prediction, told, weight, one / weight.numel(), one, terms, True)


@given(PAIRS, st.sampled_from([*TERMS.values()]))
def test_loss__knows_no_order_of_channels(pair: tuple[int, int, float], terms: Terms) -> None:
    prediction, target = pair_of(pair)
    order = torch.randperm(prediction.shape[-1])
    there = found_of(prediction, target, terms)
    back = found_of(prediction[..., order], target[..., order], terms)
    torch.testing.assert_close(back.loss, there.loss, rtol=2e-6, atol=1e-6)
    scale = there.gradient.abs().max().item()
    torch.testing.assert_close(
        back.gradient, there.gradient[..., order], rtol=1e-5, atol=2e-6 * scale
    )


@given(PAIRS, st.integers(-12, 12))
def test_cosine__knows_no_length(pair: tuple[int, int, float], power: int) -> None:
    """To the bit, because a power of two rounds nothing."""
    prediction, target = pair_of(pair)
    plain = found_of(prediction, target, COSINE)
    longer = found_of(prediction * 2.0**power, target, COSINE)
    assert torch.equal(longer.loss, plain.loss)
    assert torch.equal(longer.gradient, plain.gradient * 2.0**-power)
    louder = found_of(prediction, target * 2.0**power, COSINE)
    assert torch.equal(louder.loss, plain.loss)
    assert torch.equal(louder.gradient, plain.gradient)


@given(PAIRS)
def test_cosine__gradient_is_at_right_angles_to_the_prediction(
    pair: tuple[int, int, float],
) -> None:
    prediction, target = pair_of(pair)
    gradient = found_of(prediction, target, COSINE).gradient
    along = (gradient * prediction).sum(-1)
    assert (along.abs() <= 1e-6).all()


@given(PAIRS)
def test_loss__of_the_same_is_0_and_of_the_opposite_2(pair: tuple[int, int, float]) -> None:
    _, target = pair_of(pair)
    same = found_of(target, target, PATCH)
    assert abs(same.loss.item()) <= 1e-6
    assert (same.gradient.norm(dim=-1) * target.norm(dim=-1) <= 1e-6).all()
    opposite = found_of(-target, target, COSINE)
    assert abs(opposite.loss.item() - 2) <= 1e-6


@given(PAIRS, st.integers(0, 5), st.sampled_from([0.0, -3.0, 1e30, float("nan")]))
@settings(max_examples=50)
def test_gradient__of_a_token_is_its_own(
    pair: tuple[int, int, float], place: int, by: float
) -> None:
    prediction, target = pair_of(pair)
    before = found_of(prediction, target, PATCH).gradient
    prediction.view(6, -1)[place] *= by
    after = found_of(prediction, target, PATCH).gradient
    others = torch.arange(6) != place
    assert torch.equal(before.view(6, -1)[others], after.view(6, -1)[others])
