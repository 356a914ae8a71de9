import itertools
import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.catalog import Catalog
from infra.plan_reader import PlanReader
from infra.store import open_store
from schemas import shard
from tests.caches import read_table
from tests.unit.trainer.streams import (
    EMPTY,
    IMAGES,
    ROWS,
    VIEWS,
    Cached,
    assert_equal,
    epoch_of,
    joined,
    rows_of,
    stream_of,
)


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
        (_, form), key = shard.form_of(metadata), line["tokens_key"]
        tokens = shard.decode(store.get(key), key, form, shard.rows_per_shard_of(metadata))
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
