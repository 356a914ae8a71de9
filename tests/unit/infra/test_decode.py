import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from infra.pixels import decode as module
from infra.pixels.decode import decode
from schemas.errors import ImageError
from tests.builders import encoded, photograph, photograph_bytes, pixels

ORIENTATION = 0x0112


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_decode__lossless_formats_give_the_pixels_back(format: str) -> None:
    image = photograph(1)
    assert (pixels(decode(encoded(image, format))) == pixels(image)).all()


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_decode__lossy_formats_come_near(format: str) -> None:
    image = photograph(1)
    assert np.abs(pixels(decode(encoded(image, format, quality=95))) - pixels(image)).mean() < 8


def test_decode__grey_is_grey_rgb() -> None:
    grey = photograph(2).convert("L")
    assert (pixels(decode(encoded(grey))) == pixels(grey)[..., None]).all()


def test_decode__one_bit() -> None:
    values = np.array([[True, False], [False, True]])
    assert pixels(decode(encoded(Image.fromarray(values))))[..., 0].tolist() == [[255, 0], [0, 255]]


def test_decode__cmyk_jpeg() -> None:
    image = photograph(3)
    decoded = decode(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert decoded.mode == "RGB"
    assert np.abs(pixels(decoded) - pixels(image)).mean() < 8


def test_decode__16_bit_grey_is_scaled_not_cut() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65535]], np.uint16)
    decoded = pixels(decode(encoded(Image.fromarray(values))))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 127, 128, 254, 255]
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_decode__floating_point_has_no_range() -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    assert reason(data) == "floating-point pixels have no defined range"


def test_decode__alpha_lies_over_black() -> None:
    values = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    decoded = pixels(decode(encoded(Image.fromarray(values))))
    assert decoded[0].tolist() == [[200, 100, 50], [0, 0, 0], [40, 20, 10]]


def test_decode__grey_with_alpha_lies_over_black() -> None:
    values = np.array([[[200, 255], [200, 0]]], np.uint8)
    decoded = pixels(decode(encoded(Image.fromarray(values, "LA"))))
    assert decoded[0].tolist() == [[200] * 3, [0] * 3]


def test_decode__palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 50, 90, 80, 70])
    image.putdata([0, 1, 2])
    decoded = pixels(decode(encoded(image, transparency=1)))
    assert decoded[0].tolist() == [[10, 20, 30], [0, 0, 0], [90, 80, 70]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "I;16"])
def test_decode__strips_are_seamless(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photograph(6, 50, 37)
    grey = image.convert("L")
    if mode == "I;16":
        image = Image.fromarray(pixels(grey).astype(np.uint16) * 250)
    elif mode == "P":
        image = image.quantize(16)
    else:
        image.putalpha(grey)
        image = image.convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    data = encoded(image, "TIFF" if mode == "PA" else "PNG", **options)
    whole = pixels(decode(data))
    monkeypatch.setattr(module, "_STRIP_PIXELS", 120)  # two rows
    assert (pixels(decode(data)) == whole).all()


def test_decode__first_frame_of_an_animation() -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert pixels(decode(data))[0, 0].tolist() == [255, 0, 0]


STORED_AS = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.rotate(180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(-90, expand=True),
}
"""How a camera that writes an orientation has turned the sensor's picture."""


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_decode__every_orientation_gives_the_upright_picture(orientation: int, format: str) -> None:
    upright = photograph(4)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(STORED_AS[orientation](upright), format, exif=exif, **options)
    decoded = decode(data)
    assert decoded.size == upright.size
    assert (pixels(decoded) == pixels(upright)).all()


def test_decode__impossible_or_broken_orientation_is_ignored() -> None:
    upright = photograph(4)
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    assert (pixels(decode(encoded(upright, exif=exif))) == pixels(upright)).all()
    assert (
        pixels(decode(encoded(upright, exif=b"Exif\0\0MM\0*\xff\xff\xff"))) == pixels(upright)
    ).all()


def test_decode__one_pixel() -> None:
    data = encoded(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert pixels(decode(data)).tolist() == [[[1, 2, 3]]]


def test_decode__no_bytes() -> None:
    assert reason(b"") == "the file is empty"


def test_decode__text() -> None:
    assert reason(b"<html>404 Not Found</html>" * 50) == "not a picture in any known format"


def test_decode__postscript_is_not_run() -> None:
    assert reason(encoded(photograph(), "EPS")) == "not a picture in any known format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_decode__truncated_at_any_point_is_refused(format: str) -> None:
    data = photograph_bytes(5, format=format)
    for share in (0.1, 0.5, 0.9):
        assert reason(data[: int(len(data) * share)])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [11600, 12000, 60000])
def test_decode__a_bomb_is_refused_before_it_costs_anything(side: int) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    message = reason(png_header(side, side))
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "pixels" in message
    assert "134217728" in message
    assert seconds < 0.5
    assert peak < 1 << 20
