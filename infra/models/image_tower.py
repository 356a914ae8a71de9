"""How the image side of each of open_clip's kinds of models is read."""

import inspect
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from infra.models.encoder import Encoder, Features
from infra.models.timm_encoder import patch_pixels, patch_tokens
from schemas.errors import TeacherError

PREFIX = "visual."
"""Of the names of an image side's tensors in a whole model."""
_POSITIONS = f"{PREFIX}positional_embedding"
_RESNET_STRIDE = 32


class ImageTower(nn.Module):
    """The image side of a CLIP; its tensors have the names that they have in a whole one."""

    def __init__(self, visual: nn.Module, read: Callable[[Any, Tensor], Features]) -> None:
        super().__init__()
        self.visual = visual
        self._read = read

    def forward(self, pixels: Tensor) -> Features:
        """Embedding before it is brought to length 1, and patch tokens; see Encoder."""
        return self._read(self.visual, pixels)


def describe(visual: nn.Module, embedding: int) -> Encoder:
    """An image side as an encoder.

    Args:
        visual: `visual` of one of open_clip's models.
        embedding: width of what it compares with texts.

    Raises:
        TeacherError: it is of a kind that cannot be read yet.
    """
    from open_clip.model import ModifiedResNet, TimmModel, VisionTransformer

    config: dict[str, Any] = visual.preprocess_cfg  # type: ignore[assignment]
    size = config["size"]
    common: dict[str, Any] = {
        "cls_width": embedding,
        "cls_kind": "projected",
        "pixel_mean": config["mean"],
        "pixel_std": config["std"],
        "native_pixels": size if isinstance(size, int) else size[-1],
    }
    if isinstance(visual, VisionTransformer):
        tower = ImageTower(visual, _read_transformer)
        return Encoder(
            model=tower,
            patch_pixels=visual.patch_size[-1],
            patch_width=visual.conv1.out_channels,
            read=partial(_read_at_any_size, tower),
            **common,
        )
    if isinstance(visual, TimmModel):
        pixels, width = patch_pixels(visual.trunk), int(visual.trunk.num_features)
        visual.trunk = _for_any_size(visual.trunk)
        tower = ImageTower(visual, _read_timm)
        return Encoder(model=tower, patch_pixels=pixels, patch_width=width, **common)
    if isinstance(visual, ModifiedResNet):
        return Encoder(
            model=ImageTower(visual, _read_resnet),
            patch_pixels=_RESNET_STRIDE,
            patch_width=visual.attnpool.q_proj.in_features,
            # open_clip resamples no positions for its pooling; timm's resnet50_clip does.
            fixed_size=True,
            **common,
        )
    raise TeacherError(f"its image side is a {type(visual).__name__}, which cannot be read yet")


def _read_transformer(visual: Any, pixels: Tensor) -> Features:
    is_normed_before_pooling = visual.attn_pool is None and not visual.final_ln_after_pool
    found = visual.forward_intermediates(
        pixels, indices=1, normalize_intermediates=is_normed_before_pooling, output_fmt="NLC"
    )
    return found["image_features"], found["image_intermediates"][-1]


def _read_at_any_size(tower: ImageTower, pixels: Tensor) -> Features:
    from open_clip.model import resize_pos_embed

    visual: Any = tower.visual
    grid = tuple(side // patch for side, patch in zip(pixels.shape[-2:], visual.patch_size))
    # open_clip resamples in a state dict, for the model that will load it.
    state = {_POSITIONS: visual.positional_embedding}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    features: Features = functional_call(tower, state, (pixels,))
    return features


def _read_timm(visual: Any, pixels: Tensor) -> Features:
    features = visual.trunk.forward_features(pixels)
    embedding = visual.head(visual.trunk.forward_head(features))
    return embedding, patch_tokens(visual.trunk, features)


def _for_any_size(trunk: Any) -> nn.Module:
    """The same trunk, but one whose positions follow the size of the pictures.

    timm decides that when a model is made, and open_clip does not ask for it.
    """
    takes = inspect.signature(type(trunk).__init__).parameters
    kept: nn.Module = trunk
    if (
        getattr(trunk, "dynamic_img_size", False)
        or not {"dynamic_img_size", "depth"} <= takes.keys()
    ):
        return kept
    import timm

    # Without blocks it costs nothing; they are then the old ones, like every other tensor.
    shell: nn.Module = timm.create_model(
        trunk.pretrained_cfg["architecture"],
        depth=0,
        num_classes=trunk.num_classes,
        global_pool=trunk.global_pool,
        img_size=trunk.patch_embed.img_size,
        dynamic_img_size=True,
    )
    shell.blocks = trunk.blocks
    shell.load_state_dict(trunk.state_dict(), assign=True)
    return shell


def _read_resnet(visual: Any, pixels: Tensor) -> Features:
    found = visual.forward_intermediates(pixels, indices=1)
    return found["image_features"], found["image_intermediates"][-1].flatten(2).transpose(1, 2)
