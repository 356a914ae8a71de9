"""`teachonce train` as users run it: from a cache alone, killed and resumed to the bit."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders import ROOT, photograph_folder
from tests.caches import CNN, VIT, config_of, extract_here
from tests.processes import TRAIN_BY_PATH, Ended, by_module, config_file, kill, run, start, until

STEPS, BATCH = 40, 16
"""Five batches an epoch of 74 rows, the last of ten."""
KEYS = {
    *("stage", "step", "loss", "rows_per_second", "seconds", "resumed_from", "checkpoint"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two teachers over labelled pictures."""
    folder = tmp_path_factory.mktemp("train")
    source = photograph_folder(folder / "pictures", 37)
    teachers = {"vit": VIT, "cnn": CNN}
    extract_here(config_of(folder / "cache", source, teachers=teachers, views={"per_image": 2}))
    return folder


def config(folder: Path, out: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "cache": str(folder / "cache"),
        "student": {"model": "timm:test_vit"},
        "student_grids": [2],
        "head": {"hidden": 16},
        "optim": {"lr": 1e-3, "steps": STEPS, "batch_size": BATCH},
        "checkpoint": {"every_steps": 2, "keep": 3},
        "loader": {"threads": 2},
        "out": str(out),
    }
    out.parent.mkdir(exist_ok=True)
    return config_file(out.with_suffix(".yaml"), values | changes)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[Path, Ended]:
    out = folder / "undisturbed"
    return out, run(TRAIN_BY_PATH, "--config", config(folder, out))


def losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_train__tells_what_it_did(undisturbed: tuple[Path, Ended]) -> None:
    out, done = undisturbed
    assert done.status == 0, done.stderr
    assert done.result.keys() >= KEYS
    told = done.result
    assert (told["stage"], told["step"], told["resumed_from"]) == ("fixed", STEPS, None)
    assert told["checkpoint"] == str(out / "checkpoints" / str(STEPS))
    assert told["rows_per_second"] > 0
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["36", "38", "40"]
    assert json.loads((out / "model.json").read_text())["snapshot"] == 1
    assert len(done.stdout.splitlines()) == 1


def test_train__loss_falls(undisturbed: tuple[Path, Ended]) -> None:
    out, done = undisturbed
    seen = losses(out)
    assert seen[-1] == pytest.approx(done.result["loss"])
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3])


def test_train__again_does_nothing_and_tells_the_last_loss(
    folder: Path, undisturbed: tuple[Path, Ended]
) -> None:
    out, done = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").rglob("*")}
    left = out / f".model.safetensors-{'0a' * 16}"  # as a kill leaves it
    left.write_bytes(b"half")
    again = run(by_module("train"), "--config", config(folder, out))
    assert again.status == 0, again.stderr
    assert (again.result["step"], again.result["resumed_from"]) == (STEPS, STEPS)
    assert again.result["loss"] == done.result["loss"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not left.exists()


def test_train__max_steps_then_the_rest(folder: Path, undisturbed: tuple[Path, Ended]) -> None:
    out = folder / "short"
    short = run(by_module("train"), "--config", config(folder, out), "--max-steps", 3)
    assert short.status == 0, short.stderr
    assert short.result["step"] == 3
    assert weights(out) != weights(undisturbed[0])
    rest = run(by_module("train"), "--config", config(folder, out))
    assert (rest.result["step"], rest.result["resumed_from"]) == (STEPS, 3)
    assert rest.result["loss"] == undisturbed[1].result["loss"]
    assert weights(out) == weights(undisturbed[0])


def newest(out: Path) -> int:
    folders = out.glob("checkpoints/[0-9]*")
    return max((int(path.name) for path in folders), default=0)


def test_train__killed_and_resumed_is_the_same_to_the_bit(
    folder: Path, undisturbed: tuple[Path, Ended]
) -> None:
    """Across ends of epochs (every fifth step), each time with other threads."""
    out = folder / "killed"
    died_at = [0]
    for threads, step in enumerate(sorted(random.Random(5).sample(range(1, STEPS - 10), 3)), 3):
        words = ("--config", config(folder, out, loader={"threads": threads}))
        with start(by_module("train"), *words) as process:
            until(lambda step=step: newest(out) >= step or process.poll() is not None)  # type: ignore[misc]
            kill(process.pid)
            process.wait()
        died_at.append(newest(out))
    assert died_at == sorted(set(died_at))
    assert died_at[-1] < STEPS
    last = run(by_module("train"), *words, "--loader.prefetch-batches", 1)
    assert last.status == 0, last.stderr
    assert last.result["resumed_from"] is not None
    assert last.result["loss"] == undisturbed[1].result["loss"]
    assert weights(out) == weights(undisturbed[0])
    assert list((out / "checkpoints").glob(".*")) == []


def test_train__another_recipe_is_refused_with_both_values(
    folder: Path, undisturbed: tuple[Path, Ended]
) -> None:
    out = shutil.copytree(undisturbed[0], folder / "other")
    done = run(by_module("train"), "--config", config(folder, out), "--optim.lr", "0.5")
    assert done.status == 2
    assert "optim.lr" in done.result["error"]
    assert "was 0.001, now 0.5" in done.result["error"]


def test_train__loads_no_teacher_no_ray_and_nothing_of_the_pipeline(folder: Path) -> None:
    program = (
        "import sys\n"
        "from infra.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert 'trainer' in names and 'torch' in names\n"
        "assert not names & {'pipeline', 'ray', 'zarr'}, names\n"
        "sys.exit(status)\n"
    )
    words = ["train", "--config", str(config(folder, folder / "light")), "--max-steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_evaluate__works_on_the_run(folder: Path, undisturbed: tuple[Path, Ended]) -> None:
    words = ("--student", undisturbed[0], "--data", folder / "pictures")
    done = run(by_module("evaluate"), *words)
    assert done.status == 0, done.stderr
    assert 0 <= done.result["knn_top1"] <= 1
    assert done.result["parameters"] > 100_000
