"""Views: from stored draws and a picture's size to a box, and from the box to pixels.

The crop is the usual random resized crop - a share of the area, uniform in `crop_scale`, and an
aspect ratio, log-uniform in [3/4, 4/3] - but from a fixed number of draws: a side that would leave
the picture is cut to it, instead of drawing again.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

LOG_RATIO = math.log(4 / 3)
DRAWS = 5

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Draws:
    """Five uniform draws in [0, 1)."""

    scale: float
    ratio: float
    x: float
    y: float
    flip: float


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in whole pixels of the upright picture, and whether to mirror the result."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def box(
    draws: Draws | None, width: int, height: int, crop_scale: tuple[float, float], flip: bool
) -> Box:
    """The box of a view in a picture of `width` x `height`; without draws the whole picture."""
    if draws is None:
        return Box(0, 0, width, height, flip=False)
    low, high = crop_scale
    area = (low + (high - low) * draws.scale) * width * height
    aspect = math.exp((2 * draws.ratio - 1) * LOG_RATIO)
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    return Box(
        left=int(draws.x * (width - crop_width + 1)),
        top=int(draws.y * (height - crop_height + 1)),
        width=crop_width,
        height=crop_height,
        flip=flip and draws.flip < 0.5,
    )


def render(image: Image.Image, view: Box, pixels: int) -> Pixels:
    """The view as RGB [pixels, pixels, 3]: Pillow's bicubic of the box alone, then the mirror."""
    edges = (view.left, view.top, view.left + view.width, view.top + view.height)
    # Not `resize(box=...)`: at the edges its filter would reach for pixels outside the box.
    crop = image.crop(edges)
    square = np.asarray(crop.resize((pixels, pixels), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(square[:, ::-1]) if view.flip else square


def pixels_digest(square: Pixels) -> bytes:
    """sha256 of what a model was fed, before mean and standard deviation."""
    return hashlib.sha256(np.ascontiguousarray(square).data).digest()
