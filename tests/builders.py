"""Test data, made when it is needed: photographs that have structure, and folders of them."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""


def photograph(seed: int = 0, width: int = 96, height: int = 64) -> Image.Image:
    """Slow changes of colour with a few sharp shapes over them: neither flat nor noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = (int(random.integers(side)) for side in (width, height))
        side = int(random.integers(2, 2 + max(1, min(width, height) // 3)))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((left, top, left + side, top + side), fill=colour)
    return image


def pixels(image: Image.Image) -> npt.NDArray[np.int64]:
    """Values with room to subtract."""
    return np.asarray(image).astype(np.int64)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def photograph_bytes(
    seed: int = 0, width: int = 96, height: int = 64, format: str = "JPEG"
) -> bytes:
    return encoded(photograph(seed, width, height), format)


def photograph_folder(folder: Path, count: int, classes: int = 2, first_seed: int = 0) -> Path:
    """`count` JPEGs of differing sizes in sub-folders `class0`, `class1`, ..."""
    for seed in range(first_seed, first_seed + count):
        name = folder / f"class{seed % classes}" / f"{seed:04d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(photograph_bytes(seed, 64 + 8 * (seed % 5), 48 + 8 * (seed % 3)))
    return folder
