"""k-NN on bare pixels: what a student has to beat to have learnt anything.

python infra/recipes/cifar10/pixels.py DATA

The same neighbours and votes as `teachonce evaluate`, of 32 x 32 x 3 numbers instead of features.
"""

import argparse
import json
from pathlib import Path

import torch.nn.functional as F

from infra.pixels.decode import silence_pillow
from infra.recipes.cifar10.labelled_tensors import load
from trainer.knn import usable_ks, vote

SIDE = 32


def measure(data: Path) -> dict[str, float]:
    """Top-1 for each k: the training pictures' mean taken off, every picture of length 1."""
    (known, answers), (asked, truth) = (
        load(data / f"{part}.parquet", SIDE) for part in ("train", "val")
    )
    train, test = known.flatten(1).float(), asked.flatten(1).float()
    mean = train.mean(dim=0)
    votes = vote(
        F.normalize(test - mean, dim=1),
        F.normalize(train - mean, dim=1),
        answers,
        int(answers.max()) + 1,
        usable_ks(len(train)),
    )
    return {str(k): (found == truth).double().mean().item() for k, found in votes.softmax.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train.parquet and val.parquet")
    arguments = parser.parse_args()
    silence_pillow()
    knn = measure(arguments.data)
    print(json.dumps({"knn_top1": next(iter(knn.values())), "knn": knn}))


if __name__ == "__main__":
    main()
