import json
import math
from pathlib import Path

import pytest
import torch

from schemas.errors import TeachonceError
from tests.unit.trainer.learning import batch_of
from trainer.learner import Step
from trainer.metrics import Losses, Metrics, Pace, fetch, line_of
from trainer.parallel import ALONE

pytestmark = pytest.mark.unit

FACTORS = {"a": 2.0, "b": 1.0}
LOSSES = Losses(0.5, {"a": {"cls": 0.125, "patch": 0.25}}, 3.0, 7, 1)


def steps_in(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def result(patch: float = 0.25, norm: float = 3.0) -> Step:
    parts = {"a": {"patch": torch.tensor(patch), "cls": torch.tensor(0.125)}}
    return Step(parts, torch.tensor([7.0, 1.0]), torch.tensor(norm))


def test_fetch__sums_what_took_part_by_its_weight() -> None:
    found = fetch(1, result(), FACTORS, ALONE)
    assert found == Losses(0.75, {"a": {"patch": 0.25, "cls": 0.125}}, 3.0, 7, 1)


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (result(patch=math.nan), "the loss is nan"),
        (result(norm=math.inf), "norm of its gradient inf"),
    ],
)
def test_fetch__refuses_what_is_no_number(step: Step, found: str) -> None:
    with pytest.raises(TeachonceError, match=rf"step 3: .*{found}[,;] .* lower optim.lr"):
        fetch(3, step, FACTORS, ALONE)


def test_line__holds_what_was_measured(tmp_path: Path) -> None:
    metrics, pace, batch = Metrics(tmp_path / "run", 0), Pace(0, 9), batch_of(0)
    with pace.waiting():
        pass
    pace.count(batch)
    metrics.line(line_of(1, LOSSES, batch, 1e-3, pace.lap(1)))
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (record["step"], record["epoch"], record["loss"]) == (1, 0, 0.5)
    assert record["teachers"] == {"a": {"grid": 4, "patch": 0.25, "cls": 0.125}}
    assert (record["student_grid"], record["gradient_norm"], record["lr"]) == (4, 3.0, 1e-3)
    assert (record["tokens_without_direction"], record["tokens_not_finite"]) == (7, 1)
    assert record["tokens_per_second"] == pytest.approx(16 * record["rows_per_second"])
    assert record["rows_per_second"] > 0
    assert 0 <= record["data_wait"] <= 1
    assert record["seconds_left"] > 0


def test_pace__counts_rows_of_all_ranks_since_the_last_lap() -> None:
    pace, batch = Pace(10, 12), batch_of(0, rows=2)
    object.__setattr__(batch, "total", 8)
    pace.count(batch)
    assert pace.lap(11)["rows_per_second"] > 0
    assert pace.lap(12) | {"data_wait": 0} == {
        "rows_per_second": 0,
        "tokens_per_second": 0,
        "data_wait": 0,
        "seconds_left": 0,
    }
    assert pace.rows_per_second > 0


def test_resume__takes_the_later_lines_back(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        metrics.line({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # where a kill cut it off
    Metrics(tmp_path, 2).line({"step": 3})
    assert steps_in(tmp_path) == [1, 2, 3]
