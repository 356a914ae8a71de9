import itertools
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trainer.stream
from infra.catalog import Catalog, PlanReader
from infra.store import open_store
from schemas import shard
from schemas.errors import CacheError, ConfigError, ResumeError
from tests.caches import CNN, VIT, config_of, extract_here, pictures, read_table
from trainer import CacheStream
from trainer.batch import Batch

IMAGES, MORE, VIEWS = 267, 5, 2
ROWS = (IMAGES + 1 + MORE) * VIEWS
"""546: 17 blocks and, of the second generation, one of ten rows: two windows."""
EMPTY = "empty.jpg"


@dataclass(frozen=True)
class Cached:
    cache: Path
    source: Path


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """Two snapshots of two teachers, the first without the last pictures; one picture is bad."""
    folder = tmp_path_factory.mktemp("stream")
    source = pictures(folder / "pictures", IMAGES)
    (source / EMPTY).write_bytes(b"")
    config = config_of(
        folder / "cache",
        source,
        views={"per_image": VIEWS},
        teachers={"vit": VIT | {"grids": [2, 3]}, "cnn": CNN},
    )
    assert extract_here(config).result["bad"] == VIEWS
    pictures(source, MORE, first=1000)
    assert extract_here(config).result["rows"] == ROWS
    return Cached(folder / "cache", source)


def stream_of(cached: Cached, **changes: Any) -> CacheStream:
    options: dict[str, Any] = {"pixels": 32, "batch_size": 64, "teachers": {"vit": 2, "cnn": 2}}
    return CacheStream(str(cached.cache), **(options | changes))


