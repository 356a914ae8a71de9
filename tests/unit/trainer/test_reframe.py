"""A part of a stored view, in pictures and targets alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.train_config import Reframe
from tests.unit.trainer.learning import batch_of, learner_of, loss_of
from trainer.batch import Batch
from trainer.parts import parts_of
from trainer.reframe import frames, reframe, sample

pytestmark = pytest.mark.unit

BOTH = Reframe(flip=0.5, least_area=0.3)


def shown(maps: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """The same by torch, whose places go from -1 to 1."""
    side = maps.shape[-1]
    share = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = (
        2 * (torch.from_numpy(p[:, :1]) + share * torch.from_numpy(p[:, 1:] - p[:, :1])) - 1
        for p in (np.ascontiguousarray(rows), np.ascontiguousarray(columns))
    )
    grid = torch.stack([x[:, None].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    return F.grid_sample(maps, grid, mode="bicubic", padding_mode="border", align_corners=False)


def test_reframe__without_anything_asked_for_is_the_batch_itself() -> None:
    batch = batch_of(0)
    assert reframe(batch, Reframe(), 0) is batch


def test_reframe__mirrors_pictures_and_grids_to_the_bit() -> None:
    batch = batch_of(0)
    mirrored = reframe(batch, Reframe(flip=1.0), 0)
    assert torch.equal(mirrored.pixels, batch.pixels.flip(3))
    for name, target in batch.targets.items():
        square = target.tokens.float().unflatten(1, (target.grid, target.grid))
        assert torch.equal(mirrored.targets[name].tokens, square.flip(2).flatten(1, 2))
        assert mirrored.targets[name].cls is target.cls


@pytest.mark.parametrize("side", [1, 2, 5, 16])
def test_sample__equals_torchs_bicubic_sampling(side: int) -> None:
    maps = torch.randn(6, 3, side, side, dtype=torch.float64)
    rows, columns = frames(batch_of(1, rows=6), BOTH, 3)
    found = sample(maps, rows, columns, (2, 3))
    torch.testing.assert_close(found, shown(maps, rows, columns), atol=1e-6, rtol=1e-6)


def test_reframe__shows_the_same_place_of_picture_and_grid() -> None:
    """Both fall off evenly from left to right: their parts still agree, but for the margins."""
    batch = batch_of(0, student=8, grids=(8, 8))
    ramp = torch.linspace(0, 255, 128).round()
    pixels = ramp.byte().expand(4, 3, 128, 128).contiguous()
    told = ramp.reshape(8, 16).mean(1).expand(8, 8).reshape(64, 1)
    target = replace(batch.targets["a"], tokens=told.expand(4, 64, 6).contiguous())
    found = reframe(replace(batch, pixels=pixels, targets={"a": target}), BOTH, 1)
    seen = found.pixels[:, 0].float().unflatten(2, (8, 16)).mean((1, 3))
    for row, tokens in zip(seen, found.targets["a"].tokens[..., 0].unflatten(1, (8, 8))):
        torch.testing.assert_close(tokens[0, 2:-2], row[2:-2], atol=6.0, rtol=0)


def test_reframe__of_a_row_is_the_same_in_every_batch() -> None:
    batch = batch_of(2, rows=6)
    whole = reframe(batch, BOTH, 5)
    for part, expected in zip(parts_of(batch, 3), parts_of(whole, 3)):
        found = reframe(part, BOTH, 5)
        assert torch.equal(found.pixels, expected.pixels)
        for name, target in found.targets.items():
            assert torch.equal(target.tokens, expected.targets[name].tokens)


def test_frames__are_squares_inside_the_view_and_others_each_epoch() -> None:
    many = replace(batch_of(0), rows=torch.arange(2000))
    rows, columns = frames(many, BOTH, 0)
    height, width = rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0]
    np.testing.assert_allclose(height, np.abs(width))
    assert 0.3 <= (height**2).min() < 0.32 < 0.98 < (height**2).max() <= 1
    assert 0.45 < (width < 0).mean() < 0.55
    for part in (rows, columns):
        assert part.min() >= 0
        assert part.max() <= 1
    again = frames(replace(many, epoch=1), BOTH, 0)
    assert not np.array_equal(rows, again[0])


def test_step__learns_from_parts() -> None:
    def first_loss(batch: Batch, **changes: object) -> float:
        return loss_of(learner_of(**changes), 1, batch)

    batch = batch_of(3)
    asked = {"reframe": {"flip": 1.0}}
    assert first_loss(batch, **asked) == first_loss(reframe(batch, Reframe(flip=1.0), 0))
    assert first_loss(batch, **asked) != first_loss(batch)
