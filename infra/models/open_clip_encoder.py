"""The image side of open_clip's models; what they compare with texts stands in as the CLS."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from infra.models.encoder import Encoder
from infra.models.image_tower import PREFIX, describe
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

_NO_TEXTS = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""The smallest text side there is, where weights of a real one are not needed."""


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
        encoder = describe(visual, embedding)
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


def _image_side(state: StateDict) -> StateDict:
    """The image side's tensors of a whole model's, or those of an image side alone."""
    named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    inside = {name: tensor for name, tensor in named.items() if name.startswith(PREFIX)}
    return inside or {f"{PREFIX}{name}": tensor for name, tensor in named.items()}
