"""What a run leaves: the student, its heads, what its teachers are standardised by, and the record
of them all (infra.models.folder)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from infra.models.encoder import Encoder
from infra.models.folder import HEADS, STATISTICS, HeadRecord, HeadsRecord, ModelRecord
from schemas.sealed import digest
from schemas.train_config import TrainConfig
from trainer.checkpoint import Trained
from trainer.feed import MAIN, Feed
from trainer.stages import head_hidden
from trainer.students import describe, save_model, weights_of
from trainer.teacher_info import TeacherInfo


def record_of(config: TrainConfig, student: Encoder, feed: Feed, step: int) -> ModelRecord:
    """The record of a student after a step, without its heads."""
    return describe(
        student,
        config.student.model,
        arguments=config.student.arguments,
        grid=config.student_grids[0],
        stage=config.stage,
        step=step,
        snapshot=feed.snapshots[MAIN],
        teachers={name: told.fingerprint for name, told in feed.teachers.items()},
    )


def hand_over(out: Path, config: TrainConfig, trained: Trained, feed: Feed, step: int) -> None:
    """Write the finished student and what belongs to it."""
    heads, statistics = weights_of(trained.heads), statistics_of(feed.teachers)
    told = HeadsRecord(
        hidden=head_hidden(config),
        teachers={
            name: HeadRecord(
                patch_width=info.patch_width, cls_width=info.cls_width, grids=info.grids
            )
            for name, info in feed.teachers.items()
        },
        heads_sha256=digest(heads),
        statistics_sha256=digest(statistics),
    )
    record = record_of(config, trained.finished, feed, step).model_copy(update={"heads": told})
    save_model(out, trained.finished, record, {HEADS: heads, STATISTICS: statistics})


def statistics_of(teachers: Mapping[str, TeacherInfo]) -> bytes:
    """Mean and standard deviation of each teacher's tokens and CLS, by grid, as safetensors."""
    tensors: dict[str, Tensor] = {}
    for name, info in teachers.items():
        for grid, statistics in info.statistics.items():
            for what in ("tokens_mean", "tokens_std", "cls_mean", "cls_std"):
                values = getattr(statistics, what)
                if values is not None:
                    tensors[f"{name}/{grid}/{what}"] = torch.from_numpy(values).clone()
    return bytes(to_safetensors(tensors))
