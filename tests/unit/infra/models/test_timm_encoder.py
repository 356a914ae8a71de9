from typing import Any

import pytest
import torch
from torch import nn

from infra.models.timm_encoder import build_timm
from schemas.errors import TeacherError
from tests.unit.infra.models.looks import assert_row_major, pictures

pytestmark = pytest.mark.unit

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
CASES: dict[str, tuple[str, dict[str, Any], int, int, int | None, str]] = {
    "class token": ("vit_tiny_patch16_224", SMALL, 16, 48, 48, "class_token"),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL, 14, 48, 48, "class_token"),
    "dinov3": ("vit_small_patch16_dinov3", SMALL, 16, 48, 48, "class_token"),
    "eupe": ("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", SMALL, 16, 48, 48, "class_token"),
    "pe core": ("vit_pe_core_base_patch16_224.fb", SMALL, 16, 48, 1024, "projected"),
    "pe lang": ("vit_pe_lang_large_patch14_448.fb", SMALL, 14, 48, None, "none"),
    "pe spatial": ("vit_pe_spatial_base_patch16_512.fb", SMALL, 16, 48, None, "none"),
    "siglip": ("vit_base_patch16_siglip_224.v2_webli", SMALL, 16, 48, 48, "attention_pool"),
    "siglip gap": ("vit_base_patch16_siglip_gap_224.v2_webli", SMALL, 16, 48, 48, "mean"),
    "siglip naflex": ("naflexvit_base_patch16_siglip", SMALL, 16, 48, 48, "attention_pool"),
    "clip": ("vit_base_patch16_clip_224.laion2b", SMALL, 16, 48, 512, "projected"),
    "clip finetuned": ("vit_base_patch16_clip_224", SMALL, 16, 48, 48, "class_token"),
    "radio": ("vit_base_patch16_radio_v3.c_radio", SMALL, 16, 48, 48, "class_token"),
    "radio naflex": ("naflexvit_huge_patch16_radio_v4", SMALL, 16, 48, 48, "class_token"),
    "tips": ("vit_base_patch14_reg1_tipsv2", SMALL, 14, 48, 48, "class_token"),
    "norm after pooling": ("eva02_base_patch14_224", SMALL, 14, 48, 48, "mean"),
    "resnet": ("resnet18", {}, 32, 512, 512, "mean"),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1)}, 32, 320, 320, "mean"),
    "convnext clip": (
        "convnext_base.clip_laion2b",
        {"depths": (1,) * 4},
        32,
        1024,
        640,
        "projected",
    ),
}
REGISTERS = {"registers": 4, "dinov3": 4, "eupe": 4, "radio": 7, "radio naflex": 9, "tips": 1}


@pytest.mark.parametrize("case", CASES)
def test_encoder__says_its_widths_and_gives_timms_own_features(case: str) -> None:
    name, arguments, patch, patch_width, cls_width, kind = CASES[case]
    encoder = build_timm(name, arguments, "random:0")
    told = (encoder.patch_pixels, encoder.patch_width, encoder.cls_width, encoder.cls_kind)
    assert told == (patch, patch_width, cls_width, kind)
    model = encoder.model
    if case in REGISTERS:
        assert model.num_prefix_tokens == 1 + REGISTERS[case]
    for grid in (2, 3, 224 // patch):
        pixels = pictures(grid * patch)
        with torch.inference_mode():
            cls, patches = encoder(pixels)
            expected = model.forward_features(pixels)  # type: ignore[operator]
            pooled = model.forward_head(expected, pre_logits=True)  # type: ignore[operator]
            final = model(pixels)
        assert patches.shape == (2, grid * grid, patch_width)
        if expected.ndim == 4:
            rows = [expected[:, :, y, x] for y in range(grid) for x in range(grid)]
            assert torch.equal(patches, torch.stack(rows, dim=1))
        else:
            assert torch.equal(patches, expected[:, -grid * grid :])
        if kind == "none":
            assert cls is None
            continue
        assert cls is not None
        assert cls.shape == (2, cls_width)
        vectors = {"class_token": expected[:, 0], "projected": final}
        torch.testing.assert_close(cls, vectors.get(kind, pooled), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "case", sorted(CASES.keys() - {"resnet"})
)  # untrained it sees corners only
def test_encoder__tokens_are_row_major(case: str) -> None:
    name, arguments, *_ = CASES[case]
    assert_row_major(build_timm(name, arguments, "random:0"))


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        ("vit_pe_core_base_patch16_224.fb", "attention_pool", 48),
        ("vit_base_patch16_clip_224.laion2b", "class_token", 48),
    ],
)
def test_clip__is_read_before_its_projection_when_asked(name: str, kind: str, width: int) -> None:
    encoder = build_timm(name, {**SMALL, "num_classes": 0}, "random:0")
    assert (encoder.cls_kind, encoder.cls_width) == (kind, width)


