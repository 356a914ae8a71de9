"""EUPE's own names for the tensors of its students, which here are timm's models.

What EUPE's definitions hold and timm's do not is added (facebookresearch/EUPE, `eupe/models`). A
file without it loads there with a printed line at most, and gives NaN or other features.
"""

import re

import torch
from torch import Tensor, nn

HUB_ENTRIES = {
    "vit_tiny_patch16_dinov3_qkvb": "eupe_vitt16",
    "vit_small_patch16_dinov3_qkvb": "eupe_vits16",
    "vit_base_patch16_dinov3_qkvb": "eupe_vitb16",
    "convnext_tiny": "eupe_convnext_tiny",
    "convnext_small": "eupe_convnext_small",
    "convnext_base": "eupe_convnext_base",
}
"""What EUPE's `hubconf.py` calls each of timm's architectures."""

_VIT_LEAVES = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}

_CONVNEXT_PARTS = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"^head\.norm\.", "norm."),
)


def eupe_state(model: nn.Module) -> dict[str, Tensor]:
    """A student's tensors under EUPE's names, none of which shares memory with another.

    Args:
        model: of an architecture in HUB_ENTRIES. Of another the names mean nothing.

    Returns:
        Flat, in the model's own type: 188 tensors of a ViT of 12 blocks, 182 of ConvNeXt-T.
    """
    state: dict[str, Tensor] = model.state_dict()
    if "stem.0.weight" in state:
        return _convnext(state)
    named = _vit(state)
    for name, buffer in model.named_buffers():
        if name == "rope.periods":  # no part of timm's state: it computes them, EUPE loads them
            named["rope_embed.periods"] = buffer
    return named


def _vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in state.items():
        leaf = name.rpartition(".")[2]
        stem = name.removesuffix(leaf)
        if leaf == "q_bias":
            # EUPE multiplies the bias by a mask that keeps that of the keys at zero, and that is
            # NaN until it is loaded.
            zero, one = torch.zeros_like(tensor), torch.ones_like(tensor)
            named[f"{stem}qkv.bias"] = torch.cat([tensor, zero, state[f"{stem}v_bias"]])
            named[f"{stem}qkv.bias_mask"] = torch.cat([one, zero, one])
        elif leaf != "v_bias":
            named[stem + _VIT_LEAVES.get(leaf, leaf)] = tensor
        if name == "cls_token":
            # Added to the class token times zero: left as memory was, it may be NaN.
            named["mask_token"] = torch.zeros_like(tensor[0])
    return named


def _convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in state.items():
        for timms, eupes in _CONVNEXT_PARTS:
            name = re.sub(timms, eupes, name)
        named[name] = tensor
    # The final norm stands in EUPE's model a second time, in the list of every stage's.
    last = {f"norms.3.{part}": named[f"norm.{part}"].clone() for part in ("weight", "bias")}
    return named | last
