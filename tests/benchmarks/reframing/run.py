"""What sampling a teacher's grid costs: how near a part of what it said of a picture is to what it
says of that part (trainer/reframe.py), for mirror images and squares of less and less area.

    python -m tests.benchmarks.reframing.run --teacher RUN --data PARQUET|FOLDER [--grid 4]

Beside it stands the cosine of two rows that have nothing to do with one another: a token and that
at the same place of another picture.
"""

import sys
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.models.encoder import Encoder
from infra.models.folder import PIXELS_PER_GRID, open_model
from infra.pixels.decode import silence_pillow
from infra.provenance import commit, hardware, versions
from infra.terminal import Terminal
from schemas.options import EvaluateOptions
from schemas.strict import parse
from schemas.train_config import Reframe
from tests.benchmarks.peers import append, parser_of
from trainer.batch import Batch, Target
from trainer.labelled import pictures, split
from trainer.reframe import reframe
from trainer.students import normalise

ASKED = {
    "the whole view": Reframe(),
    "mirrored": Reframe(flip=1.0),
    "area 0.9 to 1": Reframe(least_area=0.9),
    "area 0.6 to 1": Reframe(least_area=0.6),
    "area 0.3 to 1": Reframe(least_area=0.3),
}
ROWS = 64


def main() -> int:
    parser = parser_of(__doc__, "reframing.jsonl")
    parser.add_argument("--teacher", type=Path, required=True, help="a finished run's folder")
    parser.add_argument("--data", required=True, help="labelled pictures, as of `evaluate`")
    parser.add_argument("--grid", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=1024)
    options = parser.parse_args()
    silence_pillow()
    encoder, _ = open_model(options.teacher)
    encoder.model.eval()
    asked = parse(EvaluateOptions, {"student": "none", "data": options.data}, "reframing")
    part = split(asked, Terminal())[1]
    batches = pictures(part, PIXELS_PER_GRID * options.grid, ROWS)
    found = [_cosines(encoder, pixels) for _, pixels in islice(batches, options.pictures // ROWS)]
    rows = [
        {
            "case": name,
            "grid": options.grid,
            "teacher": options.teacher.name,
            "cosine": round(sum(each[name] for each in found) / len(found), 4),
            "pictures": ROWS * len(found),
        }
        for name in found[0]
    ]
    made = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    for row in append(options.out, rows, made):
        print(f"{row['case']:<20} cosine {row['cosine']}")
    return 0


@torch.inference_mode()
def _cosines(encoder: Encoder, pixels: Tensor) -> dict[str, float]:
    """Mean over tokens, in standard deviations of these pictures' own."""
    told = encoder(normalise(pixels, encoder))[1]
    mean, std = told.mean((0, 1)), told.std((0, 1)).clamp_min(1e-6)
    told = (told - mean) / std
    batch = _batch(pixels, told)
    found = {}
    for name, config in ASKED.items():
        part = reframe(batch, config, 0)
        exact = (encoder(normalise(part.pixels, encoder))[1] - mean) / std
        sampled = part.targets["teacher"].tokens
        found[name] = F.cosine_similarity(sampled, exact, dim=-1).mean().item()
    found["another picture's"] = F.cosine_similarity(told, told.roll(1, 0), dim=-1).mean().item()
    return found


def _batch(pixels: Tensor, tokens: Tensor) -> Batch:
    rows = len(pixels)
    return Batch(
        rows=torch.arange(rows),
        pixels=pixels,
        weight=torch.ones(rows),
        targets={"teacher": Target(int(tokens.shape[1] ** 0.5), tokens, None, None)},
        epoch=0,
        total=rows,
        state={},
    )


if __name__ == "__main__":
    sys.exit(main())
