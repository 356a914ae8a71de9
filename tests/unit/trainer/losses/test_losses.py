"""The loss against the paper's formulas, written out row by row in float64."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from schemas.train_config import Loss, PatchLoss
from trainer.batch import Affine, Target
from trainer.losses import Weighing, cls_losses, patch_loss
from trainer.resize import resize_tokens

pytestmark = pytest.mark.unit

PATCH = PatchLoss(cosine=0.9, smooth_l1=0.1, beta=0.5)
LOSS = Loss(patch=PATCH)


class Prediction(NamedTuple):
    tokens: Tensor
    cls: Tensor | None


def losses(
    prediction: Prediction, target: Target, weight: Tensor, total: Tensor | None = None
) -> dict[str, Tensor]:
    """Both losses of one teacher; `weight` is of the whole batch unless `total` is given."""
    total = weight.sum() if total is None else total
    rows, one = Weighing(weight, total), torch.ones(1)
    found = {"patch": patch_loss(prediction.tokens, target, rows, one[0], LOSS, "twin")[0]}
    if prediction.cls is not None:
        found["cls"] = cls_losses([prediction.cls], [target], rows, one, LOSS, "twin")[0][0]
    return found


def summed(found: dict[str, Tensor]) -> Tensor:
    return torch.stack([*found.values()]).sum()


def vector_cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second)) / math.hypot(*first) / math.hypot(*second)


def smooth_l1(first: list[float], second: list[float], beta: float) -> float:
    distances = [abs(a - b) for a, b in zip(first, second)]
    return sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in distances) / len(first)


def expected_parts(
    prediction: Prediction, target: Target, weight: Tensor
) -> tuple[float, float | None]:
    """(patch, cls) of one teacher, by plain Python."""
    side = max(math.isqrt(prediction.tokens.shape[1]), target.grid)
    mine = resize_tokens(prediction.tokens.double(), side).tolist()
    theirs = resize_tokens(target.tokens.double(), side).tolist()
    patch_sum = cls_sum = total = 0.0
    for row, factor in enumerate(weight.tolist()):
        if not factor:
            continue
        tokens = [
            PATCH.cosine * (1 - vector_cosine(a, b)) + PATCH.smooth_l1 * smooth_l1(a, b, PATCH.beta)
            for a, b in zip(mine[row], theirs[row])
        ]
        patch_sum += factor * sum(tokens) / len(tokens)
        if prediction.cls is not None and target.cls is not None:
            a, b = prediction.cls[row].tolist(), target.cls[row].tolist()
            cls_sum += factor * (1 - vector_cosine(a, b))
        total += factor
    return patch_sum / total, None if target.cls is None else cls_sum / total


def case(
    rows: int, mine: int, theirs: int, width: int, cls: int | None
) -> tuple[Prediction, Target]:
    prediction = Prediction(
        torch.randn(rows, mine**2, width, requires_grad=True),
        None if cls is None else torch.randn(rows, cls, requires_grad=True),
    )
    target = Target(
        theirs,
        torch.randn(rows, theirs**2, width).half(),
        None if cls is None else torch.randn(rows, cls).half(),
        None,
    )
    return prediction, target


CASES = {"both": (2, 4, 5, 6), "no cls": (4, 3, 7, None), "same grid": (3, 3, 4, 4)}


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0, 1], [0.5, 2, 0]])
@pytest.mark.parametrize("name", CASES)
def test_loss__equals_the_formulas(weights: list[float], name: str) -> None:
    torch.manual_seed(0)
    pair, weight = case(3, *CASES[name]), torch.tensor(weights)
    patch, cls = expected_parts(*pair, weight)
    found = losses(*pair, weight)
    assert found["patch"].item() == pytest.approx(patch, rel=1e-5)
    assert ("cls" in found) == (cls is not None)
    if cls is not None:
        assert found["cls"].item() == pytest.approx(cls, rel=1e-5)
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_loss__shares_of_a_batch_add_up_however_it_is_cut() -> None:
    torch.manual_seed(0)
    (prediction, target), weight = case(6, 2, 4, 5, 6), torch.tensor([1.0, 0, 2, 1, 0, 0.5])
    assert prediction.cls is not None
    assert target.cls is not None
    whole = losses(prediction, target, weight)
    for cut in (1, 4, 5):
        shares = [
            losses(
                Prediction(prediction.tokens[rows], prediction.cls[rows]),
                Target(4, target.tokens[rows], target.cls[rows], None),
                weight[rows],
                weight.sum(),
            )
            for rows in (slice(cut), slice(cut, None))
        ]
        for term, value in whole.items():
            torch.testing.assert_close(shares[0][term] + shares[1][term], value)


def test_loss__standardises_anew_what_another_cache_standardised() -> None:
    torch.manual_seed(0)
    (prediction, target), weight = case(2, 2, 4, 5, 6), torch.ones(2)
    assert target.cls is not None
    tokens, cls = (Affine(torch.rand(n) + 0.5, torch.randn(n)) for n in (5, 6))
    anew = Target(
        4,
        target.tokens.float() * tokens.scale + tokens.shift,
        target.cls.float() * cls.scale + cls.shift,
        None,
    )
    found = losses(prediction, Target(4, target.tokens, target.cls, None, tokens, cls), weight)
    for term, value in losses(prediction, anew, weight).items():
        assert torch.equal(found[term], value)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 6e4])
def test_loss__row_of_weight_0_contributes_nothing(garbage: float) -> None:
    prediction, target = case(3, 2, 4, 5, 6)
    assert target.cls is not None
    assert prediction.cls is not None
    target.tokens[1] = target.cls[1] = garbage
    total = summed(losses(prediction, target, torch.tensor([1.0, 0.0, 1.0])))
    total.backward()
    kept = [0, 2]
    without = Prediction(prediction.tokens[kept], prediction.cls[kept])
    sound = Target(4, target.tokens[kept], target.cls[kept], None)
    torch.testing.assert_close(total, summed(losses(without, sound, torch.ones(2))))
    for leaf in prediction:
        assert leaf is not None
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[1].any()
        assert leaf.grad[kept].any()


def test_loss__batch_without_weight_is_0_with_gradients_of_0() -> None:
    prediction, target = case(2, 2, 2, 3, 3)
    target.tokens[:] = math.nan
    total = summed(losses(prediction, target, torch.zeros(2)))
    total.backward()
    assert total.item() == 0
    for leaf in prediction:
        assert leaf is not None
        assert leaf.grad is not None
        assert not leaf.grad.any()


def test_loss__is_0_for_a_perfect_student() -> None:
    _, target = case(2, 3, 3, 4, 4)
    assert target.cls is not None
    perfect = Prediction(target.tokens.float(), target.cls.float())
    assert summed(losses(perfect, target, torch.ones(2))).item() == pytest.approx(0, abs=1e-6)
