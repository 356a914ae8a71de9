"""EUPE's three stages, each from a cache: experts -> proxy -> student at one grid -> at several."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra.models.folder import open_model, read_record
from schemas.errors import ConfigError, DamageError
from tests.trainings import SMALL_PROXY, Run, metrics, train_here


@pytest.fixture(scope="module")
def fixed(stages: Path, proxy_cache: Path) -> Run:
    return train_here(proxy_cache, stages / "fixed", teachers={"proxy": {"grids": [2]}})


def test_proxy__leaves_its_heads_and_what_its_experts_are_standardised_by(proxy: Run) -> None:
    record = read_record(proxy.out)
    assert record.arguments.items() >= SMALL_PROXY.items()
    assert record.heads is not None
    assert record.heads.hidden == 16
    assert {name: told.grids for name, told in record.heads.teachers.items()} == {
        "vit": (3,),
        "cnn": (2,),
    }
    heads, statistics = (
        load_file(proxy.out / f"{name}.safetensors") for name in ("heads", "statistics")
    )
    assert heads["heads.vit-cls.3.weight"].shape == (64, 16)
    assert heads["heads.cnn-tokens.0.weight"].shape == (16, 64)
    assert statistics["vit/3/tokens_mean"].shape == (64,)
    assert statistics["cnn/2/cls_std"].shape == (96,)
    assert len(statistics) == 8


def test_proxy__speaks_as_an_expert_through_its_heads(proxy: Run) -> None:
    encoder, _ = open_model(proxy.out)
    heads = load_file(proxy.out / "heads.safetensors")
    statistics = load_file(proxy.out / "statistics.safetensors")
    cls, _ = encoder(torch.randn(2, 3, 48, 48))
    hidden = cls @ heads["heads.vit-cls.0.weight"].T
    scale, shift = heads["heads.vit-cls.1.weight"], heads["heads.vit-cls.1.bias"]
    hidden = torch.nn.functional.gelu(torch.nn.functional.layer_norm(hidden, (16,), scale, shift))
    told = hidden @ heads["heads.vit-cls.3.weight"].T
    raw = told * statistics["vit/3/cls_std"] + statistics["vit/3/cls_mean"]
    assert raw.shape == (2, 64)
    assert raw.isfinite().all()


def test_fixed__learns_from_the_proxy(fixed: Run, proxy: Run) -> None:
    record = read_record(fixed.out)
    assert (record.stage, list(record.teachers)) == ("fixed", ["proxy"])
    lines = metrics(fixed.out)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {line["teachers"]["proxy"]["grid"] for line in lines} == {2}
    assert fixed.result["stage"] == "fixed"


def test_multires__begins_with_the_students_weights_and_heads_and_draws_grids(
    stages: Path, proxy_cache: Path, fixed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.LOG_STEPS", 1)
    done = train_here(
        proxy_cache,
        stages / "multires",
        draws=True,
        stage="multires",
        student={"model": "timm:test_vit", "init": str(fixed.out)},
        student_grids=[2, 3, 4],
        teachers={"proxy": {"grids": [2, 3]}},
        optim={"lr": 1e-4, "steps": 40, "batch_size": 16},
    )
    assert any("proxy-tokens, proxy-cls" in line and "fixed" in line for line in done.lines)
    lines = metrics(done.out)
    pairs = {(line["student_grid"], line["teachers"]["proxy"]["grid"]) for line in lines}
    assert len(pairs) == 6
    assert read_record(done.out).heads.teachers["proxy"].grids == (2, 3)  # type: ignore[union-attr]
    assert (done.out / "curves.png").stat().st_size > 5000
    assert list((done.out / "tensorboard").iterdir())


@pytest.mark.parametrize("what", ["checkpoint", "file", "unfinished"])
def test_init__takes_a_checkpoint_or_a_file(
    proxy_cache: Path, fixed: Run, tmp_path: Path, what: str
) -> None:
    if what == "unfinished":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoints").symlink_to(fixed.out / "checkpoints")
    init = {
        "checkpoint": fixed.out / "checkpoints" / "8",
        "file": fixed.out / "model.safetensors",
        "unfinished": tmp_path / "run",
    }[what]
    done = train_here(
        proxy_cache,
        tmp_path / "out",
        student={"model": "timm:test_vit", "init": str(init)},
        teachers={"proxy": {"grids": [3]}},
        max_steps=1,
        optim={"lr": 1e-9, "steps": 1, "batch_size": 16},
    )
    pairs = [("model.safetensors", init_file(init, fixed))]
    if what != "file":
        pairs.append(("heads.safetensors", init_file(init, fixed).with_name("heads.safetensors")))
    for name, file in pairs:
        begun, given = load_file(done.out / name), load_file(file)
        for tensor, value in given.items():
            torch.testing.assert_close(begun[tensor], value, rtol=0, atol=1e-6)


def init_file(init: Path, fixed: Run) -> Path:
    return {
        "8": fixed.out / "checkpoints" / "8" / "student.safetensors",
        "run": fixed.out / "checkpoints" / "12" / "student.safetensors",
    }.get(init.name, fixed.out / "model.safetensors")


def test_init__that_is_no_run_or_is_damaged_is_refused(
    proxy_cache: Path, fixed: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    changes = {"teachers": {"proxy": {"grids": [2]}}}
    student = {"model": "timm:test_vit", "init": str(tmp_path / "empty")}
    with pytest.raises(ConfigError, match="is no run and no checkpoint"):
        train_here(proxy_cache, tmp_path / "out", student=student, **changes)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in fixed.out.glob("*.*"):
        (copied / path.name).write_bytes(path.read_bytes())
    data = bytearray((copied / "heads.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "heads.safetensors").write_bytes(data)
    with pytest.raises(DamageError, match=r"heads.safetensors is not the file"):
        train_here(
            proxy_cache, tmp_path / "out", student=student | {"init": str(copied)}, **changes
        )
