"""The loss is timed against ways that give the same loss."""

import warnings

import pytest
import torch

from infra.terminal import Terminal
from schemas.options import BenchOptions
from trainer.bench_loss import LossBench
from trainer.loss_cases import CODES, Case, cases, made_up
from trainer.loss_providers import providers

pytestmark = pytest.mark.unit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch's, of parts of its own
    WAYS = providers("cpu")
EAGER = {name: way for name, way in WAYS.items() if not name.startswith("compile")}
GRIDS = [(2, 2), (3, 2), (2, 3)]


def bench() -> LossBench:
    return LossBench("cpu", BenchOptions(what="loss", repeats=2), Terminal(), EAGER)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("grids", GRIDS)
def test_rows__every_way_is_as_near_as_its_precision_allows(
    code: str, grids: tuple[int, int]
) -> None:
    timer = bench()
    timer.copy_row()
    rows = timer.rows(Case(code, 32, *grids))  # type: ignore[arg-type]
    assert [row["way"] for row in rows] == list(EAGER)
    for row in rows:
        exact = row["way"] != "eager_bf16"
        assert float(str(row["gradient_error"])) < (1e-5 if exact else 0.05)
        assert float(str(row["loss_error"])) < (1e-5 if exact else 0.05)
        assert (
            float(str(row["fastest_ms"])) <= float(str(row["ms"])) <= float(str(row["slowest_ms"]))
        )
        assert float(str(row["share_of_copy"])) > 0


def test_rows__only_ours_takes_part_with_masked_tokens() -> None:
    timer = bench()
    timer.copy_row()
    assert {row["way"] for row in timer.rows(Case("int8", 8, 2, 2, masked=True))} == {"ours_twin"}


def test_bytes__are_those_of_one_pass() -> None:
    case = Case("int4", 32, 3, 2)
    given = made_up(case, 5, torch.float32, "cpu", seed=0)
    read = 5 * (9 * 32 * 4 + 4 * 16 + 4 * 2)
    assert case.bytes(given) == read + 5 * 9 * 32 * 4
    assert Case("int4", 32, 3, 2, backward=False).bytes(given) == read


def test_made_up__is_the_same_every_time_and_a_student_that_has_learned() -> None:
    case = Case("int8", 64, 2, 2)
    first, again = (made_up(case, 3, torch.float32, "cpu", seed=4) for _ in range(2))
    assert torch.equal(first.prediction, again.prediction)
    assert torch.equal(first.told.values, again.told.values)
    cosine = torch.nn.functional.cosine_similarity(first.prediction, first.told.decoded(), dim=-1)
    assert 0.6 < cosine.mean().item() < 0.8


def test_cases__cover_every_code_and_order_of_grids() -> None:
    every = list(cases((64, 128), 4))
    assert {case.code for case in every} == set(CODES)
    assert {(case.mine, case.theirs) for case in every} == {(4, 4), (6, 4), (4, 6)}
    assert any(case.masked for case in every)
    assert any(not case.backward for case in every)


def test_cls_rows__time_three_teachers_at_once() -> None:
    forward, both = bench().cls_rows()
    assert (forward["case"], both["case"]) == (
        f"{both['case']}, forward alone",
        "CLS of 3 teachers",
    )
    assert all(float(str(row["ms"])) > 0 for row in (forward, both))
