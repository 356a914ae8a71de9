"""`export` as a user runs it, and what the file is to those who load it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainer.export
from infra.cli import main
from infra.models.encoder import Encoder
from infra.models.timm_encoder import build_timm
from tests.processes import by_module, run
from trainer.students import EUPE, build_student, describe, save_model, timm_name, weights_of

pytestmark = pytest.mark.unit

PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def student(folder: Path, model: str = "eupe_vit_t", **arguments: Any) -> Encoder:
    """A finished run, whose biases and scales are not what a new model has."""
    encoder = build_student(model, 0, arguments)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.05)
    encoder.model.eval()
    record = describe(
        encoder,
        model,
        arguments=arguments,
        grid=4,
        stage="fixed",
        step=7,
        snapshot=1,
        teachers={"a": "0" * 64},
    )
    save_model(folder, encoder, record)
    return encoder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    folder = tmp_path_factory.mktemp("vit") / "run"
    return folder, student(folder)


def export(folder: Path, to: str, out: Path) -> int:
    return main(["export", "--student", str(folder), "--to", to, "--out", str(out), "--json"])


def same(first: Encoder, second: Encoder) -> bool:
    told = zip(first(PICTURES), second(PICTURES))
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in told)


def test_eupe__file_is_the_student_to_who_reads_eupes_files(
    vit: tuple[Path, Encoder], tmp_path: Path
) -> None:
    folder, encoder = vit
    out = tmp_path / "new" / "student.pth"
    done = run(by_module("export"), "--student", folder, "--to", "eupe", "--out", out)
    assert done.status == 0, done.stderr
    assert done.result == {
        "out": str(out),
        "to": "eupe",
        "tensors": 188,
        "bytes": out.stat().st_size,
        "model": EUPE["eupe_vit_t"],
    }
    assert "'eupe_vitt16', source='local', pretrained=True" in done.stderr
    state = torch.load(out, weights_only=True)
    assert len(state) == 188
    assert all(value.dtype == torch.float32 for value in state.values())
    assert same(build_timm(EUPE["eupe_vit_t"], {}, str(out)), encoder)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_eupe__both_formats_hold_the_same(vit: tuple[Path, Encoder], tmp_path: Path) -> None:
    states = []
    for name, read in (("s.pth", torch.load), ("s.safetensors", load_file)):
        assert export(vit[0], "eupe", tmp_path / name) == 0
        states.append(read(tmp_path / name))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("model", ["eupe_vit_t", "timm:convnext_tiny"])
def test_eupe__safetensors_load_as_the_command_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    encoder, out = student(tmp_path / "run", model), tmp_path / "s.safetensors"
    assert export(tmp_path / "run", "eupe", out) == 0
    assert torch.equal(as_told(capsys.readouterr().err)(PICTURES), encoder.model(PICTURES))
    assert same(build_timm(timm_name(model), {}, str(out)), encoder)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("eupe_vit_t", {}),
        ("timm:test_vit", {}),
        ("timm:test_resnet", {}),
        ("proxy_vit_g", {"depth": 1, "embed_dim": 64, "num_heads": 2}),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_timm__loads_it_as_the_command_says(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    arguments: dict[str, Any],
    suffix: str,
) -> None:
    encoder = student(tmp_path / "run", model, **arguments)
    assert export(tmp_path / "run", "timm", tmp_path / f"s.{suffix}") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["tensors"] == len(encoder.model.state_dict())
    assert torch.equal(as_told(told.err)(PICTURES), encoder.model(PICTURES))


def as_told(text: str) -> Any:
    """The model of the line that says how the file is loaded."""
    import timm

    line = text.partition("to load it: ")[2].splitlines()[0]
    return eval(line, {"timm": timm}).eval()


def test_out__of_before_is_replaced(vit: tuple[Path, Encoder], tmp_path: Path) -> None:
    out = tmp_path / "s.pth"
    out.write_bytes(b"before")
    assert export(vit[0], "eupe", out) == 0
    assert same(build_timm(EUPE["eupe_vit_t"], {}, str(out)), vit[1])


@pytest.mark.parametrize(("to", "status"), [("timm", 1), ("eupe", 2)])
def test_out__of_before_stays_where_the_check_fails(
    vit: tuple[Path, Encoder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    status: int,
) -> None:
    other = weights_of(build_student("eupe_vit_t", 3).model)
    monkeypatch.setattr(trainer.export, "write_through", lambda path, _: path.write_bytes(other))
    out = tmp_path / "s.safetensors"
    out.write_bytes(b"before")
    assert export(vit[0], to, out) == status
    assert out.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [out]


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    error: str = json.loads(told.out)["error"]
    return error


@pytest.mark.parametrize("to", ["timm", "eupe"])
def test_student__that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    assert export(tmp_path / "none", to, tmp_path / "s.pth") == 2
    assert "no model.json there" in refusal(capsys)
    assert not list(tmp_path.iterdir())


def test_options__that_are_wrong_are_all_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, "onnx", tmp_path / "s.onnx") == 2
    text = refusal(capsys)
    assert "out: ends in .safetensors or .pth" in text
    assert "to: input should be 'timm' or 'eupe'" in text


def test_eupe__that_has_no_such_model_says_which_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student(tmp_path / "run", "timm:test_vit")
    assert export(tmp_path / "run", "eupe", tmp_path / "s.pth") == 2
    text = refusal(capsys)
    assert "EUPE has no test_vit; it has vit_tiny_patch16_dinov3_qkvb" in text
    assert "convnext_base. Use --to timm" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"depth": 1}, "missing blocks.1"),
        ({"rope_temperature": 10.0}, "says something else of a picture"),
        ({"qkv_bias": False}, "missing blocks.0.attn.q_bias"),
        ({"pretrained_cfg_overlay": {"mean": [0.5, 0.5, 0.5]}}, "normalised otherwise"),
    ],
)
def test_eupe__another_network_of_that_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], reason: str
) -> None:
    student(tmp_path / "run", "eupe_vit_t", **arguments)
    assert export(tmp_path / "run", "eupe", tmp_path / "s.pth") == 2
    text = refusal(capsys)
    assert "is not EUPE's eupe_vitt16" in text
    assert reason in text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_student__that_gives_nan_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = build_student("timm:test_resnet", 0)
    next(encoder.model.parameters()).data.fill_(float("nan"))
    record = describe(
        encoder, "timm:test_resnet", grid=4, stage="fixed", step=1, snapshot=1, teachers={}
    )
    save_model(tmp_path / "run", encoder, record)
    assert export(tmp_path / "run", "timm", tmp_path / "s.pth") == 2
    assert "gives NaN or infinity" in refusal(capsys)


def test_out__that_cannot_be_written_is_refused(
    vit: tuple[Path, Encoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert export(vit[0], "eupe", tmp_path / "folder.pth") == 2
    assert "folder.pth: cannot be written (Is a directory)" in refusal(capsys)
