import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from infra.models.libraries import build_encoder
from infra.models.weights import tensors_digest
from schemas.errors import TeacherError
from schemas.extract_config import Teacher
from tests.unit.infra.models.looks import pictures

pytestmark = pytest.mark.unit

MODULE = """
import torch
from torch import nn
from infra.models.encoder import Encoder

class Mine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixels):
        tokens = self.dropout(self.patch(pixels)).flatten(2).transpose(1, 2)
        return None, tokens

def build(width=6, claimed=None):
    model = Mine(width).train()
    encoder = Encoder(model=model, patch_pixels=8, patch_width=claimed or width, cls_width=None,
                      cls_kind="none", pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1], native_pixels=64)
    model.train().requires_grad_(True)
    return encoder

def trained_in_float64():
    raise RuntimeError("no such epoch")

def leaves():
    raise SystemExit(3)

def model_alone():
    return Mine(6)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of its own for each test, in the current directory and nowhere on the path."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    return name


def teacher(model: str, weights: str = "pretrained", **arguments: object) -> Teacher:
    return Teacher(library="python", model=model, weights=weights, arguments=arguments)


def test_function__of_the_current_directory_is_called_with_arguments(module: str) -> None:
    encoder = build_encoder(teacher(f"{module}:build", width=10))
    assert (encoder.patch_pixels, encoder.patch_width, encoder.cls_width) == (8, 10, None)
    cls, tokens = encoder(pictures(32))
    assert cls is None
    assert tokens.shape == (2, 16, 10)


def test_function__whose_model_it_left_in_training_is_read_in_evaluation(module: str) -> None:
    encoder = build_encoder(teacher(f"{module}:build"))
    assert torch.equal(encoder(pictures(32))[1], encoder(pictures(32))[1])
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_weights__random_seed_torch_before_the_call(module: str) -> None:
    digests = [
        tensors_digest(build_encoder(teacher(f"{module}:build", f"random:{seed}")).model)
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_weights__of_a_path_are_loaded_into_its_model(module: str, tmp_path: Path) -> None:
    first = build_encoder(teacher(f"{module}:build", "random:1"))
    save_file(first.model.state_dict(), tmp_path / "w.safetensors")
    again = build_encoder(teacher(f"{module}:build", str(tmp_path / "w.safetensors")))
    assert tensors_digest(again.model) == tensors_digest(first.model)
    save_file({"patch.weight": torch.zeros(6, 3, 8, 8)}, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match=r"missing patch\.bias; unexpected none"):
        build_encoder(teacher(f"{module}:build", str(tmp_path / "w.safetensors")))


@pytest.mark.parametrize(
    ("function", "arguments", "found"),
    [
        ("absent", {}, "AttributeError: module .* has no attribute 'absent'"),
        ("trained_in_float64", {}, "RuntimeError: no such epoch"),
        ("leaves", {}, "SystemExit: 3"),
        ("model_alone", {}, "returned a Mine; return an infra.models.encoder.Encoder"),
        ("build", {"depth": 3}, "TypeError: .* 'depth'"),
        ("build", {"claimed": 7}, "gives tokens of shape .* not a square grid .* of width 7"),
    ],
)
def test_function__that_fails_is_named_with_its_reason(
    module: str, function: str, arguments: dict[str, Any], found: str
) -> None:
    with pytest.raises(TeacherError, match=f"python teacher {module}:{function}: .*{found}"):
        build_encoder(teacher(f"{module}:{function}", **arguments))


def test_function__of_no_module_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="No module named 'not_there'") as caught:
        build_encoder(teacher("not_there:build"))
    assert str(tmp_path) in str(caught.value)


def test_weights__have_no_tags_here(module: str) -> None:
    with pytest.raises(TeacherError, match="only open_clip has tags"):
        build_encoder(teacher(f"{module}:build", "pretrained:best"))
