"""What every vision model looks like from here: pixels in, a global vector and patch tokens out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import get_args

import torch
from torch import Tensor, nn

from schemas.errors import TeacherError
from schemas.names import ClsKind

Features = tuple[Tensor | None, Tensor]
"""CLS [batch, cls_width], or None, and patch tokens [batch, tokens, patch_width]."""

_PROBE_PIXELS = 64


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model and how to read it; frozen, in evaluation mode, and tried once on a small picture.

    Raises:
        TeacherError: what the model gives is not what is stated here.
    """

    model: nn.Module
    patch_pixels: int
    """Side of what one token covers; a convolutional network's stride."""
    patch_width: int
    cls_width: int | None
    """None where there is no global vector, and only there."""
    cls_kind: ClsKind
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    native_pixels: int
    """Side of the pictures it was made for."""
    fixed_size: bool = False
    """It sees pictures of `native_pixels` alone."""
    read: Callable[[Tensor], Features] | None = None
    """What calling the encoder does, where that is more than calling the model."""

    def __post_init__(self) -> None:
        # Whole numbers would be written otherwise, and hashed otherwise.
        object.__setattr__(self, "pixel_mean", _three(self.pixel_mean))
        object.__setattr__(self, "pixel_std", _three(self.pixel_std))
        if self.cls_kind not in get_args(ClsKind):
            known = ", ".join(get_args(ClsKind))
            raise TeacherError(f"cls_kind {self.cls_kind!r} is none of {known}")
        if (self.cls_width is None) != (self.cls_kind == "none"):
            raise TeacherError(
                f"cls_kind {self.cls_kind!r} and cls_width {self.cls_width}: `none` goes with None"
            )
        self.model.eval().requires_grad_(False)
        self._probe()

    def __call__(self, pixels: Tensor) -> Features:
        """Features of normalised pictures.

        Args:
            pixels: [batch, 3, side, side], side a multiple of `patch_pixels`.

        Returns:
            CLS [batch, cls_width], or None where `cls_kind` is `none`, and patch tokens
            [batch, tokens, patch_width] in row-major order, class and register tokens dropped;
            after the model's final norm where it has one before pooling.

        Raises:
            TeacherError: the model sees one size only, and this is another.
        """
        self.refuse_other_size(pixels.shape[-1])
        features: Features = (self.read or self.model)(pixels)
        return features

    def refuse_other_size(self, side: int) -> None:
        """Raises TeacherError if the model sees one size only, and `side` is another."""
        if self.fixed_size and side != self.native_pixels:
            grid = self.native_pixels // self.patch_pixels
            raise TeacherError(
                f"sees pictures of {self.native_pixels} px only, not of {side} px; "
                f"give this teacher `grids: [{grid}]`"
            )

    def _probe(self) -> None:
        side = self.native_pixels
        if not self.fixed_size:
            side = self.patch_pixels * max(1, _PROBE_PIXELS // self.patch_pixels)
        tensors = chain(self.model.parameters(), self.model.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        try:
            with torch.inference_mode():
                cls, patches = self(torch.zeros(1, 3, side, side, device=device))
        # Models of one fixed size check it each in their own way.
        except Exception as error:
            raise TeacherError(f"cannot see {side} px pictures: {error}") from None
        if patches.shape != (1, (side // self.patch_pixels) ** 2, self.patch_width):
            raise TeacherError(
                f"gives tokens of shape {tuple(patches.shape[1:])} for {side} px, "
                f"not a square grid of {self.patch_pixels} px patches of width {self.patch_width}"
            )
        found = None if cls is None else tuple(cls.shape[1:])
        if found != (None if self.cls_width is None else (self.cls_width,)):
            raise TeacherError(f"gives a CLS of shape {found}, not of width {self.cls_width}")


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
