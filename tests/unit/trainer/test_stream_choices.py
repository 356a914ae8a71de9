"""Several grids, sides, views and ranks: what is drawn for each batch, and what is read for it."""

import json
from collections import Counter
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from schemas.spans import images_and_views
from tests.caches import CNN, VIT, config_of, extract_here, pictures
from tests.unit.trainer.streams import ROWS, VIEWS, Cached, epoch_of, joined, rows_of, stream_of
from trainer import CacheStream
from trainer.ahead import Ahead, Planned
from trainer.batch import Batch

GRIDS = {"vit": (2, 3), "cnn": 2}
SIDES = (32, 48, 64)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    """A teacher at three grids, another at one; a few pictures came later."""
    folder = tmp_path_factory.mktemp("pyramid")
    source = pictures(folder / "pictures", 400)
    teachers = {"vit": VIT | {"grids": [2, 3, 4]}, "cnn": CNN}
    config = config_of(folder / "cache", source, views={"per_image": 3}, teachers=teachers)
    extract_here(config)
    pictures(source, 7, first=1000)
    extract_here(config)
    return Cached(folder / "cache", source)


def several(cached: Cached, **changes: Any) -> CacheStream:
    return stream_of(cached, **({"teachers": GRIDS, "pixels": None} | changes))


def choices(batches: list[Batch]) -> Counter[int]:
    return Counter(batch.targets["vit"].grid for batch in batches)


def test_grids__every_row_once_an_epoch_at_one_of_them(cached: Cached) -> None:
    stream = several(cached, batch_size=16)
    first, second = epoch_of(stream), epoch_of(stream)
    assert sorted(rows_of(first)) == sorted(rows_of(second)) == list(range(ROWS))
    assert set(choices(first)) == {2, 3}
    for batch in first:
        target = batch.targets["vit"]
        assert target.tokens.shape == (len(batch.rows), target.grid**2, 64)
        assert batch.targets["cnn"].grid == 2
    grids = [
        {row: batch.targets["vit"].grid for batch in epoch for row in batch.rows.tolist()}
        for epoch in (first, second)
    ]
    assert grids[0] != grids[1]


def test_grids__take_turns_all_through_an_epoch(pyramid: Cached) -> None:
    stream = several(pyramid, teachers={"vit": (2, 3, 4), "cnn": 2}, batch_size=8)
    batches = epoch_of(stream)
    quarter = len(batches) // 4
    assert min(choices(batches[:quarter]).values()) > quarter / 6
    assert len(choices(batches[-quarter:])) == 3


def test_grids__serve_what_a_single_grid_serves(cached: Cached) -> None:
    alone = {
        grid: joined(epoch_of(several(cached, teachers={"vit": grid, "cnn": 2}))) for grid in (2, 3)
    }
    places = {
        grid: {row: place for place, row in enumerate(served["rows"].tolist())}
        for grid, served in alone.items()
    }
    for batch in epoch_of(several(cached)):
        target = batch.targets["vit"]
        order = [places[target.grid][row] for row in batch.rows.tolist()]
        assert torch.equal(target.tokens, alone[target.grid]["vit tokens"][order])


def test_grids__go_on_from_the_state_of_each_batch(cached: Cached) -> None:
    whole = epoch_of(several(cached, pixels=SIDES[:1], batch_size=61))
    for number, batch in enumerate(whole[:-1]):
        again = several(cached, pixels=SIDES[:1], batch_size=61, threads=1 + number % 3)
        again.load_state_dict(json.loads(json.dumps(batch.state)))
        rest = epoch_of(again)
        assert [b.rows.tolist() for b in rest] == [b.rows.tolist() for b in whole[number + 1 :]]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(rest, whole[number + 1 :]))


def test_sides__are_drawn_free_of_the_grids(pyramid: Cached) -> None:
    stream = several(pyramid, teachers={"vit": (2, 3, 4), "cnn": 2}, pixels=SIDES, batch_size=4)
    with closing(iter(stream)) as batches:
        seen = Counter(
            (batch.pixels.shape[-1], batch.targets["vit"].grid) for batch in islice(batches, 300)
        )
    assert len(seen) == 9
    assert min(seen.values()) > 12  # 33 expected, deviation 5.4


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are asked for at each batch which is begun, whenever they come."""
    sizes: list[int] = []
    begin = Ahead._begin

    def noted(self: Ahead, batch: Planned) -> Planned:
        sizes.append(begin(self, batch).bytes_begun)
        return batch

    monkeypatch.setattr(Ahead, "_begin", noted)
    return sizes


def test_resume__asks_for_no_more_before_the_first_batch_than_a_fresh_start(
    pyramid: Cached, asked: list[int]
) -> None:
    def asks(state: dict[str, Any] | None) -> int:
        stream = several(pyramid, batch_size=16, prefetch_batches=1, teachers={"vit": 3, "cnn": 2})
        if state is not None:
            stream.load_state_dict(state)
        asked.clear()
        with closing(iter(stream)) as batches:
            next(batches)
        return sum(asked)

    with closing(iter(several(pyramid, batch_size=16, teachers={"vit": 3, "cnn": 2}))) as batches:
        states = [batch.state for batch in islice(batches, 40)]
    resumed = [asks(state) for state in states[1:]]
    # As many on average: a cursor may stand just before the next block of a lane, or just behind.
    assert sum(resumed) / len(resumed) <= 1.05 * asks(None)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks__share_every_batch(cached: Cached, world: int) -> None:
    alone = epoch_of(several(cached, batch_size=50))
    ranks = [
        epoch_of(several(cached, batch_size=50, rank=rank, world=world)) for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks):
        rows = [row for part in parts for row in part.rows.tolist() if row >= 0]
        assert sorted(rows) == sorted(whole.rows.tolist())
        assert {part.total for part in parts} == {whole.total} == {len(whole.rows)}
        assert all(part.state == whole.state for part in parts)
        assert {part.targets["vit"].grid for part in parts} == {whole.targets["vit"].grid}


def test_ranks__without_a_row_get_one_that_weighs_nothing(cached: Cached) -> None:
    parts = [epoch_of(several(cached, batch_size=7, rank=rank, world=8)) for rank in range(8)]
    padded = [batch for part in parts for batch in part if -1 in batch.rows]
    assert padded
    for batch in padded:
        assert (batch.rows.tolist(), batch.weight.tolist()) == ([-1], [0.0])
        assert not batch.targets["vit"].tokens.any()


def test_ranks__their_number_may_change_on_resume(cached: Cached) -> None:
    whole = epoch_of(several(cached))
    rest = []
    for rank in range(3):
        again = several(cached, rank=rank, world=3)
        again.load_state_dict(whole[2].state)
        rest += [row for row in rows_of(epoch_of(again)) if row >= 0]
    assert sorted(rest) == sorted(rows_of(whole[3:]))


def test_views__random_is_one_of_each_image_and_another_in_another_epoch(pyramid: Cached) -> None:
    stream = several(pyramid, teachers={"vit": 2, "cnn": 2}, views="random")
    reader = stream._reader
    views = np.concatenate(
        [np.stack([*spans(plan)]) for plan in ((commit) for commit in reader.generations)],
        axis=1,
    )
    seen = []
    for _ in range(6):
        images, chosen = views[:, rows_of(epoch_of(stream))]
        assert sorted(images) == list(range(407))
        seen.append(dict(zip(images.tolist(), chosen.tolist())))
    assert all(len({epoch[image] for epoch in seen}) > 1 for image in range(0, 384, 32))
    assert Counter(seen[0].values()).keys() == {0, 1, 2}


def spans(plan: Any) -> tuple[Any, Any]:
    images, views = images_and_views(plan, np.arange(plan.rows))
    return images + plan.first_row // 3, views


def test_read_ahead__is_bounded_in_bytes(pyramid: Cached, asked: list[int]) -> None:
    begun = []
    for memory_bytes in (1, 1 << 30):
        stream = several(
            pyramid,
            teachers={"vit": 4, "cnn": 2},
            batch_size=8,
            prefetch_batches=2,
            memory_bytes=memory_bytes,
        )
        asked.clear()
        with closing(iter(stream)) as batches:
            first = next(batches)
        begun.append((len(asked), first.rows.tolist()))
    assert begun[0][0] < begun[1][0]
    assert begun[0][1] == begun[1][1]


def test_views__number(cached: Cached) -> None:
    assert several(cached, views="random").rows * VIEWS == pytest.approx(ROWS, abs=64)
