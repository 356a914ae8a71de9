"""Learning from a cache beside lightly-train's distillation with its teacher online.

    python -m tests.benchmarks.online.run --images FOLDER [--environments FOLDER]

The same photographs, teacher (random weights), student, batch, side and precision. First the
teacher is extracted once, timed; then repeats of lightly-train and of our training step, in turn.
Prints the epoch by which extracting has paid for itself: seconds of extraction / seconds saved in
an epoch. Each of lightly-train's steps sees a view it draws itself; ours the one stored view.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from infra.provenance import commit, hardware, versions
from infra.terminal import Terminal
from pipeline.extract import run as extract
from schemas.extract_config import ExtractConfig
from schemas.options import BenchOptions
from schemas.strict import parse
from tests.benchmarks.damage.formats import Format
from tests.benchmarks.peers import append, parser_of, told_by
from trainer.bench_train import TrainBench, config_of

GRID = 16
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
LIGHTLY = Format(
    "lightly-train",
    "lightly",
    "pretrain(method='distillation'), pictures read in the process itself",
    "lightly-train",
    (
        "lightly-train==0.18.0",
        "torch==2.13.0",
        "torchvision==0.28.0",
        "timm==1.0.31",
        "numpy==2.1.3",
    ),
)


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="online-", dir=options.scratch) as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        chosen = sorted(path for path in options.images.iterdir() if path.is_file())
        for path in chosen[: options.limit]:
            shutil.copy(path, pictures)
        told = extract(_extraction(options, Path(folder), pictures), Terminal()).result
        bench = TrainBench(_training(options, f"{folder}/cache"))
        ours: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        for _ in range(options.repeats):
            theirs.append(_lightly(options, pictures))
            ours.append(bench.run(options.steps))
            print(json.dumps({"lightly-train": theirs[-1], "ours": ours[-1]}), flush=True)
    made = {
        "commit": commit(),
        "hardware": hardware(),
        "versions": {**versions(), **dict(each.split("==") for each in LIGHTLY.requirements[:1])},
        "threads": torch.get_num_threads(),
    }
    (row,) = append(options.out, [_row(options, told, ours, theirs)], made)
    print(json.dumps(row, indent=1))


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__, "online.jsonl")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--limit", type=int, default=128, help="photographs that are taken of it")
    parser.add_argument("--student", default="vit_tiny_patch16_224", help="one of timm's")
    parser.add_argument("--teacher", default="vit_base_patch16_224", help="one of timm's")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where the cache is written")
    return parser.parse_args()


def _extraction(options: argparse.Namespace, folder: Path, pictures: Path) -> ExtractConfig:
    teacher = {"library": "timm", "model": options.teacher, "weights": "random:0"}
    data = {
        "cache": f"{folder}/cache",
        "images": {"source": str(pictures)},
        "views": {"per_image": 1},
        "grids": [GRID],
        "teachers": {"teacher": teacher},
        "calibration_images": 1,
        "workers": {"batch_size": options.batch, "precision": options.precision},
    }
    return parse(ExtractConfig, data, "online")


def _training(options: argparse.Namespace, cache: str) -> Any:
    asked = {
        "what": "train",
        "cache": cache,
        "precision": options.precision,
        "batch_size": options.batch,
    }
    return config_of(parse(BenchOptions, asked, "online"), f"timm:{options.student}")


def _lightly(options: argparse.Namespace, pictures: Path) -> dict[str, float]:
    """Seconds of a step and of the teacher's forward in it."""
    asked = {
        "images": pictures,
        "student": options.student,
        "teacher": options.teacher,
        "precision": PRECISIONS[options.precision],
        "pixels": 16 * GRID,
        "batch": options.batch,
        "steps": options.steps,
    }
    return told_by(
        LIGHTLY,
        f"{__package__}.lightly",
        (word for name, value in asked.items() for word in (f"--{name}", value)),
        options.environments / "lightly.log",
        # Idle threads that spin take the cores from whatever else there is; ours do not.
        {"OMP_WAIT_POLICY": "PASSIVE"},
    )


def _row(
    options: argparse.Namespace,
    told: dict[str, Any],
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
) -> dict[str, object]:
    """The figures, each the median of the repeats."""
    step = statistics.median(each["step_s"] for each in theirs)
    forward = statistics.median(each["teacher_s"] for each in theirs)
    rates = [each["streamed_rows_per_s"] for each in ours]
    pairs = [each["step_s"] / options.batch * rate for each, rate in zip(theirs, rates)]
    online = step / options.batch
    cached = 1 / statistics.median(rates)
    extraction = told["compute_seconds"] / told["teacher_forwards"]
    predicted = step / (step - forward)
    return {
        "case": f"{options.teacher} -> {options.student}, batch {options.batch}, {16 * GRID} px, "
        f"{options.precision}, {told['rows']} pictures",
        "lightly_rows_per_s": round(1 / online, 3),
        "lightly_teacher_share": round(forward / step, 3),
        "ours_rows_per_s": round(1 / cached, 3),
        "ours_data_wait": round(statistics.median(each["data_wait"] for each in ours), 4),
        "faster": round(statistics.median(pairs), 2),
        "faster_min_max": [round(min(pairs), 2), round(max(pairs), 2)],
        "predicted": round(predicted, 2),
        "extraction_s_per_row": round(extraction, 4),
        "break_even_epoch": round(extraction / (online - cached), 2) if online > cached else None,
    }


if __name__ == "__main__":
    main()
