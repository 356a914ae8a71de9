"""Malformed pictures by the thousand, from sound ones in every format that decode.py takes.

A case is its number: the same number is the same bytes wherever the same Pillow encodes. Run by
itself with numbers on standard input, it decodes each and answers with a line of JSON, so that
whoever runs it sees a crash, a hang or a need for memory, and at which case.
"""

import functools
import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from infra.pixels.decode import decode, silence_pillow
from schemas.errors import ImageError
from schemas.limits import Limits
from tests.builders import encoded, photograph
from tests.fault.attacks import ATTACKS, png_chunk

LIMITS = Limits(max_pixels=2**24, max_bytes=2**25)
"""Smaller than the defaults, so that what keeps them can be told from what does not."""
ADDRESS_SPACE = 3 << 30
"""Of a process that decodes; what asks for more is told apart by the reason MemoryError."""
MUTANTS_PER_PICTURE = 110
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
MAGICS = (b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8X", b"GIF89a", b"BM")
MAGICS += (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", b"P6 ")
MAGICS += (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x20ftypavif", b"\0\0\1\0\1\0")
MAGICS += (b"\0\0\x02" + bytes(9), b"P3 ", b"P5 ", b"%!PS-Adobe", b"8BPS", b"qoif", b"\0\0\0\0")


class Case(NamedTuple):
    name: str
    data: bytes
    reason: str | None = None
    """What the refusal must say; None where a sound picture is as good."""


@functools.cache
def pictures() -> dict[str, bytes]:
    """A small sound picture in every kind of every format."""
    image = photograph(7, 48, 32)
    grey, alpha, palette = image.convert("L"), image.copy(), image.quantize(64)
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [photograph(seed, 48, 32) for seed in range(4)]
    exif = Image.Exif()
    exif[0x0112] = 6
    several = {"save_all": True, "append_images": frames}
    made = {
        "jpeg": encoded(image, "JPEG"),
        "jpeg-exif": encoded(image, "JPEG", exif=exif, icc_profile=bytes(3000), comment=b"c"),
        "jpeg-progressive": encoded(image, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg-grey": encoded(grey, "JPEG"),
        "png": encoded(image, exif=exif, icc_profile=bytes(3000)),
        "png-16": encoded(deep),
        "png-palette": encoded(palette, transparency=3),
        "png-alpha": encoded(alpha),
        "png-bit": encoded(image.convert("1")),
        "png-interlaced": interlaced(image),
        "apng": encoded(image, **several),
        "webp": encoded(image, "WEBP"),
        "webp-lossless": encoded(alpha, "WEBP", lossless=True, exif=exif),
        "webp-animated": encoded(image, "WEBP", **several),
        "gif": encoded(palette, "GIF", comment=b"c" * 300),
        "gif-animated": encoded(image, "GIF", **several),
        "bmp": encoded(image, "BMP"),
        "bmp-palette": encoded(palette, "BMP"),
        "tiff": encoded(image, "TIFF"),
        "tiff-lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encoded(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encoded(image, "TIFF", compression="jpeg"),
        "tiff-pages": encoded(image, "TIFF", **several),
        "tiff-big": encoded(alpha, "TIFF", big_tiff=True),
        "ppm": encoded(image, "PPM"),
        "pgm-16": encoded(deep, "PPM"),
        "ppm-plain": b"P3 4 4 255\n" + b" ".join(b"%d" % value for value in range(48)),
        "pgm-1000": b"P5 8 8 1000\n" + np.arange(64, dtype=">u2").tobytes(),
        "jp2": encoded(image, "JPEG2000"),
        "j2k": encoded(alpha, "JPEG2000", no_jp2=True, tile_size=(16, 16)),
        "avif": encoded(image, "AVIF", exif=exif),
        "ico": encoded(alpha, "ICO", sizes=[(16, 16), (32, 32)]),
        "ico-bmp": encoded(alpha, "ICO", sizes=[(16, 16)], bitmap_format="bmp"),
        "tga": encoded(image, "TGA"),
        "tga-rle": encoded(alpha, "TGA", rle=True),
    }
    return {name: bytes(data) for name, data in made.items()}


def interlaced(image: Image.Image) -> bytes:
    """A PNG in Adam7's seven passes, which Pillow reads and does not write."""
    values = np.asarray(image)
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2))
    lines = b"".join(
        b"\0" + line.tobytes()
        for top, down, left, right in (*passes, (1, 2, 0, 1))
        for line in values[top::down, left::right]
    )
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def flip(data: bytes, random: np.random.Generator) -> bytes:
    """Some bits, near the beginning or anywhere."""
    changed = bytearray(data)
    reach = min(len(data), 64) if random.random() < 0.5 else len(data)
    for _ in range(2 ** int(random.integers(0, 7))):
        changed[int(random.integers(reach))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def truncate(data: bytes, random: np.random.Generator) -> bytes:
    """At a few bytes, anywhere, or a few before the end."""
    few = int(random.integers(1, 40))
    return data[: (few, int(random.integers(len(data))), -few)[int(random.integers(3))]]


def lie(data: bytes, random: np.random.Generator) -> bytes:
    """An extreme number in place of one that may be a size, a length or an offset."""
    value = EXTREMES[int(random.integers(len(EXTREMES)))]
    width = (1, 2, 4)[int(random.integers(3))]
    number = (value % 256**width).to_bytes(width, ("big", "little")[int(random.integers(2))])
    place = int(random.integers(max(1, min(len(data), 400) - width)))
    return data[:place] + number + data[place + width :]


def repeat(data: bytes, random: np.random.Generator) -> bytes:
    """A stretch again and again, or left out."""
    begin, end = sorted(random.integers(0, len(data) + 1, 2).tolist())
    times = (0, 2, 50)[int(random.integers(3))]
    return data[:begin] + data[begin:end] * times + data[end:]


def splice(data: bytes, random: np.random.Generator) -> bytes:
    """The beginning of one picture and the end of another, or one whole after the other."""
    other = list(pictures().values())[int(random.integers(len(pictures())))]
    if random.random() < 0.3:
        return data + other
    return data[: int(random.integers(len(data)))] + other[int(random.integers(len(other))) :]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(flip, flip, flip, lie, lie, lie, lie, truncate, truncate, repeat, splice),
)


def case(number: int) -> Case:
    """The mutants of every picture, then noise behind each magic, then the attacks."""
    mutants = len(pictures()) * MUTANTS_PER_PICTURE
    if number < mutants:
        name = list(pictures())[number // MUTANTS_PER_PICTURE]
        mutate = MUTATIONS[number % len(MUTATIONS)]
        data = mutate(pictures()[name], np.random.default_rng(number))
        return Case(f"{number} {name} {mutate.__name__}", data)
    if number < mutants + 4 * len(MAGICS):
        random = np.random.default_rng(number)
        magic = MAGICS[(number - mutants) // 4]
        return Case(f"{number} noise after {magic!r}", magic + random.bytes(2 ** (3 * number % 14)))
    name, (make, reason) = list(ATTACKS.items())[number - mutants - 4 * len(MAGICS)]
    return Case(f"{number} {name}", make(), reason)


def count() -> int:
    return len(pictures()) * MUTANTS_PER_PICTURE + 4 * len(MAGICS) + len(ATTACKS)


def peak_bytes() -> int:
    """The most memory this process has held since it was last asked."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return int(line.split()[1]) << 10


def look(number: int) -> dict[str, object]:
    """Decode a case; one that gives a picture is decoded twice, and must give the same."""
    name, data, _ = case(number)
    peak_bytes()
    start = time.perf_counter()
    told: dict[str, object] = {"number": number, "name": name}
    try:
        image = decode(data, LIMITS)
    except ImageError as error:
        told["reason"] = str(error)
    else:
        told["size"] = [image.mode, *image.size, len(image.tobytes())]
        told["same"] = image.tobytes() == decode(data, LIMITS).tobytes()
    return told | {"seconds": time.perf_counter() - start, "bytes": peak_bytes()}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence_pillow()
    for line in sys.stdin:
        print(json.dumps(look(int(line))), flush=True)
