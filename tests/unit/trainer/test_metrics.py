import json
from pathlib import Path

import pytest
import torch

from schemas.errors import TeachonceError
from trainer.metrics import Metrics

pytestmark = pytest.mark.unit


def steps_in(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def write(metrics: Metrics, step: int, loss: float = 0.5) -> float:
    parts = {"a": {"patch": torch.tensor(0.25), "cls": torch.tensor(0.125)}}
    return metrics.line(step, torch.tensor(loss), parts, 1e-3)


def test_line__holds_what_was_measured(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "run", 0)
    with metrics.waiting():
        pass
    metrics.count(32)
    assert write(metrics, 1) == 0.5
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["loss"] == 0.5
    assert record["teachers"] == {"a": {"patch": 0.25, "cls": 0.125}}
    assert record["lr"] == 1e-3
    assert record["rows_per_second"] > 0
    assert 0 <= record["data_wait"] <= 1


def test_resume__takes_the_later_lines_back(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        write(metrics, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # where a kill cut it off
    write(Metrics(tmp_path, 2), 3)
    assert steps_in(tmp_path) == [1, 2, 3]


def test_line__refuses_a_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(TeachonceError, match=r"step 3: the loss is nan; .* lower optim.lr"):
        write(Metrics(tmp_path, 0), 3, loss=float("nan"))
    assert steps_in(tmp_path) == []
