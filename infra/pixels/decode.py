"""Encoded bytes to an RGB picture, upright and at full scale.

Whatever the bytes are, the answer is a picture or an `ImageError`, in time and memory that
infra/pixels/limits.py bounds: no clock runs, because a thread inside a decoder cannot be stopped.
"""

import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from infra.pixels.limits import (
    DEFAULT,
    EXIF_BYTES,
    MeteredBytes,
    exif_bytes,
    refuse_encoded,
    refuse_opened,
)
from infra.redact import printable
from schemas.errors import ImageError
from schemas.limits import Limits

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Of what Pillow reads only pictures: others (EPS) start programs, or are rarely meant."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_STRIP_PIXELS = 2**20
_REASON_LENGTH = 200
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def silence_pillow() -> None:
    """Called once by a process that decodes: what Pillow warns of is counted as a bad row, or is
    no fault of the picture (damaged EXIF). Filters are the process's, so no thread sets them."""
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes, limits: Limits = DEFAULT) -> Image.Image:
    """Decode the first frame: EXIF orientation applied, alpha over black, 16 bit scaled to 8.

    Raises:
        ImageError: with the reason that becomes the row's.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        refuse_encoded(data, limits)
        image = Image.open(MeteredBytes(data), formats=_FORMATS)
        refuse_opened(image, data, limits)
        image.load()
        return _upright(_to_rgb(image), image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the {limits.max_pixels} allowed") from None
    except UnidentifiedImageError:
        raise ImageError("not a picture in any known format") from None
    # Pillow's plugins raise whatever their parsers trip over; a bad picture must not stop a job.
    except Exception as error:
        # Their messages quote the file, and end up in tables and logs.
        text = printable(str(error).strip()[:_REASON_LENGTH])
        raise ImageError(f"{type(error).__name__}: {text}") from None


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    if exif_bytes(original) > EXIF_BYTES:
        raise ImageError(f"{exif_bytes(original)} bytes of EXIF are more than {EXIF_BYTES}")
    try:
        turn = _UPRIGHT.get(original.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # A damaged EXIF block is no reason to lose a sound picture.
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
        return _by_strips(image, _scaled_16_bit)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        return _by_strips(image, _over_black)
    return image.convert("RGB")


def _by_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A change of single pixels, so many at a time that what lies between is never large."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(change(image.crop(box)), box)
    return rgb


def _over_black(image: Image.Image) -> Image.Image:
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")


def _scaled_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ImageError("integer pixels outside 0..65535 have no defined range")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
