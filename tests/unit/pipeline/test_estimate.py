"""`plan` says what `extract` then does, whatever is to be done, and writes nothing."""

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.command import Outcome
from infra.store import open_store
from pipeline import estimate, pace
from pipeline import pictures as decoding
from pipeline.bill import Bill
from schemas.errors import ConfigError, ImageError
from schemas.extract_config import Cost
from schemas.limits import Limits
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, Quiet, commits, config_of, extract_here, pictures

KEYS = {
    *("rows", "teacher_forwards", "bytes_by_codec", "seconds_estimate", "breakeven_epochs"),
    *("hours", "price", "storage_price_per_month", "currency", "lacks", "decodes", "codecs"),
}


@pytest.fixture(autouse=True)
def _one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TIMED_BATCHES", 1)


class Place:
    """A data set, a cache, and a configuration that changes."""

    def __init__(self, folder: Path, count: int = 40) -> None:
        self.source = pictures(folder / "pictures", count)
        self.cache = folder / "cache"
        self.told: dict[str, Any] = {
            "views": {"per_image": 2},
            "grids": [1, 2],
            "teachers": {"vit": VIT, "cnn": {**CNN, "grids": [1]}},
        }

    def plan(self) -> tuple[Outcome, list[str]]:
        terminal = Quiet()
        outcome = estimate.run(config_of(self.cache, self.source, **self.told), terminal)
        return outcome, terminal.lines

    def extract(self) -> tuple[Outcome, list[str]]:
        terminal = Quiet()
        config = config_of(self.cache, self.source, **self.told)
        return extract_here(config, terminal), terminal.lines

    def files(self) -> dict[str, int]:
        found = [path for path in self.cache.rglob("*") if path.is_file()]
        return {str(path): path.stat().st_mtime_ns for path in found}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def nothing(place: Place) -> None:
    """As it was."""


def new_pictures(place: Place) -> None:
    pictures(place.source, 35, first=900)


def changed_pictures(place: Place) -> None:
    for name in ("0003.jpg", "0017.jpg"):
        (place.source / name).write_bytes(photograph_bytes(777, 50, 44))
    os.utime(place.source / "0005.jpg", (1, 1))  # touched, not changed


def gone_pictures(place: Place) -> None:
    for name in ("0001.jpg", "0002.jpg"):
        (place.source / name).unlink()


def more_views(place: Place) -> None:
    place.told["views"] = {"per_image": 5}


def mostly_gone(place: Place) -> None:
    """More than is tolerated unless one says so."""
    gone_pictures(place)
    place.told["tolerate_bad_images"] = 0.5


def fewer_views(place: Place) -> None:
    place.told["views"] = {"per_image": 1}


def new_grid(place: Place) -> None:
    place.told["grids"] = [2, 1, 3]


def new_teacher(place: Place) -> None:
    place.told["teachers"] = {**place.told["teachers"], "new": {**VIT, "weights": "random:9"}}


def changed_teacher(place: Place) -> None:
    place.told["teachers"] = {"vit": {**VIT, "weights": "random:8"}, "cnn": CNN}


def one_teacher(place: Place) -> None:
    place.told["only"] = ["cnn"]


def lower_limit(place: Place) -> None:
    place.told["images"] = {"source": str(place.source), "limit": 7}


def lost_shards(place: Place) -> None:
    """As a run leaves them that ended before its snapshot."""
    store = open_store(str(place.cache))
    for key, commit in list(commits(store).items())[::3]:
        (place.cache / key).unlink()
        (place.cache / commit.tokens.key).unlink()
    for path in (place.cache / "commits" / "snapshots").iterdir():
        path.unlink()


def together(*changes: Callable[[Place], None]) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        for each in changes:
            each(place)

    change.__name__ = " + ".join(each.__name__ for each in changes)
    return change


CHANGES = [
    *(nothing, new_pictures, changed_pictures, gone_pictures, more_views, fewer_views, new_grid),
    *(new_teacher, changed_teacher, one_teacher, lower_limit, lost_shards),
    together(new_pictures, changed_pictures, more_views, new_teacher),
    together(new_pictures, one_teacher, new_grid),
    together(mostly_gone, fewer_views, new_teacher),
    together(changed_pictures, lower_limit, new_teacher),
    together(lost_shards, lower_limit, new_grid),
]


def said(lines: list[str]) -> list[str]:
    """What is to be done."""
    found = [line.replace("would get ", "") for line in lines]
    return [line for line in found if line.startswith(("plan ", "to do "))]


def foresees(place: Place) -> tuple[dict[str, object], dict[str, object]]:
    """Plan, then extract; everything that `plan` said has to come true."""
    before = place.files()
    ahead, announced = place.plan()
    assert place.files() == before
    done, reported = place.extract()
    for key in ("rows", "teacher_forwards", "decodes"):
        assert ahead.result[key] == done.result[key], key
    assert said(announced) == said(reported)
    again, _ = place.plan()
    assert again.result["lacks"] == []
    assert again.result["teacher_forwards"] == again.result["seconds_estimate"] == 0
    return ahead.result, done.result


