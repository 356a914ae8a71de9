"""Part of a cache is a cache: what is copied, what is made on the way, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.catalog import Catalog
from infra.command import Outcome
from infra.store import LocalStore
from pipeline import copy
from schemas.errors import ConfigError, DamageError
from schemas.layout import SetPath
from schemas.options import CopyOptions
from schemas.strict import parse
from tests.caches import CNN, VIT, Quiet, commits, config_of, extract_here, pictures, verify_here
from trainer import CacheStream
from trainer.cache import CacheReader

TOLD: dict[str, Any] = {
    "views": {"per_image": 3},
    "grids": [1, 2],
    "teachers": {"vit": VIT, "cnn": {**CNN, "grids": [1]}},
    "rows_per_shard": 32,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, two grids, three views; and the images of a second generation."""
    folder = tmp_path_factory.mktemp("whole")
    for first, count in ((0, 40), (40, 30)):
        source = pictures(folder / "pictures", count, first)
        extract_here(config_of(folder / "cache", source, **TOLD))
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "own")
    return tmp_path / "own/cache"


def copied(cache: Path, out: Path, **words: object) -> Outcome:
    options = parse(CopyOptions, {"cache": str(cache), "out": str(out), **words}, "test")
    return copy.run(options, Quiet())


def sets(folder: Path) -> set[tuple[int, str]]:
    paths = [SetPath.parse(commit.set) for commit in commits(LocalStore(folder)).values()]
    return {(path.grid, path.codec_label) for path in paths}


def test_copy__whole(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied(cache, out)
    assert verify_here(out, against_teacher=20).status == 0
    theirs, mine = (
        CacheReader(str(cache), teachers={"vit": 2}),
        CacheReader(str(out), teachers={"vit": 2}),
    )
    for generation in (0, 1):
        rows = [each.read_block(generation, 1)[1]["vit"] for each in (theirs, mine)]
        assert np.array_equal(*rows)


def test_copy__once_more_writes_nothing(cache: Path, tmp_path: Path) -> None:
    first = copied(cache, tmp_path / "out", codec="int8")
    again = copied(cache, tmp_path / "out", codec="int8")
    assert first.result["bytes_written"] > 0
    assert again.result == {**first.result, "bytes_written": 0}


def test_copy__goes_on_where_it_was_stopped(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied(cache, out)
    lost = sorted(commits(LocalStore(out)))[::2]
    for key in [*lost, "commits/snapshots/000001.json"]:
        (out / key).unlink()
    copied(cache, out)
    assert verify_here(out).status == 0
    assert commits(LocalStore(out)) == commits(LocalStore(cache))


def test_copy__teachers_grids_and_views(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied(cache, out, teachers=["vit"], grids=[2], views=[0, 1])
    assert sets(out) == {(2, "fp16")}
    assert verify_here(out).status == 0
    stream = CacheStream(str(out), pixels=None, batch_size=16, views=[0, 1])
    whole = CacheStream(str(cache), teachers={"vit": 2}, pixels=None, batch_size=16, views=[0, 1])
    assert stream.rows == whole.rows == 140


def test_copy__a_codec_is_made_on_the_way(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copied(cache, out, grids=[2], codec="variable3.pca")
    assert sets(out) == {(2, "variable3.pca")}
    assert verify_here(out).status == 0
    told = {**TOLD, "grids": [2], "teachers": {"vit": VIT}}
    codec = {"tokens": "variable", "bits": 3}
    extract_here(config_of(cache, cache.with_name("pictures"), **told, codec=codec))
    theirs, mine = (CacheReader(str(each), teachers={"vit": 2}) for each in (cache, out))
    rows = [each.read_block(0, 1)[1]["vit"] for each in (theirs, mine)]
    assert np.array_equal(*rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"teachers": ["nobody"]},
            "no nobody here; there are cnn, vit|no nobody here; there are vit, cnn",
        ),
        ({"grids": [9]}, "nothing of what is asked for"),
        ({"views": [7]}, "nothing of what is asked for"),
        ({"codec": "zip"}, "is written as in paths"),
    ],
)
def test_copy__refuses(cache: Path, tmp_path: Path, words: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        copied(cache, tmp_path / "out", **words)


def test_copy__a_codec_that_cannot_be_made(cache: Path, tmp_path: Path) -> None:
    copied(cache, tmp_path / "out", codec="int8")
    with pytest.raises(ConfigError, match=r"is stored as int8, of which fp16 cannot be made"):
        copied(tmp_path / "out", tmp_path / "further", codec="fp16")


def test_copy__into_another_cache(cache: Path, tmp_path: Path) -> None:
    extract_here(config_of(tmp_path / "other", pictures(tmp_path / "more", 33)))
    with pytest.raises(ConfigError, match="is of another cache; copy into a new folder"):
        copied(cache, tmp_path / "other")


def test_copy__a_damaged_shard_is_not_copied(cache: Path, tmp_path: Path) -> None:
    commit = next(iter(commits(LocalStore(cache)).values()))
    (cache / commit.tokens.key).write_bytes(b"something else")
    with pytest.raises(DamageError, match="is damaged: verify the cache"):
        copied(cache, tmp_path / "out")
    assert Catalog(LocalStore(tmp_path / "out")).latest_snapshot() is None
