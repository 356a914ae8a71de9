"""One step against EUPE's formulas (arXiv 2603.22387, section 3), written out in float64: the loss
and the gradient of every parameter."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.trainer.learning import batch_of, gradients, learner_of, loss_of
from trainer.batch import Affine, Batch, Target
from trainer.learner import Learner

pytestmark = pytest.mark.unit

STAGES: dict[str, dict[str, Any]] = {
    "proxy": {"stage": "proxy", "student": {"model": "timm:test_vit2"}},
    "fixed": {"stage": "fixed"},
    "multires": {"stage": "multires", "student_grids": [2, 3, 4]},
}
GRIDS = (2, 3, 4)


def adapted(head: Mapping[str, Tensor], name: str, features: Tensor) -> Tensor:
    """Linear - LayerNorm - GELU - Linear, without biases in the linear ones."""
    hidden = features @ head[f"heads.{name}.0.weight"].T
    centred = hidden - hidden.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    scaled = normal * head[f"heads.{name}.1.weight"] + head[f"heads.{name}.1.bias"]
    gelu = scaled * 0.5 * (1 + torch.erf(scaled / 2**0.5))
    return gelu @ head[f"heads.{name}.3.weight"].T


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))


def upsampled(tokens: Tensor, side: int) -> Tensor:
    now = int(tokens.shape[1] ** 0.5)
    square = tokens.unflatten(1, (now, now)).permute(0, 3, 1, 2)
    large = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return large.flatten(2).transpose(1, 2)


def standardised(values: Tensor, affine: Affine | None) -> Tensor:
    values = values.double()
    return values if affine is None else values * affine.scale.double() + affine.shift.double()


def expected(learner: Learner, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of every parameter by name."""
    encoder = copy.deepcopy(learner.encoder)
    encoder.model.double().train()
    head = {n: v.detach().double().requires_grad_() for n, v in learner.heads.state_dict().items()}
    mean, std = (
        torch.tensor(v).double()[:, None, None] for v in (encoder.pixel_mean, encoder.pixel_std)
    )
    kept = batch.weight > 0
    weight = batch.weight[kept].double() / batch.weight.sum()
    cls, tokens = encoder((batch.pixels[kept].double() / 255 - mean) / std)
    total = torch.zeros((), dtype=torch.float64)
    for name, target in batch.targets.items():
        predicted = adapted(head, f"{name}-tokens", tokens)
        told = standardised(target.tokens[kept], target.tokens_affine)
        side = int(max(predicted.shape[1], told.shape[1]) ** 0.5)
        predicted, told = upsampled(predicted, side), upsampled(told, side)
        distance = (predicted - told).abs()
        smooth = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5).mean(-1)
        patch = (0.9 * (1 - cosine(predicted, told)) + 0.1 * smooth).mean(-1)
        loss = (weight * patch).sum()
        if target.cls is not None:
            told = standardised(target.cls[kept], target.cls_affine)
            loss = loss + (weight * (1 - cosine(adapted(head, f"{name}-cls", cls), told))).sum()
        total = total + learner.terms[name].weight * loss
    total.backward()
    named = [*encoder.model.named_parameters(), *head.items()]
    return total.item(), {name: value.grad for name, value in named if value.grad is not None}


def assert_same_step(learner: Learner, batch: Batch) -> None:
    loss, gradient = expected(learner, batch)
    assert loss_of(learner, 1, batch) == pytest.approx(loss, rel=1e-5)
    found = gradients(learner)
    assert {name for name, value in found.items() if value.any()} == {
        name for name, value in gradient.items() if value.any()
    }
    for name, value in gradient.items():
        largest = value.abs().max().item()
        torch.testing.assert_close(
            found[name].double(), value, rtol=1e-3, atol=1e-4 * largest + 1e-8
        )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_step__equals_the_formulas(stage: str, accumulate: int) -> None:
    changes = STAGES[stage] | {"teachers": {"a": {}, "b": {"weight": 0.5}}}
    learner = learner_of(**changes, optim={"accumulate": accumulate})
    batch = batch_of(1, rows=5, student=3, grids=(3, 2))
    batch.weight[1], batch.weight[4] = 0.0, 2.0
    batch.targets["a"].tokens[1] = torch.nan
    assert_same_step(learner, batch)


@pytest.mark.parametrize("student", GRIDS)
@pytest.mark.parametrize("teacher", GRIDS)
def test_step__equals_the_formulas_for_every_pair_of_grids(student: int, teacher: int) -> None:
    learner = learner_of(**STAGES["multires"])
    assert_same_step(learner, batch_of(2, rows=2, student=student, grids=(teacher, teacher)))


def test_step__equals_the_formulas_for_rows_of_another_cache() -> None:
    torch.manual_seed(3)
    batch = batch_of(3, rows=3, student=2, grids=(3, 2))
    told = batch.targets["a"]
    tokens, cls = (Affine(torch.rand(n) + 0.5, torch.randn(n)) for n in (6, 5))
    anew: dict[str, Target] = batch.targets | {
        "a": replace(told, tokens_affine=tokens, cls_affine=cls)
    }
    assert_same_step(learner_of(), replace(batch, targets=anew))


def test_step__equals_the_formulas_without_any_cls() -> None:
    batch = batch_of(4, rows=3, student=2, grids=(2, 3))
    learner = learner_of()
    del learner.heads.heads["a-cls"]
    without = {name: replace(target, cls=None) for name, target in batch.targets.items()}
    assert_same_step(learner, replace(batch, targets=without))