def test_plan__of_a_new_cache(place: Place) -> None:
    ahead, _ = foresees(place)
    assert ahead.keys() == KEYS
    assert ahead["rows"] == 80
    assert ahead["teacher_forwards"] == 240
    assert ahead["lacks"] == [
        {"teacher": name, "grid": grid, "rows": 80, "why": "a new teacher"}
        for name, grid in (("vit", 1), ("vit", 2), ("cnn", 1))
    ]


def test_plan__bytes_are_those_of_full_shards(tmp_path: Path) -> None:
    ahead, done = foresees(Place(tmp_path, 64))
    assert ahead["bytes_by_codec"] == {"fp16": pytest.approx(done["bytes_written"], rel=0.05)}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_plan__after_a_change(place: Place, change: Callable[[Place], None]) -> None:
    place.extract()
    change(place)
    foresees(place)


def test_plan__retries_bad_pictures(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = decoding.decode

    def refuses(data: bytes, limits: Limits) -> Any:
        if zlib.crc32(data) % 2:
            raise ImageError("not today")
        return decode(data, limits)

    place.told["tolerate_bad_images"] = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", refuses)
        place.extract()
    assert place.plan()[0].result["teacher_forwards"] == 0
    place.told["retry_bad"] = True
    assert 0 < foresees(place)[0]["teacher_forwards"] < 240


def test_plan__breaks_even_on_the_whole_cache(place: Place) -> None:
    first = place.plan()[0].result["breakeven_epochs"]
    place.extract()
    again = place.plan()[0].result["breakeven_epochs"]
    assert isinstance(first, int)
    assert isinstance(again, int)
    assert first > 0
    assert again > 0


def test_plan__without_prices(place: Place) -> None:
    outcome, lines = place.plan()
    assert outcome.result["price"] is None
    assert outcome.result["storage_price_per_month"] is None
    assert "in machine seconds, without storage" in lines[-1]


def test_plan__with_prices(place: Place) -> None:
    place.told["cost"] = {"worker_hour": 3.6, "storage_gb_month": 1e3, "workers": 2, "months": 6}
    outcome, lines = place.plan()
    told = outcome.result
    hours, seconds = float(str(told["hours"])), float(str(told["seconds_estimate"]))
    assert seconds == pytest.approx(hours * 3600 / 2, abs=0.06)
    assert told["price"] == pytest.approx(hours * 3.6, abs=1e-5)
    assert isinstance(told["bytes_by_codec"], dict)
    assert told["storage_price_per_month"] == pytest.approx(told["bytes_by_codec"]["fp16"] / 1e6)
    assert "in USD, with 6 months of storage" in lines[-1]


def test_plan__no_pictures(tmp_path: Path) -> None:
    place = Place(tmp_path, 0)
    outcome, lines = place.plan()
    assert outcome.result.keys() == KEYS
    assert (outcome.result["rows"], outcome.result["seconds_estimate"]) == (0, None)
    assert "no pictures found" in lines[-1]


def test_plan__no_sound_picture(tmp_path: Path) -> None:
    place = Place(tmp_path, 0)
    (place.source / "empty.jpg").write_bytes(b"")
    outcome, lines = place.plan()
    assert (outcome.result["rows"], outcome.result["seconds_estimate"]) == (2, None)
    assert "no sound picture" in lines[-1]


def test_plan__refuses_what_extract_refuses(place: Place) -> None:
    place.extract()
    place.told["views"] = {"per_image": 2, "seed": 5}
    with pytest.raises(ConfigError, match=r"views\.seed: planned 0, now 5"):
        place.plan()


BILL = Bill(
    seconds=0.0,
    whole_seconds=7200.0,
    epoch_seconds=1000.0,
    bytes_by_codec={"fp16": 2_000_000_000},
    cost=Cost(),
)


@pytest.mark.parametrize(
    ("cost", "epochs"),
    [
        ({}, 8),  # 7.2 epochs of machine seconds
        ({"worker_hour": 3.6}, 8),
        ({"worker_hour": 3.6, "storage_gb_month": 0.5}, 9),  # 7.2 + 1 of 1.0 an epoch
        ({"worker_hour": 3.6, "storage_gb_month": 0.5, "months": 10}, 18),
        ({"storage_gb_month": 0.5}, 8),  # nothing to weigh it against
        ({"worker_hour": 0.0, "storage_gb_month": 0.5}, None),
    ],
)
def test_bill__break_even(cost: dict[str, float], epochs: int | None) -> None:
    assert replace(BILL, cost=Cost(**cost)).breakeven_epochs == epochs
