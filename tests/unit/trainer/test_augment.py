"""Augmentation of a whole batch against the formulas of Pillow and others, a picture at a time."""

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from schemas.train_config import Augment
from tests.unit.trainer.learning import batch_of
from trainer import augment as augmentation
from trainer.augment import (
    augment,
    blur,
    brighten,
    contrast,
    gaussian,
    saturate,
    solarize,
    turn_hue,
)
from trainer.batch import Batch
from trainer.parts import parts_of

pytestmark = pytest.mark.unit

ALL = Augment(color_jitter=0.4, grayscale=0.3, blur=0.5, solarize=0.3)
ONE_LEVEL = 1.01 / 255


def pictures(count: int, side: int = 24) -> Tensor:
    """Smooth in parts, gray in others: float32 multiples of 1/255."""
    noise = torch.randint(0, 256, (count, 3, side, side))
    noise[:, :, : side // 4] = noise[:, :1, : side // 4]
    return noise / 255


def image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brighten, ImageEnhance.Brightness),
        (contrast, ImageEnhance.Contrast),
        (saturate, ImageEnhance.Color),
    ],
)
def test_jitter__is_pillows_but_for_its_rounding(ours: Any, theirs: Any) -> None:
    given, factors = pictures(4), torch.tensor([0.6, 1.0, 1.3, 0.0])
    found = ours(given, factors.reshape(-1, 1, 1, 1))
    for picture, result, factor in zip(given, found, factors.tolist()):
        expected = tensor(theirs(image(picture)).enhance(factor))
        torch.testing.assert_close(result, expected, rtol=0, atol=2 * ONE_LEVEL)


def test_solarize__is_pillows() -> None:
    given = pictures(2)
    for picture, result in zip(given, solarize(given)):
        expected = tensor(ImageOps.solarize(image(picture), 128))
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("turns", [-0.25, -0.1, 0.0, 0.07, 0.25])
def test_hue__turns_in_hsv(turns: float) -> None:
    given = pictures(1, side=16)
    found = turn_hue(given, torch.full((1, 1, 1, 1), turns))
    for place in np.ndindex(16, 16):
        hue, saturation, value = colorsys.rgb_to_hsv(*given[0, :, *place].tolist())
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert found[0, :, *place].tolist() == pytest.approx(expected, abs=1e-5)


def test_blur__is_a_gaussian_reflected_at_the_borders() -> None:
    given, sigma, radius = pictures(3), np.array([0.1, 0.8, 2.0]), 6
    found = blur(given, torch.from_numpy(gaussian(sigma, radius)).float())
    for row, width in enumerate(sigma):
        weights = torch.from_numpy(np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2))
        weights = (weights / weights.sum()).float()
        padded = torch.nn.functional.pad(given[row][None], (radius,) * 4, mode="reflect")[0]
        kernel = (weights[:, None] * weights[None])[None, None]
        expected = torch.nn.functional.conv2d(padded[:, None], kernel)[:, 0]
        torch.testing.assert_close(found[row], expected)
    torch.testing.assert_close(found[0], given[0], rtol=0, atol=1e-6)


def test_off__is_the_pictures_themselves() -> None:
    batch = batch_of(0)
    assert augment(batch, Augment(), 0) is batch.pixels


def test_grayscale__of_every_row_has_no_colour() -> None:
    batch = batch_of(0)
    found = augment(batch, Augment(grayscale=1.0), 0)
    assert torch.equal(found[:, 0], found[:, 1])
    red, green, blue = batch.pixels.float().div(255).unbind(1)
    torch.testing.assert_close(found[:, 2], 0.299 * red + 0.587 * green + 0.114 * blue)


@given(
    cut=st.integers(1, 6),
    seed=st.integers(0, 5),
    shares=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 4),
)
def test_row__is_the_same_to_the_bit_in_any_batch(
    cut: int, seed: int, shares: tuple[float, float, float, float]
) -> None:
    names = ("color_jitter", "grayscale", "blur", "solarize")
    config = Augment(**dict(zip(names, shares)))
    batch = batch_of(seed, rows=6, student=3)
    whole = augment(batch, config, seed)
    parts = [augment(part, config, seed) for part in parts_of(batch, cut)]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    object.__setattr__(batch, "rows", batch.rows[order])
    object.__setattr__(batch, "pixels", batch.pixels[order])
    assert torch.equal(augment(batch, config, seed), whole[order])
    if whole.dtype != torch.uint8:
        assert whole.min() >= -1e-6
        assert whole.max() <= 1 + 1e-6


def large(rows: int, **changes: Any) -> Batch:
    batch = batch_of(0, rows=rows, student=1, grids=(1, 1))
    for name, value in changes.items():
        object.__setattr__(batch, name, value)
    return batch


@pytest.mark.parametrize(("what", "share"), [("blur", 0.5), ("solarize", 0.2), ("grayscale", 0.2)])
def test_draws__take_the_share_of_rows_asked_for(what: str, share: float) -> None:
    batch = batch_of(0, rows=600, student=3, grids=(1, 1))
    changed = augment(batch, Augment(**{what: share}), 0) != batch.pixels.float() / 255
    expected = share if what != "blur" else 0.45  # the narrowest change nothing in a float
    assert changed.flatten(1).any(1).float().mean().item() == pytest.approx(expected, abs=0.08)


def test_draws__depend_on_seed_epoch_and_row() -> None:
    batch = large(8)
    object.__setattr__(batch, "pixels", batch.pixels[:1].expand(8, -1, -1, -1))
    found = augment(batch, ALL, 0)
    assert not any(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(augment(batch, ALL, 0), found)
    assert not torch.equal(augment(batch, ALL, 1), found)
    assert not torch.equal(augment(large(8, pixels=batch.pixels, epoch=1), ALL, 0), found)


def test_jitter__leaves_a_fifth_of_the_rows() -> None:
    batch = large(2000)
    same = (augment(batch, Augment(color_jitter=0.4), 0) == batch.pixels.float() / 255).flatten(1)
    assert same.all(1).float().mean().item() == pytest.approx(1 - augmentation.JITTERED, abs=0.04)
