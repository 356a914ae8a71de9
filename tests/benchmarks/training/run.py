"""`teachonce bench train` over a cache made for it: in one call, and without a network.

    python -m tests.benchmarks.training.run [--width 1536] [--rows 2048] [--steps 20 ...]

The rows are of the proxy's width and of real photographs (scikit-image's); what a teacher would
say is of no matter to the clock, so the teacher is one random layer. Two threads' decoding feeds a
CPU; a GPU wants as many cores as its step takes pictures.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from infra.cli import main as teachonce
from infra.photographs import photographs
from schemas.extract_config import ExtractConfig
from schemas.strict import parse
from tests.caches import extract_here

GRID = 16
TEACHER = "tests.benchmarks.training.patches:build"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--images", type=Path, help="folder of photographs to take instead")
    parser.add_argument("--scratch", type=Path, help="where the cache is written")
    options, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="training-", dir=options.scratch) as folder:
        source = options.images or photographs(Path(folder) / "photographs")
        count = sum(path.is_file() for path in source.rglob("*"))
        made = extract_here(_config(folder, source, options, count))
        if made.status:
            return made.status
        return teachonce(["bench", "train", "--cache", f"{folder}/cache", *words])


def _config(folder: str, source: Path, options: argparse.Namespace, count: int) -> ExtractConfig:
    data = {
        "cache": f"{folder}/cache",
        "images": {"source": str(source)},
        "views": {"per_image": -(-options.rows // count)},
        "grids": [GRID],
        "teachers": {
            "teacher": {
                "library": "python",
                "model": TEACHER,
                "arguments": {"width": options.width},
                "weights": "random:0",
            }
        },
        "calibration_images": 1,
        "workers": {"batch_size": 64, "precision": "float32"},
    }
    return parse(ExtractConfig, data, "training")


if __name__ == "__main__":
    sys.exit(main())
