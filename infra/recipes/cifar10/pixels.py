"""k-NN on bare pixels: what a student has to beat to have learnt anything.

python infra/recipes/cifar10/pixels.py DATA

The same neighbours and votes as `teachonce evaluate`, of 32 x 32 x 3 numbers instead of features.
"""

import argparse
import json
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from infra.pixels.decode import silence_pillow
from infra.recipes.cifar10.labelled_tensors import load
from trainer.knn import usable_ks, vote

SIDE = 32


def measure(data: Path) -> dict[str, dict[int, float]]:
    """Top-1 for each k, of pixels as they are and with the training pictures' mean taken off."""
    (known, answers), (asked, truth) = (
        load(data / f"{part}.parquet", SIDE) for part in ("train", "val")
    )
    train, test = known.flatten(1) / 255, asked.flatten(1) / 255
    return {
        "bare": _top1(train, answers, test, truth),
        "centred": _top1(train - train.mean(dim=0), answers, test - train.mean(dim=0), truth),
    }


def _top1(train: Tensor, answers: Tensor, test: Tensor, truth: Tensor) -> dict[int, float]:
    votes = vote(
        F.normalize(test, dim=1),
        F.normalize(train, dim=1),
        answers,
        int(answers.max()) + 1,
        usable_ks(len(train)),
    )
    return {k: (found == truth).double().mean().item() for k, found in votes.softmax.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train.parquet and val.parquet")
    arguments = parser.parse_args()
    silence_pillow()
    print(json.dumps(measure(arguments.data)))


if __name__ == "__main__":
    main()
