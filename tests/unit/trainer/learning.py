"""Learners and batches made by hand."""

from typing import Any

import torch

from schemas.strict import parse
from schemas.train_config import TrainConfig
from trainer.batch import Batch, Target
from trainer.heads import Widths
from trainer.learner import Learner
from trainer.parallel import ALONE
from trainer.stages import check_stage
from trainer.students import build_student, set_up_training

TEACHERS = {"a": Widths(6, 5), "b": Widths(4, None)}


def train_config(**changes: Any) -> TrainConfig:
    data: dict[str, Any] = {
        "cache": "c",
        "out": "o",
        "student": {"model": "timm:test_vit"},
        "head": {"hidden": 16},
        "optim": {"lr": 3e-3, "steps": 50, "batch_size": 4},
    }
    config = parse(TrainConfig, data | changes, "test")
    check_stage(config)
    return config


def learner_of(**changes: Any) -> Learner:
    config = train_config(**changes)
    student = build_student(config.student.model, config.seed, config.student.arguments)
    set_up_training(student, config.student)
    return Learner(config, student, TEACHERS, "cpu", "float32", ALONE)


def batch_of(seed: int, rows: int = 4, student: int = 4, grids: tuple[int, int] = (4, 6)) -> Batch:
    """What two teachers said of some rows, at a student grid and a grid for each teacher."""
    random = torch.Generator().manual_seed(seed)

    def told(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).half()

    side = 16 * student
    return Batch(
        rows=torch.arange(rows),
        pixels=torch.randint(0, 256, (rows, 3, side, side), generator=random, dtype=torch.uint8),
        weight=torch.ones(rows),
        targets={
            "a": Target(grids[0], told(rows, grids[0] ** 2, 6), told(rows, 5), None),
            "b": Target(grids[1], told(rows, grids[1] ** 2, 4), None, None),
        },
        epoch=0,
        total=rows,
        state={},
    )


def loss_of(learner: Learner, number: int, batch: Batch) -> float:
    """Take a step; the loss of its batch."""
    parts = learner.step(number, batch).parts
    return sum(
        learner.terms[name].weight * sum(value.item() for value in terms.values())
        for name, terms in parts.items()
    )


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    """Of the last step, by name; after clipping."""
    named = [*learner.encoder.model.named_parameters(), *learner.heads.named_parameters()]
    return {name: value.grad.clone() for name, value in named if value.grad is not None}
