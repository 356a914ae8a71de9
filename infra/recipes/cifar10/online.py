"""Train as `teachonce train` does, but run the teacher in the loop instead of reading what it said.

python -m infra.recipes.cifar10.online --config fixed.yaml [--KEY VALUE ...]

Batches, views, first weights, losses and steps are those of the cached run of the same seed. What
is different is that targets are never rounded to float16, and that the teacher meets each view in
another batch. The cache is read all the same and its targets are thrown away, so this takes a
little longer than an online training would.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from infra.catalog import read_teacher
from infra.command import read_config
from infra.devices import autocast
from infra.models.encoder import Encoder
from infra.models.folder import open_model
from infra.models.weights import tensors_digest
from infra.store import open_store
from infra.terminal import Terminal
from schemas.records import TeacherRecord
from schemas.train_config import TrainConfig
from trainer import begin
from trainer.batch import Batch, Target
from trainer.feed import Feed, open_feed
from trainer.handover import hand_over
from trainer.heads import Widths
from trainer.learner import Learner, Step
from trainer.loop import Loop
from trainer.parallel import ALONE
from trainer.stages import check_stage
from trainer.students import build_student, normalise, side_pixels
from trainer.teacher_info import Statistics, TeacherInfo

DEVICE = "cpu"


@dataclass(frozen=True)
class Teacher:
    """A cached teacher that speaks for itself."""

    record: TeacherRecord
    encoder: Encoder
    statistics: dict[int, Statistics]

    @torch.no_grad()
    def __call__(self, pixels: Tensor, grid: int) -> Target:
        """What it says of uint8 pictures, standardised as the cache is."""
        if pixels.shape[-1] != self.record.pixels(grid):
            raise SystemExit("student and teacher must be shown pictures of one size")
        with autocast(DEVICE, self.record.precision):
            cls, tokens = self.encoder(normalise(pixels, self.encoder))
        told = self.statistics[grid]
        return Target(
            grid=grid,
            tokens=_standardised(tokens, told.tokens_mean, told.tokens_std),
            cls=None if cls is None else _standardised(cls, told.cls_mean, told.cls_std),
            codec=None,
        )


class OnlineLearner(Learner):
    """Learns from what `teachers` say of a batch's pictures, whatever targets come with them."""

    teachers: Mapping[str, Teacher] = {}

    def step(self, number: int, batch: Batch) -> Step:
        targets = {
            name: self.teachers[name](batch.pixels, target.grid)
            for name, target in batch.targets.items()
        }
        return super().step(number, replace(batch, targets=targets))


def run(config: TrainConfig, terminal: Terminal) -> dict[str, object]:
    """As `trainer.train.run`, on a CPU; goes on from its last checkpoint as well."""
    started = time.monotonic()
    check_stage(config)
    out = Path(config.out)
    beginning = begin.look(config, out, ALONE, terminal)
    student = build_student(config.student.model, config.seed, config.student.arguments)
    sides = [side_pixels(student, grid) for grid in config.student_grids]
    resumed = beginning.resumed
    feed = open_feed(config, sides, None if resumed is None else resumed.state.snapshots)
    widths = {
        name: Widths(told.patch_width, told.cls_width) for name, told in feed.teachers.items()
    }
    learner = OnlineLearner(config, student, widths, DEVICE, config.precision)
    learner.teachers = open_teachers(config, feed)
    begin.take_up(beginning, config.student.init, learner.trained, terminal)
    loop = Loop(config, learner, feed, ALONE, terminal)
    loop.begin(beginning)
    loop.run()
    hand_over(out, config, learner.trained, feed, loop.step)
    return {
        "step": loop.step,
        "loss": loop.loss,
        "rows_per_second": loop.rows_per_second,
        "seconds": time.monotonic() - started,
    }


def open_teachers(config: TrainConfig, feed: Feed) -> dict[str, Teacher]:
    """The models whose features are in the cache."""
    return {name: _open(config, info) for name, info in feed.teachers.items()}


def _open(config: TrainConfig, info: TeacherInfo) -> Teacher:
    record = read_teacher(open_store(config.cache, config.store), info.fingerprint[:12])
    encoder, _ = open_model(Path(record.weights))
    if tensors_digest(encoder.model) != record.tensors_sha256:
        raise SystemExit(f"{record.weights} is not the model whose features are in {config.cache}")
    return Teacher(record, encoder, info.statistics)


def _standardised(values: Tensor, mean: object, std: object) -> Tensor:
    return (values.float() - torch.as_tensor(mean)) / torch.as_tensor(std)


def main() -> None:
    config: TrainConfig = read_config(TrainConfig, (), sys.argv[1:])
    print(json.dumps(run(config, Terminal(to_stderr=True))))


if __name__ == "__main__":
    main()
