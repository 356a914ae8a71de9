"""The loss against the paper's formulas, written out row by row in float64."""

import math

import pytest
import torch
from torch import Tensor

from schemas.train_config import Loss, PatchLoss
from trainer.batch import Target
from trainer.heads import Prediction
from trainer.losses import distillation_loss
from trainer.losses.reference import cosine
from trainer.resize import resize_tokens

pytestmark = pytest.mark.unit

LOSS = Loss(patch=PatchLoss(cosine=0.9, smooth_l1=0.1, beta=0.5))


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
            LOSS.patch.cosine * (1 - vector_cosine(a, b))
            + LOSS.patch.smooth_l1 * smooth_l1(a, b, LOSS.patch.beta)
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
    )
    return prediction, target


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 0, 1], [0.5, 2, 0]])
def test_loss__equals_the_formulas(weights: list[float]) -> None:
    torch.manual_seed(0)
    cases = {"a": case(3, 2, 4, 5, 6), "b": case(3, 4, 3, 7, None), "c": case(3, 3, 3, 4, 4)}
    weight, factors = torch.tensor(weights), {"a": 1.0, "b": 0.25, "c": 0.0}
    total, parts = distillation_loss(
        {name: pair[0] for name, pair in cases.items()},
        {name: pair[1] for name, pair in cases.items()},
        weight,
        factors,
        LOSS,
    )
    expected_total = 0.0
    for name, pair in cases.items():
        patch, cls = expected_parts(*pair, weight)
        assert parts[name]["patch"].item() == pytest.approx(patch, rel=1e-5)
        assert ("cls" in parts[name]) == (cls is not None)
        if cls is not None:
            assert parts[name]["cls"].item() == pytest.approx(cls, rel=1e-5)
        expected_total += factors[name] * (patch + (cls or 0.0))
    assert total.item() == pytest.approx(expected_total, rel=1e-5)
    assert total.dtype == torch.float32


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 6e4])
def test_loss__row_of_weight_0_contributes_nothing(garbage: float) -> None:
    prediction, target = case(3, 2, 4, 5, 6)
    assert target.cls is not None
    assert prediction.cls is not None
    target.tokens[1] = target.cls[1] = garbage
    weight = torch.tensor([1.0, 0.0, 1.0])
    total, _ = distillation_loss({"a": prediction}, {"a": target}, weight, {"a": 1.0}, LOSS)
    total.backward()
    kept = [0, 2]
    without = Prediction(prediction.tokens[kept], prediction.cls[kept])
    sound = Target(4, target.tokens[kept], target.cls[kept])
    expected, _ = distillation_loss({"a": without}, {"a": sound}, torch.ones(2), {"a": 1.0}, LOSS)
    torch.testing.assert_close(total, expected)
    for leaf in prediction:
        assert leaf is not None
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[1].any()
        assert leaf.grad[kept].any()


def test_loss__batch_without_weight_is_0_with_gradients_of_0() -> None:
    prediction, target = case(2, 2, 2, 3, 3)
    target.tokens[:] = math.nan
    total, parts = distillation_loss(
        {"a": prediction}, {"a": target}, torch.zeros(2), {"a": 1.0}, LOSS
    )
    total.backward()
    assert total.item() == 0
    assert parts["a"]["patch"].item() == 0
    for leaf in prediction:
        assert leaf is not None
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12])
def test_cosine__vector_without_direction_has_no_gradient(scale: float) -> None:
    prediction = (torch.ones(2, 4) * scale).requires_grad_()
    value = cosine(prediction, torch.randn(2, 4))
    value.sum().backward()
    assert not value.any()
    assert prediction.grad is not None
    assert not prediction.grad.any()
    target = torch.zeros(2, 4)
    assert not cosine(torch.randn(2, 4), target).any()


def test_cosine__equals_torchs_elsewhere() -> None:
    first, second = torch.randn(50, 8).double(), torch.randn(50, 8).double()
    expected = torch.nn.functional.cosine_similarity(first, second, dim=-1)
    torch.testing.assert_close(cosine(first, second), expected)
    leaf = first.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: cosine(value, second), leaf)


def test_loss__is_0_for_a_perfect_student() -> None:
    _, target = case(2, 3, 3, 4, 4)
    assert target.cls is not None
    perfect = Prediction(target.tokens.float(), target.cls.float())
    total, _ = distillation_loss({"a": perfect}, {"a": target}, torch.ones(2), {"a": 1.0}, LOSS)
    assert total.item() == pytest.approx(0, abs=1e-6)
