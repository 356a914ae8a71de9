"""How much one picture may ask for: pixels and bytes, as configured, and what its structure costs.

A decoder runs in C, on a thread, and nothing can stop it there. So the work is bounded before it
begins: whatever asks for too much is refused with its reason, the same on every machine, which a
clock would not be. Of the limits only `Limits` is configuration; the others lie far beyond any
picture that is meant as one.
"""

import io
from collections.abc import Iterator

from PIL import Image, ImageFile

from infra.pixels import jpeg2000
from infra.pixels.structure import (
    PNG,
    Size,
    icon_sizes,
    jpeg_scans,
    png_size,
    tiff_tile,
    webp_size,
)
from schemas.errors import ImageError
from schemas.limits import Limits

DEFAULT = Limits()

_READS = 2**24
"""Calls with which a decoder may fetch its bytes; some of Pillow's fetch them one by one."""
_SLOW_VALUES = 2**25
"""Pixels x bands for those of Pillow's decoders that are Python, at a third of a microsecond."""
_SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")
_SCANNED_PIXELS = 2**32
"""Scans x pixels of a JPEG, a nanosecond each: ten scans are usual, 32 are the most at 2^27."""
_OVERLAP = 8
"""How often strips and tiles may cover the picture: planes have each their own."""
_COMMENTS = 4096
"""Of a plain PPM, whose reader copies what is left after each."""
_EXIFS = 64
"""EXIF segments of a JPEG, whose reader copies all that it has for each."""
_AVIF_BYTES = 2**26
"""Of an AVIF, whose reader unpacks the EXIF block before anybody can look at it."""
EXIF_BYTES = 2**22


def refuse_encoded(data: bytes, limits: Limits) -> None:
    """What can be told before Pillow opens a picture, which for some formats is to decode it.

    Raises:
        ImageError: it asks for too much.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(f"{len(data)} bytes are more than the {limits.max_bytes} allowed")
    for width, height in _sizes(data):
        refuse_size(width, height, limits)
    if data.startswith(b"\xff\xd8") and data.count(b"Exif\0\0") > _EXIFS:
        raise ImageError(f"more than {_EXIFS} EXIF segments")
    if data.startswith((b"P1", b"P2", b"P3")) and data.count(b"#") > _COMMENTS:
        raise ImageError(f"more than {_COMMENTS} comments")
    if data[4:8] == b"ftyp" and len(data) > _AVIF_BYTES:
        raise ImageError(f"{len(data)} bytes of AVIF are more than {_AVIF_BYTES}")


def _sizes(data: bytes) -> Iterator[Size]:
    """Whatever will be allocated, of the formats where that is not what Pillow says first."""
    if data.startswith(PNG):
        yield png_size(data)
    elif data.startswith(b"\0\0\1\0"):
        yield from icon_sizes(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        yield webp_size(data)
    elif data.startswith((b"II", b"MM")):
        yield tiff_tile(data)
    elif data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        yield jpeg2000.refuse_structure(data)


def refuse_size(width: int, height: int, limits: Limits) -> None:
    """Raises ImageError for more pixels than are allowed."""
    if width * height > limits.max_pixels:
        raise ImageError(f"{width} x {height} pixels are more than the {limits.max_pixels} allowed")


def refuse_opened(image: ImageFile.ImageFile, data: bytes, limits: Limits) -> None:
    """What Pillow says of a picture that it has opened and not decoded yet.

    Raises:
        ImageError: it asks for too much.
    """
    width, height = image.size
    refuse_size(width, height, limits)
    pixels = width * height
    values = pixels * len(image.getbands())
    if image.tile and image.tile[0][0] in _SLOW_DECODERS and values > _SLOW_VALUES:
        raise ImageError(
            f"{values} values in an encoding that is read one by one; at most {_SLOW_VALUES} are"
        )
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if covered > _OVERLAP * pixels:
        raise ImageError(f"its strips or tiles cover it {covered // pixels} times")
    # The count is an upper bound that costs nothing: most pictures need no more.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") * pixels > _SCANNED_PIXELS:
        scans = jpeg_scans(data)
        if scans * pixels > _SCANNED_PIXELS:
            raise ImageError(f"{scans} scans of {width} x {height} pixels")


def exif_bytes(image: Image.Image) -> int:
    """How much there is to be read for the orientation."""
    return sum(len(image.info.get(name, b"")) for name in ("exif", "Raw profile type exif"))


class MeteredBytes(io.BytesIO):
    """An encoded picture that can be read only so often: what reads byte by byte comes to an end.

    Raises:
        ImageError: by `read`, of one that is read too often.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _READS:
            raise ImageError(f"its parts are too many: more than {_READS} reads")
        return super().read(size)
