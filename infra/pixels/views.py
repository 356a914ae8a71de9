"""Views: from a key to draws, from draws and a picture's size to a box, from the box to pixels.

The one place where a view is made, for the teachers and for the students. The crop is the usual
random resized crop - a share of the area, uniform in `crop_scale`, and an aspect ratio,
log-uniform in [3/4, 4/3] - but from a fixed number of draws: a side that would leave the picture
is cut to it, instead of drawing again.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.pixels.photometric import PhotometricDraws, recolour
from schemas.extract_config import Views
from schemas.keyed_hash import uniforms

LOG_RATIO = math.log(4 / 3)
_BOX_DRAWS = ("scale", "ratio", "x", "y", "flip")
_PHOTOMETRIC_DRAWS = tuple(each.name for each in fields(PhotometricDraws))

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Draws:
    """Uniform draws in [0, 1) of one view."""

    scale: float
    ratio: float
    x: float
    y: float
    flip: float
    photometric: PhotometricDraws | None = field(default=None, kw_only=True)
    """None where views are not photometric."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in whole pixels of the upright picture, and whether to mirror the result."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


def draw(key: str, view: int, views: Views) -> Draws | None:
    """The draws of a picture's view: functions of key, view and seed alone, whatever the order.
    View 0, the whole picture unchanged, has none."""
    if view == 0:
        return None
    name = f"{view}/{key}"
    box_draws = uniforms(name, f"teachonce view {views.seed}".encode(), len(_BOX_DRAWS))
    if views.photometric is None:
        return Draws(*box_draws)
    # Under a key of their own: they change no crop, and 13 are more than one hash gives.
    secret = f"teachonce photometric {views.seed}".encode()
    photometric = PhotometricDraws(*uniforms(name, secret, len(_PHOTOMETRIC_DRAWS)))
    return Draws(*box_draws, photometric=photometric)


def draw_columns(draws: Sequence[Draws | None]) -> dict[str, list[float | None]]:
    """The `draw_*` columns of the plan (tables.PLAN) for rows with these draws."""
    photometric = [None if each is None else each.photometric for each in draws]
    return {
        f"draw_{name}": [None if each is None else getattr(each, name) for each in having]
        for names, having in ((_BOX_DRAWS, draws), (_PHOTOMETRIC_DRAWS, photometric))
        for name in names
    }


def draws_of_row(row: Mapping[str, Any]) -> Draws | None:
    """The draws that stand in a row of the plan, as `draw_columns` put them there."""
    if row["draw_scale"] is None:
        return None
    photometric = None
    if row["draw_jitter"] is not None:
        photometric = PhotometricDraws(*(row[f"draw_{name}"] for name in _PHOTOMETRIC_DRAWS))
    return Draws(*(row[f"draw_{name}"] for name in _BOX_DRAWS), photometric=photometric)


def see(image: Image.Image, draws: Draws | None, views: Views, pixels: int) -> Pixels:
    """What is seen of a picture in one view: RGB [pixels, pixels, 3].

    Args:
        image: decoded and upright (infra/pixels/decode.py).
        draws: of the view; None shows the whole picture, unchanged.
        views: how the draws are to be understood.
    """
    place = box(draws, image.width, image.height, views.crop_scale, views.flip)
    square = render(image, place, pixels)
    if draws is None or draws.photometric is None or views.photometric is None:
        return square
    return np.asarray(recolour(Image.fromarray(square), draws.photometric, views.photometric))


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
