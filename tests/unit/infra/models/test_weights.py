from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.models.timm_encoder import build_timm
from infra.models.weights import is_location, tensors_digest
from schemas.errors import TeacherError
from tests.unit.infra.models.looks import pictures

pytestmark = pytest.mark.unit

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
EUPE = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"


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


def test_location__is_what_is_neither_the_librarys_nor_random() -> None:
    locations = ["w.pt", "s3://b/w.safetensors", "pretrained_backbones/w.pt", "/a:b"]
    assert all(is_location(place) for place in locations)
    assert not any(is_location(name) for name in [None, "pretrained", "pretrained:x", "random:3"])


@pytest.fixture
def model() -> nn.Module:
    return build_timm("vit_tiny_patch16_224", SMALL, "random:7").model


def test_tensors_digest__changes_with_any_one_tensor(model: nn.Module) -> None:
    seen = {tensors_digest(model)}
    state = model.state_dict()
    for tensor in state.values():
        with torch.no_grad():
            tensor.view(-1)[-1] += 1
        seen.add(tensors_digest(model))
    assert len(seen) == 1 + len(state)


def test_tensors_digest__is_of_type_and_shape_too() -> None:
    layers = [nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
    layers.append(nn.Linear(8, 2, bias=False, dtype=torch.float16))
    nn.init.zeros_(layers[2].weight)
    assert len({tensors_digest(layer) for layer in layers}) == 3


def test_weights__safetensors_and_state_dicts_give_the_same_model(
    model: nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"model": state, "epoch": 3}, tmp_path / "wrapped.pth")
    files = [str(tmp_path / name) for name in ("w.safetensors", "plain.pt", "wrapped.pth")]
    files.append((tmp_path / "w.safetensors").as_uri())
    assert {digest_of(file) for file in files} == {tensors_digest(model)}


def refusal(weights: str, name: str = "vit_tiny_patch16_224") -> str:
    with pytest.raises(TeacherError) as caught:
        build_timm(name, SMALL, weights)
    return str(caught.value)


def test_weights__that_do_not_cover_the_model_are_named(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    state["norm.extra"] = state.pop("norm.weight")
    save_file(state, tmp_path / "w.safetensors")
    message = refusal(str(tmp_path / "w.safetensors"))
    assert "missing norm.weight; unexpected norm.extra" in message


def test_weights__of_another_shape(model: nn.Module, tmp_path: Path) -> None:
    save_file({**model.state_dict(), "norm.weight": torch.ones(3)}, tmp_path / "w.safetensors")
    message = refusal(str(tmp_path / "w.safetensors"))
    assert "do not fit the model" in message
    assert "norm.weight" in message


class Program:
    """Unpickled as an object it would leave a file behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def test_weights__that_hold_a_program_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Program()}, tmp_path / "w.pt")
    assert "such files are never run" in refusal(str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["none.safetensors", "junk.safetensors", "junk.pt", "list.pt"])
def test_weights__that_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pt")
    assert name in refusal(str(tmp_path / name))


@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_weights__may_hold_the_classifier_too(name: str, tmp_path: Path) -> None:
    import timm

    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    encoder = build_timm(name, {}, str(tmp_path / "whole.safetensors"))
    stored = whole.state_dict()
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, stored[key])


def as_eupe_names_it(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm state dict under the names of EUPE's own release, with all that it has in excess."""
    renamed: dict[str, Tensor] = {
        "mask_token": torch.zeros(1, 48),
        "rope_embed.periods": torch.ones(6),
        "projectors.heads.dinov3radio.weight": torch.ones(4, 48),
        "projectors.heads.dinov3radio.bias": torch.ones(4),
    }
    for name, value in state.items():
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            thirds = [value, torch.zeros(48), state[f"{block}v_bias"]]
            renamed[f"{block}qkv.bias"] = torch.cat(thirds)
            renamed[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(48), thirds[1], thirds[1] + 1])
        elif not name.endswith("v_bias"):
            for ours, theirs in (("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
                name = name.replace(ours, theirs)
            renamed[name.replace("reg_token", "storage_tokens")] = value
    return renamed


@pytest.fixture
def eupe() -> nn.Module:
    model = build_timm(EUPE, SMALL, "random:7").model
    for name, parameter in model.named_parameters():
        if name.endswith("_bias"):  # timm starts them at zero
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("name", ["eupe.safetensors", "eupe.pt"])
def test_weights__in_the_names_of_dinov3_and_eupe(
    eupe: nn.Module, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = as_eupe_names_it(eupe.state_dict())
    if name.endswith(".pt"):
        torch.save({"teacher": theirs}, tmp_path / name)
    else:
        save_file(theirs, tmp_path / name)
    encoder = build_timm(EUPE, SMALL, str(tmp_path / name))
    assert tensors_digest(encoder.model) == tensors_digest(eupe)
    features = eupe.forward_features(pictures(48))  # type: ignore[operator]
    torch.testing.assert_close(encoder(pictures(48))[1], features[:, 5:], atol=1e-5, rtol=0)
    assert not capsys.readouterr().out


def test_weights__in_authors_names_with_a_hole_say_which(eupe: nn.Module, tmp_path: Path) -> None:
    theirs = as_eupe_names_it(eupe.state_dict())
    del theirs["blocks.1.ls2.gamma"]
    save_file(theirs, tmp_path / "w.safetensors")
    message = refusal(str(tmp_path / "w.safetensors"), EUPE)
    assert "missing blocks.1.gamma_2; unexpected none" in message


def test_weights__biases_are_not_dropped_in_silence(eupe: nn.Module, tmp_path: Path) -> None:
    save_file(as_eupe_names_it(eupe.state_dict()), tmp_path / "w.safetensors")
    message = refusal(str(tmp_path / "w.safetensors"), "vit_small_patch16_dinov3")
    assert ".attn.qkv.bias is not zero, and the model has none" in message


def test_weights__convnext_in_the_names_of_its_authors(tmp_path: Path) -> None:
    arguments = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    model = build_timm("convnext_tiny.eupe_lvd1689m", arguments, "random:3").model
    theirs: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for ours, written in (
            ("stem.", "downsample_layers.0."),
            (".conv_dw.", ".dwconv."),
            (".mlp.fc1.", ".pwconv1."),
            (".mlp.fc2.", ".pwconv2."),
            ("head.norm.", "norm."),
        ):
            name = name.replace(ours, written)
        stage, _, rest = name.removeprefix("stages.").partition(".")
        if rest.startswith("downsample."):
            name = f"downsample_layers.{stage}.{rest.removeprefix('downsample.')}"
        theirs[name.replace(".blocks.", ".")] = value
    theirs |= {f"norms.3.{kind}": theirs[f"norm.{kind}"].clone() for kind in ("weight", "bias")}
    save_file(theirs, tmp_path / "w.safetensors")
    encoder = build_timm("convnext_tiny.eupe_lvd1689m", arguments, str(tmp_path / "w.safetensors"))
    assert tensors_digest(encoder.model) == tensors_digest(model)