def test_clip__resnet_is_read_before_its_projection_when_asked() -> None:
    with torch.device("meta"):
        encoder = build_timm("resnet50_clip.openai", {"num_classes": 0}, None)
    assert (encoder.cls_kind, encoder.cls_width) == ("attention_pool", 2048)


def test_clip__weights_of_quickgelu_are_not_read_with_another() -> None:
    with pytest.raises(TeacherError, match=r"use vit_base_patch32_clip_quickgelu_224\.openai"):
        build_timm("vit_base_patch32_clip_224.openai", {}, "pretrained")


def test_native_pixels__are_those_of_the_published_weights() -> None:
    assert build_timm("vit_small_patch16_dinov3", SMALL, "random:0").native_pixels == 256
    assert build_timm("resnet18", {}, "random:0").native_pixels == 224


def test_encoder__is_frozen_and_repeats() -> None:
    encoder = build_timm("vit_tiny_patch16_224", {**SMALL, "proj_drop_rate": 0.5}, "random:0")
    _, patches = encoder(pictures(32))
    assert not patches.requires_grad
    assert torch.equal(patches, encoder(pictures(32))[1])


def test_encoder__rotary_positions_are_augmented_in_training_only() -> None:
    jitter = {**SMALL, "rope_rescale_coords": 2.0, "init_values": 1.0}
    encoder = build_timm("vit_small_patch16_dinov3", jitter, "random:0")
    first = encoder(pictures(48))[1]
    encoder.model.train()
    assert not torch.equal(first, encoder(pictures(48))[1])
    encoder.model.eval()
    assert torch.equal(first, encoder(pictures(48))[1])


def refusal(name: str, weights: str, arguments: dict[str, object]) -> str:
    with pytest.raises(TeacherError) as caught:
        build_timm(name, arguments, weights)
    return str(caught.value)


def test_model__unknown_name_suggests_near_ones() -> None:
    assert "vit_tiny_patch16_224" in refusal("vit_tinny_patch16_224", "random:0", {})


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("vit_tiny_patch16_224", {"depht": 2}, "'depht'"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "divisible"),
        ("mixer_b16_224", {"num_blocks": 1}, "mixer_b16_224"),
        ("vit_relpos_small_patch16_224", {"depth": 1}, "cannot see 64 px pictures"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "not a square grid"),
        ("vit_base_patch16_siglip_224", {**SMALL, "global_pool": ""}, "gives a CLS of shape"),
    ],
)
def test_model__that_cannot_be_used_is_refused_with_its_reason(
    name: str, arguments: dict[str, object], found: str
) -> None:
    message = refusal(name, "random:0", arguments)
    assert message.startswith(f"timm model {name}: ")
    assert found in message


def test_model__pretrained_without_a_network_says_what_to_do() -> None:
    assert "give `weights` the path of a file" in refusal("test_vit", "pretrained", {})


def test_model__tags_stand_in_its_name() -> None:
    assert "NAME.TAG" in refusal("test_vit", "pretrained:r160_in1k", {})


def test_build__without_weights_is_for_the_caller_to_fill() -> None:
    filled = build_timm("vit_tiny_patch16_224", SMALL, "random:7").model
    bare: nn.Module = build_timm("vit_tiny_patch16_224", SMALL, None).model
    bare.load_state_dict(filled.state_dict())
    assert torch.equal(bare.cls_token, filled.cls_token)  # type: ignore[arg-type]
