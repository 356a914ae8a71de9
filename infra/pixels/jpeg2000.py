"""What a JPEG 2000's headers would make its decoder do, read before it sees them.

The decoder allocates for every precinct and code block before it looks at the data: 200 bytes can
ask for gigabytes, at any number of pixels.
"""

import struct
from collections.abc import Iterator

from infra.pixels.structure import PARTS, Size
from schemas.errors import ImageError

CODE_BLOCKS = 2**20
"""Of a picture, half a kilobyte each; 134 million pixels in the usual blocks have half as many."""

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_SIZE, _CODING, _COMPONENT, _TILE, _DATA = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_COMPONENTS = 4
_LAYERS = 1024


def refuse_structure(data: bytes) -> Size:
    """The codestream's own size; the file around it may say less.

    Raises:
        ImageError: it has too many components, tiles, code blocks or layers.
    """
    width = height = components = 0
    for marker, segment in _segments(data, _codestream(data)):
        if marker == _SIZE:
            sides = struct.unpack(">8IH", segment[2:36].ljust(34, b"\0"))
            width, height, components = sides[0] - sides[2], sides[1] - sides[3], sides[8]
            tiles = -(-sides[0] // max(1, sides[4])) * -(-sides[1] // max(1, sides[5]))
            if components > _COMPONENTS or tiles > PARTS:
                raise ImageError(f"{components} components in {tiles} tiles")
        elif marker in (_CODING, _COMPONENT):
            # Levels, sides of blocks, style, transform, then precincts if bit 0 is set.
            is_own = marker == _COMPONENT
            custom, style = (segment[1:2], segment[2:]) if is_own else (segment[:1], segment[5:])
            blocks = components * _blocks(
                width, height, style, bool(int.from_bytes(custom, "big") & 1)
            )
            layers = 0 if is_own else int.from_bytes(segment[2:4], "big")
            if blocks > CODE_BLOCKS or layers > _LAYERS:
                raise ImageError(f"{blocks} code blocks in {layers} layers")
    return max(0, width), max(0, height)


def _blocks(width: int, height: int, style: bytes, is_custom: bool) -> int:
    """Code blocks of one component: a precinct's side limits that of its blocks."""
    if len(style) < 5:
        return 0
    levels = style[0]
    total = 0
    for resolution in range(min(levels, 32) + 1):
        precinct = style[5 + resolution] if is_custom and len(style) > 5 + resolution else 0xFF
        # Above the lowest resolution a precinct's blocks lie in bands of half its side.
        half = resolution > 0
        across = min((style[1] & 15) + 2, max(0, (precinct & 15) - half))
        down = min((style[2] & 15) + 2, max(0, (precinct >> 4) - half))
        shrunk = levels - resolution
        total += -(-width >> (across + shrunk)) * -(-height >> (down + shrunk))
    return total


def _codestream(data: bytes) -> int:
    """Where it begins: at once, or in the first box of its kind."""
    if not data.startswith(_SIGNATURE):
        return 0
    place = 0
    for _ in range(PARTS):
        length, kind = struct.unpack(">I4s", data[place : place + 8].ljust(8, b"\0"))
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if kind == b"jp2c":
            return place + head
        if length < head or place + length >= len(data):
            break
        place += length
    return len(data)


def _segments(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """(marker, its parameters) of the main header and of every tile's."""
    place, end_of_tile = start + 2, len(data)
    for _ in range(PARTS):
        if place + 4 > len(data):
            return
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == _DATA:
            place = end_of_tile
            continue
        if marker == _TILE:
            part = int.from_bytes(data[place + 6 : place + 10], "big")
            end_of_tile = place + max(part, 12) if part else len(data)
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length
