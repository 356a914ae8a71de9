import importlib.util
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.caches import Quiet
from trainer.report import Report

pytestmark = pytest.mark.unit


def record(step: int, loss: float = 0.5, **teachers: dict[str, float]) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "gradient_norm": 2.0,
        "teachers": teachers or {"a": {"grid": 2, "cls": 0.25, "patch": 0.125}},
        "lr": 1e-3,
        "rows_per_second": 10.0,
    }


def scalars(out: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_report__is_a_file_event_files_and_a_picture(tmp_path: Path) -> None:
    terminal = Quiet()
    report = Report(tmp_path, 0, terminal)
    for step in (1, 2, 3):
        report.line(record(step, loss=1 / step))
        report.saved()
    report.line(record(4, b={"grid": 3, "patch": 0.5}))
    report.close()
    assert terminal.lines == []
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (960, 640)
    assert scalars(tmp_path, "a/patch") == {1: 0.125, 2: 0.125, 3: 0.125}
    assert scalars(tmp_path, "b/grid") == {4: 3.0}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_report__of_a_resumed_run_takes_later_steps_back(tmp_path: Path) -> None:
    for first, steps in ((0, (1, 2, 3)), (1, (2,))):
        report = Report(tmp_path, first, Quiet())
        for step in steps:
            report.line(record(step, loss=first + 0.5))
        report.close()
    assert scalars(tmp_path, "loss") == {1: 0.5, 2: 1.5}


def test_report__without_the_libraries_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    terminal = Quiet()
    report = Report(tmp_path, 0, terminal)
    report.line(record(1))
    report.saved()
    report.close()
    assert [line.split()[:2] for line in terminal.lines] == [
        ["tensorboard", "none"],
        ["curves", "none"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
