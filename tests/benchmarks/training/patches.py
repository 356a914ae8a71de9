"""A teacher that costs next to nothing: one random linear layer over each patch."""

import torch
from torch import Tensor, nn

from infra.models.encoder import Encoder

PATCH = 16


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embed(pixels).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens


def build(width: int = 1536) -> Encoder:
    return Encoder(
        model=Patches(width),
        patch_pixels=PATCH,
        patch_width=width,
        cls_width=width,
        cls_kind="mean",
        pixel_mean=(0.5, 0.5, 0.5),
        pixel_std=(0.5, 0.5, 0.5),
        native_pixels=256,
    )
