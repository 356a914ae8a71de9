"""What the stream hands to the training loop."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """What one teacher said of a batch, standardised, as it lies in the cache."""

    grid: int
    """Tokens per side."""
    tokens: Tensor
    """float16 [batch, grid x grid, patch_width]."""
    cls: Tensor | None
    """float16 [batch, cls_width]; None where the teacher has no CLS."""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of the order, joined by row: pictures and every teacher's targets."""

    rows: Tensor
    """int64 [batch]: plan rows."""
    pixels: Tensor
    """uint8 [batch, 3, side, side]: the stored view, before mean and standard deviation."""
    weight: Tensor
    """float32 [batch]: 0 for a row that is bad in any of the sets, whose targets are then 0."""
    targets: dict[str, Target]
    state: dict[str, int | str]
    """Of the stream once this batch has been trained on: what a checkpoint keeps."""

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            rows=self.rows,
            pixels=self.pixels.to(device, non_blocking=True),
            weight=self.weight.to(device, non_blocking=True),
            targets={
                name: Target(
                    grid=target.grid,
                    tokens=target.tokens.to(device, non_blocking=True),
                    cls=None if target.cls is None else target.cls.to(device, non_blocking=True),
                )
                for name, target in self.targets.items()
            },
            state=self.state,
        )
