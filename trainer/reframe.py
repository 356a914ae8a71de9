"""Another part of a stored view, or its mirror image: the student sees that part at the view's
size, and the teachers' grids are sampled where it lies.

An approximation, and so off by default: what a teacher would say of the part by itself is not what
it said there of the whole (README, "Figures"). The CLS stays that of the whole view. Both are
sampled bicubically, four taps along each side in a fixed order: a row is a function of (seed,
epoch, row) to the bit, whatever batch it is in.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.train_config import Reframe
from trainer.batch import Batch, Target
from trainer.draws import Draws, on_device
from trainer.resize import cubic

Places = npt.NDArray[np.float64]


def reframe(batch: Batch, config: Reframe, seed: int) -> Batch:
    """The batch as its rows' parts show it; the batch itself where nothing is asked for."""
    if not config.flip and config.least_area == 1:
        return batch
    rows, columns = frames(batch, config, seed)
    targets = {name: _sampled(target, rows, columns) for name, target in batch.targets.items()}
    pixels = sample(batch.pixels.float(), rows, columns, (2, 3))
    whole = pixels.round().clamp(0, 255).to(torch.uint8)
    return replace(batch, pixels=whole, targets=targets)


def frames(batch: Batch, config: Reframe, seed: int) -> tuple[Places, Places]:
    """Where each row's part begins and ends along rows and columns, in shares of the view's side:
    twice [rows, 2]. A mirror image ends before it begins."""
    draws = Draws(batch, "reframe", seed)
    size = np.sqrt(config.least_area + (1 - config.least_area) * draws.of("area"))
    top, left = ((1 - size) * draws.of(side) for side in ("top", "left"))
    columns = np.stack([left, left + size], axis=1)
    flipped = draws.of("flip") < config.flip
    columns[flipped] = columns[flipped, ::-1]
    return np.stack([top, top + size], axis=1), columns


def sample(values: Tensor, rows: Places, columns: Places, dims: tuple[int, int]) -> Tensor:
    """The parts of square maps at the maps' own size; `dims` are those of rows and columns."""
    for part, dim in zip((rows, columns), dims):
        values = _along(values, part, dim)
    return values


def _sampled(target: Target, rows: Places, columns: Places) -> Target:
    grid = target.grid
    square = target.standardised_tokens().unflatten(1, (grid, grid))  # type: ignore[no-untyped-call]
    tokens = sample(square, rows, columns, (1, 2)).flatten(1, 2)
    return replace(target, tokens=tokens, codec=None)


def _along(values: Tensor, part: Places, dim: int) -> Tensor:
    side = values.shape[dim]
    share = (np.arange(side) + 0.5) / side
    place = (part[:, :1] + share * (part[:, 1:] - part[:, :1])) * side - 0.5
    left = np.floor(place)
    shape = [len(values), *(1,) * (values.ndim - 1)]
    shape[dim] = side
    result = torch.zeros_like(values)
    for tap in range(-1, 3):
        index = np.clip(left + tap, 0, side - 1).astype(np.int64)
        weight = cubic(torch.from_numpy(np.abs(place - left - tap))).numpy()
        here = on_device(index.reshape(shape), values.device)
        result = result + on_device(weight.reshape(shape), values.device) * values.take_along_dim(
            here, dim
        )
    return result
