"""A span of several chunks, and shards that fill at different times within it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.store import open_store
from pipeline import sets as feature_sets
from pipeline.teachers import LoadedTeacher
from schemas.errors import ConfigError, SourceError, TeacherError
from tests.caches import CNN, VIT, Quiet, commits, config_of, extract_here, pictures, verify_here
from trainer.cache import CacheReader

IMAGES, VIEWS, SPAN = 70, 3, 64


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Few pictures, yet a span of two chunks and a short one behind it."""
    monkeypatch.setattr("pipeline.planning.span_images", lambda images: SPAN)
    return pictures(tmp_path / "pictures", IMAGES)


def test_process__the_size_of_shards_changes_no_number(tmp_path: Path, source: Path) -> None:
    readers = []
    for rows_per_shard, shards in ((32, 7), (64, 4)):
        cache = tmp_path / f"cache{rows_per_shard}"
        result = extract_here(
            config_of(
                cache,
                source,
                views={"per_image": VIEWS},
                teachers={"vit": VIT, "cnn": {**CNN, "grids": [1]}},
                rows_per_shard=rows_per_shard,
                calibration_images=16,
            )
        ).result
        assert result["ok"] == IMAGES * VIEWS
        assert result["shards"] == 2 * shards == len(commits(open_store(str(cache))))
        assert result["teacher_forwards"] == 2 * IMAGES * VIEWS
        verified = verify_here(cache)
        assert (verified.status, verified.result["ok"]) == (0, IMAGES * VIEWS)
        readers.append(CacheReader(str(cache)))
    for block in range(len(readers[0].covered(readers[0].generations[0]))):
        (first, ours), (second, theirs) = (reader.read_block(0, block) for reader in readers)
        assert first.plan.equals(second.plan)
        for name, part in first.sets.items():
            np.testing.assert_array_equal(ours[name], theirs[name])
            np.testing.assert_array_equal(part.cls, second.sets[name].cls)
            assert part.pixels_sha256 == second.sets[name].pixels_sha256


def test_process__a_data_set_that_is_gone_makes_no_bad_rows(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    both = config_of(cache, source, teachers={"vit": VIT, "cnn": CNN})
    assert extract_here(config_of(cache, source)).result["ok"] == IMAGES
    names = sorted(source.iterdir())
    kept = [name.read_bytes() for name in names]
    for name in names[1:]:
        name.unlink()
    with pytest.raises(ConfigError, match=r"63 of the 64 pictures .* are no longer there"):
        extract_here(both)
    names[0].unlink()
    with pytest.raises(ConfigError, match="none of them is in"):
        extract_here(both)
    for name, data in zip(names, kept):
        name.write_bytes(data)

    def lost(*arguments: object) -> Iterator[Any]:
        """It goes between the listing and the work."""
        for name in names:
            name.unlink()
        yield from span_tasks(*arguments)  # type: ignore[arg-type]

    span_tasks = feature_sets.span_tasks
    monkeypatch.setattr(feature_sets, "span_tasks", lambda *arguments: list(lost(*arguments)))
    with pytest.raises(SourceError, match=r"none of \d+ planned pictures is there"):
        extract_here(both)


def test_process__no_room_on_the_gpu_halves_the_batch(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LoadedTeacher.__call__

    def small(teacher: LoadedTeacher, squares: list[Any]) -> Any:
        if len(squares) > 9:
            raise torch.OutOfMemoryError("no room")
        return call(teacher, squares)

    monkeypatch.setattr(LoadedTeacher, "__call__", small)
    terminal = Quiet()
    told = extract_here(config_of(tmp_path / "cache", source), terminal).result
    assert (told["ok"], told["teacher_forwards"]) == (IMAGES, IMAGES)
    assert any(line.startswith("batch size   8  (a GPU had") for line in terminal.lines)
    assert verify_here(tmp_path / "cache", against_teacher=5).status == 0


def test_process__no_room_for_one_picture_is_said(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(teacher: LoadedTeacher, squares: list[Any]) -> Any:
        calls.append(squares)
        if len(calls) == 1:  # the probe's
            return call(teacher, squares)
        raise torch.OutOfMemoryError("no room")

    calls: list[Any] = []
    call = LoadedTeacher.__call__
    monkeypatch.setattr(LoadedTeacher, "__call__", none)
    with pytest.raises(TeacherError, match="test_vit: the GPU has no room for one picture of 32"):
        extract_here(config_of(tmp_path / "cache", source))
