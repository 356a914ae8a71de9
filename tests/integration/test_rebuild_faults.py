"""Data sets that change at the worst moment: between planning and computing, and around a job that
dies before its snapshot."""

import os
from pathlib import Path
from typing import Any

import pytest

import pipeline.extract
from schemas.errors import TeachonceError
from tests.builders import photograph_bytes
from tests.caches import CNN, VIT, config_of, extract_here, pictures, verify_here
from trainer import CacheStream

PICTURES = 40


def change(name: Path, seed: int) -> None:
    name.write_bytes(photograph_bytes(seed, 52, 44))
    os.utime(name, ns=(seed * 10**9, seed * 10**9))


def extract(folder: Path, *teachers: str, **changes: Any) -> dict[str, Any]:
    known = {"vit": VIT, "cnn": CNN}
    asked = {"teachers": {name: known[name] for name in teachers}, **changes}
    outcome = extract_here(config_of(folder / "cache", folder / "pictures", **asked))
    assert outcome.status == 0
    return outcome.result


def rows_served(folder: Path) -> int:
    """Of one epoch over all teachers, every picture replayed and compared."""
    rows = 0
    for batch in CacheStream(str(folder / "cache"), pixels=32, batch_size=16):
        rows += int(batch.weight.sum())
        if batch.state["epoch"] == 1:
            return rows
    raise AssertionError


def assert_sound(folder: Path, rows: int) -> None:
    verified = verify_here(folder / "cache", against_teacher=100)
    assert verified.status == 0, verified.result["damage"]
    assert (verified.result["rows"], verified.result["ok"]) == (rows, rows)
    compared = verified.result["against_teacher"].values()
    assert all(part["pictures_changed"] == 0 for part in compared)
    assert rows_served(folder) == rows


def test_changes__after_planning_are_mended_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "pictures", PICTURES)
    extract(tmp_path, "vit")
    grow_plan = pipeline.extract.grow_plan

    def changed_after(*arguments: Any) -> Any:
        planned = grow_plan(*arguments)
        change(source / "0007.jpg", 900)
        return planned

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.extract, "grow_plan", changed_after)
        extract(tmp_path, "vit", "cnn")
    assert verify_here(tmp_path / "cache").result["misaligned"] == 1
    again = extract(tmp_path, "vit", "cnn")
    assert again["teacher_forwards"] == 2
    assert_sound(tmp_path, PICTURES)


@pytest.mark.parametrize("views", [2, 4])
def test_changes__around_a_job_that_died_before_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    source = pictures(tmp_path / "pictures", PICTURES)

    def dies(*arguments: Any) -> Any:
        raise TeachonceError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.extract, "publish", dies)
        with pytest.raises(TeachonceError, match="killed"):
            extract(tmp_path, "vit", views={"per_image": 2})
    change(source / "0007.jpg", 900)
    told = extract(tmp_path, "vit", "cnn", views={"per_image": views})
    assert told["ok"] == PICTURES * views
    assert_sound(tmp_path, PICTURES * views)


def test_changes__beyond_the_limit_are_not_mixed_in(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", PICTURES)
    extract(tmp_path, "vit")
    for seed, name in enumerate(sorted(source.iterdir())[::5]):
        change(name, 900 + seed)
    limited = {"source": str(source), "limit": 10}
    assert extract(tmp_path, "vit", "cnn", images=limited)["rows"] == 10
    assert verify_here(tmp_path / "cache").status == 0
    assert extract(tmp_path, "vit", "cnn")["rows"] == PICTURES
    assert_sound(tmp_path, PICTURES)


def test_first_pictures__that_cannot_be_read_leave_no_calibration(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pictures", 1)
    sound = (source / "0000.jpg").read_bytes()
    (source / "0000.jpg").write_bytes(b"none")
    with pytest.raises(TeachonceError, match="none of 1 pictures gives features to measure"):
        extract(tmp_path, "vit")
    (source / "0000.jpg").write_bytes(sound)
    pictures(source, PICTURES)
    assert extract(tmp_path, "vit")["ok"] == PICTURES
    assert_sound(tmp_path, PICTURES)


def test_a_renamed_teacher__has_one_name(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 5)
    extract(tmp_path, "vit")
    config = config_of(tmp_path / "cache", tmp_path / "pictures", teachers={"other": VIT})
    assert extract_here(config).result["teacher_forwards"] == 0
    assert list(CacheStream(str(tmp_path / "cache"), pixels=None, batch_size=5).teachers) == [
        "other"
    ]
