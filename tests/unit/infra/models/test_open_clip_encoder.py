import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infra.models.encoder import Encoder
from infra.models.open_clip_encoder import build_open_clip
from infra.models.torchvision_shim import make_torchvision_importable
from infra.models.weights import tensors_digest
from schemas.errors import TeacherError
from tests.unit.infra.models.looks import assert_row_major, pictures

make_torchvision_importable()
import open_clip  # noqa: E402

pytestmark = pytest.mark.unit

TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 2, "width": 48, "head_width": 24, "patch_size": 16}
TRUNK = {"timm_pool": "", "timm_proj": "linear", "image_size": 160}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "mean": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "coca": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "quickgelu": VIT,
    "pe": {
        **TRUNK,
        "timm_model_name": "vit_pe_core_tiny_patch16_384",
        "image_size": 384,
        "timm_pool": "map",
        "timm_proj": None,
    },
    "siglip": {**TRUNK, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "convnext": {**TRUNK, "timm_model_name": "test_convnext"},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
}
PATCH_AND_WIDTH = {
    **dict.fromkeys(["vit", "mean", "coca"], (16, 48)),
    "pe": (16, 192),
    "siglip": (16, 64),
    "convnext": (32, 64),
    "resnet": (32, 256),
}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("clips")
    for name, tower in TOWERS.items():
        config = {
            "embed_dim": 64 if name == "siglip" else 24,
            "custom_text": tower is not VIT,
            "quick_gelu": name == "quickgelu",
            "vision_cfg": tower,
            "text_cfg": TEXT,
        }
        (folder / f"tiny-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def library_clip(name: str, side: int | None = None) -> Any:
    """open_clip's own model of seed 0, made for another size where one is given."""
    torch.manual_seed(0)
    clip = open_clip.create_model(f"tiny-{name}")
    if side is not None and "timm_model_name" in TOWERS[name]:
        clip.visual.set_input_size(side)
    elif side is not None:
        state = clip.state_dict()
        clip = open_clip.create_model(f"tiny-{name}", force_image_size=side)
        open_clip.model.resize_pos_embed(state, clip)
        clip.load_state_dict(state)
    return clip.eval()


def encoder_of(name: str, tmp_path: Path) -> Encoder:
    save_file(library_clip(name).state_dict(), tmp_path / "clip.safetensors")
    return build_open_clip(f"tiny-{name}", {}, str(tmp_path / "clip.safetensors"))


def last_layer(visual: Any, name: str, pixels: Tensor) -> Tensor:
    """What leaves the last layer [batch, channels, rows, columns], by a hook, and normed by hand
    where the tower norms before it pools."""
    if hasattr(visual, "trunk"):
        features: Tensor = visual.trunk.forward_features(pixels)
        if features.ndim == 4:
            return features
        features = features[:, visual.trunk.num_prefix_tokens :]
    else:
        seen: list[Tensor] = []
        last = visual.layer4 if name == "resnet" else visual.transformer.resblocks[-1]
        with last.register_forward_hook(lambda _, __, output: seen.append(output)):
            visual(pixels)
        if name == "resnet":
            return seen[0]
        features = seen[0][:, 1:]
        if name == "vit":
            features = visual.ln_post(features)
    rows = int(features.shape[1] ** 0.5)
    return features.transpose(1, 2).reshape(len(pixels), -1, rows, rows)


@pytest.mark.parametrize("name", PATCH_AND_WIDTH)
@pytest.mark.parametrize("other_size", [False, True])
@torch.inference_mode()
def test_encoder__gives_open_clips_own_features(
    name: str, other_size: bool, tmp_path: Path
) -> None:
    encoder = encoder_of(name, tmp_path)
    patch, width = PATCH_AND_WIDTH[name]
    assert (encoder.patch_pixels, encoder.patch_width) == (patch, width)
    assert (encoder.cls_kind, encoder.cls_width) == ("projected", 64 if name == "siglip" else 24)
    assert encoder.native_pixels == TOWERS[name]["image_size"]
    side = encoder.native_pixels
    if other_size and name == "resnet":
        with pytest.raises(TeacherError, match="64 px only, not of 96 px"):
            encoder(pictures(96))
        return
    if other_size:
        side = 96
    clip = library_clip(name, side if other_size else None)
    pixels = pictures(side)
    cls, tokens = encoder(pixels)
    assert cls is not None
    torch.testing.assert_close(cls, clip.encode_image(pixels), atol=1e-5, rtol=0)
    expected = last_layer(clip.visual, name, pixels)
    grid = side // patch
    for row in range(grid):
        for column in range(grid):
            token = tokens[:, grid * row + column]
            torch.testing.assert_close(token, expected[:, :, row, column], atol=1e-5, rtol=0)
    assert tokens.shape == (2, grid * grid, width)


@pytest.mark.parametrize("name", ["vit", "coca", "pe", "siglip", "convnext"])
def test_encoder__tokens_are_row_major(name: str, tmp_path: Path) -> None:
    assert_row_major(encoder_of(name, tmp_path))


def test_encoder__seeing_another_size_changes_no_tensor(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    before = tensors_digest(encoder.model)
    first = encoder(pictures(64))[1]
    encoder(pictures(96))
    assert tensors_digest(encoder.model) == before
    assert torch.equal(encoder(pictures(64))[1], first)


@pytest.mark.parametrize("name", ["vit", "pe"])
def test_encoder__keeps_no_text_side(name: str) -> None:
    encoder = build_open_clip(f"tiny-{name}", {}, "random:0")
    assert all(key.startswith("visual.") for key in encoder.model.state_dict())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_weights__random_are_of_their_seed_alone() -> None:
    first, again, other = (
        tensors_digest(build_open_clip("tiny-vit", {}, f"random:{seed}").model)
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("form", ["whole", "tower", "parallel"])
def test_weights__of_a_whole_model_or_of_its_image_side(form: str, tmp_path: Path) -> None:
    clip = library_clip("vit")
    state: dict[str, Tensor] = clip.state_dict()
    if form == "tower":
        state = clip.visual.state_dict()
    if form == "parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.pt")
    encoder = build_open_clip("tiny-vit", {}, str(tmp_path / "w.pt"))
    for name, tensor in clip.visual.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[f"visual.{name}"], tensor)


def refusal(name: str, weights: str, arguments: dict[str, Any] | None = None) -> str:
    with pytest.raises(TeacherError) as caught:
        build_open_clip(name, arguments or {}, weights)
    return str(caught.value)


def test_weights__that_do_not_cover_the_image_side_are_named(tmp_path: Path) -> None:
    state = library_clip("vit").state_dict()
    state["visual.other"] = state.pop("visual.ln_post.weight")
    save_file(state, tmp_path / "w.safetensors")
    message = refusal("tiny-vit", str(tmp_path / "w.safetensors"))
    assert "missing visual.ln_post.weight; unexpected visual.other" in message


def test_pretrained__of_a_folder_brings_weights_and_normalisation(tmp_path: Path) -> None:
    clip = library_clip("vit")
    config = {
        "model_cfg": open_clip.get_model_config("tiny-vit"),
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    encoder = build_open_clip(f"local-dir:{tmp_path}", {}, "pretrained")
    assert (encoder.pixel_mean[0], encoder.pixel_std[0]) == (0.5, 0.25)
    cls, _ = encoder(pictures(64))
    assert cls is not None
    torch.testing.assert_close(cls, clip.encode_image(pictures(64)), atol=1e-5, rtol=0)


def test_pretrained__without_a_tag_names_those_there_are() -> None:
    assert "give one of its tags as pretrained:TAG: openai, " in refusal("ViT-B-32", "pretrained")
    assert "laion2b_s34b_b79k" in refusal("ViT-B-32", "pretrained:laion3b")
    assert "pretrained:TAG: none" in refusal("tiny-vit", "pretrained")


def test_pretrained__of_quickgelu_is_not_read_with_another() -> None:
    message = refusal("ViT-B-32", "pretrained:openai")
    assert "use ViT-B-32-quickgelu, or the arguments {force_quick_gelu: true}" in message


def test_quick_gelu__changes_features_of_equal_tensors(tmp_path: Path) -> None:
    plain = encoder_of("vit", tmp_path)
    quick = build_open_clip("tiny-quickgelu", {}, str(tmp_path / "clip.safetensors"))
    assert tensors_digest(plain.model) == tensors_digest(quick.model)
    assert not torch.equal(plain(pictures(64))[1], quick(pictures(64))[1])


def test_normalisation__is_that_of_the_published_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        assert build_open_clip("PE-Core-T-16-384", {}, "random:0").pixel_mean == (0.5, 0.5, 0.5)
        assert build_open_clip("ViT-B-32", {}, "random:0").pixel_mean[0] == 0.48145466
        given = {"force_preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
        assert build_open_clip("ViT-B-32", given, "random:0").pixel_mean == (0.1, 0.2, 0.3)
    message = refusal("ViT-L-14", str(tmp_path / "w.safetensors"))
    assert "differ in how pixels are normalised" in message
    assert "force_preprocess_cfg" in message


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("ViT-B-33", {}, "did you mean ViT-B-32"),
        ("tiny-vit", {"vision": 1}, "'vision'"),
        ("tiny-vit", {"weights_only": False}, "weights_only"),
        ("swin_base_patch4_window7_224", {}, "cannot see 64 px pictures"),
    ],
)
def test_model__that_cannot_be_used_is_refused_with_its_reason(
    name: str, arguments: dict[str, Any], found: str
) -> None:
    with torch.device("meta"):
        message = refusal(name, "random:0", arguments)
    assert message.startswith(f"open_clip model {name}: ")
    assert found in message


def test_build__says_nothing_that_is_not_so(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_open_clip("tiny-vit", {}, "random:0")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
