from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infra.models.timm_encoder import Encoder, build_timm
from infra.models.weights import tensors_digest
from schemas.errors import TeacherError
from tests.builders import photograph

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
CASES = {
    "class token": ("vit_tiny_patch16_224", SMALL, 16, 48, 48, "class_token"),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL, 14, 48, 48, "class_token"),
    "rotary": ("vit_small_patch16_dinov3", SMALL, 16, 48, 48, "class_token"),
    "attention pool": ("vit_base_patch16_siglip_224", SMALL, 16, 48, 48, "attention_pool"),
    "average": ("vit_base_patch16_siglip_gap_224", SMALL, 16, 48, 48, "mean"),
    "resnet": ("resnet18", {}, 32, 512, 512, "mean"),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1)}, 32, 320, 320, "mean"),
}


def pictures(side: int, count: int = 2) -> Tensor:
    squares = [np.asarray(photograph(seed, side, side)) for seed in range(count)]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("case", CASES)
def test_encoder__says_its_widths_and_gives_timms_own_features(case: str) -> None:
    name, arguments, patch, patch_width, cls_width, kind = CASES[case]
    encoder = build_timm(name, arguments, "random:0")
    told = (encoder.patch_pixels, encoder.patch_width, encoder.cls_width, encoder.cls_kind)
    assert told == (patch, patch_width, cls_width, kind)
    for grid in (2, 3):
        pixels = pictures(grid * patch)
        with torch.inference_mode():
            cls, patches = encoder(pixels)
            expected = encoder.model.forward_features(pixels)
            pooled = encoder.model.forward_head(expected, pre_logits=True)
        assert cls.shape == (2, cls_width)
        assert patches.shape == (2, grid * grid, patch_width)
        if expected.ndim == 4:
            rows = [expected[:, :, y, x] for y in range(grid) for x in range(grid)]
            assert torch.equal(patches, torch.stack(rows, dim=1))
        else:
            assert torch.equal(patches, expected[:, -grid * grid :])
        assert torch.equal(cls, expected[:, 0] if kind == "class_token" else pooled)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_encoder__tokens_are_row_major(name: str) -> None:
    """Without blocks and positions a token is a function of its own patch alone."""
    encoder = build_timm(name, {**SMALL, "depth": 0, "pos_embed": "none"}, "random:0")
    side = encoder.patch_pixels
    picture = pictures(4 * side, 1)[:, :, : 3 * side, : 3 * side]
    with torch.inference_mode():
        _, whole = encoder(picture)
        for row in range(3):
            for column in range(3):
                patch = picture[
                    ..., row * side : (row + 1) * side, column * side : (column + 1) * side
                ]
                _, alone = encoder(patch)
                torch.testing.assert_close(whole[:, 3 * row + column], alone[:, 0])
    assert whole[0].unique(dim=0).shape[0] == 9


def test_encoder__is_frozen_and_repeats() -> None:
    encoder = build_timm("vit_tiny_patch16_224", {**SMALL, "proj_drop_rate": 0.5}, "random:0")
    cls, patches = encoder(pictures(32))
    assert not cls.requires_grad
    assert torch.equal(patches, encoder(pictures(32))[1])


def digest_of(weights: str | None) -> str:
    return tensors_digest(build_timm("vit_tiny_patch16_224", SMALL, weights).model)


def test_random_weights__are_of_their_seed_alone() -> None:
    first = digest_of("random:1")
    torch.manual_seed(99)
    drawn_before = torch.rand(1)
    torch.manual_seed(99)
    assert digest_of("random:1") == first
    assert torch.equal(torch.rand(1), drawn_before)
    assert digest_of("random:2") != first


@pytest.fixture
def model() -> torch.nn.Module:
    return build_timm("vit_tiny_patch16_224", SMALL, "random:7").model


def test_tensors_digest__changes_with_any_one_tensor(model: torch.nn.Module) -> None:
    seen = {tensors_digest(model)}
    state = model.state_dict()
    for tensor in state.values():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(tensors_digest(model))
    assert len(seen) == 1 + len(state)


def test_tensors_digest__is_of_type_and_shape_too() -> None:
    layers = [torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(2, 4, bias=False)]
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
    layers.append(torch.nn.Linear(8, 2, bias=False, dtype=torch.float16))
    torch.nn.init.zeros_(layers[2].weight)
    assert len({tensors_digest(layer) for layer in layers}) == 3


def test_weights__safetensors_and_state_dicts_give_the_same_model(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": state, "epoch": 3}, tmp_path / "wrapped.pth")
    files = [str(tmp_path / name) for name in ("w.safetensors", "plain.pt", "wrapped.pth")]
    assert {digest_of(file) for file in files} == {tensors_digest(model)}


def refusal(name: str, weights: str, arguments: dict[str, object] | None = None) -> str:
    with pytest.raises(TeacherError) as caught:
        build_timm(name, SMALL if arguments is None else arguments, weights)
    return str(caught.value)


def test_weights__that_do_not_cover_the_model_are_named(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    state["norm.extra"] = state.pop("norm.weight")
    save_file(state, tmp_path / "w.safetensors")
    message = refusal("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"))
    assert "missing norm.weight; unexpected norm.extra" in message


def test_weights__of_another_shape(model: torch.nn.Module, tmp_path: Path) -> None:
    save_file({**model.state_dict(), "norm.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    message = refusal("vit_tiny_patch16_224", str(tmp_path / "w.safetensors"))
    assert "do not fit the model" in message
    assert "norm.weight" in message


class Program:
    """Unpickled as an object it would leave a file behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def test_weights__that_hold_a_program_never_run(tmp_path: Path) -> None:
    torch.save({"a": Program()}, tmp_path / "w.pt")
    message = refusal("vit_tiny_patch16_224", str(tmp_path / "w.pt"))
    assert "such files are never run" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.safetensors", "junk.safetensors", "junk.pt", "list.pt"])
def test_weights__that_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pt")
    assert name in refusal("vit_tiny_patch16_224", str(tmp_path / name))


def test_model__unknown_name_suggests_near_ones() -> None:
    assert "vit_tiny_patch16_224" in refusal("vit_tinny_patch16_224", "random:0")


@pytest.mark.parametrize(
    ("name", "arguments", "found"),
    [
        ("vit_tiny_patch16_224", {"depht": 2}, "'depht'"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "divisible"),
        ("mixer_b16_224", {"num_blocks": 1}, "mixer_b16_224"),
        ("vit_relpos_small_patch16_224", {"depth": 1}, "cannot see 64 px pictures"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "not a square grid"),
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


def test_build__without_weights_is_for_the_caller_to_fill(model: torch.nn.Module) -> None:
    bare: Encoder = build_timm("vit_tiny_patch16_224", SMALL, None)
    bare.model.load_state_dict(model.state_dict())
    assert tensors_digest(bare.model) == tensors_digest(model)


@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_weights__may_hold_the_classifier_too(name: str, tmp_path: Path) -> None:
    import timm

    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder = build_timm(name, {}, str(tmp_path / "whole.safetensors"))
    stored = whole.state_dict()
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, stored[key])
