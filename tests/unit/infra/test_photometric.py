import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from infra.pixels.photometric import PhotometricDraws, recolour
from schemas.extract_config import Photometric
from tests.builders import photograph, pixels

UNIT = st.floats(0, 1, exclude_max=True)
DRAWS = st.builds(PhotometricDraws, *[UNIT] * 8)
CHANGES = st.builds(
    Photometric, color_jitter=st.floats(0, 1), blur=st.floats(0, 1), solarize=st.floats(0, 1)
)
STILL = PhotometricDraws(0.8, 0.5, 0.5, 0.5, 0.5, 0.999, 0.5, 0.999)
"""Nothing is changed, whatever the strengths below 1."""
STRONG = Photometric(color_jitter=0.8, blur=0.5, solarize=0.2)


def pattern() -> Image.Image:
    """Every level of every channel, of whole numbers."""
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    channels = [x * 4 + y % 4, y * 4 + x % 4, (x * y * 7 + x) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@given(DRAWS, CHANGES, st.integers(1, 48))
def test_recolour__keeps_shape_and_repeats(
    draws: PhotometricDraws, changes: Photometric, side: int
) -> None:
    image = photograph(1, side, side)
    before = image.tobytes()
    found = recolour(image, draws, changes)
    assert (found.size, found.mode) == (image.size, "RGB")
    assert found.tobytes() == recolour(image, draws, changes).tobytes()
    assert image.tobytes() == before


@given(DRAWS)
def test_recolour__without_strength_nothing_is_touched(draws: PhotometricDraws) -> None:
    changes = Photometric(color_jitter=0, blur=0, solarize=0)
    assert recolour(pattern(), draws, changes).tobytes() == pattern().tobytes()


def test_recolour__happens_where_the_draw_is_below_the_share() -> None:
    def changed(**draws: float) -> bool:
        return recolour(pattern(), replace(STILL, **draws), STRONG).tobytes() != pattern().tobytes()

    assert not changed()
    for draw, share in (("blur", 0.5), ("solarize", 0.2)):
        assert not changed(**{draw: share})
        assert changed(**{draw: np.nextafter(share, 0)})
    assert not changed(jitter=0.8, brightness=0.9)
    assert changed(jitter=np.nextafter(0.8, 0), brightness=0.9)


@pytest.mark.parametrize(
    ("draw", "enhancer", "reach"),
    [
        ("brightness", ImageEnhance.Brightness, 0.8),
        ("contrast", ImageEnhance.Contrast, 0.8),
        ("saturation", ImageEnhance.Color, 0.4),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 0.99])
def test_recolour__factors(
    draw: str, enhancer: type[ImageEnhance._Enhance], reach: float, value: float
) -> None:
    found = recolour(pattern(), replace(STILL, jitter=0.0, **{draw: value}), STRONG)
    expected = enhancer(pattern()).enhance(1 + reach * (2 * value - 1))
    assert found.tobytes() == expected.tobytes()


def test_recolour__hue_turns_by_whole_steps() -> None:
    turned = recolour(pattern(), replace(STILL, jitter=0.0, hue=0.75), STRONG)
    hue, turned_hue = (pixels(image.convert("HSV")) for image in (pattern(), turned))
    colourful = (hue[..., 1] > 100) & (hue[..., 2] > 100)
    steps = (turned_hue - hue)[..., 0][colourful] % 256
    # 255 x 0.2 x 0.5 = 25.5, to even; to RGB and back costs a step or two.
    assert np.median(steps) == 26
    assert np.abs(steps - 26).max() <= 3
    nearly = replace(STILL, jitter=0.0, hue=0.5 + 0.4 / 255 / 0.4)
    assert recolour(pattern(), nearly, STRONG).tobytes() == pattern().tobytes()


@pytest.mark.parametrize(("draw", "radius"), [(0.0, 0.1), (0.5, 1.05), (1.0, 2.0)])
def test_recolour__blur_is_in_proportion_to_the_side(draw: float, radius: float) -> None:
    blurred = replace(STILL, blur=0.0, blur_radius=draw)
    for side in (112, 224, 448):
        image = photograph(2, side, side)
        expected = image.filter(ImageFilter.GaussianBlur(radius * side / 224))
        assert recolour(image, blurred, STRONG).tobytes() == expected.tobytes()


def test_recolour__one_view_is_equally_sharp_at_every_size() -> None:
    large = photograph(3, 448, 448)
    small = large.resize((224, 224), Image.Resampling.BICUBIC)
    blurred = replace(STILL, blur=0.0, blur_radius=0.9)
    halved = recolour(large, blurred, STRONG).resize((224, 224), Image.Resampling.BICUBIC)
    apart = np.abs(pixels(halved) - pixels(recolour(small, blurred, STRONG)))
    unblurred = np.abs(pixels(halved) - pixels(small))
    assert apart.mean() < 0.2 * unblurred.mean()


def test_recolour__solarize_inverts_the_bright_half() -> None:
    found = pixels(recolour(pattern(), replace(STILL, solarize=0.0), STRONG))
    before = pixels(pattern())
    assert (found == np.where(before < 128, before, 255 - before)).all()


def test_recolour__order_is_fixed() -> None:
    """Colours, then blur, then solarize."""
    all_of_them = PhotometricDraws(0.0, 0.9, 0.1, 0.9, 0.9, 0.0, 0.9, 0.0)
    image = pattern()
    for part in (
        replace(all_of_them, blur=0.999, solarize=0.999),
        replace(all_of_them, jitter=0.9, solarize=0.999),
        replace(all_of_them, jitter=0.9, blur=0.999),
    ):
        image = recolour(image, part, STRONG)
    assert recolour(pattern(), all_of_them, STRONG).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("draws", "golden"),
    [
        (
            PhotometricDraws(0.0, 0.9, 0.5, 0.5, 0.5, 0.9, 0.5, 0.9),
            "496c4f8754f2b7b491b8884a687480393fa79686e4057a4f02e89f1a127b14be",
        ),
        (
            PhotometricDraws(0.0, 0.5, 0.1, 0.5, 0.5, 0.9, 0.5, 0.9),
            "93900cead371b354840d87eb0035f77ca8dae3df5a076b79d2965652803bbbc7",
        ),
        (
            PhotometricDraws(0.0, 0.5, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9),
            "8c8dc9bd254eb3164214980870a7a2f09e989da08f9a8d16479aa94c168f9eb3",
        ),
        (
            PhotometricDraws(0.0, 0.5, 0.5, 0.5, 0.1, 0.9, 0.5, 0.9),
            "712a810fd47189cb0807c511c67ad29c1271670998f0743132409138fa398b55",
        ),
        (
            PhotometricDraws(0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.7, 0.9),
            "ce750d1c17dc47753706b77a034ece5e4ef8c08be06290c2f3c834e1ea1d59d9",
        ),
        (
            PhotometricDraws(0.9, 0.5, 0.5, 0.5, 0.5, 0.9, 0.5, 0.1),
            "75b3c4c4d89ec13aaa63b6015ed763d8e7d2e5f1359acf090dc2974163f39542",
        ),
        (
            PhotometricDraws(0.3, 0.2, 0.7, 0.1, 0.8, 0.2, 0.4, 0.1),
            "aa37625991f13fae28c27eeef92e9337b0d245d5f676b0f595d84f3a6ad9af27",
        ),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "blur", "solarize", "all"],
)
def test_recolour__golden_pixels(draws: PhotometricDraws, golden: str) -> None:
    """Pixel recipe 1 for ever: a cache's draws mean these pixels and no others."""
    found = recolour(pattern(), draws, STRONG).tobytes()
    assert hashlib.sha256(found).hexdigest() == golden
