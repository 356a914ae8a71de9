"""k-NN on bare pixels and on an untrained student: what training has to beat.

python infra/recipes/cifar10/baselines.py infra/recipes/cifar10/train.yaml DATA

The same neighbours and votes as `teachonce evaluate`. Each is measured as it is and with the
training pictures' mean taken off: an untrained student of small layer scale says nearly the same of
every picture, which a cosine in float32 cannot tell apart until the common part is gone.
"""

import argparse
import json
import os

# Idle threads that spin take the core that the others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.command import read_config
from infra.pixels.decode import silence_pillow
from infra.recipes.cifar10.labelled_tensors import load
from infra.terminal import Terminal
from schemas.train_config import TrainConfig
from trainer.knn import usable_ks, vote
from trainer.students import build_student, normalise, side_pixels

SIDE = 32
BATCH_SIZE = 64
Labelled = tuple[Tensor, Tensor]
"""Features [pictures, channels] and classes [pictures]."""


def pixels(data: Path) -> tuple[Labelled, Labelled]:
    """Both parts as 32 x 32 x 3 numbers in 0..1."""
    train, val = (load(data / f"{part}.parquet", SIDE) for part in ("train", "val"))
    return (train[0].flatten(1) / 255, train[1]), (val[0].flatten(1) / 255, val[1])


@torch.inference_mode()
def untrained(config: TrainConfig, data: Path) -> tuple[Labelled, Labelled]:
    """Both parts as the global vectors of the student before its first step."""
    encoder = build_student(config.student.model, config.seed)
    encoder.model.eval()
    side = side_pixels(encoder, config.student_grids[0])
    parts = []
    for part in ("train", "val"):
        squares, labels = load(data / f"{part}.parquet", side)
        features = []
        with Terminal(to_stderr=True).progress(f"untrained {part}", len(labels), "rows") as meter:
            for batch in torch.split(squares, BATCH_SIZE):
                cls, _ = encoder(normalise(batch, encoder))
                assert cls is not None
                features.append(cls)
                meter.advance(len(batch))
        parts.append((torch.cat(features), labels))
    return parts[0], parts[1]


def measure(train: Labelled, val: Labelled) -> dict[str, dict[int, float]]:
    """Top-1 for each k."""
    mean = train[0].mean(dim=0)
    return {"bare": _top1(train, val, torch.zeros_like(mean)), "centred": _top1(train, val, mean)}


def _top1(train: Labelled, val: Labelled, origin: Tensor) -> dict[int, float]:
    (known, answers), (asked, truth) = train, val
    votes = vote(
        F.normalize(asked - origin, dim=1),
        F.normalize(known - origin, dim=1),
        answers,
        int(answers.max()) + 1,
        usable_ks(len(known)),
    )
    return {k: (found == truth).double().mean().item() for k, found in votes.softmax.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="the training's configuration")
    parser.add_argument("data", type=Path, help="folder with train.parquet and val.parquet")
    arguments = parser.parse_args()
    silence_pillow()
    config: TrainConfig = read_config(TrainConfig, (), ["--config", arguments.config])
    found = {
        "pixels": measure(*pixels(arguments.data)),
        "untrained": measure(*untrained(config, arguments.data)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
