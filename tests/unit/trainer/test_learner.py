import math
from typing import Any

import pytest
import torch

from schemas.strict import parse
from schemas.train_config import Optim, TrainConfig
from trainer.batch import Batch, Target
from trainer.heads import Widths
from trainer.learner import Learner, learning_rate
from trainer.students import build_student

pytestmark = pytest.mark.unit

TEACHERS = {"a": Widths(6, 5), "b": Widths(4, None)}


def learner_of(model: str = "timm:test_vit", **changes: Any) -> Learner:
    data: dict[str, Any] = {
        "cache": "c",
        "out": "o",
        "student": {"model": model},
        "head": {"hidden": 16},
        "optim": {"lr": 3e-3, "steps": 50, "batch_size": 4},
    }
    config = parse(TrainConfig, data | changes, "test")
    return Learner(config, build_student(model, config.seed), TEACHERS, "cpu", "float32")


def batch_of(seed: int, rows: int = 4) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def told(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).half()

    return Batch(
        rows=torch.arange(rows),
        pixels=torch.randint(0, 256, (rows, 3, 64, 64), generator=random, dtype=torch.uint8),
        weight=torch.ones(rows),
        targets={
            "a": Target(4, told(rows, 16, 6), told(rows, 5)),
            "b": Target(6, told(rows, 36, 4), None),
        },
        state={},
    )


def test_step__learns_a_batch_by_heart() -> None:
    learner, batch = learner_of(), batch_of(0)
    losses = [learner.step(number, batch)[0].item() for number in range(1, 31)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:test_resnet"])
def test_step__repeats_to_the_bit_whatever_was_drawn_before(model: str) -> None:
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        learner = learner_of(model)
        for number in (1, 2, 3):
            learner.step(number, batch_of(number))
            torch.rand(noise)
        weights.append([*learner.encoder.model.state_dict().values()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*weights))


def test_step__batch_without_weight_moves_nothing_but_by_decay() -> None:
    learner = learner_of(optim={"lr": 1e-2, "weight_decay": 0.0})
    before = {name: value.clone() for name, value in learner.encoder.model.state_dict().items()}
    batch = batch_of(0)
    batch.weight.zero_()
    total, _ = learner.step(1, batch)
    assert total.item() == 0
    after = learner.encoder.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_step__clips_the_gradient() -> None:
    learner = learner_of(optim={"clip_norm": 1e-3})
    learner.step(1, batch_of(0))
    gradients = [
        parameter.grad
        for module in (learner.encoder.model, learner.heads)
        for parameter in module.parameters()
        if parameter.grad is not None
    ]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate__warms_up_then_follows_half_a_cosine() -> None:
    optim = Optim(lr=2.0, warmup_steps=4, steps=14, schedule="cosine")
    rates = [learning_rate(step, optim) for step in range(1, 15)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 0.9))
    constant = Optim(lr=2.0, warmup_steps=1, steps=9, schedule="constant")
    assert {learning_rate(step, constant) for step in range(1, 10)} == {2.0}