def epoch_of(stream: CacheStream) -> list[Batch]:
    """The batches to the end of the epoch."""
    epoch = stream.state_dict()["epoch"]
    batches = []
    with closing(iter(stream)) as iterator:
        for batch in iterator:
            batches.append(batch)
            if batch.state["epoch"] != epoch:
                break
    return batches


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.rows.tolist()]


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """What the batches hold, whatever their size."""
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in batches:
        for name in ("rows", "pixels", "weight"):
            parts.setdefault(name, []).append(getattr(batch, name))
        for name, target in batch.targets.items():
            parts.setdefault(f"{name} tokens", []).append(target.tokens)
            assert target.cls is not None
            parts.setdefault(f"{name} cls", []).append(target.cls)
    return {name: torch.cat(part) for name, part in parts.items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def test_iter__serves_every_row_once_in_every_epoch(cached: Cached) -> None:
    stream = stream_of(cached, pixels=None)
    assert stream.rows == ROWS
    with closing(iter(stream)) as iterator:
        batches = list(itertools.islice(iterator, 2 * 9))
    first, second = rows_of(batches[:9]), rows_of(batches[9:])
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert first != rows_of(epoch_of(stream_of(cached, pixels=None, seed=1)))


def test_iter__serves_the_short_last_batch(cached: Cached) -> None:
    batches = epoch_of(stream_of(cached, pixels=None))
    assert [len(batch.rows) for batch in batches] == [64] * 8 + [ROWS - 8 * 64]
    assert (batches[-1].state["epoch"], batches[-1].state["row"]) == (1, 0)
    assert len(epoch_of(stream_of(cached, pixels=None, batch_size=ROWS + 1))) == 1


@pytest.mark.parametrize("threads", [2, 5])
def test_iter__is_the_same_for_any_threads(cached: Cached, threads: int) -> None:
    alone = joined(epoch_of(stream_of(cached, threads=1)))
    many = joined(epoch_of(stream_of(cached, threads=threads, prefetch_batches=1)))
    assert_equal(many, alone)


def test_iter__goes_on_from_the_state_of_each_batch(cached: Cached) -> None:
    whole = epoch_of(stream_of(cached, pixels=None, batch_size=61))
    rows = rows_of(whole)
    for number, batch in enumerate(whole[:-1]):
        again = stream_of(cached, pixels=None, batch_size=50 - number, threads=2)
        again.load_state_dict(json.loads(json.dumps(batch.state)))
        assert again.state_dict() == batch.state
        assert rows_of(epoch_of(again)) == rows[61 * (number + 1) :]


def test_iter__goes_on_to_the_same_pixels_and_targets(cached: Cached) -> None:
    whole = epoch_of(stream_of(cached))
    again = stream_of(cached, batch_size=37, threads=5)
    again.load_state_dict(whole[3].state)
    assert_equal(joined(epoch_of(again)), joined(whole[4:]))


def test_iter__goes_on_in_the_next_epoch(cached: Cached) -> None:
    stream = stream_of(cached, pixels=None)
    with closing(iter(stream)) as iterator:
        batches = list(itertools.islice(iterator, 20))
    again = stream_of(cached, pixels=None)
    again.load_state_dict(batches[12].state)
    assert again.state_dict()["epoch"] == 1
    assert rows_of(epoch_of(again)) == rows_of(batches[13:18])


def test_iter__again_goes_on_after_the_last_batch_handed_out(cached: Cached) -> None:
    stream, whole = stream_of(cached, pixels=None), epoch_of(stream_of(cached, pixels=None))
    with closing(iter(stream)) as iterator:
        last = list(itertools.islice(iterator, 3))[-1]
    assert stream.state_dict() == last.state
    assert rows_of(epoch_of(stream)) == rows_of(whole[3:])
    assert (stream.state_dict()["epoch"], stream.state_dict()["row"]) == (1, 0)


def test_iter__serves_what_is_in_the_cache(cached: Cached) -> None:
    """Row by row against the objects that the commits name."""
    store = open_store(str(cached.cache))
    stream = stream_of(cached, pixels=None)
    served = joined(epoch_of(stream))
    snapshot = Catalog(store).snapshot(stream.snapshot)
    place = {row: index for index, row in enumerate(served["rows"].tolist())}
    names = {fp12: name for name, fp12 in snapshot.commit.teachers.items()}
    compared = 0
    for line in snapshot.table.to_pylist():
        _, fp12, grid, _ = line["set"].split("/")
        if grid != "g2":
            continue
        metadata = store.get(f"{line['set']}/{line['generation']:06d}/tokens/zarr.json")
        shape, key = shard.shape_of(metadata)[1:], line["tokens_key"]
        tokens = shard.decode(store.get(key), key, shape, shard.rows_per_shard_of(metadata))
        for told, stored in zip(read_table(store, line["cls_key"]).to_pylist(), tokens):
            index = place[told["row"]]
            good = told["status"] == "ok"
            assert served["weight"][index] == good
            vector = np.array(told["cls"], np.float16) if good else 0
            np.testing.assert_array_equal(served[f"{names[fp12]} cls"][index], vector)
            served_tokens = served[f"{names[fp12]} tokens"][index]
            np.testing.assert_array_equal(served_tokens, stored if good else 0)
            compared += 1
    assert compared == 2 * ROWS


def test_iter__bad_rows_weigh_nothing(cached: Cached) -> None:
    served = joined(epoch_of(stream_of(cached)))
    store = open_store(str(cached.cache))
    bad = []
    for commit in Catalog(store).generations():
        keys = [key for table in PlanReader(store, commit).batches() for key in table["key"]]
        bad += [commit.first_row + i for i, key in enumerate(keys) if key.as_py() == EMPTY]
    places = torch.isin(served["rows"], torch.tensor(bad))
    assert int(places.sum()) == VIEWS
    assert torch.equal(served["weight"] == 0, places)
    for name in ("pixels", "vit tokens", "vit cls", "cnn tokens", "cnn cls"):
        assert not served[name][places].any(), name
        assert served[name][~places].flatten(1).any(1).all(), name


@pytest.mark.parametrize("view", [0, 1])
def test_iter__serves_only_the_views_asked_for(cached: Cached, view: int) -> None:
    store = open_store(str(cached.cache))
    expected = []
    for commit in Catalog(store).generations():
        views = [v for table in PlanReader(store, commit).batches() for v in table["view"]]
        expected += [commit.first_row + i for i, v in enumerate(views) if v.as_py() == view]
    stream = stream_of(cached, pixels=None, views=[view])
    assert sorted(rows_of(epoch_of(stream))) == expected
    assert stream.rows == len(expected) == ROWS // 2


def test_iter__reads_a_snapshot_without_what_came_later(cached: Cached) -> None:
    earlier = stream_of(cached, pixels=None, snapshot=1)
    assert sorted(rows_of(epoch_of(earlier))) == list(range((IMAGES + 1) * VIEWS))


def test_init__finds_pictures_where_they_have_moved(cached: Cached, tmp_path: Path) -> None:
    moved = shutil.copytree(cached.source, tmp_path / "elsewhere")
    served = epoch_of(stream_of(cached, images_root=str(moved)))
    assert_equal(joined(served), joined(epoch_of(stream_of(cached))))


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
    render = trainer.stream.render

    def other(*arguments: Any) -> Any:
        square = render(*arguments).copy()
        square[0, 0, 0] ^= 1
        return square

    monkeypatch.setattr(trainer.stream, "render", other)
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
