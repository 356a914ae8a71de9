"""timm's models, ViT-like and convolutional."""

import contextlib
import difflib
import inspect
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from infra.models.encoder import Encoder, Features
from infra.models.torchvision_shim import make_torchvision_importable
from infra.models.weights import (
    PRETRAINED,
    StateDict,
    is_location,
    load_weights,
    refuse_tag,
    seeded,
)
from schemas.errors import TeacherError
from schemas.names import ClsKind

_NO_GLOBAL_VECTOR = ("pe_lang", "pe_spatial")
"""Perception Encoders whose authors pool nothing: a class token is there, but nothing trained it
to say something of the picture."""


def build_timm(name: str, arguments: dict[str, Any], weights: str | None) -> Encoder:
    """A timm model without a classifier; CLIP-like ones keep their projection.

    Args:
        name: timm's name, with or without a tag.
        arguments: further arguments of the constructor; `num_classes: 0` reads a CLIP-like model
            before its projection.
        weights: `pretrained`, `random:SEED`, a path or URL, or None for the caller to load later.

    Raises:
        TeacherError: no such model, wrong arguments, or weights that do not fit.
    """
    refuse_tag(weights)
    make_torchvision_importable()
    import timm

    try:
        model = _create(timm, name, arguments, weights)
    # Constructors raise whatever their own checks do, and the hub whatever the network does.
    except Exception as error:
        hint = _hint(name, timm.list_models(), weights, error)
        raise TeacherError(f"timm model {name}: {error}{hint}") from None
    if weights is not None and is_location(weights):
        classifier = _config(model).get("classifier") or ()
        leave_out = (classifier,) if isinstance(classifier, str) else classifier
        load_weights(model, weights, leave_out, partial(_from_authors_names, model))
    try:
        return _describe(model)
    # Besides refusals: a few models lack what timm's others say of themselves.
    except (TeacherError, AttributeError, LookupError, TypeError) as error:
        raise TeacherError(f"timm model {name}: {error}") from None


def patch_pixels(model: nn.Module) -> int:
    """Pixels along one side of what one token of a timm model covers."""
    return int(model.feature_info[-1]["reduction"])  # type: ignore[index]


def patch_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """The patch tokens [batch, tokens, width] in what a timm model's `forward_features` gives."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, model.num_prefix_tokens :]


def _config(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return config


def _hint(name: str, known: list[str], weights: str | None, error: Exception) -> str:
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        return f"; did you mean {', '.join(near)}?" if near else ""
    if weights == PRETRAINED and isinstance(error, OSError):
        return "; give `weights` the path of a file that you have"
    return ""


def _create(timm: Any, name: str, arguments: dict[str, Any], weights: str | None) -> nn.Module:
    options = dict(arguments)
    with torch.device("meta"):  # no memory: only to see what kind of model it is
        sketch = timm.create_model(name, **{"num_classes": 0, **arguments})
    if not _is_clip(sketch):
        options.setdefault("num_classes", 0)
    if "dynamic_img_size" in inspect.signature(type(sketch).__init__).parameters:
        options.setdefault("dynamic_img_size", True)
    if weights == PRETRAINED and "quickgelu" in str(_config(sketch).get("notes")):
        other = name.replace("_clip_", "_clip_quickgelu_")
        raise TeacherError(f"its weights were trained with QuickGELU; use {other}")
    with seeded(weights):
        model: nn.Module = timm.create_model(name, pretrained=weights == PRETRAINED, **options)
    return model


def _is_clip(model: nn.Module) -> bool:
    """Whether timm's head of this tag is a projection into a space of texts, not a classifier."""
    config = _config(model)
    name = f"{config.get('architecture')}.{config.get('tag')}"
    projects = ("clip" in name or "pe_core" in name) and "_ft_in" not in name
    return projects and int(config["num_classes"]) > 0


def _describe(model: nn.Module) -> Encoder:
    config = _config(model)
    kind = _cls_kind(model)
    widths = {"none": None, "class_token": model.num_features, "projected": model.num_classes}
    width = widths.get(kind, model.head_hidden_size)
    return Encoder(
        model=model,
        patch_pixels=patch_pixels(model),
        patch_width=int(model.num_features),  # type: ignore[arg-type]
        cls_width=width if width is None else int(width),  # type: ignore[arg-type]
        cls_kind=kind,
        pixel_mean=config["mean"],
        pixel_std=config["std"],
        native_pixels=int(config["input_size"][-1]),
        read=partial(_read, model, kind),
    )


def _cls_kind(model: nn.Module) -> ClsKind:
    architecture = str(_config(model).get("architecture"))
    if any(family in architecture for family in _NO_GLOBAL_VECTOR):
        return "none"
    if _is_clip(model) and model.num_classes:
        return "projected"
    poolings = (getattr(model, part, None) or nn.Identity() for part in ("attn_pool", "head"))
    if any("AttentionPool" in type(layer).__name__ for top in poolings for layer in top.modules()):
        return "attention_pool"
    has_class_token = getattr(model, "has_class_token", None)
    if has_class_token is None:
        has_class_token = getattr(model, "cls_token", None) is not None
    # A norm after pooling says that the mean was trained; the class token is then never normed.
    if has_class_token and isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity):
        return "class_token"
    return "mean"


def _read(model: nn.Module, kind: ClsKind, pixels: Tensor) -> Features:
    features = model.forward_features(pixels)  # type: ignore[operator]
    patches = patch_tokens(model, features)
    if kind == "none":
        return None, patches
    if kind == "class_token":
        return features[:, 0], patches
    cls = model.forward_head(features, pre_logits=kind != "projected")  # type: ignore[operator]
    return cls, patches


def _from_authors_names(model: nn.Module, state: StateDict) -> StateDict:
    """Tensors as a model's authors name them, by timm's own converter for its class."""
    module = sys.modules[type(model).__module__]
    rename = getattr(module, "checkpoint_filter_fn", None)
    # For RADIO's fixed-size models timm sets the converter's options where we cannot see them.
    is_radio = "radio" in str(_config(model).get("architecture"))
    if rename is None or (is_radio and type(model).__name__ == "VisionTransformer"):
        return state
    with contextlib.redirect_stdout(None):  # it prints what it skips
        renamed: StateDict = rename(dict(state), model)
    for name, value in state.items():
        block = name.removesuffix("qkv.bias")
        if block != name and value.any() and not {name, f"{block}q_bias"} & renamed.keys():
            raise TeacherError(f"{name} is not zero, and the model has none; use its _qkvb variant")
    return renamed
