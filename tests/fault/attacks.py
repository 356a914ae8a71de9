"""Pictures that are made to harm: each asks for far more than it is."""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.builders import encoded, photograph

PNG = b"\x89PNG\r\n\x1a\n"


@functools.cache
def picture(format: str) -> bytes:
    return encoded(photograph(7, 48, 32), format)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    """A sound PNG with chunks between its header and its pixels."""
    data = picture("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(between: bytes) -> bytes:
    """A sound JPEG with something after its first two bytes."""
    data = picture("JPEG")
    return data[:2] + between + data[2:]


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(picture("JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_scans(side: int, scans: int) -> bytes:
    """A progressive picture that goes on and on refining what is there already."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def tiff(*tags: tuple[int, int, int, int], tail: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of (tag, type, count, value); a value of -1 is the offset of `tail`."""
    end = 8 + 2 + 12 * len(tags) + 4
    lines = (struct.pack("<HHII", *tag[:3], end if tag[3] < 0 else tag[3]) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + b"".join(lines) + struct.pack("<I", following) + tail


def grey_tiff(
    width: int, height: int, *more: tuple[int, int, int, int], coding: int = 1, tail: bytes = b""
) -> bytes:
    basis = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, coding))
    return tiff(*basis, (262, 3, 1, 1), *more, tail=tail)


def offsets(count: int) -> bytes:
    return np.full(count, 8, np.uint32).tobytes()


def jpeg2000(side: int, style: bytes | None = None, **fields: int) -> bytes:
    """A raw codestream; `style` are the sides of blocks, style, transform and precincts."""
    data = bytearray(encoded(Image.new("RGB", (side, side)), "JPEG2000", no_jp2=True))
    place = data.index(b"\xff\x52")
    for name, value in fields.items():
        at, width = {"width": (8, 4), "tile": (24, 4), "layers": (place + 6, 2)}[name]
        data[at : at + width] = value.to_bytes(width, "big")
    if style is not None:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        data[place + 10 : end] = style
        data[place + 2 : place + 4] = (8 + len(style)).to_bytes(2, "big")
        data[place + 4] |= len(style) > 4
    return bytes(data)


def webp_canvas(width: int, height: int) -> bytes:
    body = picture("WEBP")[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
    return b"RIFF" + struct.pack("<I", len(extended + body) + 4) + b"WEBP" + extended + body


def icon(data: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(data), 22)
    return b"\0\0\1\0\1\0" + entry + data


def bitmap(width: int, height: int, coding: int, data: bytes) -> bytes:
    colours = b"".join(bytes((value, value, value, 0)) for value in range(256))
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, coding, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + sizes + colours + data


def frames(format: str, many: int) -> bytes:
    """An animation of so many frames of few pixels."""
    sink = io.BytesIO()
    shades = [Image.new("L", (8, 8), number % 256) for number in range(many)]
    shades[0].save(sink, format, save_all=True, append_images=shades[1:])
    return sink.getvalue()


def large(mode: str, format: str, **options: object) -> bytes:
    return encoded(Image.new(mode, (4096, 4096)), format, **options)


@functools.cache
def inflates(fill: bytes) -> bytes:
    return zlib.compress(fill * (2**20 - 10), 9)


SIZE = "pixels .*allowed"
ONE_BY_ONE = "read one by one"
Attack = tuple[Callable[[], bytes], str | None]
ATTACKS: dict[str, Attack] = {
    "nothing": (lambda: b"", "the file is empty"),
    "png that is wide": (lambda: png_of(2**31 - 1, 2**31 - 1), SIZE),
    "png of a few too many pixels": (lambda: png_of(4097, 4096), SIZE),
    "png of no height": (lambda: png_of(5, 0), "not a picture"),
    "png with profiles that inflate": (
        lambda: png_with(*[png_chunk(b"iCCP", b"a\0\0" + inflates(b"\0"))] * 1000),
        "compressed texts",
    ),
    "png with texts that inflate": (
        lambda: png_with(*[png_chunk(b"iTXt", b"a\0\1\0\0\0" + inflates(b"\xff"))] * 1000),
        "compressed texts",
    ),
    "png with as many texts as are read": (
        lambda: png_with(*[png_chunk(b"zTXt", b"a\0\0" + inflates(b"a"))] * 60),
        None,
    ),
    "png with a text of many megabytes": (
        lambda: png_with(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))),
        "too large",
    ),
    "png of empty chunks": (lambda: png_with(png_chunk(b"aaAa", b"") * 300_000), "chunks"),
    "png with a giant EXIF": (lambda: png_with(png_chunk(b"eXIf", bytes(2**23))), "EXIF"),
    "apng of thousands of frames": (lambda: frames("PNG", 1000), None),
    "gif of thousands of frames": (lambda: frames("GIF", 2000), None),
    "webp of hundreds of frames": (lambda: frames("WEBP", 200), None),
    "jpeg that is wide": (lambda: jpeg_of(65500, 65500), SIZE),
    "jpeg of no height": (lambda: jpeg_of(48, 0), "not a picture"),
    "jpeg of a thousand scans": (lambda: jpeg_scans(4000, 1000), "scans of 4000 x 4000"),
    "jpeg of a dozen scans": (lambda: jpeg_scans(1000, 6), None),
    "jpeg with EXIF upon EXIF": (
        lambda: jpeg_with(segment(0xE1, b"Exif\0\0MM\0*" + bytes(100)) * 40_000),
        "EXIF segments",
    ),
    "jpeg with a giant profile": (
        lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 255),
        None,
    ),
    "jpeg with padding": (lambda: jpeg_with(b"\xff" * 2**19), None),
    "webp whose canvas lies": (lambda: webp_canvas(2**24, 200), SIZE),
    "webp whose canvas is larger than what is on it": (lambda: webp_canvas(4096, 4096), ""),
    "gif whose frame is larger than its screen": (
        lambda: picture("GIF").replace(b",\0\0\0\0\x30\0", b",\xff\xff\xff\xff\xff\xff", 1),
        "",
    ),
    "icon with a large png": (lambda: icon(png_of(12_000, 12_000)), SIZE),
    "icon with a png that inflates": (
        lambda: icon(png_with(*[png_chunk(b"iCCP", b"a\0\0" + inflates(b"\0"))] * 1000)),
        "compressed texts",
    ),
    "icon with a large bitmap": (lambda: icon(bitmap(30_000, 30_000, 0, b"")[14:]), SIZE),
    "bitmap of runs that leap": (lambda: bitmap(4000, 4000, 1, b"\0\2\xff\xff" * 9), ""),
    "bitmap that ends its line": (lambda: bitmap(2**24, 1, 1, b"\0\0" * 99), ""),
    "bitmap of negative height": (lambda: bitmap(8, -(2**31), 0, b""), SIZE),
    "tiff of one strip too large": (lambda: grey_tiff(2**16, 2**16, (273, 4, 1, 8)), SIZE),
    "tiff whose tiles lie": (
        lambda: grey_tiff(64, 64, (322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8)),
        SIZE,
    ),
    "tiff whose compressed tiles lie": (
        lambda: grey_tiff(
            *(64, 64, (322, 4, 1, 30_000), (323, 4, 1, 30_000), (324, 4, 1, 8), (325, 4, 1, 9)),
            coding=8,
        ),
        SIZE,
    ),
    "tiff of millions of strips": (
        lambda: grey_tiff(2048, 2048, (273, 4, 2**20, -1), (278, 4, 1, 1), tail=offsets(2**20)),
        "tag 273 has 1048576 values",
    ),
    "tiff whose strips overlap": (
        lambda: grey_tiff(
            *(4000, 4000, (273, 4, 2**17, -1), (278, 4, 1, 3999)), tail=offsets(2**22)
        ),
        "cover it",
    ),
    "tiff of millions of bits": (
        lambda: tiff((256, 4, 1, 1), (258, 3, 2**21, -1), tail=offsets(2**20)),
        "tag 258",
    ),
    "tiff whose pages go round": (
        lambda: picture("TIFF")[:-4] + struct.pack("<I", 8),
        None,
    ),
    "tiff whose directory is itself": (lambda: tiff((330, 4, 1, 8), following=8), ""),
    "bigtiff of equal tags": (
        lambda: (
            struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 300_000)
            + struct.pack("<HHQQ", 256, 4, 1, 1) * 300_000
        ),
        "",
    ),
    "plain ppm of comments": (lambda: b"P3 2 2 255\n" + b"#\n" * 10**6, "comments"),
    "plain ppm that is long": (lambda: b"P3 4000 4000 255\n" + b"1 " * 100, ONE_BY_ONE),
    "ppm of many digits": (lambda: b"P6 " + b"9" * 5000, "not a picture|Token"),
    "pgm that is read one by one": (lambda: b"P5 6000 6000 254\n" + bytes(100), SIZE),
    "jpeg 2000 of small blocks": (lambda: jpeg2000(2048, b"\0\0\0\1"), None),
    "jpeg 2000 of small precincts": (
        lambda: jpeg2000(2048, b"\4\4\0\1" + b"\x11" * 6),
        "code blocks",
    ),
    "jpeg 2000 that is wide": (lambda: jpeg2000(64, width=2**31), "tiles"),
    "jpeg 2000 of many tiles": (lambda: jpeg2000(1024, tile=1), None),
    "jpeg 2000 of many layers": (lambda: jpeg2000(64, layers=65535), "layers"),
    "avif whose size lies": (
        lambda: picture("AVIF").replace(
            b"ispe" + bytes(7) + b"\x30", b"ispe" + bytes(4) + b"\0\0\x3f\xff"
        ),
        None,
    ),
    "large png with alpha": (lambda: large("RGBA", "PNG", compress_level=1), None),
    "large png of 16 bit": (lambda: large("I;16", "PNG", compress_level=1), None),
    "large progressive jpeg": (lambda: large("RGB", "JPEG", progressive=True), None),
    "large webp": (lambda: large("RGBA", "WEBP", method=0), None),
    "large jpeg 2000": (lambda: large("RGB", "JPEG2000"), None),
    "large avif": (lambda: large("RGB", "AVIF", speed=10), None),
}
"""Name -> how it is made, and what its reason must say: anything, or None if it may be sound. The
large ones are sound, and of as many pixels as the corpus allows."""
