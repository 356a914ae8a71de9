"""Photometric augmentation of what the student sees; geometry is the stored view.

Jitter of brightness, contrast, saturation and hue (always in this order), grayscale, Gaussian blur,
solarisation: torchvision's formulas on whole batches, each row with its own draws. A row's picture
is a function of (seed, epoch, row) to the bit, whatever batch it is in: draws are keyed hashes, and
every float operation is one of an element, or a sum in a fixed order.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.train_config import Augment
from trainer.batch import Batch
from trainer.draws import Draws, Numbers, on_device

JITTERED = 0.8
"""Share of the rows whose colours are jittered."""
SIGMA = (0.1, 2.0)
"""Of the blur, in px of a picture of 224 px."""
SIGMA_PIXELS = 224
SIGMAS_SEEN = 3
"""Where the Gaussian is cut off."""
LUMA = (0.299, 0.587, 0.114)
FIXED_POINT = 2.0**24

Rows = npt.NDArray[np.int64]


def augment(batch: Batch, config: Augment, seed: int) -> Tensor:
    """The batch's pictures with other colours: float32 in [0, 1], [rows, 3, side, side], on their
    device; the uint8 pictures themselves where nothing is asked for."""
    if not any(config.model_dump().values()):
        return batch.pixels
    draws = _RowDraws(batch, seed)
    pixels = batch.pixels.float() / 255
    amount = config.color_jitter
    jittered = draws.chosen("jitter", JITTERED if amount else 0.0)
    pixels = draws.changed(pixels, jittered, lambda part: _jitter(part, draws, jittered, amount))
    gray = draws.chosen("grayscale", config.grayscale)
    pixels = draws.changed(pixels, gray, lambda part: luma(part).expand_as(part))
    blurred = draws.chosen("blur", config.blur)
    pixels = draws.changed(pixels, blurred, lambda part: _blur(part, draws, blurred))
    solarized = draws.chosen("solarize", config.solarize)
    return draws.changed(pixels, solarized, solarize)


class _RowDraws(Draws):
    """Which rows are meant is known on the host."""

    def __init__(self, batch: Batch, seed: int) -> None:
        super().__init__(batch, "augment", seed)
        self._device = batch.pixels.device

    def chosen(self, what: str, share: float) -> Rows:
        """The rows of the batch that something is done to."""
        return np.flatnonzero(self.of(what) < share).astype(np.int64)

    def factors(self, what: str, rows: Rows, low: float, high: float) -> Tensor:
        """A uniform draw in [low, high) for each of `rows`: float32 [rows, 1, 1, 1]."""
        return self.on_device(self.between(what, rows, low, high)).reshape(-1, 1, 1, 1)

    def between(self, what: str, rows: Rows, low: float, high: float) -> Numbers:
        return low + self.of(what)[rows] * (high - low)

    def on_device(self, values: Numbers | Rows) -> Tensor:
        return on_device(values, self._device)

    def changed(self, pixels: Tensor, rows: Rows, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`pixels` with some rows changed."""
        if not len(rows):
            return pixels
        if len(rows) == len(pixels):
            return change(pixels)
        places = self.on_device(rows)
        return pixels.index_copy(0, places, change(pixels.index_select(0, places)))


def luma(pixels: Tensor) -> Tensor:
    """How bright each pixel is: [rows, 3, side, side] -> [rows, 1, side, side]."""
    red, green, blue = (factor * pixels[:, [c]] for c, factor in enumerate(LUMA))
    return red + green + blue


def brighten(pixels: Tensor, factor: Tensor) -> Tensor:
    """`factor` here and below: [rows, 1, 1, 1]; 1 changes nothing."""
    return (pixels * factor).clamp(0, 1)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from the picture's mean brightness, or towards it."""
    # Whole numbers, because a sum of floats depends on how it is cut.
    fixed = (luma(pixels) * FIXED_POINT).round().long().sum((1, 2, 3), keepdim=True)
    mean = fixed.double() / (FIXED_POINT * pixels.shape[2] * pixels.shape[3])
    return _blend(pixels, mean.float(), factor)


def saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from gray, or towards it."""
    return _blend(pixels, luma(pixels), factor)


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Around the colour circle of HSV, by `turns` [rows, 1, 1, 1] of it."""
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    high, low = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    spread = high - low
    safe = torch.where(spread > 0, spread, 1.0)
    sixths = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * turns
    channels = []
    for offset in (5, 3, 1):
        place = offset + sixths
        place = place - 6 * (place / 6).floor()
        channels.append(high - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.cat(channels, dim=1)


def solarize(pixels: Tensor) -> Tensor:
    return torch.where(pixels >= 0.5, 1 - pixels, pixels)


def blur(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Along rows and columns, reflected at the borders.

    Args:
        kernel: [rows, radius + 1]: the weights of a pixel's own value, of its next neighbours, and
            so on; kernel[:, 0] + 2 kernel[:, 1:].sum(1) is 1.
    """
    for dim in (2, 3):
        pixels = _along(pixels, kernel, dim)
    return pixels


def gaussian(sigma: Numbers, radius: int) -> Numbers:
    """Kernels for `blur` of sigma [rows] in pixels."""
    distance = np.arange(radius + 1)
    weights = np.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    return np.asarray(weights / (weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdims=True)))


def _jitter(pixels: Tensor, draws: _RowDraws, rows: Rows, amount: float) -> Tensor:
    pixels = brighten(pixels, draws.factors("brightness", rows, 1 - amount, 1 + amount))
    pixels = contrast(pixels, draws.factors("contrast", rows, 1 - amount, 1 + amount))
    pixels = saturate(pixels, draws.factors("saturation", rows, 1 - amount / 2, 1 + amount / 2))
    return turn_hue(pixels, draws.factors("hue", rows, -amount / 4, amount / 4))


def _blur(pixels: Tensor, draws: _RowDraws, rows: Rows) -> Tensor:
    scale = pixels.shape[3] / SIGMA_PIXELS
    low, high = (sigma * scale for sigma in SIGMA)
    kernel = gaussian(draws.between("sigma", rows, low, high), math.ceil(SIGMAS_SEEN * high))
    return blur(pixels, draws.on_device(kernel))


def _blend(pixels: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (factor * pixels + (1 - factor) * towards).clamp(0, 1)


def _along(pixels: Tensor, kernel: Tensor, dim: int) -> Tensor:
    radius, side = kernel.shape[1] - 1, pixels.shape[dim]
    margin = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
    padded = F.pad(pixels, margin, mode="reflect")
    weights = kernel[:, :, None, None, None].unbind(1)
    result = weights[0] * pixels
    # Neighbour by neighbour: a convolution's own order of summing depends on the batch.
    for distance in range(1, radius + 1):
        before = padded.narrow(dim, radius - distance, side)
        after = padded.narrow(dim, radius + distance, side)
        result = result + weights[distance] * (before + after)
    return result
