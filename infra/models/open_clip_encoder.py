"""The image side of open_clip's models; what they compare with texts stands in as the CLS."""

import difflib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from infra.models.encoder import Encoder, Features
from infra.models.timm_encoder import patch_pixels, patch_tokens
from infra.models.torchvision_shim import make_torchvision_importable
from infra.models.weights import (
    PRETRAINED,
    TAGGED,
    StateDict,
    is_location,
    load_weights,
    seeded,
)
from schemas.errors import TeacherError

_PREFIX = "visual."
_POSITIONS = f"{_PREFIX}positional_embedding"
_NO_TEXTS = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The smallest text side there is, where weights of a real one are not needed."""
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


def build_open_clip(name: str, arguments: dict[str, Any], weights: str) -> Encoder:
    """The image side of an open_clip model; its text side is dropped.

    Args:
        name: open_clip's name.
        arguments: further arguments of `open_clip.create_model`.
        weights: `pretrained` where there is one set of weights, `pretrained:TAG`, `random:SEED`,
            or a path or URL of a whole model's state dict or of its image side's.

    Raises:
        TeacherError: no such model or tag, wrong arguments, or weights that do not fit.
    """
    make_torchvision_importable()
    import open_clip

    try:
        visual, embedding = _create(open_clip, name, arguments, weights)
        encoder = _describe(visual, embedding)
    # Constructors raise whatever their own checks do, and the hub whatever the network does.
    except Exception as error:
        hint = _hint(name, open_clip.list_models(), error)
        raise TeacherError(f"open_clip model {name}: {error}{hint}") from None
    if is_location(weights):
        load_weights(encoder.model, weights, convert=_image_side)
    return encoder


def _hint(name: str, known: list[str], error: Exception) -> str:
    if "download" in str(error):
        return "; give `weights` the path of a file that you have"
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(near)}?" if near and name not in near else ""


def _create(
    open_clip: Any, name: str, arguments: dict[str, Any], weights: str
) -> tuple[nn.Module, int]:
    """The image side, and the width of its embedding."""
    is_folder_or_hub = ":" in name  # such a name brings weights and normalisation of its own
    if not is_folder_or_hub and name.replace("/", "-") not in open_clip.list_models():
        raise TeacherError("open_clip has no such model")
    pretrained = weights.startswith(PRETRAINED) and not is_location(weights)
    options: dict[str, Any] = dict(arguments)
    tag = None
    if pretrained and not is_folder_or_hub:
        tag = _tag(open_clip, name, arguments, weights)
    if not pretrained:
        options.setdefault("text_cfg", _NO_TEXTS)
        if not is_folder_or_hub and "force_preprocess_cfg" not in options:
            options["force_preprocess_cfg"] = _normalisation(open_clip, name, weights)
    with seeded(weights), _without_its_warnings():
        clip = open_clip.create_model(
            name,
            pretrained=tag,
            load_weights=pretrained,
            require_pretrained=pretrained,
            weights_only=True,
            device=torch.get_default_device(),
            **options,
        )
    config = {**open_clip.get_model_config(name), **options}
    return clip.visual, int(config["embed_dim"])


def _tag(open_clip: Any, name: str, arguments: dict[str, Any], weights: str) -> str:
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    tag = weights.removeprefix(TAGGED)
    if weights == PRETRAINED and len(tags) == 1:
        tag = tags[0]
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise TeacherError(f"weights {weights!r}: give one of its tags as {TAGGED}TAG: {known}")
    config = open_clip.get_model_config(name)
    asked = arguments.get("force_quick_gelu") or {**config, **arguments}.get("quick_gelu")
    is_transformer = isinstance(config["vision_cfg"].get("layers"), int)
    if is_transformer and _of_tag(open_clip, name, tag).get("quick_gelu") and not asked:
        raise TeacherError(
            f"the weights {tag} were trained with QuickGELU; use {name}-quickgelu, or the "
            "arguments {force_quick_gelu: true}"
        )
    return tag


def _of_tag(open_clip: Any, name: str, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = open_clip.pretrained.get_pretrained_cfg(name, tag)
    return found


def _normalisation(open_clip: Any, name: str, weights: str) -> dict[str, Any]:
    """Mean and std of pixels, as all published weights of a model have them."""
    seen: list[dict[str, Any]] = []
    for tag in open_clip.list_pretrained_tags_by_model(name):
        config = _of_tag(open_clip, name, tag)
        one: dict[str, Any] = {key: config[key] for key in ("mean", "std") if key in config}
        if one not in seen:
            seen.append(one)
    if len(seen) > 1 and is_location(weights):
        raise TeacherError(
            f"its published weights differ in how pixels are normalised: {seen}; give those of "
            f"{weights} as the arguments {{force_preprocess_cfg: {{mean: [...], std: [...]}}}}"
        )
    return seen[0] if seen else {}


@contextmanager
def _without_its_warnings() -> Iterator[None]:
    """Without "no pretrained weights loaded", which is true and then loaded from a path."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _describe(visual: nn.Module, embedding: int) -> Encoder:
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


def _image_side(state: StateDict) -> StateDict:
    """The image side's tensors of a whole model's, or those of an image side alone."""
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    inside = {name: tensor for name, tensor in named.items() if name.startswith(_PREFIX)}
    return inside or {f"{_PREFIX}{name}": tensor for name, tensor in named.items()}
