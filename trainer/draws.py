"""What is drawn for the rows of a batch: keyed hashes of (seed, epoch, row), so that a row's draws
are the same whatever batch it is in."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.keyed_hash import mix, subkey
from trainer.batch import Batch

Numbers = npt.NDArray[np.float64]


class Draws:
    """Numbers in [0, 1) of each row, made on the host."""

    def __init__(self, batch: Batch, purpose: str, seed: int) -> None:
        self._rows = batch.rows.numpy()
        self._purpose, self._seed, self._epoch = purpose.encode(), seed, batch.epoch

    def of(self, what: str) -> Numbers:
        """One draw a row, for one purpose."""
        words = mix(self._rows, subkey(self._purpose, self._seed, self._epoch, what))
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def on_device(values: Numbers | npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """float32 or int64, without waiting for the device."""
    tensor = torch.from_numpy(values)
    if values.dtype == np.float64:
        tensor = tensor.float()
    # From memory that is not pinned, a copy would wait for the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
