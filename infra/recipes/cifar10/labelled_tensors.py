"""A labelled Parquet file as two tensors."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from infra.pixels.decode import decode
from infra.pixels.views import Pixels, box, render


def load(file: Path, side: int) -> tuple[Tensor, Tensor]:
    """Whole pictures, as the extractor shows view 0, and their classes.

    Returns:
        uint8 [pictures, 3, side, side], and int64 [pictures].
    """

    def square(data: bytes) -> Pixels:
        image = decode(data)
        return render(image, box(None, *image.size, (1.0, 1.0), flip=False), side)

    table = pq.read_table(file, columns=["image", "label"])
    with ThreadPoolExecutor() as pool:
        squares = np.stack(list(pool.map(square, table["image"].to_pylist())))
    labels = torch.tensor(table["label"].to_pylist(), dtype=torch.int64)
    return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous(), labels
