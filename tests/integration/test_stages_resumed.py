"""A later stage's run begun anew, killed and resumed, and shared by two processes."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.errors import ResumeError
from tests.processes import by_module, config_file, kill, run, start, until
from tests.trainings import STEPS, metrics, settings, train_here

EVERYTHING: dict[str, Any] = {
    "stage": "multires",
    "student_grids": [2, 3, 4],
    "augment": {"color_jitter": 0.4, "grayscale": 0.2, "blur": 0.5, "solarize": 0.2},
}
COMPARED = ("step", "epoch", "loss", "gradient_norm", "student_grid", "teachers", "lr")


def test_from_weights__begins_anew_and_goes_on_when_it_was_stopped(
    proxy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, teachers = tmp_path / "run", {"proxy": {"grids": [2]}}
    before = train_here(proxy_cache, out, teachers=teachers, max_steps=4)
    other = {"teachers": teachers, "loss": {"patch": {"beta": 2.0}}}
    with pytest.raises(ResumeError, match="from_weights: true"):
        train_here(proxy_cache, out, **other)

    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.loop.Loop.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_here(proxy_cache, out, from_weights=True, **other)
    aside = out / "checkpoints.before-4"
    assert {"4", "metrics.jsonl", "tensorboard"} <= {path.name for path in aside.iterdir()}
    begun = load_file(out / "checkpoints" / "0" / "student.safetensors")
    reached = load_file(before.out / "model.safetensors")
    assert all(torch.equal(value, reached[name]) for name, value in begun.items())
    done = train_here(proxy_cache, out, from_weights=True, **other)
    assert (done.result["resumed_from"], done.result["step"]) == (0, STEPS)
    again = train_here(proxy_cache, out, from_weights=True, **other)
    assert again.result["resumed_from"] == STEPS
    assert [line["step"] for line in metrics(out)][-1] == STEPS


def test_from_weights__interrupted_between_its_renames_is_finished(
    proxy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, teachers = tmp_path / "run", {"proxy": {"grids": [2]}}
    train_here(proxy_cache, out, teachers=teachers, max_steps=4)
    other = {"teachers": teachers, "seed": 1, "from_weights": True}
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "checkpoints.next":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_here(proxy_cache, out, **other)
    assert not (out / "checkpoints").exists()
    done = train_here(proxy_cache, out, **other)
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


def test_killed__with_everything_on_it_resumes_to_the_bit(stages: Path, proxy_cache: Path) -> None:
    undisturbed, killed = stages / "undisturbed", stages / "killed"
    assert run(by_module("train"), "--config", everything(proxy_cache, undisturbed)).status == 0
    config = everything(proxy_cache, killed)
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


def test_torchrun__two_processes_are_one(stages: Path, proxy_cache: Path) -> None:
    """The same rows in the same order, the same losses and weights but for rounding; and a run
    begun by one process goes on with two."""
    alone, both, mixed = (stages / name for name in ("alone", "both", "mixed"))
    changes = {
        "teachers": {"proxy": {"grids": [2, 3]}},
        "stage": "multires",
        "checkpoint": {"every_steps": 1, "keep": 50},
        "optim": settings(proxy_cache, alone)["optim"] | {"accumulate": 3, "ema": 0.5},
    }
    assert train_here(proxy_cache, alone, **changes).result["step"] == STEPS
    torchrun(config_file(stages / "both.yaml", settings(proxy_cache, both, **changes)))
    train_here(proxy_cache, mixed, max_steps=5, **changes)
    torchrun(config_file(stages / "mixed.yaml", settings(proxy_cache, mixed, **changes)))
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
