"""timm's models, ViT-like and convolutional, behind one face."""

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from infra.models.torchvision_shim import make_torchvision_importable
from infra.models.weights import load_weights
from schemas.errors import TeacherError
from schemas.names import ClsKind

RANDOM = "random:"


@dataclass(frozen=True)
class Encoder:
    """A timm model and how to read it."""

    model: nn.Module
    patch_pixels: int
    """Side of what one token covers; a convolutional network's stride."""
    patch_width: int
    cls_width: int
    cls_kind: ClsKind
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features of normalised pictures.

        Args:
            pixels: [batch, 3, side, side], side a multiple of `patch_pixels`.

        Returns:
            CLS [batch, cls_width] and patch tokens [batch, tokens, patch_width], the latter in
            row-major order, class and register tokens dropped; as timm's `forward_features` gives
            them, which applies a final norm where the model has one before pooling.
        """
        features = self.model.forward_features(pixels)  # type: ignore[operator]
        if features.ndim == 4:
            patches = features.flatten(2).transpose(1, 2)
        else:
            patches = features[:, self.model.num_prefix_tokens :]
        if self.cls_kind == "class_token":
            return features[:, 0], patches
        return self.model.forward_head(features, pre_logits=True), patches  # type: ignore[operator]


def build_timm(name: str, arguments: dict[str, Any], weights: str | None) -> Encoder:
    """Create a timm model in evaluation mode, without a classifier.

    Args:
        name: timm's name, with or without a tag.
        arguments: further arguments of the constructor.
        weights: `pretrained`, `random:SEED`, a path or URL, or None for the caller to load later.

    Raises:
        TeacherError: no such model, wrong arguments, or weights that do not fit.
    """
    make_torchvision_importable()
    import timm

    try:
        model = _create(timm, name, arguments, weights)
    # Constructors raise whatever their own checks do, and the hub whatever the network does.
    except Exception as error:
        hint = _hint(name, timm.list_models(), weights, error)
        raise TeacherError(f"timm model {name}: {error}{hint}") from None
    if weights is not None and weights != "pretrained" and not weights.startswith(RANDOM):
        classifier = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
        load_weights(model, weights, (classifier,) if isinstance(classifier, str) else classifier)
    return _describe(name, model.eval().requires_grad_(False))


def _hint(name: str, known: list[str], weights: str | None, error: Exception) -> str:
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3)
        return f"; did you mean {', '.join(near)}?" if near else ""
    if weights == "pretrained" and isinstance(error, OSError):
        return "; give `weights` the path of a file that you have"
    return ""


def _create(timm: Any, name: str, arguments: dict[str, Any], weights: str | None) -> nn.Module:
    seed = int(weights.removeprefix(RANDOM)) if weights and weights.startswith(RANDOM) else 0
    options = {"num_classes": 0, **arguments}
    with torch.device("meta"):  # no memory: only to see which arguments the class takes
        kind = type(timm.create_model(name, **options))
    takes_any_side = "dynamic_img_size" in inspect.signature(kind.__init__).parameters
    if takes_any_side and "dynamic_img_size" not in arguments:
        options["dynamic_img_size"] = True
    threads = torch.get_num_threads()
    # Random values are filled in by vectors and remainders, cut where the threads are.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pretrained = weights == "pretrained"
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    finally:
        torch.set_num_threads(threads)
    return model


def _describe(name: str, model: nn.Module) -> Encoder:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    patch_embed = getattr(model, "patch_embed", None)
    if patch_embed is not None and hasattr(model, "num_prefix_tokens"):
        patch_pixels = int(patch_embed.patch_size[0])
    else:
        patch_pixels = int(model.feature_info[-1]["reduction"])  # type: ignore[index]
    kind: ClsKind = "mean"
    if getattr(model, "attn_pool", None) is not None:
        kind = "attention_pool"
    elif getattr(model, "cls_token", None) is not None:
        kind = "class_token"
    encoder = Encoder(
        model=model,
        patch_pixels=patch_pixels,
        patch_width=int(model.num_features),  # type: ignore[arg-type]
        cls_width=0,
        cls_kind=kind,
        pixel_mean=_three(config["mean"]),
        pixel_std=_three(config["std"]),
    )
    side = patch_pixels * max(1, 64 // patch_pixels)
    try:
        with torch.inference_mode():
            cls, patches = encoder(torch.zeros(1, 3, side, side))
    # Models of one fixed size check it each in their own way.
    except Exception as error:
        raise TeacherError(f"timm model {name}: cannot see {side} px pictures: {error}") from None
    if patches.shape[1:] != ((side // patch_pixels) ** 2, encoder.patch_width):
        raise TeacherError(
            f"timm model {name}: gives tokens of shape {tuple(patches.shape[1:])} for {side} px, "
            f"not a square grid of {patch_pixels} px patches of width {encoder.patch_width}"
        )
    return replace(encoder, cls_width=cls.shape[1])


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    """Per channel, as floats: a whole number would be written otherwise, and hashed otherwise."""
    red, green, blue = map(float, values)
    return red, green, blue
