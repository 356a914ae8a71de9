"""`teachonce extract` as users run it: its own process, real Ray."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from infra.catalog import Catalog
from infra.store import open_store
from tests.caches import CNN, VIT, commits, odd_pictures, pictures, read_table, settings
from tests.processes import (
    EXTRACT_BY_PATH,
    Ended,
    by_module,
    config_file,
    descendants,
    ended,
    is_running,
    run,
    start,
    until,
)

PICTURES, VIEWS, SETS = 30, 2, 4
SOUND, UNSOUND = PICTURES + 7, 3
REASONS = {
    "cut.jpg": "image file is truncated",
    "empty.jpg": "the file is empty",
    "text.jpg": "not a picture in any known format",
}
KEYS = {
    *("rows", "ok", "bad", "shards", "shards_written", "shards_reused", "teacher_forwards"),
    *("bytes_written", "seconds", "snapshot"),
}


def files(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


class Place:
    """A data set with pictures of every kind, and what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.source = pictures(folder / "pictures", PICTURES)
        odd_pictures(self.source)
        self.cache = folder / "cache"
        self.folder = folder

    def config(self, **changes: Any) -> Path:
        values = settings(
            self.cache,
            self.source,
            views={"per_image": VIEWS},
            grids=[1, 2],
            teachers={"vit": VIT, "cnn": CNN},
        )
        return config_file(self.folder / "extract.yaml", values | changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("extract"))


@pytest.fixture(scope="module")
def first(place: Place) -> Ended:
    """The first run, by path, as a Ray job would have it."""
    return run(EXTRACT_BY_PATH, "--config", place.config())


def test_extract__counts_every_row(first: Ended) -> None:
    rows = (SOUND + UNSOUND) * VIEWS
    told = first.result
    assert told.keys() >= KEYS
    assert (told["rows"], told["bad"]) == (rows, UNSOUND * VIEWS)
    assert told["ok"] + told["bad"] == rows
    assert told["teacher_forwards"] == SOUND * VIEWS * SETS
    assert told["shards"] == told["shards_written"] == 3 * SETS
    assert (told["shards_reused"], told["snapshot"]) == (0, 1)


def test_extract__past_what_is_tolerated_ends_with_one(first: Ended) -> None:
    assert first.status == 1


def test_extract__speaks_on_standard_error(first: Ended) -> None:
    assert len(first.stdout.splitlines()) == 1
    for text in ("teacher vit has random weights", "empty.jpg: the file is empty", "workers"):
        assert text in first.stderr


def test_extract__writes_down_why_a_row_is_bad(place: Place, first: Ended) -> None:
    store = open_store(str(place.cache))
    for key, commit in commits(store).items():
        for row in read_table(store, commit.cls.key).to_pylist():
            reason = REASONS.get(row["key"])
            assert row["status"] == ("bad" if reason else "ok"), (key, row["key"], row["reason"])
            assert (reason or "") in (row["reason"] or "")
            if row["key"] == "turned.jpg":
                assert (row["width"], row["height"]) == (37, 53)
    bad = [commit.bad for commit in commits(store).values()]
    assert sum(bad) == UNSOUND * VIEWS * SETS


def test_extract__bytes_written_are_those_on_the_disk(place: Place, first: Ended) -> None:
    shards = commits(open_store(str(place.cache)))
    records = sum((place.cache / key).stat().st_size for key in shards)
    objects = sum(commit.tokens.size + commit.cls.size for commit in shards.values())
    assert first.result["bytes_written"] == records + objects


def test_verify__finds_nothing(place: Place, first: Ended) -> None:
    done = run(by_module("verify"), place.cache)
    assert done.status == 0
    told = done.result
    assert (told["missing"], told["corrupt"], told["misaligned"]) == (0, 0, 0)
    assert (told["rows"], told["bad"]) == (first.result["rows"], first.result["bad"])
    assert len(told["coverage"]) == SETS


def test_extract__again_does_nothing(place: Place, first: Ended) -> None:
    before = files(place.cache)
    config = place.config(tolerate_bad_images=0.5)
    again = run(by_module("extract"), "--config", config)
    assert again.status == 0
    told = again.result
    assert (told["shards_written"], told["teacher_forwards"], told["bytes_written"]) == (0, 0, 0)
    assert told["shards_reused"] == told["shards"] == first.result["shards"]
    assert (told["rows"], told["ok"], told["snapshot"]) == (80, 74, 1)
    assert files(place.cache) == before


