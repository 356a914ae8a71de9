import hashlib
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.pixels.views import Box, Draws, box, pixels_digest, render
from tests.builders import photograph

UNIT = st.floats(0, 1, exclude_max=True)
DRAWS = st.builds(Draws, UNIT, UNIT, UNIT, UNIT, UNIT)
SIDES = st.integers(1, 5000)
SCALES = st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(lambda pair: (min(pair), max(pair)))


@given(DRAWS, SIDES, SIDES, SCALES, st.booleans())
def test_box__lies_inside_the_picture(
    draws: Draws, width: int, height: int, scale: tuple[float, float], flip: bool
) -> None:
    view = box(draws, width, height, scale, flip)
    assert 0 <= view.left < view.left + view.width <= width
    assert 0 <= view.top < view.top + view.height <= height
    assert view == box(draws, width, height, scale, flip)
    assert not view.flip or flip


@given(DRAWS, st.integers(500, 3000), SCALES.filter(lambda scale: scale[0] > 0.05))
def test_box__has_the_share_and_the_ratio_that_were_drawn(
    draws: Draws, side: int, scale: tuple[float, float]
) -> None:
    view = box(draws, side, side, scale, flip=True)
    share = scale[0] + (scale[1] - scale[0]) * draws.scale
    ratio = (4 / 3) ** (2 * draws.ratio - 1)
    wide, high = math.sqrt(share * ratio), math.sqrt(share / ratio)
    # A side that would leave the picture is cut to it.
    assert abs(view.width / side - min(1, wide)) <= 1 / side
    assert abs(view.height / side - min(1, high)) <= 1 / side


def test_box__draws_reach_both_ends() -> None:
    last = math.nextafter(1, 0)
    lefts = {box(Draws(0, 0.5, x, 0, 1), 10, 10, (0.16, 0.16), True).left for x in (0, last)}
    assert lefts == {0, 6}
    flips = [box(Draws(0, 0, 0, 0, draw), 9, 9, (1, 1), True).flip for draw in (0, 0.49, 0.5, last)]
    assert flips == [True, True, False, False]


@given(SIDES, SIDES)
def test_box__view_0_is_the_whole_picture(width: int, height: int) -> None:
    assert box(None, width, height, (0.1, 0.2), flip=True) == Box(0, 0, width, height, flip=False)


def test_render__is_bicubic_of_the_crop_alone() -> None:
    image = photograph(1, 90, 70)
    crop = image.crop((10, 5, 70, 45)).resize((32, 32), Image.Resampling.BICUBIC)
    assert (render(image, Box(10, 5, 60, 40, flip=False), 32) == np.asarray(crop)).all()


def test_render__flip_mirrors_the_result() -> None:
    image = photograph(2)
    straight = render(image, Box(4, 4, 50, 40, flip=False), 16)
    mirrored = render(image, Box(4, 4, 50, 40, flip=True), 16)
    assert (mirrored == straight[:, ::-1]).all()
    assert mirrored.flags.c_contiguous
    assert pixels_digest(mirrored) != pixels_digest(straight)
    assert pixels_digest(mirrored[:, ::-1]) == pixels_digest(straight)


def test_render__does_not_change_the_picture() -> None:
    image = photograph(3)
    before = image.tobytes()
    render(image, Box(0, 0, 96, 64, flip=True), 24)
    assert image.tobytes() == before


def test_render__golden_pixels() -> None:
    """Pixel recipe 1 for ever: what a student is shown must be what its teacher saw."""
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], -1).astype(np.uint8))
    square = render(image, Box(7, 3, 41, 29, flip=True), 16)
    assert (square.shape, square.dtype) == ((16, 16, 3), np.uint8)
    assert pixels_digest(square).hex() == (
        "ce6fee8a9c7b1f8c83ddbadffeecb6bc8000762d3a2f81f278b2d06aae9b94a6"
    )
    assert pixels_digest(square) == hashlib.sha256(square.tobytes()).digest()
