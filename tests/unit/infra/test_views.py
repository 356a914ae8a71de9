import hashlib
import math
from dataclasses import astuple, replace

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.pixels.photometric import PhotometricDraws
from infra.pixels.views import (
    Box,
    Draws,
    box,
    draw,
    draw_columns,
    draws_of_row,
    pixels_digest,
    render,
    see,
)
from schemas import tables
from schemas.extract_config import Photometric, Views
from tests.builders import photograph

UNIT = st.floats(0, 1, exclude_max=True)
PHOTOMETRIC = st.builds(PhotometricDraws, *[UNIT] * 8)
DRAWS = st.builds(Draws, *[UNIT] * 5)
ALL_DRAWS = st.builds(Draws, *[UNIT] * 5, photometric=st.none() | PHOTOMETRIC)
PLAIN, COLOURED = Views(per_image=3), Views(per_image=3, photometric=Photometric())
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


def test_draw__golden_draws() -> None:
    """Frozen for ever: a plan made today is made the same way in ten years."""
    draws = draw("class0/0001.jpg", 1, COLOURED)
    assert draws is not None
    assert round(draws.scale, 12) == 0.82379439228
    assert round(draws.x, 12) == 0.095885422035
    assert round(draws.flip, 12) == 0.077840285113
    assert draws.photometric is not None
    assert round(draws.photometric.jitter, 12) == 0.119638522581
    assert round(draws.photometric.solarize, 12) == 0.435422865789


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 1023), st.integers(0, 99))
def test_draw__the_box_does_not_depend_on_colours(key: str, view: int, seed: int) -> None:
    plain = draw(key, view, Views(seed=seed))
    coloured = draw(key, view, Views(seed=seed, photometric=Photometric(blur=0.1)))
    assert plain is not None
    assert coloured is not None
    assert plain == replace(coloured, photometric=None)
    assert coloured.photometric is not None
    # Nor the other way round: knowing the one says nothing about the other.
    assert not set(astuple(plain)) & set(astuple(coloured.photometric))


def test_draw__differs_between_keys_views_and_seeds() -> None:
    drawn = [
        draw(key, view, Views(seed=seed, photometric=Photometric()))
        for key in ("a", "b")
        for view in (1, 2, 11)
        for seed in (0, 1)
    ]
    assert len({astuple(draws) for draws in drawn if draws is not None}) == 12


def test_draw__view_0_is_never_changed() -> None:
    assert draw("a", 0, COLOURED) is None
    image = photograph(5)
    whole = image.resize((32, 32), Image.Resampling.BICUBIC)
    assert (see(image, None, COLOURED, 32) == np.asarray(whole)).all()


@given(st.lists(st.none() | ALL_DRAWS, max_size=5))
def test_draw_columns__and_back(draws: list[Draws | None]) -> None:
    columns = draw_columns(draws)
    schema = pa.schema([field for field in tables.PLAN if field.name.startswith("draw_")])
    table = pa.table(columns, schema=schema)
    assert [draws_of_row(row) for row in table.to_pylist()] == draws


@given(ALL_DRAWS, st.integers(1, 40))
def test_see__is_the_box_then_the_colours(draws: Draws, side: int) -> None:
    image = photograph(4)
    place = box(draws, image.width, image.height, PLAIN.crop_scale, PLAIN.flip)
    plain, coloured = (see(image, draws, views, side) for views in (PLAIN, COLOURED))
    assert (plain == render(image, place, side)).all()
    assert (coloured.shape, coloured.dtype) == ((side, side, 3), np.uint8)
    assert coloured.flags.c_contiguous
    if draws.photometric is None:
        assert (coloured == plain).all()
    assert (coloured == see(image, draws, COLOURED, side)).all()


def test_see__golden_pixels() -> None:
    """What a student is shown must be what its teacher saw, colours included."""
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    image = Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], -1).astype(np.uint8))
    changes = PhotometricDraws(0.7, 0.9, 0.2, 0.8, 0.9, 0.3, 0.6, 0.1)
    draws = Draws(0.3, 0.6, 0.4, 0.7, 0.2, photometric=changes)
    square = see(image, draws, COLOURED, 32)
    assert pixels_digest(square).hex() == (
        "c2ca23446fad060cdb2d1fa4968eed100c2df65cb996ce45e6d75885e805b1a3"
    )
