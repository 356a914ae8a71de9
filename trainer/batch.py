"""What the stream hands to the training loop."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from infra.codec.codec import TokenCodec

State = dict[str, Any]
"""Where a stream stands: plain JSON, below a kilobyte."""


@dataclass(frozen=True)
class Affine:
    """To the statistics that the run standardises by, where a cache has others: x scale + shift."""

    scale: Tensor
    """float32 [channels]."""
    shift: Tensor
    """float32 [channels]."""

    def to(self, device: str) -> "Affine":
        return Affine(_moved(self.scale, device), _moved(self.shift, device))


@dataclass(frozen=True)
class Target:
    """What one teacher said of a batch, standardised, as it lies in the cache."""

    grid: int
    """Tokens per side."""
    tokens: Tensor
    """[batch, height, width] of the codec's form: codes, decoded where they are learned from."""
    cls: Tensor | None
    """float16 [batch, cls_width]; None where the teacher has no CLS."""
    codec: TokenCodec | None
    """None where the tokens are float and not coded."""
    tokens_affine: Affine | None = None
    cls_affine: Affine | None = None

    def standardised_tokens(self) -> Tensor:
        """float32 [batch, grid x grid, patch_width], decoded on the device that they are on."""
        if self.codec is None:
            return self.tokens.float()
        return self.codec.decode(self.tokens, self.grid**2)

    def to(self, device: str) -> "Target":
        return Target(
            grid=self.grid,
            tokens=_moved(self.tokens, device),
            cls=None if self.cls is None else _moved(self.cls, device),
            codec=self.codec,
            tokens_affine=self.tokens_affine and self.tokens_affine.to(device),
            cls_affine=self.cls_affine and self.cls_affine.to(device),
        )


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of the order, joined by row: pictures and every teacher's targets."""

    rows: Tensor
    """int64 [batch]: plan rows; -1 for the one row of a rank that has no part in a short batch."""
    pixels: Tensor
    """uint8 [batch, 3, side, side]: the stored view, before mean and standard deviation. The side
    is 16 x the student grid that was drawn for this batch."""
    weight: Tensor
    """float32 [batch]: 0 for a row that is bad in any of the sets, whose targets are then 0."""
    targets: dict[str, Target]
    epoch: int
    """That these rows belong to."""
    total: int
    """Rows of the batch on all ranks."""
    state: State
    """Of the stream once this batch has been trained on: what a checkpoint keeps."""

    def to(self, device: str) -> "Batch":
        """The same batch on another device; the copies go on beside the computation."""
        return replace(
            self,
            pixels=_moved(self.pixels, device),
            weight=_moved(self.weight, device),
            targets={name: target.to(device) for name, target in self.targets.items()},
        )


def _moved(tensor: Tensor, device: str) -> Tensor:
    return tensor.to(device, non_blocking=True)
