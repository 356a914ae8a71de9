"""Pictures to show an encoder, and what to look for in what it says."""

import numpy as np
import torch
from torch import Tensor

from infra.models.encoder import Encoder
from tests.builders import photograph


def pictures(side: int, count: int = 2) -> Tensor:
    squares = [np.asarray(photograph(seed, side, side)) for seed in range(count)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def assert_row_major(encoder: Encoder, grid: int = 3) -> None:
    """Changing one patch of a picture changes most the token at row x grid + column."""
    side = encoder.patch_pixels
    picture = pictures(grid * side, 1)
    _, before = encoder(picture)
    for row in range(grid):
        for column in range(grid):
            changed = picture.clone()
            changed[..., row * side : (row + 1) * side, column * side : (column + 1) * side] += (
                torch.randn(side, side, generator=torch.Generator().manual_seed(0))
            )
            _, after = encoder(changed)
            moved = (after - before).norm(dim=-1)[0]
            assert int(moved.argmax()) == row * grid + column, (row, column)
