"""Encoded bytes to an RGB picture, upright and at full scale."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from schemas.errors import ImageError

MAX_PIXELS = 2**27
"""Pictures of more pixels (134 million, 400 MB decoded) are refused before they are decoded."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
"""Of what Pillow reads only pictures: others (EPS) start programs, or are rarely meant."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
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


def decode(data: bytes) -> Image.Image:
    """Decode the first frame: EXIF orientation applied, alpha over black, 16 bit scaled to 8.

    Raises:
        ImageError: with the reason that becomes the row's.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed"
            )
        image.load()
        return _upright(_to_rgb(image), image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise ImageError("not a picture in any known format") from None
    # Pillow's plugins raise whatever their parsers trip over; a bad picture must not stop a job.
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {error}") from None


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(original.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # A damaged EXIF block is no reason to lose a sound picture.
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT_MODES or image.mode == "I":
        return _scaled_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ImageError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colours).convert("RGB")
    return image.convert("RGB")


def _scaled_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ImageError("integer pixels outside 0..65535 have no defined range")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
