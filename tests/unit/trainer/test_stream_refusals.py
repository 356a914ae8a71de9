"""What a stream does not serve: other pictures, other pixels, another order."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import trainer.replay
from schemas import shard
from schemas.errors import CacheError, ConfigError, DamageError, ResumeError
from tests.unit.trainer.streams import ROWS, Cached, epoch_of, rows_of, stream_of
from trainer import CacheStream
from trainer.cache import CacheReader


def changed(cached: Cached, folder: Path) -> Path:
    """A copy of the pictures in which one has one byte more."""
    moved = shutil.copytree(cached.source, folder / "changed")
    with (moved / "0007.jpg").open("ab") as file:
        file.write(b"\0")
    return moved


def test_iter__a_changed_picture_is_refused_by_name(cached: Cached, tmp_path: Path) -> None:
    moved = changed(cached, tmp_path)
    with pytest.raises(CacheError, match=r"image 0007\.jpg: has changed since it was extracted"):
        epoch_of(stream_of(cached, images_root=str(moved)))


def test_iter__without_pixels_pictures_are_not_read(cached: Cached, tmp_path: Path) -> None:
    moved = changed(cached, tmp_path)
    assert len(rows_of(epoch_of(stream_of(cached, pixels=None, images_root=str(moved))))) == ROWS


def test_iter__a_missing_picture_is_refused_by_name(cached: Cached, tmp_path: Path) -> None:
    moved = shutil.copytree(cached.source, tmp_path / "elsewhere")
    (moved / "0011.jpg").unlink()
    with pytest.raises(CacheError, match=r"image 0011\.jpg: is no longer .* Set images\.root"):
        epoch_of(stream_of(cached, images_root=str(moved)))


def test_iter__other_pixels_are_refused_where_a_teacher_saw_that_size(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another decoder: one value of one pixel is one more."""
    see = trainer.replay.see

    def other(*arguments: Any) -> Any:
        square = see(*arguments).copy()
        square[0, 0, 0] ^= 1
        return square

    monkeypatch.setattr(trainer.replay, "see", other)
    with pytest.raises(CacheError, match=r"image \d+\.jpg: decodes to other pixels here"):
        next(iter(stream_of(cached)))
    assert len(next(iter(stream_of(cached, pixels=40))).rows) == 64


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"snapshot": 9}, CacheError, "no snapshot 9; the newest is 2"),
        ({"teachers": {"dino": 2}}, CacheError, "has no teacher 'dino'; it has cnn, vit"),
        ({"teachers": {"vit": 5}}, ConfigError, "vit.grids: not cached at 5; there is 2, 3"),
        ({"teachers": {"vit": None}}, ConfigError, "vit.grids: cached at 2, 3; name one"),
        ({"codecs": {"vit": "int8"}}, ConfigError, "vit.codec: not cached as int8; there is fp16"),
        ({"teachers": {"vit": (2, 3), "cnn": (2, 1)}}, ConfigError, "cnn.grids: not cached at 1"),
        ({"views": [7]}, CacheError, "no rows that all of vit, cnn cover in the views asked for"),
        ({"images_root": "/nowhere"}, ConfigError, "images /nowhere: no picture, Parquet file or"),
    ],
)
def test_init__says_what_there_is(
    cached: Cached, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stream_of(cached, **changes)


def test_init__no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"no cache here \(it has no cache\.json\)"):
        CacheStream(str(tmp_path), pixels=None, batch_size=1)


def test_state_dict__is_small(cached: Cached) -> None:
    assert len(json.dumps(stream_of(cached).state_dict())) < 1024


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"seed": 1}),
        ("snapshot", {"snapshot": 1}),
        ("views", {"views": [0]}),
        ("teachers", {"teachers": {"vit": 2}}),
        ("teachers", {"teachers": {"vit": 3, "cnn": 2}}),
    ],
)
def test_load_state_dict__another_order_is_refused(
    cached: Cached, name: str, changes: dict[str, Any]
) -> None:
    state = stream_of(cached, pixels=None).state_dict()
    with pytest.raises(ResumeError, match=f"is of another order: {name} was .*, now "):
        stream_of(cached, pixels=None, **changes).load_state_dict(state)


@pytest.mark.parametrize("missing", [1, 4, 5, 700, 10_000, 1 << 40])
def test_read_into__a_short_object_never_leaves_what_lay_there(
    cached: Cached, tmp_path: Path, missing: int
) -> None:
    """Room is used again, and what it held before may be these very rows."""
    cache = shutil.copytree(cached.cache, tmp_path / "cache")
    reader = CacheReader(str(cache), teachers={"vit": 2})
    block, tokens = reader.read_block(0, 0)
    row_bytes = tokens["vit"][0].nbytes + shard.CRC_BYTES
    path = cache / reader.sets["vit"][2].tokens(0, 0)
    index = shard.index_bytes(
        shard.rows_per_shard_of((cache / reader.sets["vit"][2].array(0)).read_bytes())
    )
    end = index + row_bytes * int(block.sets["vit"].ok.sum())
    path.write_bytes(path.read_bytes()[: max(0, end - missing)])
    with pytest.raises(DamageError, match=r"row \d+ of the shard is damaged"):
        reader.read_into(0, 0, {"vit": dict(enumerate(tokens["vit"]))})
