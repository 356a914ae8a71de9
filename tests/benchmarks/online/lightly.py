"""lightly-train's distillation with its teacher online, in an environment of its own.

Prints one line of JSON: the median seconds of a step, from one forward of the teacher to the next,
and of the teacher's forward within it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1"}

from infra.models.torchvision_shim import make_torchvision_importable

make_torchvision_importable()

import lightly_train  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

WARM_STEPS = 2


class Clock:
    """When each forward of the teacher began, and how long it took."""

    def __init__(self, teacher: Any) -> None:
        self.begun: list[float] = []
        self.seconds: list[float] = []
        teacher.patch_embed.register_forward_pre_hook(self._begin)
        teacher.norm.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self.begun.append(_now())

    def _end(self, *_: object) -> None:
        self.seconds.append(_now() - self.begun[-1])


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    for name in ("student", "teacher", "precision"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("pixels", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    student, teacher = (
        timm.create_model(name, img_size=options.pixels, num_classes=0)
        for name in (options.student, options.teacher)
    )
    clock = Clock(teacher)
    with os.fdopen(os.dup(1), "w") as answers, tempfile.TemporaryDirectory() as out:
        os.dup2(2, 1)  # what the library prints goes to the log
        lightly_train.pretrain(
            out=f"{out}/run",
            data=str(options.images),
            model=student,
            method="distillation",
            method_args={"teacher": teacher},
            epochs=1,
            batch_size=options.batch,
            num_workers=0,
            precision=options.precision,
            transform_args={"image_size": (options.pixels, options.pixels)},
            trainer_args={"max_steps": options.steps + WARM_STEPS},
        )
        steps = [end - begin for begin, end in zip(clock.begun, clock.begun[1:])]
        answer = {
            "step_s": statistics.median(steps[WARM_STEPS:]),
            "teacher_s": statistics.median(clock.seconds[WARM_STEPS:]),
            "steps": len(steps) - WARM_STEPS,
        }
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