def test_extract__another_data_set_is_refused(place: Place, first: Ended) -> None:
    before = files(place.cache)
    others = pictures(place.folder / "others", 2, first=900)
    config = place.config(images={"source": str(others)})
    done = run(by_module("extract"), "--config", config)
    assert done.status == 2
    assert f"holds the pictures of {place.source}" in done.result["error"]
    assert files(place.cache) == before


def test_extract__new_pictures_and_a_new_teacher(place: Place, first: Ended) -> None:
    """Only the new pictures, with the old teachers; only the new teacher, on old pictures."""
    before = files(place.cache)
    pictures(place.source, 3, first=700)
    new = VIT | {"weights": "random:77", "grids": [1]}
    config = place.config(teachers={"vit": VIT, "cnn": CNN, "new": new}, tolerate_bad_images=1)
    done = run(by_module("extract"), "--config", config)
    assert done.status == 0
    told = done.result
    assert told["rows"] == first.result["rows"] + 3 * VIEWS
    assert told["teacher_forwards"] == 3 * VIEWS * SETS + (SOUND + 3) * VIEWS
    assert told["shards_written"] == SETS + 4
    assert told["shards_reused"] == first.result["shards"]
    assert told["snapshot"] == 2
    after = files(place.cache)
    assert {path: after[path] for path in before} == before
    snapshot = Catalog(open_store(str(place.cache))).snapshot(2)
    assert sorted(snapshot.commit.teachers) == ["cnn", "new", "vit"]
    assert len(snapshot.table) == told["shards"]
    assert run(by_module("verify"), place.cache).status == 0


def test_extract__missing_folder(tmp_path: Path) -> None:
    values = settings(tmp_path / "cache", tmp_path / "nowhere")
    done = run(by_module("extract"), "--config", config_file(tmp_path / "c.yaml", values))
    assert done.status == 2
    assert f"images {tmp_path / 'nowhere'}: no picture, Parquet file" in done.result["error"]
    assert not (tmp_path / "cache").exists()


def test_extract__empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    values = settings(tmp_path / "cache", tmp_path / "empty")
    done = run(by_module("extract"), "--config", config_file(tmp_path / "c.yaml", values))
    assert done.status == 0
    assert (done.result["rows"], done.result["bad"], done.result["snapshot"]) == (0, 0, None)
    assert done.result.keys() >= KEYS
    assert "no pictures found" in done.stderr


def test_extract__names_every_mistake_at_once(tmp_path: Path) -> None:
    values = settings(tmp_path / "cache", tmp_path, grids=[2, 2], view={"per_image": 2})
    values["workers"]["batch_size"] = "many"
    done = run(by_module("extract"), "--config", config_file(tmp_path / "c.yaml", values))
    assert done.status == 2
    told = done.result["error"]
    assert "3 errors" in told
    assert "view: unknown key (did you mean views?)" in told
    assert "grids: a grid is named twice" in told
    assert "workers.batch_size:" in told
    assert "'many'" in told
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


def test_extract__ctrl_c_ends_soon_and_keeps_what_is_committed(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 600)
    values = settings(tmp_path / "cache", source, views={"per_image": 4}, grids=[10])
    config = config_file(tmp_path / "c.yaml", values)
    store = open_store(str(tmp_path / "cache"))
    with start(by_module("extract"), "--config", config) as process:
        until(lambda: len(commits(store)) >= 3)
        family = descendants(process.pid)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    done = ended(process.returncode, stdout, stderr)
    assert seconds < 10
    assert done.status == 130
    assert done.result == {"error": "interrupted"}
    assert "what was committed stays" in done.stderr
    assert "Traceback" not in done.stderr
    until(lambda: not any(map(is_running, family)), seconds=15)
    kept = commits(store)
    assert 3 <= len(kept) < 600 * 4 // 32
    for commit in kept.values():
        assert len(store.get(commit.tokens.key)) == commit.tokens.size
        assert len(store.get(commit.cls.key)) == commit.cls.size
    assert json.loads(store.get("commits/plan/000000.json"))["images"] == 600
