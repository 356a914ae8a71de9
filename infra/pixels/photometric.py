"""Part of pixel recipe 1: the changes of colour and sharpness of views that are photometric.

They are made to the finished square, mirror included, by Pillow's own operations in one fixed
order, so that whoever has the draws has the pixels. The strengths are those of a configuration;
the draws stand in the plan.
"""

from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from schemas.extract_config import Photometric

JITTERED_SHARE = 0.8
SOLARIZE_FROM = 128
BLUR_SIDE = 224
"""Side in pixels of the square for which blur radii are stated; others blur in proportion."""


@dataclass(frozen=True, slots=True)
class PhotometricDraws:
    """Eight uniform draws in [0, 1)."""

    jitter: float
    """Whether brightness, contrast, saturation and hue are changed at all."""
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    """Whether it is blurred."""
    blur_radius: float
    solarize: float
    """Whether it is solarized."""


def recolour(square: Image.Image, draws: PhotometricDraws, changes: Photometric) -> Image.Image:
    """The square of a view (RGB, of any side) with the changes that were drawn for it.

    The order is fixed: brightness, contrast, saturation, hue, blur, solarize.
    """
    if draws.jitter < JITTERED_SHARE:
        square = _jittered(square, draws, changes.color_jitter)
    if draws.blur < changes.blur:
        # In proportion to the side: one view is equally sharp at every grid of the pyramid.
        radius = (0.1 + 1.9 * draws.blur_radius) * square.width / BLUR_SIDE
        square = square.filter(ImageFilter.GaussianBlur(radius))
    if draws.solarize < changes.solarize:
        square = ImageOps.solarize(square, SOLARIZE_FROM)
    return square


def _jittered(square: Image.Image, draws: PhotometricDraws, strength: float) -> Image.Image:
    bright = ImageEnhance.Brightness(square).enhance(_factor(draws.brightness, strength))
    contrasted = ImageEnhance.Contrast(bright).enhance(_factor(draws.contrast, strength))
    coloured = ImageEnhance.Color(contrasted).enhance(_factor(draws.saturation, strength / 2))
    steps = round(255 * (strength / 4) * (2 * draws.hue - 1))
    return _turned_hue(coloured, steps) if steps else coloured


def _factor(draw: float, reach: float) -> float:
    return 1 + reach * (2 * draw - 1)


def _turned_hue(square: Image.Image, steps: int) -> Image.Image:
    """Never by 0 steps: to HSV and back alone changes pixels."""
    hue, saturation, value = square.convert("HSV").split()
    turned = hue.point([(level + steps) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
