"""What an encoded picture's headers would make a decoder do, read before one sees them.

A file of a few kilobytes can ask for gigabytes, or for hours: sizes that lie, lists without end,
compressed texts, scan upon scan. Each function here walks one format only as far as it must, and
what it cannot make sense of it leaves to the decoder, which refuses it at no cost.
"""

import re
import struct
from collections.abc import Iterator

from schemas.errors import ImageError

PARTS = 2**18
"""Chunks, segments, strips, tiles or values of one tag; no picture that is meant has as many."""
INFLATED_TEXTS = 64
"""Compressed texts and profiles of a PNG: each may take a megabyte and two milliseconds."""

PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = 0xDA, 0xD9
_BYTE_TYPES = (1, 2, 6, 7)
_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_TILE_WIDTH, _TILE_LENGTH = 322, 323

Size = tuple[int, int]


def png_size(data: bytes, start: int = 0) -> Size:
    """The size in the header of the PNG at `start`, once its chunks are counted.

    Raises:
        ImageError: there are too many, or too many that are compressed.
    """
    place, chunks, texts = start + len(PNG), 0, 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks += 1
        texts += kind in (b"iCCP", b"zTXt", b"iTXt")
        if chunks > PARTS or texts > INFLATED_TEXTS:
            raise ImageError(f"more than {PARTS} chunks, or {INFLATED_TEXTS} compressed texts")
        place += length + 12
    return struct.unpack(">II", data[start + 16 : start + 24].ljust(8, b"\0"))


def icon_sizes(data: bytes) -> Iterator[Size]:
    """Of every picture in an icon, as its own header says; the icon's may say less.

    Raises:
        ImageError: as `png_size`.
    """
    (count,) = struct.unpack("<H", data[4:6].ljust(2, b"\0"))
    for place in range(6, min(6 + 16 * count, len(data) - 15), 16):
        (start,) = struct.unpack_from("<I", data, place + 12)
        if data.startswith(PNG, start):
            yield png_size(data, start)
        else:
            width, height = struct.unpack("<ii", data[start + 4 : start + 12].ljust(8, b"\0"))
            yield abs(width), abs(height)


def webp_size(data: bytes) -> Size:
    """Of the canvas, which is allocated as soon as the file is opened."""
    head = data[:30].ljust(30, b"\0")
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def tiff_tile(data: bytes) -> Size:
    """Of one tile of a TIFF's first page, 0 x 0 of strips, once its tags' values are counted.

    Raises:
        ImageError: a tag has too many values, or a tile's side is no number.
    """
    order = "<" if data[:2] == b"II" else ">"
    head = data[:16].ljust(16, b"\0")
    is_big = head[2:4] in (b"+\0", b"\0+")
    start_at, number, inline = (8, "Q", "8s") if is_big else (4, "I", "4s")
    (start,) = struct.unpack_from(f"{order}{number}", head, start_at)
    counter = struct.Struct(f"{order}{'Q' if is_big else 'H'}")
    entry = struct.Struct(f"{order}HH{number}{inline}")
    if start + counter.size > len(data):
        return 0, 0
    (count,) = counter.unpack_from(data, start)
    first = start + counter.size
    sides = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for index in range(min(count, PARTS, (len(data) - first) // entry.size)):
        tag, kind, values, value = entry.unpack_from(data, first + index * entry.size)
        if values > PARTS and kind not in _BYTE_TYPES:
            raise ImageError(f"tag {tag} has {values} values, more than {PARTS}")
        if tag in sides:
            if kind not in _INTEGERS or struct.calcsize(_INTEGERS[kind]) > len(value):
                raise ImageError(f"tag {tag}, the side of a tile, is of type {kind}")
            # Readers differ in which of two equal tags counts.
            sides[tag] = max(sides[tag], *struct.unpack_from(f"{order}{_INTEGERS[kind]}", value))
    return sides[_TILE_WIDTH], sides[_TILE_LENGTH]


def jpeg_scans(data: bytes) -> int:
    """Scans of a JPEG's first picture; each is a pass over all of its pixels.

    Raises:
        ImageError: it has too many segments.
    """
    scans = segments = 0
    place = 2
    while (found := _JPEG_MARKER.search(data, place)) and data[found.end() - 1] != _END:
        scans += data[found.end() - 1] == _SCAN
        segments += 1
        if segments > PARTS:
            raise ImageError(f"more than {PARTS} segments")
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans
