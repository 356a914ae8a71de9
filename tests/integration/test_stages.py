"""EUPE's three stages, each from a cache: experts -> proxy -> student at one grid -> at several."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from infra.models.folder import open_model, read_record
from schemas.errors import ConfigError, DamageError, ResumeError
from schemas.strict import parse
from schemas.train_config import TrainConfig
from tests.builders import photograph_folder
from tests.caches import CNN, VIT, Quiet, extract_here
from tests.caches import config_of as extraction_of
from tests.processes import by_module, config_file, kill, run, start, until
from trainer import train

PICTURES, STEPS = 24, 12
SMALL_PROXY = {"depth": 1, "embed_dim": 64, "num_heads": 2}
EVERYTHING: dict[str, Any] = {
    "stage": "multires",
    "student_grids": [2, 3, 4],
    "augment": {"color_jitter": 0.4, "grayscale": 0.2, "blur": 0.5, "solarize": 0.2},
}


def settings(cache: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "cache": str(cache),
        "student": {"model": "timm:test_vit"},
        "student_grids": [2],
        "head": {"hidden": 16},
        "optim": {"lr": 1e-3, "steps": STEPS, "batch_size": 16},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "loader": {"threads": 2},
        "out": str(out),
    } | changes


class Run(NamedTuple):
    out: Path
    lines: list[str]
    result: dict[str, Any]


def train_here(cache: Path, out: Path, **changes: Any) -> Run:
    terminal = Quiet()
    config = parse(TrainConfig, settings(cache, out, **changes), "test")
    return Run(out, terminal.lines, train.run(config, terminal).result)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    photograph_folder(folder / "pictures", PICTURES)
    return folder


@pytest.fixture(scope="module")
def proxy(folder: Path) -> Run:
    experts = {"vit": VIT | {"grids": [3]}, "cnn": CNN | {"grids": [2]}}
    extract_here(extraction_of(folder / "experts", folder / "pictures", teachers=experts))
    return train_here(
        folder / "experts",
        folder / "proxy",
        stage="proxy",
        student={"model": "proxy_vit_g", "arguments": SMALL_PROXY},
        student_grids=[3],
    )


@pytest.fixture(scope="module")
def cache(folder: Path, proxy: Run) -> Path:
    """What the proxy said at two grids."""
    teachers = {"proxy": {"library": "teachonce", "weights": str(proxy.out)}}
    config = extraction_of(
        folder / "cache",
        folder / "pictures",
        teachers=teachers,
        grids=[2, 3],
        views={"per_image": 2},
    )
    assert extract_here(config).result["bad"] == 0
    return folder / "cache"


@pytest.fixture(scope="module")
def fixed(folder: Path, cache: Path) -> Run:
    return train_here(cache, folder / "fixed", teachers={"proxy": {"grids": [2]}})


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
    folder: Path, cache: Path, fixed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.LOG_STEPS", 1)
    done = train_here(
        cache,
        folder / "multires",
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
    folder: Path, cache: Path, fixed: Run, tmp_path: Path, what: str
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
        cache,
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
    cache: Path, fixed: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    changes = {"teachers": {"proxy": {"grids": [2]}}}
    student = {"model": "timm:test_vit", "init": str(tmp_path / "empty")}
    with pytest.raises(ConfigError, match="is no run and no checkpoint"):
        train_here(cache, tmp_path / "out", student=student, **changes)
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in fixed.out.glob("*.*"):
        (copied / path.name).write_bytes(path.read_bytes())
    data = bytearray((copied / "heads.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "heads.safetensors").write_bytes(data)
    with pytest.raises(DamageError, match=r"heads.safetensors is not the file"):
        train_here(cache, tmp_path / "out", student=student | {"init": str(copied)}, **changes)


def test_from_weights__begins_anew_and_goes_on_when_it_was_stopped(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, teachers = tmp_path / "run", {"proxy": {"grids": [2]}}
    before = train_here(cache, out, teachers=teachers, max_steps=4)
    other = {"teachers": teachers, "loss": {"patch": {"beta": 2.0}}}
    with pytest.raises(ResumeError, match="from_weights: true"):
        train_here(cache, out, **other)

    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.loop.Loop.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_here(cache, out, from_weights=True, **other)
    aside = out / "checkpoints.before-4"
    assert {"4", "metrics.jsonl", "tensorboard"} <= {path.name for path in aside.iterdir()}
    begun = load_file(out / "checkpoints" / "0" / "student.safetensors")
    reached = load_file(before.out / "model.safetensors")
    assert all(torch.equal(value, reached[name]) for name, value in begun.items())
    done = train_here(cache, out, from_weights=True, **other)
    assert (done.result["resumed_from"], done.result["step"]) == (0, STEPS)
    again = train_here(cache, out, from_weights=True, **other)
    assert again.result["resumed_from"] == STEPS
    assert [line["step"] for line in metrics(out)][-1] == STEPS


def test_from_weights__interrupted_between_its_renames_is_finished(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, teachers = tmp_path / "run", {"proxy": {"grids": [2]}}
    train_here(cache, out, teachers=teachers, max_steps=4)
    other = {"teachers": teachers, "seed": 1, "from_weights": True}
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "checkpoints.next":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_here(cache, out, **other)
    assert not (out / "checkpoints").exists()
    done = train_here(cache, out, **other)
    assert (done.result["resumed_from"], done.result["step"]) == (0, STEPS)


def everything(cache: Path, out: Path) -> Path:
    values = settings(
        cache,
        out,
        **EVERYTHING,
        teachers={"proxy": {"grids": [2, 3]}},
        optim={
            "lr": 1e-3,
            "steps": 40,
            "batch_size": 16,
            "accumulate": 2,
            "ema": 0.9,
            "clip_norm": 1.0,
            "warmup_steps": 5,
        },
    )
    return config_file(out.with_suffix(".yaml"), values)


def test_killed__with_everything_on_it_resumes_to_the_bit(folder: Path, cache: Path) -> None:
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    assert run(by_module("train"), "--config", everything(cache, undisturbed)).status == 0
    config = everything(cache, killed)
    with start(by_module("train"), "--config", config) as process:
        until(lambda: (killed / "checkpoints" / "8").exists() or process.poll() is not None)
        kill(process.pid)
    last = run(by_module("train"), "--config", config)
    assert last.status == 0, last.stderr
    assert 8 <= last.result["resumed_from"] < 40
    for name in ("model.safetensors", "heads.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    weights = "checkpoints/40/training.safetensors"
    assert (killed / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert (killed / weights).read_bytes() != (killed / "model.safetensors").read_bytes()
    told = [
        [{k: v for k, v in line.items() if k in COMPARED} for line in metrics(out)]
        for out in (killed, undisturbed)
    ]
    assert told[0] == told[1]


COMPARED = ("step", "epoch", "loss", "gradient_norm", "student_grid", "teachers", "lr")


def test_torchrun__two_processes_are_one(folder: Path, cache: Path) -> None:
    """The same rows in the same order, the same losses and weights but for rounding; and a run
    begun by one process goes on with two."""
    alone, both, mixed = (folder / name for name in ("alone", "both", "mixed"))
    changes = {
        "teachers": {"proxy": {"grids": [2, 3]}},
        "stage": "multires",
        "checkpoint": {"every_steps": 1, "keep": 50},
        "optim": settings(cache, alone)["optim"] | {"accumulate": 3, "ema": 0.5},
    }
    assert train_here(cache, alone, **changes).result["step"] == STEPS
    torchrun(config_file(folder / "both.yaml", settings(cache, both, **changes)))
    train_here(cache, mixed, max_steps=5, **changes)
    torchrun(config_file(folder / "mixed.yaml", settings(cache, mixed, **changes)))
    expected = metrics(alone)
    for out in (both, mixed):
        for mine, theirs in zip(metrics(out), expected, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
            assert mine["student_grid"] == theirs["student_grid"]
        weights = load_file(alone / "model.safetensors")
        for name, value in load_file(out / "model.safetensors").items():
            torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-4)
        state = json.loads((out / "checkpoints" / "7" / "state.json").read_text())
        single = json.loads((alone / "checkpoints" / "7" / "state.json").read_text())
        assert state["stream"] == single["stream"]


def torchrun(config: Path) -> None:
    how = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run((*how, "trainer/train.py"), "--config", config, environment=dict(os.environ))
    assert done.status == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1
    assert done.result["step"] == STEPS
